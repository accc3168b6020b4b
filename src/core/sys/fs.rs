//! Filesystem controls: freezing, thawing and trimming, and which mount a descriptor is on.
//!
//! Trust: takes descriptors and numbers, no host input. The broker's, but for
//! [`mount_id`]: its `fsfreeze` and `acts` call them from threads of their own, for
//! they may block for minutes.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `ioctl` number of FIFREEZE, from `linux/fs.h`: `_IOWR('X', 119, int)`.
pub const FIFREEZE: u32 = 0xc004_5877;
/// `ioctl` number of FITHAW, from `linux/fs.h`: `_IOWR('X', 120, int)`.
pub const FITHAW: u32 = 0xc004_5878;

/// Freezes the filesystem that `dir` is on. Blocks, in a way that no signal
/// ends, until what is being written has reached the disk.
///
/// # Errors
/// `EBUSY`: frozen already. `EOPNOTSUPP`: this filesystem cannot be frozen.
/// Others: the filesystem could not be made clean.
pub fn freeze(dir: BorrowedFd<'_>) -> nix::Result<()> {
    control(dir, FIFREEZE)
}

/// Thaws the filesystem that `dir` is on.
///
/// # Errors
/// `EINVAL`: it was not frozen. Others: it stays frozen.
pub fn thaw(dir: BorrowedFd<'_>) -> nix::Result<()> {
    control(dir, FITHAW)
}

/// One of the two requests above, which take no argument.
fn control(dir: BorrowedFd<'_>, request: u32) -> nix::Result<()> {
    let nothing: c_int = 0;
    // SAFETY: the descriptor is open for the length of the call; both requests
    // ignore their argument, so the kernel touches no memory of ours.
    Errno::result(unsafe { libc::ioctl(dir.as_raw_fd(), request.into(), nothing) }).map(drop)
}

/// `ioctl` number of FITRIM, from `linux/fs.h`: `_IOWR('X', 121, struct fstrim_range)`.
pub const FITRIM: u32 = 0xc018_5879;

/// `struct fstrim_range` of `linux/fs.h`, in bytes.
#[repr(C)]
struct TrimRange {
    start: u64,
    length: u64,
    minimum: u64,
}

/// Tells the disk below the filesystem that `dir` is on of all its free ranges
/// of at least `minimum` bytes. Returns how many bytes that were, and the
/// minimum as the filesystem rounded it. May take minutes; a signal that kills
/// the process ends it.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY`: not by this filesystem or disk. `EINVAL`: `minimum` is
/// larger than the filesystem takes.
pub fn trim(dir: BorrowedFd<'_>, minimum: u64) -> nix::Result<(u64, u64)> {
    let mut range = TrimRange { start: 0, length: u64::MAX, minimum };
    // SAFETY: the descriptor is open for the length of the call, and the request
    // reads and writes one `fstrim_range`, which `range` is, for as long as it lives.
    Errno::result(unsafe { libc::ioctl(dir.as_raw_fd(), FITRIM.into(), &raw mut range) })?;
    Ok((range.length, range.minimum))
}

/// The type bits of a mode.
pub const TYPE: u32 = libc::S_IFMT;

/// Which object a descriptor is of, and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its device, as `st_dev`.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// When the content was last changed, in seconds since 1970 and
    /// nanoseconds.
    pub mtime: (i64, u32),
}

/// Which object `file` is of, as far as this kernel knows: a server of a
/// network filesystem is not asked, so this does not wait.
///
/// # Errors
/// Those of `statx(2)`.
pub fn object(file: BorrowedFd<'_>) -> nix::Result<Object> {
    const MASK: u32 = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_INO | libc::STATX_SIZE | libc::STATX_MTIME;
    let answer = statx(file, libc::AT_STATX_DONT_SYNC, MASK)?;
    Ok(Object {
        device: libc::makedev(answer.stx_dev_major, answer.stx_dev_minor),
        inode: answer.stx_ino,
        mode: answer.stx_mode.into(),
        size: answer.stx_size,
        mtime: (answer.stx_mtime.tv_sec, answer.stx_mtime.tv_nsec),
    })
}

/// The id of the mount that `file` was opened through, as
/// `/proc/self/mountinfo` shows it in its first field. Linux 5.8.
///
/// # Errors
/// Those of `statx(2)`; `ENOSYS` where the kernel does not tell.
pub fn mount_id(file: BorrowedFd<'_>) -> nix::Result<u64> {
    let mask = libc::STATX_MNT_ID;
    // What else the call would tell, a server would be asked for.
    let answer = statx(file, libc::AT_STATX_DONT_SYNC, mask)?;
    if answer.stx_mask & mask == 0 {
        return Err(Errno::ENOSYS);
    }
    Ok(answer.stx_mnt_id)
}

fn statx(file: BorrowedFd<'_>, flags: c_int, mask: u32) -> nix::Result<libc::statx> {
    let flags = libc::AT_EMPTY_PATH | flags;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH permits, the
    // descriptor is open, and `answer` has room for one statx.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, answer.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: zeroed bytes are a valid statx, and the kernel filled it in.
    Ok(unsafe { answer.assume_init() })
}
