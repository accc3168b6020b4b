//! In stock's place: postern under the name `qemu-ga` beside the real one, with
//! the same flags, files and variables. Needs root, loop
//! devices, and the packages qemu-guest-agent and e2fsprogs. Each test runs in a cell (`support::cell`).

mod support;

#[path = "stock/daemons.rs"]
mod daemons;
#[path = "stock/narrowing.rs"]
mod narrowing;
#[path = "stock/pair.rs"]
mod pair;
#[path = "stock/settings.rs"]
mod settings;
#[path = "stock/waiting.rs"]
mod waiting;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

const PROGRAMS: &[&str] = &[BINARY, "qemu-ga", "losetup", "mkfs.ext4"];

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [settings::TESTS, narrowing::TESTS, daemons::TESTS, waiting::TESTS].concat();
    runner::main(&tests, narrowing::ROLES, PROGRAMS)
}
