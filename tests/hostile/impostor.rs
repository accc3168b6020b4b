//! An impostor in the broker's place: real children of the shipped executable,
//! born with the documented descriptors, that hear what no broker says. They
//! end, and do nothing.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use nix::sys::stat::Mode as Permission;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use postern_broker::spawner;
use postern_core::catalogue::facts::FactSet;
use postern_core::catalogue::{Command as Qga, CommandSet};
use postern_core::confine::identity;
use postern_core::ipc::{Frame, List, Pipe, Received, Wire};
use postern_core::messages::{
    Answer, Ask, Identity, OpenerOrder, OpenerReport, Role, SpawnerOrder, SpawnerReport, WirePath,
};
use postern_core::policy::Limits;
use postern_core::policy::parts::{OpenerPart, WorkerPart};
use postern_core::policy::rules::{FileRule, Mode, Rights, Types};
use postern_core::policy::telling::Telling;
use postern_core::sys::descriptors;
use postern_core::sys::process::{self, Birth};

use crate::support::agent::{BINARY, LIVELY};
use crate::support::cell;

const ACCOUNT: u32 = 70_300;
const FILES: &str = "/tmp/impostor";

pub(crate) fn an_opener_takes_no_nonsense() {
    plays("opener");
}

pub(crate) fn a_worker_takes_no_nonsense() {
    plays("worker");
}

pub(crate) fn a_spawner_takes_no_nonsense() {
    plays("spawner");
}

/// The impostor runs as the children's account: they refuse to be root.
fn plays(what: &str) {
    std::fs::create_dir(FILES).expect("a directory");
    std::fs::write(format!("{FILES}/inside"), "inside").expect("a file");
    let status = Command::new(cell::SELF).args(["--role", "impostor", what]).status().expect("the impostor");
    assert!(status.success(), "the impostor: {status}");
}

pub(crate) fn play(arguments: &[String]) {
    let account = Identity { uid: ACCOUNT, gid: ACCOUNT, groups: List::default() };
    identity::become_account(&account).expect("the account");
    caps::clear(None, caps::CapSet::Effective).expect("no capability");
    caps::clear(None, caps::CapSet::Permitted).expect("no capability");
    match arguments[0].as_str() {
        "opener" => opener(),
        "worker" => worker(),
        _ => spawner_hears(),
    }
}

/// A child of the shipped executable, and its broker's end of the pipe.
struct Child<Out, In> {
    pid: Pid,
    pipe: Pipe<Out, In>,
}

