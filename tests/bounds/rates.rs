//! How many requests there may be in a second.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::policy;
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("requests_of_a_command_up_to_the_limit_are_answered", requests),
    ("opens_up_to_the_limit_are_done", opens),
    ("freezes_up_to_the_limit_are_begun", acts),
    ("what_must_come_through_is_never_limited", what_must_come_through),
    ("freezes_of_nothing_fill_no_log", freezes_of_nothing),
    ("opens_that_make_nothing_fill_no_log", opens_that_make_nothing),
];

/// Sends so many at once: what came of each, and how long it took until the last
/// was answered.
fn at_once(host: &mut Host, request: &Value, times: usize) -> (Vec<Option<String>>, Duration) {
    let sent = Instant::now();
    host.send(format!("{request}\n").repeat(times).as_bytes());
    let errors = (0..times).map(|_| host.hear()["error"]["desc"].as_str().map(str::to_owned)).collect();
    (errors, sent.elapsed())
}

/// One less than the limit, the limit and one more at once, each from a full
/// bucket; `undo` is called behind each.
fn meets(host: &mut Host, request: &Value, limit: usize, error: &str, mut undo: impl FnMut(&mut Host)) {
    for times in [limit - 1, limit, limit + 1, limit + 3] {
        // On a slow machine one more may have come in before the last was asked.
        let judged = (0..20).any(|_| {
            sleep(Duration::from_millis(1100));
            let (errors, took) = at_once(host, request, times);
            let refused: Vec<&String> = errors.iter().flatten().collect();
            undo(host);
            assert!(errors[..times.min(limit)].iter().all(Option::is_none), "{times} of {limit}: {errors:?}");
            assert!(refused.iter().all(|why| *why == error), "{refused:?}");
            let judged = took < Duration::from_secs(1) / u32::try_from(limit).expect("a small number");
            assert!(!judged || refused.len() == times.saturating_sub(limit), "{times} of {limit}: {errors:?}");
            judged
        });
        assert!(judged, "never fast enough");
        host.ping();
    }
}

/// How often each command was refused, by the log.
fn refused(agent: &Agent<'_>) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for record in agent.records_of("limited") {
        for (name, count) in record["postern"]["counts"].as_object().expect("counts") {
            *all.entry(name.clone()).or_default() += count.as_u64().expect("a number");
        }
    }
    all
}

fn requests() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy("requests = 4\n"));
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let why =
        |command: &str| format!("{command}: more than 4 requests in a second (limits.requests of the guest's policy)");
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 1 } });
    meets(&mut host, &read, 4, &why("guest-file-read"), |_| ());
    // Each command for itself, and those with a limit of their own are not held
    // to this one.
    let (errors, _) = at_once(&mut host, &read, 50);
    assert!(errors.iter().flatten().count() > 0);
    host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": 0 }));
    host.returns("guest-info", &Value::Null);
    for _ in 0..20 {
        let another = host.open(&path, "r").expect("opens have a limit of their own");
        sleep(Duration::from_millis(260));
        host.close(another);
    }
    // Requests that are no sound ones touch nothing.
    let (errors, _) = at_once(&mut host, &json!({ "execute": "guest-file-seek" }), 50);
    assert!(errors.iter().flatten().all(|why| why.contains("'handle' is missing")), "{errors:?}");
    // All is told of when the host leaves.
    drop(host);
    eventually("the log has all that was refused", || (refused(&agent)["guest-file-read"] >= 45).then_some(()));
    let record = &agent.records_of("limited")[0];
    assert_eq!(record["event"]["outcome"], "failure");
    assert_eq!(record["postern"]["refused_by"], "policy");
    assert!(agent.records_of("limited").len() < 10, "counted, not listed");
}

fn opens() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy("opens = 3\nhandles = 1024\n"));
    let mut host = agent.connect();
    let open = json!({ "execute": "guest-file-open", "arguments": { "path": path } });
    let why = "guest-file-open: more than 3 requests in a second (limits.opens of the guest's policy)";
    meets(&mut host, &open, 3, why, |_| ());
    let granted = agent.records_of("guest-file-open").len();
    let begun = Instant::now();
    let errors: Vec<_> = (0..10).flat_map(|_| at_once(&mut host, &open, 100).0).collect();
    let took = begun.elapsed();
    let done = errors.iter().filter(|error| error.is_none()).count();
    assert!(done as u64 <= 3 + 3 * (took.as_secs() + 1), "{done} in {took:?}");
    // What is refused for its number is not even an open.
    assert_eq!(agent.records_of("guest-file-open").len(), granted + done);
    host.ping();
    // The first was told of at once; the rest ten seconds later, or at the end.
    assert!(refused(&agent)["guest-file-open"] >= 1);
    agent.signal("broker", nix::sys::signal::Signal::SIGTERM);
    eventually("the end", || agent.records_of("stopped").first().cloned());
    assert!(refused(&agent)["guest-file-open"] >= (1000 - done) as u64);
}

