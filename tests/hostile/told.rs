//! A fallen worker and the facts of the guest: under a policy of one command it asks
//! for every fact that there is, and one that there is not. It is told those of the
//! command's row; for any other it is replaced as hostile. What it was told holds
//! nothing that the row does not name.
//!
//! The workers are this test's, one after the other; each asks for one fact, by its
//! process id. Behind them come sound ones.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::sys::uio::pread;
use postern_core::catalogue::Command;
use postern_core::catalogue::facts::{BLOCK_DEVICES, FACTS, Fact, MOUNTS};
use postern_core::confine::{self, filters};
use postern_core::ipc::bundle::Bundle;
use postern_core::messages::{Answer, Ask};
use postern_core::policy::parts::WorkerPart;
use postern_core::sys::{descriptors, process};
use serde_json::Value;

use crate::scene;
use crate::support::agent::{Agent, eventually};
use crate::support::runner::Test;
use crate::worker::{Broker, FIRST, attackers, frame, raw, ready};

pub(crate) const TESTS: &[Test] = &[("a_fallen_worker_is_told_what_its_row_names", is_told_what_its_row_names)];

/// The script of such workers, beside an opener.
const BESIDE: &str = "facts";
/// The same where the policy has no opener, so that the first worker is born earlier.
const ALONE: &str = "facts, without an opener";

/// How the worker ends, which is what it was told.
const KEPT: i32 = 50;
const GATHERED: i32 = 51;
const NOT_TOLD: i32 = 52;
/// It was told more than the row names.
const TOO_MUCH: i32 = 59;

/// Whether this is a script of such workers.
pub(crate) fn is_script(script: &str) -> bool {
    [BESIDE, ALONE].contains(&script)
}

/// Which fact this worker is to ask for; none once all have been asked for.
pub(crate) fn turn(script: &str) -> Option<u8> {
    let first = if script == ALONE { FIRST - 1 } else { FIRST };
    let turn = std::process::id().checked_sub(first)?;
    u8::try_from(turn).ok().filter(|turn| usize::from(*turn) <= FACTS.len())
}

/// The worker's part, with what it was handed at its birth: the memory that is
/// gathered into, and the socket of the network.
pub(crate) fn play(script: &str, mut broker: Broker, part: &WorkerPart, handed: [Option<OwnedFd>; 2]) -> i32 {
    let facts = part.facts();
    if [facts.gathers(), facts.iter().any(Fact::is_handed)] != handed.each_ref().map(Option::is_some) {
        process::exit_now(TOO_MUCH);
    }
    let [memory, _socket] = handed;
    let memory = memory.map(|memory| descriptors::move_to(memory, filters::TOLD).expect("a descriptor"));
    confine::worker(part).expect("confinement");
    let _ = broker.send(&ready(), None);
    let turn = turn(script).expect("a turn");
    let mut bytes = frame(&Ask::Fact { fact: Fact::Load });
    *bytes.last_mut().expect("its number") = turn;
    raw(&bytes);
    let ended = loop {
        let Ok(received) = broker.receive() else { return 0 };
        let fact = Fact::from_number(turn);
        match (received.message, received.descriptor, fact) {
            (Answer::Kept {}, Some(file), Some(_)) => {
                let mut content = [0; 100];
                break if pread(&file, &mut content, 0).is_ok_and(|count| count > 0) { KEPT } else { TOO_MUCH };
            }
            (Answer::Gathered { length }, None, Some(fact)) => {
                let told = memory.as_ref().is_some_and(|memory| is_of(fact, memory, length));
                break if told { GATHERED } else { TOO_MUCH };
            }
            (Answer::Lasting { length, .. }, Some(name), Some(fact)) => {
                let told = memory.as_ref().is_some_and(|memory| is_of(fact, memory, length));
                // Of what it was gathered from it sees whether that changes, and no more.
                let reads = [Some(name), received.second].map(|look| pread(look.expect("two"), &mut [0], 0));
                break if told && reads == [Err(Errno::EBADF); 2] { GATHERED } else { TOO_MUCH };
            }
            (Answer::NotTold { .. }, None, _) => break NOT_TOLD,
            _ => {}
        }
    };
    process::exit_now(ended)
}

