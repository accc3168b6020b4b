//! Would file permissions let an account do something with a path?
//!
//! Two answers: the permission bits, step by step, so that the operator learns
//! *where* it ends; and, where root asks, the kernel's own, which also knows
//! ACLs, read-only mounts and security modules.
//!
//! Trust: run by the operator; reads only. Called by `try_open`.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Gid, Uid, faccessat, getegid, geteuid, getgroups, setfsgid, setfsuid, setgroups};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

impl Subject {
    /// Whoever runs this.
    pub(super) fn current() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect(),
        }
    }
}

/// What is needed of an object, as one digit of its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Read = 4,
    Write = 2,
    /// Passing through a directory.
    Pass = 1,
    /// Making an entry in a directory: to pass, and to write.
    Add = 3,
}

impl Need {
    pub(super) const fn letters(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Write => "w",
            Self::Pass => "x",
            Self::Add => "wx",
        }
    }

    fn flags(self) -> AccessFlags {
        match self {
            Self::Read => AccessFlags::R_OK,
            Self::Write => AccessFlags::W_OK,
            Self::Pass => AccessFlags::X_OK,
            Self::Add => AccessFlags::W_OK | AccessFlags::X_OK,
        }
    }
}

/// Owner and mode of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Bits {
    /// Which digit of the mode counts for `who`: the first that fits, as in the
    /// kernel, even if a later one would give more.
    pub(super) fn class(self, who: &Subject) -> &'static str {
        if self.uid == who.uid {
            "owner"
        } else if self.gid == who.gid || who.groups.contains(&self.gid) {
            "group"
        } else {
            "others"
        }
    }

    /// Whether the mode gives `who` what is needed.
    pub(super) fn give(self, who: &Subject, need: Need) -> bool {
        let shift = match self.class(who) {
            "owner" => 6,
            "group" => 3,
            _ => 0,
        };
        (self.mode >> shift) & need as u32 == need as u32
    }
}

/// Where the bits end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) path: PathBuf,
    pub(super) bits: Bits,
    pub(super) need: Need,
}

/// Follows `path` through every link as the kernel does, and asks the bits of
/// each directory on the way and of the object at the end.
pub(super) fn by_bits(path: &Path, who: &Subject, need: Need) -> io::Result<Option<Obstacle>> {
    let mut rest: VecDeque<PathBuf> = parts(path);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    loop {
        let found = fs::symlink_metadata(&here)?;
        let bits = Bits { mode: found.mode(), uid: found.uid(), gid: found.gid() };
        if found.file_type().is_symlink() {
            links += 1;
            // The kernel's own limit.
            if links > 40 {
                return Err(io::Error::from_raw_os_error(nix::errno::Errno::ELOOP as i32));
            }
            let target = fs::read_link(&here)?;
            here.pop();
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                rest.push_front(part);
            }
        } else {
            let need = if rest.is_empty() { need } else { Need::Pass };
            if !bits.give(who, need) {
                return Ok(Some(Obstacle { path: here, bits, need }));
            }
        }
        match rest.pop_front() {
            Some(part) if part == Path::new("..") => drop(here.pop()),
            Some(part) => here.push(part),
            None => return Ok(None),
        }
    }
}

fn parts(path: &Path) -> VecDeque<PathBuf> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// Asks the kernel as `who`; `None` if only root could ask and this is not root.
pub(super) fn by_kernel(path: &Path, who: &Subject, need: Need) -> Option<Result<(), nix::errno::Errno>> {
    let ask = || faccessat(AT_FDCWD, path, need.flags(), AtFlags::AT_EACCESS);
    if !geteuid().is_root() {
        return (*who == Subject::current()).then(ask);
    }
    let before = getgroups().ok()?;
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).ok()?;
    // The file system ids count for this thread's access to files and for
    // nothing else; leaving uid 0 also takes root's power over permissions.
    let gid = setfsgid(Gid::from_raw(who.gid));
    let uid = setfsuid(Uid::from_raw(who.uid));
    let answer = ask();
    setfsuid(uid);
    setfsgid(gid);
    setgroups(&before).ok()?;
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject { uid: 990, gid: 990, groups: vec![4] }
    }

    #[test]
    fn the_first_fitting_class_decides() {
        let bits = |mode, uid, gid| Bits { mode, uid, gid };
        assert!(bits(0o400, 990, 0).give(&subject(), Need::Read));
        assert!(!bits(0o077, 990, 4).give(&subject(), Need::Read), "the owner is not helped by the group's bits");
        assert!(bits(0o040, 0, 4).give(&subject(), Need::Read));
        assert!(!bits(0o604, 0, 4).give(&subject(), Need::Read), "nor the group by the others'");
        assert!(bits(0o004, 0, 0).give(&subject(), Need::Read));
        assert!(!bits(0o004, 0, 0).give(&subject(), Need::Write));
        assert!(!bits(0o002, 0, 0).give(&subject(), Need::Add));
        assert!(bits(0o003, 0, 0).give(&subject(), Need::Add));
    }

    #[test]
    fn the_walk_goes_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/closed")).unwrap();
        fs::write(root.join("a/closed/file"), "").unwrap();
        std::os::unix::fs::symlink("a/../a/closed/file", root.join("link")).unwrap();
        let me = Subject { uid: fs::metadata(&root).unwrap().uid(), gid: u32::MAX - 2, groups: Vec::new() };
        assert_eq!(by_bits(&root.join("link"), &me, Need::Read).unwrap(), None);
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        fs::set_permissions(root.join("a/closed"), mode).unwrap();
        if geteuid().is_root() {
            let obstacle = by_bits(&root.join("link"), &me, Need::Read).unwrap().unwrap();
            assert_eq!((obstacle.path, obstacle.need), (root.join("a/closed"), Need::Pass));
        } else {
            // Without root, looking past a closed directory fails before the bits are asked.
            let end = by_bits(&root.join("link"), &me, Need::Read);
            assert!(end.is_err() || end.unwrap().is_some());
        }
    }
}
