//! What the service manager is told. The manager here is a stand-in for systemd:
//! a datagram socket of the test's own under `NOTIFY_SOCKET`; the tests in virtual
//! machines have the real one.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use caps::CapSet;
use nix::sys::signal::Signal;

use crate::scene::{freeze, kill_broker, policy, start_quietly, status, thaw};
use crate::support::agent::{Agent, BINARY, Home, Host, LIVELY, eventually};
use crate::support::cell::SELF;
use crate::support::disk::Disk;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("ready_means_that_the_host_is_answered", ready_means_that_the_host_is_answered),
    ("a_start_that_fails_is_never_ready", a_start_that_fails_is_never_ready),
    ("the_watchdog_is_fed_while_frozen_but_not_when_stuck", the_watchdog_is_fed_while_frozen_but_not_when_stuck),
    ("a_watchdog_of_another_process_is_left_alone", a_watchdog_of_another_process_is_left_alone),
    ("a_broker_that_starts_frozen_says_so", a_broker_that_starts_frozen_says_so),
    ("a_reload_and_the_end_are_told", a_reload_and_the_end_are_told),
    ("no_child_can_reach_the_manager", no_child_can_reach_the_manager),
    ("the_units_capabilities_are_enough_and_none_too_many", the_units_capabilities_are_enough_and_none_too_many),
    ("a_manager_that_does_not_read_is_not_waited_for", a_manager_that_does_not_read_is_not_waited_for),
];

pub(crate) const ROLES: &[Role] = &[("bounded", bounded)];

/// Executes a command with no more than some capabilities in its bounding set:
/// what systemd does by `CapabilityBoundingSet=`.
fn bounded(arguments: &[String]) {
    let [kept, program, rest @ ..] = arguments else { panic!("what to keep, and a command") };
    for capability in caps::runtime::thread_all_supported() {
        if !kept.split(' ').any(|kept| kept == capability.to_string()) {
            caps::drop(None, CapSet::Bounding, capability).expect("a right that root has");
        }
    }
    panic!("{}", Command::new(program).args(rest).exec());
}

/// Of the watchdog; it is to be fed twice as often.
const LIMIT: Duration = Duration::from_millis(400);

/// The stand-in for systemd.
pub(crate) struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    pub(crate) fn new(home: &Home) -> Self {
        let path = home.path("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Self { socket, path }
    }

    /// The command of an agent that is to notify this manager.
    pub(crate) fn command(&self, home: &Home, policy: &str) -> Command {
        let mut command = home.command(policy);
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// As [`Manager::command`], under a watchdog.
    fn watching(&self, home: &Home, process: Option<u32>) -> Command {
        let mut command = self.command(home, &policy());
        command.env("WATCHDOG_USEC", LIMIT.as_micros().to_string());
        if let Some(process) = process {
            command.env("WATCHDOG_PID", process.to_string());
        }
        command
    }

    /// The next note within this time.
    fn within(&self, time: Duration) -> Option<String> {
        let mut note = [0; 512];
        self.socket.set_read_timeout(Some(time)).expect("a time limit");
        let length = self.socket.recv(&mut note).ok()?;
        Some(String::from_utf8(note[..length].to_vec()).expect("text"))
    }

    fn next(&self) -> String {
        self.within(LIVELY).expect("a note in time")
    }

    /// The next note that does not feed the watchdog.
    pub(crate) fn told(&self) -> String {
        loop {
            let note = self.next();
            if note != "WATCHDOG=1" {
                return note;
            }
        }
    }

    /// What has come meanwhile.
    fn drain(&self) -> Vec<String> {
        std::iter::from_fn(|| self.within(Duration::from_millis(1))).collect()
    }
}

/// Starts an agent without waiting for anything.
fn spawn(home: &Home, mut command: Command) -> Agent<'_> {
    Agent { home, child: command.spawn().expect("the agent") }
}

fn ready_means_that_the_host_is_answered() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let agent = spawn(&home, manager.command(&home, &policy()));
    assert_eq!(manager.next(), "READY=1");
    // By now the worker and the opener are confined, and the socket is there.
    let started = agent.records_of("process-started");
    for role in ["worker", "opener"] {
        assert!(started.iter().any(|record| record["process"]["name"] == role), "{started:#?}");
    }
    let stream = std::os::unix::net::UnixStream::connect(home.path("host.sock")).expect("a listener");
    Host::over(stream).ping();
    assert_eq!(manager.next(), "STATUS=serving");
    assert_eq!(manager.drain(), [""; 0], "no watchdog was asked for");
}

fn a_start_that_fails_is_never_ready() {
    let home = Home::new();
    let manager = Manager::new(&home);
    fs::create_dir_all(home.path("closed/inner")).expect("a directory");
    std::os::unix::fs::chown(home.path("closed"), Some(777), Some(777)).expect("its owner");
    fs::set_permissions(home.path("closed"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("its mode");
    let mut agent = spawn(&home, manager.command(&home, &policy().replace("HOME/files", "HOME/closed/inner")));
    assert_eq!(agent.ended().code(), Some(4), "{}", agent.said());
    let notes = manager.drain();
    assert!(!notes.iter().any(|note| note.contains("READY")), "{notes:?}");
    assert!(notes.last().is_some_and(|note| note.contains("EACCES")), "why is in the unit's status: {notes:?}");
}

fn the_watchdog_is_fed_while_frozen_but_not_when_stuck() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let manager = Manager::new(&home);
    let agent = home.start_command(manager.watching(&home, None));
    let mut host = agent.connect();
    assert_eq!(manager.told(), "READY=1");
    assert_eq!(manager.told(), "STATUS=serving");
    assert_eq!(freeze(&mut host), 1);
    assert!(mounted.is_frozen());
    eventually("the status tells of the freeze", || {
        manager.told().starts_with("STATUS=frozen: 1 filesystem since 20").then_some(())
    });
    for _ in 0..10 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    agent.signal("broker", Signal::SIGSTOP);
    eventually("it has stopped", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("its state");
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')).then_some(())
    });
    manager.drain();
    assert_eq!(manager.within(3 * LIMIT), None, "a loop that does not go round feeds nobody");
    agent.signal("broker", Signal::SIGCONT);
    assert_eq!(manager.next(), "WATCHDOG=1");
    assert_eq!(thaw(&mut host), 1);
    eventually("the status tells of the thaw", || (manager.told() == "STATUS=serving").then_some(()));
}

