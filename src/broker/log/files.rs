//! Opening the log: its directory, the file relative to it, its last lines.
//!
//! Under the broker's filter every open here is one of [`OPEN_DIRECTORY`],
//! [`OPEN_LOG`] and [`OPEN_OWN`], every look an `fstat`.
//!
//! Trust: names come from the policy, objects are checked once they are open.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fdatasync, unlinkat};
use postern_core::audit::{Chain, MAX_LINE, Torn, sequence_of};
use postern_core::confine::filters::{OPEN_DIRECTORY, OPEN_LOG, OPEN_OWN};
use postern_core::sys::{descriptors, fs, listing};

use super::LogError;
use super::rotated::{self, Member};
use crate::background::leads_through_others;

/// Bits that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// How much of a line tells its number.
const NUMBER_BYTES: usize = 128;

/// How much of a log's end is read at most: the longest line that a crash can
/// have torn, the longest whole one before it, and their newlines.
#[must_use]
pub const fn tail_bytes_max() -> usize {
    2 * MAX_LINE + 2
}

/// What `fstat` says of an open file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    device: u64,
    inode: u64,
    pub(super) gone: bool,
    pub(super) size: u64,
}

impl Facts {
    pub(super) const fn same_file(&self, other: &Self) -> bool {
        self.device == other.device && self.inode == other.inode
    }
}

/// Where a log ends.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) chain: Chain,
    pub(super) torn: Torn,
    pub(super) mid_line: bool,
    /// Number of the file's first record; none where nothing is legible there.
    pub(super) first: Option<u64>,
}

/// A log's directory, open, and its name in there.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
    path: PathBuf,
    uid: u32,
}

