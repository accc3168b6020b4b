//! Facts of the guest: reads what the catalogue's row of a fact names, and parses none
//! of it.
//!
//! Trust: paths are the catalogue's, and names in directories the kernel's or
//! root's. What stands in the files may be anything, and is only copied: a file no
//! further than [`FILE_MAX`], all of it no further than a bundle may be long.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat, readlinkat};
use nix::sys::stat::Mode as Permissions;
use nix::sys::uio::pwrite;
use nix::unistd::{ftruncate, read};
use postern_core::catalogue::facts::{Fact, MOUNTS, Part};
use postern_core::confine::filters::OPEN_FACT;
use postern_core::ipc::bundle::{Gathered, Kind};
use postern_core::sys::listing;

use crate::space;

/// Most bytes of one file: more than any of `/sys` has, and any other that a row
/// names; the utmp of 2,700 logins.
const FILE_MAX: usize = 1 << 20;

/// What was handed on.
#[derive(Debug)]
pub(crate) struct Told {
    /// So many bytes of the memory.
    pub(crate) length: u32,
    /// Something is there that could not be opened: by its permissions, or by a domain
    /// that is older than it.
    pub(crate) denied: bool,
}

/// What an opener holds to gather with, if its facts take it.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Where it puts what it gathers.
    pub(crate) memory: Option<OwnedFd>,
    /// The mount table.
    pub(crate) mounts: Option<OwnedFd>,
}

/// Gathers a fact into the memory.
///
/// # Errors
/// `EFBIG` for more than a bundle holds, what
/// pwrite(2) fails with, and `ENODEV` without memory.
pub(crate) fn tell(fact: Fact, held: &Held) -> Result<Told, Errno> {
    let parts = fact.parts();
    let memory = held.memory.as_ref().ok_or(Errno::ENODEV)?;
    let mut gatherer = Gatherer { mounts: held.mounts.as_ref(), ..Gatherer::default() };
    for part in parts {
        gatherer.gather(part)?;
    }
    let bytes = gatherer.gathered.bytes();
    ftruncate(memory, 0)?;
    let mut written = 0;
    while written < bytes.len() {
        written += pwrite(memory, &bytes[written..], i64::try_from(written).map_err(|_| Errno::EFBIG)?)?;
    }
    let length = u32::try_from(bytes.len()).map_err(|_| Errno::EFBIG)?;
    Ok(Told { length, denied: gatherer.denied })
}

#[derive(Debug, Default)]
struct Gatherer<'a> {
    mounts: Option<&'a OwnedFd>,
    gathered: Gathered,
    denied: bool,
}

impl Gatherer<'_> {
    fn gather(&mut self, part: &Part) -> Result<(), Errno> {
        match *part {
            Part::File { path, .. } => self.file(path.as_bytes()),
            Part::Space => {
                let table = space::table(self.mounts.ok_or(Errno::ENODEV)?)?;
                self.add(Kind::Content, MOUNTS.as_bytes(), &table)?;
                for (device, space) in space::measure(&table) {
                    self.add(Kind::Space, device.to_string().as_bytes(), space.as_bytes())?;
                }
                Ok(())
            }
            Part::Each { directory, prefix, files, links, lists, .. } => {
                for name in self.names(directory.as_bytes())? {
                    if !name.starts_with(prefix.as_bytes()) {
                        continue;
                    }
                    let entry = [directory.as_bytes(), &name].join(&b'/');
                    let beneath = |rest: &&str| match *rest {
                        "" => entry.clone(),
                        rest => [&entry, rest.as_bytes()].join(&b'/'),
                    };
                    files.iter().map(beneath).try_for_each(|path| self.file(&path))?;
                    links.iter().map(beneath).try_for_each(|path| self.link(&path))?;
                    lists.iter().map(beneath).try_for_each(|path| self.names(&path).map(drop))?;
                }
                Ok(())
            }
        }
    }

    /// Files and directories alike: the filter lets these flags pass and no others.
    fn open(&mut self, path: &[u8]) -> Option<OwnedFd> {
        let opened = openat(AT_FDCWD, OsStr::from_bytes(path), OPEN_FACT, Permissions::empty());
        self.denied |= opened.as_ref().err() == Some(&Errno::EACCES);
        opened.ok()
    }

    /// What stands in a file. One that cannot be read, as some of `/sys` where the
    /// device has no answer, is as one that is not there.
    fn file(&mut self, path: &[u8]) -> Result<(), Errno> {
        let Some(file) = self.open(path) else { return Ok(()) };
        let mut content = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match read(&file, &mut piece) {
                Ok(0) => break,
                Ok(count) if content.len() + count <= FILE_MAX => content.extend_from_slice(&piece[..count]),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
        self.add(Kind::Content, path, &content)
    }

    fn link(&mut self, path: &[u8]) -> Result<(), Errno> {
        match readlinkat(AT_FDCWD, OsStr::from_bytes(path)) {
            Ok(target) => self.add(Kind::Link, path, target.as_bytes()),
            Err(_) => Ok(()),
        }
    }

    fn names(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        let Some(directory) = self.open(path) else { return Ok(Vec::new()) };
        let Ok(names) = listing::names_once(directory.as_fd()) else { return Ok(Vec::new()) };
        let told: Vec<u8> = names.iter().flat_map(|name| name.to_bytes_with_nul()).copied().collect();
        self.add(Kind::Names, path, &told)?;
        Ok(names.into_iter().map(CString::into_bytes).collect())
    }

    fn add(&mut self, kind: Kind, path: &[u8], told: &[u8]) -> Result<(), Errno> {
        if self.gathered.add(kind, path, told) { Ok(()) } else { Err(Errno::EFBIG) }
    }
}

#[cfg(test)]
mod tests {
    use postern_core::ipc::bundle::Bundle;

    use super::*;

    #[test]
    fn what_is_there_is_gathered_and_the_rest_left_out() {
        let mut gatherer = Gatherer::default();
        for part in [
            Part::File { path: "/proc/version", reach: None },
            Part::File { path: "/proc/not-there", reach: None },
            Part::Each {
                directory: "/sys/devices/system/cpu",
                prefix: "cpu0",
                reach: "/sys/devices/system/cpu",
                files: &["topology/core_id", "not-there"],
                links: &["subsystem", ""],
                lists: &["topology"],
            },
        ] {
            gatherer.gather(&part).expect("room");
        }
        let bundle = Bundle::read(gatherer.gathered.bytes()).expect("a bundle");
        let cpu = "/sys/devices/system/cpu/cpu0";
        assert!(bundle.text("/proc/version").is_some_and(|text| text.starts_with("Linux")));
        assert_eq!(bundle.content("/proc/not-there"), None);
        assert_eq!(bundle.text(format!("{cpu}/topology/core_id")), Some("0"));
        assert_eq!(bundle.content(format!("{cpu}/not-there")), None);
        assert!(bundle.link(format!("{cpu}/subsystem")).is_some_and(|link| link.ends_with("cpu")));
        assert_eq!(bundle.link(cpu), None, "a directory is no link");
        assert!(bundle.names(format!("{cpu}/topology")).any(|name| name == "core_id"));
        assert!(bundle.names("/sys/devices/system/cpu").count() > 3);
        assert!(!gatherer.denied);
    }
}
