//! The audit log's writer: one line per record, each in the file before
//! [`Log::record`] returns, none ever changed.
//!
//! It writes with `write` on an append-only descriptor and does nothing else to
//! the file: no seek, no truncation, no positioned write. Which acts depend on
//! a record is the caller's to decide; this file tells whether one was written.
//! Lines are handed to the kernel, and forced to the disk where the policy says
//! so: otherwise they outlive postern, the last of them may not outlive a power
//! cut.
//!
//! The log lives within bounds of the policy: how large a file grows before it
//! is set aside, how many of those are kept and for how long at least, how much
//! all of them take. What a host repeats without effect is listed at a bounded
//! rate and counted beyond it. Nothing here has a timer: what is due is done
//! with the next record.
//!
//! Trust: the directory and the file are taken only if nobody but root and the
//! broker's account can write them. Callers: the broker's loop, one thread.

mod bounds;
mod end;
mod error;
mod files;
mod flood;
mod rotated;

use std::collections::VecDeque;
use std::time::Instant;

use nix::unistd::fdatasync;
use postern_core::audit::{Body, Chain, Confinement, Hash, Lost, Opening, Record, Run, Timestamp};
use postern_core::confine::filters::LogNeeds;
use postern_core::policy::{Audit, Fsync};

use bounds::Room;
pub use bounds::SPARE_BYTES;
use end::End;
pub use error::LogError;
use files::Place;
pub use files::{prepare_directory, tail_bytes_max};
pub use flood::{BURST_BYTES, BYTES_PER_SECOND, KINDS, OWN_PART};
use flood::{Flood, Kind, repeatable};
use rotated::Member;

/// Most records that wait while the log is held, or cannot be written.
pub const RING_RECORDS: usize = 1024;
/// Most bytes that waiting records take.
pub const RING_BYTES: usize = 1 << 20;
/// What of both is kept for what a host cannot repeat at will: one that repeats
/// a refused command can fill the ring, but the thaw still has its place in it.
const RESERVE_RECORDS: usize = 64;
const RESERVE_BYTES: usize = 256 << 10;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is in the file, with this `event.sequence`.
    Written(u64),
    /// The log is held: it waits in the ring, in its order.
    Waiting,
    /// It is one of too many: counted, and told of as `repeated` later.
    Counted,
}

/// An audit log.
#[derive(Debug)]
pub struct Log {
    audit: Audit,
    run: Run,
    /// Its directory, for good: the filter knows the descriptor.
    place: Option<Place>,
    end: Option<End>,
    held: bool,
    /// A reopening that was asked for while the log was held.
    reopen: bool,
    /// The `log-opened` record that the file still needs before any other.
    opening: Option<(Timestamp, Opening)>,
    ring: VecDeque<(Timestamp, Body)>,
    ring_bytes: usize,
    lost: Lost,
    /// How many files this run has begun or gone on in.
    files: u64,
    flood: Flood,
    /// What the log's files take together: counted then, added to since.
    taken: u64,
    counted: Option<Instant>,
    /// Opens are refused; and whether a refusal has been told of since.
    spent: bool,
    told_spent: bool,
    /// Rotated files to remove.
    surplus: Vec<Member>,
    /// Size at which to rotate next.
    rotate_at: u64,
    /// The file's name may not be on the disk yet.
    is_new: bool,
    /// Attempts in a row that failed: to write before an act, and otherwise.
    refused: u64,
    failed: u64,
    trouble: Option<LogError>,
}

impl Log {
    /// Opens the log as the policy says, continues its chain and writes
    /// `log-opened`.
    pub fn start(audit: &Audit, run: Run) -> Result<Self, LogError> {
        let mut log = Self::start_held(audit, run);
        log.begin()?;
        Ok(log)
    }

    /// Opens a log of [`Log::start_held`] that nothing has to be held back from.
    pub fn begin(&mut self) -> Result<(), LogError> {
        self.held = false;
        self.settle(false)?;
        self.sync(false)
    }

    /// Says what `log-opened` tells of the confinement, which depends on
    /// [`Log::needs`].
    pub fn tell_confinement(&mut self, confinement: Vec<Confinement>) {
        self.run.confinement = confinement;
    }

    /// A log that touches no file before [`Log::release`]: for a start that
    /// finds filesystems frozen, where opening a log can block for ever.
    #[must_use]
    pub fn start_held(audit: &Audit, run: Run) -> Self {
        // A directory that is not there is told of once the log is opened.
        let place = Place::open(&audit.log, run.uid).ok();
        Self {
            rotate_at: audit.rotate_bytes.unwrap_or(u64::MAX),
            audit: audit.clone(),
            run,
            place,
            end: None,
            held: true,
            reopen: false,
            opening: Some((Timestamp::now(), Opening::Started)),
            ring: VecDeque::new(),
            ring_bytes: 0,
            lost: Lost::default(),
            files: 0,
            flood: Flood::default(),
            taken: 0,
            counted: None,
            spent: false,
            told_spent: false,
            surplus: Vec::new(),
            is_new: true,
            refused: 0,
            failed: 0,
            trouble: None,
        }
    }

