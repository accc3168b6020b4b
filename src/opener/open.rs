//! One open: look, ask the rules about what is there, then open that object.
//!
//! Trust: `path` is the host's. Everything that is decided here is decided on
//! the object behind a descriptor, so nothing that happens to names in between
//! changes what is opened.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat, readlinkat};
use nix::sys::stat::{Mode as Permissions, SFlag};
use postern_core::confine::filters::{self, LOOK};
use postern_core::messages::{Barrier, Facts, WirePath};
use postern_core::policy::parts::OpenerPart;
use postern_core::policy::rules::{self, Mode, Types, Verdict};
use postern_core::sys::descriptors::{self, Stat};

/// How often an open starts over because the path changed under it.
const TRIES: usize = 8;

/// Why there is no descriptor.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For the host.
    pub(crate) errno: Errno,
    /// Who refused.
    pub(crate) by: Barrier,
    /// What the path led to, if the kernel resolved it.
    pub(crate) resolved: Option<PathBuf>,
}

impl Refusal {
    const fn kernel(errno: Errno) -> Self {
        Self { errno, by: Barrier::Kernel, resolved: None }
    }

    const fn opener(errno: Errno, resolved: PathBuf) -> Self {
        Self { errno, by: Barrier::Opener, resolved: Some(resolved) }
    }
}

/// An opened file.
#[derive(Debug)]
pub(crate) struct Opened {
    /// For the worker.
    pub(crate) file: OwnedFd,
    /// The same object, `O_PATH`: for the broker, which can ask how it stands and
    /// do nothing else with it.
    pub(crate) look: OwnedFd,
    /// What it is.
    pub(crate) facts: Facts,
}

/// The rules, and `/proc/self/fd`.
#[derive(Debug)]
pub(crate) struct Opener {
    part: OpenerPart,
    proc_self_fd: OwnedFd,
}

impl Opener {
    pub(crate) const fn new(part: OpenerPart, proc_self_fd: OwnedFd) -> Self {
        Self { part, proc_self_fd }
    }

    pub(crate) fn open(&self, path: &Path, mode: Mode) -> Result<Opened, Refusal> {
        for _ in 0..TRIES {
            match openat(AT_FDCWD, path, LOOK, Permissions::empty()) {
                Ok(object) => return self.open_existing(object, mode),
                Err(Errno::ENOENT) if mode.creates() => match self.create(path, mode) {
                    // Somebody made it in between, or a link dangles: look again.
                    Err(Refusal { errno: Errno::EEXIST, .. }) => {}
                    done => return done,
                },
                Err(errno) => return Err(Refusal::kernel(errno)),
            }
        }
        Err(Refusal::kernel(Errno::ELOOP))
    }

    fn open_existing(&self, look: OwnedFd, mode: Mode) -> Result<Opened, Refusal> {
        let path = self.resolved(&look)?;
        let stat = stat(&look)?;
        if stat.links == 0 {
            // Its name is gone since it was looked at, and with it its path.
            return Err(Refusal::kernel(Errno::ENOENT));
        }
        let rule = self.ask_rules(&path, mode, true)?;
        if let Err(errno) = self.ask_type(rule, stat.mode) {
            return Err(Refusal::opener(errno, path));
        }
        let number = look.as_raw_fd().to_string();
        let file = openat(&self.proc_self_fd, number.as_str(), filters::reopen_flags(mode), Permissions::empty())
            .map_err(|errno| Refusal { errno, by: Barrier::Kernel, resolved: Some(path.clone()) })?;
        let facts = Self::facts(&file, path, rule, false)?;
        Ok(Opened { file, look, facts })
    }

    fn create(&self, path: &Path, mode: Mode) -> Result<Opened, Refusal> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Refusal::kernel(Errno::EISDIR));
        };
        let directory = openat(AT_FDCWD, parent, LOOK, Permissions::empty()).map_err(Refusal::kernel)?;
        let resolved = self.resolved(&directory)?.join(name);
        let rule = self.ask_rules(&resolved, mode, false)?;
        if !self.part.rules[rule].types.contains(Types::REGULAR) {
            return Err(Refusal::opener(Errno::EACCES, resolved));
        }
        let permissions = Permissions::from_bits_truncate(self.part.create_mode);
        let file = openat(&directory, name, filters::create_flags(mode), permissions).map_err(|errno| Refusal {
            errno,
            by: Barrier::Kernel,
            resolved: Some(resolved.clone()),
        })?;
        // The directory may have been moved since: what counts is where the
        // file is now. One that was removed since is nowhere; the kernel's note
        // of that is no part of its name.
        let now = self.resolved(&file)?;
        let path = if stat(&file)?.links == 0 { resolved } else { now };
        let number = file.as_raw_fd().to_string();
        let look = openat(&self.proc_self_fd, number.as_str(), LOOK, Permissions::empty()).map_err(Refusal::kernel)?;
        let facts = Self::facts(&file, path, rule, true)?;
        Ok(Opened { file, look, facts })
    }

    /// The number of the rule that allows the resolved path.
    fn ask_rules(&self, path: &Path, mode: Mode, exists: bool) -> Result<usize, Refusal> {
        match rules::decide(&self.part.rules, path, mode) {
            Verdict::Allowed { rule, existing, missing } if (if exists { existing } else { missing }) => Ok(rule),
            // As the broker's decision: only Landlock refuses then.
            _ if cfg!(feature = "sabotage") => Ok(0),
            _ => Err(Refusal::opener(Errno::EACCES, path.to_owned())),
        }
    }

    fn ask_type(&self, rule: usize, st_mode: u32) -> Result<(), Errno> {
        match Types::of_mode(st_mode) {
            Some(kind) if self.part.rules[rule].types.contains(kind) => Ok(()),
            None if st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() => Err(Errno::EISDIR),
            _ => Err(Errno::EACCES),
        }
    }

    /// The path that the kernel has for a descriptor's object.
    fn resolved(&self, object: &OwnedFd) -> Result<PathBuf, Refusal> {
        let number = object.as_raw_fd().to_string();
        readlinkat(&self.proc_self_fd, number.as_str()).map(PathBuf::from).map_err(Refusal::kernel)
    }

    fn facts(file: &OwnedFd, path: PathBuf, rule: usize, created: bool) -> Result<Facts, Refusal> {
        let stat = stat(file)?;
        let Some(wire) = WirePath::from_path(&path) else {
            return Err(Refusal::opener(Errno::ENAMETOOLONG, path));
        };
        Ok(Facts {
            path: wire,
            device: stat.device,
            inode: stat.inode,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size: stat.size,
            links: stat.links,
            created,
            rule: u16::try_from(rule).unwrap_or(u16::MAX),
        })
    }
}

fn stat(object: &OwnedFd) -> Result<Stat, Refusal> {
    descriptors::stat(object.as_fd()).map_err(Refusal::kernel)
}
