//! How wide a terminal is.
//!
//! Trust: asks the kernel about a descriptor of our own.

use std::os::fd::{AsFd, AsRawFd};

mod ioctl {
    nix::ioctl_read_bad!(winsize, libc::TIOCGWINSZ, libc::winsize);
}

/// Columns of the terminal at `fd`; `None` if it is no terminal or has no size.
#[must_use]
pub fn columns(fd: impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is a valid,
    // exclusive one for the length of the call.
    unsafe { ioctl::winsize(fd.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}
