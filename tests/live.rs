//! The whole agent at work: `postern run` in a cell, driven over its socket as a
//! host drives it. Needs root, loop devices, and mkfs of ext4, xfs and btrfs.
//! Each test runs in a cell (`support::cell`) whose mount table shows scratch
//! disks only and whose process 1 is the test: nothing of the machine is frozen,
//! signalled or shut down.
//!
//! The rooms have tests of their own (`freeze`, `shutdown`, `audit`); these hold
//! that the agent is put together right.

mod support;

#[path = "live/canary.rs"]
mod canary;
#[path = "live/channels.rs"]
mod channels;
#[path = "audit/commands.rs"]
#[allow(dead_code, unused_imports, reason = "its own tests run in the target `audit`")]
mod commands;
#[path = "live/crashes.rs"]
mod crashes;
#[path = "live/evidence.rs"]
mod evidence;
#[path = "live/facts.rs"]
mod facts;
#[path = "live/filesystems.rs"]
mod filesystems;
#[path = "live/freezes.rs"]
mod freezes;
#[path = "live/guest.rs"]
mod guest;
#[path = "live/heads.rs"]
mod heads;
#[path = "live/hung.rs"]
mod hung;
#[path = "live/keep.rs"]
mod keep;
#[path = "live/lasting.rs"]
mod lasting;
#[path = "live/network.rs"]
mod network;
#[path = "live/reading.rs"]
mod reading;
#[path = "audit/samples.rs"]
#[allow(dead_code, reason = "its own tests run in the target `audit`")]
mod samples;
#[path = "live/scene.rs"]
mod scene;
#[path = "live/service.rs"]
mod service;
#[path = "live/shutdowns.rs"]
mod shutdowns;
#[path = "live/stale.rs"]
mod stale;
#[path = "live/starts.rs"]
mod starts;
#[path = "live/storm.rs"]
mod storm;
#[path = "live/stuck.rs"]
mod stuck;
#[path = "live/told.rs"]
mod told;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

const PROGRAMS: &[&str] = &[
    BINARY,
    "losetup",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
    "unshare",
    "sh",
    "logrotate",
    "gzip",
    "strace",
    "date",
    "xfs_io",
    "ip",
    "qemu-ga",
];

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [
        freezes::TESTS,
        stuck::TESTS,
        stale::TESTS,
        hung::TESTS,
        storm::TESTS,
        crashes::TESTS,
        shutdowns::TESTS,
        evidence::TESTS,
        canary::TESTS,
        facts::TESTS,
        filesystems::TESTS,
        heads::TESTS,
        keep::TESTS,
        network::TESTS,
        reading::TESTS,
        channels::TESTS,
        starts::TESTS,
        service::TESTS,
        told::TESTS,
        guest::TESTS,
        lasting::TESTS,
    ]
    .concat();
    let roles: Vec<runner::Role> =
        [freezes::ROLES, shutdowns::ROLES, channels::ROLES, network::ROLES, service::ROLES].concat();
    runner::main(&tests, &roles, PROGRAMS)
}
