//! The end of a log that is being written, over rotations: waits for the
//! kernel's word (inotify) and asks for nothing while nothing happens.
//!
//! The broker writes whole lines, and writes to a new file only after the old
//! one was renamed: when another file has the log's name, the old one is
//! complete. Its rest is read first.
//!
//! Trust: the bytes are anyone's; that a file has the log's name is the
//! directory's word.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use postern_core::audit::{MAX_LINE, sequence_of};

use super::lines;

/// A file that is read to its end, again and again.
pub(crate) struct Tail {
    path: PathBuf,
    notify: Inotify,
    file: BufReader<File>,
    /// What was read of the line at the end, which may still be growing.
    line: Vec<u8>,
    /// Whether `line` was given out.
    given: bool,
    /// Bytes of the file before `line` and those in it.
    read: u64,
    /// The number that the next record must have.
    expected: Option<u64>,
}

impl Tail {
    /// Opens a regular file from its beginning.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let notify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // The directory, for the file's name outlives the file. Before the
        // first read, so that nothing is missed between the two.
        let directory = path.parent().unwrap_or(Path::new("/"));
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        notify.add_watch(directory, events)?;
        let file = BufReader::new(File::open(&path)?);
        Ok(Self { path, notify, file, line: Vec::new(), given: false, read: 0, expected: None })
    }

    /// The next whole line, with its newline; `None` if there is none yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if std::mem::take(&mut self.given) {
            self.line.clear();
        }
        loop {
            if self.fill()? {
                return Ok(Some(self.give()));
            }
            let Some(next) = self.successor()? else { return Ok(None) };
            // Nothing is written to the old file any more, but something may
            // have been since its end was seen.
            if self.fill()? {
                return Ok(Some(self.give()));
            }
            let unfinished = !self.line.is_empty();
            self.file = BufReader::new(next);
            self.read = 0;
            if unfinished {
                self.line.push(b'\n');
                return Ok(Some(self.give()));
            }
        }
    }

    /// Waits until there may be more; an error of kind `BrokenPipe` if nobody
    /// reads `output` any more.
    pub(super) fn wait(&self, output: impl AsFd) -> io::Result<()> {
        let mut waits = [
            PollFd::new(self.notify.as_fd(), PollFlags::POLLIN),
            // Without asking for anything it tells of errors.
            PollFd::new(output.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut waits, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(()),
            other => other?,
        };
        if waits[1].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL)) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        loop {
            match self.notify.read_events() {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads on in the line; whether it is whole, or longer than any record.
    fn fill(&mut self) -> io::Result<bool> {
        let room = (MAX_LINE + 1).saturating_sub(self.line.len());
        let read = self.file.by_ref().take(room as u64).read_until(b'\n', &mut self.line)?;
        self.read += read as u64;
        Ok(self.line.ends_with(b"\n") || self.line.len() > MAX_LINE)
    }

    fn give(&mut self) -> &[u8] {
        self.given = true;
        if let Some(number) = sequence_of(&self.line) {
            if let Some(expected) = self.expected.filter(|expected| *expected < number) {
                // Nobody is left to tell if stderr is closed.
                _ = writeln!(
                    io::stderr(),
                    "records {expected} to {} are not shown: they were rotated away meanwhile",
                    number - 1
                );
            }
            self.expected = number.checked_add(1);
        }
        &self.line
    }

    /// The file that goes on where this one ends, once there is another of the
    /// log's name: usually that one, and after several rotations at once the
    /// oldest that was not read. This file again if it was emptied.
    fn successor(&mut self) -> io::Result<Option<File>> {
        let own = self.file.get_ref().metadata()?;
        let same = |other: &Metadata| (other.dev(), other.ino()) == (own.dev(), own.ino());
        // Between the rename and the new file there is none of this name.
        let Some(named) = open(&self.path)? else { return Ok(None) };
        if same(&named.metadata()?) {
            if own.len() >= self.read {
                return Ok(None);
            }
            return Ok(Some(named));
        }
        let rotated = self.expected.and_then(|expected| self.rotated(expected));
        let first = lines::first_number(&self.path);
        match rotated {
            // Fewer than in the new file, or that one has no record yet.
            Some((number, path)) if first.is_none_or(|first| number < first) => open(&path),
            _ => Ok(Some(named)),
        }
    }

    /// The rotated file that begins with the record `expected` or the next one
    /// that there is.
    fn rotated(&self, expected: u64) -> Option<(u64, PathBuf)> {
        let name = self.path.file_name()?.as_bytes();
        let is_ours = |other: &OsStr| other.as_bytes().strip_prefix(name).is_some_and(|rest| rest.starts_with(b"."));
        let entries = fs::read_dir(self.path.parent()?).ok()?.filter_map(Result::ok);
        let paths = entries.filter(|entry| is_ours(&entry.file_name())).map(|entry| entry.path());
        paths.filter_map(|path| Some((lines::first_number(&path)?, path))).filter(|(first, _)| *first >= expected).min()
    }
}

/// Opens a file to read it; `None` if there is none.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
