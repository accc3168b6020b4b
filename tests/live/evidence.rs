//! The audit log under a working agent: every command's records, a full disk, a
//! rotation, a killed broker.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::commands::{CASES, Case, Meets, shape};
use crate::scene::{
    disabled, freeze, kill_broker, policy, send, small_tmpfs, start_quietly, status, story, thaw, verify,
};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::cell;
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("every_command_yields_its_records", every_command_yields_its_records),
    ("a_full_disk_refuses_all_but_a_thaw", a_full_disk_refuses_all_but_a_thaw),
    ("a_rotation_under_load_keeps_the_chain", a_rotation_under_load_keeps_the_chain),
    ("a_broker_killed_under_load_leaves_a_whole_log", a_broker_killed_under_load_leaves_a_whole_log),
];

/// An init that takes requests, so that a shutdown can be asked for: whoever
/// holds this reads nothing and nothing happens.
fn sysvinit() -> File {
    let path = Path::new("/run/initctl");
    mkfifo(path, Mode::S_IRWXU).expect("a FIFO");
    File::options().read(true).write(true).open(path).expect("the FIFO")
}

// ---- the table -----------------------------------------------------------------

/// Asks something that the broker answers in the order of asking: what came
/// before has its records then.
fn settle(host: &mut Host) {
    status(host);
}

/// The shapes of the records that a request yields. Lists of `counted` are left
/// out, and of what is done to get there and back again.
fn yields(agent: &Agent<'_>, host: &mut Host, case: &Case, home: &Home) -> Vec<[String; 3]> {
    let allowed = home.write("allowed", b"content").display().to_string();
    let text = [
        ("{allowed}", allowed.as_str()),
        ("{outside}", "/etc/outside"),
        ("{missing}", &format!("{}/missing", home.files().display())),
        ("{mountpoint}", "/disk"),
        ("{other-mode}", "halt"),
    ];
    let mut arguments = text.iter().fold(case.arguments.to_owned(), |text, (name, value)| text.replace(name, value));
    if arguments.contains("{handle}") {
        let handle = host.open(&allowed, "r+").expect("a handle");
        arguments = arguments.replace("{handle}", &handle.to_string());
    }
    settle(host);
    let before = agent.records().len();
    let frozen = case.meets == Meets::Frozen;
    if frozen {
        assert_eq!(freeze(host), 1);
    }
    let arguments: Value = serde_json::from_str(&arguments).expect("JSON");
    if case.yields.first().is_some_and(|first| *first == ("guest-shutdown", "asked", "unknown")) {
        // What goes well has no reply.
        send(host, case.command, &arguments, "shutdown");
    } else {
        host.ask(case.command, &arguments);
    }
    settle(host);
    let freezes = !frozen && case.command.starts_with("guest-fsfreeze-freeze") && case.meets == Meets::Allowed;
    let thaws = frozen && case.command == "guest-fsfreeze-thaw";
    if freezes || (frozen && !thaws) {
        assert_eq!(thaw(host), 1);
    }
    settle(host);
    let mut shapes: Vec<[String; 3]> = agent.records()[before..].iter().map(shape).collect();
    shapes.retain(|[action, ..]| action != "counted");
    if frozen {
        let froze = shapes.drain(..2).collect::<Vec<_>>();
        let stages: Vec<&str> = froze.iter().map(|[_, stage, _]| stage.as_str()).collect();
        assert_eq!(stages, ["asked", "done"]);
    }
    if freezes || (frozen && !thaws) {
        let [action, stage, _] = shapes.pop().expect("the thaw's record");
        assert_eq!((action.as_str(), stage.as_str()), ("guest-fsfreeze-thaw", "done"));
    }
    shapes
}

/// A policy that allows also all that tells of the guest.
fn telling_too(policy: &str) -> String {
    const MORE: [&str; 4] = ["-get-", "guest-fstrim", "guest-suspend-", "guest-set-"];
    let more = |name: &&str| MORE.iter().any(|part| name.contains(part));
    let tells = CASES.iter().map(|case| case.command).filter(more);
    let tells: BTreeSet<String> = tells.map(|name| format!("\"{name}\"")).collect();
    let tells: Vec<String> = tells.into_iter().collect();
    policy.replacen("allow = [", &format!("allow = [{}, ", tells.join(", ")), 1)
}

