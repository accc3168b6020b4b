//! Freezing and thawing: telling the engine, and telling of its events.
//!
//! From before the first FIFREEZE until after the last FITHAW neither log nor
//! stderr is written.
//!
//! Trust: the engine is part of the broker.

use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postern_core::audit::{Mounts, Record, ThawCause};
use postern_core::catalogue::Command;
use postern_core::messages::{Answer, Text};

use super::clocks::LOOK_AGAIN;
use super::{Broker, mounts, path_text, text};
use crate::fsfreeze::{Engine, Event, Failure, Filesystem, Note, Status, Why};
use crate::say::{Filesystems, Level};

impl Broker {
    pub(super) fn act_freeze(&mut self, command: Command, only: Option<Vec<PathBuf>>) {
        let named: Mounts = only.iter().flatten().map(|path| path_text(path)).collect();
        let child = self.worker_number();
        let asked = Record::FreezeAsked { child, command, mounts: named };
        if !self.parts.log.bears(&asked) {
            let why = "too many freezes froze nothing: the audit log takes about one in a second";
            return self.refuse_fruitless(command, why);
        }
        if !self.record_first(&asked) {
            return self.refuse("the audit log takes no records");
        }
        self.announced = Some(asked);
        // From here to the last thaw nothing goes to any disk.
        self.parts.log.hold();
        self.parts.voice.hold();
        let begun = self.parts.engine.as_ref().map(|engine| engine.freeze(only));
        match begun {
            Some(Ok(())) => {
                self.freezing = Some(command);
                self.next_limit = Some(Instant::now());
                self.answer(&Answer::Begun {}, None);
            }
            Some(Err(why)) => {
                let why = why.to_string();
                let reason = text(why.as_bytes());
                let left = Mounts::default();
                self.note(&Record::FreezeFailed { command, mount: text(b""), reason, errno: None, left });
                self.release_if_thawed();
                self.refuse(&why);
            }
            None => {
                self.release_if_thawed();
                self.refuse("not possible: postern was started without root");
            }
        }
    }

    pub(super) fn status(&self) -> Status {
        self.parts.engine.as_ref().map_or(Status::Thawed, Engine::status)
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.status() != Status::Thawed
    }

    /// Trust: the engine is part of the broker.
    pub(super) fn hear_engine(&mut self) {
        let events = self.parts.engine.as_ref().map(Engine::events).unwrap_or_default();
        for event in events {
            match event {
                Event::Frozen { filesystems, notes } => self.freeze_done(&filesystems, &notes),
                Event::FreezeFailed { failure, left } => self.freeze_failed(&failure, &left),
                Event::Thawed { why, filesystems, left } => self.thawed(why, &filesystems, &left),
            }
        }
        self.release_if_thawed();
    }

    fn freeze_done(&mut self, filesystems: &[Filesystem], notes: &[Note]) {
        let command = self.freezing.take().unwrap_or(Command::FsfreezeFreeze);
        let count = filesystems.len() as u64;
        for note in notes {
            self.say(Level::Notice, &format!("freeze: {note}"));
        }
        let left_out = notes.iter().map(|note| (path_text(&note.mountpoint), note.reason.name())).collect();
        let done = Record::FreezeDone { command, count, mounts: mounts(filesystems), left_out };
        self.note(&done);
        self.charge_freeze(&done, count == 0);
        self.answer(&Answer::FreezeDone { count }, None);
    }

    fn freeze_failed(&mut self, failure: &Failure, left: &[Failure]) {
        let command = self.freezing.take().unwrap_or(Command::FsfreezeFreeze);
        let why = failure.to_string();
        self.say(Level::Warning, &format!("freeze: {why}"));
        for one in left {
            self.say(Level::Error, &format!("after a failed freeze: {one}"));
        }
        let (mount, errno) = (failure.mountpoint().map_or_else(|| text(b""), path_text), failure.errno());
        let left: Mounts = left.iter().filter_map(Failure::mountpoint).map(path_text).collect();
        let thawed = left.kept().is_empty();
        let failed = Record::FreezeFailed { command, mount, reason: text(why.as_bytes()), errno, left };
        self.note(&failed);
        self.charge_freeze(&failed, thawed);
        self.answer(&Answer::FreezeFailed { why: Text::cut(why.as_bytes()) }, None);
        if self.is_frozen() {
            // Something could not be thawed again.
            self.answer(&Answer::Frozen { frozen: true }, None);
        }
    }

    fn thawed(&mut self, why: Why, filesystems: &[Filesystem], left: &[Failure]) {
        let count = filesystems.len() as u64;
        let cause = match why {
            Why::Host => ThawCause::Host,
            Why::TimeLimit => ThawCause::TimeLimit,
            Why::Ending => ThawCause::Stopping,
        };
        let failed = left.iter().filter_map(Failure::mountpoint).map(path_text).collect();
        // A worker that asked and died meanwhile is owed nothing any more.
        let child = self.worker.as_ref().filter(|_| self.owes_thaw).map(|worker| worker.id);
        self.note(&Record::Thawed { cause, child, count, mounts: mounts(filesystems), failed });
        if why == Why::TimeLimit {
            self.say(
                Level::Warning,
                &format!("thawed {}: the policy's time limit was over", Filesystems(filesystems.len())),
            );
        }
        for one in left {
            self.say(Level::Error, &format!("thaw: {one}"));
        }
        self.gave_up = self.stopping.is_some() && self.is_frozen();
        self.next_limit = self.is_frozen().then(|| Instant::now() + LOOK_AGAIN);
        if std::mem::take(&mut self.owes_thaw) {
            self.answer(
                &match left.first() {
                    None => Answer::ThawDone { count },
                    Some(failure) => Answer::ThawFailed { why: Text::cut(failure.to_string().as_bytes()) },
                },
                None,
            );
        } else {
            // A worker that is still being born was told at its birth that
            // filesystems are frozen; it hears this note behind that.
            self.answer(&Answer::Frozen { frozen: self.is_frozen() }, None);
        }
    }

    fn release_if_thawed(&mut self) {
        if self.parts.engine.as_ref().is_some_and(Engine::holds_writes) || !self.parts.log.is_held() {
            return;
        }
        if let Err(why) = self.parts.log.release() {
            self.log_failed(&why);
        }
        self.parts.voice.release();
    }

    /// The last thing before an end out of order: nothing stays frozen if the
    /// engine can help it.
    pub(super) fn last_thaw(&mut self) {
        let Some(engine) = &self.parts.engine else { return };
        if engine.status() == Status::Thawed {
            return;
        }
        engine.thaw(Why::Ending);
        let until = Instant::now() + LOOK_AGAIN;
        while self.is_frozen() && Instant::now() < until {
            let Some(engine) = &self.parts.engine else { return };
            let mut ready = [PollFd::new(engine.event_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, PollTimeout::from(1000_u16));
            self.hear_engine();
        }
        // It may have thawed before it was looked at: that is not heard yet.
        self.hear_engine();
    }
}
