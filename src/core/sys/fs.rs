//! Filesystem controls: freezing and thawing.
//!
//! Trust: the broker's alone.

/// `ioctl` number of FIFREEZE, from `linux/fs.h`: `_IOWR('X', 119, int)`.
pub const FIFREEZE: u32 = 0xc004_5877;
/// `ioctl` number of FITHAW, from `linux/fs.h`: `_IOWR('X', 120, int)`.
pub const FITHAW: u32 = 0xc004_5878;