fn every_command_yields_its_records() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let _init = sysvinit();
    cell::sleepless();
    let generous = telling_too(&policy());
    let strict = "profile = \"minimal\"\n[commands]\nallow = [\"guest-fsfreeze-status\"]\ndeny = [\"guest-ping\"]\n";
    let mut seen = 0;
    for (policy, denied) in [(generous.as_str(), false), (strict, true)] {
        let home = Home::new();
        let agent = home.start(policy);
        let mut host = agent.connect();
        for case in CASES.iter().filter(|case| (case.meets == Meets::Denied) == denied) {
            let found = yields(&agent, &mut host, case, &home);
            let wanted: Vec<[String; 3]> = case
                .yields
                .iter()
                .map(|(action, stage, outcome)| [action, stage, outcome].map(|&text| text.to_owned()))
                .collect();
            assert_eq!(found, wanted, "{case:?}");
            seen += 1;
        }
        // What no agent has: recorded under no name that a host could choose.
        let reply = host.ask("guest-\u{1b}[31m\"evil", &json!({}));
        assert_eq!(reply["error"]["class"], "CommandNotFound", "{reply}");
        settle(&mut host);
        let last = agent.records_of("unknown-command").pop().expect("a record");
        assert_eq!(last["postern"]["command"], "guest-\u{1b}[31m\"evil");
        assert!(!fs::read_to_string(home.log()).expect("the log").contains('\u{1b}'), "escaped in the file");
        verify(&[&home.log()]);
    }
    assert_eq!(seen, CASES.len());
}

// ---- a full disk -------------------------------------------------------------------

/// Takes all the room that is left beside the log, to the last byte.
fn fill(home: &Home) {
    let mut filler = File::options().create(true).append(true).open(home.path("log/filler")).expect("a filler");
    for size in [4096, 1] {
        while filler.write_all(&vec![0; size]).is_ok() {}
    }
}

fn empty(home: &Home) {
    fs::remove_file(home.path("log/filler")).expect("the filler");
}

fn a_full_disk_refuses_all_but_a_thaw() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let _init = sysvinit();
    let home = Home::new();
    small_tmpfs(&home, "log", 128);
    let path = home.write("file", b"content");
    let new = home.files().join("new");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    fill(&home);
    assert_eq!(thaw(&mut host), 1, "never a thaw");
    assert!(!mounted.is_frozen());
    let no_log = |why: String| assert_eq!(why, "the audit log takes no records");
    // The log's last page may have room for a few more.
    eventually("no record finds room", || {
        host.open(&path, "r").err().filter(|why| why.ends_with("Input/output error"))
    });
    host.open(&path, "r").expect_err("no open");
    let why = host.open(&new, "w").expect_err("no open that would make a file");
    assert!(why.ends_with("Input/output error"), "{why}");
    assert!(!new.exists(), "made without a record");
    let why = host.open(&path, "w").expect_err("no open that would empty a file");
    assert!(why.ends_with("Input/output error"), "{why}");
    assert_eq!(fs::read(&path).expect("the file"), b"content");
    no_log(host.fails("guest-fsfreeze-freeze", &Value::Null));
    no_log(host.fails("guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/disk"] })));
    no_log(host.fails("guest-shutdown", &json!({ "mode": "reboot" })));
    assert!(!mounted.is_frozen());
    assert_eq!(thaw(&mut host), 0, "never a thaw");
    host.ping();
    // A restart of the worker is no way around it.
    agent.signal("worker", Signal::SIGKILL);
    assert!(host.open(&path, "r").is_err());
    empty(&home);
    let handle = host.open(&path, "r").expect("records have room again");
    assert_eq!(freeze(&mut host), 1);
    assert_eq!(thaw(&mut host), 1);
    agent.await_record("guest-file-open", |record| record["postern"]["handle"] == handle);
    let story = story(&agent);
    let lost = agent.records_of("records-lost").pop().expect("a record of what was refused");
    assert!(lost["postern"]["unwritten"].as_u64().is_some_and(|count| count >= 7), "{lost}");
    assert_eq!(lost["postern"]["errno"], "ENOSPC");
    let first_thaw = story.iter().position(|line| line == "guest-fsfreeze-thaw done /disk (asked by the host)");
    assert!(first_thaw.is_some(), "the thaw that no log could stop is told later: {story:?}");
    assert!(!story.iter().any(|line| line.starts_with("guest-shutdown asked")), "{story:?}");
    assert!(agent.said().contains("No space left on device"), "{}", agent.said());
    assert_eq!(host.fails("guest-exec", &json!({})), disabled("guest-exec"));
}

