//! What postern tells of the guest: typed, taken by another program's types, and
//! compared with what stock tells of the same machine. Needs root, loop devices, mkfs
//! of ext4, xfs and btrfs, `ip` of iproute2, the package qemu-guest-agent, and a newer
//! one from Debian's mirror (`tests/vm/prepare stock`). Each test runs in a cell
//! (`support::cell`).

mod support;

#[path = "facts/agents.rs"]
mod agents;
#[path = "facts/beside.rs"]
mod beside;
#[path = "facts/client.rs"]
mod client;
#[path = "facts/compare.rs"]
mod compare;
#[path = "facts/domain.rs"]
mod domain;
#[path = "facts/intended.rs"]
mod intended;
#[path = "confinement/raw.rs"]
#[allow(dead_code, reason = "attacks are the business of other targets")]
mod raw;
#[path = "facts/redacted.rs"]
mod redacted;
#[path = "facts/scene.rs"]
mod scene;
#[path = "facts/schema.rs"]
mod schema;
#[path = "facts/spare.rs"]
mod spare;
#[path = "facts/table.rs"]
mod table;
#[path = "facts/verdict.rs"]
mod verdict;
#[path = "facts/without.rs"]
mod without;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

const PROGRAMS: &[&str] = &[BINARY, "qemu-ga", "losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "ip"];

fn main() -> ExitCode {
    // The others' processes have no descriptor besides their own.
    if std::env::args().any(|argument| argument == beside::PUBLISHES) {
        table::open();
    }
    if std::env::args().nth(1).is_none_or(|argument| !matches!(argument.as_str(), "--role" | "--in-cell" | "--list")) {
        agents::prepare();
    }
    let tests: Vec<runner::Test> = [
        schema::TESTS,
        client::TESTS,
        compare::TESTS,
        beside::TESTS,
        redacted::TESTS,
        without::TESTS,
        domain::TESTS,
        spare::TESTS,
    ]
    .concat();
    let newer = agents::programs();
    let programs: Vec<&str> = PROGRAMS.iter().copied().chain(newer.iter().map(String::as_str)).collect();
    runner::main(&tests, spare::ROLES, &programs)
}
