//! Descriptors: taking over inherited ones, and what the kernel says of one.
//!
//! Trust: the numbers come from postern's own launch code, never from a host.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Takes over a descriptor that this process was born with.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks; a number that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    Errno::result(flags)?;
    // SAFETY: the descriptor is open, and by the contract of the launch code
    // (each number handed to exactly one owner, at birth) nothing else in this
    // process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes over a descriptor that the kernel has just put into this process.
pub(crate) fn received(number: RawFd) -> OwnedFd {
    // SAFETY: SCM_RIGHTS installs a fresh descriptor that no one else knows;
    // the caller takes each number out of one control message once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Moves a descriptor to a fixed number, which filters and documentation name.
/// What was open under that number is closed.
///
/// # Errors
/// `EMFILE` if the number is above the limit on descriptors.
pub fn move_to(descriptor: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() == number {
        return Ok(descriptor);
    }
    // SAFETY: dup3 on an open descriptor; `number` is one of postern's fixed
    // numbers, which no Rust value owns before this call gives it an owner.
    let moved = unsafe { libc::dup3(descriptor.as_raw_fd(), number, libc::O_CLOEXEC) };
    Errno::result(moved)?;
    // SAFETY: dup3 succeeded, so `number` is open, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on, so that nothing leaks into a
/// process that confines itself.
///
/// # Errors
/// `ENOSYS` before Linux 5.9, where postern does not run.
pub fn close_from(first: RawFd) -> io::Result<()> {
    let first = u32::try_from(first).map_err(|_| Errno::EBADF)?;
    // SAFETY: called at birth, before any descriptor from `first` on has an
    // owner in this process.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    Errno::result(result)?;
    Ok(())
}

/// What `fstat` says of an object; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device that holds the object, as `st_dev`.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size.
    pub size: u64,
    /// Number of names.
    pub links: u64,
    /// The device that a device node stands for, as `st_rdev`.
    pub stands_for: u64,
    /// When it was changed last, in seconds since 1970 and nanoseconds: its content, its
    /// permissions, its number of names.
    pub changed: (i64, i64),
}

/// `fstat` by its own system call: it takes a descriptor and no path, so a
/// filter that allows it allows no look at any path. The C library's function
/// may call `newfstatat` instead, which takes one.
///
/// # Errors
/// As fstat(2).
pub fn stat(descriptor: BorrowedFd<'_>) -> Result<Stat, Errno> {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: on x86_64 and aarch64 the C library's `struct stat` is the
    // kernel's; the pointer is to a whole one.
    let result = unsafe { libc::syscall(libc::SYS_fstat, descriptor.as_raw_fd(), stat.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: zeroed is a valid value of this plain struct, and the call
    // succeeded.
    let stat = unsafe { stat.assume_init() };
    Ok(Stat {
        device: stat.st_dev,
        inode: stat.st_ino,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        #[allow(clippy::useless_conversion, reason = "32 bits on aarch64")]
        links: u64::from(stat.st_nlink),
        stands_for: stat.st_rdev,
        changed: (stat.st_ctime, stat.st_ctime_nsec),
    })
}

/// What the kernel says of a socket under a number of `SOL_SOCKET` whose value is an
/// `int`, such as `SO_DOMAIN`.
///
/// # Errors
/// As getsockopt(2).
pub fn socket_option(socket: BorrowedFd<'_>, option: libc::c_int) -> Result<libc::c_int, Errno> {
    let mut value: libc::c_int = 0;
    #[expect(clippy::cast_possible_truncation, reason = "4 bytes")]
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to live values of this function, and the kernel
    // writes no more than `length` bytes, which is the value's size.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut length)
    };
    Errno::result(result)?;
    Ok(value)
}
