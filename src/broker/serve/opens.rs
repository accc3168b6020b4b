//! Opening and closing files: worker's ask → record → opener → record →
//! descriptor.
//!
//! Trust: the opener is as good as its confinement; what it says of an object
//! goes into the record as its word.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use postern_core::audit::{self, After, Closing, Record, Timestamp};
use postern_core::ipc::ReceiveError;
use postern_core::messages::{Answer, Barrier, Facts, OpenerOrder, OpenerReport, Role, Use, WirePath};
use postern_core::policy::rules::{Mode, Types};
use postern_core::sys::fs::{self, Object};

use super::children::Parting;
use super::facts::Looks;
use super::{Broker, Opening, text};
use crate::decide::Refusal;
use crate::family::Child;
use crate::launch::Fatal;
use crate::say::Level;

/// No descriptor and no effect without an earlier record.
const fn no_record(rule: usize, resolved: Option<WirePath>) -> Refusal {
    let why = "the audit log does not take its record";
    Refusal { errno: Errno::EIO, by: Barrier::Audit, why, rule: Some(rule), resolved }
}

/// The log would be filled with what came to nothing.
const fn fruitless(rule: usize) -> Refusal {
    let why = "too many of these came to nothing";
    Refusal { errno: Errno::EAGAIN, by: Barrier::Audit, why, rule: Some(rule), resolved: None }
}

impl Broker {
    pub(super) fn act_open(&mut self, path: WirePath, mode: Mode, rule: usize, changes: bool) {
        if let Err(why) = self.parts.log.takes_opens() {
            self.log_failed(&why);
            return self.refuse_open(&path, mode, no_record(rule, None));
        }
        if self.too_many_hang() {
            let why = "as many operations on files hang as may";
            let refusal = Refusal { errno: Errno::EIO, by: Barrier::Broker, why, rule: Some(rule), resolved: None };
            return self.refuse_open(&path, mode, refusal);
        }
        let handle = match self.parts.handles.give() {
            Ok(handle) => handle.cast_unsigned(),
            Err(why) => {
                self.say(Level::Error, &format!("no file handle to be had: {why}"));
                let refusal = Refusal {
                    errno: Errno::EIO,
                    by: Barrier::Broker,
                    why: "no handle to be had",
                    rule: Some(rule),
                    resolved: None,
                };
                return self.refuse_open(&path, mode, refusal);
            }
        };
        if changes {
            let asked = self.asked(&path, mode, rule);
            if !self.parts.log.bears(&asked) {
                return self.refuse_open(&path, mode, fruitless(rule));
            }
            if !self.record_first(&asked) {
                return self.refuse_open(&path, mode, no_record(rule, None));
            }
        }
        self.opens += 1;
        self.opening = Some(Opening {
            id: self.opens,
            handle,
            path,
            mode,
            rule,
            changes,
            sent: false,
            again: false,
            since: Instant::now(),
        });
        self.tell_opener();
    }

    fn asked(&self, path: &WirePath, mode: Mode, rule: usize) -> Record {
        Record::OpenAsked { child: self.worker_number(), requested: text(path.as_slice()), mode, rule }
    }

