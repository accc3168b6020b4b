//! What the opener gathered of the guest's files for one command, as one piece of
//! bytes: records of a kind, a path, and what stands there, unparsed.
//!
//! What was read beneath a name in a directory stands behind that name, which stands
//! behind the directory: who reads it goes through it once, and looks nothing up.
//!
//! Trust: the opener writes it from files of the kernel's and of root's; the
//! worker reads it. Reading is total all the same: a piece that is cut off, or
//! none of ours, is no bundle.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::codec::{Malformed, Reader, Wire};

/// Most bytes of one bundle: more than the memory blocks of a guest of 16 TiB take.
pub const BUNDLE_MAX: usize = 8 << 20;

/// What a record tells of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What stands in the file.
    Content,
    /// Where the link leads, as it is written; of an entry of `/sys/class`, to its
    /// device.
    Link,
    /// The names in the directory, a NUL behind each.
    Names,
    /// How full the filesystem is: the size of a block, and how many blocks there are,
    /// are free, and are free for users.
    Space,
    /// A directory, or what else has entries; nothing is told of it but that it is
    /// there. What follows is in it, until the next.
    Directory,
    /// A name in that directory. What follows is beneath it, until the next, with paths
    /// from there, or from the root.
    Entry,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Content, Self::Link, Self::Names, Self::Space, Self::Directory, Self::Entry];
}

/// Writes a bundle, record by record.
#[derive(Debug, Default)]
pub struct Gathered(Vec<u8>);

impl Gathered {
    /// Adds a record; whether it found room. A longer path than Linux has is
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

    /// Forgets all of it, and keeps the room.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record<'a> {
    kind: Kind,
    path: &'a [u8],
    told: &'a [u8],
}

/// Records behind each other, of which each is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    fn first(&mut self) -> Result<Record<'a>, Malformed> {
        let mut reader = Reader(self.0);
        let kind = *Kind::ALL.get(usize::from(u8::take(&mut reader)?)).ok_or(Malformed::Range)?;
        let length = u16::take(&mut reader)?;
        let path = reader.bytes(length.into())?;
        let length = u32::take(&mut reader)?;
        let told = reader.bytes(usize::try_from(length).map_err(|_| Malformed::Short)?)?;
        self.0 = reader.0;
        Ok(Record { kind, path, told })
    }

    /// Those before the next one of these kinds, which is the first that is left.
    fn until(&mut self, ends: impl Fn(Kind) -> bool) -> Self {
        let all = self.0;
        let mut rest = *self;
        while let Some(record) = rest.next() {
            if ends(record.kind) {
                break;
            }
            *self = rest;
        }
        Self(&all[..all.len() - self.0.len()])
    }
}

#[expect(clippy::copy_iterator, reason = "it is a slice, gone through more than once")]
impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        self.first().ok()
    }
}

/// A bundle that is well-formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bundle<'a>(Records<'a>);

impl<'a> Bundle<'a> {
    /// The bundle that `bytes` are, wholly.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut records = Records(bytes);
        while !records.0.is_empty() {
            records.first()?;
        }
        Ok(Self(Records(bytes)))
    }

    /// What stands in a file that was gathered by itself, without the newline that most
    /// files of `/sys` end with; `None` where it was not there or could not be read.
    #[must_use]
    pub fn content(&self, path: impl AsRef<Path>) -> Option<&'a [u8]> {
        Some(without_newline(self.told(Kind::Content, path.as_ref())?))
    }

    /// The same as text, where it is UTF-8.
    #[must_use]
    pub fn text(&self, path: impl AsRef<Path>) -> Option<&'a str> {
        str::from_utf8(self.content(path)?).ok()
    }

    /// What is told of a path, in this way.
    #[must_use]
    pub fn told(&self, kind: Kind, path: &Path) -> Option<&'a [u8]> {
        find(self.0, kind, path.as_os_str().as_bytes())
    }

    /// The entries of a directory in the order in which they were found; `None` where
    /// there was no such directory.
    #[must_use]
    pub fn directory(&self, path: &str) -> Option<Entries<'a>> {
        let mut records = self.0;
        records.find(|record| record.kind == Kind::Directory && record.path == path.as_bytes())?;
        Some(Entries(records.until(|kind| kind == Kind::Directory)))
    }
}

fn find<'a>(mut records: Records<'a>, kind: Kind, path: &[u8]) -> Option<&'a [u8]> {
    records.find(|record| record.kind == kind && record.path == path).map(|record| record.told)
}

fn without_newline(content: &[u8]) -> &[u8] {
    content.strip_suffix(b"\n").unwrap_or(content)
}

