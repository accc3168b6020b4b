//! The kernel's mount table, `/proc/PID/mountinfo`, as proc(5) describes it.
//!
//! Trust: pure. The bytes are the kernel's, but mountpoints are named by whoever may
//! mount, so nothing here assumes UTF-8 or good will. Used by the broker, which
//! freezes, the opener, which asks how full a filesystem is, and the worker, which
//! tells of them.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A device number as mountinfo shows it. For btrfs it is the superblock's,
/// which no file of it shows in `st_dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Major number; 0 for what is on no block device, and for btrfs.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// A device number written `major:minor`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (major, minor) = split_once(text, b':')?;
        Some(Self { major: number(major)?.try_into().ok()?, minor: number(minor)?.try_into().ok()? })
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One line of mountinfo, as far as it is needed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount id; unique while mounted, used again later.
    pub id: u64,
    /// Mount id of what it is mounted on.
    pub parent: u64,
    /// The filesystem's device number.
    pub device: Device,
    /// Which part of the filesystem is mounted: `/` unless it is a bind mount
    /// or a subvolume.
    pub root: PathBuf,
    /// Where, seen from our root directory.
    pub mountpoint: PathBuf,
    /// Filesystem type, with the subtype after a dot.
    pub kind: OsString,
    /// What it was mounted from, as the filesystem says; mostly a device's path.
    pub source: PathBuf,
}

/// A line of mountinfo that is not what proc(5) describes; line 1 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {0} of the mount table is malformed")]
pub struct Malformed(pub usize);

/// One line of mountinfo as it is written: its fields are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// The whole of it, without a newline.
    pub text: &'a [u8],
    /// As in [`Mount`], and so the following.
    pub id: u64,
    #[expect(missing_docs, reason = "as in `Mount`")]
    pub parent: u64,
    #[expect(missing_docs, reason = "as in `Mount`")]
    pub device: Device,
    #[expect(missing_docs, reason = "as in `Mount`")]
    pub root: &'a [u8],
    #[expect(missing_docs, reason = "as in `Mount`")]
    pub mountpoint: &'a [u8],
    #[expect(missing_docs, reason = "as in `Mount`")]
    pub kind: &'a [u8],
    #[expect(missing_docs, reason = "as in `Mount`")]
    pub source: &'a [u8],
}

/// Reads a mount table in the form of `/proc/PID/mountinfo`, proc(5).
///
/// # Errors
/// The first line that does not have that form. Leaving it out instead could
/// leave a filesystem out of a freeze that reports success.
pub fn parse(table: &[u8]) -> Result<Vec<Mount>, Malformed> {
    lines(table).map(|line| line.map(|line| line.mount())).collect()
}

/// The lines of such a table, one by one; whoever leaves a malformed one out says
/// what that means.
pub fn lines(table: &[u8]) -> impl Iterator<Item = Result<Line<'_>, Malformed>> {
    table
        .split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| Line::read(line).ok_or(Malformed(index + 1)))
}

impl<'a> Line<'a> {
    fn read(text: &'a [u8]) -> Option<Self> {
        let mut fields = text.split(|&byte| byte == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let device = Device::parse(fields.next()?)?;
        let root = fields.next()?;
        let mountpoint = fields.next()?;
        let _options = fields.next()?;
        // Any number of optional fields, ended by a hyphen.
        fields.by_ref().find(|&field| field == b"-")?;
        let kind = fields.next().filter(|kind| !kind.is_empty())?;
        let source = fields.next().unwrap_or_default();
        Some(Self { text, id, parent, device, root, mountpoint, kind, source })
    }

    /// What it says.
    #[must_use]
    pub fn mount(&self) -> Mount {
        Mount {
            id: self.id,
            parent: self.parent,
            device: self.device,
            root: path(self.root),
            mountpoint: path(self.mountpoint),
            kind: OsString::from_vec(unescape(self.kind)),
            source: path(self.source),
        }
    }

    /// Whether it is on a block device, and the kernel's own.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.device.major != 0 && !self.kind.starts_with(b"fuse")
    }
}

/// The path that a field is.
#[must_use]
pub fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let index = text.iter().position(|&byte| byte == at)?;
    Some((&text[..index], &text[index + 1..]))
}

/// Undoes the kernel's octal escapes: backslash and three octal digits. What
/// does not have that form stands for itself.
#[must_use]
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        plain.push(*first);
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (*first, tail) {
            plain.pop();
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        }
    }
    plain
}

/// Escapes as the kernel does, so that a path is one field of one line.
#[must_use]
pub fn escape(plain: &[u8]) -> String {
    let mut field = String::with_capacity(plain.len());
    for &byte in plain {
        if byte.is_ascii_graphic() && byte != b'\\' {
            field.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(field, "\\{byte:03o}");
        }
    }
    field
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use proptest::prelude::*;

    /// What other tests of mount tables have, too.
    const TABLE: &[u8] = include_bytes!("mountinfo/sample.mountinfo");

    #[test]
    fn reads_what_the_kernel_writes() {
        let mounts = parse(TABLE).unwrap();
        assert_eq!(mounts.len(), 8);
        assert_eq!(mounts[2].root, Path::new("/@home"));
        assert_eq!((mounts[2].parent, mounts[2].source.as_path()), (21, Path::new("/dev/vdb")));
        assert_eq!(mounts[4].source, Path::new(""));
        assert_eq!(mounts[4].mountpoint, Path::new("/mnt/with space\\\n"));
        assert_eq!(mounts[4].kind, "xfs", "an empty source is a field too");
        assert_eq!(mounts[7].mountpoint.as_os_str().as_encoded_bytes(), b"/\xff\xfe");
    }

    #[test]
    fn a_malformed_line_is_named() {
        for (line, text) in [
            (1, &b"21 1 254:1 / /\n"[..]),
            (1, b"x 1 254:1 / / rw - ext4 a rw"),
            (1, b"21 1 254 / / rw - ext4 a rw"),
            (1, b"21 1 254:1 / / rw shared:1"),
            (1, b"21 1 254:+1 / / rw - ext4 a rw"),
            (2, b"21 1 254:1 / / rw - ext4 a rw\n21 1 254:99999999999 / / rw - ext4 a rw"),
        ] {
            assert_eq!(parse(text), Err(Malformed(line)), "{}", String::from_utf8_lossy(text));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn escapes_return(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let field = escape(&bytes);
            prop_assert!(field.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(unescape(field.as_bytes()), bytes);
        }
    }
}
