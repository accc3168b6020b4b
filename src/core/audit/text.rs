//! A bounded byte string that postern did not choose: a path, a host's word.
//!
//! Trust: the bytes are hostile. They are kept as they came, up to
//! [`TEXT_MAX`], and become harmless only when a record is written.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::ipc::Bytes;

/// Longest byte string that a record holds, in bytes. A path that the kernel
/// opens is shorter (`PATH_MAX` is 4096 with its NUL), so nothing that was
/// opened is ever cut.
pub const TEXT_MAX: usize = 4096;

/// A byte string of at most [`TEXT_MAX`] bytes, and whether it was longer.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Text {
    bytes: Vec<u8>,
    cut: bool,
}

impl Text {
    /// The first [`TEXT_MAX`] bytes of `bytes`; what was UTF-8 stays UTF-8.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let Some(head) = bytes.get(..TEXT_MAX).filter(|_| bytes.len() > TEXT_MAX) else {
            return Self { bytes: bytes.to_vec(), cut: false };
        };
        // A character that the limit cut in two is left out whole.
        let keep = match std::str::from_utf8(head) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => head.len(),
        };
        Self { bytes: head[..keep].to_vec(), cut: true }
    }

    /// Numbers as the kernel lists processors, in order and each once: `0-3,8`.
    #[must_use]
    pub fn ranges(numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut numbers: Vec<u64> = numbers.into_iter().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let ranges = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
        let ranges = ranges.filter_map(|range| match (range.first()?, range.last()?) {
            (first, last) if first == last => Some(first.to_string()),
            (first, last) => Some(format!("{first}-{last}")),
        });
        Self::from(ranges.collect::<Vec<_>>().join(",").as_str())
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether bytes were left out at the end.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl From<&OsStr> for Text {
    fn from(text: &OsStr) -> Self {
        Self::new(text.as_bytes())
    }
}

impl From<&Path> for Text {
    fn from(path: &Path) -> Self {
        Self::new(path.as_os_str().as_bytes())
    }
}

impl<const MAX: usize> From<&Bytes<MAX>> for Text {
    fn from(bytes: &Bytes<MAX>) -> Self {
        Self::new(bytes.as_slice())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}", String::from_utf8_lossy(&self.bytes), if self.cut { "…" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bounded_and_stays_utf8() {
        let short = Text::from("/etc/hosts");
        assert_eq!((short.bytes(), short.is_cut()), (&b"/etc/hosts"[..], false));
        let full = Text::new(&[b'a'; TEXT_MAX]);
        assert_eq!((full.bytes().len(), full.is_cut()), (TEXT_MAX, false));
        // A two-byte character across the limit goes whole.
        let long = format!("{}é and more", "a".repeat(TEXT_MAX - 1));
        let cut = Text::from(long.as_str());
        assert_eq!((cut.bytes().len(), cut.is_cut()), (TEXT_MAX - 1, true));
        // Bytes that were never UTF-8 are kept to the limit.
        let raw = Text::new(&[0xff; TEXT_MAX + 1]);
        assert_eq!((raw.bytes().len(), raw.is_cut()), (TEXT_MAX, true));
    }
}
