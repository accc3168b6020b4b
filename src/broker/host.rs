//! Where the host is met: a port, a serial line, a listening socket, or one that
//! a service manager passed.
//!
//! The broker keeps the channel's descriptor and hands duplicates to workers,
//! so a worker that dies does not close the channel. It never reads from it.
//!
//! Trust: paths come from the policy or the command line. Who connects to a
//! socket is not trusted; who they are is the kernel's word: on vsock only one
//! context id may.

mod error;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, getsockopt, listen, socket,
    sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::termios::{ControlFlags, FlushArg, SetArg, cfmakeraw, tcflush, tcgetattr, tcsetattr};
use postern_core::audit::Peer;
use postern_core::confine::filters::{Listens, OPEN_PORT};
use postern_core::messages::ChannelKind;
use postern_core::policy::{Channel, Vsock};
use postern_core::sys::descriptors;

use crate::background::leads_through_others;
use crate::port::{self, Port};
pub(crate) use error::HostError;

/// How often at most a record tells of those that connect and are not the host.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// Speed of a serial line, as stock sets it. Where Linux keeps it; what sets it in
/// the C library can't be linked statically.
const BAUD: nix::libc::tcflag_t = nix::libc::B38400;

/// The channel as the broker holds it.
#[derive(Debug)]
pub(crate) struct Host {
    place: Place,
    current: Option<Connection>,
}

/// Where the host is met.
#[derive(Debug)]
enum Place {
    Unix(UnixListener),
    Vsock(VsockListener),
    Port(Port),
    Serial,
}

#[derive(Debug)]
struct VsockListener {
    socket: OwnedFd,
    /// The one context id that may connect.
    peer: u32,
    /// How many others came since the last record of one, and when that was.
    others: u64,
    told: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    channel: OwnedFd,
    kind: ChannelKind,
    peer: Option<Peer>,
}

/// Who was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Nobody, or nobody worth a record.
    Nobody,
    /// The next host.
    Host,
    /// One that is not the host, and was closed; `times` such since the last
    /// that was told of.
    Other { cid: u32, times: u64 },
}

/// What has become of a channel that a worker lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// A port, which may come back.
    Unplugged,
    /// A serial line, which does not.
    ForGood,
    /// It is there.
    Not,
}

impl Host {
    /// Opens the channel. As root, before confinement.
    ///
    /// # Errors
    /// See [`HostError`].
    pub(crate) fn open(channel: &Channel) -> Result<Self, HostError> {
        match channel {
            Channel::VirtioSerial(path) => Self::open_port(path),
            Channel::IsaSerial(path) => Self::open_line(path),
            Channel::UnixListen(path) => Self::listen(path),
            Channel::VsockListen(vsock) => Self::listen_vsock(*vsock),
        }
    }

    /// The channel that can't be opened now, as one whose port was unplugged.
    ///
    /// # Errors
    /// `why`, if it is no port or not away; see [`HostError`].
    pub(crate) fn unplugged(channel: &Channel, why: HostError) -> Result<Self, HostError> {
        match channel {
            Channel::VirtioSerial(path) if why.may_pass() => {
                Ok(Self { place: Place::Port(Port::absent(path)?), current: None })
            }
            _ => Err(why),
        }
    }

    /// On the socket that a service manager passed.
    ///
    /// # Errors
    /// [`HostError::Activation`] if it is no listening one, [`HostError::OpenToAll`]
    /// if everybody may connect to it: systemd's default.
    pub(crate) fn passed(socket: OwnedFd) -> Result<Self, HostError> {
        let listening = getsockopt(&socket, sockopt::AcceptConn).map_err(|_| HostError::Activation)?;
        let listener = UnixListener::from(socket);
        // local_addr fails for every family but unix.
        if !listening || listener.local_addr().is_err() || listener.set_nonblocking(true).is_err() {
            return Err(HostError::Activation);
        }
        if is_open_to_all(&listener) {
            return Err(HostError::OpenToAll);
        }
        Ok(Self { place: Place::Unix(listener), current: None })
    }

