//! What a restarted broker must know of a freeze: a file in the state
//! directory from before the first FIFREEZE until after the last FITHAW.
//!
//! One line each, fields separated by a space, paths escaped as in mountinfo:
//!
//! ```text
//! postern-frozen 1
//! boot 5e1f7d86-0c60-4a35-b3a5-0f0d9a2f2e11
//! since 8812
//! fs 27 254:0 /mnt/with\040space
//! end
//! ```
//!
//! `since` is `CLOCK_BOOTTIME` in seconds; `fs` lines are in freeze order with
//! mount id, device and mountpoint, and name what *may* be frozen.
//!
//! Trust: only the broker writes there, yet reading is total. Called by the
//! engine's threads (writing may block), and at start for reading.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use postern_core::mountinfo::{Device, escape, unescape};

use super::state;

/// Name of the file in the state directory.
pub const FILE: &str = "frozen";

const FIRST_LINE: &str = "postern-frozen 1";

/// A filesystem that was or may be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// The mount that it was frozen through.
    pub mount: u64,
    /// The filesystem's device number.
    pub device: Device,
    /// Where that mount was.
    pub mountpoint: PathBuf,
}

/// A freeze of an earlier run in this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// When it began, by `CLOCK_BOOTTIME`, to the second.
    pub since: Duration,
    /// What may be frozen, in freeze order.
    pub filesystems: Vec<Filesystem>,
}

/// Why the memory of an earlier run cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/proc/sys/kernel/random/boot_id` cannot be read.
    #[error("cannot read the boot id from {path}: {source}; mount /proc", path = BOOT_ID)]
    BootId {
        /// The system's word.
        source: io::Error,
    },
    /// The file is there and cannot be read.
    #[error("cannot read state file '{name}': {source}; see to it that it belongs to the broker's account")]
    Read {
        /// Its name in the state directory.
        name: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The file is not in the form that this version writes.
    #[error(
        "state file '{name}' is malformed at line {line}; remove it, after you have thawed what may be frozen \
         (fsfreeze --unfreeze MOUNTPOINT)"
    )]
    Malformed {
        /// Its name in the state directory.
        name: &'static str,
        /// The first line that is wrong, or is missing; 1 is the first.
        line: usize,
    },
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state directory's knowledge of freezes.
#[derive(Debug)]
pub struct Memory {
    dir: OwnedFd,
    boot: String,
}

impl Memory {
    /// Takes the state directory, opened by the caller, and reads which boot
    /// this is. Before confinement.
    pub fn new(dir: OwnedFd) -> Result<Self, Error> {
        let boot = fs::read_to_string(BOOT_ID).map_err(|source| Error::BootId { source })?;
        Ok(Self { dir, boot: boot.trim_ascii().to_owned() })
    }

    /// The state directory's number, for the filter.
    #[must_use]
    pub fn directory(&self) -> RawFd {
        self.dir.as_raw_fd()
    }

    /// The freeze that an earlier run left, if there is one. Only reads, so it
    /// never waits for a thaw. A file of another boot means nothing: what was
    /// frozen then is not now.
    pub fn read(&self) -> Result<Option<Remembered>, Error> {
        let content = state::read(self.dir.as_fd(), FILE).map_err(|source| Error::Read { name: FILE, source })?;
        let Some(content) = content else { return Ok(None) };
        let (boot, remembered) = parse(&content).map_err(|line| Error::Malformed { name: FILE, line })?;
        Ok((boot == self.boot).then_some(remembered))
    }

    /// Writes it down. Blocks while the state directory is frozen.
    pub(super) fn write(&self, remembered: &Remembered) -> io::Result<()> {
        state::replace(self.dir.as_fd(), FILE, format(&self.boot, remembered).as_bytes())
    }

    /// Removes it. Blocks while the state directory is frozen.
    pub(super) fn forget(&self) -> io::Result<()> {
        state::remove(self.dir.as_fd(), FILE)
    }
}

/// The file's text.
#[must_use]
pub fn format(boot: &str, remembered: &Remembered) -> String {
    let mut text = format!("{FIRST_LINE}\nboot {boot}\nsince {}\n", remembered.since.as_secs());
    for Filesystem { mount, device, mountpoint } in &remembered.filesystems {
        // Writing to a String does not fail.
        let _ = writeln!(text, "fs {mount} {device} {}", escape(mountpoint.as_os_str().as_bytes()));
    }
    text + "end\n"
}

