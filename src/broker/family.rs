//! The broker's side of its children: asking the spawner for them, knowing
//! them, letting go of them.
//!
//! Trust: the spawner is believed; a worker is not.

mod backoff;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;
use postern_core::catalogue::CommandSet;
use postern_core::ipc::{Frame, Pipe};
use postern_core::messages::{
    Answer, Ask, BIRTH_LIMIT, Identity, OpenerOrder, OpenerReport, Role, SpawnerOrder, SpawnerReport,
};
use postern_core::sys::process::{self, Birth};

use crate::spawner;
use backoff::{Line, WINDOW};

/// One child, from its asking on.
#[derive(Debug)]
pub(crate) struct Child<Out, In> {
    /// The spawner's name for it.
    pub(crate) id: u32,
    /// The broker's end.
    pub(crate) pipe: Pipe<Out, In>,
    /// Its process id in our namespace, once it has spoken.
    pub(crate) pid: i32,
    /// Whether it has said that it is confined.
    pub(crate) ready: bool,
    /// When it was asked for.
    since: Instant,
    /// What it has to be told still, as its side of the pipe has room.
    untold: VecDeque<Out>,
}

impl<Out: Frame, In: Frame> Child<Out, In> {
    /// Tells it all of this, now or as it reads.
    ///
    /// # Errors
    /// As sendmsg(2), but for a full pipe.
    pub(crate) fn tell(&mut self, messages: impl IntoIterator<Item = Out>) -> Result<(), Errno> {
        self.untold.extend(messages);
        self.tell_on()
    }

    /// Goes on telling.
    ///
    /// # Errors
    /// As [`Child::tell`].
    pub(crate) fn tell_on(&mut self) -> Result<(), Errno> {
        while let Some(message) = self.untold.front() {
            match self.pipe.send(message, None) {
                Ok(()) => drop(self.untold.pop_front()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// When it is given up, unless it has spoken.
    pub(crate) fn given_up_at(&self) -> Option<Instant> {
        (!self.ready).then(|| self.since + BIRTH_LIMIT)
    }

    /// Whether it was asked for so long ago that replacing it costs no birth
    /// that another needs.
    pub(crate) fn is_settled(&self) -> bool {
        self.since.elapsed() > WINDOW
    }

    /// What to poll its pipe for.
    pub(crate) fn awaited(&self) -> PollFlags {
        if self.untold.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    }
}

/// A worker as the broker has it.
pub(crate) type Worker = Child<Answer, Ask>;
/// An opener as the broker has it.
pub(crate) type Opener = Child<OpenerOrder, OpenerReport>;

/// The spawner and what is known of its children.
#[derive(Debug)]
pub(crate) struct Family {
    /// The spawner.
    pub(crate) spawner: Pipe<SpawnerOrder, SpawnerReport>,
    next: u32,
    openers: Line,
    workers: Line,
    pace: Pace,
}

/// How fast children that end are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As [`backoff`] says: what ships.
    Slowed,
    /// At once, always: only before a test that is the spawner itself.
    AtOnce,
}

impl Family {
    /// Starts the spawner and tells it who to be, and which commands its children
    /// may serve that are not plain. As root with a PID namespace
    /// of its own, else without.
    ///
    /// # Errors
    /// As clone(2) and socketpair(2).
    pub(crate) fn found(
        executable: &OwnedFd,
        null: &OwnedFd,
        identity: Option<Identity>,
        commands: CommandSet,
        pace: Pace,
    ) -> io::Result<Self> {
        let (spawner, theirs) = Pipe::pair()?;
        process::spawn(&Birth {
            executable: executable.as_fd(),
            name: spawner::NAME,
            null: null.as_fd(),
            handed: &[theirs.as_fd(), executable.as_fd()],
            pid_namespace: identity.is_some(),
            session: true,
        })?;
        spawner.send(&SpawnerOrder::Setup { identity, commands }, None)?;
        Ok(Self { spawner, next: 0, openers: Line::default(), workers: Line::default(), pace })
    }

    const fn line(&mut self, role: Role) -> &mut Line {
        match role {
            Role::Opener => &mut self.openers,
            Role::Worker => &mut self.workers,
        }
    }

    /// Asks for a child. Its first words arrive on its pipe, as news of its
    /// end does.
    ///
    /// # Errors
    /// As socketpair(2) and sendmsg(2).
    pub(crate) fn start<Out: Frame, In: Frame>(&mut self, role: Role) -> Result<Child<Out, In>, Errno> {
        let since = Instant::now();
        self.line(role).born(since);
        self.start_apart(role)
    }

    /// The same for a reload, which only root can ask for and which is bounded by
    /// itself: it takes no birth from who dies, nor waits for one.
    ///
    /// # Errors
    /// As [`Family::start`].
    pub(crate) fn start_apart<Out: Frame, In: Frame>(&mut self, role: Role) -> Result<Child<Out, In>, Errno> {
        let (pipe, theirs) = Pipe::pair().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.spawner.send(&SpawnerOrder::Spawn { role, id }, Some(theirs.as_fd()))?;
        Ok(Child { id, pipe, pid: 0, ready: false, since: Instant::now(), untold: VecDeque::new() })
    }

    /// The child of this role that was asked for last could not be born.
    pub(crate) fn failed(&mut self, role: Role) {
        self.line(role).failed(Instant::now());
    }

    /// A child that was confined has ended unasked, or had to be ended.
    pub(crate) fn crashed(&mut self, role: Role) {
        self.line(role).crashed(Instant::now());
    }

    /// How many of this role crashed lately, and when the next one may be
    /// started: a time that may be past.
    #[must_use]
    pub(crate) fn next_birth(&self, role: Role) -> (usize, Instant) {
        let now = Instant::now();
        match role {
            _ if self.pace == Pace::AtOnce => (0, now),
            Role::Opener => self.openers.next(now),
            Role::Worker => self.workers.next(now),
        }
    }

    /// Has a child killed, if it still lives.
    pub(crate) fn kill(&self, id: u32) {
        // If the spawner does not take this, it is dead or stuck, which the
        // loop finds out by itself.
        let _ = self.spawner.send(&SpawnerOrder::Kill { id }, None);
    }
}
