//! The end of the open file: where the chain stands, and how a line goes behind
//! it whole.
//!
//! Trust: the file was checked when it was opened; it is open to append only.
//! Caller: the log.

use std::fs::File;
use std::io::Write as _;

use nix::errno::Errno;
use postern_core::audit::{Body, Chain, Timestamp, Torn};

use super::LogError;
use super::files::{Place, Tail};

/// The file as it stands.
#[derive(Debug)]
pub(super) struct End {
    pub(super) file: File,
    pub(super) chain: Chain,
    /// Bytes behind the last whole line that are none.
    torn: Torn,
    /// Whether the file's last byte is something else than a newline.
    mid_line: bool,
    /// In bytes.
    pub(super) size: u64,
    /// Number of its first record.
    pub(super) first: u64,
    /// Whether this run has written anything behind its `log-opened`.
    pub(super) used: bool,
}

impl End {
    /// Opens the log and finds its end.
    pub(super) fn find(place: &Place) -> Result<Self, LogError> {
        let (file, facts) = place.append()?;
        let Tail { chain, torn, mid_line, first } = place.tail(&facts)?;
        let first = first.unwrap_or(chain.next);
        Ok(Self { file, chain, torn, mid_line, size: facts.size, first, used: false })
    }

    /// Goes on in another file, which is empty.
    pub(super) fn move_to(&mut self, file: File) {
        self.file = file;
        self.mid_line = false;
        self.size = 0;
        self.first = self.chain.next;
        self.used = false;
    }

    /// Forgets torn bytes that are gone with their file.
    pub(super) fn forget_torn(&mut self) {
        self.torn = Torn::default();
    }

    /// Appends one line, and first the newline that the file lacks. Returns the
    /// record's number.
    pub(super) fn append(&mut self, at: Timestamp, body: &Body) -> Result<u64, Errno> {
        let mut torn = self.torn.clone();
        let torn_before = torn.bytes() > 0;
        if self.mid_line && torn_before {
            torn.add(b"\n");
        }
        let mut out = self.chain.seal(at, body, Some(&torn)).into_bytes();
        let ahead = usize::from(self.mid_line);
        out.splice(..0, std::iter::repeat_n(b'\n', ahead));
        out.push(b'\n');

        let (written, error) = self.write_all(&out);
        self.size += written as u64;
        // A line that lacks nothing but its newline is in the file: the next
        // write, or the next start, adds it.
        if written + 1 >= out.len() {
            let number = self.chain.next;
            self.chain.advance(&out[ahead..out.len() - 1]);
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
