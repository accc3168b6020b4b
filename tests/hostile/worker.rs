//! A worker that belongs to an attacker, before the real broker and spawner.
//!
//! The broker is started from this test's own executable, so the children that
//! the real spawner gives birth to are this executable again. It plays spawner
//! and opener as the shipped one does; the first worker plays the script of
//! [`SCRIPT`], the next are real.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::io::IoSlice;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use nix::sys::stat::Mode as Permission;
use nix::unistd::read;
use postern_broker::{Options, Pace, spawner};
use postern_core::confine;
use postern_core::confine::filters::{OPEN_NAME, OPEN_PORT};
use postern_core::ipc::{List, Malformed, Pipe, Wire};
use postern_core::messages::{Answer, Ask, MAX_SWITCHES, Role, Standing, SuspendMode, Switch, Text, Use, WirePath};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;
use postern_core::policy::written::{self, World};
use postern_core::sys::{descriptors, process};
use serde_json::Value;

use crate::fallen;
use crate::host::{INSIDE, POLICY, home};
use crate::matrix;
use crate::support::agent::{Agent, Home, eventually};
use crate::support::cell;
use crate::told;

/// What the first worker is to do, by name; readable by every account.
pub(crate) const SCRIPT: &str = "/tmp/script";
/// A file of the policy.
const TARGET: &str = "/tmp/target/inside";
/// Process id of the first worker in the spawner's namespace: the spawner is 1,
/// the opener 2.
pub(crate) const FIRST: u32 = 3;

/// Plays a child of the spawner, if this process was born as one.
pub(crate) fn as_child() -> Option<ExitCode> {
    let name = std::env::args().next()?;
    let is = |known: &CStr| name.as_bytes() == known.to_bytes();
    if !name.starts_with("postern: ") {
        return None;
    }
    let script = script_of_first();
    let is_matrix = script.as_deref() == Some(matrix::standin::SCRIPT);
    let status = if is(spawner::NAME) && is_matrix && std::process::id() == 1 {
        matrix::standin::proxy()
    } else if is(spawner::NAME) {
        spawner::run() as i32
    } else if is(spawner::name(Role::Opener)) {
        postern_opener::run() as i32
    } else if is(spawner::name(Role::Worker)) {
        match script.filter(|_| !is_matrix) {
            Some(script) if told::is_script(&script) && told::turn(&script).is_none() => postern_worker::run() as i32,
            Some(script) if std::process::id() == FIRST || script == fallen::SCRIPT || told::is_script(&script) => {
                attack(&script)
            }
            _ => postern_worker::run() as i32,
        }
    } else {
        return None;
    };
    process::exit_now(status)
}

/// Read as the spawner's filter allows: the standard library would ask for the
/// size first.
fn script_of_first() -> Option<String> {
    let file = open(SCRIPT, OFlag::O_RDONLY, Permission::empty()).ok()?;
    let mut text = [0; 100];
    let length = read(&file, &mut text).ok()?;
    String::from_utf8(text[..length].to_vec()).ok()
}

/// The role of the broker: the last argument is the policy.
pub(crate) fn broker(arguments: &[String]) {
    let policy = arguments.last().map(std::path::Path::new);
    let policy = written::load(policy, &World::live()).unwrap_or_else(|why| panic!("{why}")).policy;
    let verbosity = postern_broker::say::Level::Info;
    // Where many workers are to fall, or the test is the spawner and a worker's life
    // costs nothing.
    let at_once = script_of_first().is_some_and(|script| script == matrix::standin::SCRIPT || told::is_script(&script));
    let pace = if at_once { Pace::AtOnce } else { Pace::Slowed };
    let service = postern_broker::Service::default();
    let options = Options { policy, origin: None, channel: None, verbosity, service, pace };
    let ended = postern_broker::run(options);
    if let Err(fatal) = &ended {
        eprintln!("postern: {fatal}");
    }
    process::exit_now(ended.map_or_else(|fatal| i32::from(fatal.status()), |()| 0))
}

// ---- the attacker ------------------------------------------------------------

pub(crate) type Broker = Pipe<Ask, Answer>;

/// A frame as it stands on the wire.
pub(crate) fn frame(ask: &Ask) -> Vec<u8> {
    let mut bytes = Vec::new();
    ask.put(&mut bytes);
    bytes
}

pub(crate) fn raw(bytes: &[u8]) {
    let _ = send(3, bytes, MsgFlags::MSG_NOSIGNAL);
}

