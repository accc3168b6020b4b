//! The audit log's writer: one line per record, each in the file before
//! [`Log::record`] returns, none ever changed.
//!
//! It writes with `write` on an append-only descriptor and does nothing else to
//! the file: no seek, no truncation, no positioned write. Which acts depend on
//! a record is the caller's to decide; this file tells whether one was written.
//! Lines are handed to the kernel, not forced to the disk: they outlive postern,
//! the last of them may not outlive a power cut.
//!
//! Trust: the directory and the file are taken only if nobody but root and the
//! broker's account can write them. Callers: the broker's loop, one thread.

mod files;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use postern_core::audit::{Body, Chain, Hash, Lost, Opening, Record, Run, Timestamp, Torn};

use files::{Place, Tail};
pub use files::{prepare_directory, tail_bytes_max};

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
}

/// Why there is no record. The texts are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log's directory is missing.
    #[error("audit directory {path} is not there; make it with: install -d -m 0700 -o {uid} {path}", path = path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// Who has to own it.
        uid: u32,
    },
    /// The path names no file in a directory.
    #[error("'{path}' cannot be an audit log; write an absolute path to a file", path = .0.display())]
    NotAFile(PathBuf),
    /// Somebody else could write the log or lead it elsewhere.
    #[error("{path} cannot be trusted with the audit log: it {what}", path = path.display())]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// Opening, making or reading failed.
    #[error("cannot {what} {path}: {text}", path = path.display(), text = errno.desc())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        errno: Errno,
    },
    /// There is no whole record near the end of the file.
    #[error("{path} does not end in audit records; it is evidence: move it away and start again", path = .0.display())]
    NoRecord(PathBuf),
    /// After a rotation the new file already holds something.
    #[error("{path} is not empty after its rotation; records still go to the old file", path = .0.display())]
    NotEmpty(PathBuf),
    /// A record could not be written.
    #[error("cannot write {path}: {text}", path = path.display(), text = errno.desc())]
    Write {
        /// The log.
        path: PathBuf,
        /// The kernel's error.
        errno: Errno,
    },
    /// The ring of waiting records is full.
    #[error("too many audit records wait for the log")]
    Full,
}

impl LogError {
    /// The kernel's error, if there was one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { errno, .. } | Self::Write { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// An audit log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    run: Run,
    open: Option<Open>,
    held: bool,
    /// A reopening that was asked for while the log was held.
    reopen: bool,
    /// The `log-opened` record that the file still needs before any other.
    opening: Option<(Timestamp, Opening)>,
    ring: VecDeque<(Timestamp, Body)>,
    ring_bytes: usize,
    lost: Lost,
    failures: u64,
    /// How many files this run has begun or gone on in.
    files: u64,
}

/// The file as it stands.
#[derive(Debug)]
struct Open {
    place: Place,
    file: File,
    chain: Chain,
    /// Bytes behind the last whole line that are none.
    torn: Torn,
    /// Whether the file's last byte is something else than a newline.
    mid_line: bool,
}

impl Log {
    /// Opens the log, continues its chain and writes `log-opened`.
    pub fn open(path: &Path, run: Run) -> Result<Self, LogError> {
        let mut log = Self::deferred(path, run);
        log.held = false;
        log.settle()?;
        Ok(log)
    }

    /// A log that touches no file before [`Log::release`]: for a start that
    /// finds filesystems frozen, where opening a log can block for ever.
    #[must_use]
    pub fn deferred(path: &Path, run: Run) -> Self {
        Self {
            path: path.to_owned(),
            run,
            open: None,
            held: true,
            reopen: false,
            opening: Some((Timestamp::now(), Opening::Started)),
            ring: VecDeque::new(),
            ring_bytes: 0,
            lost: Lost::default(),
            failures: 0,
            files: 0,
        }
    }

    /// Writes a record *before* its act. On an error nothing of it is kept: the
    /// caller refuses the act, and a later `records-lost` counts it.
    pub fn record(&mut self, record: &Record) -> Result<Receipt, LogError> {
        let (at, body) = (Timestamp::now(), Body::of(record));
        if self.held {
            return self.hold_back(at, body, RESERVE_RECORDS, RESERVE_BYTES);
        }
        let result = self.settle().and_then(|()| self.write(at, &body));
        self.count(&result);
        if let Err(error) = &result {
            self.lost.unwritten += 1;
            self.lost.errno = error.errno();
        }
        result.map(Receipt::Written)
    }

    /// Writes a record *after* something happened that no log could stop. On an
    /// error it waits in the ring and is written, in order, as soon as the log
    /// takes records again; the error is for the operator only.
    pub fn note(&mut self, record: &Record) -> Result<Receipt, LogError> {
        let (at, body) = (Timestamp::now(), Body::of(record));
        let (records, bytes) = if is_repeatable(record) { (RESERVE_RECORDS, RESERVE_BYTES) } else { (0, 0) };
        if self.held {
            return self.hold_back(at, body, records, bytes);
        }
        let result = self.settle().and_then(|()| self.write(at, &body));
        self.count(&result);
        if result.is_err() {
            self.wait(at, body, records, bytes)?;
        }
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
        let settled = self.settle();
        self.count(&settled);
        rotated.and(settled)
    }

