//! Reading the mount table and reaching the filesystems in it.
//!
//! Under its Landlock domain the broker can open directories and nothing else,
//! so the table is opened before, and mountpoints that are files are passed
//! over for ones that are directories.
//!
//! Trust: a path in the table may lead elsewhere by the time it is opened, or be
//! covered by another mount. So the opened descriptor is asked which mount it is
//! on. Called by the engine's threads and a trim's; opening may block (a dead network
//! filesystem in the path).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::Mode;
use postern_core::confine::filters::OPEN_DIRECTORY;
use postern_core::mountinfo::{self, Device, Mount};
use postern_core::sys::fs::mount_id;

use super::mounts::Candidate;
use super::{Failure, Filesystem, Stacking, errno};

/// The mount table, and what was learned about it before confinement.
#[derive(Debug)]
pub struct MountTable {
    file: File,
    pub(super) stacking: Stacking,
}

impl MountTable {
    /// Opens the mount table of this process's namespace and learns from sysfs
    /// which filesystems lie in files of others. As root, before confinement.
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be opened or read.
    pub fn open() -> io::Result<Self> {
        let mut table = Self { file: File::open("/proc/self/mountinfo")?, stacking: Stacking::default() };
        let mounts = table.read()?;
        table.stacking = Stacking::learn(Path::new("/sys/block"), &mounts);
        Ok(table)
    }

    /// The mounts there are now. Reads by position, so no seek is needed.
    pub(super) fn read(&self) -> io::Result<Vec<Mount>> {
        let mut text = vec![0; 64 << 10];
        let mut filled = 0;
        loop {
            match self.file.read_at(&mut text[filled..], filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if filled == text.len() {
                text.resize(2 * filled, 0);
            }
        }
        mountinfo::parse(&text[..filled]).map_err(|_| Errno::EBADMSG.into())
    }

    pub(crate) fn read_or_fail(&self) -> Result<Vec<Mount>, Failure> {
        self.read().map_err(|error| Failure::Table { errno: errno(&error) })
    }
}

/// A filesystem that was reached.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) dir: OwnedFd,
    pub(crate) filesystem: Filesystem,
}

/// Opens the first of these mountpoints that really is on its mount. `None`: all
/// are covered by other mounts.
pub(crate) fn reach(device: Device, candidates: &[Candidate]) -> Result<Option<Reached>, Failure> {
    let mut failure = None;
    for Candidate { id, mountpoint } in candidates {
        let opened = open(mountpoint, OPEN_DIRECTORY, Mode::empty()).and_then(|dir| Ok((mount_id(dir.as_fd())?, dir)));
        match opened {
            Ok((found, dir)) if found == *id => {
                let filesystem = Filesystem { mount: *id, device, mountpoint: mountpoint.clone() };
                return Ok(Some(Reached { dir, filesystem }));
            }
            // Covered itself, or a directory on the way to it is.
            Ok(_) | Err(Errno::ENOENT) => {}
            // A mountpoint that is a file says nothing if another one speaks.
            Err(Errno::ENOTDIR) if failure.is_some() => {}
            Err(errno) => {
                let only_a_file = matches!(failure, None | Some(Failure::Open { errno: Errno::ENOTDIR, .. }));
                if only_a_file {
                    failure = Some(Failure::Open { mountpoint: mountpoint.clone(), errno });
                }
            }
        }
    }
    failure.map_or(Ok(None), Err)
}
