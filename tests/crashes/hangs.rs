//! File servers that die, and disks that somebody froze: a worker that waits for
//! one is replaced, the broker waits for none, and what hangs is bounded.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::scene::{files_on, freeze, policy, send, thaw, with};
use crate::support::agent::{Agent, Home, Host, eventually, lives};
use crate::support::disk::Disk;
use crate::support::runner::Test;
use crate::support::server::{FLUSH, NAME, Server};
use crate::table;

pub(crate) const TESTS: &[Test] = &[
    ("a_worker_that_hangs_in_a_write_is_replaced", || on_a_dead_server("guest-file-write")),
    ("a_worker_that_hangs_in_a_close_is_replaced", || on_a_dead_server("guest-file-close")),
    ("a_worker_that_hangs_on_a_frozen_disk_is_replaced", a_worker_that_hangs_on_a_frozen_disk_is_replaced),
    ("a_host_that_does_not_read_costs_no_worker", a_host_that_does_not_read_costs_no_worker),
    ("a_stopped_guest_costs_no_worker", a_stopped_guest_costs_no_worker),
    ("what_the_broker_closes_holds_up_nobody", what_the_broker_closes_holds_up_nobody),
];

/// The least that a policy may say.
const HANG: Duration = Duration::from_secs(3);
const LIMITS: &str = "[limits]\nhang = \"3s\"\n";

fn policy_of_net(freezes: bool) -> String {
    let net = format!("[[files]]\npath = \"/net\"\nrights = [\"read\", \"write\"]\n{LIMITS}");
    if freezes { with(&net) } else { format!("profile = \"files\"\n{net}") }
}

/// Threads of a process that are in this call.
fn threads_in(process: i32, call: i64) -> usize {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let is_in = |task: &fs::DirEntry| {
        let now = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        now.split(' ').next() == Some(call.to_string().as_str())
    };
    tasks.filter(is_in).count()
}

/// Workers of whatever age: children of the spawner, but for the opener.
fn workers(agent: &Agent<'_>) -> usize {
    let spawner = agent.process("spawner", 0);
    let children = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).expect("its children");
    let names = children.split_whitespace().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")));
    names.flatten().filter(|name| name.trim() == "postern-worker").count()
}

/// Waits until another worker serves.
fn await_next(agent: &Agent<'_>, host: &mut Host, asked: Instant, what: &str) {
    host.ping();
    let waited = asked.elapsed();
    assert_eq!(workers(agent), 2, "the first one hangs for as long as what it waits for");
    table::row("worker, hangs", what, false, waited, "replaced after `limits.hang` of 3 s; handles gone; recorded");
    assert!(waited > HANG / 2, "{waited:?}");
    let closed = agent.await_record("guest-file-close", |_| true);
    assert_eq!(closed["event"]["reason"], "the worker died");
    eventually("the operator is told why", || {
        agent.said().contains("it hangs in an operation on a file").then_some(())
    });
}

fn on_a_dead_server(command: &str) {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let server = Server::mount("/net");
    let home = Home::new();
    let path = Path::new("/net").join(NAME);
    let agent = home.start(&policy_of_net(true));
    // Dropped before the agent, which could not end before it, should this fail.
    let server = server;
    let call = if command.ends_with("write") { libc::SYS_write } else { libc::SYS_close };
    let mut host = agent.connect();
    let handle = host.open(&path, "r+").expect("a handle");
    host.write(handle, "bW9yZQ==");
    let first = agent.process("worker", 0);
    server.die();
    let asked = Instant::now();
    let arguments = json!({ "handle": handle, "buf-b64": "bW9yZQ==" });
    let arguments = if command.ends_with("write") { arguments } else { json!({ "handle": handle }) };
    send(&mut host, command, &arguments, "never answered");
    eventually("it waits for the server", || (threads_in(first, call) == 1).then_some(()));
    await_next(&agent, &mut host, asked, &format!("{command} on FUSE, whose server is dead"));
    // It cannot die before the server answers or goes, which is nobody's loss.
    assert!(lives(first), "the kernel lets no signal end what it waits for");
    assert_eq!(
        host.fails("guest-file-read", &json!({ "handle": handle })),
        format!("handle '{handle}' has not been found")
    );
    assert_eq!(freeze(&mut host), 1, "the host freezes");
    assert_eq!(thaw(&mut host), 1, "and thaws");
    drop(server);
    let died = agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    assert!(died["event"]["reason"].as_str().is_some_and(|why| why.contains("hangs in an operation")), "{died}");
    assert_eq!(died["postern"]["signal"], 9);
}

