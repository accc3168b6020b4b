//! The test between the real broker and its real spawner: it keeps the sockets of
//! workers (and of openers, if it wants to), is their process, and tells of their
//! ends; so a worker's life costs two messages instead of an exec.
//!
//! The broker under test starts this executable as its spawner. That process
//! starts the real one, gives the test its own socket and one to the real
//! spawner, and stays: it is process 1 of the family's PID namespace, which ends
//! with the broker. The test passes on whatever is not its own.
//!
//! What it sends comes from an account that is no worker's and from outside of
//! any filter: it may do all that a fallen worker may, and more.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, send, sendmsg};
use postern_broker::spawner;
use postern_core::ipc::{Pipe, ReceiveError};
use postern_core::messages::{
    Answer, Ask, Barrier, OpenerOrder, OpenerReport, Role, SpawnerOrder, SpawnerReport, Text,
};
use postern_core::sys::{descriptors, process};

use crate::support::agent::LIVELY;
use crate::worker::{frame, ready};

/// The script of agents whose spawner is the test.
pub(crate) const SCRIPT: &str = "matrix";
/// Where the test takes the sockets.
const MEETING: &str = "/tmp/matrix.sock";

/// Plays the process that the broker has for its spawner.
pub(crate) fn proxy() -> i32 {
    let broker = descriptors::inherited(3).expect("the broker");
    // Above the numbers that a child is handed.
    let executable = descriptors::inherited(4).expect("the executable");
    let executable = fcntl(&executable, FcntlArg::F_DUPFD_CLOEXEC(20))
        .map(|number| descriptors::inherited(number).expect("its duplicate"));
    let executable = executable.expect("a duplicate");
    let (to_real, theirs) = Pipe::<SpawnerOrder, SpawnerReport>::pair().expect("a socketpair");
    let stdin = std::io::stdin();
    process::spawn(&process::Birth {
        executable: executable.as_fd(),
        name: spawner::NAME,
        null: stdin.as_fd(),
        handed: &[theirs.as_fd(), executable.as_fd()],
        pid_namespace: false,
        session: false,
    })
    .expect("the real spawner");
    let test = UnixStream::connect(MEETING).expect("the test");
    let numbers = [broker.as_raw_fd(), to_real.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    sendmsg::<()>(test.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::empty(), None).expect("the test");
    drop(to_real);
    // Nothing but its end; what it says is the test's.
    while poll(&mut [PollFd::new(broker.as_fd(), PollFlags::empty())], PollTimeout::NONE).is_err() {}
    0
}

/// Where agents of this script are awaited.
pub(super) fn meeting() -> UnixListener {
    let _ = fs::remove_file(MEETING);
    UnixListener::bind(MEETING).expect("a socket")
}

/// A worker that the test is.
pub(super) struct Life {
    pub(super) id: u32,
    /// Whether it has an open under way.
    pub(super) asked: bool,
    pub(super) pipe: Pipe<Ask, Answer>,
}

impl Life {
    /// Sends bytes as a frame; whether the broker's end took them.
    pub(super) fn raw(&self, bytes: &[u8]) -> bool {
        send(self.pipe.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).is_ok()
    }

    /// Sends a frame with these descriptors beside it.
    pub(super) fn with(&self, bytes: &[u8], numbers: &[RawFd]) -> bool {
        let rights = [ControlMessage::ScmRights(numbers)];
        let number = self.pipe.as_fd().as_raw_fd();
        sendmsg::<()>(number, &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None).is_ok()
    }

    pub(super) fn ask(&self, ask: &Ask) -> bool {
        self.raw(&frame(ask))
    }

    /// The broker's next word, `None` at the end of what it has to say to this
    /// worker. Panics if there is neither: a broker that hangs.
    pub(super) fn hear(&mut self) -> Option<(Answer, Option<OwnedFd>)> {
        let limit = PollTimeout::try_from(LIVELY).expect("a time limit");
        let mut ready = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        let count = poll(&mut ready, limit).expect("poll");
        assert!(count > 0, "the broker neither answers worker {} nor lets go of it", self.id);
        match self.pipe.try_receive() {
            Ok(received) => Some((received.message, received.descriptor)),
            Err(ReceiveError::Closed | ReceiveError::Socket(_)) => None,
            Err(why) => panic!("the broker said to worker {}: {why}", self.id),
        }
    }
}

type RealSpawner = Pipe<SpawnerOrder, SpawnerReport>;
/// An opener that the test is.
pub(super) type OwnOpener = Pipe<OpenerReport, OpenerOrder>;

/// The test as the broker's spawner.
pub(super) struct Standin {
    broker: Pipe<SpawnerReport, SpawnerOrder>,
    real: RealSpawner,
    /// Children that are the test's.
    own: BTreeSet<u32>,
    born: VecDeque<Life>,
    /// The opener that is the test's.
    pub(super) opener: Option<OwnOpener>,
    /// Who the next worker is: the test, or a real one.
    pub(super) own_workers: bool,
    /// Who the next opener is.
    pub(super) own_openers: bool,
    /// How many of its own openers more say that they cannot be confined.
    pub(super) failing_openers: u32,
    /// How many openers of its own there were.
    pub(super) openers: u64,
    /// How many lives were begun.
    pub(super) lives: u64,
}

impl Standin {
    /// Takes the sockets of the agent that has just been started.
    pub(super) fn meet(meeting: &UnixListener) -> Option<Self> {
        let (proxy, _) = meeting.accept().ok()?;
        proxy.set_nonblocking(false).expect("a socket that waits");
        let mut byte = [0];
        let mut control = nix::cmsg_space!([RawFd; 2]);
        let mut parts = [IoSliceMut::new(&mut byte)];
        let packet = recvmsg::<()>(proxy.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
        let packet = packet.expect("its sockets");
        let numbers: Vec<RawFd> = packet
            .cmsgs()
            .expect("whole control messages")
            .flat_map(|message| if let ControlMessageOwned::ScmRights(numbers) = message { numbers } else { vec![] })
            .collect();
        let mut sockets = numbers.iter().map(|&number| descriptors::inherited(number).expect("a socket"));
        let mut next = || sockets.next().expect("two sockets");
        Some(Self {
            broker: Pipe::new(next()),
            real: Pipe::new(next()),
            own: BTreeSet::new(),
            born: VecDeque::new(),
            opener: None,
            own_workers: true,
            own_openers: false,
            failing_openers: 0,
            openers: 0,
            lives: 0,
        })
    }

    /// Passes on what lies there; waits so long for the first of it.
    pub(super) fn pump(&mut self, patience: Duration) {
        let patience = PollTimeout::try_from(patience).expect("a time limit");
        let mut ready =
            [PollFd::new(self.broker.as_fd(), PollFlags::POLLIN), PollFd::new(self.real.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, patience).expect("poll") == 0 {
            return;
        }
        while let Ok(order) = self.broker.try_receive() {
            self.obey(&order.message, order.descriptor);
        }
        while let Ok(report) = self.real.try_receive() {
            let _ = self.broker.send(&report.message, None);
        }
    }

    fn obey(&mut self, order: &SpawnerOrder, socket: Option<OwnedFd>) {
        match (order, socket) {
            (SpawnerOrder::Spawn { role: Role::Worker, id }, Some(socket)) if self.own_workers => {
                self.own.insert(*id);
                self.lives += 1;
                self.born.push_back(Life { id: *id, asked: false, pipe: Pipe::new(socket) });
                let _ = self.broker.send(&SpawnerReport::Spawned { id: *id }, None);
            }
            (SpawnerOrder::Spawn { role: Role::Opener, id }, Some(socket)) if self.own_openers => {
                self.own.insert(*id);
                let opener = OwnOpener::new(socket);
                self.openers += 1;
                let _ = self.broker.send(&SpawnerReport::Spawned { id: *id }, None);
                let Ask::Ready { standing } = ready() else { unreachable!() };
                if self.failing_openers > 0 {
                    self.failing_openers -= 1;
                    let _ = opener.send(&OpenerReport::Unconfined { why: Text::cut(b"no memory") }, None);
                } else {
                    let _ = opener.send(&OpenerReport::Ready { standing }, None);
                    self.opener = Some(opener);
                }
            }
            (SpawnerOrder::Kill { id }, _) if self.own.remove(id) => {
                let _ = self.broker.send(&SpawnerReport::Died { id: *id, signal: Some(9), status: 0 }, None);
            }
            (_, socket) => {
                let _ = self.real.send(order, socket.as_ref().map(AsFd::as_fd));
            }
        }
    }

    /// Answers what the test's own opener was told to open: that it could not.
    pub(super) fn answer_opens(&mut self) {
        let Some(opener) = &mut self.opener else { return };
        while let Ok(order) = opener.try_receive() {
            if let OpenerOrder::Open { id, .. } = order.message {
                let report = OpenerReport::NotOpened { id, errno: 5, by: Barrier::Kernel, resolved: None };
                let _ = opener.send(&report, None);
            }
        }
    }

    /// The worker that the broker asks for, or has asked for.
    pub(super) fn newborn(&mut self) -> Life {
        let started = Instant::now();
        loop {
            if let Some(life) = self.born.pop_front() {
                return life;
            }
            assert!(started.elapsed() < LIVELY, "the broker asks for no other worker");
            self.pump(Duration::from_secs(1));
        }
    }

    /// A worker that has said that it is confined.
    pub(super) fn confined(&mut self) -> Life {
        let life = self.newborn();
        life.ask(&ready());
        life
    }

    /// From now on children are real. The one that is the test's has to go.
    pub(super) fn be_honest(&mut self) {
        (self.own_workers, self.own_openers) = (false, false);
        self.born.clear();
        self.opener = None;
    }
}
