//! A guest that runs out of memory, descriptors and processes: who ends, who is
//! served on, and that nothing stays frozen for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::scene::{count, freeze, policy, start_quietly, with};
use crate::strike::limit;
use crate::support::agent::{Home, eventually, lives};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;
use crate::table;
use crate::worker::Line;

pub(crate) const TESTS: &[Test] = &[
    ("who_runs_out_of_memory_is_the_worker", who_runs_out_of_memory_is_the_worker),
    ("a_machine_out_of_memory_takes_the_worker_first", a_machine_out_of_memory_takes_the_worker_first),
    ("a_broker_without_memory_is_followed_by_one_that_thaws", a_broker_without_memory_is_followed_by_one_that_thaws),
    ("descriptors_that_run_out_come_back", descriptors_that_run_out_come_back),
    ("a_guest_that_cannot_fork_is_thawed_and_served_again", a_guest_that_cannot_fork_is_thawed_and_served_again),
];

fn disk() -> (Disk, Mounted) {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    (disk, mounted)
}

/// A request that needs so many MiB.
fn large(line: &mut Line, mebibytes: usize) {
    let request = json!({ "execute": "guest-sync", "arguments": { "id": 7, "more": "x".repeat(mebibytes << 20) } });
    let mut stream = line.writer();
    let sender = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut stream, request.to_string().as_bytes());
    });
    sender.join().expect("it was sent");
}

/// By its own limit, which another process has lowered: a policy's limits leave room
/// for the largest request.
fn who_runs_out_of_memory_is_the_worker() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut line = Line::to(&home);
    large(&mut line, 6);
    line.ping();
    assert!(agent.records_of("process-died").is_empty(), "the control: there is room");
    let handle = line.open(&path, "r");
    let first = agent.process("worker", 0);
    let size = fs::read_to_string(format!("/proc/{first}/statm")).expect("its size");
    let pages: u64 = size.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    limit(first, "as", Some(pages * 4096 + (2 << 20)));
    let asked = Instant::now();
    large(&mut line, 6);
    line.ping();
    table::row("worker, SIGABRT", "a request beyond its RLIMIT_AS", false, asked.elapsed(), "replaced; handles gone");
    let died = agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    // By its own abort, or by the broker, which heard its last words.
    assert!([6, 9].contains(&died["postern"]["signal"].as_i64().expect("a signal")), "{died}");
    assert!(died["event"]["reason"].as_str().is_some_and(|why| why.contains("memory allocation of")), "{died}");
    let reply = line.ask("guest-file-read", &json!({ "handle": handle }));
    assert_eq!(reply["error"]["desc"], format!("handle '{handle}' has not been found"));
    // The others at the end of theirs: those that take none serve on.
    for name in ["opener", "spawner"] {
        limit(agent.process(name, 0), "as", Some(1 << 20));
    }
    line.open(&path, "r");
    println!("    opener and spawner without room for one byte more: an open is served");
}

/// A control group of its own for an agent's processes.
struct Group(PathBuf);

impl Group {
    /// Of the memory controller, wherever this kernel has it.
    fn new() -> Self {
        let none: Option<&str> = None;
        fs::create_dir("/cgroup").expect("a directory");
        let at = Path::new("/cgroup");
        let first = mount(Some("memory"), at, Some("cgroup"), MsFlags::empty(), Some("memory"));
        if first.is_err() {
            mount(Some("all"), at, Some("cgroup2"), MsFlags::empty(), none).expect("control groups");
        }
        // Of the machine: another run of this test may be beside it.
        let group = tempfile::Builder::new().prefix("postern-crashes-").tempdir_in(at).expect("a control group");
        Self(group.keep())
    }

    fn take(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("one more in the group");
    }

    fn usage(&self) -> u64 {
        let names = ["memory.usage_in_bytes", "memory.current"];
        let text = names.iter().find_map(|name| fs::read_to_string(self.0.join(name)).ok()).expect("the usage");
        text.trim().parse().expect("a number")
    }

