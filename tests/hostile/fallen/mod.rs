//! A worker that has fallen and its host, together, try to get at a file in any
//! way but asking, and by asking in every way that is not honest; every
//! descriptor that they end up with must have an earlier record, and lie in the
//! policy.
//!
//! The worker is this test's (see [`attacker`]); broker, spawner and opener are
//! the shipped code. The same suite before a broker that hands over first and
//! records then (cargo feature `sabotage`) must find that.
//!
//! Calls are tried one by one in `tests/confinement.rs`, malformed frames in
//! [`crate::worker`]; here is what takes a live worker: its host, its broker, its
//! descriptors.

pub(crate) mod attacker;
mod attempts;
mod host;
mod table;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use postern_core::messages::{Ask, Use, WirePath};
use postern_core::policy::rules::Mode;

use crate::host::{POLICY, home};
use crate::support::agent::{Agent, BINARY, Home, eventually};
use crate::support::{cell, sabotage};
use crate::worker;
use attacker::{LOG, to_hex};
use host::Attack;

/// The script of such workers: all that are born play it, until it changes.
pub(crate) const SCRIPT: &str = "fallen";

/// What the policy has besides the home's files.
const TARGET: &str = "/tmp/target";
/// What it has not, and every account may read and write.
const SECRET: &str = "/tmp/secret/secret";

/// What came of it.
#[derive(Debug, Default)]
struct Findings {
    attempts: BTreeMap<String, usize>,
    /// Descriptors that it got.
    descriptors: usize,
    /// Those without an earlier record that is of the same object.
    unrecorded: Vec<String>,
    /// Those that lie outside the policy.
    outside: Vec<String>,
    /// Whatever else went otherwise than it must.
    odd: Vec<String>,
}

impl Findings {
    fn count(&mut self, kind: &str, times: usize) {
        *self.attempts.entry(kind.to_owned()).or_default() += times;
    }

    fn print(&self) {
        for (kind, times) in &self.attempts {
            println!("    {times:6} attempts: {kind}");
        }
        let (late, outside) = (self.unrecorded.len(), self.outside.len());
        println!(
            "    {} descriptors, {late} without an earlier record, {outside} outside the policy",
            self.descriptors
        );
    }
}

/// Sets the stage, starts the agent, and makes every attempt.
fn suite(home: &Home, variable: Option<(&str, &str)>) -> Findings {
    for directory in [TARGET, "/tmp/secret"] {
        fs::create_dir(directory).expect("a directory");
    }
    fs::write(SECRET, "secret").expect("a file");
    fs::set_permissions("/tmp/secret", Permissions::from_mode(0o777)).expect("its mode");
    fs::set_permissions(SECRET, Permissions::from_mode(0o666)).expect("its mode");
    for name in ["inside", "other"] {
        fs::write(format!("{TARGET}/{name}"), "inside").expect("a file");
        chown(format!("{TARGET}/{name}"), Some(home.worker), Some(home.worker)).expect("its owner");
    }
    chown(TARGET, Some(home.worker), Some(home.worker)).expect("its owner");
    for (name, to) in [
        ("link", SECRET),
        ("alias", "inside"),
        ("directory", "/tmp/secret"),
        ("dangling", "/tmp/secret/new"),
        ("root", "/proc/self/root"),
    ] {
        symlink(to, format!("{TARGET}/{name}")).expect("a link");
    }
    let log = home.path("log");
    fs::create_dir(&log).expect("a directory");
    // The worker's witness needs to get there.
    let options = format!("size=16m,mode=711,uid={0},gid={0}", home.broker);
    mount(Some("log"), &log, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).expect("a tmpfs");
    fs::write(worker::SCRIPT, SCRIPT).expect("the script");
    let policy = format!("{POLICY}[[files]]\npath = \"{TARGET}\"\nrights = [\"read\", \"write\", \"create\"]\n");
    let mut command = home.command(&policy);
    command.envs(variable);
    // It says that it is confined once it can read the log.
    let agent = Agent { home, child: command.spawn().expect("the agent") };
    eventually("there is a log", || home.log().exists().then_some(()));
    fs::set_permissions(home.log(), Permissions::from_mode(0o644)).expect("its mode");
    symlink(home.log(), LOG).expect("a link");
    agent.await_record("process-started", |record| record["process"]["name"] == "worker");

    let mut attack = Attack::new(&agent);
    attack.pass(100, 1);
    attack.calls();
    assert_eq!(attack.tell("confine"), "confined");
    attack.pass(100, 1);
    attack.pass(20, 200);
    attack.guess();
    attack.misname();
    attack.swap();
    attack.honest_but_greedy();
    attack.without_a_log();
    attack.guess();

    let ask = |path: &str| {
        worker::frame(&Ask::Open { path: WirePath::new(path.as_bytes()).expect("a path"), mode: Mode::Read })
    };
    let closed = |handle: u64| worker::frame(&Ask::Closed { handle, used: Use { read: 0, written: 0, calls: 0 } });
    let inside = ask(&format!("{TARGET}/inside"));
    let noise = vec![vec![0xff; 40]];
    attack.dies_of("asks again before the answer", &[vec![inside; 8], noise].concat());
    let last = *attack.granted.keys().next_back().expect("a handle");
    attack.dies_of("closes a handle of the worker before it", &[closed(last)]);
    let guessed: Vec<Vec<u8>> = (0..50).map(|ahead| closed(last + ahead)).collect();
    // The script ends with this life: a real worker is next.
    fs::write(worker::SCRIPT, "none").expect("the script");
    attack.found.count("closes handles that it guesses", guessed.len());
    for frame in &guessed {
        attack.say(&format!("raw {}", to_hex(frame)));
    }
    attack.await_death();
    let found = std::mem::take(&mut attack.found);
    drop(attack);
    worker::serves(&agent);
    assert_eq!(fs::read(SECRET).expect("the secret"), b"secret", "written to");
    verify(home);
    found
}

fn verify(home: &Home) {
    let verified = Command::new(BINARY).args(["audit", "verify"]).arg(home.log()).output();
    let verified = verified.expect("postern audit verify");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

pub(crate) fn no_file_without_a_record() {
    let mut home = home();
    home.binary = cell::SELF.into();
    home.launch = vec!["--role".into(), "broker".into()];
    let found = suite(&home, None);
    found.print();
    assert_eq!(found.unrecorded, Vec::<String>::new(), "descriptors without an earlier record");
    assert_eq!(found.outside, Vec::<String>::new(), "descriptors outside the policy");
    assert_eq!(found.odd, Vec::<String>::new());
    assert!(found.descriptors > 500, "{} descriptors", found.descriptors);
}

/// The control: before a broker that is broken on purpose, with the same workers
/// and opener, the suite fails, and by this only.
pub(crate) fn a_late_record_is_found() {
    let mut home = home();
    home.binary = sabotage::binary().into();
    let found = suite(&home, Some(("POSTERN_SABOTAGE_FAMILY", cell::SELF)));
    found.print();
    assert!(!found.unrecorded.is_empty(), "the suite misses a record that comes too late");
    let full = found.unrecorded.iter().filter(|what| what.contains("is not None")).count();
    assert!(full > 0, "nor one that never comes: {:?}", found.unrecorded);
    assert_eq!(found.outside, Vec::<String>::new(), "the opener is sound");
}
