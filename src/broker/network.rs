//! What tells of the guest's network: a netlink socket, over which the kernel answers
//! about interfaces, opened at the start if the policy has them told, and handed to
//! workers as it is; and whose tables of routes are the guest's.
//!
//! What a descriptor shows is the network namespace in which it was opened. That is
//! this process's own, unless a service manager passed the socket: then both are
//! process 1's, for this one is in a namespace with nothing in it.
//!
//! Trust: runs as who started it, before any host byte is read. Nothing is read here
//! from any of them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use postern_core::catalogue::facts::{Fact, FactSet, Reads};

/// The socket.
#[derive(Debug)]
pub(crate) struct Network {
    socket: Option<OwnedFd>,
    /// It was passed nothing, and is not where process 1 is.
    apart: bool,
    of: &'static str,
}

impl Network {
    /// Opens what `facts` are read from. A socket that was passed and is not needed
    /// is closed.
    ///
    /// # Errors
    /// As socket(2).
    pub(crate) fn open(facts: FactSet, passed: Option<OwnedFd>) -> io::Result<Self> {
        let of = if passed.is_some() { "1" } else { "self" };
        let of_network = |fact: Fact| matches!(fact.row().reads, Reads::Netlink | Reads::Network(_));
        let apart = passed.is_none() && facts.iter().any(of_network) && is_apart();
        let (flags, route) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        let own = || socket(AddressFamily::Netlink, SockType::Raw, flags, route);
        let tells = facts.contains(Fact::Interfaces);
        let socket = tells.then(|| passed.map_or_else(own, Ok)).transpose()?;
        Ok(Self { socket, apart, of })
    }

    /// Whose network that is, as a name in `/proc`.
    pub(crate) const fn of(&self) -> &'static str {
        self.of
    }

    /// What a worker asks for interfaces.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// What the operator should know.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        self.apart.then_some(
            "postern is in a network namespace of its own and tells of that alone; have systemd pass it \
             postern-netlink.socket, or leave PrivateNetwork= out",
        )
    }
}

/// Whether this process is in another network namespace than process 1: a file that
/// each has of its own is another one.
fn is_apart() -> bool {
    let inode = |of: &str| fs::metadata(format!("/proc/{of}/net/dev")).map(|found| found.ino()).ok();
    inode("1").is_some_and(|first| inode("self").is_some_and(|own| own != first))
}