    /// Trust: as good as its confinement. What it says of an object goes into
    /// the record as its word.
    pub(super) fn hear_opener(&mut self) -> Result<(), Fatal> {
        let Some(opener) = &mut self.opener else { return Ok(()) };
        // One that has ended can be told nothing, but may have said why.
        let ended = opener.tell_on().is_err();
        let received = match opener.pipe.try_receive() {
            Ok(received) => received,
            Err(ReceiveError::Empty) if !ended => return Ok(()),
            Err(ReceiveError::Malformed(why)) => {
                self.replace_unsound(&why.to_string());
                return Ok(());
            }
            Err(_) => {
                self.lose_opener();
                return Ok(());
            }
        };
        match received.message {
            OpenerReport::Ready { .. } | OpenerReport::Unconfined { .. } if opener.ready => {
                self.replace_unsound("it introduced itself twice");
            }
            OpenerReport::Ready { standing } => {
                opener.ready = true;
                self.paths_stood = true;
                opener.pid = received.sender.map_or(0, |sender| sender.pid);
                let child = opener.id;
                self.child_ready(Role::Opener, child, &standing, received.sender);
                self.tell_opener();
            }
            // As of a worker: the guest is short of something.
            OpenerReport::Unconfined { why } if self.paths_stood => {
                self.say(Level::Error, &format!("opener: could not be confined: {}; trying again", why.to_text()));
                self.last_words = Some(text(why.as_slice()));
                self.lose_opener();
            }
            OpenerReport::Unconfined { why } => {
                return Err(Fatal::Unconfined { who: "opener", why: why.to_text() });
            }
            OpenerReport::Panicked { message } => {
                self.say(Level::Error, &format!("opener: {}", message.to_text()));
                self.last_words = Some(text(message.as_slice()));
                self.lose_opener();
            }
            OpenerReport::Gathered { id, length, denied } => self.gathered(id, length, denied, None),
            OpenerReport::Lasting { id, length, name, object } => {
                let looks = received.descriptor.zip(received.second);
                self.gathered(
                    id,
                    length,
                    false,
                    looks.map(|descriptors| Looks { descriptors, stamps: (name, object) }),
                );
            }
            OpenerReport::NotTold { id, errno } => self.not_told(id, Errno::from_raw(errno)),
            OpenerReport::Opened { id, facts } => {
                if let (Some(file), Some(look)) = (received.descriptor, received.second) {
                    self.opened(id, &facts, &file, look);
                    // Closing it may wait for a server.
                    self.closer.close(file);
                }
            }
            OpenerReport::NotOpened { id, errno, by, resolved } => {
                let Some(opening) = self.opening.take_if(|opening| opening.id == id) else {
                    self.end_unanswered(id, None);
                    return Ok(());
                };
                if by == Barrier::Kernel && errno == Errno::EACCES as i32 && self.is_stale(&opening) {
                    self.open_again(opening);
                    return Ok(());
                }
                // An opener speaks for itself and the kernel, for nobody else.
                let by = if by == Barrier::Kernel { by } else { Barrier::Opener };
                let why = match by {
                    Barrier::Opener => "no rule allows what the path leads to",
                    _ => "the kernel refused",
                };
                if opening.changes {
                    let asked = self.asked(&opening.path, opening.mode, opening.rule);
                    self.parts.log.charge(&asked, None);
                }
                let refusal = Refusal { errno: Errno::from_raw(errno), by, why, rule: Some(opening.rule), resolved };
                self.refuse_open(&opening.path, opening.mode, refusal);
            }
        }
        Ok(())
    }

    /// Records what no sound opener does, and lets go of the one that did it.
    fn replace_unsound(&mut self, why: &str) {
        let child = self.opener.as_ref().map_or(0, |opener| opener.id);
        self.note(&Record::MalformedFrame { role: audit::Role::Opener, child, reason: text(why.as_bytes()) });
        self.lose_opener();
    }

    /// Whether the refusal may come from Landlock for a file that was put in
    /// place of the one that its rule named, as a log rotation does. A rule for
    /// a directory does not grow old; nor does a young opener's domain, so that a
    /// host can't use up births with a file that is simply closed to it.
    fn is_stale(&self, opening: &Opening) -> bool {
        let rule = self.parts.policy.files.get(opening.rule);
        let settled = self.opener.as_ref().is_some_and(Child::is_settled);
        !opening.again && settled && rule.is_some_and(|rule| rule.path == opening.path.as_path())
    }

    /// Has a fresh opener, whose domain is made of what stands at the policy's
    /// paths now, try once more.
    fn open_again(&mut self, opening: Opening) {
        if let Some(opener) = self.opener.take() {
            self.let_go(Role::Opener, &opener, Parting::Wanted);
        }
        self.opening = Some(Opening { sent: false, again: true, ..opening });
    }

    /// Sends the open or the fact under way, if the opener can take it.
    pub(super) fn tell_opener(&mut self) {
        let Some(opener) = self.opener.as_ref().filter(|opener| opener.ready) else { return };
        let order = match (&mut self.opening, &mut self.telling) {
            (Some(opening), _) if !opening.sent => {
                (opening.sent, opening.since) = (true, Instant::now());
                OpenerOrder::Open { id: opening.id, path: opening.path.clone(), mode: opening.mode }
            }
            (None, Some(telling)) if !telling.sent => {
                (telling.sent, telling.since) = (true, Instant::now());
                OpenerOrder::Tell { id: telling.id, fact: telling.fact }
            }
            _ => return,
        };
        if opener.pipe.send(&order, None).is_err() {
            self.lose_opener();
        }
    }

    /// The object behind both descriptors, if it is the one that the opener told
    /// of and of a type that the rule allows: by the kernel's word, without
    /// asking a server.
    fn as_told(&self, facts: &Facts, file: &OwnedFd, look: &OwnedFd) -> Option<Object> {
        let rule = self.parts.policy.files.get(usize::from(facts.rule))?;
        let told = (facts.device, facts.inode, facts.mode & fs::TYPE);
        let is_told = |object: &Object| told == (object.device, object.inode, object.mode & fs::TYPE);
        let object = fs::object(file.as_fd()).ok().filter(is_told)?;
        fs::object(look.as_fd()).ok().filter(is_told)?;
        Types::of_mode(object.mode).is_some_and(|kind| rule.types.contains(kind)).then_some(object)
    }