impl<Out: Frame, In: Frame> Child<Out, In> {
    fn born(name: &std::ffi::CStr) -> Self {
        // Out of the way of the numbers that the child is handed.
        let high = |low: OwnedFd| {
            let number = fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(10)).expect("a descriptor");
            descriptors::inherited(number).expect("a descriptor")
        };
        let open = |path: &str, flags| {
            high(nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Permission::empty()).expect(path))
        };
        let executable = open(BINARY, OFlag::O_PATH);
        let null = open("/dev/null", OFlag::O_RDWR);
        let (pipe, theirs) = Pipe::pair().expect("a socketpair");
        let theirs = high(theirs);
        let handed = [theirs.as_fd(), executable.as_fd()];
        let handed = if name == spawner::NAME { &handed[..] } else { &handed[..1] };
        let birth = Birth {
            executable: executable.as_fd(),
            name,
            null: null.as_fd(),
            handed,
            pid_namespace: false,
            session: false,
        };
        Self { pid: process::spawn(&birth).expect("a child"), pipe }
    }

    fn say(&self, message: &Out) {
        self.pipe.send(message, None).expect("it listens");
    }

    /// Bytes as they are, with as many descriptors.
    fn say_raw(&self, bytes: &[u8], descriptors: usize) {
        let socket = self.pipe.as_fd().as_raw_fd();
        if descriptors == 0 {
            send(socket, bytes, MsgFlags::MSG_NOSIGNAL).expect("it listens");
        } else {
            let numbers = vec![0; descriptors];
            let rights = [ControlMessage::ScmRights(&numbers)];
            sendmsg::<()>(socket, &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None).expect("it listens");
        }
    }

    /// Waits for its next word.
    fn hear(&mut self) -> Received<In> {
        self.await_word();
        self.pipe.try_receive().expect("a word in type")
    }

    fn await_word(&self) {
        let mut ready = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(LIVELY).expect("a time limit");
        assert_eq!(poll(&mut ready, limit).expect("poll"), 1, "it says nothing");
    }

    /// Waits for its end: the exit status.
    fn ended(mut self) -> i32 {
        while !matches!(
            self.pipe.try_receive(),
            Err(postern_core::ipc::ReceiveError::Closed | postern_core::ipc::ReceiveError::Socket(_))
        ) {
            self.await_word();
        }
        match waitpid(self.pid, None).expect("its end") {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Hangs up and waits for its end.
    fn left(self) -> i32 {
        let Self { pid, pipe } = self;
        drop(pipe);
        match waitpid(pid, None).expect("its end") {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        }
    }
}

fn bytes_of(message: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.put(&mut bytes);
    bytes
}

/// Frames that are no message to anybody, and how many descriptors come along.
fn nonsense(sound: &[u8]) -> Vec<(&'static str, Vec<u8>, usize)> {
    vec![
        ("noise", vec![0xff; 64], 0),
        ("no number", vec![0], 0),
        ("it ends early", sound[..sound.len() - 1].to_vec(), 0),
        ("it goes on", [sound, &[0]].concat(), 0),
        ("larger than any", vec![1; 70_000], 0),
        ("a descriptor too many", sound.to_vec(), 1),
        ("many descriptors", sound.to_vec(), 100),
    ]
}

const ORDINARY: i32 = 0;
const BROKEN: i32 = 1;

type Opener = Child<OpenerOrder, OpenerReport>;

fn open(id: u64, path: &str, mode: Mode) -> OpenerOrder {
    OpenerOrder::Open { id, path: WirePath::new(path.as_bytes()).expect("a path"), mode }
}

fn told() -> Opener {
    let rule = FileRule {
        path: FILES.into(),
        rights: Rights::READ,
        except: Vec::new(),
        optional: false,
        types: Types::REGULAR,
    };
    let part = OpenerPart { rules: vec![rule], create_mode: 0o600, facts: FactSet::EMPTY, telling: Telling::default() };
    let mut opener = Opener::born(spawner::name(Role::Opener));
    for order in part.orders().expect("orders") {
        opener.say(&order);
    }
    assert!(matches!(opener.hear().message, OpenerReport::Ready { .. }));
    opener
}

fn opener() {
    // The control.
    let mut opener = told();
    opener.say(&open(7, "/tmp/impostor/inside", Mode::Read));
    let opened = opener.hear();
    assert!(matches!(opened.message, OpenerReport::Opened { id: 7, .. }), "{opened:?}");
    assert!(opened.descriptor.is_some());
    for (path, mode) in [("/etc/passwd", Mode::Read), ("/tmp/impostor/inside", Mode::Write), ("", Mode::Read)] {
        opener.say(&open(8, path, mode));
        let refused = opener.hear();
        assert!(matches!(refused.message, OpenerReport::NotOpened { id: 8, .. }), "{path}: {refused:?}");
    }
    assert_eq!(opener.left(), ORDINARY);
    let sound = bytes_of(&open(9, "/tmp/impostor/inside", Mode::Read));
    for (what, frame, descriptors) in nonsense(&sound) {
        let opener = told();
        opener.say_raw(&frame, descriptors);
        assert_eq!(opener.ended(), BROKEN, "{what}");
        let unborn = Opener::born(spawner::name(Role::Opener));
        unborn.say_raw(&frame, descriptors);
        assert_eq!(unborn.ended(), BROKEN, "{what}, first");
    }
    // In type, out of order.
    let early = Opener::born(spawner::name(Role::Opener));
    early.say(&open(1, "/tmp/impostor/inside", Mode::Read));
    assert_eq!(early.ended(), BROKEN, "an open before its rules");
    let twice = told();
    twice.say(&OpenerOrder::Setup { rules: 1, create_mode: 0o777, facts: FactSet::EMPTY, telling: Telling::default() });
    assert_eq!(twice.ended(), BROKEN, "other rules, later");
    let short = Opener::born(spawner::name(Role::Opener));
    short.say(&OpenerOrder::Setup { rules: 2, create_mode: 0, facts: FactSet::EMPTY, telling: Telling::default() });
    short.say(&OpenerOrder::Setup { rules: 2, create_mode: 0, facts: FactSet::EMPTY, telling: Telling::default() });
    assert_eq!(short.ended(), BROKEN, "no rule where one is due");
    assert_eq!(Opener::born(spawner::name(Role::Opener)).left(), ORDINARY, "a broker that leaves at once");
}

type Worker = Child<Answer, Ask>;

fn setup() -> Answer {
    Answer::Setup {
        part: WorkerPart {
            commands: Qga::all().collect(),
            redact: CommandSet::EMPTY,
            telling: Telling::default(),
            limits: Limits::default(),
        },
        frozen: false,
    }
}

fn worker() {
    let ready = || {
        let mut worker = Worker::born(spawner::name(Role::Worker));
        worker.say(&setup());
        assert!(matches!(worker.hear().message, Ask::Ready { .. }));
        worker
    };
    assert_eq!(ready().left(), ORDINARY, "the control");
    let ending = ready();
    ending.say(&Answer::End {});
    assert_eq!(ending.ended(), ORDINARY, "the control: told to end");
    let sound = bytes_of(&Answer::Frozen { frozen: true });
    for (what, frame, descriptors) in nonsense(&sound) {
        let worker = ready();
        worker.say_raw(&frame, descriptors);
        assert_eq!(worker.ended(), BROKEN, "{what}");
    }
    // Answers that nobody asked for.
    let answered = ready();
    answered.say(&Answer::Begun {});
    assert_eq!(answered.ended(), BROKEN, "an answer to nothing");
    let again = ready();
    again.say(&setup());
    assert_eq!(again.ended(), BROKEN, "another policy, later");
    let early = Worker::born(spawner::name(Role::Worker));
    early.say(&Answer::Begun {});
    assert_eq!(early.ended(), BROKEN, "an answer first");
}

type Spawner = Child<SpawnerOrder, SpawnerReport>;

fn spawner_hears() {
    let ready = || {
        let mut spawner = Spawner::born(spawner::NAME);
        spawner.say(&SpawnerOrder::Setup { identity: None, commands: CommandSet::EMPTY });
        assert!(matches!(spawner.hear().message, SpawnerReport::Ready { .. }));
        spawner
    };
    // The control: a child of a child, born and killed.
    let mut spawner = ready();
    let (_pipe, theirs) = Pipe::<Answer, Ask>::pair().expect("a socketpair");
    let order = |id| SpawnerOrder::Spawn { role: Role::Worker, id };
    spawner.pipe.send(&order(5), Some(theirs.as_fd())).expect("it listens");
    assert!(matches!(spawner.hear().message, SpawnerReport::Spawned { id: 5 }));
    spawner.say(&SpawnerOrder::Kill { id: 6 });
    spawner.say(&SpawnerOrder::Kill { id: 5 });
    assert!(matches!(spawner.hear().message, SpawnerReport::Died { id: 5, signal: Some(9), .. }));
    assert_eq!(spawner.left(), ORDINARY);
    let sound = bytes_of(&SpawnerOrder::Kill { id: 1 });
    for (what, frame, descriptors) in nonsense(&sound) {
        let spawner = ready();
        spawner.say_raw(&frame, descriptors);
        assert_eq!(spawner.ended(), BROKEN, "{what}");
    }
    let twice = ready();
    twice.say(&SpawnerOrder::Setup { identity: None, commands: CommandSet::EMPTY });
    assert_eq!(twice.ended(), BROKEN, "another account, later");
    let bare = ready();
    bare.say_raw(&bytes_of(&order(1)), 0);
    assert_eq!(bare.ended(), BROKEN, "a birth without a socket");
}