    /// What the filter must let this log do; none while its directory is not
    /// there.
    #[must_use]
    pub fn needs(&self) -> Option<LogNeeds> {
        Some(LogNeeds::new(&self.audit, self.place.as_ref()?.descriptor()))
    }

    /// Writes a record *before* its act. On an error the caller refuses the
    /// act, and either nothing of the record is kept and a later
    /// `records-lost` counts it, or it is in the file but maybe not on the disk.
    pub fn record(&mut self, record: &Record) -> Result<Receipt, LogError> {
        let (at, body) = (Timestamp::now(), Body::of(record));
        if self.held {
            return self.hold_back(at, body, RESERVE_RECORDS, RESERVE_BYTES);
        }
        let opens = matches!(record, Record::OpenAsked { .. } | Record::OpenGranted { .. });
        let room = if opens { Room::Opens } else { Room::Acts };
        let written = self.settle(false).and_then(|()| self.put(at, &body, room));
        // An open for which there is no room is counted by its refusal.
        if let Err(error) = &written
            && !(opens && matches!(error, LogError::Spent { .. }))
        {
            self.lost.unwritten += 1;
            self.lost.errno = error.errno();
        }
        let result = written.and_then(|number| self.sync(opens).map(|()| number));
        match &result {
            Ok(_) => (self.refused, self.failed) = (0, 0),
            Err(_) => self.refused = self.refused.saturating_add(1),
        }
        result.map(Receipt::Written)
    }

    /// Writes a record *after* something happened that no log could stop. On an
    /// error it waits in the ring and is written, in order, as soon as the log
    /// takes records again; the error is for the operator only.
    pub fn note(&mut self, record: &Record) -> Result<Receipt, LogError> {
        let (at, body) = (Timestamp::now(), Body::of(record));
        let kind = repeatable(record);
        if let Some(kind) = kind
            && !self.admits(kind, record, &body)
        {
            self.flood.count(record, at);
            return Ok(Receipt::Counted);
        }
        let (records, bytes) = if kind.is_some() { (RESERVE_RECORDS, RESERVE_BYTES) } else { (0, 0) };
        if self.held {
            return self.hold_back(at, body, records, bytes);
        }
        let last = matches!(record, Record::Stopped { .. });
        let written = self.settle(last).and_then(|()| self.put(at, &body, Room::All));
        let result = match written {
            Ok(number) => self.sync(false).map(|()| number),
            Err(error) => {
                self.count::<()>(&Err(&error));
                self.wait(at, body, records, bytes)?;
                return Err(error);
            }
        };
        self.count(&result.as_ref());
        result.map(Receipt::Written)
    }

    /// From now on records wait in memory. Call it before the first `FIFREEZE`.
    pub const fn hold(&mut self) {
        self.held = true;
    }

    /// Writes what waited, with the time at which it happened. Call it after
    /// the last `FITHAW`. On an error what is not yet written still waits.
    pub fn release(&mut self) -> Result<(), LogError> {
        self.held = false;
        let rotated = if std::mem::take(&mut self.reopen) { self.reopen() } else { Ok(()) };
        let settled = self.settle(false).and_then(|()| self.sync(false));
        self.count(&settled.as_ref());
        rotated.and(settled)
    }

    /// Number and hash of the last record in the file; `None` before the first.
    #[must_use]
    pub fn head(&self) -> Option<(u64, Hash)> {
        let chain = self.end.as_ref()?.chain;
        (chain.next > Chain::START.next).then(|| (chain.next - 1, chain.previous))
    }

    /// How many files have got their first record of this run: one more after
    /// each rotation.
    #[must_use]
    pub const fn files(&self) -> u64 {
        self.files
    }