    /// Number and hash of the last record in the file; `None` before the first.
    #[must_use]
    pub fn head(&self) -> Option<(u64, Hash)> {
        let chain = self.open.as_ref()?.chain;
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
        self.failures
    }

    /// How many records wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.ring.len()
    }

    /// Goes on in the file that now has the log's name, after a rotation. Does
    /// nothing if that is still the same file; waits if the log is held.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        if self.held {
            self.reopen = true;
            return Ok(());
        }
        self.move_on(Opening::Rotated)?;
        self.settle()
    }

    /// Opens the file by name and, if it is another one, continues there.
    fn move_on(&mut self, why: Opening) -> Result<(), LogError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let (file, facts) = open.place.append()?;
        if facts.same_file(&open.place.facts(&open.file)?) {
            return Ok(());
        }
        if facts.size > 0 {
            return Err(LogError::NotEmpty(self.path.clone()));
        }
        open.file = file;
        open.mid_line = false;
        if why == Opening::Removed {
            // What was torn is gone with the file; nobody could check it.
            open.torn = Torn::default();
        }
        self.opening = Some((Timestamp::now(), why));
        Ok(())
    }

    /// Writes everything that has to stand before the next record.
    fn settle(&mut self) -> Result<(), LogError> {
        match &self.open {
            None => self.open = Some(Open::new(&self.path, self.run.uid)?),
            Some(open) if open.place.facts(&open.file)?.gone => self.move_on(Opening::Removed)?,
            Some(_) => {}
        }
        if let Some((at, why)) = self.opening {
            self.write(at, &Body::of(&Record::LogOpened { run: self.run.clone(), why }))?;
            self.opening = None;
            self.files += 1;
        }
        while let Some((at, body)) = self.ring.pop_front() {
            if let Err(error) = self.write(at, &body) {
                self.ring.push_front((at, body));
                return Err(error);
            }
            self.ring_bytes -= body.len();
        }
        if self.lost != Lost::default() {
            self.write(Timestamp::now(), &Body::of(&Record::RecordsLost(self.lost)))?;
            self.lost = Lost::default();
        }
        Ok(())
    }

    fn write(&mut self, at: Timestamp, body: &Body) -> Result<u64, LogError> {
        let open = self.open.as_mut().ok_or_else(|| LogError::NotAFile(self.path.clone()))?;
        open.append(at, body).map_err(|errno| LogError::Write { path: self.path.clone(), errno })
    }

    /// [`Log::wait`] while the log is held; a full ring is news once.
    fn hold_back(&mut self, at: Timestamp, body: Body, records: usize, bytes: usize) -> Result<Receipt, LogError> {
        let result = self.wait(at, body, records, bytes);
        self.count(&result);
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

    const fn count<T>(&mut self, result: &Result<T, LogError>) {
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
    }
}

/// Whether a host, or a worker that has fallen, can cause such records without
/// end.
const fn is_repeatable(record: &Record) -> bool {
    matches!(
        record,
        Record::CommandRefused { .. }
            | Record::OpenRefused { .. }
            | Record::ShutdownRefused { .. }
            | Record::Counted { .. }
            | Record::HostConnected { .. }
            | Record::HostDisconnected { .. }
            | Record::HostRefused { .. }
    )
}

impl Open {
    fn new(path: &Path, uid: u32) -> Result<Self, LogError> {
        let place = Place::open(path, uid)?;
        let (file, facts) = place.append()?;
        let Tail { chain, torn, mid_line } = place.tail(&facts)?;
        Ok(Self { place, file, chain, torn, mid_line })
    }

    /// Appends one line, and first the newline that the file lacks. Returns the
    /// record's number.
    fn append(&mut self, at: Timestamp, body: &Body) -> Result<u64, Errno> {
        let mut torn = self.torn.clone();
        let torn_before = torn.bytes() > 0;
        let mut out = Vec::new();
        if self.mid_line {
            out.push(b'\n');
            if torn_before {
                torn.add(b"\n");
            }
        }
        let line = self.chain.seal(at, body, Some(&torn));
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');

        let (written, error) = self.write_all(&out);
        // A line that lacks nothing but its newline is in the file: the next
        // write, or the next start, adds it.
        if written + 1 >= out.len() {
            let number = self.chain.next;
            self.chain.advance(line.as_bytes());
            self.torn = Torn::default();
            self.mid_line = written < out.len();
            return Ok(number);
        }
        // The newline behind a whole line belongs to that line.
        let closing = usize::from(self.mid_line && !torn_before);
        self.torn.add(out[..written].get(closing..).unwrap_or_default());
        if written > 0 {
            self.mid_line = out[written - 1] != b'\n';
        }
        Err(error)
    }

    /// Writes as much as the kernel takes: all in one call, but on a full disk.
    fn write_all(&self, bytes: &[u8]) -> (usize, Errno) {
        let mut written = 0;
        while written < bytes.len() {
            match (&self.file).write(&bytes[written..]) {
                Ok(0) => return (written, Errno::ENOSPC),
                Ok(count) => written += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Errno::from_raw(error.raw_os_error().unwrap_or(0))),
            }
        }
        (written, Errno::UnknownErrno)
    }
}
