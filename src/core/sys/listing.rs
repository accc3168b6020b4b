//! A directory held by descriptor: what is in it, and what each entry is,
//! without opening any.
//!
//! Trust: names in a directory may be anything. The broker's log calls this, of its
//! own directory, and the opener, of the kernel's.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Bytes that are asked for at once; the kernel's largest entry takes 280.
const ROOM: usize = 32 << 10;
/// Where `linux_dirent64` has the length of an entry, its type and its name:
/// getdents64(2).
const LENGTH_AT: usize = 16;
const TYPE_AT: usize = 18;
const NAME_AT: usize = 19;

/// The names in a directory, in no order, without `.` and `..`.
///
/// # Errors
/// Those of `lseek(2)` and `getdents64(2)`.
pub fn names(directory: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    lseek(directory, 0, Whence::SeekSet)?;
    let mut names = Vec::new();
    list(directory, &mut Vec::new(), |_, name| names.push(name.to_owned()))?;
    Ok(names)
}

/// The same of a directory that was just opened, without sockets, pipes and devices:
/// what cannot be read for what stands in it. They are added to `names`, a NUL behind
/// each; `room` is kept from one call to the next.
///
/// # Errors
/// Those of `getdents64(2)`; some names may have been added.
pub fn names_once(directory: BorrowedFd<'_>, room: &mut Vec<u8>, names: &mut Vec<u8>) -> nix::Result<()> {
    list(directory, room, |kind, name| {
        // Not every filesystem knows types.
        if !matches!(kind, libc::DT_SOCK | libc::DT_FIFO | libc::DT_CHR | libc::DT_BLK) {
            names.extend_from_slice(name.to_bytes_with_nul());
        }
    })
}

fn list(directory: BorrowedFd<'_>, room: &mut Vec<u8>, mut add: impl FnMut(u8, &CStr)) -> nix::Result<()> {
    room.resize(ROOM, 0);
    loop {
        // SAFETY: the descriptor is open, and the kernel writes at most
        // `room.len()` bytes to where `room` has that many.
        let filled =
            unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), room.as_mut_ptr(), room.len()) };
        Errno::result(filled)?;
        let Some(mut entries) = usize::try_from(filled).ok().and_then(|filled| room.get(..filled)) else {
            return Err(Errno::EIO);
        };
        if entries.is_empty() {
            return Ok(());
        }
        while !entries.is_empty() {
            let (kind, entry, rest) = first(entries).ok_or(Errno::EIO)?;
            entries = rest;
            if !matches!(entry.to_bytes(), b"." | b"..") {
                add(kind, entry);
            }
        }
    }
}

/// Type and name of the first entry, and the entries behind it.
fn first(entries: &[u8]) -> Option<(u8, &CStr, &[u8])> {
    let length = u16::from_ne_bytes(entries.get(LENGTH_AT..LENGTH_AT + 2)?.try_into().ok()?);
    let (entry, rest) = entries.split_at_checked(length.into())?;
    Some((*entry.get(TYPE_AT)?, CStr::from_bytes_until_nul(entry.get(NAME_AT..)?).ok()?, rest))
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Device that holds it, as `st_dev`.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// When it was last written.
    pub written: SystemTime,
}

/// What `name` in `directory` is; of a link, the link itself.
///
/// # Errors
/// Those of `statx(2)`; `ENOENT` where it is not there.
pub fn entry(directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<Entry> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is a C string, the descriptor is open, and `answer` has
    // room for one statx.
    let result = unsafe {
        libc::statx(directory.as_raw_fd(), name.as_ptr(), flags, libc::STATX_BASIC_STATS, answer.as_mut_ptr())
    };
    Errno::result(result)?;
    // SAFETY: zeroed bytes are a valid statx, and the kernel filled it in.
    let answer = unsafe { answer.assume_init() };
    let written = &answer.stx_mtime;
    let since = Duration::new(u64::try_from(written.tv_sec).unwrap_or(0), written.tv_nsec);
    Ok(Entry {
        device: libc::makedev(answer.stx_dev_major, answer.stx_dev_minor),
        inode: answer.stx_ino,
        mode: answer.stx_mode.into(),
        size: answer.stx_size,
        // A file from before 1970 is as old as one of 1970.
        written: SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_directory_is_listed_anew_each_time() {
        let directory = std::env::temp_dir().join(format!("postern-listing-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let open = File::open(&directory).expect("the directory");
        // More than one call of the kernel's takes.
        let wanted: BTreeSet<String> = (0..2000).map(|number| format!("{number:0>64}")).collect();
        for name in &wanted {
            fs::write(directory.join(name), name).expect("a file");
        }
        let found = |open: &File| -> BTreeSet<String> {
            let names = names(open.as_fd()).expect("a listing");
            names.into_iter().map(|name| name.into_string().expect("UTF-8")).collect()
        };
        assert_eq!(found(&open), wanted);
        fs::remove_file(directory.join(wanted.first().expect("one"))).expect("removed");
        assert_eq!(found(&open).len(), 1999);
        let name = CString::new(wanted.last().expect("one").as_str()).expect("no NUL");
        let seen = entry(open.as_fd(), &name).expect("there");
        assert_eq!((seen.size, seen.mode & libc::S_IFMT), (64, libc::S_IFREG));
        assert!(seen.written > SystemTime::UNIX_EPOCH);
        assert_eq!(entry(open.as_fd(), c"missing"), Err(Errno::ENOENT));
        nix::unistd::mkfifo(&directory.join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert!(found(&open).contains("pipe"));
        let fresh = File::open(&directory).expect("the directory");
        let mut once = Vec::new();
        names_once(fresh.as_fd(), &mut Vec::new(), &mut once).expect("a listing");
        let once: Vec<&[u8]> = once.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        assert!(once.len() == 1999 && !once.contains(&&b"pipe"[..]), "it is nothing to read");
        fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(names(open.as_fd()), Err(Errno::ENOENT), "as getdents(2) has it");
    }
}
