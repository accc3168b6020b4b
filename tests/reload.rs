//! A new policy for an agent that runs: taken as a whole or not at all, recorded
//! before its first effect, with the host's connection and what is frozen left
//! alone. Needs root, loop devices and mkfs.ext4; each test runs in a cell
//! (`support::cell`).

mod support;

#[path = "reload/asked.rs"]
mod asked;
#[path = "reload/frozen.rs"]
mod frozen;
#[path = "reload/kept.rs"]
mod kept;
#[path = "live/scene.rs"]
#[allow(dead_code, reason = "the targets share it")]
mod scene;
#[path = "reload/taken.rs"]
mod taken;

use std::fs;
use std::os::unix::fs::chown;
use std::process::ExitCode;

use nix::sys::signal::Signal;
use serde_json::Value;

use support::agent::{Agent, BINARY, Home, eventually};
use support::runner;

const PROGRAMS: &[&str] = &[BINARY, "losetup", "mkfs.ext4", "sh", "sha256sum"];

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [taken::TESTS, kept::TESTS, frozen::TESTS, asked::TESTS].concat();
    runner::main(&tests, &[], PROGRAMS)
}

/// The file commands, and one rule for `HOME/files`.
const FILES: &str = "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\"]\n";

fn number(record: &Value) -> u64 {
    record["event"]["sequence"].as_u64().expect("a number")
}

/// The number of the last record.
fn last(agent: &Agent<'_>) -> u64 {
    agent.records().last().map_or(0, number)
}

/// Whether a record says what became of a reload.
fn is_outcome(record: &Value) -> bool {
    ["policy-reloaded", "policy-kept"].iter().any(|action| record["event"]["action"] == *action)
}

/// The outcomes behind the record `after`.
fn outcomes(agent: &Agent<'_>, after: u64) -> Vec<Value> {
    agent.records().into_iter().filter(|record| is_outcome(record) && number(record) > after).collect()
}

/// What comes of a signal now.
fn outcome(agent: &Agent<'_>) -> Value {
    let before = last(agent);
    agent.signal("broker", Signal::SIGHUP);
    eventually("an outcome", || outcomes(agent, before).into_iter().next())
}

/// Writes a policy and signals; the record of it, which must be that it was taken.
fn reload(agent: &Agent<'_>, policy: &str) -> Value {
    agent.home.policy(policy);
    let record = outcome(agent);
    assert_eq!(record["event"]["action"], "policy-reloaded", "{record}");
    record
}

/// The same for one that is not taken; why not.
fn refusal(agent: &Agent<'_>, policy: &str) -> String {
    agent.home.policy(policy);
    why(&outcome(agent))
}

/// Why a policy was not taken.
fn why(record: &Value) -> String {
    assert_eq!(record["event"]["action"], "policy-kept", "{record}");
    record["event"]["reason"].as_str().expect("a reason").to_owned()
}

/// A second directory, of the worker's account, with a file in it.
fn elsewhere(home: &Home) -> std::path::PathBuf {
    let directory = home.path("elsewhere");
    fs::create_dir(&directory).expect("a directory");
    let file = directory.join("file");
    fs::write(&file, "elsewhere").expect("a file");
    for path in [&directory, &file] {
        chown(path, Some(home.worker), Some(home.worker)).expect("its owner");
    }
    file
}
