//! Finds the policy's files and makes sure that nobody else could have written
//! them.
//!
//! Each directory from `/` on is opened in turn without following links and
//! judged by its descriptor; the file is opened beneath the last of them the
//! same way, judged, and then read from the same descriptor: what was checked is
//! what is read.
//!
//! Trust: none before the check. Called by `written::load`, and by `kept` with a
//! way of its own.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, makedev};

use super::mistake::{Kind, Place, Report};
use super::{Source, World};
use crate::sys::{descriptors, listing};

/// The installed policy.
pub const DEFAULT_PATH: &str = "/etc/postern/policy.toml";

/// Where drop-ins of the installed policy stand. A file of a later directory
/// masks one of the same name in an earlier one.
pub const DROP_IN_DIRECTORIES: [&str; 3] =
    ["/usr/lib/postern/policy.d", "/run/postern/policy.d", "/etc/postern/policy.d"];

/// Largest policy file, in bytes: thousands of rules. A bound, so that a wrong
/// path cannot fill the memory.
pub const MAX_SOURCE: u64 = 1 << 20;

/// How the policy's files are opened. A confined broker's filter has the same.
pub const OPEN_SOURCE: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Where a policy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Its main file: absolute, without `.` and `..`.
    pub main: PathBuf,
    /// Directories of its drop-ins, the strongest last.
    pub drop_ins: Vec<PathBuf>,
}

impl Places {
    /// Of the policy that is named so, or of the installed one.
    ///
    /// # Errors
    /// `path` is relative, and the working directory is gone.
    pub fn of(path: Option<&Path>) -> std::io::Result<Self> {
        let Some(path) = path else {
            return Ok(Self { main: DEFAULT_PATH.into(), drop_ins: DROP_IN_DIRECTORIES.map(PathBuf::from).into() });
        };
        let main = absolute(path)?;
        Ok(Self { drop_ins: vec![main.with_extension("d")], main })
    }

    /// The policy's own places, which no rule may reach.
    pub(super) fn own(&self) -> Vec<PathBuf> {
        std::iter::once(&self.main).chain(&self.drop_ins).cloned().collect()
    }
}

/// A directory of the policy, to open files in by name.
pub(super) enum Reached<'a> {
    Opened(OwnedFd),
    Kept(BorrowedFd<'a>),
}

impl AsFd for Reached<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Opened(directory) => directory.as_fd(),
            Self::Kept(directory) => *directory,
        }
    }
}

/// How a directory of the policy is reached, each step to it checked.
pub(super) trait Way {
    /// The directory itself.
    fn directory(&self, path: &Path, world: &World) -> Result<Reached<'_>, Refusal>;
    /// The names in it.
    fn names(&self, path: &Path, world: &World) -> Result<Vec<CString>, Refusal>;
}

/// From `/` on, as whoever starts postern or asks about a policy goes.
pub(super) struct Walk;

impl Way for Walk {
    fn directory(&self, path: &Path, world: &World) -> Result<Reached<'_>, Refusal> {
        walk(path, world).map(Reached::Opened)
    }

    fn names(&self, path: &Path, world: &World) -> Result<Vec<CString>, Refusal> {
        let directory = open_listed(path, world)?;
        listing::names(directory.as_fd()).map_err(|errno| failed(path, errno))
    }
}

/// Opens a directory so that it can be listed.
pub(super) fn open_listed(path: &Path, world: &World) -> Result<OwnedFd, Refusal> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(walk(path, world)?, ".", flags, Mode::empty()).map_err(|errno| failed(path, errno))
}

/// Reads the main file and its drop-ins into the report, main file first, then
/// drop-ins by name.
pub(super) fn find(places: &Places, way: &impl Way, world: &World, report: &mut Report) {
    read(&places.main, true, way, world, report);
    let mut drop_ins: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in &places.drop_ins {
        list(directory, &mut drop_ins, way, world, report);
    }
    for file in drop_ins.values() {
        read(file, false, way, world, report);
    }
}

/// `path` from `/` on, `.` and `..` worked out. A link before a `..` would make
/// this another place; the walk refuses links anyway.
fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    Ok(plain)
}