    /// An object was opened. Its descriptor goes to the worker only behind the
    /// record.
    fn opened(&mut self, id: u64, facts: &Facts, file: &OwnedFd, look: OwnedFd) {
        let Some(opening) = self.opening.take_if(|opening| opening.id == id) else {
            return self.end_unanswered(id, Some(facts));
        };
        let Some(at_grant) = self.as_told(facts, file, &look) else {
            self.opening = Some(opening);
            self.replace_unsound("it passed another object than it told of");
            return;
        };
        let granted = Record::OpenGranted {
            child: self.worker_number(),
            requested: text(opening.path.as_slice()),
            mode: opening.mode,
            handle: opening.handle,
            file: facts.clone(),
            mtime: moment(at_grant.mtime),
        };
        if !self.record_first(&granted) {
            let refusal = no_record(facts.rule.into(), Some(facts.path.clone()));
            return self.refuse_open(&opening.path, opening.mode, refusal);
        }
        self.files.insert(opening.handle, Open { path: facts.path.clone(), look, at_grant });
        self.heard_worker();
        self.answer(&Answer::Opened { handle: opening.handle }, Some(file));
    }

    /// Keeps an open whose worker has ended until the opener tells what came of
    /// it: it may have made or truncated a file.
    pub(super) fn leave_unanswered(&mut self, child: u32, opening: Opening) {
        let sent = opening.sent;
        let id = opening.id;
        self.unanswered.push((child, opening));
        if !sent {
            self.end_unanswered(id, None);
        }
    }

    fn end_unanswered(&mut self, id: u64, file: Option<&Facts>) {
        let Some(at) = self.unanswered.iter().position(|(_, opening)| opening.id == id) else { return };
        let (child, Opening { path, mode, rule, .. }) = self.unanswered.swap_remove(at);
        let requested = text(path.as_slice());
        self.note(&Record::OpenUnanswered { child, requested, mode, rule, file: file.cloned() });
    }

    /// Records those of which nobody will tell any more.
    pub(super) fn forget_unanswered(&mut self) {
        while let Some(id) = self.unanswered.first().map(|(_, opening)| opening.id) {
            self.end_unanswered(id, None);
        }
    }

    pub(super) fn refuse_open(&mut self, path: &WirePath, mode: Mode, refusal: Refusal) {
        let Refusal { errno, by, why, rule, resolved } = refusal;
        self.note(&Record::OpenRefused {
            child: self.worker_number(),
            requested: text(path.as_slice()),
            mode,
            by,
            reason: text(why.as_bytes()),
            rule,
            errno: Some(errno),
            resolved: resolved.map(|path| text(path.as_slice())),
        });
        self.answer(&Answer::NotOpened { errno: errno as i32 }, None);
    }

    pub(super) fn closed(&mut self, handle: u64, used: &Use) {
        let Some(held) = self.files.remove(&handle) else {
            self.replace_hostile("it closed a handle that it did not have");
            return;
        };
        self.note(&held.closed(self.worker_number(), handle, Closing::Host, Some(used.clone())));
    }

    /// The number of the worker that is heard.
    pub(super) fn worker_number(&self) -> u32 {
        self.worker.as_ref().map_or(0, |worker| worker.id)
    }
}

/// A file that the worker holds.
#[derive(Debug)]
pub(super) struct Open {
    /// Its resolved path.
    path: WirePath,
    /// The object, `O_PATH`: it can be asked how it stands, no more. A duplicate
    /// of the worker's descriptor would let the broker write the file, and closing
    /// it could wait for a server.
    look: OwnedFd,
    /// How it stood when the worker got it.
    at_grant: Object,
}

impl Open {
    /// The record of the handle's end. What the kernel says of the object is
    /// asked without waiting for a server.
    pub(super) fn closed(&self, child: u32, handle: u64, why: Closing, used: Option<Use>) -> Record {
        let after = fs::object(self.look.as_fd()).ok().map(|now| After {
            size: now.size,
            mtime: moment(now.mtime),
            changed: (now.size, now.mtime) != (self.at_grant.size, self.at_grant.mtime),
        });
        Record::FileClosed { child, handle, why, path: text(self.path.as_slice()), after, used }
    }
}

/// A file's time as a record has it; one beyond the calendar at its edge.
fn moment((seconds, nanoseconds): (i64, u32)) -> Timestamp {
    let edge = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::new(seconds, nanoseconds.cast_signed()).unwrap_or(edge)
}