/// Sends a frame with as many descriptors.
fn with_descriptors(bytes: &[u8], count: usize) {
    let numbers = vec![0; count];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let _ = sendmsg::<()>(3, &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None);
}

fn asks(path: &str) -> Ask {
    Ask::Open { path: WirePath::new(path.as_bytes()).expect("a path"), mode: Mode::Read }
}

const UNUSED: Use = Use { read: 0, written: 0, calls: 0 };

/// What a script does, and a word of the record that must come of it.
struct Script {
    name: &'static str,
    /// Whether the worker confines itself and says so first.
    confined: bool,
    act: fn(&mut Broker),
    recorded: &'static str,
}

const fn script(name: &'static str, confined: bool, act: fn(&mut Broker), recorded: &'static str) -> Script {
    Script { name, confined, act, recorded }
}

const SCRIPTS: &[Script] = &[
    script("noise instead of a first word", false, |_| raw(&[0xff; 100]), "out of range"),
    script("noise", true, |_| raw(&[0xff; 100]), "out of range"),
    script("a message number that is none", true, |_| raw(&[0]), "out of range"),
    script("a frame that ends early", true, |_| raw(&frame(&asks("/etc/passwd"))[..5]), "ends early"),
    script("a frame that goes on", true, |_| raw(&[frame(&Ask::HostGone {}), vec![0]].concat()), "goes on"),
    script("a frame larger than any", true, |_| raw(&vec![1; 70_000]), "too long"),
    script("a path longer than any", true, |_| raw(&[&[3, 0xff, 0xff][..], &[b'/'; 65_535 - 3]].concat()), "range"),
    script("an open mode that is none", true, |_| raw(&[3, 1, 0, b'/', 99]), "out of range"),
    script("a message number behind the last", true, |_| raw(&[behind_last()]), "out of range"),
    script("a descriptor", false, |_| with_descriptors(&frame(&Ask::HostGone {}), 1), "descriptor"),
    script("many descriptors", false, |_| with_descriptors(&frame(&Ask::HostGone {}), 200), "missing or too many"),
    script("a port before its first word", false, |_| with_descriptors(&frame(&Ask::Port {}), 1), "not sent for"),
    script("two ports", false, |_| with_descriptors(&frame(&Ask::Port {}), 2), "missing or too many"),
    script("a port that is none", true, |_| raw(&frame(&Ask::Port {})), "missing or too many"),
    script("no port before its first word", false, |_| raw(&frame(&Ask::NoPort { errno: 13 })), "not sent for"),
    script("no port", true, |_| raw(&frame(&Ask::NoPort { errno: 13 })), "not sent for"),
    script("a port gone before its first word", false, |_| raw(&frame(&Ask::PortGone {})), "before it was confined"),
    script("a port gone", true, |_| raw(&frame(&Ask::PortGone {})), "lost a channel that is there"),
    script("an ask before its first word", false, |_| raw(&frame(&asks("/etc/passwd"))), "before it was confined"),
    script("two first words", true, |_| raw(&frame(&ready())), "introduced itself twice"),
    script(
        "the close of a handle it has not",
        true,
        |_| raw(&frame(&Ask::Closed { handle: 1, used: UNUSED })),
        "handle",
    ),
    script(TWICE, false, ask_twice, "before it was answered"),
    script("a freeze", true, |_| raw(&frame(&Ask::Freeze { only: None })), "policy withholds"),
    script("a thaw", true, |_| raw(&frame(&Ask::Thaw {})), "policy withholds"),
    script("a shutdown", true, |_| raw(&frame(&Ask::Shutdown { mode: ShutdownMode::Halt })), "policy withholds"),
    script("a trim", true, |_| raw(&frame(&Ask::Trim { minimum: 0 })), "policy withholds"),
    script("a sleep", true, |_| raw(&frame(&Ask::Suspend { mode: SuspendMode::Ram })), "policy withholds"),
    script("processors", true, |_| raw(&frame(&Ask::SetVcpus { vcpus: none() })), "policy withholds"),
    script("memory blocks", true, |_| raw(&frame(&Ask::SetMemoryBlocks { blocks: none() })), "policy withholds"),
    script("a status", true, |_| raw(&frame(&Ask::Status {})), "policy withholds"),
];

/// The first number that is no message's.
fn behind_last() -> u8 {
    (1..u8::MAX).find(|number| matches!(Ask::whole(&[*number]), Err(Malformed::Range))).expect("a number")
}

/// No processor, no memory block.
fn none() -> List<Switch, MAX_SWITCHES> {
    List::new(Vec::new()).expect("a short list")
}