/// Adds a directory's drop-ins, masking those of the same name.
fn list(
    directory: &Path,
    drop_ins: &mut BTreeMap<OsString, PathBuf>,
    way: &impl Way,
    world: &World,
    report: &mut Report,
) {
    let names = match way.names(directory, world) {
        Ok(names) => names,
        Err(Refusal::Missing) => return,
        Err(refusal) => return refusal.report(directory, report),
    };
    for name in names {
        let name = OsString::from_vec(name.into_bytes());
        let file = directory.join(&name);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if file.extension() != Some(OsStr::new("toml")) {
            let what = format!("{} is not read: its name does not end in .toml", file.display());
            report.outside(Kind::IgnoredFile, true, file, what, "rename it or take it away");
            continue;
        }
        drop_ins.insert(name, file);
    }
    // A mask takes the place of what it hides and is then taken out itself.
    drop_ins.retain(|_, file| !is_mask(file));
}

/// Whether a file is a link to `/dev/null`. Asked by name again: only trusted
/// accounts could have changed it meanwhile. Nothing but `statx`, which is all
/// that a confined broker has for it.
fn is_mask(file: &Path) -> bool {
    // Its number, by the kernel's list of devices.
    let null = makedev(1, 3);
    let is_link = fs::symlink_metadata(file).is_ok_and(|link| link.is_symlink());
    is_link && fs::metadata(file).is_ok_and(|end| end.file_type().is_char_device() && end.rdev() == null)
}

/// Reads one file into the report's sources, or reports why not.
fn read(path: &Path, main: bool, way: &impl Way, world: &World, report: &mut Report) {
    let file = match open_trusted(path, way, world) {
        Ok(file) => file,
        Err(Refusal::Missing) if main => {
            let what = format!("there is no policy {}", path.display());
            let help = "install one (policy/policy.toml is a start) or name another with --policy";
            return report.outside(Kind::NoPolicy, false, path.to_path_buf(), what, help);
        }
        Err(refusal) => return refusal.report(path, report),
    };
    let mut bytes = Vec::new();
    if let Err(error) = file.take(MAX_SOURCE + 1).read_to_end(&mut bytes) {
        let what = format!("{} cannot be read: {error}", path.display());
        return report.outside(Kind::Unreadable, false, path.to_path_buf(), what, "make it readable");
    }
    if bytes.len() as u64 > MAX_SOURCE {
        let what = format!("{} is larger than 1 MiB", path.display());
        return report.outside(Kind::TooLarge, false, path.to_path_buf(), what, "name the policy file");
    }
    let (text, bad) = match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(at))
        }
    };
    report.sources.push(Source { path: path.to_path_buf(), text });
    if let Some(at) = bad {
        let index = report.sources.len() - 1;
        let place = Place::new(index, at..at + 1);
        report.error(Kind::NotUtf8, place, "this is not UTF-8", "save the file as UTF-8");
        // Only what went wrong is kept: the rest would be read as something else.
        report.sources[index].text.truncate(0);
        report.sources[index].text.push_str("version = 1\n");
    }
}

/// Why a file or directory is not used.
pub(super) enum Refusal {
    Missing,
    Other(Kind, String, String),
}

impl Refusal {
    fn report(self, path: &Path, report: &mut Report) {
        let (kind, what, help) = match self {
            Self::Missing => (
                Kind::DanglingLink,
                format!("{} leads nowhere", path.display()),
                "take it away, or link it to /dev/null to mask a file of that name".to_owned(),
            ),
            Self::Other(kind, what, help) => (kind, what, help),
        };
        report.outside(kind, false, path.to_path_buf(), what, help);
    }
}

pub(super) fn failed(path: &Path, errno: Errno) -> Refusal {
    let path = path.display();
    match errno {
        Errno::ENOENT => Refusal::Missing,
        Errno::ELOOP | Errno::ENOTDIR => Refusal::Other(
            Kind::NotRegular,
            format!("{path} is a symbolic link or no directory"),
            "name the file by its real path".to_owned(),
        ),
        errno => Refusal::Other(
            Kind::Unreadable,
            format!("{path} cannot be opened: {}", errno.desc()),
            "make it readable for whoever starts postern".to_owned(),
        ),
    }
}

