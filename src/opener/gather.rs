//! Facts of the guest: reads what the catalogue's row of a fact names, and parses of it
//! no more than says where to read on.
//!
//! Nothing is kept from one request to the next but room: what is told is as it was
//! when it was asked for.
//!
//! Trust: paths are the catalogue's, and names in directories and links the kernel's or
//! root's. What stands in the files may be anything, and is only copied: a file no
//! further than [`FILE_MAX`], all of it no further than a bundle may be long.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat, readlinkat};
use nix::sys::stat::Mode as Permissions;
use nix::sys::uio::pwrite;
use nix::unistd::{ftruncate, read};
use postern_core::catalogue::facts::{Fact, Part};
use postern_core::confine::filters::OPEN_FACT;
use postern_core::ipc::bundle::{Gathered, Kind};
use postern_core::policy::telling::Telling;
use postern_core::sys::listing;

use crate::mounts::{self, Disk};

/// Most bytes of one file: more than any of `/sys` has, and any other that a row
/// names; the utmp of 2,700 logins.
const FILE_MAX: usize = 1 << 20;
/// Bytes that are read at once: one more than a file of `/sys` has at most, which its
/// one read so tells whole.
const PIECE: usize = 4097;

/// What was handed on.
#[derive(Debug)]
pub(crate) struct Told {
    /// So many bytes of the memory.
    pub(crate) length: u32,
    /// Something is there that could not be opened: by its permissions, or by a domain
    /// that is older than it.
    pub(crate) denied: bool,
}

/// What an opener gathers with, if its facts take it.
#[derive(Debug, Default)]
pub(crate) struct Gatherer {
    /// Where it puts what it gathers.
    memory: Option<OwnedFd>,
    /// Bytes there that may be of an earlier fact: an unknown number at first.
    stale: Option<usize>,
    /// The mount table.
    mounts: Option<OwnedFd>,
    /// The filesystems that the policy shows.
    telling: Telling,
    pub(crate) gathered: Gathered,
    pub(crate) denied: bool,
    /// Room for a file, for a directory's entries, and for the table.
    file: Vec<u8>,
    entries: Vec<u8>,
    table: Vec<u8>,
}

impl Gatherer {
    /// With the memory and the mount table that this opener has, and what it was told of
    /// the policy.
    pub(crate) fn new(memory: Option<OwnedFd>, mounts: Option<OwnedFd>, telling: Telling) -> Self {
        Self { memory, mounts, telling, ..Self::default() }
    }

    /// Gathers a fact into the memory.
    ///
    /// # Errors
    /// `EFBIG` for more than a bundle holds, what pwrite(2) fails with, and `ENODEV`
    /// without memory.
    pub(crate) fn tell(&mut self, fact: Fact) -> Result<Told, Errno> {
        self.gather(fact.parts(), fact == Fact::Mounts)?;
        self.hand_over()
    }

    /// Gathers these parts, for a redacted answer or another.
    pub(crate) fn gather(&mut self, parts: &[Part], redacted: bool) -> Result<(), Errno> {
        self.gathered.clear();
        self.denied = false;
        let mut disks = Vec::new();
        for part in parts {
            match *part {
                Part::File { path, .. } => self.file(AT_FDCWD, path.as_bytes(), path.as_bytes())?,
                Part::Each { directory, prefix, files, links, lists, .. } => {
                    self.each(directory, prefix, [files, links, lists])?;
                }
                Part::Mounts => disks = self.filesystems(redacted)?,
                Part::Chains => self.chains(std::mem::take(&mut disks))?,
                Part::Disks => self.disks()?,
            }
        }
        Ok(())
    }

    fn hand_over(&mut self) -> Result<Told, Errno> {
        let memory = self.memory.as_ref().ok_or(Errno::ENODEV)?;
        let bytes = self.gathered.bytes();
        let mut written = 0;
        while written < bytes.len() {
            written += pwrite(memory, &bytes[written..], i64::try_from(written).map_err(|_| Errno::EFBIG)?)?;
        }
        // Behind it stood what was told before, perhaps under another policy.
        if self.stale.is_none_or(|stale| stale > written) {
            ftruncate(memory, i64::try_from(written).map_err(|_| Errno::EFBIG)?)?;
        }
        self.stale = Some(written);
        let length = u32::try_from(written).map_err(|_| Errno::EFBIG)?;
        Ok(Told { length, denied: self.denied })
    }

