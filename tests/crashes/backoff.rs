//! A worker that crashes again and again: replaced at once, then later and later,
//! as records and the operator are told; the freeze's limit waits for none of it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene::{freeze, policy, with};
use crate::support::agent::{Agent, Home, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_crash_loop_slows_down", a_crash_loop_slows_down),
    ("a_crash_loop_keeps_nothing_frozen", a_crash_loop_keeps_nothing_frozen),
    ("crashes_of_openers_hold_up_no_worker", crashes_of_openers_hold_up_no_worker),
    ("the_kernel_says_how_many_guesses_it_takes", the_kernel_says_how_many_guesses_it_takes),
];

/// So many crashes are made good at once.
const FREE: usize = 4;
/// How long the next one waits.
const FIRST: Duration = Duration::from_secs(10);

/// Ends the worker as often as there is one at once; how many that were.
fn crash(agent: &Agent<'_>, times: usize) {
    let mut last = 0;
    for _ in 0..times {
        last = ready(agent, "worker", last);
        agent.signal("worker", Signal::SIGSEGV);
    }
}

/// The next process of this name that has said that it is confined: one that was
/// not has heard no host.
fn ready(agent: &Agent<'_>, name: &str, but: i32) -> i32 {
    eventually("a confined one", || {
        let started = agent.records_of("process-started");
        let of = started.iter().rfind(|record| record["process"]["name"] == name)?;
        let pid = i32::try_from(of["process"]["pid"].as_i64()?).ok()?;
        (pid != but && agent.family().get(name) == Some(&pid)).then_some(pid)
    })
}

fn deaths(agent: &Agent<'_>, count: usize) -> Vec<Value> {
    eventually("a record of each death", || Some(agent.records_of("process-died")).filter(|died| died.len() == count))
}

fn a_crash_loop_slows_down() {
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    host.ping();
    let started = Instant::now();
    crash(&agent, FREE);
    host.ping();
    println!("    {FREE} crashes were made good within {:?}", started.elapsed());
    let fifth = ready(&agent, "worker", 0);
    agent.signal("worker", Signal::SIGSEGV);
    let crashed = Instant::now();
    let died = deaths(&agent, FREE + 1);
    for (number, record) in died.iter().enumerate() {
        assert_eq!(record["postern"]["signal"], 11, "{record}");
        assert_eq!(record["event"].get("reason").is_some(), number == FREE, "{record}");
    }
    let reason = died[FREE]["event"]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("5 crashes within an hour: the next one starts in "), "{reason}");
    assert!(agent.said().contains(reason), "the operator is told: {}", agent.said());
    // The host waits, on its connection, and is answered then.
    host.ping();
    let waited = crashed.elapsed();
    println!("    the fifth after {waited:?}");
    assert!(waited > FIRST / 2, "{waited:?}");
    assert_ne!(ready(&agent, "worker", fifth), fifth);
}

fn a_crash_loop_keeps_nothing_frozen() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"4s\"\n"));
    let mut host = agent.connect();
    crash(&agent, FREE - 1);
    host.ping();
    assert_eq!(freeze(&mut host), 1);
    // While the log is held only the process itself tells that it is there.
    let worker = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    host.ping();
    let next = agent.process("worker", worker);
    agent.signal("worker", Signal::SIGKILL);
    eventually("it is gone", || (agent.family().get("worker") != Some(&next)).then_some(()));
    assert!(mounted.is_frozen());
    let struck = Instant::now();
    eventually("the limit thaws without a worker", || {
        agent
            .records_of("guest-fsfreeze-thaw")
            .pop()
            .filter(|record| record["event"]["reason"] == "the time limit passed")
    });
    println!("    thawed by the limit of 4 s, {:?} after the fifth crash", struck.elapsed());
    assert!(!mounted.is_frozen());
    if struck.elapsed() < FIRST / 2 {
        assert!(!agent.family().contains_key("worker"), "nobody was born for it");
    }
}

fn crashes_of_openers_hold_up_no_worker() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let mut last = 0;
    for _ in 0..=FREE {
        last = ready(&agent, "opener", last);
        agent.signal("opener", Signal::SIGSEGV);
    }
    let crashed = Instant::now();
    deaths(&agent, FREE + 1);
    // Each role waits for itself only.
    let started = Instant::now();
    agent.signal("worker", Signal::SIGSEGV);
    host.ping();
    println!("    a worker was replaced within {:?} while the opener had to wait", started.elapsed());
    if crashed.elapsed() < FIRST / 2 {
        assert!(!agent.family().contains_key("opener"));
    }
    // An open waits for the opener, as long as an open may.
    host.open(&path, "r").expect("it came");
    assert!(crashed.elapsed() > FIRST / 2, "{:?}", crashed.elapsed());
}

/// Not a test of postern: what the table in `src/broker/family/backoff.rs` is
/// about, on this machine.
fn the_kernel_says_how_many_guesses_it_takes() {
    let bits = std::fs::read_to_string("/proc/sys/vm/mmap_rnd_bits").expect("mmap_rnd_bits");
    let bits: i32 = bits.trim().parse().expect("a number");
    let years = 2.0_f64.powi(bits) / (12.0 * 24.0 * 365.0);
    println!("    {bits} bits of a layout: at 12 guesses an hour found after {years:.0} years on average");
    assert!(bits >= 18, "fewer than any kernel of 4 KiB pages has: {bits}");
}
