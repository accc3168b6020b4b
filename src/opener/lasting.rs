//! What shows that a file of the guest's is another one than before, or says something
//! else: descriptors that can only be looked at (`O_PATH`), and when the kernel last
//! saw a change of them.
//!
//! One is of the name, which is a link or the file itself, the other of what the name
//! leads to. A name that is taken from its object, or given to another one, changes
//! that object's number of names and the time; so does whoever writes to it.
//!
//! Trust: paths are the catalogue's. What is handed on can be neither read nor listed.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use postern_core::catalogue::facts::{Fact, Part};
use postern_core::confine::filters::{LOOK, LOOK_AT_NAME};
use postern_core::messages::Stamp;

/// Both, each with its stamp.
#[derive(Debug)]
pub(crate) struct Looks {
    pub(crate) name: (OwnedFd, Stamp),
    pub(crate) object: (OwnedFd, Stamp),
}

impl Looks {
    /// Of what a fact is gathered from, if it is one that lasts and anything is there:
    /// the first part that is. To be called before it is gathered, so that no change
    /// is missed.
    pub(crate) fn of(fact: Fact) -> Option<Self> {
        fact.lasts()?;
        let paths = fact.parts().iter().filter_map(|part| match *part {
            Part::File { path, .. } => Some(path),
            Part::Each { directory, .. } => Some(directory),
            Part::Mounts | Part::Chains | Part::Disks => None,
        });
        let (path, name) = paths.into_iter().find_map(|path| Some((path, look(path, LOOK_AT_NAME).ok()?)))?;
        Some(Self { name, object: look(path, LOOK).ok()? })
    }
}

fn look(path: &str, flags: OFlag) -> Result<(OwnedFd, Stamp), Errno> {
    let look = openat(AT_FDCWD, path, flags, Mode::empty())?;
    let stamp = Stamp::of(look.as_fd())?;
    Ok((look, stamp))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_lasts_is_looked_at_as_link_and_as_file() {
        assert!(Looks::of(Fact::Disks).is_none() && Looks::of(Fact::Load).is_none(), "these do not last");
        if let Some(looks) = Looks::of(Fact::OsRelease) {
            let release = fs::metadata("/etc/os-release").or_else(|_| fs::metadata("/usr/lib/os-release"));
            assert!(release.is_ok());
            let mut byte = [0];
            for (look, stamp) in [looks.name, looks.object] {
                assert_eq!(Stamp::of(look.as_fd()), Ok(stamp), "nothing has changed");
                assert_eq!(nix::unistd::read(&look, &mut byte), Err(Errno::EBADF), "it is for looking only");
            }
        }
    }

    #[test]
    fn every_change_shows() {
        let directory = tempfile::tempdir().expect("a directory");
        let [file, link, other] = ["file", "link", "other"].map(|name| directory.path().join(name));
        fs::write(&file, "one").expect("a file");
        symlink(&file, &link).expect("a link");
        let path = link.to_str().expect("a name");
        let shows = |change: &dyn Fn()| {
            let looks = [LOOK_AT_NAME, LOOK].map(|flags| look(path, flags).expect("it is there"));
            assert!(looks.iter().all(|(look, stamp)| Stamp::of(look.as_fd()) == Ok(stamp.clone())));
            // Longer than any tick by which the kernel stamps.
            std::thread::sleep(std::time::Duration::from_millis(50));
            change();
            looks.map(|(look, stamp)| Stamp::of(look.as_fd()) != Ok(stamp))
        };
        assert_eq!(shows(&|| fs::write(&file, "two").expect("written in place")), [false, true]);
        assert_eq!(
            shows(&|| {
                fs::write(&other, "three").expect("a file");
                fs::rename(&other, &file).expect("another one under its name");
            }),
            [false, true]
        );
        assert_eq!(
            shows(&|| {
                symlink("elsewhere", &other).expect("a link");
                fs::rename(&other, &link).expect("a link that leads elsewhere");
            }),
            [true, false]
        );
        fs::remove_file(&link).expect("the link");
        fs::create_dir(&link).expect("a directory");
        assert_eq!(shows(&|| fs::write(link.join("new"), "").expect("a file in it")), [true, true]);
    }
}
