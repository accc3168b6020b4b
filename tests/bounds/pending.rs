//! A host that does not read what it asked for, or reads slowly.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::policy;
use crate::support::agent::{Agent, Home, Host, LIVELY, eventually};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;
use crate::support::usage::Usage;

pub(crate) const TESTS: &[Test] = &[
    ("nothing_is_queued_for_a_host_that_does_not_read", nothing_is_queued),
    ("a_worker_whose_host_does_not_read_can_be_ended_and_replaced", can_be_ended_and_replaced),
    ("a_host_that_reads_nothing_holds_no_freeze", reads_nothing),
    ("a_host_that_reads_a_byte_a_second_holds_no_freeze", reads_slowly),
];

/// Asks without reading until nothing more is taken, as far as both sides' sockets
/// and the worker's buffer go.
fn stuff(host: Host, request: &str) -> UnixStream {
    let (stream, _) = host.split();
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a time limit");
    let batch = format!("{request}\n").repeat(1000);
    let mut sent = 0_usize;
    // A write that times out was taken in part, so that no more is sent whole.
    while std::io::Write::write_all(&mut &stream, batch.as_bytes()).is_ok() {
        sent += batch.len();
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
    stream
}

fn nothing_is_queued() {
    let home = Home::new();
    let path = home.write("file", &vec![7; 48 << 20]);
    let agent = home.start(&policy(""));
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    // Its buffers have their sizes.
    let read = |count: u64| json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": count } });
    for _ in 0..3 {
        host.returns("guest-file-read", &read(1 << 20)["arguments"]);
    }
    host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": 0 }));
    let worker = agent.process("worker", 0);
    let before = Usage::of(worker);
    // One reply of 64 MB and thousands behind it.
    let request = read(48 << 20).to_string() + "\n" + &json!({ "execute": "guest-info" }).to_string();
    let stuffed = stuff(host, &request);
    sleep(Duration::from_secs(1));
    let after = Usage::of(worker);
    println!("    worker before: {before}\n    after: {after}");
    assert!(after.data <= before.data + 512, "{before}, then {after}");
    assert!(after.resident <= before.resident + 512, "{before}, then {after}");
    assert_eq!(after.descriptors, before.descriptors);
    // Nobody runs in circles.
    let spent = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).expect("its status");
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("fields").1.split(' ').collect();
        fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks")
    };
    let ticks = spent();
    sleep(Duration::from_secs(1));
    assert!(spent() - ticks < 20, "it waits");
    // Once read, all is there.
    drop(stuffed);
    let mut host = agent.connect();
    host.ping();
    assert_eq!(agent.process("worker", 0), worker);
}

/// A scratch disk, and an agent whose host has frozen it and reads no more.
fn stuck_while_frozen(agent: &Agent<'_>, mounted: &Mounted) -> UnixStream {
    let mut host = agent.connect();
    let list = json!({ "mountpoints": ["/scratch"] });
    assert_eq!(host.returns("guest-fsfreeze-freeze-list", &list), 1);
    assert!(mounted.is_frozen());
    stuff(host, "{\"execute\":\"guest-info\"}")
}

fn can_be_ended_and_replaced() {
    let home = Home::new();
    let mut agent = home.start(&policy(""));
    let stuffed = stuff(agent.connect(), "{\"execute\":\"guest-info\"}");
    let worker = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    let next = agent.process("worker", worker);
    // The next one is as stuck, for it has the same host; an end comes through.
    sleep(Duration::from_millis(500));
    let begun = Instant::now();
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
    println!("    ended in {:?}", begun.elapsed());
    eventually("the worker ends", || (!crate::support::agent::lives(next)).then_some(()));
    drop(stuffed);
}

fn reads_nothing() {
    let disk = Disk::small("ext4", "/scratch.img");
    let mounted = disk.mount("/scratch");
    let home = Home::new();
    let agent = home.start(&(policy("") + "[freeze]\nlimit = \"5s\"\n"));
    let stuffed = stuck_while_frozen(&agent, &mounted);
    let thawed = agent.await_record("guest-fsfreeze-thaw", |_| true);
    assert_eq!(thawed["event"]["reason"], "the time limit passed", "{thawed}");
    assert!(!mounted.is_frozen());
    // The worker never read of it, and yet the next host finds all in order.
    drop(stuffed);
    let mut host = agent.connect();
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "thawed");
    assert_eq!(host.returns("guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/scratch"] })), 1);
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 1);
}

fn reads_slowly() {
    let disk = Disk::small("ext4", "/scratch.img");
    let mounted = disk.mount("/scratch");
    let home = Home::new();
    let agent = home.start(&(policy("") + "[freeze]\nlimit = \"5s\"\n"));
    let begun = Instant::now();
    let mut stuffed = stuck_while_frozen(&agent, &mounted);
    // A byte a second: the worker is always in the midst of a reply.
    eventually("the time limit", || {
        let mut byte = [0];
        stuffed.read_exact(&mut byte).expect("a byte");
        sleep(Duration::from_secs(1));
        agent.records_of("guest-fsfreeze-thaw").first().cloned()
    });
    assert!(begun.elapsed() < LIVELY);
    assert!(!mounted.is_frozen());
    drop(stuffed);
    let mut host = agent.connect();
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "thawed");
}