    fn open_port(path: &Path) -> Result<Self, HostError> {
        let channel = open_device(path)?;
        let port = Port::new(path, channel.as_fd())?;
        let current = Some(Connection { channel, kind: ChannelKind::Port, peer: None });
        Ok(Self { place: Place::Port(port), current })
    }

    /// Opens a serial line for bytes as they are. Nothing may ask a terminal
    /// anything later: no filter holds its ioctls.
    fn open_line(path: &Path) -> Result<Self, HostError> {
        let channel = open_device(path)?;
        let failed = |why| match why {
            Errno::ENOTTY => HostError::NotATerminal(path.to_owned()),
            why => HostError::Line(path.to_owned(), why),
        };
        let mut settings = tcgetattr(&channel).map_err(failed)?;
        cfmakeraw(&mut settings);
        // Read although no modem says that there is one; keep quiet lines up
        // when closing, for a restart is no hang-up.
        settings.control_flags &= !(ControlFlags::HUPCL | ControlFlags::CBAUD);
        settings.control_flags |= ControlFlags::CREAD | ControlFlags::CLOCAL | ControlFlags::from_bits_retain(BAUD);
        // What came before is nobody's request.
        tcflush(&channel, FlushArg::TCIFLUSH).map_err(failed)?;
        tcsetattr(&channel, SetArg::TCSANOW, &settings).map_err(failed)?;
        let current = Some(Connection { channel, kind: ChannelKind::Serial, peer: None });
        Ok(Self { place: Place::Serial, current })
    }

    fn listen_vsock(vsock: Vsock) -> Result<Self, HostError> {
        let failed = |why| HostError::Vsock(vsock.port, why);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None).map_err(failed)?;
        bind(socket.as_raw_fd(), &VsockAddr::new(vsock.cid, vsock.port)).map_err(failed)?;
        listen(&socket, Backlog::MAXCONN).map_err(failed)?;
        let listener = VsockListener { socket, peer: vsock.peer, others: 0, told: None };
        Ok(Self { place: Place::Vsock(listener), current: None })
    }

    fn listen(path: &Path) -> Result<Self, HostError> {
        let failed = |why| HostError::Listen(path.to_owned(), why);
        // What is removed, made and given a mode below is named by this path.
        if leads_through_others(path) {
            return Err(HostError::Unsafe(path.to_owned()));
        }
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
        Ok(Self { place: Place::Unix(listener), current: None })
    }

    /// What this channel listens on, if it does.
    #[must_use]
    pub(crate) const fn listens(&self) -> Option<Listens> {
        match self.place {
            Place::Unix(_) => Some(Listens::Unix),
            Place::Vsock(_) => Some(Listens::Vsock),
            Place::Port(_) | Place::Serial => None,
        }
    }

    /// What to poll: the listener, while no host is connected. One host at a
    /// time; the next waits in the backlog.
    #[must_use]
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        if self.current.is_some() {
            return None;
        }
        match &self.place {
            Place::Unix(listener) => Some(listener.as_fd()),
            Place::Vsock(listener) => Some(listener.socket.as_fd()),
            Place::Port(_) | Place::Serial => None,
        }
    }

    /// Takes in the next that connected, if there is one.
    pub(crate) fn accept(&mut self) -> Met {
        if self.current.is_some() {
            return Met::Nobody;
        }
        match &mut self.place {
            Place::Unix(listener) => {
                let Some(channel) = accept_at(listener.as_fd()) else { return Met::Nobody };
                let peer = getsockopt(&channel, sockopt::PeerCredentials).ok().map(|peer| Peer {
                    pid: peer.pid(),
                    uid: peer.uid(),
                    gid: peer.gid(),
                });
                self.current = Some(Connection { channel, kind: ChannelKind::Stream, peer });
                Met::Host
            }
            Place::Vsock(listener) => {
                let Some(channel) = accept_at(listener.socket.as_fd()) else { return Met::Nobody };
                // One that has left already has no name any more.
                let Ok(peer) = getpeername::<VsockAddr>(channel.as_raw_fd()) else { return Met::Nobody };
                if peer.cid() != listener.peer {
                    return listener.refused(peer.cid());
                }
                self.current = Some(Connection { channel, kind: ChannelKind::Stream, peer: None });
                Met::Host
            }
            Place::Port(_) | Place::Serial => Met::Nobody,
        }
    }

    /// The connected host's channel, to hand to a worker.
    #[must_use]
    pub(crate) fn current(&self) -> Option<(BorrowedFd<'_>, ChannelKind, Option<Peer>)> {
        self.current.as_ref().map(|current| (current.channel.as_fd(), current.kind, current.peer))
    }

    /// The port's place, if that is what this channel is.
    pub(crate) const fn port(&self) -> Option<&Port> {
        if let Place::Port(port) = &self.place { Some(port) } else { None }
    }

    /// As [`Host::port`], to change.
    pub(crate) const fn port_mut(&mut self) -> Option<&mut Port> {
        if let Place::Port(port) = &mut self.place { Some(port) } else { None }
    }

    /// Whether the channel is a port that is not there.
    pub(crate) fn is_gone(&self) -> bool {
        self.port().is_some_and(Port::is_gone)
    }

    /// A worker says that it lost its channel: what the kernel says of it.
    pub(crate) fn lost(&mut self) -> Lost {
        let Some(current) = &self.current else { return Lost::Not };
        match &mut self.place {
            Place::Port(port) if port::is_unplugged(current.channel.as_fd()) => {
                port.unplugged();
                // The old node is of no more use to anybody.
                self.current = None;
                Lost::Unplugged
            }
            Place::Serial if port::has_hung_up(current.channel.as_fd()) => Lost::ForGood,
            _ => Lost::Not,
        }
    }

    /// Takes the port that a worker opened, which is back.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn take_back(&mut self, channel: OwnedFd) -> Result<(), &'static str> {
        let Place::Port(port) = &mut self.place else { return Err("it brought a port that there is not") };
        port.take_back(channel.as_fd())?;
        self.current = Some(Connection { channel, kind: ChannelKind::Port, peer: None });
        Ok(())
    }

    /// Lets go of a host that left, and says who it was. `None`: there is none
    /// that could have left. A port stays: postern has no other.
    pub(crate) fn drop_current(&mut self) -> Option<Left> {
        let gone = self.current.take_if(|current| current.kind == ChannelKind::Stream)?;
        Some(Left { peer: gone.peer })
    }
}

