//! The log's bounds: how large a file grows, which files go, what all of them
//! may take, and what of a flood is listed.
//!
//! Trust: the policy's numbers; sizes and times are the kernel's. Caller: the
//! log.

use std::time::{Duration, Instant, SystemTime};

use postern_core::audit::{Body, Opening, Record, Run, Timestamp};
use postern_core::messages::Barrier;
use postern_core::policy::Audit;

use super::flood::{Kind, announces};
use super::{Log, LogError, rotated};

/// Bytes beyond `audit.max_bytes` for everything that is no open; half of them
/// for what is refused without a record.
pub const SPARE_BYTES: u64 = 1 << 20;
/// How often the log's files are counted at most while `max_bytes` is spent.
pub(super) const COUNT_AGAIN: Duration = Duration::from_secs(60);
/// Most bytes that the chain adds to a record's body, with newlines.
const CHAIN_BYTES: u64 = 514;

/// Which part of `audit.max_bytes` a record may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// That of opens.
    Opens,
    /// Half of [`SPARE_BYTES`] more, for what else a host asks for: it can freeze
    /// as often as it likes.
    Acts,
    /// All of them, for what nobody can refuse any more.
    All,
}

impl Log {
    /// Goes on as another policy says, in the same place. Touches no file.
    pub fn adopt(&mut self, audit: &Audit) {
        self.audit = audit.clone();
        self.rotate_at = audit.rotate_bytes.unwrap_or(u64::MAX);
        if audit.rotate_bytes.is_none() {
            self.surplus.clear();
        }
        self.weigh();
        // What is too old by now, and what there is room for, shows at the next count.
        self.counted = None;
    }

    /// Changes what the first record of each further file says.
    pub fn tell(&mut self, change: impl FnOnce(&mut Run)) {
        change(&mut self.run);
    }

    /// Whether there may be room for the records of an open: asked before any
    /// of it is done. Files that were moved away show within a minute.
    pub fn takes_opens(&mut self) -> Result<(), LogError> {
        if self.spent && !self.held && self.is_count_due() {
            self.recount();
            // Removes what is too old; what cannot be written shows below.
            _ = self.settle(false);
        }
        if !self.spent {
            return Ok(());
        }
        self.refused = self.refused.saturating_add(1);
        Err(self.no_room())
    }

    /// Whether opens are refused because `audit.max_bytes` is spent.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.spent
    }

    /// Sets a full file aside and goes on in a new one. What goes wrong is
    /// trouble for the operator, not for the record: the old file takes it.
    pub(super) fn rotate_if_full(&mut self) {
        let Some(end) = self.end.as_ref().filter(|end| end.used && end.size >= self.rotate_at) else { return };
        // Until it has grown as much again; a new file begins anew.
        self.rotate_at = end.size.saturating_add(self.audit.rotate_bytes.unwrap_or(u64::MAX));
        match self.set_aside().and_then(|()| self.move_on(Opening::Rotated)) {
            Ok(()) => self.recount(),
            Err(why) => self.trouble = Some(why),
        }
    }

    fn set_aside(&self) -> Result<(), LogError> {
        let (Some(place), Some(end)) = (&self.place, &self.end) else { return Ok(()) };
        // Where the name leads elsewhere, somebody else has rotated.
        if place.is_current(&end.file)? && !place.set_aside(end.first)? {
            place.set_aside(end.chain.next)?;
        }
        Ok(())
    }

    pub(super) fn has_room(&self, body: &Body, room: Room) -> bool {
        let spare = match room {
            Room::Opens => 0,
            Room::Acts => SPARE_BYTES / 2,
            Room::All => SPARE_BYTES,
        };
        let most = self.audit.max_bytes.saturating_add(spare);
        self.taken + body.len() as u64 + CHAIN_BYTES <= most
    }

    pub(super) fn no_room(&self) -> LogError {
        LogError::Spent { path: self.audit.log.clone(), used: self.taken, max: self.audit.max_bytes }
    }

    pub(super) fn is_count_due(&self) -> bool {
        self.counted.is_none_or(|counted| counted.elapsed() >= COUNT_AGAIN)
    }

    /// Counts what the log's files take, and which of them are too many.
    pub(super) fn recount(&mut self) {
        let Some(place) = &self.place else { return };
        self.counted = Some(Instant::now());
        match place.members() {
            Ok(members) => {
                self.taken = members.iter().map(|member| member.size).sum();
                if self.audit.rotate_bytes.is_some() {
                    self.surplus = rotated::surplus(members, self.audit.keep, self.audit.keep_time, SystemTime::now());
                }
                self.weigh();
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    const fn weigh(&mut self) {
        self.spent = self.taken >= self.audit.max_bytes;
        self.told_spent &= self.spent;
    }

    /// Removes rotated files that are too many and too old, each behind its
    /// record.
    pub(super) fn remove_surplus(&mut self) -> Result<(), LogError> {
        while let Some(member) = self.surplus.first().cloned() {
            let name = member.name.to_string_lossy().into_owned();
            self.put(Timestamp::now(), &Body::of(&Record::LogRemoved { name }), Room::All)?;
            // A rotation may have counted anew meanwhile.
            self.surplus.retain(|other| other.name != member.name);
            match self.place.as_ref().map_or(Ok(()), |place| place.remove(&member)) {
                Ok(()) => {
                    self.taken = self.taken.saturating_sub(member.size);
                    self.weigh();
                }
                Err(why) => self.trouble = Some(why),
            }
        }
        Ok(())
    }

    /// Whether one more of what a host can repeat is listed. Where opens are
    /// refused for want of room, the first of them is, so that the log says so
    /// itself.
    pub(super) fn admits(&mut self, kind: Kind, record: &Record, body: &Body) -> bool {
        self.spent |= !self.has_room(body, Room::Opens);
        if self.spent {
            let says_so = matches!(record, Record::OpenRefused { by: Barrier::Audit, .. });
            if !says_so || std::mem::replace(&mut self.told_spent, true) {
                return false;
            }
        }
        let now = Instant::now();
        let admits = self.flood.has_room(kind, now);
        if admits {
            self.flood.pay(kind, now, body.len());
        }
        admits
    }

    /// Whether an act may be announced, of which nothing may come: not where too
    /// many of its kind came to nothing.
    #[must_use]
    pub fn bears(&self, announcement: &Record) -> bool {
        announces(announcement).is_none_or(|act| self.flood.bears(act, Instant::now()))
    }

    /// Nothing came of an act that was announced: its records count as any that a
    /// host can repeat.
    pub fn charge(&mut self, announcement: &Record, outcome: Option<&Record>) {
        let Some(act) = announces(announcement) else { return };
        for record in [announcement].into_iter().chain(outcome) {
            self.flood.charge(act, Instant::now(), Body::of(record).len());
        }
    }
}
