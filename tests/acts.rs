//! Acts that take long and freeze nothing: trimming, sleeping, switching
//! processors and memory blocks, by the whole agent and beside stock. Needs root,
//! loop devices, mkfs of ext4, xfs and btrfs, mksquashfs, and the package
//! qemu-guest-agent. Each test runs in a cell (`support::cell`): what is trimmed
//! is scratch disks only. What would put this machine to sleep, or switch its
//! processors or its memory, is not asked here but in a virtual machine
//! (tests/vm/acts.rs).

mod support;

#[path = "acts/beside.rs"]
mod beside;
#[path = "acts/means.rs"]
mod means;
#[path = "acts/trims.rs"]
mod trims;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

const PROGRAMS: &[&str] =
    &[BINARY, "qemu-ga", "losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mksquashfs", "sh", "cp"];

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [beside::TESTS, trims::TESTS, means::TESTS].concat();
    runner::main(&tests, &[], PROGRAMS)
}
