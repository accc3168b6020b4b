//! The memory in which gathered facts reach a worker: made at the start, written by
//! the opener, read by the worker.
//!
//! A worker has it to read only: what it sees there is what it asked for last. It
//! holds no executable bit, and who may write it may execute nothing.
//!
//! Trust: the opener writes what it read of the guest; nobody here looks at it.
//! Called by the launch.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};

/// Both ways to it.
#[derive(Debug)]
pub(crate) struct Memory {
    written: OwnedFd,
    read: OwnedFd,
}

impl Memory {
    /// Makes it, before the broker is confined: later it could open nothing anew.
    ///
    /// # Errors
    /// As `memfd_create(2)` and open(2).
    pub(crate) fn new() -> io::Result<Self> {
        let written = memfd_create(c"postern-facts", MFdFlags::MFD_CLOEXEC)?;
        fchmod(&written, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let itself = format!("/proc/self/fd/{}", written.as_raw_fd());
        let read = nix::fcntl::open(itself.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { written, read })
    }

    /// For an opener.
    pub(crate) fn written(&self) -> BorrowedFd<'_> {
        self.written.as_fd()
    }

    /// For a worker.
    pub(crate) fn read(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}