    /// Adds the filesystems that are shown, and tells the devices that they are on.
    fn filesystems(&mut self, redacted: bool) -> Result<Vec<Disk>, Errno> {
        mounts::read(self.mounts.as_ref().ok_or(Errno::ENODEV)?, &mut self.table)?;
        let telling = &self.telling;
        // Of a table that is none there is no record, which who reads the bundle says.
        let Ok(shown) = mounts::shown(&self.table, |path| telling.shows_mount(redacted, path)) else {
            return Ok(Vec::new());
        };
        mounts::add(&mut self.gathered, &shown)?;
        Ok(shown.into_iter().map(|filesystem| filesystem.disk).collect())
    }

    fn each(&mut self, directory: &str, prefix: &str, beneath: [&[&str]; 3]) -> Result<(), Errno> {
        let Some((open, names)) = self.directory(directory)? else { return Ok(()) };
        let [files, links, lists] = beneath;
        let mut path = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if !name.starts_with(prefix.as_bytes()) {
                continue;
            }
            self.add(Kind::Entry, name, b"")?;
            for (kind, rest) in [(Kind::Content, files), (Kind::Link, links), (Kind::Names, lists)]
                .into_iter()
                .flat_map(|(kind, paths)| paths.iter().map(move |path| (kind, path)))
            {
                beneath_name(&mut path, name, rest);
                match kind {
                    Kind::Content => self.file(open.as_fd(), &path, rest.as_bytes())?,
                    Kind::Link => self.link(open.as_fd(), &path, rest.as_bytes())?,
                    _ => drop(self.names(open.as_fd(), &path, rest.as_bytes())?),
                }
            }
        }
        Ok(())
    }

    /// A directory and the names in it; that there is one is noted.
    pub(crate) fn directory(&mut self, path: &str) -> Result<Option<(OwnedFd, Vec<u8>)>, Errno> {
        let Some(directory) = self.open(AT_FDCWD, path.as_bytes()) else { return Ok(None) };
        let mut names = Vec::new();
        if listing::names_once(directory.as_fd(), &mut self.entries, &mut names).is_err() {
            return Ok(None);
        }
        self.add(Kind::Directory, path.as_bytes(), b"")?;
        Ok(Some((directory, names)))
    }

    /// Files and directories alike: the filter lets these flags pass and no others.
    fn open(&mut self, at: BorrowedFd<'_>, path: &[u8]) -> Option<OwnedFd> {
        let opened = openat(at, OsStr::from_bytes(path), OPEN_FACT, Permissions::empty());
        self.denied |= opened.as_ref().err() == Some(&Errno::EACCES);
        opened.ok()
    }

    /// What stands in a file. One that cannot be read, as some of `/sys` where the
    /// device has no answer, is as one that is not there.
    pub(crate) fn read(&mut self, at: BorrowedFd<'_>, path: &[u8]) -> Option<&[u8]> {
        let file = self.open(at, path)?;
        let mut filled = 0;
        loop {
            if self.file.len() < filled + PIECE {
                self.file.resize(filled + PIECE, 0);
            }
            let room = &mut self.file[filled..];
            let most = room.len();
            match read(&file, room) {
                Ok(count) if filled + count > FILE_MAX => return None,
                // As read(2) has it of files: there is no more.
                Ok(count) if count < most => return Some(&self.file[..filled + count]),
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Adds what stands in a file, under a name.
    pub(crate) fn file(&mut self, at: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<(), Errno> {
        let length = self.read(at, path).map(<[u8]>::len);
        let Some(length) = length else { return Ok(()) };
        room(self.gathered.add(Kind::Content, name, &self.file[..length]))
    }

    /// Adds where a link leads, under a name.
    pub(crate) fn link(&mut self, at: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<(), Errno> {
        match readlinkat(at, OsStr::from_bytes(path)) {
            Ok(target) => self.add(Kind::Link, name, target.as_bytes()),
            Err(_) => Ok(()),
        }
    }

    /// Adds the names in a directory, under a name, and tells them.
    pub(crate) fn names(&mut self, at: BorrowedFd<'_>, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        let Some(directory) = self.open(at, path) else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        if listing::names_once(directory.as_fd(), &mut self.entries, &mut names).is_err() {
            return Ok(Vec::new());
        }
        self.add(Kind::Names, name, &names)?;
        Ok(names)
    }

    pub(crate) fn add(&mut self, kind: Kind, path: &[u8], told: &[u8]) -> Result<(), Errno> {
        room(self.gathered.add(kind, path, told))
    }
}

/// Puts the path beneath a name together: the empty one is the name itself.
pub(crate) fn beneath_name(path: &mut Vec<u8>, name: &[u8], rest: &str) {
    path.clear();
    path.extend_from_slice(name);
    if !rest.is_empty() {
        path.push(b'/');
        path.extend_from_slice(rest.as_bytes());
    }
}

/// Whether there was room.
pub(crate) fn room(was: bool) -> Result<(), Errno> {
    if was { Ok(()) } else { Err(Errno::EFBIG) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::uio::pread;
    use postern_core::ipc::bundle::{Bundle, Entry};

    use super::*;

    #[test]
    fn what_is_there_is_gathered_and_the_rest_left_out() {
        let mut gatherer = Gatherer::default();
        let parts = [
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
        ];
        for _ in 0..2 {
            gatherer.gather(&parts, false).expect("room");
            let bundle = Bundle::read(gatherer.gathered.bytes()).expect("a bundle");
            assert!(bundle.text("/proc/version").is_some_and(|text| text.starts_with("Linux")));
            assert_eq!(bundle.content("/proc/not-there"), None);
            let cpus: Vec<Entry<'_>> = bundle.directory("/sys/devices/system/cpu").expect("there").collect();
            let [cpu] = cpus[..] else { panic!("{cpus:?}") };
            assert_eq!((cpu.name, cpu.text("topology/core_id")), (&b"cpu0"[..], Some("0")));
            assert_eq!(cpu.content("not-there"), None);
            assert!(cpu.link("subsystem").is_some_and(|link| link.ends_with("cpu")));
            assert_eq!(cpu.link(""), None, "a directory is no link");
            assert!(cpu.names("topology").any(|name| name == "core_id"));
            assert!(!gatherer.denied);
        }
    }

    #[test]
    fn files_of_any_length_are_read_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let mut gatherer = Gatherer::default();
        for (length, is_told) in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, FILE_MAX, FILE_MAX + 1]
            .map(|length| (length, length <= FILE_MAX))
        {
            let content: Vec<u8> = (0_u8..251).cycle().take(length).collect();
            std::fs::write(&path, &content).expect("a file");
            let told = gatherer.read(AT_FDCWD, path.as_os_str().as_bytes());
            assert_eq!(told.map(<[u8]>::len), is_told.then_some(length));
            assert!(told.is_none_or(|told| told == content), "{length}");
        }
        assert_eq!(gatherer.read(AT_FDCWD, directory.path().as_os_str().as_bytes()), None, "no file");
    }

    #[test]
    fn nothing_of_an_earlier_fact_stays_in_the_memory() {
        let memory = memfd_create(c"told", MFdFlags::MFD_CLOEXEC).expect("memory");
        pwrite(&memory, &[7; 9000], 0).expect("an earlier opener's");
        let copy = memory.try_clone().expect("a descriptor");
        let mut gatherer = Gatherer::new(Some(memory), None, Telling::default());
        for fact in [Fact::Vcpus, Fact::Disks, Fact::OsRelease, Fact::Vcpus, Fact::OsRelease] {
            let Ok(Told { length, .. }) = gatherer.tell(fact) else { panic!("{fact:?}") };
            let mut stands = vec![0; 1 << 17];
            let count = pread(&copy, &mut stands, 0).expect("a read");
            assert_eq!(&stands[..count], gatherer.gathered.bytes(), "{fact:?}");
            assert_eq!(usize::try_from(length), Ok(count));
        }
        assert!(matches!(Gatherer::default().tell(Fact::Vcpus), Err(Errno::ENODEV)));
        assert!(Path::new("/sys/devices/system/cpu").exists(), "else nothing was asked");
    }
}
