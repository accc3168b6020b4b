//! The host's open files: reading, writing and seeking descriptors that the
//! broker handed over, with the positions and the end-of-file of C's stdio.
//!
//! Trust: handles, counts and offsets are the host's. What a descriptor can do
//! was decided when it was opened.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek, read, write};
use postern_core::messages::Use;
use postern_core::policy::rules::Mode;

/// One open file.
#[derive(Debug)]
pub(crate) struct File {
    descriptor: OwnedFd,
    /// A read came to the end. Like stdio's flag it stays until a seek or a
    /// write, so that a host that reads until it sees it always ends.
    at_end: bool,
    used: Use,
}

/// Every open file by its handle.
#[derive(Debug, Default)]
pub(crate) struct Files(BTreeMap<i64, File>);

impl Files {
    pub(crate) fn insert(&mut self, handle: i64, descriptor: OwnedFd, mode: Mode) {
        if mode == Mode::Append {
            // Where stdio says that a file opened to append is.
            let _ = lseek(&descriptor, 0, Whence::SeekEnd);
        }
        let used = Use { read: 0, written: 0, calls: 0 };
        self.0.insert(handle, File { descriptor, at_end: false, used });
    }

    pub(crate) fn get(&mut self, handle: i64) -> Option<&mut File> {
        self.0.get_mut(&handle)
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Closes a file and says what was done with it.
    pub(crate) fn remove(&mut self, handle: i64) -> Option<Use> {
        self.0.remove(&handle).map(|file| file.used)
    }
}

impl File {
    /// Fills `buffer` as far as the file goes. The number is smaller than the
    /// buffer only at the end, or where a pipe or device has no more for now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < buffer.len() && !self.at_end {
            match read(&self.descriptor, &mut buffer[filled..]) {
                Ok(0) => self.at_end = true,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                // What was read is not lost; the next read meets the error.
                Err(_) if filled > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        self.used.read += filled as u64;
        Ok(filled)
    }

    /// Counts one call of the host, for the record of the close.
    pub(crate) const fn count_call(&mut self) {
        self.used.calls += 1;
    }

    /// Whether the last read came to the end.
    pub(crate) const fn at_end(&self) -> bool {
        self.at_end
    }

    /// Writes as much of `data` as the file takes; an error only if it takes
    /// nothing.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.at_end = false;
        let mut done = 0;
        while done < data.len() {
            match write(&self.descriptor, &data[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        self.used.written += done as u64;
        Ok(done)
    }

    /// Moves the position; returns the new one.
    pub(crate) fn seek(&mut self, offset: i64, whence: Whence) -> Result<i64, Errno> {
        let position = lseek(&self.descriptor, offset, whence)?;
        self.at_end = false;
        Ok(position)
    }
}