/// Whether what was gathered lies where the fact's row says.
fn is_of(fact: Fact, memory: &OwnedFd, length: u32) -> bool {
    let mut bytes = vec![0; usize::try_from(length).expect("a length")];
    let mut read = 0;
    while read < bytes.len() {
        match pread(memory, &mut bytes[read..], i64::try_from(read).expect("a place")) {
            Ok(count) if count > 0 => read += count,
            _ => return false,
        }
    }
    // Mounts and devices stand under their names in directories that it only looks at.
    let looked = |path: &Path| [MOUNTS, BLOCK_DEVICES].map(Path::new).contains(&path);
    let of_row = |path: &Path| looked(path) || fact.grants().any(|(grant, _)| path.starts_with(grant));
    let paths = paths(&bytes).unwrap_or_default();
    !paths.is_empty() && Bundle::read(&bytes).is_ok() && paths.into_iter().all(of_row)
}

/// The paths from the root in a bundle: of each record a kind, a path, and what is told
/// of it, both behind their length. Other paths are beneath a directory before them.
fn paths(mut bytes: &[u8]) -> Option<Vec<&Path>> {
    let mut paths = Vec::new();
    while !bytes.is_empty() {
        let length = u16::from_le_bytes(bytes.get(1..3)?.try_into().ok()?).into();
        let (path, rest) = bytes[3..].split_at_checked(length)?;
        let told = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
        bytes = rest.get(4 + usize::try_from(told).ok()?..)?;
        let path = Path::new(OsStr::from_bytes(path));
        if path.is_absolute() {
            paths.push(path);
        } else if paths.is_empty() || path.components().any(|part| part == Component::ParentDir) {
            return None;
        }
    }
    Some(paths)
}

fn is_told_what_its_row_names() {
    scene::files();
    for command in Command::all() {
        let facts = command.entry().needs.facts;
        if facts.is_empty() {
            continue;
        }
        let home = attackers(if facts.iter().any(|fact| fact.is_gathered()) { BESIDE } else { ALONE });
        let policy = format!("profile = \"minimal\"\n[commands]\nallow = [\"{command}\"]\n");
        let agent = home.start(&policy);
        let mut deaths = eventually("all of them have asked", || {
            let deaths: Vec<Value> = worker_records(&agent, "process-died");
            (deaths.len() == FACTS.len() + 1).then_some(deaths)
        });
        // One that is killed may be dead later than the next one, which ends by itself.
        deaths.sort_by_key(|died| died["postern"]["child"].as_u64());
        let malformed = worker_records(&agent, "malformed-frame");
        let is_malformed = |child: &Value| malformed.iter().any(|record| record["postern"]["child"] == *child);
        for (turn, died) in deaths.iter().enumerate() {
            let fact = u8::try_from(turn).ok().and_then(Fact::from_number);
            let child = &died["postern"]["child"];
            let name = fact.map_or("none", |fact| fact.row().name);
            // What was handed over at the birth is not asked for.
            if let Some(fact) = fact.filter(|fact| facts.contains(fact) && !fact.is_handed()) {
                let told = died["process"]["exit_code"].as_i64();
                let due = if fact.is_gathered() { GATHERED } else { KEPT };
                assert_eq!(told, Some(due.into()), "{command}: {name}: {died}");
                assert!(!is_malformed(child), "{command}: {name}");
            } else {
                assert!(is_malformed(child), "{command} has {name}: {died}");
                // Killed, or hung up on before that.
                assert!(matches!(died["process"]["exit_code"].as_i64(), None | Some(0)), "{command}: {name}: {died}");
            }
        }
        let told: Vec<Value> =
            agent.records_of("fact-told").iter().map(|record| record["postern"]["fact"].clone()).collect();
        let names: Vec<&str> = facts.iter().map(|fact| fact.row().name).collect();
        assert!(told.iter().all(|name| names.iter().any(|known| name == known)), "{command}: {told:?}");
        // A sound worker behind them.
        agent.connect().ping();
        println!("    {command}: told {}, replaced for {} others", names.join(", "), malformed.len());
    }
}

fn worker_records(agent: &Agent<'_>, action: &str) -> Vec<Value> {
    let of_worker = |record: &Value| record["process"]["name"] == "worker";
    agent.records_of(action).into_iter().filter(of_worker).collect()
}
