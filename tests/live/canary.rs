//! No record, no line for the operator and no head holds what a file contains or
//! what a host sent to be written, run, or kept secret: a canary is put into all of
//! these, and every agent's logs are searched for it when it ends.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::scene::{freeze, status, story, thaw, verify, with};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::journal::{JOURNAL, bind, heard};
use crate::support::records::{CANARY, CANARY_BASE64, betrays};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("no_content_appears_in_the_log", no_content_appears_in_the_log),
    ("the_search_finds_a_canary", the_search_finds_a_canary),
];

/// Requests that carry what no record may.
fn requests(handle: i64) -> Vec<Value> {
    let write = |arguments: Value| json!({ "execute": "guest-file-write", "arguments": arguments });
    vec![
        write(json!({ "handle": handle, "buf-b64": CANARY_BASE64 })),
        write(json!({ "handle": 1, "buf-b64": CANARY_BASE64 })),
        write(json!({ "handle": handle, "buf-b64": CANARY_BASE64, "count": 99 })),
        write(json!({ "handle": handle, "buf-b64": CANARY })),
        write(json!({ "handle": CANARY_BASE64 })),
        write(json!({ "handle": handle, "buf-b64": [CANARY_BASE64] })),
        write(json!({ "handle": handle, "buf-b64": CANARY_BASE64, (CANARY): 1 })),
        json!({ "execute": "guest-file-seek", "arguments": { "handle": handle, "offset": 0, "whence": CANARY } }),
        json!({ "execute": "guest-file-open", "arguments": { "path": [CANARY], "mode": CANARY } }),
        json!({ "execute": "guest-set-user-password", "arguments": { "username": "u", "password": CANARY_BASE64, "crypted": false } }),
        json!({ "execute": "guest-exec", "arguments": { "path": "/bin/cat", "input-data": CANARY_BASE64 } }),
        json!({ "execute": "guest-exec", "arguments": { "path": "/bin/sh", "arg": ["-c", CANARY], "env": [CANARY] } }),
        json!({ "execute": "guest-ssh-add-authorized-keys", "arguments": { "username": "u", "keys": [CANARY] } }),
        json!({ "execute": "guest-ssh-remove-authorized-keys", "arguments": { "username": "u", "keys": [CANARY] } }),
        json!({ "execute": "guest-ping", "id": CANARY_BASE64 }),
        json!({ "execute": "guest-ping", "arguments": { (CANARY): CANARY_BASE64 } }),
        json!({ "execute": "guest-ping", (CANARY): CANARY_BASE64 }),
        json!({ "execute": [CANARY] }),
        json!({ (CANARY): CANARY_BASE64 }),
        json!([CANARY, CANARY_BASE64]),
    ]
}

/// Requests that are no JSON; each has one reply.
fn broken() -> [String; 6] {
    [
        format!("{{\"execute\": \"{CANARY} \n"),
        format!("{{\"execute\": {CANARY}}}\n"),
        format!("{{\"execute\": \"guest-ping\", \"arguments\": {{\"{CANARY}\" 1}}}}\n"),
        format!("{{\"{CANARY}\": 1, \"{CANARY}\": 2}}\n"),
        format!("{{\"execute\": \"guest-exec\", \"arguments\": {{\"input-data\": \"{CANARY_BASE64}\\x\"}}}}\n"),
        "[".repeat(1025) + &format!("\"{CANARY}\"") + &"]".repeat(1025),
    ]
}

fn send_all(host: &mut Host, handle: i64) {
    for request in requests(handle) {
        host.send(request.to_string().as_bytes());
        host.hear();
    }
    for request in broken() {
        host.send(request.as_bytes());
        // However many errors it makes of it: the next sync is behind them.
        host.send(b"\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 4711}}");
        while host.hear()["return"] != 4711 {}
    }
}

fn no_content_appears_in_the_log() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let journal = bind(JOURNAL);
    let home = Home::new();
    let path = home.write("file", CANARY.repeat(100).as_bytes());
    let fresh = home.files().join("fresh");
    // Heads are written as records are.
    let agent = home.start(&with("[audit]\nheads = [\"journal\"]\nhead_records = 1\n"));
    let mut host = agent.connect();
    let handle = host.open(&path, "r+").expect("a handle");
    assert!(host.read(handle).contains(CANARY_BASE64.trim_end_matches('=')), "the control: it is read");
    assert_eq!(host.write(handle, CANARY_BASE64)["return"]["count"], CANARY.len());
    let made = host.open(&fresh, "w").expect("a handle");
    assert_eq!(host.write(made, CANARY_BASE64)["return"]["count"], CANARY.len());
    send_all(&mut host, handle);
    // What is refused while frozen is on record too.
    assert_eq!(freeze(&mut host), 1);
    send_all(&mut host, handle);
    assert_eq!(thaw(&mut host), 1);
    host.close(made);
    status(&mut host);
    // A worker that dies with all of this in its memory.
    agent.signal("worker", Signal::SIGKILL);
    agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    agent.await_record("guest-file-close", |record| record["event"]["reason"] == "the worker died");
    let story = story(&agent);
    for command in ["guest-set-user-password", "guest-exec", "guest-ssh-add-authorized-keys", "guest-file-write"] {
        let refused = format!("{command} refused");
        assert!(story.iter().any(|line| line.starts_with(&refused)), "{refused}: {story:?}");
    }
    let heads: Vec<Vec<u8>> = std::iter::from_fn(|| heard(&journal)).map(|(datagram, _)| datagram).collect();
    assert!(heads.len() > 3, "{}", heads.len());
    for head in heads {
        assert_eq!(betrays(&head), None, "{:?}", String::from_utf8_lossy(&head));
    }
    let log = fs::read(home.log()).expect("the log");
    for word in ["input-data", "password\":", "buf-b64", "keys\":"] {
        assert!(!String::from_utf8_lossy(&log).contains(word), "{word}");
    }
    drop(agent);
    let written = fs::read(&fresh).expect("the file");
    assert!(betrays(&written).is_some(), "the control: it was written");
    // Home and agent search log and stderr for it when they go.
}

/// The control: a canary that did get into a log is found when its home goes.
fn the_search_finds_a_canary() {
    let home = Home::new();
    let agent = home.start(&with(""));
    let mut host = agent.connect();
    // A path is on record by its name.
    let named = home.files().join(CANARY);
    host.open(&named, "r").expect_err("it is not there");
    agent.await_record("guest-file-open", |record| record["postern"]["stage"] == "refused");
    verify(&[&home.log()]);
    let text = fs::read(home.log()).expect("the log");
    assert!(betrays(&text).is_some());
    forget(agent, &home);
}

/// Ends an agent whose log its home would refuse.
fn forget(agent: Agent<'_>, home: &Home) {
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(agent)));
    assert!(found.is_err(), "the search ran when the agent went");
    fs::remove_file(home.log()).expect("the log");
    eventually("it is gone", || (!home.log().exists()).then_some(()));
}
