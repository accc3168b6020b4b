//! What tests that need root share: a runner that gives each test a private
//! machine-in-miniature, and guards that clean up scratch disks and mounts.
//!
//! Nothing here freezes, mounts on, or signals anything of the machine that
//! the tests run on: see [`cell`].
#![allow(dead_code, reason = "each test target uses its part")]

pub(crate) mod activation;
pub(crate) mod agent;
pub(crate) mod binary;
pub(crate) mod cell;
pub(crate) mod differences;
pub(crate) mod disk;
pub(crate) mod init;
pub(crate) mod journal;
pub(crate) mod process;
pub(crate) mod records;
pub(crate) mod runner;
pub(crate) mod sabotage;
pub(crate) mod server;
pub(crate) mod terminal;
pub(crate) mod trace;
pub(crate) mod usage;
pub(crate) mod writers;
