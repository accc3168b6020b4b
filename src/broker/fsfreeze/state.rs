//! Small files in the state directory, which tell a restarted broker what its
//! predecessor did: whole or not there at all, and never rewritten in place.
//!
//! The directory is held by descriptor. Writing opens with exactly
//! [`CREATE_STATE`]: the broker's filter permits no other open for writing here. Nothing is
//! synced: what matters is that the file outlives this process, and what
//! outlives this boot is not believed.
//!
//! Trust: the directory belongs to the broker's account and nobody else may
//! write to it (checked by whoever opens it). Called by `remember` and
//! `handles`. The directory may be on a frozen filesystem: reading never
//! waits for a thaw, writing and removing do.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use postern_core::confine::filters::{CREATE_STATE, OPEN_OWN};

/// No state file is longer; a longer one is not ours. 1 MiB, in bytes.
const MAX: u64 = 1 << 20;

/// The content of `name`, `None` if it is not there.
pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match openat(dir, name, OPEN_OWN, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than any state file"));
    }
    Ok(Some(content))
}

/// Makes `content` the content of `name`, at once.
pub(super) fn replace(dir: BorrowedFd<'_>, name: &str, content: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    remove(dir, &new)?;
    let mut file = File::from(openat(dir, new.as_str(), CREATE_STATE, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(content)?;
    renameat(dir, new.as_str(), dir, name)?;
    Ok(())
}

/// Removes `name` if it is there.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
