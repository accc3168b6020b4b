//! What keeps the broker from its host, in an operator's words.
//!
//! Trust: plain data. Called by `host`, and by the launch that tells it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The port can't be opened.
    #[error("{path}: {why}; is the virtio-serial port there, and given to this guest?", path = .0.display(), why = .1)]
    Port(PathBuf, Errno),
    /// What must be watched for the port's return can't be.
    #[error(
        "{path}: can't watch for its return: {why}; is fs.inotify.max_user_instances (sysctl) used up?",
        path = .0.display(), why = .1
    )]
    Watch(PathBuf, Errno),
    /// The port was unplugged, came back, and a worker may not open it.
    #[error(
        "{path} was unplugged and is back, but the worker's account can't open it ({why}); have udev give it to that \
         account's group (MODE=\"0660\"), and start postern again",
        path = .0.display(), why = .1
    )]
    NotReopened(PathBuf, Errno),
    /// The serial line hung up while postern served it.
    #[error("the serial line hung up; start postern again when it is back")]
    HungUp,
    /// What is there is no character device.
    #[error("{}: not a character device; a port is one", .0.display())]
    NotAPort(PathBuf),
    /// What is there is no serial line.
    #[error("{}: not a serial line; name a virtio-serial port with virtio-serial", .0.display())]
    NotATerminal(PathBuf),
    /// The serial line can't be set up.
    #[error("{path}: can't put the serial line into raw mode: {why}", path = .0.display(), why = .1)]
    Line(PathBuf, Errno),
    /// Listening on vsock failed.
    #[error(
        "can't listen on vsock port {0}: {1}; is the port free, and has this guest a vsock device (module \
         vmw_vsock_virtio_transport)?"
    )]
    Vsock(u32, Errno),
    /// Another process listens there.
    #[error("{}: another process listens on this socket; stop it first", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket stands there.
    #[error("{}: something other than a socket is in the way; remove it or choose another path", .0.display())]
    InTheWay(PathBuf),
    /// Another account could lead the path elsewhere.
    #[error(
        "{}: in a directory that another user can change, who could put another socket there; choose another path",
        .0.display()
    )]
    Unsafe(PathBuf),
    /// Making the socket failed.
    #[error("{}: can't listen: {}", .0.display(), .1)]
    Listen(PathBuf, io::Error),
    /// What the service manager passed is none of what it may.
    #[error(
        "socket activation may pass one listening unix stream socket and one netlink socket, and passed something \
         else; write one ListenStream=, or ListenNetlink=route 0 with FileDescriptorName=netlink"
    )]
    Activation,
    /// Any account could be the host on the socket that was passed.
    #[error("every account may connect to the socket that was passed by socket activation; write SocketMode=0600")]
    OpenToAll,
}

impl HostError {
    /// Whether this may be otherwise when the path, or what holds it, changes.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Port(_, errno) => {
                matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO | Errno::ENODEV | Errno::EBUSY)
            }
            Self::Listen(_, why) => matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            _ => false,
        }
    }
}
