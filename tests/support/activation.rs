//! Socket activation, by a stand-in for a service manager.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::cell;
use super::runner::Role;

/// To be among the roles of a target that activates.
pub(crate) const ROLE: Role = ("activate", activate);

/// Does what a service manager does for one listening socket: puts it at
/// descriptor 3 and becomes the program. Arguments: the socket's path, how many
/// sockets to announce, the program and its arguments.
fn activate(arguments: &[String]) {
    let [path, count, program, arguments @ ..] = arguments else { panic!("three arguments") };
    let listener = UnixListener::bind(path).expect("a socket");
    assert_eq!(listener.as_raw_fd(), 3, "sd_listen_fds(3)");
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("no close-on-exec");
    let mut command = Command::new(program);
    command.args(arguments).env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", count);
    panic!("{}", command.exec());
}

/// The command that starts `plain`'s program with a passed socket; it says
/// nothing.
pub(crate) fn activated(plain: &Command, socket: &Path, count: &str) -> Command {
    let mut command = Command::new(cell::SELF);
    command.args(["--role", ROLE.0]).arg(socket).arg(count);
    command.arg(plain.get_program()).args(plain.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