    fn limit(&self, bytes: u64) {
        let names = ["memory.limit_in_bytes", "memory.max"];
        let name = names.iter().find(|name| self.0.join(name).exists()).expect("the limit");
        fs::write(self.0.join(name), bytes.to_string()).expect("a limit");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // With those that are left in it: they are this test's own.
        let parent = self.0.parent().expect("a parent").join("cgroup.procs");
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&parent, pid);
        }
        let _ = fs::remove_dir(&self.0);
        let _ = umount2("/cgroup", MntFlags::MNT_DETACH);
    }
}

/// A memory control group in the place of a machine that has no more: the kernel
/// chooses whom it kills in the same way. That the unit's `OOMScoreAdjust=` protects
/// the broker alone is seen in a guest: `tests/vm/clocks.rs`.
fn a_machine_out_of_memory_takes_the_worker_first() {
    let (_disk, mounted) = disk();
    let home = Home::new();
    let group = Group::new();
    let agent = home.start(&policy());
    agent.family().into_values().for_each(|pid| group.take(pid));
    let mut line = Line::to(&home);
    line.ping();
    for frozen in [false, true] {
        if frozen {
            assert_eq!(line.ask("guest-fsfreeze-freeze", &json!({}))["return"], 1);
        }
        let before = agent.family();
        // A new worker was born into the group.
        group.limit(group.usage() + (6 << 20));
        let asked = Instant::now();
        large(&mut line, 9);
        line.ping();
        let back = asked.elapsed();
        group.limit(1 << 40);
        let after = agent.family();
        assert_ne!(before["worker"], after["worker"], "the worker was killed");
        for name in ["broker", "spawner", "opener"] {
            assert_eq!(before[name], after[name], "{name} lives");
        }
        assert_eq!(mounted.is_frozen(), frozen);
        let outcome = "the kernel kills the worker, nobody else; replaced";
        table::row("worker, OOM killer", "a memory cgroup's limit", frozen, back, outcome);
    }
    assert_eq!(line.ask("guest-fsfreeze-thaw", &json!({}))["return"], 1);
    agent.await_record("process-died", |record| {
        record["process"]["name"] == "worker" && record["postern"]["signal"] == Signal::SIGKILL as i32
    });
}

fn a_broker_without_memory_is_followed_by_one_that_thaws() {
    let (_disk, mounted) = disk();
    let home = Home::new();
    let path = home.write("file", b"content");
    let text = with("[freeze]\nlimit = \"6s\"\n");
    let mut agent = home.start(&text);
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    limit(agent.pid(), "as", Some(1 << 20));
    // Often what it has is enough: the heap has some room, or it has not.
    let asked = Instant::now();
    let thawed = host.try_ask(&json!({ "execute": "guest-fsfreeze-thaw" }));
    if let Some(reply) = &thawed {
        assert_eq!(reply["return"], 1, "{reply}");
        assert!(!mounted.is_frozen());
    }
    println!("    broker without room for one byte more: {}", if thawed.is_some() { "thaws" } else { "ends" });
    // It may need more for something else. Then it ends; if it does not, it serves.
    let request = json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": "r" } });
    if thawed.is_some() && (0..200).all(|_| host.try_ask(&request).is_some()) {
        println!("    and serves 200 opens");
        return;
    }
    agent.ended();
    drop(agent);
    // What was frozen is remembered, and since when.
    let (_agent, mut host) = start_quietly(&home, &text);
    host.ping();
    eventually("it is thawed", || (!mounted.is_frozen()).then_some(()));
    let outcome = "ends; the next start serves, and thaws at the limit";
    table::row("broker, out of memory", "its RLIMIT_AS", thawed.is_none(), asked.elapsed(), outcome);
}

