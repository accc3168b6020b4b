//! What init scripts want of a daemon: the background, a pidfile, a logfile.
//!
//! The starter waits until the agent serves, says what the agent says until
//! then, and ends with its status if it fails. Pidfile and logfile are opened
//! with the starter's rights, so only if no other account could have put
//! another's file in their place. Neither is touched again: the confined broker
//! can remove no pidfile, so one without a lock on it is stale, as after a
//! crash of stock.
//!
//! Trust: paths are the command line's. Before confinement, one thread.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid};
use postern_core::sys::process;

use crate::launch::Fatal;
use crate::options::Service;
use crate::say::{Level, Voice};

/// Why a file of the daemon's can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnFileError {
    /// Opening or writing it failed.
    #[error("{path}: {why}", path = .0.display(), why = .1.desc())]
    Io(PathBuf, Errno),
    /// Another account could have put it there.
    #[error("{path}: not opened, for it is {what}; remove it or name another", path = .0.display(), what = .1)]
    Unsafe(PathBuf, &'static str),
    /// Another agent holds the pidfile.
    #[error("{path}: process {pid} holds this pidfile; stop it first", path = .0.display(), pid = .1)]
    Held(PathBuf, i32),
}

/// The last word to the starter: the agent serves.
const SERVES: u8 = 0;

/// The way to the process that started this one, until the agent serves.
#[derive(Clone, Debug)]
pub struct Starter(Rc<RefCell<Option<File>>>);

impl Starter {
    /// Says a line where the agent was started.
    pub fn say(&self, line: &str) {
        if let Some(pipe) = self.0.borrow_mut().as_mut() {
            // Lines are short and few: the pipe has room. A starter that was
            // killed hears nothing.
            let _ = pipe.write_all(line.as_bytes());
        }
    }

    /// Lets the starter end well.
    pub fn serves(&self) {
        if let Some(mut pipe) = self.0.borrow_mut().take() {
            let _ = pipe.write_all(&[SERVES]);
        }
    }
}

/// Goes to the background: a session of its own, `/`, no terminal. The starter
/// stays behind in here until the agent serves, and ends.
///
/// # Errors
/// As fork(2), pipe2(2), setsid(2), or without `/dev/null`.
pub(crate) fn leave() -> io::Result<Starter> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(child) = process::fork()? {
        drop(write);
        let said = echo(File::from(read));
        if said {
            process::exit_now(0);
        }
        let status = match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) if status != 0 => status,
            _ => 1,
        };
        process::exit_now(status);
    }
    drop(read);
    setsid()?;
    std::env::set_current_dir("/")?;
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(Starter(Rc::new(RefCell::new(Some(File::from(write))))))
}

/// Passes on what the agent says; whether the end was that it serves.
fn echo(mut pipe: File) -> bool {
    let mut bytes = [0; 4096];
    loop {
        let count = match pipe.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return false,
        };
        let serves = bytes[..count].contains(&SERVES);
        let text = &bytes[..count - usize::from(serves)];
        let _ = io::stderr().write_all(text);
        if serves {
            return true;
        }
    }
}

/// Pidfile and logfile, as far as they can be opened now, and the notes. On a
/// frozen filesystem even opening could block; the confined broker will not be
/// able to do it later.
pub(crate) fn own_files(service: &Service, frozen: bool, voice: &mut Voice) -> Result<(), Fatal> {
    let opens = |path: &&PathBuf| !frozen || lies_in_memory(path);
    let files = service.daemon.iter().chain(&service.logfile);
    let left: Vec<&PathBuf> = files.filter(|path| !opens(path)).collect();
    if let Some(path) = service.daemon.as_ref().filter(opens) {
        pidfile(path)?;
    }
    if let Some(path) = service.logfile.as_ref().filter(opens) {
        let logfile = logfile(path)?;
        log_to(&logfile).map_err(|why| Fatal::Call("making the logfile stderr", why))?;
        voice.moved();
    }
    if frozen {
        // Not even a line may go out now: stderr may be a file.
        voice.hold();
    }
    for path in left {
        voice.say(Level::Warning, &format!("filesystems are frozen: {} is not opened in this run", path.display()));
    }
    for note in &service.notes {
        voice.say(Level::Warning, note);
    }
    Ok(())
}

/// Opens the operator's log, to write behind what is there.
fn logfile(path: &Path) -> Result<OwnedFd, OwnFileError> {
    own_file(path, OFlag::O_WRONLY | OFlag::O_APPEND).map(OwnedFd::from)
}

/// Makes the operator's log stderr.
fn log_to(logfile: &OwnedFd) -> io::Result<()> {
    Ok(dup2_stderr(logfile)?)
}

/// Writes this process's id, and holds the file for as long as it lives.
fn pidfile(path: &Path) -> Result<(), OwnFileError> {
    let failed = |errno| OwnFileError::Io(path.to_owned(), errno);
    let text = format!("{}\n", std::process::id());
    loop {
        let mut file = own_file(path, OFlag::O_WRONLY)?;
        // As stock: a record lock on the whole file, which ends with its holder.
        let short = |number| libc::c_short::try_from(number).unwrap_or_default();
        let mut lock = libc::flock {
            l_type: short(libc::F_WRLCK),
            l_whence: short(libc::SEEK_SET),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let _ = fcntl(&file, FcntlArg::F_GETLK(&mut lock));
                return Err(OwnFileError::Held(path.to_owned(), lock.l_pid));
            }
            Err(errno) => return Err(failed(errno)),
        }
        // Stock removes its pidfile as it ends: this may be the removed one.
        let here = file.metadata().map_err(|why| failed(errno_of(&why)))?;
        if !fs::symlink_metadata(path).is_ok_and(|there| there.dev() == here.dev() && there.ino() == here.ino()) {
            continue;
        }
        let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(|why| failed(errno_of(&why)))?;
        // Closing it would end the lock.
        std::mem::forget(file);
        return Ok(());
    }
}