impl Place {
    pub(super) fn open(path: &Path, uid: u32) -> Result<Self, LogError> {
        let (parent, name) = split(path)?;
        let directory = open(parent, OPEN_DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => LogError::NoDirectory { path: parent.to_owned(), uid },
            _ => LogError::Io { what: "open audit directory", path: parent.to_owned(), errno },
        })?;
        check_directory(&directory, parent, uid)?;
        Ok(Self { directory, name: name.to_owned(), path: path.to_owned(), uid })
    }

    /// The log, made if it is missing.
    pub(super) fn append(&self) -> Result<(File, Facts), LogError> {
        let file = openat(&self.directory, self.name.as_os_str(), OPEN_LOG, Mode::from_bits_truncate(0o600)).map_err(
            |errno| match errno {
                // A file that would be made is not there only if its directory is not.
                Errno::ENOENT => LogError::DirectoryGone { path: self.path.clone(), uid: self.uid },
                _ => not_opened(&self.path, "open audit log", errno),
            },
        )?;
        let file = File::from(file);
        let facts = self.facts(&file)?;
        self.check(&file, &self.path)?;
        Ok((file, facts))
    }

    pub(super) fn facts(&self, file: &File) -> Result<Facts, LogError> {
        let stat = descriptors::stat(file.as_fd()).map_err(|errno| self.io("look at", errno))?;
        Ok(Facts { device: stat.device, inode: stat.inode, gone: stat.links == 0, size: stat.size })
    }

    /// Where the chain of the file with these facts stands. An empty file, or
    /// one in which the first record was torn, continues the file that a
    /// rotation left beside it: `NAME.1`, or the youngest that we set aside.
    pub(super) fn tail(&self, facts: &Facts) -> Result<Tail, LogError> {
        let Some(log) = self.read(&self.name)? else { return Err(self.io("read", Errno::ENOENT)) };
        if !self.facts(&log)?.same_file(facts) {
            return Err(LogError::Unsafe {
                path: self.path.clone(),
                what: "was exchanged while it was opened".to_owned(),
            });
        }
        let rest = match end_of(&log, facts.size).map_err(|errno| self.io("read", errno))? {
            End::Record(tail) => {
                let mut start = [0; NUMBER_BYTES];
                let count = log.read_at(&mut start, 0).unwrap_or(0);
                return Ok(Tail { first: sequence_of(&start[..count]), ..tail });
            }
            End::Nothing => return Err(LogError::NoRecord(self.path.clone())),
            End::Torn(rest) => rest,
        };
        let mut tail = self.forerunner()?;
        tail.torn.add(&rest);
        tail.mid_line = rest.last().is_some_and(|&last| last != b'\n');
        Ok(tail)
    }

    fn forerunner(&self) -> Result<Tail, LogError> {
        let mut numbered = self.name.clone();
        numbered.push(".1");
        let youngest = self.members()?.into_iter().filter(|member| member.first.is_some());
        // Its own name again: what a compressor made of it cannot be continued.
        let youngest = youngest.max_by_key(|member| member.first).and_then(|member| member.first);
        let aside = youngest.map(|first| OsStr::from_bytes(rotated::name(&self.name, first).to_bytes()).to_owned());
        let mut last = Tail { chain: Chain::START, torn: Torn::default(), mid_line: false, first: None };
        for name in [Some(numbered), aside].into_iter().flatten() {
            let Some(file) = self.read(&name)? else { continue };
            let size = self.facts(&file)?.size;
            let end = end_of(&file, size).map_err(|errno| self.io("read the forerunner of", errno))?;
            if let End::Record(tail) = end
                && tail.chain.next > last.chain.next
            {
                last = tail;
            }
        }
        Ok(last)
    }

    /// The number of the directory's descriptor, for the filter.
    pub(super) fn descriptor(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    /// The log's files, the log among them.
    pub(super) fn members(&self) -> Result<Vec<Member>, LogError> {
        let names = listing::names(self.directory.as_fd()).map_err(|errno| self.io("list the files of", errno))?;
        let mut members = Vec::new();
        for name in names.into_iter().filter(|name| rotated::is_member(&self.name, name.to_bytes())) {
            match listing::entry(self.directory.as_fd(), &name) {
                Ok(entry) if entry.mode & fs::TYPE == SFlag::S_IFREG.bits() => members.push(Member {
                    first: rotated::first_of(&self.name, name.to_bytes()),
                    name,
                    size: entry.size,
                    written: entry.written,
                }),
                // Whoever rotates or compresses beside us took it away.
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(self.io("list the files of", errno)),
            }
        }
        Ok(members)
    }

    /// Whether the log's name still leads to this file.
    pub(super) fn is_current(&self, file: &File) -> Result<bool, LogError> {
        let facts = self.facts(file)?;
        match listing::entry(self.directory.as_fd(), &self.c_name()) {
            Ok(entry) => Ok((entry.device, entry.inode) == (facts.device, facts.inode)),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.io("look at", errno)),
        }
    }

    /// Gives what has the log's name the name for this first record; `false`
    /// where that is taken or nothing has the log's name.
    pub(super) fn set_aside(&self, first: u64) -> Result<bool, LogError> {
        let new = rotated::name(&self.name, first);
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(&self.directory, self.name.as_os_str(), &self.directory, new.as_c_str(), flags) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST | Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.io("rotate", errno)),
        }
    }

    /// Removes a rotated file.
    pub(super) fn remove(&self, member: &Member) -> Result<(), LogError> {
        match unlinkat(&self.directory, member.name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => {
                let path = self.path.with_file_name(OsStr::from_bytes(member.name.to_bytes()));
                Err(LogError::Io { what: "remove", path, errno })
            }
        }
    }

    /// Waits until the directory's names are on the disk.
    pub(super) fn sync(&self) -> Result<(), Errno> {
        fdatasync(&self.directory)
    }

    fn c_name(&self) -> CString {
        // A path of the policy holds no NUL.
        CString::new(self.name.as_bytes()).unwrap_or_default()
    }

    fn read(&self, name: &OsStr) -> Result<Option<File>, LogError> {
        let path = self.path.with_file_name(name);
        match openat(&self.directory, name, OPEN_OWN, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                self.check(&file, &path)?;
                Ok(Some(file))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(not_opened(&path, "read", errno)),
        }
    }

    /// Refuses a file that is not ours alone.
    fn check(&self, file: &File, path: &Path) -> Result<(), LogError> {
        let stat = descriptors::stat(file.as_fd()).map_err(|errno| self.io("look at", errno))?;
        let what = if SFlag::from_bits_truncate(stat.mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            "is not a regular file".to_owned()
        } else if stat.uid != self.uid && stat.uid != 0 {
            format!("belongs to uid {}; give it to uid {}", stat.uid, self.uid)
        } else if stat.mode & OTHERS_WRITE != 0 {
            "can be written by its group or by others; chmod it to 0600".to_owned()
        } else if stat.links > 1 {
            format!("has {} names; remove the other hard links", stat.links)
        } else {
            return Ok(());
        };
        Err(LogError::Unsafe { path: path.to_owned(), what })
    }

    fn io(&self, what: &'static str, errno: Errno) -> LogError {
        LogError::Io { what, path: self.path.clone(), errno }
    }
}