fn descriptors_that_run_out_come_back() {
    let (_disk, mounted) = disk();
    let home = Home::new();
    let path = home.write("file", b"content");
    let text = with("[freeze]\nlimit = \"1h\"\n");
    let held = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count() as u64;

    // The worker: a file that it cannot take ends it.
    let mut agent = home.start(&text);
    let mut line = Line::to(&home);
    line.ping();
    let first = agent.process("worker", 0);
    limit(first, "nofile", Some(held(first)));
    let request = json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": "r" } });
    let asked = Instant::now();
    line.send(request.to_string().as_bytes());
    eventually("it ends", || (!lives(first)).then_some(()));
    line.ping();
    table::row("worker, EMFILE", "RLIMIT_NOFILE", false, asked.elapsed(), "ends with status 1; replaced");
    line.open(&path, "r");

    // The opener tells the host.
    let opener = agent.process("opener", 0);
    limit(opener, "nofile", Some(held(opener)));
    let reply = line.ask("guest-file-open", &json!({ "path": path, "mode": "r" }));
    assert!(reply["error"]["desc"].as_str().is_some_and(|why| why.contains("Too many open files")), "{reply}");
    assert_eq!(agent.process("opener", 0), opener, "it serves on");
    limit(opener, "nofile", None);
    line.open(&path, "r");

    // The broker freezes and thaws with what it has. It can have no child until it
    // has some again.
    let broker = agent.pid();
    assert_eq!(line.ask("guest-fsfreeze-freeze", &json!({}))["return"], 1);
    limit(broker, "nofile", Some(held(broker)));
    assert_eq!(line.ask("guest-fsfreeze-thaw", &json!({}))["return"], 1);
    assert!(!mounted.is_frozen());
    let second = agent.process("worker", 0);
    limit(broker, "nofile", Some(10));
    agent.signal("worker", Signal::SIGKILL);
    eventually("it says so", || agent.said().contains("could be asked for: EMFILE").then_some(()));
    let given = Instant::now();
    limit(broker, "nofile", None);
    line.ping();
    assert_ne!(agent.process("worker", second), second);
    let outcome = "no child until descriptors are there again, tried each second";
    table::row("broker, EMFILE", "RLIMIT_NOFILE", false, given.elapsed(), outcome);

    // The spawner can take no order: the broker ends in order.
    let spawner = agent.process("spawner", 0);
    assert_eq!(line.ask("guest-fsfreeze-freeze", &json!({}))["return"], 1);
    limit(spawner, "nofile", Some(held(spawner)));
    let asked = Instant::now();
    agent.signal("worker", Signal::SIGKILL);
    assert_eq!(agent.ended().code(), Some(1));
    assert!(!mounted.is_frozen(), "it thaws before it ends");
    drop(agent);
    let agent = home.start(&text);
    agent.connect().ping();
    let outcome = "ends; the broker thaws and ends, status 1; the next start serves";
    table::row("spawner, EMFILE", "RLIMIT_NOFILE", true, asked.elapsed(), outcome);
}

fn a_guest_that_cannot_fork_is_thawed_and_served_again() {
    let (_disk, mounted) = disk();
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"1s\"\n"));
    let mut host = agent.connect();
    assert_eq!(count(&mut host, "guest-fsfreeze-freeze"), 1);
    let spawner = agent.process("spawner", 0);
    limit(spawner, "nproc", Some(1));
    let struck = Instant::now();
    agent.signal("worker", Signal::SIGKILL);
    eventually("the limit thaws without a worker", || {
        agent
            .records_of("guest-fsfreeze-thaw")
            .pop()
            .filter(|record| record["event"]["reason"] == "the time limit passed")
    });
    let thawed = struck.elapsed();
    assert!(!mounted.is_frozen());
    eventually("it says so", || agent.said().contains("no Worker could be started: EAGAIN").then_some(()));
    assert!(!agent.family().contains_key("worker"));
    let given = Instant::now();
    limit(spawner, "nproc", None);
    host.ping();
    let outcome = format!("thawed by the limit of 1 s after {:.1} s; tried each second", thawed.as_secs_f32());
    table::row("spawner, EAGAIN", "RLIMIT_NPROC", true, given.elapsed(), &outcome);
}
