//! Replies that come late: a host that has given up, and says so by a sync or by
//! leaving, never gets them; one that only goes on asking gets them with their id.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::scene::{
    disabled, files_on, open_that_waits, policy, reply_to, send, status, story_of_freezes, thaw, verify, with,
};
use crate::stuck::Scene;
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_sync_takes_away_the_freezes_reply", a_sync_takes_away_the_freezes_reply),
    ("without_a_sync_the_freezes_reply_comes_last", without_a_sync_the_freezes_reply_comes_last),
    ("the_next_host_gets_no_reply_of_the_formers", the_next_host_gets_no_reply_of_the_formers),
    ("a_host_that_vanishes_leaves_the_limit_running", a_host_that_vanishes_leaves_the_limit_running),
    ("a_sync_takes_away_the_thaws_reply", a_sync_takes_away_the_thaws_reply),
    ("a_second_thaw_waits_for_the_first", a_second_thaw_waits_for_the_first),
    ("what_waits_for_a_thaw_is_answered_in_order", what_waits_for_a_thaw_is_answered_in_order),
    ("what_waits_for_a_thaw_is_bounded", what_waits_for_a_thaw_is_bounded),
    ("a_slow_open_is_answered_before_the_sync", a_slow_open_is_answered_before_the_sync),
];

const SYNCS: [&str; 2] = ["guest-sync", "guest-sync-delimited"];

/// Says a sync; its reply must be the next one.
fn synchronise(host: &mut Host, sync: &str, number: i64) {
    host.send(json!({ "execute": sync, "arguments": { "id": number } }).to_string().as_bytes());
    assert_eq!(host.hear(), json!({ "return": number }));
}

/// Asks until the status is this one; every reply must be the status's own.
fn await_status(host: &mut Host, wanted: &str) {
    let mut polls = 0;
    eventually(&format!("the status is {wanted}"), || {
        polls += 1;
        let id = format!("poll {polls}");
        send(host, "guest-fsfreeze-status", &Value::Null, &id);
        (reply_to(host, &id).expect("a status") == wanted).then_some(())
    });
}

/// Nothing is on its way to this host.
fn hears_only_itself(host: &mut Host) {
    for id in ["first", "second", "third"] {
        send(host, "guest-ping", &Value::Null, id);
        reply_to(host, id).expect("a ping's answer, and no other");
    }
}

fn a_sync_takes_away_the_freezes_reply() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    for (number, sync) in (1..).zip(SYNCS) {
        scene.stick(&agent, &mut host, "late");
        synchronise(&mut host, sync, number);
        scene.release();
        await_status(&mut host, "frozen");
        hears_only_itself(&mut host);
        assert_eq!(thaw(&mut host), 2);
        // One that a thaw ends, too: the thaw's reply is owed.
        scene.stick(&agent, &mut host, "late");
        synchronise(&mut host, sync, -number);
        send(&mut host, "guest-fsfreeze-thaw", &Value::Null, "thaw");
        host.send(b"{\"execute\":\"guest-ping\"}");
        assert_eq!(host.hear(), json!({ "return": {} }));
        scene.release();
        reply_to(&mut host, "thaw").expect("a number");
        hears_only_itself(&mut host);
        assert!(scene.is_thawed());
    }
}

fn without_a_sync_the_freezes_reply_comes_last() {
    let scene = Scene::new();
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "the freeze");
    hears_only_itself(&mut host);
    send(&mut host, "guest-file-open", &json!({ "path": path }), "open");
    assert_eq!(reply_to(&mut host, "open"), Err(disabled("guest-file-open")));
    send(&mut host, "guest-shutdown", &Value::Null, "shutdown");
    assert_eq!(reply_to(&mut host, "shutdown"), Err(disabled("guest-shutdown")));
    scene.release();
    assert_eq!(reply_to(&mut host, "the freeze"), Ok(json!(2)));
    hears_only_itself(&mut host);
    assert_eq!(thaw(&mut host), 2);
}

fn the_next_host_gets_no_reply_of_the_formers() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "freeze");
    drop(host);
    let mut host = agent.connect();
    hears_only_itself(&mut host);
    scene.release();
    await_status(&mut host, "frozen");
    hears_only_itself(&mut host);
    assert_eq!(thaw(&mut host), 2);

    let path = home.write("file", b"content");
    scene.stick_thaw(&agent, &mut host, "thaw");
    send(&mut host, "guest-file-open", &json!({ "path": path }), "open");
    host.ping();
    drop(host);
    let mut host = agent.connect();
    hears_only_itself(&mut host);
    scene.release();
    await_status(&mut host, "thawed");
    hears_only_itself(&mut host);
    assert!(scene.is_thawed());
    host.open(&path, "r").expect("all commands again");
    // What the former asked for behind the thaw was not done behind its back.
    let opens: Vec<_> = agent.records_of("guest-file-open").iter().map(stage).collect();
    assert_eq!(opens, ["refused", "granted"]);
    verify(&[&home.log()]);
}

fn stage(record: &Value) -> String {
    record["postern"]["stage"].as_str().expect("a stage").to_owned()
}