    /// Whether records wait in memory.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held
    }

    /// How many attempts in a row failed: 1 is news for the operator.
    #[must_use]
    pub const fn failures(&self) -> u64 {
        self.refused.saturating_add(self.failed)
    }

    /// What went wrong beside the records, for the operator: once.
    pub const fn trouble(&mut self) -> Option<LogError> {
        self.trouble.take()
    }

    /// How many records wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ring.len()
    }

    /// Goes on in the file that now has the log's name, after a rotation, and
    /// counts the log's files. Waits if the log is held.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        if self.held {
            self.reopen = true;
            return Ok(());
        }
        let moved = self.move_on(Opening::Rotated);
        self.recount();
        moved?;
        self.settle(false)?;
        self.sync(false)
    }

    /// Opens the file by name and, if it is another one, continues there.
    fn move_on(&mut self, why: Opening) -> Result<(), LogError> {
        let (Some(place), Some(end)) = (&self.place, &mut self.end) else { return Ok(()) };
        let (file, facts) = place.append()?;
        if facts.same_file(&place.facts(&end.file)?) {
            return Ok(());
        }
        if facts.size > 0 {
            return Err(LogError::NotEmpty(self.audit.log.clone()));
        }
        if why == Opening::Removed {
            // What was torn is gone with the file; nobody could check it.
            end.forget_torn();
        } else if self.audit.fsync != Fsync::Never
            && let Err(errno) = fdatasync(&end.file)
        {
            // The next file's records are of no use without the last ones here.
            self.trouble = Some(LogError::Sync { path: self.audit.log.clone(), errno });
        }
        end.move_to(file);
        self.is_new = true;
        self.rotate_at = self.audit.rotate_bytes.unwrap_or(u64::MAX);
        self.opening = Some((Timestamp::now(), why));
        Ok(())
    }

    /// Writes everything that has to stand before the next record; before the
    /// `last` one also what would be told later.
    fn settle(&mut self, last: bool) -> Result<(), LogError> {
        if self.place.is_none() {
            self.place = Some(Place::open(&self.audit.log, self.run.uid)?);
        }
        let Some(place) = &self.place else { return Ok(()) };
        match &self.end {
            None => {
                self.end = Some(End::find(place)?);
                self.recount();
            }
            Some(end) if place.facts(&end.file)?.gone => self.move_on(Opening::Removed)?,
            Some(_) => {}
        }
        self.write_opening()?;
        while let Some((at, body)) = self.ring.pop_front() {
            if let Err(error) = self.put(at, &body, Room::All) {
                self.ring.push_front((at, body));
                return Err(error);
            }
            self.ring_bytes -= body.len();
        }
        if let Some(repeated) = self.flood.told() {
            let now = Instant::now();
            if last || (!self.spent && self.flood.has_room(Kind::Repeated, now)) {
                let body = Body::of(&repeated);
                self.put(Timestamp::now(), &body, Room::All)?;
                self.flood.pay(Kind::Repeated, now, body.len());
                self.flood.forget();
            }
        }
        if self.lost != Lost::default() {
            self.put(Timestamp::now(), &Body::of(&Record::RecordsLost(self.lost)), Room::All)?;
            self.lost = Lost::default();
        }
        self.remove_surplus()
    }

    fn put(&mut self, at: Timestamp, body: &Body, room: Room) -> Result<u64, LogError> {
        self.rotate_if_full();
        self.write_opening()?;
        self.write(at, body, room)
    }

    fn write_opening(&mut self) -> Result<(), LogError> {
        let Some((at, why)) = self.opening else { return Ok(()) };
        self.write(at, &Body::of(&Record::LogOpened { run: self.run.clone(), why }), Room::All)?;
        self.opening = None;
        self.files += 1;
        if let Some(end) = &mut self.end {
            end.used = false;
        }
        Ok(())
    }

    fn write(&mut self, at: Timestamp, body: &Body, room: Room) -> Result<u64, LogError> {
        if !self.has_room(body, room) && self.is_count_due() {
            self.recount();
        }
        if !self.has_room(body, room) {
            self.spent = true;
            return Err(self.no_room());
        }
        let end = self.end.as_mut().ok_or_else(|| LogError::NotAFile(self.audit.log.clone()))?;
        let before = end.size;
        let result = end.append(at, body);
        end.used = true;
        self.taken = self.taken.saturating_add(end.size - before);
        result.map_err(|errno| LogError::Write { path: self.audit.log.clone(), errno })
    }

    /// Waits for the disk where the policy says so.
    fn sync(&mut self, opens: bool) -> Result<(), LogError> {
        let due = match self.audit.fsync {
            Fsync::Never => false,
            Fsync::Open => opens,
            Fsync::Record => true,
        };
        let (Some(place), Some(end)) = (&self.place, self.end.as_ref().filter(|_| due)) else { return Ok(()) };
        let synced = fdatasync(&end.file).and_then(|()| if self.is_new { place.sync() } else { Ok(()) });
        synced.map_err(|errno| LogError::Sync { path: self.audit.log.clone(), errno })?;
        self.is_new = false;
        Ok(())
    }

    /// [`Log::wait`] while the log is held; a full ring is news once.
    fn hold_back(&mut self, at: Timestamp, body: Body, records: usize, bytes: usize) -> Result<Receipt, LogError> {
        let result = self.wait(at, body, records, bytes);
        self.count(&result.as_ref());
        result
    }

    /// Puts a record in the ring, if that leaves so much of it free.
    fn wait(&mut self, at: Timestamp, body: Body, records: usize, bytes: usize) -> Result<Receipt, LogError> {
        if self.ring.len() + records >= RING_RECORDS || self.ring_bytes + body.len() + bytes > RING_BYTES {
            self.lost.ring += 1;
            return Err(LogError::Full);
        }
        self.ring_bytes += body.len();
        self.ring.push_back((at, body));
        Ok(Receipt::Waiting)
    }

    const fn count<T>(&mut self, result: &Result<T, &LogError>) {
        self.failed = if result.is_ok() { 0 } else { self.failed.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests;