fn a_worker_that_hangs_on_a_frozen_disk_is_replaced() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let _files = files_on(&home, &mounted);
    let path = home.write("file", b"content");
    let agent = home.start(&(policy() + LIMITS));
    let mut host = agent.connect();
    let handle = host.open(&path, "r+").expect("a handle");
    let first = agent.process("worker", 0);
    // By somebody else: postern itself takes no write while it has frozen.
    mounted.freeze();
    let asked = Instant::now();
    send(&mut host, "guest-file-write", &json!({ "handle": handle, "buf-b64": "bW9yZQ==" }), "never answered");
    eventually("it waits for the thaw", || (threads_in(first, libc::SYS_write) == 1).then_some(()));
    await_next(&agent, &mut host, asked, "guest-file-write on a disk that somebody else froze");
    assert!(mounted.thaw());
    eventually("the first one ends with the thaw", || (!lives(first)).then_some(()));
    host.open(&path, "r+").expect("another handle");
}

fn a_host_that_does_not_read_costs_no_worker() {
    let home = Home::new();
    let large = home.write("large", &vec![7; 8 << 20]);
    let agent = home.start(&(policy() + LIMITS));
    let mut host = agent.connect();
    let handle = host.open(&large, "r").expect("a handle");
    let first = agent.process("worker", 0);
    send(&mut host, "guest-file-read", &json!({ "handle": handle, "count": 8 << 20 }), "slow");
    std::thread::sleep(HANG + HANG / 2);
    let reply = host.hear();
    assert_eq!(reply["return"]["count"], 8 << 20);
    // At rest, too, with a file open.
    std::thread::sleep(HANG + HANG / 2);
    assert_eq!(host.read(handle), "");
    assert_eq!(agent.process("worker", 0), first, "it answered meanwhile");
    assert!(agent.records_of("process-died").is_empty());
}

/// Everything stands still for longer than a worker may, and goes on: clocks are
/// behind, and no process did any wrong.
fn a_stopped_guest_costs_no_worker() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&(policy() + LIMITS));
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let first = agent.process("worker", 0);
    for (signal, pause) in [(Signal::SIGSTOP, HANG * 2), (Signal::SIGCONT, Duration::ZERO)] {
        for name in ["broker", "worker", "opener", "spawner"] {
            agent.signal(name, signal);
        }
        std::thread::sleep(pause);
    }
    assert_eq!(host.read(handle), "Y29udGVudA==");
    assert_eq!(agent.process("worker", 0), first);
}

/// A server that answers an open and no close: whoever has a descriptor of its
/// file and closes it waits for ever, the opener and the broker, too.
fn what_the_broker_closes_holds_up_nobody() {
    let server = Server::mount("/net");
    server.ignore(FLUSH);
    let home = Home::new();
    let local = home.write("file", b"content");
    let path = Path::new("/net").join(NAME);
    let text = policy_of_net(false) + "[[files]]\npath = \"HOME/files\"\nrights = [\"read\"]\n";
    let agent = home.start(&text);
    let server = server;
    let mut host = agent.connect();
    host.open(&path, "r").expect("a handle");
    eventually("somebody waits for the server", || (server.last() == FLUSH).then_some(()));
    let asked = Instant::now();
    host.ping();
    assert!(asked.elapsed() < HANG, "the loop goes round: {:?}", asked.elapsed());
    let closing = |process: i32| threads_in(process, libc::SYS_close);
    eventually("a thread of the broker waits", || (closing(agent.pid()) == 1).then_some(()));
    // The opener waits, too: the next open is given up, and the one behind it
    // served.
    let asked = Instant::now();
    let why = host.open(&local, "r").expect_err("its opener hangs");
    assert!(why.contains("Input/output error"), "{why}");
    let outcome = "EIO after `limits.hang` of 3 s; replaced; broker and worker serve on";
    table::row("opener, hangs", "close of a file on FUSE", false, asked.elapsed(), outcome);
    let handle = host.open(&local, "r").expect("a local file");
    assert_eq!(host.read(handle), "Y29udGVudA==");
    host.close(handle);
    // One opener and one thread hang. With as many again no file is opened any more,
    // and nothing is tried that could hang.
    host.open(&path, "r").expect("a handle");
    eventually("two threads of the broker wait", || (closing(agent.pid()) == 2).then_some(()));
    host.open(&local, "r").expect_err("its opener hangs");
    let refused = |record: &Value| record["event"]["reason"] == "as many operations on files hang as may";
    eventually("no file is opened", || {
        // Until the openers have been gone for a second it succeeds.
        if let Ok(handle) = host.open(&local, "r") {
            host.close(handle);
        }
        agent.records_of("guest-file-open").into_iter().find(refused)
    });
    let asked = Instant::now();
    host.open(&local, "r").expect_err("four hang");
    assert!(asked.elapsed() < HANG, "at once: {:?}", asked.elapsed());
    host.ping();
    drop(server);
    eventually("all is well again", || host.open(&local, "r").ok());
}