/// The connection closed, the worker killed, both: in the middle of a freeze.
fn a_host_that_vanishes_leaves_the_limit_running() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"4s\"\n"));
    for (leaves, dies) in [(true, false), (false, true), (true, true)] {
        let mut host = agent.connect();
        scene.stick(&agent, &mut host, "freeze");
        assert!(scene.third.is_frozen());
        let mut stays = Some(host);
        if leaves {
            stays = None;
        }
        if dies {
            let worker = agent.process("worker", 0);
            agent.signal("worker", Signal::SIGKILL);
            agent.process("worker", worker);
        }
        eventually("the limit thaws what is frozen", || (!scene.third.is_frozen()).then_some(()));
        // Nobody need be there for the rest of it either.
        scene.release();
        eventually("all is thawed", || scene.is_thawed().then_some(()));
        let told = stays.map(|mut host| {
            if !dies {
                assert_eq!(reply_to(&mut host, "freeze"), Err("the freeze was ended by a thaw".to_owned()));
            }
            hears_only_itself(&mut host);
        });
        assert_eq!(told.is_none(), leaves);
        let mut host = agent.connect();
        await_status(&mut host, "thawed");
        hears_only_itself(&mut host);
    }
    let by_limit = story_of_freezes(&agent).iter().filter(|line| line.ends_with("(the time limit passed)")).count();
    assert_eq!(by_limit, 3);
}

fn a_sync_takes_away_the_thaws_reply() {
    let scene = Scene::new();
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    for (number, sync) in (1..).zip(SYNCS) {
        scene.stick_thaw(&agent, &mut host, "late");
        // It waits, and is as stale as the thaw's own reply.
        send(&mut host, "guest-file-open", &json!({ "path": path }), "later");
        send(&mut host, "guest-shutdown", &Value::Null, "latest");
        synchronise(&mut host, sync, number);
        assert_eq!(status(&mut host), "frozen", "one still is");
        scene.release();
        await_status(&mut host, "thawed");
        hears_only_itself(&mut host);
        assert!(scene.is_thawed());
    }
    assert!(agent.records_of("guest-file-open").iter().all(|record| stage(record) == "refused"));
    assert_eq!(agent.records_of("guest-shutdown").len(), 2);
    assert!(agent.records_of("guest-shutdown").iter().all(|record| stage(record) == "refused"));
}

fn a_second_thaw_waits_for_the_first() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick_thaw(&agent, &mut host, "one");
    send(&mut host, "guest-fsfreeze-thaw", &Value::Null, "two");
    hears_only_itself(&mut host);
    scene.release();
    assert_eq!(reply_to(&mut host, "one"), Ok(json!(2)));
    assert_eq!(reply_to(&mut host, "two"), Ok(json!(0)));
    // The first one given up: the second is told what came of both.
    scene.stick_thaw(&agent, &mut host, "one");
    synchronise(&mut host, "guest-sync", 5);
    send(&mut host, "guest-fsfreeze-thaw", &Value::Null, "two");
    hears_only_itself(&mut host);
    scene.release();
    assert_eq!(reply_to(&mut host, "two"), Ok(json!(2)));
    hears_only_itself(&mut host);
    assert!(scene.is_thawed());
}

fn what_waits_for_a_thaw_is_answered_in_order() {
    let scene = Scene::new();
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick_thaw(&agent, &mut host, "thaw");
    send(&mut host, "guest-file-open", &json!({ "path": path }), "open");
    send(&mut host, "nonsense", &Value::Null, "unknown");
    send(&mut host, "guest-fsfreeze-thaw", &Value::Null, "again");
    send(&mut host, "guest-file-close", &json!({ "handle": 1 }), "close");
    hears_only_itself(&mut host);
    scene.release();
    assert_eq!(reply_to(&mut host, "thaw"), Ok(json!(2)));
    assert!(reply_to(&mut host, "open").expect("a handle").as_i64() >= Some(1000));
    assert!(reply_to(&mut host, "unknown").is_err());
    assert_eq!(reply_to(&mut host, "again"), Ok(json!(0)));
    assert_eq!(reply_to(&mut host, "close"), Err("handle '1' has not been found".to_owned()));
}

fn what_waits_for_a_thaw_is_bounded() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick_thaw(&agent, &mut host, "thaw");
    let padding = "x".repeat(10_000);
    for number in 0..8 {
        send(&mut host, "guest-file-open", &json!({ "path": padding }), &number.to_string());
    }
    // Six of them wait; the others are refused as while a freeze lasts.
    for number in ["6", "7"] {
        assert_eq!(reply_to(&mut host, number), Err(disabled("guest-file-open")));
    }
    hears_only_itself(&mut host);
    scene.release();
    assert_eq!(reply_to(&mut host, "thaw"), Ok(json!(2)));
    for number in 0..6 {
        assert!(reply_to(&mut host, &number.to_string()).is_err_and(|why| why.contains("failed to open file")));
    }
    hears_only_itself(&mut host);
}

/// An open is answered within the limit that openers have, in its place: a host
/// that gave up finds that reply before its sync's and skips it.
fn a_slow_open_is_answered_before_the_sync() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let _files = files_on(&home, &mounted);
    let agent: Agent<'_> = home.start(&policy());
    let mut host = agent.connect();
    mounted.freeze();
    open_that_waits(&agent, &mut host);
    send(&mut host, "guest-sync-delimited", &json!({ "id": 9 }), "sync");
    assert!(mounted.thaw());
    reply_to(&mut host, "open").expect("a handle");
    assert_eq!(reply_to(&mut host, "sync"), Ok(json!(9)));
    // Nor does another host get it.
    mounted.freeze();
    open_that_waits(&agent, &mut host);
    drop(host);
    let mut host = agent.connect();
    std::thread::sleep(Duration::from_millis(100));
    assert!(mounted.thaw());
    hears_only_itself(&mut host);
}
