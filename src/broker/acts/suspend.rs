//! `guest-suspend-*`: by `/sys/power`, whose files are held open.
//!
//! systemd takes no signal for it, and what asks it otherwise needs a D-Bus
//! connection, which the broker has not; so no sleep hook of systemd runs. The
//! kernel is asked which sleeps it has before anything is written.
//!
//! Trust: as [`super`]. Of the host only one of three modes.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use postern_core::catalogue::Command;
use postern_core::messages::SuspendMode;
use postern_core::policy::Policy;

use super::{Failure, Outcome, open_switch, read_now, sleeps_on_disk, tell};

/// The files of `/sys/power`, as far as the kernel and the policy have a use for
/// them: `Documentation/admin-guide/pm/sleep-states.rst` of the kernel.
#[derive(Debug)]
pub struct Power {
    /// Which sleeps there are; writing one falls asleep.
    state: Option<File>,
    /// What a sleep on disk does once memory is on disk. Written for a hybrid
    /// sleep only.
    disk: Option<File>,
}

impl Power {
    /// Opens what is there.
    pub(super) fn open(policy: &Policy, directory: &Path) -> io::Result<Self> {
        let disk = directory.join("disk");
        let disk = if policy.commands.contains(Command::SuspendHybrid) {
            open_switch(&disk)?
        } else {
            sleeps_on_disk(policy).then(|| File::open(&disk).ok()).flatten()
        };
        Ok(Self { state: open_switch(&directory.join("state"))?, disk })
    }

    /// Puts the guest to sleep, and returns when it is awake again.
    pub(super) fn suspend(&self, mode: SuspendMode) -> Result<Outcome, Failure> {
        let state = self.state.as_ref().ok_or(Failure::Unsupported)?;
        let read = |file: &File| read_now(file).unwrap_or_default();
        let word = if mode == SuspendMode::Ram { "mem" } else { "disk" };
        let states = read(state);
        let choices = self.disk.as_ref().map(read).unwrap_or_default();
        if !states.split_ascii_whitespace().any(|one| one == word) || !offers(&choices, mode) {
            return Err(Failure::Unsupported);
        }
        let (SuspendMode::Hybrid, Some(disk)) = (mode, &self.disk) else {
            return tell(state, word).map(|()| Outcome::Slept).map_err(not_written("state"));
        };
        let before = chosen(&choices).unwrap_or("platform");
        tell(disk, "suspend").map_err(not_written("disk"))?;
        let slept = tell(state, word).map_err(not_written("state"));
        // The next sleep on disk is to be what it was.
        let back = tell(disk, before).map_err(not_written("disk"));
        slept.and(back).map(|()| Outcome::Slept)
    }
}

/// The kernel refused what was written to this file.
const fn not_written(file: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::Suspend { file, errno }
}

/// Whether `/sys/power/disk`, as it reads, leaves this sleep possible. It reads
/// `[disabled]` where the kernel is locked down or has no room.
fn offers(choices: &str, mode: SuspendMode) -> bool {
    match mode {
        SuspendMode::Ram => true,
        SuspendMode::Disk => chosen(choices).is_none_or(|one| one != "disabled"),
        SuspendMode::Hybrid => choices.split_ascii_whitespace().any(|one| one.trim_matches(['[', ']']) == "suspend"),
    }
}

