//! Crashes at every point: each process of the real agent killed at each step of
//! what it does, frozen or not, and a guest that runs out of things. Each test
//! prints what it measured; together that is the crash matrix. Needs root, loop
//! devices, memory cgroups and FUSE. Each test runs in a cell (`support::cell`).
//!
//! How many of the points are tried: `POSTERN_CRASHES=N` strikes for each row of
//! the worker's part (a sample otherwise, spread over all of them).
//!
//! The same on virtual machines, with a service manager that starts the next one:
//! `tests/vm/freezes.rs`.

mod support;

#[path = "crashes/backoff.rs"]
mod backoff;
#[path = "crashes/broker.rs"]
mod broker;
#[path = "crashes/family.rs"]
mod family;
#[path = "crashes/hangs.rs"]
mod hangs;
#[path = "live/scene.rs"]
#[allow(dead_code, reason = "shared with the target `live`")]
mod scene;
#[path = "crashes/shortage.rs"]
mod shortage;
#[path = "crashes/state.rs"]
mod state;
#[path = "crashes/stock.rs"]
mod stock;
#[path = "crashes/strike.rs"]
mod strike;
#[path = "crashes/table.rs"]
mod table;
#[path = "crashes/worker.rs"]
mod worker;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [
        worker::TESTS,
        broker::TESTS,
        family::TESTS,
        hangs::TESTS,
        backoff::TESTS,
        shortage::TESTS,
        state::TESTS,
        stock::TESTS,
    ]
    .concat();
    runner::main_by(2 * runner::processors(), &tests, &[], &[BINARY, "losetup", "mkfs.ext4", "qemu-ga", "prlimit"])
}