fn acts() {
    let disk = Disk::small("ext4", "/scratch.img");
    let _mounted = disk.mount("/scratch");
    let home = Home::new();
    let agent = home.start(&policy("acts = 2\n"));
    let mut host = agent.connect();
    let one = |host: &mut Host| {
        let froze = host.ask("guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/scratch"] }));
        let thawed = host.ask("guest-fsfreeze-thaw", &Value::Null);
        assert!(thawed.get("return").is_some(), "a thaw is never refused: {thawed}");
        froze["error"]["desc"].as_str().map(str::to_owned)
    };
    let why =
        "guest-fsfreeze-freeze-list: more than 2 requests in a second (limits.acts of the guest's policy)".to_owned();
    for times in [1, 2, 3, 4] {
        let judged = (0..20).any(|_| {
            sleep(Duration::from_millis(1100));
            let begun = Instant::now();
            let errors: Vec<_> = (0..times).map(|_| one(&mut host)).collect();
            let judged = begun.elapsed() < Duration::from_millis(500);
            let due: Vec<_> = (0..times).map(|number| (number >= 2).then(|| why.clone())).collect();
            assert!(errors[..times.min(2)].iter().all(Option::is_none), "{errors:?}");
            assert!(!judged || errors == due, "{errors:?}");
            judged
        });
        assert!(judged, "never fast enough");
    }
    // Another command has its own.
    assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), 1);
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 1);
    assert!(refused(&agent)["guest-fsfreeze-freeze-list"] >= 1);
}

fn what_must_come_through() {
    let home = Home::new();
    let agent = home.start(&policy("requests = 1\nopens = 1\nacts = 1\n"));
    let mut host = agent.connect();
    let rows = [
        ("guest-ping", json!({})),
        ("guest-sync", json!({ "id": 1 })),
        ("guest-sync-delimited", json!({ "id": 1 })),
        ("guest-fsfreeze-status", json!({})),
    ];
    for (command, arguments) in rows {
        let request = json!({ "execute": command, "arguments": arguments });
        for _ in 0..25 {
            let (errors, _) = at_once(&mut host, &request, 200);
            assert_eq!(errors.iter().flatten().count(), 0, "{command}");
        }
    }
    for _ in 0..300 {
        assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 0);
    }
    assert!(refused(&agent).is_empty());
}

/// How much the log grew by what was done.
fn growth(agent: &Agent<'_>, act: impl FnOnce()) -> u64 {
    let size = || std::fs::metadata(agent.home.log()).expect("the log").len();
    let before = size();
    act();
    size() - before
}

/// What a flood of acts may add in the time that it took: what such acts have, what
/// all kinds of refusals share and what two of them have for themselves, and the
/// last acts themselves.
fn bound(took: Duration) -> u64 {
    use postern_broker::log::{BURST_BYTES, BYTES_PER_SECOND, OWN_PART};
    let part = |whole: u64| 2 * whole + 2 * whole / OWN_PART;
    part(BURST_BYTES) + part(BYTES_PER_SECOND) * (took.as_secs() + 2) + (16 << 10)
}

fn freezes_of_nothing() {
    let home = Home::new();
    let agent = home.start(&policy("acts = 1000000\n"));
    let mut host = agent.connect();
    let list = json!({ "execute": "guest-fsfreeze-freeze-list", "arguments": { "mountpoints": ["/no/such/place"] } });
    let begun = Instant::now();
    let mut last = None;
    let grew = growth(&agent, || {
        for _ in 0..1500 {
            host.send(format!("{list}\n").as_bytes());
            last = host.hear()["error"]["desc"].as_str().map(str::to_owned);
        }
    });
    let most = bound(begun.elapsed());
    println!("    1500 freezes of nothing: {grew} bytes of {most}, in {:?}", begun.elapsed());
    assert!(grew <= most, "{grew} of {most} bytes");
    assert!(last.is_some_and(|why| why.starts_with("too many freezes froze nothing")));
    assert!(agent.records_of("limited").iter().any(|record| {
        record["postern"]["counts"]["guest-fsfreeze-freeze-list"].as_u64().is_some_and(|count| count > 0)
    }));
    // Another kind is listed as ever.
    host.fails("guest-exec", &json!({ "path": "x" }));
    agent.await_record("guest-exec", |_| true);
    // And after a while the next.
    eventually("one more", || {
        sleep(Duration::from_secs(1));
        host.ask("guest-fsfreeze-freeze-list", &list["arguments"]).get("return").cloned()
    });
}

fn opens_that_make_nothing() {
    let home = Home::new();
    // A directory cannot be opened to be written.
    std::fs::create_dir(home.files().join("directory")).expect("a directory");
    let agent = home.start(&policy("opens = 1000000\n"));
    let mut host = agent.connect();
    // Refusals, however many, hold nothing back that may be done.
    let refused = json!({ "execute": "guest-file-open", "arguments": { "path": "/etc/shadow", "mode": "w" } });
    for _ in 0..10 {
        assert_eq!(at_once(&mut host, &refused, 200).0.iter().flatten().count(), 200);
        let made = host.open(home.files().join("made"), "w").expect("a file that may be made");
        host.close(made);
    }
    let mut batch = String::new();
    for _ in 0..50 {
        let path = home.files().join("directory");
        let open = json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": "w" } });
        let _ = writeln!(batch, "{open}");
    }
    let begun = Instant::now();
    let mut seen = BTreeMap::<String, usize>::new();
    let grew = growth(&agent, || {
        for _ in 0..40 {
            host.send(batch.as_bytes());
            for _ in 0..50 {
                let why = host.hear()["error"]["desc"].as_str().expect("an error").to_owned();
                *seen.entry(why.rsplit_once(": ").expect("why").1.to_owned()).or_default() += 1;
            }
        }
    });
    let most = bound(begun.elapsed());
    println!("    2000 opens that make nothing: {grew} bytes of {most}, in {:?}: {seen:?}", begun.elapsed());
    assert!(grew <= most, "{grew} of {most} bytes");
    assert!(seen.contains_key("Resource temporarily unavailable") && seen.len() == 2, "{seen:?}");
    // What makes nothing anew is not held back.
    let file = home.write("file", b"content");
    host.open(&file, "r").expect("a handle");
    // And after a while the next is made.
    eventually("one more", || {
        sleep(Duration::from_secs(1));
        host.open(home.files().join("new"), "w").ok()
    });
}
