//! Signals to init. nix names no real-time signals, which systemd wants.
//!
//! Trust: takes a number that the broker computed from its policy. Called by
//! the broker's `shutdown` alone.

use nix::errno::Errno;

/// systemd and glibc count real-time signals from here: the kernel's first is
/// 32, and glibc keeps two for its threads. `libc::SIGRTMIN()` would give
/// musl's 35 in a musl build, and init would take +4 for +5.
pub const SIGRTMIN: i32 = 34;

/// Sends `signal` to process 1 of this PID namespace.
///
/// # Errors
/// `EPERM`: without `CAP_KILL`. `EINVAL`: no such signal.
pub fn signal(signal: i32) -> nix::Result<()> {
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    Errno::result(unsafe { libc::kill(1, signal) }).map(drop)
}
