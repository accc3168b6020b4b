//! Where the host is met: a port, a listening socket, or one that a service
//! manager passed.
//!
//! The broker keeps the channel's descriptor and hands duplicates to workers,
//! so a worker that dies does not close the channel. It never reads from it.
//!
//! Trust: paths come from the policy or the command line. Who connects to a
//! socket is not trusted; who they are is the kernel's word.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{SockFlag, accept4, getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use postern_core::audit::Peer;
use postern_core::messages::ChannelKind;
use postern_core::policy::Channel;
use postern_core::sys::descriptors;

/// First descriptor that socket activation passes, by `sd_listen_fds(3)`.
const ACTIVATED: i32 = 3;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The port can't be opened.
    #[error("{path}: {why}; is the virtio-serial port there, and given to this guest?", path = .0.display(), why = .1)]
    Port(PathBuf, Errno),
    /// The port was unplugged while postern served it.
    #[error("the port was taken away; start postern again when it is back")]
    PortGone,
    /// What is there is no character device.
    #[error("{}: not a character device; a virtio-serial port is one", .0.display())]
    NotAPort(PathBuf),
    /// Another process listens there.
    #[error("{}: another process listens on this socket; stop it first", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket stands there.
    #[error("{}: something other than a socket is in the way; remove it or choose another path", .0.display())]
    InTheWay(PathBuf),
    /// Making the socket failed.
    #[error("{}: can't listen: {}", .0.display(), .1)]
    Listen(PathBuf, io::Error),
    /// What the service manager passed is not one listening unix socket.
    #[error("socket activation passed no listening unix stream socket as its only descriptor; write one ListenStream=")]
    Activation,
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

/// The channel as the broker holds it.
#[derive(Debug)]
pub(crate) struct Host {
    listener: Option<UnixListener>,
    current: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    channel: OwnedFd,
    kind: ChannelKind,
    peer: Option<Peer>,
}

impl Host {
    /// Opens the channel. As root, before confinement.
    ///
    /// # Errors
    /// See [`HostError`].
    pub(crate) fn open(channel: &Channel) -> Result<Self, HostError> {
        match channel {
            Channel::VirtioSerial(path) => Self::open_port(path),
            Channel::UnixListen(path) => Self::listen(path),
        }
    }

    /// The socket that a service manager passed, if this process was activated
    /// by one: `LISTEN_PID` names it and `LISTEN_FDS` is 1.
    ///
    /// # Errors
    /// [`HostError::Activation`] if anything but one listening socket came.
    pub(crate) fn activated() -> Result<Option<Self>, HostError> {
        let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        if variable("LISTEN_PID") != Some(std::process::id()) {
            return Ok(None);
        }
        if variable("LISTEN_FDS") != Some(1) {
            return Err(HostError::Activation);
        }
        let socket = descriptors::inherited(ACTIVATED).map_err(|_| HostError::Activation)?;
        let listening = getsockopt(&socket, sockopt::AcceptConn).map_err(|_| HostError::Activation)?;
        let listener = UnixListener::from(socket);
        // local_addr fails for every family but unix.
        if !listening || listener.local_addr().is_err() || listener.set_nonblocking(true).is_err() {
            return Err(HostError::Activation);
        }
        Ok(Some(Self { listener: Some(listener), current: None }))
    }

    fn open_port(path: &Path) -> Result<Self, HostError> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let failed = |why| HostError::Port(path.to_owned(), why);
        let channel = nix::fcntl::open(path, flags, Mode::empty()).map_err(failed)?;
        let stat = descriptors::stat(channel.as_fd()).map_err(|_| failed(Errno::EIO))?;
        if stat.mode & nix::sys::stat::SFlag::S_IFMT.bits() != nix::sys::stat::SFlag::S_IFCHR.bits() {
            return Err(HostError::NotAPort(path.to_owned()));
        }
        let current = Some(Connection { channel, kind: ChannelKind::Port, peer: None });
        Ok(Self { listener: None, current })
    }

    fn listen(path: &Path) -> Result<Self, HostError> {
        let failed = |why| HostError::Listen(path.to_owned(), why);
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(HostError::InTheWay(path.to_owned())),
            // Left over by a postern that was killed: nobody accepts on it.
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                _ => return Err(HostError::InUse(path.to_owned())),
            },
        }
        // Born closed to others; there is no moment in which it is open.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener: Some(listener), current: None })
    }

    /// Whether this channel listens.
    #[must_use]
    pub(crate) const fn listens(&self) -> bool {
        self.listener.is_some()
    }

    /// What to poll: the listener, while no host is connected. One host at a
    /// time; the next waits in the backlog.
    #[must_use]
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        if self.current.is_some() { None } else { self.listener.as_ref().map(AsFd::as_fd) }
    }

    /// Takes in the next host, if one is there. Returns whether one is.
    pub(crate) fn accept(&mut self) -> bool {
        let Some(listener) = self.listener.as_ref().filter(|_| self.current.is_none()) else { return false };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(number) = accept4(listener.as_raw_fd(), flags) else { return false };
        let Ok(channel) = descriptors::inherited(number) else { return false };
        let peer = getsockopt(&channel, sockopt::PeerCredentials).ok().map(|peer| Peer {
            pid: peer.pid(),
            uid: peer.uid(),
            gid: peer.gid(),
        });
        self.current = Some(Connection { channel, kind: ChannelKind::Stream, peer });
        true
    }

    /// The connected host's channel, to hand to a worker.
    #[must_use]
    pub(crate) fn current(&self) -> Option<(BorrowedFd<'_>, ChannelKind, Option<Peer>)> {
        self.current.as_ref().map(|current| (current.channel.as_fd(), current.kind, current.peer))
    }

    /// Whether this channel is a port, which may be unplugged.
    pub(crate) fn is_port(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.kind == ChannelKind::Port)
    }

    /// Lets go of a host that left, and says who it was. `None`: there is none
    /// that could have left. A port stays: postern has no other.
    pub(crate) fn drop_current(&mut self) -> Option<Left> {
        let gone = self.current.take_if(|current| current.kind == ChannelKind::Stream)?;
        Some(Left { peer: gone.peer })
    }
}

/// A host that has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// Who it was, if the kernel knew.
    pub(crate) peer: Option<Peer>,
}
