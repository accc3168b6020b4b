//! How wide a terminal is, and what must never reach one.
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

/// Whether a character never leaves postern as it is:
/// controls (C0, DEL, C1), line and paragraph separators, and the marks that
/// turn the direction of text, with which a name can look like another.
/// All of them are in the basic plane, so four digits suffice.
#[must_use]
pub fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
