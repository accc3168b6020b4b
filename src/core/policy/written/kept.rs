//! Reading the policy again, from within the broker's confinement.
//!
//! The directories of its sources are opened at the start and kept: a file is
//! opened beneath the kept one, so a filter can name its descriptor, and Landlock
//! lets the broker read there and nowhere else. That the path still leads to that
//! directory, and that only trusted accounts could have changed that, is asked
//! anew each time, with `statx`. No account and no path of a rule is looked up.
//!
//! Trust: as `source`: none before the check. Called by the broker: once at its
//! start, before any barrier, and at each reload.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::mistake::{Kind, Report};
use super::source::{self, Places, Reached, Refusal, Way};
use super::{Loaded, PolicyError, World, finish};
use crate::policy::Narrowing;
use crate::sys::{descriptors, listing};

/// Where a policy came from, and what a start made of it: enough to read it again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its files.
    pub places: Places,
    /// Whose files are trusted, and which accounts there were.
    pub world: World,
    /// What the start took away.
    pub narrowing: Narrowing,
}

impl Origin {
    /// Of the policy that [`super::load`] finds for `path`. `world` is the one that
    /// it was loaded with.
    ///
    /// # Errors
    /// As [`Places::of`].
    pub fn new(path: Option<&Path>, world: World, narrowing: Narrowing) -> io::Result<Self> {
        Ok(Self { places: Places::of(path)?, world: World { confined: true, ..world }, narrowing })
    }
}

/// A policy's sources, held open.
#[derive(Debug)]
pub struct Kept {
    origin: Origin,
    directories: Vec<(PathBuf, OwnedFd)>,
}

impl Kept {
    /// Opens what is there of the directories. One that is not, or that may not be
    /// opened, is none of them, and a reload says so. A main file directly below
    /// `/`, as in `/etc`, has no directory of its own: everything else in it would
    /// be open to a fallen broker.
    #[must_use]
    pub fn open(origin: Origin) -> Self {
        let main = origin.places.main.parent().filter(|parent| parent.components().count() > 2);
        let wanted = main.into_iter().chain(origin.places.drop_ins.iter().map(PathBuf::as_path));
        let directories =
            wanted.filter_map(|path| Some((path.to_owned(), source::open_listed(path, &origin.world).ok()?))).collect();
        Self { origin, directories }
    }

    /// The directories, for filter and Landlock.
    pub fn directories(&self) -> impl Iterator<Item = (&Path, &OwnedFd)> {
        self.directories.iter().map(|(path, directory)| (path.as_path(), directory))
    }

    /// Reads the policy as it stands now, checks it, and narrows it as the start
    /// did.
    ///
    /// # Errors
    /// Every mistake of every file, at once.
    pub fn load(&self) -> Result<Loaded, PolicyError> {
        let Origin { places, world, narrowing } = &self.origin;
        let mut report = Report::new();
        source::find(places, self, world, &mut report);
        let mut loaded = finish(report, world, &places.own())?;
        if let Err(why) = narrowing.apply(&mut loaded.policy) {
            let mut report = Report::new();
            report.outside(
                Kind::CoversOwn,
                false,
                places.main.clone(),
                why,
                "change the rule, or what postern is started with",
            );
            let (mistakes, warnings) = report.sorted();
            return Err(PolicyError { mistakes, warnings, more: 0 });
        }
        Ok(loaded)
    }

    /// The kept directory, if `path` leads to it and to no other.
    fn reach(&self, path: &Path) -> Result<&OwnedFd, Refusal> {
        let mut steps: Vec<&Path> = path.ancestors().collect();
        steps.reverse();
        let mut end = None;
        for step in steps {
            let found = fs::symlink_metadata(step)
                .map_err(|why| source::failed(step, why.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
            if !found.is_dir() {
                return Err(source::failed(step, Errno::ENOTDIR));
            }
            source::judge(step, found.uid(), found.mode(), step != path, &self.origin.world)?;
            end = Some((found.dev(), found.ino()));
        }
        let restart = |what: &str| {
            let what = format!("{} {what}", path.display());
            Refusal::Other(Kind::Unreadable, what, "run: systemctl restart postern".to_owned())
        };
        let Some((_, kept)) = self.directories.iter().find(|(kept, _)| kept == path) else {
            return Err(restart("is no directory that postern could keep open when it started"));
        };
        let stat = descriptors::stat(kept.as_fd()).map_err(|errno| source::failed(path, errno))?;
        if end == Some((stat.device, stat.inode)) {
            Ok(kept)
        } else {
            Err(restart("is another directory than when postern started"))
        }
    }
}

impl Way for Kept {
    fn directory(&self, path: &Path, _world: &World) -> Result<Reached<'_>, Refusal> {
        Ok(Reached::Kept(self.reach(path)?.as_fd()))
    }

    fn names(&self, path: &Path, _world: &World) -> Result<Vec<CString>, Refusal> {
        listing::names(self.reach(path)?.as_fd()).map_err(|errno| source::failed(path, errno))
    }
}