/// Last words that are the broker's own for a child that a reload ended.
const PRETENDS: &str = "it says that it was reloaded";
const TWICE: &str = "two asks at once";
/// There once the opener is stopped, so that the first ask is not answered yet.
const GO: &str = "/tmp/go";

fn ask_twice(_: &mut Broker) {
    raw(&frame(&ready()));
    while open(GO, OFlag::O_RDONLY, Permission::empty()).is_err() {
        let _ = poll(&mut [], PollTimeout::from(10_u8));
    }
    raw(&frame(&asks(TARGET)));
    raw(&frame(&asks(TARGET)));
}

/// Ways to end that leave no malformed frame behind, but a death.
const DEATHS: &[Script] = &[
    script("it ends", true, |_| process::exit_now(7), "\"exit_code\":7"),
    script("it breaks its filter", true, |_| drop(fs::read("/etc/passwd")), "\"signal\":31"),
    script("it hands a port over", true, |_| with_descriptors(&frame(&Ask::Port {}), 1), "\"signal\":31"),
    script("it opens a port", true, |_| drop(open("/dev/null", OPEN_PORT, Permission::empty())), "\"signal\":31"),
    script(
        "it reads a port's name",
        true,
        |_| drop(open("/dev/null", OPEN_NAME, Permission::empty())),
        "\"signal\":31",
    ),
    script("it hangs up", true, |_| drop(descriptors::inherited(3)), "worker"),
    script("it never says a word", false, |_| (), "worker"),
    script("it says nothing and leaves", true, |_| raw(&[]), "worker"),
    script("it panics", true, |_| raw(&frame(&Ask::Panicked { message: Text::cut(b"last words") })), "last words"),
    script(
        PRETENDS,
        true,
        |_| raw(&frame(&Ask::Panicked { message: Text::cut(b"the policy was reloaded") })),
        "the policy was reloaded",
    ),
];

pub(crate) fn ready() -> Ask {
    Ask::Ready {
        standing: Standing { landlock_abi: 7, filter_rules: 9, filter_digest: [0; 32], missing: List::default() },
    }
}

/// Plays the first worker: plays its script, then waits to be killed.
fn attack(name: &str) -> i32 {
    let mut broker = Broker::new(descriptors::inherited(3).expect("the broker"));
    let (mut memory, mut netlink) = (None, None);
    let part = loop {
        let Ok(received) = broker.receive() else { return 1 };
        match received.message {
            Answer::Memory {} => memory = received.descriptor,
            Answer::Network {} => netlink = received.descriptor,
            Answer::Setup { part, .. } => break part,
            _ => return 1,
        }
    };
    if name == "random" {
        confine::worker(&part).expect("confinement");
        let _ = broker.send(&ready(), None);
        random_frames();
        return 0;
    }
    if name == "in type" {
        confine::worker(&part).expect("confinement");
        let _ = broker.send(&ready(), None);
        // Before its socket closes, or the broker has it killed first.
        process::exit_now(in_type(&mut broker));
    }
    if name == fallen::SCRIPT {
        return fallen::attacker::play(broker, &part);
    }
    if told::is_script(name) {
        return told::play(name, broker, &part, [memory, netlink]);
    }
    let script = SCRIPTS.iter().chain(DEATHS).find(|script| script.name == name).expect("a script");
    if script.confined {
        confine::worker(&part).expect("confinement");
        let _ = broker.send(&ready(), None);
    }
    (script.act)(&mut broker);
    // The broker's end, or its word to end, comes last.
    while broker.receive().is_ok() {}
    0
}

/// A thousand frames of a fixed sequence of noise, each with a known number in
/// front, so that every decoder is met.
fn random_frames() {
    // xorshift of Marsaglia, 2003; any noise does.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..1000 {
        let length = usize::try_from(next() % 64).expect("a small number");
        let mut bytes = vec![u8::try_from(next() % u64::from(behind_last())).expect("a small number")];
        bytes.extend((0..length).map(|_| u8::try_from(next() & 0xff).expect("a byte")));
        raw(&bytes);
    }
}

/// Asks in type for what it should not have, and dies by another number for
/// each answer that it should not get.
fn in_type(broker: &mut Broker) -> i32 {
    let mut ask = |path: &str| {
        let _ = broker.send(&asks(path), None);
        broker.receive().map(|received| (received.message, received.descriptor)).ok()
    };
    for path in ["/etc/passwd", "/proc/self/root/etc/passwd", "/tmp/target/../../etc/passwd", "/", ""] {
        match ask(path) {
            Some((Answer::NotOpened { errno }, None)) if errno == Errno::EACCES as i32 => {}
            _ => return 41,
        }
    }
    match ask(TARGET) {
        Some((Answer::Opened { .. }, Some(_))) => 40,
        _ => 42,
    }
}