/// Whether a file may be opened although filesystems are frozen: on one that
/// lies in memory nothing blocks.
fn lies_in_memory(path: &Path) -> bool {
    path.parent().and_then(|parent| statfs(parent).ok()).is_some_and(|facts| facts.filesystem_type() == TMPFS_MAGIC)
}

fn errno_of(why: &io::Error) -> Errno {
    Errno::from_raw(why.raw_os_error().unwrap_or(Errno::EIO as i32))
}

/// Opens or makes a file that nobody but its starter can have put there. Mode
/// 0600, whatever the umask.
fn own_file(path: &Path, flags: OFlag) -> Result<File, OwnFileError> {
    let failed = |errno| OwnFileError::Io(path.to_owned(), errno);
    let refused = |what| OwnFileError::Unsafe(path.to_owned(), what);
    if leads_through_others(path) {
        return Err(refused("in a directory that another user can change"));
    }
    let more = OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(path, flags | more, Mode::S_IRUSR | Mode::S_IWUSR);
    let file = match opened {
        Ok(opened) => File::from(opened),
        Err(Errno::ELOOP) => return Err(refused("a symbolic link")),
        // A FIFO that nobody reads, a socket.
        Err(Errno::ENXIO) => return Err(refused("no regular file")),
        Err(errno) => return Err(failed(errno)),
    };
    let facts = file.metadata().map_err(|why| failed(errno_of(&why)))?;
    let kind = facts.file_type();
    // /dev/null, a terminal.
    if kind.is_char_device() && flags.contains(OFlag::O_APPEND) {
        return Ok(file);
    }
    if !kind.is_file() {
        return Err(refused("no regular file"));
    }
    if facts.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refused("another user's"));
    }
    if facts.nlink() > 1 {
        return Err(refused("a file with another name too"));
    }
    Ok(file)
}

/// Whether another account could lead this path elsewhere: by a directory or a
/// link of its own on the way, or in a directory that all may write, but for one
/// in which each keeps what is his. Groups are let pass, as for `/var/log` on
/// some distributions. Asked of every place that root makes something in: a
/// pidfile, a log, the directory of the state, a socket.
pub(crate) fn leads_through_others(path: &Path) -> bool {
    let me = nix::unistd::geteuid().as_raw();
    let others = |step: &Path| {
        fs::symlink_metadata(step).is_ok_and(|facts| {
            let open = facts.is_dir() && facts.mode() & 0o1002 == 0o002;
            (facts.uid() != 0 && facts.uid() != me) || open
        })
    };
    let Some(directory) = path.parent() else { return false };
    let resolved = fs::canonicalize(directory).unwrap_or_default();
    directory.ancestors().chain(resolved.ancestors()).any(others)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_of_somebody_elses_making_is_not_opened() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        fs::write(path("target"), "kept").unwrap();
        std::os::unix::fs::symlink(path("target"), path("link")).unwrap();
        fs::write(path("one"), "kept").unwrap();
        fs::hard_link(path("one"), path("two")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        for name in ["link", "two", "fifo"] {
            assert!(matches!(pidfile(&path(name)), Err(OwnFileError::Unsafe(..))), "{name}");
            assert!(logfile(&path(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read_to_string(path("target")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(path("one")).unwrap(), "kept");
        assert!(matches!(pidfile(&path("missing/pid")), Err(OwnFileError::Io(_, Errno::ENOENT))));
    }

    #[test]
    fn no_way_through_somebody_elses_directory_is_taken() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            return println!("NOT RUN: needs root");
        }
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        for name in ["ours", "theirs", "open", "sticky"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "kept").unwrap();
        }
        std::os::unix::fs::symlink(path("ours"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("ours"), path("own link")).unwrap();
        let nobody = Some(65534);
        std::os::unix::fs::lchown(path("link"), nobody, nobody).unwrap();
        std::os::unix::fs::lchown(path("theirs"), nobody, nobody).unwrap();
        std::os::unix::fs::symlink(path("theirs"), path("link to theirs")).unwrap();
        let mode = |name, mode| fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        mode("open", 0o777);
        mode("sticky", 0o1777);
        for name in ["link", "theirs", "open", "link to theirs"] {
            let file = path(name).join("file");
            assert!(matches!(pidfile(&file), Err(OwnFileError::Unsafe(..))), "{name}");
            assert!(matches!(logfile(&file), Err(OwnFileError::Unsafe(..))), "{name}");
            assert_eq!(fs::read_to_string(&file).unwrap(), "kept", "{name}");
        }
        for name in ["ours", "own link", "sticky"] {
            logfile(&path(name).join("file")).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    }

    #[test]
    fn a_pidfile_holds_this_process_and_a_stale_one_is_taken_over() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pid");
        fs::write(&path, "99999999 is longer\n").unwrap();
        pidfile(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_log_goes_on_behind_what_is_there() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        fs::write(&path, "before\n").unwrap();
        File::from(logfile(&path).unwrap()).write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");
        assert!(logfile(Path::new("/dev/null")).is_ok());
        let new = home.path().join("new");
        drop(logfile(&new).unwrap());
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o600);
    }
}
