//! An ordinary account of the guest against the agent that runs beside it, as
//! root started it, with both its accounts. Needs root. Each test runs in a
//! cell (`support::cell`).
//!
//! What the account tries is data where it can be: one row, one attempt. Each
//! row is also made on a twin, an unprotected thing of the same kind, where it
//! must work: else it would prove nothing that it fails on the agent.

mod support;

#[path = "attackers/account.rs"]
mod account;
#[path = "attackers/barriers.rs"]
mod barriers;
#[path = "attackers/exhaustion.rs"]
mod exhaustion;
#[path = "attackers/objects.rs"]
mod objects;
#[path = "attackers/places.rs"]
mod places;
#[path = "attackers/planted.rs"]
mod planted;
#[path = "attackers/processes.rs"]
mod processes;
#[path = "attackers/races.rs"]
mod races;
#[path = "confinement/raw.rs"]
#[allow(dead_code, reason = "attempts are made by processes of their own, not by its children")]
mod raw;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [
        races::TESTS,
        objects::TESTS,
        processes::TESTS,
        places::TESTS,
        planted::TESTS,
        exhaustion::TESTS,
        barriers::TESTS,
    ]
    .concat();
    let roles: Vec<runner::Role> = [
        account::ROLES,
        races::ROLES,
        objects::ROLES,
        processes::ROLES,
        places::ROLES,
        exhaustion::ROLES,
        barriers::ROLES,
        &[support::activation::ROLE],
    ]
    .concat();
    runner::main(&tests, &roles, &[BINARY, "losetup", "mkfs.ext4"])
}