// ---- the tests ---------------------------------------------------------------

/// A home whose broker is this test's, and whose first worker plays `script`.
pub(crate) fn attackers(script: &str) -> Home {
    let mut home = home();
    home.binary = cell::SELF.into();
    home.launch = vec!["--role".into(), "broker".into()];
    fs::write(SCRIPT, script).expect("the script");
    fs::create_dir_all("/tmp/target").expect("a directory");
    fs::write(TARGET, "inside").expect("a file");
    home
}

/// The usual one, and a file under a name that scripts know.
fn policy() -> String {
    format!("{POLICY}[[files]]\npath = \"/tmp/target\"\nrights = [\"read\"]\n")
}

/// What the broker holds, by kind and number.
fn held(agent: &Agent<'_>) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("its descriptors").flatten() {
        let target = fs::read_link(entry.path()).map(|target| target.display().to_string()).unwrap_or_default();
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        *count.entry(kind).or_default() += 1;
    }
    count
}

/// The agent serves a host, by a sound worker, and holds what it should.
pub(crate) fn serves(agent: &Agent<'_>) {
    let mut host = agent.connect();
    host.ping();
    let path = agent.home.files().join("inside");
    for _ in 0..3 {
        let handle = host.open(&path, "r").expect("the file of the policy");
        assert_eq!(host.read(handle), INSIDE);
        host.close(handle);
    }
    host.open("/etc/passwd", "r").expect_err("outside");
    // What the broker handed on it lets go of a moment later.
    eventually("it holds nothing more", || {
        let held = held(agent);
        let more = held.keys().any(|kind| kind.ends_with("/inside") || kind == "pipe");
        // Listener, host, spawner, opener, worker.
        (held["socket"] == 5 && !more).then_some(())
    });
}

pub(crate) fn is_replaced_and_recorded() {
    let mut usual = None;
    for script in SCRIPTS.iter().chain(DEATHS) {
        let home = attackers(script.name);
        let agent = home.start(&policy());
        if script.name == TWICE {
            agent.signal("opener", Signal::SIGSTOP);
            fs::write(GO, "").expect("the word to go");
        }
        let action =
            if DEATHS.iter().any(|death| death.name == script.name) { "process-died" } else { "malformed-frame" };
        let record = agent.await_record(action, |record| record["process"]["name"] == "worker");
        assert!(record.to_string().contains(script.recorded), "{}: {record}", script.name);
        let died = agent.await_record("process-died", |record| record["process"]["name"] == "worker");
        assert_eq!(died["postern"]["child"], record["postern"]["child"], "{}: {died}", script.name);
        if script.name == TWICE {
            agent.signal("opener", Signal::SIGCONT);
        }
        if script.name == PRETENDS {
            // The operator is told of an end that nobody wanted, whatever it says.
            eventually("it counts as a death", || agent.said().contains(" ended (").then_some(()));
        }
        serves(&agent);
        eventually("the attacker is gone", || (agent.family().len() == 4).then_some(()));
        agent.await_record("host-disconnected", |_| true);
        // All of the sockets but the host's, which it lets go of behind the record.
        let held = eventually("the host's is closed", || Some(held(&agent)).filter(|held| held["socket"] == 4));
        let held = held.values().sum::<usize>();
        assert_eq!(held, *usual.get_or_insert(held), "{}: the broker's descriptors", script.name);
        println!("    {}: replaced", script.name);
    }
}

pub(crate) fn random_frames_do_no_harm() {
    let home = attackers("random");
    let agent = home.start(&policy());
    agent.await_record("malformed-frame", |record| record["process"]["name"] == "worker");
    serves(&agent);
}

pub(crate) fn gets_what_the_policy_allows() {
    let home = attackers("in type");
    let agent = home.start(&policy());
    let died = agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    assert_eq!(died["process"]["exit_code"], 40, "{died}");
    let opens = agent.records_of("guest-file-open");
    let stages: Vec<&Value> = opens.iter().map(|record| &record["postern"]["stage"]).collect();
    assert_eq!(stages, ["refused", "refused", "refused", "refused", "refused", "granted"], "each on record");
    let closed = agent.await_record("guest-file-close", |_| true);
    assert_eq!(closed["event"]["reason"], "the worker died");
    serves(&agent);
}