impl VsockListener {
    /// Counts one that is not the host, and says whether to tell of it: who may
    /// connect from inside the guest must not be able to fill the log.
    fn refused(&mut self, cid: u32) -> Met {
        self.others += 1;
        if self.told.is_some_and(|told| told.elapsed() < TELL_AGAIN) {
            return Met::Nobody;
        }
        self.told = Some(Instant::now());
        Met::Other { cid, times: std::mem::take(&mut self.others) }
    }
}

/// Whether any account may connect to a listening socket: by its mode, or because
/// its name is abstract and has none.
fn is_open_to_all(listener: &UnixListener) -> bool {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    // One whose name is gone can't be found by anybody.
    path.is_none_or(|path| fs::symlink_metadata(path).is_ok_and(|found| found.permissions().mode() & 0o002 != 0))
}

/// Opens a device node, if it is one.
fn open_device(path: &Path) -> Result<OwnedFd, HostError> {
    let failed = |why| HostError::Port(path.to_owned(), why);
    let channel = nix::fcntl::open(path, OPEN_PORT, Mode::empty()).map_err(failed)?;
    let stat = descriptors::stat(channel.as_fd()).map_err(|_| failed(Errno::EIO))?;
    if stat.mode & nix::sys::stat::SFlag::S_IFMT.bits() != nix::sys::stat::SFlag::S_IFCHR.bits() {
        return Err(HostError::NotAPort(path.to_owned()));
    }
    Ok(channel)
}

fn accept_at(listener: BorrowedFd<'_>) -> Option<OwnedFd> {
    let number = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK).ok()?;
    descriptors::inherited(number).ok()
}

/// A host that has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// Who it was, if the kernel knew.
    pub(crate) peer: Option<Peer>,
}
