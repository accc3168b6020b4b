//! What tells of the guest's network: a netlink socket, over which the kernel answers
//! about interfaces, and its tables of routes. Opened at the start, each only if the
//! policy has it told, and handed to workers as they are.
//!
//! What a descriptor shows is the network namespace in which it was opened. That is
//! this process's own, unless a service manager passed the socket: then both are
//! process 1's, for this one is in a namespace with nothing in it.
//!
//! Trust: runs as who started it, before any host byte is read. Nothing is read here
//! from any of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use postern_core::catalogue::facts::{Fact, FactSet, Reads};

/// The descriptors.
#[derive(Debug)]
pub(crate) struct Network {
    socket: Option<OwnedFd>,
    tables: BTreeMap<Fact, Rc<OwnedFd>>,
    /// It was passed nothing, and is not where process 1 is.
    apart: bool,
}

impl Network {
    /// Opens what `facts` are read from. A socket that was passed and is not needed
    /// is closed.
    ///
    /// # Errors
    /// As socket(2) and open(2). A table that is not there the guest does not have:
    /// it is without IPv6.
    pub(crate) fn open(facts: FactSet, passed: Option<OwnedFd>) -> io::Result<Self> {
        let of = if passed.is_some() { "1" } else { "self" };
        let mut network = Self { socket: None, tables: BTreeMap::new(), apart: false };
        for fact in facts.iter() {
            if let Reads::Network(name) = fact.row().reads {
                match File::open(format!("/proc/{of}/net/{name}")) {
                    Ok(table) => _ = network.tables.insert(fact, Rc::new(table.into())),
                    Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                    Err(why) => return Err(why),
                }
            }
        }
        let tells = facts.contains(Fact::Interfaces);
        network.apart = passed.is_none() && (tells || !network.tables.is_empty()) && is_apart();
        if tells {
            let (flags, route) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
            let own = || socket(AddressFamily::Netlink, SockType::Raw, flags, route);
            network.socket = Some(passed.map_or_else(own, Ok)?);
        }
        Ok(network)
    }

    /// What a worker asks for interfaces.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// What a worker reads such a fact from.
    pub(crate) fn table(&self, fact: Fact) -> Option<Rc<OwnedFd>> {
        self.tables.get(&fact).cloned()
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
