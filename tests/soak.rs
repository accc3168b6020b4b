//! A day of a host's requests in minutes: what a real host sends, what a broken
//! one sends, hosts that come and go, freezes, crashes, a log that rotates; and
//! at the end each process has the memory and the descriptors that it had at the
//! beginning. Needs root; runs in a cell (`support::cell`).
//!
//! A few seconds of it are run with all tests. By hand, all of it:
//!
//!     POSTERN_SOAK=5000000 cargo test --release --test soak

mod support;

#[path = "soak/events.rs"]
mod events;
#[path = "soak/mix.rs"]
mod mix;
#[path = "soak/tally.rs"]
mod tally;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use support::agent::{Agent, BINARY, Home};
use support::disk::Disk;
use support::runner;
use tally::Standing;

use mix::Soak;

/// Requests in a run with all tests.
const FEW: u64 = if cfg!(debug_assertions) { 40_000 } else { 100_000 };

fn main() -> ExitCode {
    runner::main(
        &[("memory_and_descriptors_end_as_they_began", memory_and_descriptors_end_as_they_began)],
        &[],
        &[BINARY, "losetup", "mkfs.ext4"],
    )
}

/// Every command that a guest's disks and files have; a log that rotates often.
const POLICY: &str = r#"
profile = "files"
[commands]
allow = ["guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw"]
deny = ["guest-shutdown"]
[[files]]
path = "HOME/files"
rights = ["read", "write", "create"]
except = ["HOME/files/private"]
[limits]
message = "2MiB"
handles = 64
acts = 1000
[audit]
heads = []
rotate_bytes = "1MiB"
keep = 8
keep_days = 0
"#;

fn memory_and_descriptors_end_as_they_began() {
    let wanted = std::env::var("POSTERN_SOAK").ok().and_then(|number| number.parse().ok()).unwrap_or(FEW);
    let home = Home::new();
    let disk = Disk::small("ext4", "/scratch.img");
    let _mounted = disk.mount(events::SCRATCH);
    mix::stage(&home);
    let agent = home.start(POLICY);
    let mut soak = Soak::new(&agent, wanted);
    // Buffers find their sizes, tables fill, one worker has died.
    soak.run_to(wanted / 5, true);
    let start = soak.settle();
    soak.run_to(wanted * 3 / 5, true);
    soak.crash(0);
    soak.run_to(wanted * 7 / 10, false);
    let late = soak.settle();
    // The rest is one worker's, so that what leaks there adds up.
    soak.run_to(wanted, false);
    let end = soak.settle();
    soak.tally.report(wanted);
    tally::print(&[("start", &start), ("last worker's start", &late), ("end", &end)]);
    assert_eq!(soak.tally.unexpected, Vec::<String>::new());
    Standing::is_back(&start, &end, &["broker", "opener", "spawner"]);
    Standing::is_back(&late, &end, &["worker"]);
    drop(soak);
    check_log(&agent, &home);
}

/// The log is whole, and rotated.
fn check_log(agent: &Agent<'_>, home: &Home) {
    let log = home.log();
    let entries = fs::read_dir(log.parent().expect("its directory")).expect("the log's directory").flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| *path != log).collect();
    files.sort();
    assert!(!files.is_empty(), "it was rotated");
    files.push(log);
    let output = Command::new(BINARY).args(["audit", "verify"]).args(&files).output().expect("postern audit verify");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let last = agent.records().last().and_then(|record| record["event"]["sequence"].as_u64()).expect("a record");
    println!(
        "    log: {last} records written, {} files kept; verified: {}",
        files.len(),
        said.lines().last().unwrap_or_default()
    );
}