/// The one in brackets.
fn chosen(choices: &str) -> Option<&str> {
    choices.split_ascii_whitespace().find_map(|one| one.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::super::tests::policy;
    use super::*;
    use SuspendMode::{Disk, Hybrid, Ram};

    /// What is in the files after one sleep, or why there was none.
    fn sleep(state: Option<&str>, disk: Option<&str>, mode: SuspendMode) -> Result<[String; 2], Failure> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("state", state), ("disk", disk)] {
            if let Some(text) = text {
                fs::write(directory.path().join(name), text).unwrap();
            }
        }
        let all = [Command::SuspendDisk, Command::SuspendRam, Command::SuspendHybrid];
        Power::open(&policy(&all), directory.path()).unwrap().suspend(mode)?;
        Ok(["state", "disk"].map(|name| fs::read_to_string(directory.path().join(name)).unwrap_or_default()))
    }

    #[test]
    fn what_the_kernel_offers_is_what_is_done() {
        const FULL: &str = "[platform] shutdown reboot suspend test_resume\n";
        let cases: [(Option<&str>, Option<&str>, SuspendMode, bool); 13] = [
            (None, None, Ram, false),
            (Some(""), None, Ram, false),
            (Some("freeze\n"), Some(FULL), Ram, false),
            (Some("freeze mem disk\n"), Some(FULL), Ram, true),
            (Some("freeze mem\n"), None, Ram, true),
            (Some("freeze mem\n"), Some(FULL), Disk, false),
            (Some("freeze mem disk\n"), Some(FULL), Disk, true),
            (Some("freeze mem disk\n"), Some("[disabled]\n"), Disk, false),
            (Some("freeze mem disk\n"), Some("[disabled]\n"), Hybrid, false),
            (Some("freeze mem disk\n"), Some("[platform] shutdown reboot\n"), Hybrid, false),
            (Some("freeze mem disk\n"), Some(FULL), Hybrid, true),
            (Some("freeze mem\n"), Some(FULL), Hybrid, false),
            (Some("freeze mem disk\n"), None, Hybrid, false),
        ];
        for (state, disk, mode, does) in cases {
            let done = sleep(state, disk, mode);
            match done {
                Ok([found, _]) => {
                    let word = if mode == Ram { "mem" } else { "disk" };
                    assert!(does && found.starts_with(word), "{state:?} {disk:?} {mode:?}: {found}");
                }
                Err(why) => assert!(!does && why == Failure::Unsupported, "{state:?} {disk:?} {mode:?}: {why}"),
            }
        }
    }

    #[test]
    fn a_hybrid_sleep_leaves_the_choice_as_it_was() {
        let [_, disk] = sleep(Some("mem disk"), Some("platform [shutdown] reboot suspend"), Hybrid).unwrap();
        // Two writes, one behind the other in a plain file.
        assert!(disk.starts_with("suspendshutdown"), "{disk}");
        let [_, disk] = sleep(Some("mem disk"), Some("platform [shutdown] reboot suspend"), Disk).unwrap();
        assert_eq!(disk, "platform [shutdown] reboot suspend");
    }

    #[test]
    fn what_the_kernel_refuses_is_told_as_stock_tells_it() {
        let mut power = Power { state: None, disk: None };
        assert_eq!(power.suspend(Ram), Err(Failure::Unsupported));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "mem disk suspend").unwrap();
        let read_only = || Some(File::open(file.path()).unwrap());
        power.state = read_only();
        let why = power.suspend(Ram).unwrap_err();
        assert_eq!(why.to_string(), "suspend: cannot write to '/sys/power/state': Bad file descriptor");
        assert_eq!(why.errno(), Some(Errno::EBADF));
        power.disk = read_only();
        let why = power.suspend(Hybrid).unwrap_err();
        assert_eq!(why.to_string(), "suspend: cannot write to '/sys/power/disk': Bad file descriptor");
    }

    #[test]
    fn only_what_the_policy_needs_is_writable() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["state", "disk"] {
            fs::write(directory.path().join(name), "mem disk").unwrap();
        }
        let opened = |commands: &[Command]| Power::open(&policy(commands), directory.path()).unwrap();
        assert!(opened(&[Command::SuspendRam]).disk.is_none());
        let read_only = opened(&[Command::SuspendDisk, Command::SuspendRam]).disk.expect("it is there");
        assert_eq!(read_only.write_at(b"x", 0).unwrap_err().raw_os_error(), Some(Errno::EBADF as i32));
        let writable = opened(&[Command::SuspendHybrid]).disk.expect("it is there");
        assert_eq!(writable.write_at(b"x", 0).unwrap(), 1);
    }
}
