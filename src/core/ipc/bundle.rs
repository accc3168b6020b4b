//! What the opener gathered of the guest's files for one command, as one piece of
//! bytes: entries of a kind, a path, and what stands there, unparsed.
//!
//! Trust: the opener writes it from files of the kernel's and of root's; the
//! worker reads it. Reading is total all the same: a piece that is cut off, or
//! none of ours, is no bundle.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::codec::{Malformed, Reader, Wire};

/// Most bytes of one bundle: more than the memory blocks of a guest of 4 TiB take.
pub const BUNDLE_MAX: usize = 8 << 20;

/// What an entry tells of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// What stands in the file.
    Content,
    /// Where the link leads, as it is written; of an entry of `/sys/class`, to its
    /// device.
    Link,
    /// The names in the directory, a NUL behind each.
    Names,
    /// How full the filesystem is that has this number in the mount table: the size of
    /// a block, and how many blocks there are, are free, and are free for users.
    Space,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Content, Self::Link, Self::Names, Self::Space];
}

/// Writes a bundle, entry by entry.
#[derive(Debug, Default)]
pub struct Gathered(Vec<u8>);

impl Gathered {
    /// Adds an entry; whether it found room. A longer path than Linux has is
    /// nowhere.
    #[must_use]
    pub fn add(&mut self, kind: Kind, path: &[u8], told: &[u8]) -> bool {
        let (Ok(path_length), Ok(length)) = (u16::try_from(path.len()), u32::try_from(told.len())) else {
            return false;
        };
        if self.0.len() + 7 + path.len() + told.len() > BUNDLE_MAX {
            return false;
        }
        self.0.push(kind as u8);
        path_length.put(&mut self.0);
        self.0.extend_from_slice(path);
        length.put(&mut self.0);
        self.0.extend_from_slice(told);
        true
    }

    /// The whole of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A bundle, read: what is told of each path, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle<'a>(BTreeMap<(Kind, &'a [u8]), &'a [u8]>);

impl<'a> Bundle<'a> {
    /// The bundle that `bytes` are, wholly.
    ///
    /// # Errors
    /// [`Malformed`]; of two entries with one kind and path the later counts.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let mut entries = BTreeMap::new();
        while !reader.0.is_empty() {
            let kind = *Kind::ALL.get(usize::from(u8::take(&mut reader)?)).ok_or(Malformed::Range)?;
            let length = u16::take(&mut reader)?;
            let path = reader.bytes(length.into())?;
            let length = u32::take(&mut reader)?;
            let told = reader.bytes(usize::try_from(length).map_err(|_| Malformed::Short)?)?;
            entries.insert((kind, path), told);
        }
        Ok(Self(entries))
    }

    /// What stands in a file, without the newline that most files of `/sys` end
    /// with; `None` where it was not there or could not be read.
    #[must_use]
    pub fn content(&self, path: impl AsRef<Path>) -> Option<&'a [u8]> {
        let content = self.told(Kind::Content, path.as_ref())?;
        Some(content.strip_suffix(b"\n").unwrap_or(content))
    }

    /// The same as text, where it is UTF-8.
    #[must_use]
    pub fn text(&self, path: impl AsRef<Path>) -> Option<&'a str> {
        str::from_utf8(self.content(path)?).ok()
    }

    /// Where a link leads, as it is written.
    #[must_use]
    pub fn link(&self, path: impl AsRef<Path>) -> Option<&'a Path> {
        Some(Path::new(OsStr::from_bytes(self.told(Kind::Link, path.as_ref())?)))
    }

    /// The names in a directory, in the order in which the kernel has them.
    pub fn names<P: AsRef<Path>>(&self, path: P) -> impl Iterator<Item = &'a OsStr> + use<'a, P> {
        let names = self.told(Kind::Names, path.as_ref()).unwrap_or_default();
        names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(OsStr::from_bytes)
    }

    /// What is told of a path, in this way.
    #[must_use]
    pub fn told(&self, kind: Kind, path: &Path) -> Option<&'a [u8]> {
        self.0.get(&(kind, path.as_os_str().as_bytes())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_gathered_is_read() {
        let mut gathered = Gathered::default();
        assert!(gathered.add(Kind::Names, b"/sys/cpu", b"cpu1\0cpu0\0"));
        assert!(gathered.add(Kind::Content, b"/sys/cpu/cpu1/online", b"1\n"));
        assert!(gathered.add(Kind::Content, b"/empty", b""));
        assert!(gathered.add(Kind::Link, b"/sys/block/vda", b"../devices/vda"));
        let bundle = Bundle::read(gathered.bytes()).expect("a bundle");
        assert_eq!(bundle.names("/sys/cpu").collect::<Vec<_>>(), ["cpu1", "cpu0"]);
        assert_eq!(bundle.text("/sys/cpu/cpu1/online"), Some("1"));
        assert_eq!(bundle.content("/empty"), Some(&b""[..]));
        assert_eq!(bundle.link("/sys/block/vda"), Some(Path::new("../devices/vda")));
        assert_eq!(bundle.content("/sys/block/vda"), None, "of another kind");
        assert_eq!(bundle.names("/nowhere").count(), 0);
        for end in 1..gathered.bytes().len() {
            let cut = Bundle::read(&gathered.bytes()[..end]);
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.0.len() < 4), "cut at {end}");
        }
        assert_eq!(Bundle::read(&[9, 0, 0, 0, 0, 0, 0]), Err(Malformed::Range));
    }

    #[test]
    fn more_than_there_is_room_for_is_left_out() {
        let mut gathered = Gathered::default();
        assert!(!gathered.add(Kind::Content, b"/a", &vec![0; BUNDLE_MAX]));
        assert!(gathered.add(Kind::Content, b"/a", &vec![0; BUNDLE_MAX - 9]));
        assert!(!gathered.add(Kind::Content, b"", b""));
        assert!(Bundle::read(gathered.bytes()).is_ok());
    }
}
