//! Socket activation, by a stand-in for a service manager.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::cell;
use super::runner::Role;

/// To be among the roles of a target that activates.
pub(crate) const ROLE: Role = ("activate", activate);

/// Does what a service manager does: puts a socket at each descriptor from 3 on and
/// becomes the program. Arguments: the path of the one that listens, the sockets'
/// names with `:` between them, how many to announce, the program and its arguments.
/// What is named `netlink` or `uevents` is of that protocol; anything else listens.
fn activate(arguments: &[String]) {
    let [path, names, count, program, arguments @ ..] = arguments else { panic!("four arguments") };
    let sockets: Vec<OwnedFd> = names.split(':').map(|name| passed(name, path)).collect();
    for (socket, number) in sockets.iter().zip(3..) {
        assert_eq!(socket.as_raw_fd(), number, "sd_listen_fds(3)");
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("no close-on-exec");
    }
    let mut command = Command::new(program);
    command.args(arguments).env("LISTEN_PID", std::process::id().to_string());
    command.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", names);
    panic!("{}", command.exec());
}

fn passed(name: &str, path: &str) -> OwnedFd {
    let protocol = match name {
        "netlink" => SockProtocol::NetlinkRoute,
        "uevents" => SockProtocol::NetlinkKObjectUEvent,
        _ => return UnixListener::bind(path).expect("a socket").into(),
    };
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), protocol).expect("a socket")
}

/// The command that starts `plain`'s program with a passed socket; it says
/// nothing.
pub(crate) fn activated(plain: &Command, socket: &Path, count: &str) -> Command {
    activated_with(plain, socket, "host", count)
}

/// As [`activated`], with sockets of these names.
pub(crate) fn activated_with(plain: &Command, socket: &Path, names: &str, count: &str) -> Command {
    let mut command = Command::new(cell::SELF);
    command.args(["--role", ROLE.0]).arg(socket).args([names, count]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
