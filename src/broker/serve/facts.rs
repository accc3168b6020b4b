//! Telling facts of the guest: worker's ask → record → a file that is open since the
//! start, or worker's ask → opener → record → worker.
//!
//! Which facts there are is the policy's; what they are read from stands in the
//! catalogue, so no path comes from a host. Nothing of what was read passes through
//! here.
//!
//! Trust: a worker asks for a number; the opener is as good as its confinement.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use postern_core::audit::Record;
use postern_core::catalogue::facts::{Fact, FactSet};
use postern_core::ipc::bundle::BUNDLE_MAX;
use postern_core::messages::{Answer, OpenerOrder, Role, Stamp};
use postern_core::policy::Policy;

use super::Broker;
use super::children::Parting;
use crate::family::{Opener, Worker};

/// An opener's domain names what stood in the guest when it was born; what was put in
/// place of that since is closed to it. So often at most a fresh one is born for
/// that.
const RENEWED_AFTER: Duration = Duration::from_secs(60);

/// What an opener looked at: a name, and what it leads to.
#[derive(Debug)]
pub(super) struct Looks {
    pub(super) descriptors: (OwnedFd, OwnedFd),
    pub(super) stamps: (Stamp, Stamp),
}

/// A fact that is being told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Telling {
    pub(super) id: u64,
    pub(super) fact: Fact,
    /// Whether the opener was told; one that is being replaced is told later.
    pub(super) sent: bool,
    /// Whether a fresh opener has had its try.
    again: bool,
    /// When it was told, or else asked for.
    pub(super) since: Instant,
}

impl Broker {
    pub(super) fn act_fact(&mut self, fact: Fact) {
        if fact.is_kept() {
            return self.tell_kept(fact);
        }
        if self.too_many_hang() {
            return self.tell_none(fact, Errno::EIO);
        }
        self.opens += 1;
        let since = Instant::now();
        self.telling = Some(Telling { id: self.opens, fact, sent: false, again: false, since });
        self.tell_opener();
    }

    /// A file that was opened at the start, for the worker to keep. Its record comes
    /// first.
    fn tell_kept(&mut self, fact: Fact) {
        let file = match self.parts.sources.file(fact) {
            Ok(file) => file,
            Err(errno) => return self.tell_none(fact, errno),
        };
        if self.record_first(&Record::FactTold { child: self.worker_number(), fact, errno: None }) {
            self.answer(&Answer::Kept {}, Some(&file));
        } else {
            self.tell_none(fact, Errno::EIO);
        }
    }

    /// The opener has put it where the worker reads it. What shows when it is to be
    /// asked for again is handed on only behind a record of its own: without one, the
    /// worker asks again each time.
    pub(super) fn gathered(&mut self, id: u64, length: u32, denied: bool, looks: Option<Looks>) {
        let Some(telling) = self.telling.take_if(|telling| telling.id == id) else { return };
        if denied && self.renews(&telling) {
            return self.tell_again(telling);
        }
        if usize::try_from(length).map_or(true, |length| length > BUNDLE_MAX) {
            return self.tell_none(telling.fact, Errno::EFBIG);
        }
        let recorded =
            self.is_noted(&Record::FactTold { child: self.worker_number(), fact: telling.fact, errno: None });
        self.heard_worker();
        let Some(Looks { descriptors, stamps: (name, object) }) = looks.filter(|_| recorded) else {
            return self.answer(&Answer::Gathered { length }, None);
        };
        let Some(worker) = &self.worker else { return };
        let lasting = Answer::Lasting { length, name, object };
        if worker.pipe.send_two(&lasting, descriptors.0.as_fd(), descriptors.1.as_fd()).is_err() {
            self.lose_worker();
        }
    }

    pub(super) fn not_told(&mut self, id: u64, errno: Errno) {
        let Some(telling) = self.telling.take_if(|telling| telling.id == id) else { return };
        if errno == Errno::EACCES && self.renews(&telling) {
            return self.tell_again(telling);
        }
        self.tell_none(telling.fact, errno);
    }

    /// The opener is gone, and with it what it was about to tell.
    pub(super) fn give_up_telling(&mut self) {
        if let Some(telling) = self.telling.take() {
            self.tell_none(telling.fact, Errno::EIO);
        }
    }

    fn tell_none(&mut self, fact: Fact, errno: Errno) {
        self.note(&Record::FactTold { child: self.worker_number(), fact, errno: Some(errno) });
        self.answer(&Answer::NotTold { errno: errno as i32 }, None);
    }

    fn renews(&self, telling: &Telling) -> bool {
        !telling.again && self.renewed.is_none_or(|renewed| renewed.elapsed() >= RENEWED_AFTER)
    }

    /// Has a fresh opener tell it.
    fn tell_again(&mut self, telling: Telling) {
        if let Some(opener) = self.opener.take() {
            self.let_go(Role::Opener, &opener, Parting::Wanted);
        }
        let now = Instant::now();
        self.renewed = Some(now);
        self.telling = Some(Telling { sent: false, again: true, since: now, ..telling });
    }

    /// Gives a new worker what its policy has it have, before its first word.
    pub(super) fn equip(&mut self, worker: &Worker, facts: FactSet) {
        if let Some(memory) = self.parts.sources.memory.as_ref().filter(|_| facts.gathers()) {
            // One that cannot be told has ended, which its pipe tells.
            let _ = worker.pipe.send(&Answer::Memory {}, Some(memory.read()));
        }
        if facts.contains(Fact::Interfaces) && self.parts.sources.network.socket().is_some() {
            let handed = Record::FactTold { child: worker.id, fact: Fact::Interfaces, errno: None };
            if self.record_first(&handed)
                && let Some(socket) = self.parts.sources.network.socket()
            {
                let _ = worker.pipe.send(&Answer::Network {}, Some(socket));
            }
        }
    }

    /// The same for a new opener.
    pub(super) fn equip_opener(&self, opener: &Opener, policy: &Policy) {
        if let Some(memory) = self.parts.sources.memory.as_ref().filter(|_| policy.facts().gathers()) {
            let _ = opener.pipe.send(&OpenerOrder::Memory {}, Some(memory.written()));
        }
    }
}