/// What a file ends in.
enum End {
    /// A whole line, and perhaps torn bytes behind it.
    Record(Tail),
    /// The file is short and has no whole line; these are all its bytes.
    Torn(Vec<u8>),
    /// No whole line within [`tail_bytes_max`].
    Nothing,
}

fn end_of(file: &File, size: u64) -> Result<End, Errno> {
    let start = size.saturating_sub(tail_bytes_max() as u64);
    let mut bytes = vec![0; usize::try_from(size - start).map_err(|_| Errno::EFBIG)?];
    file.read_exact_at(&mut bytes, start).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let mut end = bytes.len();
    while end > 0 {
        // The last line that is left, with its newline if it has one.
        let line_start = bytes[..end - 1].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let line = &bytes[line_start..end];
        // A line that began before what was read is whole only by accident.
        let begins_here = line_start > 0 || start == 0;
        if let Some(chain) = Chain::after(line.strip_suffix(b"\n").unwrap_or(line)).filter(|_| begins_here) {
            let mut torn = Torn::default();
            torn.add(&bytes[end..]);
            return Ok(End::Record(Tail { chain, torn, mid_line: bytes.last() != Some(&b'\n'), first: None }));
        }
        end = line_start;
    }
    Ok(if start == 0 { End::Torn(bytes) } else { End::Nothing })
}

fn split(path: &Path) -> Result<(&Path, &OsStr), LogError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.is_absolute() => Ok((parent, name)),
        _ => Err(LogError::NotAFile(path.to_owned())),
    }
}

fn check_directory(directory: impl AsFd, path: &Path, uid: u32) -> Result<(), LogError> {
    let stat = descriptors::stat(directory.as_fd()).map_err(io("look at", path))?;
    let what = if stat.uid != uid && stat.uid != 0 {
        format!("belongs to uid {}; give it to uid {uid}", stat.uid)
    } else if stat.mode & OTHERS_WRITE != 0 {
        "can be written by its group or by others; chmod it to 0700".to_owned()
    } else {
        return Ok(());
    };
    Err(LogError::Unsafe { path: path.to_owned(), what })
}

/// Makes the directory of the log at `log`, 0700 and owned by `uid:gid`, if it
/// is missing. For start-up, while still root: only the last component is made,
/// nothing that exists is changed, and nothing of another owner is accepted.
pub fn prepare_directory(log: &Path, uid: u32, gid: u32) -> Result<(), LogError> {
    let (path, _) = split(log)?;
    let (parent, name) = split(path)?;
    if leads_through_others(path) {
        let what = "is in a directory that another user can change; choose another place".to_owned();
        return Err(LogError::Unsafe { path: path.to_owned(), what });
    }
    let above = openat(AT_FDCWD, parent, OPEN_DIRECTORY, Mode::empty()).map_err(io("open", parent))?;
    let made = match mkdirat(&above, name, Mode::S_IRWXU) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(io("make audit directory", path)(errno)),
    };
    let directory =
        openat(&above, name, OPEN_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|errno| match errno {
            // O_DIRECTORY speaks first where both refuse.
            Errno::ENOTDIR | Errno::ELOOP => {
                LogError::Unsafe { path: path.to_owned(), what: "is a symbolic link or no directory".to_owned() }
            }
            _ => io("open audit directory", path)(errno),
        })?;
    if made {
        fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(io("give away", path))?;
    }
    let stat = descriptors::stat(directory.as_fd()).map_err(io("look at", path))?;
    if stat.uid != uid {
        let what = format!("belongs to uid {}; chown it to uid {uid}", stat.uid);
        return Err(LogError::Unsafe { path: path.to_owned(), what });
    }
    check_directory(&directory, path, uid)
}

fn io(what: &'static str, path: &Path) -> impl Fn(Errno) -> LogError {
    move |errno| LogError::Io { what, path: path.to_owned(), errno }
}

fn not_opened(path: &Path, what: &'static str, errno: Errno) -> LogError {
    let what = match errno {
        Errno::ELOOP => "is a symbolic link; put the log's true path in the policy",
        // What opening a named pipe or a socket for writing gives.
        Errno::ENXIO | Errno::EISDIR => "is not a regular file",
        _ => return LogError::Io { what, path: path.to_owned(), errno },
    };
    LogError::Unsafe { path: path.to_owned(), what: what.to_owned() }
}