/// Boot id and content of a file's text: the reverse of [`format()`].
///
/// # Errors
/// The number of the first line that is wrong, or is missing; 1 is the first.
pub fn parse(content: &[u8]) -> Result<(String, Remembered), usize> {
    let mut lines = content.split(|&byte| byte == b'\n').zip(1..);
    let mut value = |key: &str| {
        let (line, number) = lines.next().ok_or(1_usize)?;
        line.strip_prefix(key.as_bytes()).ok_or(number).map(|value| (value, number))
    };
    let (rest, number) = value(FIRST_LINE)?;
    if !rest.is_empty() {
        return Err(number);
    }
    let (boot, number) = value("boot ")?;
    let boot = String::from_utf8(boot.to_vec()).map_err(|_| number)?;
    let (since, number) = value("since ")?;
    let since = Duration::from_secs(decimal(since).ok_or(number)?);
    let mut filesystems = Vec::new();
    for (line, number) in lines.by_ref() {
        if line == b"end" {
            let ends = lines.next().is_some_and(|(rest, _)| rest.is_empty()) && lines.next().is_none();
            return if ends { Ok((boot, Remembered { since, filesystems })) } else { Err(number + 1) };
        }
        filesystems.push(parse_filesystem(line).ok_or(number)?);
    }
    Err(filesystems.len() + 4)
}

fn parse_filesystem(line: &[u8]) -> Option<Filesystem> {
    let mut fields = line.strip_prefix(b"fs ")?.split(|&byte| byte == b' ');
    let mount = decimal(fields.next()?)?;
    let device = Device::parse(fields.next()?)?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    fields.next().is_none().then_some(Filesystem { mount, device, mountpoint })
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Remembered {
        Remembered {
            since: Duration::from_secs(8812),
            filesystems: vec![
                Filesystem { mount: 27, device: Device { major: 254, minor: 0 }, mountpoint: "/mnt/with space".into() },
                Filesystem {
                    mount: 3,
                    device: Device { major: 0, minor: 40 },
                    mountpoint: OsString::from_vec(b"/\xff\n\\".to_vec()).into(),
                },
            ],
        }
    }

    fn memory() -> (tempfile::TempDir, Memory) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        (dir, Memory::new(fd).unwrap())
    }

    #[test]
    fn what_is_written_is_read_again_until_forgotten() {
        let (dir, memory) = memory();
        assert_eq!(memory.read().unwrap(), None);
        fs::write(dir.path().join("frozen.new"), "left by a killed run").unwrap();
        memory.write(&sample()).unwrap();
        assert_eq!(memory.read().unwrap(), Some(sample()));
        assert!(!dir.path().join("frozen.new").exists());
        memory.forget().unwrap();
        memory.forget().unwrap();
        assert_eq!(memory.read().unwrap(), None);
    }

    #[test]
    fn another_boot_is_not_believed() {
        let (dir, memory) = memory();
        fs::write(dir.path().join(FILE), format("another", &sample())).unwrap();
        assert_eq!(memory.read().unwrap(), None);
    }

    #[test]
    fn a_malformed_file_is_an_error_that_names_the_line() {
        let good = format("b", &sample());
        let (dir, memory) = memory();
        for (line, text) in [
            (1, String::new()),
            (1, good.replace("frozen 1", "frozen 2")),
            (2, good.replace("boot", "boat")),
            (3, good.replace("8812", "soon")),
            (4, good.replace("254:0", "254")),
            (5, good.replace("fs 3", "fs 3 3")),
            (6, good.replace("end\n", "")),
            (7, good.clone() + "more\n"),
            (7, good.replace("end\n", "end")),
        ] {
            fs::write(dir.path().join(FILE), &text).unwrap();
            match memory.read() {
                Err(Error::Malformed { line: found, .. }) => assert_eq!(found, line, "{text}"),
                other => panic!("{other:?} for {text}"),
            }
        }
    }

    #[test]
    fn a_link_or_fifo_in_its_place_is_refused() {
        let (dir, memory) = memory();
        let path = dir.path().join(FILE);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(matches!(memory.read(), Err(Error::Read { .. })));
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(memory.read(), Err(Error::Read { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_cut_fails(at in 0..100_usize) {
            let good = format("b", &sample());
            prop_assume!(at < good.len());
            prop_assert!(parse(&good.as_bytes()[..at]).is_err());
        }

        #[test]
        fn every_path_returns(path in proptest::collection::vec(1..=255_u8, 1..60)) {
            let mut wanted = sample();
            wanted.filesystems[0].mountpoint = OsString::from_vec(path).into();
            prop_assert_eq!(parse(format("b", &wanted).as_bytes()), Ok(("b".to_owned(), wanted)));
        }
    }
}