fn a_watchdog_of_another_process_is_left_alone() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let _agent = home.start_command(manager.watching(&home, Some(1)));
    assert_eq!(manager.next(), "READY=1");
    assert_eq!(manager.next(), "STATUS=serving");
    assert_eq!(manager.within(3 * LIMIT), None);
}

fn a_broker_that_starts_frozen_says_so() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let home = Home::new();
    let manager = Manager::new(&home);
    let agent = home.start_command(manager.command(&home, &policy()));
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    // The host may hear of it before the service manager does.
    let before =
        eventually("the manager knows", || Some(manager.next()).filter(|note| note.starts_with("STATUS=frozen: 1 ")));
    kill_broker(agent);
    let agent = spawn(&home, manager.command(&home, &policy()));
    assert_eq!(manager.next(), "READY=1", "the host must be able to thaw");
    assert_eq!(manager.next(), before, "since the same time");
    let mut host = agent.connect();
    assert_eq!(status(&mut host), "frozen");
    assert_eq!(thaw(&mut host), 1);
    eventually("the status tells of the thaw", || (manager.told() == "STATUS=serving").then_some(()));
}

fn a_reload_and_the_end_are_told() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let mut agent = home.start_command(manager.command(&home, &policy()));
    assert_eq!(manager.next(), "READY=1");
    assert_eq!(manager.next(), "STATUS=serving");
    agent.signal("broker", Signal::SIGHUP);
    let note = manager.next();
    assert!(note.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{note}");
    assert_eq!(manager.next(), "READY=1");
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
    assert_eq!(manager.drain(), ["STOPPING=1", "STATUS=stopping"]);
}

/// The datagram sockets among a process's descriptors.
fn datagram_sockets(pid: i32) -> usize {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).expect("the table of sockets");
    // Number, references, protocol, flags, type (2: datagram), state, inode.
    let datagrams: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(4) == Some(&"0002"))
        .filter_map(|fields| fields.get(6).copied())
        .collect();
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let sockets = links.filter_map(|link| fs::read_link(link.path()).ok());
    let inode = |path: &Path| Some(path.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    sockets.filter_map(|path| inode(&path)).filter(|inode| datagrams.contains(&inode.as_str())).count()
}

fn no_child_can_reach_the_manager() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let agent = home.start_command(manager.watching(&home, None));
    agent.connect().ping();
    let family = agent.family();
    assert_eq!(family.keys().map(String::as_str).collect::<Vec<_>>(), ["broker", "opener", "spawner", "worker"]);
    for (name, &pid) in &family {
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).expect("its environment");
        if name == "broker" {
            // The control: this is where it would show.
            assert!(environment.contains("NOTIFY_SOCKET="), "{environment}");
            assert_eq!(datagram_sockets(pid), 1, "the way to the manager");
        } else {
            assert_eq!(environment, "", "{name}");
            assert_eq!(datagram_sockets(pid), 0, "{name}");
        }
    }
}

fn the_units_capabilities_are_enough_and_none_too_many() {
    const UNIT: &str = include_str!("../../packaging/postern.service");
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("the unit's set");
    let set: Vec<&str> = line.split(' ').collect();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home_with = |kept: &[&str]| {
        let mut home = Home::new();
        home.binary = SELF.into();
        home.launch = ["--role", "bounded", &kept.join(" "), BINARY, "run"].map(str::to_owned).to_vec();
        home
    };
    // An init that takes signals, which is what CAP_KILL is for.
    fs::create_dir_all("/run/systemd/system").expect("the mark of systemd");
    let home = home_with(&set);
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    assert!(mounted.is_frozen());
    kill_broker(agent);
    let (agent, mut host) = start_quietly(&home, &policy());
    assert_eq!(thaw(&mut host), 1, "also after a start while frozen");
    drop(agent);
    for missing in &set {
        let fewer: Vec<&str> = set.iter().copied().filter(|one| one != missing).collect();
        let home = home_with(&fewer);
        let mut agent = spawn(&home, home.command(&policy()));
        assert_ne!(agent.ended().code(), Some(0), "without {missing}: {}", agent.said());
    }
}

fn a_manager_that_does_not_read_is_not_waited_for() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("a flag");
    while filler.send_to(b"filler", &manager.path).is_ok() {}
    // It serves all the same, and goes on.
    let agent = home.start_command(manager.watching(&home, None));
    let mut host = agent.connect();
    host.ping();
    agent.signal("broker", Signal::SIGHUP);
    host.ping();
    let mut notes = Vec::new();
    eventually("what was owed has come", || {
        notes.push(manager.next());
        (notes.last()? == "READY=1").then_some(())
    });
    assert!(notes.iter().any(|note| note == "filler"));
    assert_eq!(manager.told(), "STATUS=serving");
    assert!(manager.told().starts_with("RELOADING=1"));
    assert_eq!(manager.told(), "READY=1");
    assert_eq!(manager.next(), "WATCHDOG=1", "and in time again");
}
