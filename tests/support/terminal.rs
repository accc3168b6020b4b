//! Pseudoterminals that stand in for a port or a serial line: character devices
//! that read and write as one does. In a cell only, which has its own `/dev/pts`.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// Gives the cell terminals of its own. Once, before the first.
pub(crate) fn mount_terminals() {
    let options = Some("newinstance,ptmxmode=0666");
    mount(Some("devpts"), "/dev/pts", Some("devpts"), MsFlags::empty(), options).expect("devpts");
}

/// A terminal as the kernel sets it up, a line for people: the host's end, the
/// path of the other one, and that one open, so that it does not hang up.
pub(crate) fn pty() -> (File, PathBuf, OwnedFd) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pty");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other end");
    let path = PathBuf::from(ptsname_r(&master).expect("its name"));
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let slave = nix::fcntl::open(&path, flags, Mode::empty()).expect("its other end");
    (File::from(OwnedFd::from(master)), path, slave)
}

/// As [`pty`], for bytes as they are.
pub(crate) fn raw_pty() -> (File, PathBuf, OwnedFd) {
    let (master, path, slave) = pty();
    let mut raw = tcgetattr(&slave).expect("its settings");
    cfmakeraw(&mut raw);
    tcsetattr(&slave, SetArg::TCSANOW, &raw).expect("its settings");
    (master, path, slave)
}

pub(crate) fn readable_within(from: &File, milliseconds: u16) -> bool {
    let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::from(milliseconds)).expect("poll") > 0
}

/// Waits for a line; with its newline.
pub(crate) fn line(from: &mut File) -> String {
    String::from_utf8(bytes_of_line(from)).expect("text")
}

/// As [`line`], whatever the bytes.
pub(crate) fn bytes_of_line(from: &mut File) -> Vec<u8> {
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        assert!(readable_within(from, 30_000), "in vain: {text:?}");
        from.read_exact(&mut byte).expect("a byte");
        text.push(byte[0]);
    }
    text
}
