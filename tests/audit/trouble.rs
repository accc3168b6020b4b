//! A disk that is full: opens are refused, nothing else is, and the log is
//! whole again when there is room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use postern_broker::log::{Log, Receipt};
use postern_core::audit::{Record, Text};
use postern_core::policy::Audit;
use postern_core::policy::rules::Mode;
use postern_tools::audit::verify;

use crate::log::{actions, open, records, stopped, thawed, whole};
use crate::samples;

/// A tmpfs of a few pages, unmounted when it goes.
struct Tmpfs {
    directory: tempfile::TempDir,
}

impl Tmpfs {
    /// `None`, said aloud, without root.
    fn new(kilobytes: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("NOT RUN: this test needs root to mount a tmpfs");
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={kilobytes}k,mode=0700");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "postern-test"])
            .arg(directory.path())
            .status()
            .expect("mount runs");
        assert!(status.success());
        Some(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

/// Fills the disk but for `free` bytes' worth of whole pages.
fn fill(path: &Path, megabyte: usize) {
    // An error is what is wanted: no space is left.
    _ = fs::write(path, vec![b'x'; megabyte]);
}

fn asked() -> Record {
    Record::OpenAsked { child: 1, requested: Text::from("/srv/a"), mode: Mode::Write, rule: 0 }
}

/// Writes until it no longer goes.
fn write_until_full(log: &mut Log) -> u64 {
    (0..10_000).find(|_| log.record(&asked()).is_err()).expect("the disk is small")
}

#[test]
fn root_a_full_disk_refuses_opens_and_the_log_recovers() {
    let Some(disk) = Tmpfs::new(64) else { return };
    let path = disk.path("audit.log");
    let mut log = open(&path);
    fill(&disk.path("ballast"), 40 << 10);
    let written = write_until_full(&mut log);
    assert!(written > 3);
    assert_eq!(log.failures(), 1);
    let error = log.record(&asked()).expect_err("still full");
    assert_eq!(error.errno(), Some(Errno::ENOSPC));
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(log.failures(), 2);
    // What cannot be refused is kept.
    assert!(log.note(&thawed()).is_err());
    assert_eq!(log.waiting(), 1);
    assert!(verify(&[&path]).is_err(), "the line at the end is torn");

    fs::remove_file(disk.path("ballast")).expect("removed");
    assert!(matches!(log.record(&asked()), Ok(Receipt::Written(_))));
    assert_eq!((log.failures(), log.waiting()), (0, 0));
    let verified = whole(&[&path]);
    assert_eq!((verified.torn, verified.lost), (1, 2));
    let text = fs::read_to_string(&path).expect("readable");
    let tail: Vec<_> = text.lines().rev().take(3).collect();
    let action =
        |line: &&str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["event"]["action"].clone();
    assert_eq!(action(&tail[2]), "guest-fsfreeze-thaw");
    assert_eq!(action(&tail[1]), "records-lost");
    assert_eq!(action(&tail[0]), "guest-file-open");
    assert!(tail[2].contains("\"torn\":{\"bytes\":"), "the first whole line says what was torn");
    assert!(tail[1].contains("\"unwritten\":2") && tail[1].contains("\"errno\":\"ENOSPC\""));
}

#[test]
fn root_a_disk_that_stays_full_over_a_restart_keeps_the_chain() {
    let Some(disk) = Tmpfs::new(64) else { return };
    let path = disk.path("audit.log");
    let mut log = open(&path);
    fill(&disk.path("ballast"), 40 << 10);
    write_until_full(&mut log);
    // Room for a little more, several times: every write is torn again.
    drop(log);
    assert_eq!(Log::start(&Audit::at(path.clone()), samples::run()).expect_err("full").errno(), Some(Errno::ENOSPC));
    assert_eq!(Log::start(&Audit::at(path.clone()), samples::run()).expect_err("full").errno(), Some(Errno::ENOSPC));
    fs::remove_file(disk.path("ballast")).expect("removed");
    let mut log = open(&path);
    log.record(&stopped("after")).expect("written");
    assert_eq!(whole(&[&path]).torn, 1);
}

#[test]
fn root_a_release_on_a_full_disk_keeps_what_waits() {
    let Some(disk) = Tmpfs::new(64) else { return };
    let path = disk.path("audit.log");
    let mut log = open(&path);
    log.hold();
    for _ in 0..100 {
        log.record(&stopped("while frozen")).expect("waits");
    }
    fill(&disk.path("ballast"), 45 << 10);
    assert!(log.release().is_err());
    let waiting = log.waiting();
    assert!(waiting > 0 && waiting < 100, "{waiting}");
    fs::remove_file(disk.path("ballast")).expect("removed");
    log.release().expect("written");
    assert_eq!(log.waiting(), 0);
    assert_eq!(whole(&[&path]).records, 101);
}

#[test]
fn root_a_file_of_another_owner_is_refused() {
    let Some(disk) = Tmpfs::new(64) else { return };
    let path = disk.path("audit.log");
    drop(open(&path));
    std::os::unix::fs::chown(&path, Some(12345), None).expect("chown");
    assert!(
        Log::start(&Audit::at(path.clone()), samples::run())
            .expect_err("refused")
            .to_string()
            .contains("belongs to uid 12345")
    );
    std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
    std::os::unix::fs::chown(disk.path(""), Some(12345), None).expect("chown");
    assert!(
        Log::start(&Audit::at(path.clone()), samples::run())
            .expect_err("refused")
            .to_string()
            .contains("belongs to uid 12345")
    );
    assert_eq!(actions(&path), ["log-opened"]);
    assert_eq!(records(&path).len(), 1);
}
