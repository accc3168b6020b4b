//! Every limit of a request, met by the running agent: what is below it and at
//! it is done, what is beyond it is answered with an error that names the limit
//! and its key, and the next request is answered by the same worker. And what
//! four processes take at most. Needs root; each test runs in a cell
//! (`support::cell`).

mod support;

#[path = "bounds/memory.rs"]
mod memory;
#[path = "bounds/pending.rs"]
mod pending;
#[path = "bounds/rates.rs"]
mod rates;
#[path = "bounds/requests.rs"]
mod requests;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

/// Files of HOME/files and every freeze command, with these limits.
pub(crate) fn policy(limits: &str) -> String {
    format!(
        "profile = \"files\"\n[commands]\nallow = [\"guest-fsfreeze-status\", \"guest-fsfreeze-freeze\", \
         \"guest-fsfreeze-freeze-list\", \"guest-fsfreeze-thaw\"]\n\
         [[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n[limits]\n{limits}"
    )
}

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [requests::TESTS, rates::TESTS, pending::TESTS, memory::TESTS].concat();
    runner::main(&tests, &[], &[BINARY, "losetup", "mkfs.ext4"])
}
