//! Numbers for file handles that no earlier run of postern gave out.
//!
//! The state directory holds the first number that no run has reserved yet. A
//! run reserves [`BLOCK`] numbers before it gives out the first of them, so
//! that opening a file writes nothing but once in a million.
//!
//! Trust: as `state`. Called by the broker's loop, on behalf of the worker;
//! never while filesystems are frozen (opening is not allowed then), for
//! reserving may wait for the thaw.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::remember::{Error, decimal};
use super::state;

/// Name of the file in the state directory.
pub const FILE: &str = "handles";

/// Where the stock agent starts too.
const FIRST: i64 = 1000;

/// Numbers reserved at once.
const BLOCK: i64 = 1_000_000;

/// The counter.
#[derive(Debug)]
pub struct Handles {
    dir: OwnedFd,
    next: i64,
    reserved: i64,
}

impl Handles {
    /// Takes the state directory and reads what was reserved. Only reads.
    /// Before confinement.
    pub fn new(dir: OwnedFd) -> Result<Self, Error> {
        let content = state::read(dir.as_fd(), FILE).map_err(|source| Error::Read { name: FILE, source })?;
        let next = match content {
            None => FIRST,
            Some(content) => parse(&content).ok_or(Error::Malformed { name: FILE, line: 1 })?,
        };
        Ok(Self { dir, next, reserved: next })
    }

    /// The state directory's number, for the filter.
    #[must_use]
    pub fn directory(&self) -> RawFd {
        self.dir.as_raw_fd()
    }

    /// A number that was never given before.
    ///
    /// # Errors
    /// The state directory cannot be written, or all numbers are used up.
    pub fn give(&mut self) -> std::io::Result<i64> {
        if self.next == self.reserved {
            let end = self.reserved.checked_add(BLOCK).ok_or(std::io::ErrorKind::QuotaExceeded)?;
            state::replace(self.dir.as_fd(), FILE, format!("{end}\n").as_bytes())?;
            self.reserved = end;
        }
        let handle = self.next;
        self.next += 1;
        Ok(handle)
    }
}

fn parse(content: &[u8]) -> Option<i64> {
    let number = i64::try_from(decimal(content.strip_suffix(b"\n")?)?).ok()?;
    (number >= FIRST).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(dir: &tempfile::TempDir) -> Result<Handles, Error> {
        Handles::new(OwnedFd::from(fs::File::open(dir.path()).unwrap()))
    }

    #[test]
    fn starts_at_1000_and_never_repeats_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut handles = open(&dir).unwrap();
        assert!(!dir.path().join(FILE).exists(), "the start only reads");
        assert_eq!([handles.give().unwrap(), handles.give().unwrap()], [1000, 1001]);
        drop(handles);
        let mut handles = open(&dir).unwrap();
        assert_eq!(handles.give().unwrap(), 1_001_000);
        handles.next = handles.reserved;
        assert_eq!(handles.give().unwrap(), 2_001_000);
        assert_eq!(open(&dir).unwrap().give().unwrap(), 3_001_000);
    }

    #[test]
    fn nothing_is_given_that_cannot_be_reserved() {
        let dir = tempfile::tempdir().unwrap();
        let mut handles = open(&dir).unwrap();
        fs::create_dir(dir.path().join("handles.new")).unwrap();
        assert!(handles.give().is_err());
        fs::remove_dir(dir.path().join("handles.new")).unwrap();
        assert_eq!(handles.give().unwrap(), 1000);
        handles.next = i64::MAX;
        handles.reserved = i64::MAX;
        assert!(handles.give().is_err());
    }

    #[test]
    fn a_malformed_counter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "1000", "999\n", "-1\n", "99999999999999999999\n", "1000\n\n", "x\n"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert!(matches!(open(&dir), Err(Error::Malformed { .. })), "{text:?}");
        }
    }
}