// ---- rotation and crash under load -----------------------------------------------------

/// Opens and closes a file until told to stop or the agent is gone; the handles
/// that it was given.
fn load(mut host: Host, path: &Path, stop: &AtomicBool) -> Vec<i64> {
    let mut handles = Vec::new();
    let path = path.to_str().expect("a plain path");
    while !stop.load(Ordering::Relaxed) {
        let open = json!({ "execute": "guest-file-open", "arguments": { "path": path } });
        let Some(handle) = host.try_ask(&open).and_then(|reply| reply["return"].as_i64()) else { break };
        handles.push(handle);
        let close = json!({ "execute": "guest-file-close", "arguments": { "handle": handle } });
        if host.try_ask(&close).is_none() {
            break;
        }
    }
    handles
}

/// The handles that these files' records grant.
fn granted(files: &[&Path]) -> Vec<i64> {
    let mut handles = Vec::new();
    for file in files {
        for line in fs::read_to_string(file).expect("a log").lines() {
            let record: Value = serde_json::from_str(line).expect("JSON");
            if record["postern"]["stage"] == "granted" {
                handles.push(record["postern"]["handle"].as_i64().expect("a handle"));
            }
        }
    }
    handles
}

fn a_rotation_under_load_keeps_the_chain() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let host = agent.connect();
    let stop = AtomicBool::new(false);
    let names: Vec<_> = (0..4).map(|number| home.path(&format!("log/audit.jsonl.{number}"))).collect();
    let handles = thread::scope(|scope| {
        let load = scope.spawn(|| load(host, &path, &stop));
        for rotated in &names {
            eventually("there is something to rotate", || {
                (fs::metadata(home.log()).ok()?.len() > 100_000).then_some(())
            });
            fs::rename(home.log(), rotated).expect("a rename");
            agent.signal("broker", Signal::SIGHUP);
            eventually("the next file", || home.log().exists().then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
        load.join().expect("the load")
    });
    let mut files: Vec<&Path> = names.iter().map(std::path::PathBuf::as_path).collect();
    let last = home.log();
    files.push(&last);
    verify(&files);
    // Every handle that the host was given has its record, in the order given.
    assert_eq!(granted(&files), handles);
    for file in &files[1..] {
        let text = fs::read_to_string(file).expect("a log");
        let first: Value = serde_json::from_str(text.lines().next().expect("a record")).expect("JSON");
        assert_eq!((&first["event"]["action"], &first["event"]["reason"]), (&json!("log-opened"), &json!("rotated")));
    }
    println!("    {} opens over {} files", handles.len(), files.len());
}

fn a_broker_killed_under_load_leaves_a_whole_log() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let mut all = Vec::new();
    for _ in 0..3 {
        let (agent, host) = start_quietly(&home, &policy());
        let stop = AtomicBool::new(false);
        let before = fs::metadata(home.log()).expect("the log").len();
        all.extend(thread::scope(|scope| {
            let load = scope.spawn(|| load(host, &path, &stop));
            eventually("there is load", || (fs::metadata(home.log()).ok()?.len() > before + 100_000).then_some(()));
            kill_broker(agent);
            load.join().expect("the load")
        }));
        // A line that the kill tore would be explained by the next start.
        let last = fs::read_to_string(home.log()).expect("the log");
        assert!(last.ends_with('\n'), "records are written whole");
        verify(&[&home.log()]);
    }
    // As if the last one had been torn.
    let mut torn = File::options().append(true).open(home.log()).expect("the log");
    torn.write_all(b"{\"@timestamp\":\"20").expect("a torn line");
    let (agent, mut host) = start_quietly(&home, &policy());
    host.open(&path, "r").expect("a handle");
    settle(&mut host);
    verify(&[&home.log()]);
    let recorded: Vec<i64> = {
        let text = fs::read_to_string(home.log()).expect("the log");
        let whole: Vec<&str> = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).collect();
        let records = whole.iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let granted = records.filter(|record| record["postern"]["stage"] == "granted");
        granted.map(|record| record["postern"]["handle"].as_i64().expect("a handle")).collect()
    };
    assert!(all.iter().all(|handle| recorded.contains(handle)), "a handle without a record");
    let text = fs::read_to_string(home.log()).expect("the log");
    assert_eq!(text.matches("\"action\":\"log-opened\"").count(), 4);
    drop(agent);
}