/// Opens a policy file, its directories and itself checked.
fn open_trusted(path: &Path, way: &impl Way, world: &World) -> Result<File, Refusal> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let what = format!("{} is a directory", path.display());
        return Err(Refusal::Other(Kind::NotRegular, what, "name a file".to_owned()));
    };
    let directory = way.directory(parent, world)?;
    // Non-blocking, so that a FIFO is refused below and not waited for.
    let descriptor = openat(&directory, name, OPEN_SOURCE, Mode::empty()).map_err(|errno| {
        if errno != Errno::ELOOP {
            return failed(path, errno);
        }
        match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Refusal::Other(
                Kind::DanglingLink,
                format!("{} is a link that leads nowhere", path.display()),
                "take it away, or link it to /dev/null to mask a file of that name".to_owned(),
            ),
            _ => Refusal::Other(
                Kind::NotRegular,
                format!("{} is a symbolic link", path.display()),
                "copy the file here, or link to /dev/null to mask a file of that name".to_owned(),
            ),
        }
    })?;
    let stat = descriptors::stat(descriptor.as_fd()).map_err(|errno| failed(path, errno))?;
    if SFlag::from_bits_truncate(stat.mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
        let what = format!("{} is no regular file", path.display());
        return Err(Refusal::Other(Kind::NotRegular, what, "name a file".to_owned()));
    }
    judge(path, stat.uid, stat.mode, false, world)?;
    Ok(File::from(descriptor))
}

/// Opens a directory from `/` on, each step checked. A sticky directory that
/// others may write, such as `/tmp`, is fine on the way: they cannot replace an
/// entry there that is not theirs, and every entry is checked in its turn. It is
/// not fine at the end: others could put files beside the policy's.
fn walk(path: &Path, world: &World) -> Result<OwnedFd, Refusal> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut here = PathBuf::from("/");
    let mut descriptor = open(&here, flags, Mode::empty()).map_err(|errno| failed(&here, errno))?;
    loop {
        let stat = descriptors::stat(descriptor.as_fd()).map_err(|errno| failed(&here, errno))?;
        judge(&here, stat.uid, stat.mode, here != path, world)?;
        // `walk` gets absolute paths in plain form only, so this ends at `path`.
        let Some(name) = path.strip_prefix(&here).ok().and_then(|rest| rest.components().next()) else {
            return Ok(descriptor);
        };
        here.push(name);
        descriptor =
            openat(&descriptor, name.as_os_str(), flags, Mode::empty()).map_err(|errno| failed(&here, errno))?;
    }
}

/// Whether only trusted accounts can change what has this owner and mode.
pub(super) fn judge(path: &Path, uid: u32, mode: u32, sticky_is_fine: bool, world: &World) -> Result<(), Refusal> {
    if !world.here {
        return Ok(());
    }
    let what = path.display();
    if uid != 0 && uid != world.euid {
        let who = if world.euid == 0 { "root".to_owned() } else { format!("root or user {}", world.euid) };
        return Err(Refusal::Other(
            Kind::WrongOwner,
            format!("{what} belongs to user {uid}, who could change the policy"),
            format!("give it to {who}: chown {} {what}", world.euid),
        ));
    }
    // POSIX ACLs show here too: their mask stands in the group's bits.
    let others = mode & 0o022;
    if others != 0 && !(sticky_is_fine && mode & 0o1000 != 0) {
        return Err(Refusal::Other(
            Kind::OpenToOthers,
            format!("{what} can be written by others (mode {:04o})", mode & 0o7777),
            format!("take that away: chmod go-w {what}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_directory_masks_an_earlier_one() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let directories = ["usr", "run", "etc", "missing"].map(|name| root.join(name));
        for directory in &directories[..3] {
            fs::create_dir(directory).unwrap();
        }
        let [usr, run, etc, _] = &directories;
        for file in [usr.join("a.toml"), usr.join("b.toml"), usr.join("c.toml"), run.join("b.toml"), etc.join("c.toml")]
        {
            fs::write(file, "").unwrap();
        }
        std::os::unix::fs::symlink("/dev/null", run.join("c.toml")).unwrap();
        std::os::unix::fs::symlink("/dev/null", etc.join("a.toml")).unwrap();
        let mut report = Report::new();
        let mut drop_ins = BTreeMap::new();
        for directory in &directories {
            list(directory, &mut drop_ins, &Walk, &World::elsewhere(), &mut report);
        }
        let found: Vec<&PathBuf> = drop_ins.values().collect();
        assert_eq!(found, [&run.join("b.toml"), &etc.join("c.toml")]);
        assert!(!report.has_errors());
    }
}
