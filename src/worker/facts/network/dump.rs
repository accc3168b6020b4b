//! All interfaces and addresses, asked of the kernel over a `NETLINK_ROUTE` socket.
//!
//! The socket was made by somebody else and stays when this process is gone; the
//! next worker goes on with it. So each request begins with what an earlier one left
//! unread.
//!
//! No call waits: the kernel answers a request before `send` returns, and goes on
//! with an answer of several parts as soon as one was read. What is not there then
//! will not come.
//!
//! Trust: the kernel's bytes; of nobody else does a socket without groups hear, save
//! of who has `CAP_NET_ADMIN` in the guest. Called for `guest-network-get-interfaces`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{recv, send};
use postern_core::confine::filters::{ANSWERED, ASKING};

use super::messages::{Address, Link, Wanted, read};

/// Longest part of an answer. The kernel makes none longer than 32 KiB, but for one
/// message that is longer by itself.
const PART: usize = 64 << 10;
/// How often it is asked anew where interfaces came and went during an answer. Then
/// what came last must do: C libraries do not even look.
const TRIES: usize = 8;
/// Parts that are read of an answer that nobody awaits, and of one that is: more
/// than the most that is kept takes. No limit is reached in a guest that works.
const PARTS: usize = 1 << 16;
/// Most interfaces of an answer. With their addresses they must fit a worker's
/// memory under the smallest of limits.
pub(crate) const LINKS_MAX: usize = 8 << 10;
/// Most addresses of an answer.
pub(crate) const ADDRESSES_MAX: usize = 16 << 10;

/// The socket and the number of the last request.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Takes over the socket that this process was handed.
    pub(crate) const fn new(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0 }
    }

    /// Every interface, in the kernel's order.
    ///
    /// # Errors
    /// What the kernel answers; `EOVERFLOW` if there are more than [`LINKS_MAX`].
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, Errno> {
        self.all(Wanted::Links, LINKS_MAX, Link::read)
    }

    /// Every address, in the kernel's order.
    ///
    /// # Errors
    /// As [`Self::links`], with [`ADDRESSES_MAX`].
    pub(crate) fn addresses(&mut self) -> Result<Vec<Address>, Errno> {
        self.all(Wanted::Addresses, ADDRESSES_MAX, Address::read)
    }

    fn all<T>(&mut self, wanted: Wanted, most: usize, of: fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Errno> {
        let mut part = vec![0; PART];
        let mut left = TRIES;
        loop {
            left -= 1;
            let mut found = Vec::new();
            let asked = self.ask(wanted, &mut part, |body| {
                found.extend(of(body));
                if found.len() > most { Err(Errno::EOVERFLOW) } else { Ok(()) }
            });
            match asked {
                Ok(interrupted) if !interrupted || left == 0 => return Ok(found),
                Err(why) if left == 0 || !may_pass(why) => return Err(why),
                _ => {}
            }
        }
    }

    /// Asks once, and whether things changed during the answer.
    fn ask(
        &mut self,
        wanted: Wanted,
        part: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        self.drain(part)?;
        // Never 0, which the kernel has for what nobody asked for.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.send(&wanted.request(self.sequence))?;
        let mut interrupted = false;
        for _ in 0..PARTS {
            let length = self.receive(part)?;
            let told = read(&part[..length], wanted, self.sequence, &mut take)?;
            interrupted |= told.interrupted;
            if told.done {
                return Ok(interrupted);
            }
        }
        Err(Errno::EMSGSIZE)
    }

    /// Reads away what an earlier worker did not live to read. The kernel refuses
    /// a second answer while one is half read.
    fn drain(&self, part: &mut [u8]) -> Result<(), Errno> {
        for _ in 0..PARTS {
            match self.receive(part) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EMSGSIZE) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(why) => return Err(why),
            }
        }
        Err(Errno::EBUSY)
    }

    fn send(&self, request: &[u8]) -> Result<(), Errno> {
        loop {
            match send(self.socket.as_fd().as_raw_fd(), request, ASKING) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    fn receive(&self, part: &mut [u8]) -> Result<usize, Errno> {
        loop {
            // With MSG_TRUNC the length is the part's own, if that is longer.
            match recv(self.socket.as_fd().as_raw_fd(), part, ANSWERED) {
                Err(Errno::EINTR) => {}
                Ok(length) if length > part.len() => return Err(Errno::EMSGSIZE),
                received => return received,
            }
        }
    }
}

/// Whether it may go better the next time: an answer to somebody before was still
/// running, or was longer than the socket's buffer.
const fn may_pass(why: Errno) -> bool {
    matches!(why, Errno::EBUSY | Errno::ENOBUFS | Errno::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    use super::*;

    fn route_socket() -> OwnedFd {
        let (flags, route) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        socket(AddressFamily::Netlink, SockType::Raw, flags, route).expect("a socket")
    }

    /// The interfaces of this namespace, as `/proc/net/dev` names them.
    fn expected() -> BTreeSet<String> {
        let table = std::fs::read_to_string("/proc/net/dev").expect("/proc/net/dev");
        table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    }

    fn names(netlink: &mut Netlink) -> BTreeSet<String> {
        let links = netlink.links().expect("links");
        links.iter().map(|link| String::from_utf8(link.name.clone()).expect("a name")).collect()
    }

    #[test]
    fn the_kernel_tells_of_every_interface_and_address_whatever_was_left_unread() {
        let mut netlink = Netlink::new(route_socket());
        assert_eq!(names(&mut netlink), expected());
        let addresses = netlink.addresses().expect("addresses");
        let links: BTreeSet<u32> = netlink.links().expect("links").iter().map(|link| link.index).collect();
        assert!(addresses.iter().all(|address| links.contains(&address.index)), "{addresses:?}");
        // Asked, and not read: the kernel has the one answer ready and refuses the
        // other.
        for _ in 0..2 {
            netlink.send(&Wanted::Addresses.request(9)).expect("sent");
            netlink.send(&Wanted::Links.request(1)).expect("sent");
        }
        let mut next = Netlink::new(netlink.socket);
        assert_eq!(names(&mut next), expected());
        // An answer under the number that the next one's first request has: older.
        next.send(&Wanted::Links.request(1)).expect("sent");
        let mut next = Netlink::new(next.socket);
        assert_eq!(names(&mut next), expected());
        assert_eq!(next.receive(&mut vec![0; PART]), Err(Errno::EAGAIN), "that one was not taken for this one");
        assert_eq!(next.addresses().expect("addresses").len(), addresses.len());
        let mut part = vec![0; PART];
        assert_eq!(next.receive(&mut part), Err(Errno::EAGAIN), "nothing is left for the next");
        next.sequence = u32::MAX;
        assert_eq!(names(&mut next), expected());
        assert_eq!(next.sequence, 1);
    }

    #[test]
    fn a_part_that_is_longer_than_the_room_for_it_is_no_part() {
        let mut netlink = Netlink::new(route_socket());
        netlink.send(&Wanted::Links.request(1)).expect("sent");
        assert_eq!(netlink.receive(&mut [0; 64]), Err(Errno::EMSGSIZE));
        let most = netlink.all(Wanted::Links, 0, Link::read);
        assert_eq!(most, Err(Errno::EOVERFLOW), "there is one at least");
        assert_eq!(names(&mut netlink), expected());
    }
}