/// What was gathered beneath the names in a directory.
#[derive(Clone, Debug)]
pub struct Entries<'a>(Records<'a>);

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let name = self.0.find(|record| record.kind == Kind::Entry)?.path;
        Some(Entry { name, beneath: self.0.until(|kind| kind == Kind::Entry) })
    }
}

/// A name in a directory, and what was gathered beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name.
    pub name: &'a [u8],
    beneath: Records<'a>,
}

impl<'a> Entry<'a> {
    /// What stands in a file, without a newline at its end; the empty path is the entry
    /// itself.
    #[must_use]
    pub fn content(&self, path: &str) -> Option<&'a [u8]> {
        Some(without_newline(find(self.beneath, Kind::Content, path.as_bytes())?))
    }

    /// The same as text, where it is UTF-8.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&'a str> {
        str::from_utf8(self.content(path)?).ok()
    }

    /// Where a link leads, as it is written.
    #[must_use]
    pub fn link(&self, path: &str) -> Option<&'a Path> {
        find(self.beneath, Kind::Link, path.as_bytes()).map(path_of)
    }

    /// The names in a directory, in the order in which the kernel has them.
    #[must_use]
    pub fn names(&self, path: &str) -> impl DoubleEndedIterator<Item = &'a OsStr> + use<'a> {
        names_of(find(self.beneath, Kind::Names, path.as_bytes()).unwrap_or_default())
    }

    /// How full the filesystem is that this is.
    #[must_use]
    pub fn space(&self) -> Option<&'a [u8]> {
        find(self.beneath, Kind::Space, b"")
    }

    /// What is told of the first path from the root, in this way: where there is at
    /// most one.
    #[must_use]
    pub fn elsewhere(&self, kind: Kind) -> Option<&'a [u8]> {
        let mut records = self.beneath;
        records.find(|record| record.kind == kind && record.path.starts_with(b"/")).map(|record| record.told)
    }
}

/// The path that these bytes are.
#[must_use]
pub fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The names that are told of a directory.
pub fn names_of(told: &[u8]) -> impl DoubleEndedIterator<Item = &OsStr> {
    told.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(OsStr::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_gathered_is_read() {
        let mut gathered = Gathered::default();
        for (kind, path, told) in [
            (Kind::Content, "/empty", ""),
            (Kind::Directory, "/sys/none", ""),
            (Kind::Directory, "/sys/cpu", ""),
            (Kind::Entry, "cpu1", ""),
            (Kind::Content, "online", "1\n"),
            (Kind::Names, "nodes", "b\0a\0"),
            (Kind::Content, "/run/udev/data/x", "E:y\n"),
            (Kind::Entry, "cpu0", ""),
            (Kind::Link, "", "../devices/cpu0"),
            (Kind::Space, "", "1 2 3 4"),
            (Kind::Directory, "/sys/other", ""),
            (Kind::Entry, "cpu2", ""),
        ] {
            assert!(gathered.add(kind, path.as_bytes(), told.as_bytes()));
        }
        let bundle = Bundle::read(gathered.bytes()).expect("a bundle");
        assert_eq!((bundle.content("/empty"), bundle.content("/nowhere")), (Some(&b""[..]), None));
        assert_eq!(bundle.directory("/sys/none").expect("there").count(), 0);
        assert!(bundle.directory("/sys").is_none());
        let cpus: Vec<Entry<'_>> = bundle.directory("/sys/cpu").expect("there").collect();
        assert_eq!(cpus.iter().map(|cpu| cpu.name).collect::<Vec<_>>(), [b"cpu1", b"cpu0"]);
        assert_eq!((cpus[0].text("online"), cpus[1].text("online")), (Some("1"), None));
        assert_eq!(cpus[0].names("nodes").collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!((cpus[0].names("").count(), cpus[0].link("online")), (0, None), "of another kind");
        assert_eq!(cpus[0].elsewhere(Kind::Content), Some(&b"E:y\n"[..]));
        assert_eq!(cpus[1].link(""), Some(Path::new("../devices/cpu0")));
        assert_eq!((cpus[1].space(), cpus[0].space()), (Some(&b"1 2 3 4"[..]), None));
        assert_eq!(bundle.directory("/sys/other").expect("there").count(), 1);
        for end in 1..gathered.bytes().len() {
            let cut = Bundle::read(&gathered.bytes()[..end]);
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.0.count() < 12), "cut at {end}");
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
        gathered.clear();
        assert_eq!(gathered.bytes(), b"");
    }
}
