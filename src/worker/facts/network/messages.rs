//! Messages of the kernel's `NETLINK_ROUTE` family: the two requests that postern
//! makes, and what it takes from the answers.
//!
//! A parser of its own: `netlink-packet-route` knows every kind of link and adds
//! 257 KB to the executable, a tenth of it, and refuses a whole message for an
//! attribute that a later kernel made longer. Ten attributes are wanted here.
//!
//! Trust: pure. The bytes are the kernel's, but reading is total: what is cut off or
//! too short is passed over or an error, never a panic. Called by the dumps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use nix::libc;

/// Length of `struct nlmsghdr`, of `linux/netlink.h`.
const HEADER: usize = 16;
/// Messages and attributes begin at multiples of this: `NLMSG_ALIGNTO`.
const ALIGNMENT: usize = 4;
/// An attribute's number without its two flags: `NLA_TYPE_MASK`.
const ATTRIBUTE: u16 = 0x3fff;
/// Length of `struct ifinfomsg`, of `linux/rtnetlink.h`.
const LINK: usize = 16;
/// Length of `struct ifaddrmsg`, of `linux/if_addr.h`.
const ADDRESS: usize = 8;

/// What is asked for, all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Every interface.
    Links,
    /// Every address of every interface, of every family.
    Addresses,
}

impl Wanted {
    /// The request, under a number that the answers repeat. Its body is a zeroed
    /// `struct ifinfomsg` or `ifaddrmsg`: any family, any interface.
    #[must_use]
    pub fn request(self, sequence: u32) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Links => (libc::RTM_GETLINK, LINK),
            Self::Addresses => (libc::RTM_GETADDR, ADDRESS),
        };
        let mut request = Vec::with_capacity(HEADER + body);
        #[expect(clippy::cast_possible_truncation, reason = "24 or 32")]
        request.extend(((HEADER + body) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "the flags have 16 bits")]
        request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
        request.extend(sequence.to_ne_bytes());
        request.resize(HEADER + body, 0);
        request
    }

    /// The kind of message that answers it.
    const fn answered_by(self) -> u16 {
        match self {
            Self::Links => libc::RTM_NEWLINK,
            Self::Addresses => libc::RTM_NEWADDR,
        }
    }
}

/// What a part of an answer says about the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// It was the last.
    pub done: bool,
    /// What was told changed meanwhile: something may be missing or stand twice.
    pub interrupted: bool,
}

/// Reads one part of the answer to the request with this number: each wanted
/// message's body goes to `take`. What answers another request is passed over.
///
/// # Errors
/// What the kernel answers instead; `EBADMSG` if a message is longer than what came.
pub fn read(
    part: &[u8],
    wanted: Wanted,
    sequence: u32,
    mut take: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<Told, Errno> {
    let mut told = Told::default();
    let mut rest = part;
    while !rest.is_empty() && !told.done {
        let length = number(rest, 0, u32::from_ne_bytes).ok_or(Errno::EBADMSG)?;
        let length = usize::try_from(length).map_err(|_| Errno::EBADMSG)?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER).ok_or(Errno::EBADMSG)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        let (kind, flags) = (field16(message, 4), field16(message, 6));
        if number(message, 8, u32::from_ne_bytes) != Some(sequence) {
            continue;
        }
        let body = &message[HEADER..];
        told.interrupted |= flags & NLM_F_DUMP_INTR != 0;
        match i32::from(kind) {
            libc::NLMSG_NOOP => {}
            libc::NLMSG_OVERRUN => return Err(Errno::ENOBUFS),
            // Both begin with an error number, negative or, if all is well, 0. At
            // the end of a dump it may be missing.
            libc::NLMSG_ERROR | libc::NLMSG_DONE => match number(body, 0, i32::from_ne_bytes).unwrap_or_default() {
                0 => told.done = true,
                errno => return Err(Errno::from_raw(errno.saturating_neg())),
            },
            _ if kind == wanted.answered_by() => take(body)?,
            _ => {}
        }
    }
    Ok(told)
}

#[expect(clippy::cast_possible_truncation, reason = "16 bits")]
const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name, in any bytes.
    pub name: Vec<u8>,
    /// Its hardware address, as many bytes as its kind has; none has a tunnel.
    pub hardware: Vec<u8>,
    /// What it has carried since it was made.
    pub carried: Option<Carried>,
}

/// An interface's counters, as `/proc/net/dev` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// By it.
    pub received: Counters,
    /// Over it.
    pub sent: Counters,
}

/// The counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were broken.
    pub errors: u64,
    /// Packets for which there was no room.
    pub dropped: u64,
}

impl Link {
    /// What the body of an `RTM_NEWLINK` says, if it names an interface.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let mut link = Self { index: number(body, 4, u32::from_ne_bytes)?, ..Self::default() };
        for (kind, value) in attributes(body.get(LINK..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value).to_vec(),
                libc::IFLA_ADDRESS => link.hardware = value.to_vec(),
                libc::IFLA_STATS64 => link.carried = Carried::read(value),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

impl Carried {
    /// From `struct rtnl_link_stats64`, of `linux/if_link.h`. Newer kernels add to
    /// its end; the counters up to `rx_missed_errors` are as old as itself.
    fn read(stats: &[u8]) -> Option<Self> {
        let at = |index: usize| number(stats, index * size_of::<u64>(), u64::from_ne_bytes);
        Some(Self {
            received: Counters {
                bytes: at(2)?,
                packets: at(0)?,
                errors: at(4)?,
                // /proc/net/dev counts what found no room in the device as well.
                dropped: at(6)?.saturating_add(at(15)?),
            },
            sent: Counters { bytes: at(3)?, packets: at(1)?, errors: at(5)?, dropped: at(7)? },
        })
    }
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub index: u32,
    /// A name of its own, of old the way to several addresses: `eth0:1`.
    pub label: Vec<u8>,
    /// The address itself.
    pub ip: IpAddr,
    /// Bits of it that name the network.
    pub prefix: u8,
}

impl Address {
    /// What the body of an `RTM_NEWADDR` says, if it is of IPv4 or IPv6.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let (&family, &prefix) = (body.first()?, body.get(1)?);
        let index = number(body, 4, u32::from_ne_bytes)?;
        let (mut address, mut local, mut label) = (None, None, &[][..]);
        for (kind, value) in attributes(body.get(ADDRESS..)?) {
            match kind {
                libc::IFA_ADDRESS => address = self::address(family, value),
                libc::IFA_LOCAL => local = self::address(family, value),
                libc::IFA_LABEL => label = text(value),
                _ => {}
            }
        }
        // Of a link between two, the address is the other's.
        Some(Self { index, label: label.to_vec(), ip: local.or(address)?, prefix })
    }
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// The attributes in here, up to one that is not whole.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(number(rest, 0, u16::from_ne_bytes)?);
        let kind = number(rest, 2, u16::from_ne_bytes)? & ATTRIBUTE;
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A string without the NUL behind it.
fn text(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == 0).next().unwrap_or_default()
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

fn field16(from: &[u8], at: usize) -> u16 {
    number(from, at, u16::from_ne_bytes).unwrap_or_default()
}

/// The number that begins at a byte, if it is all there.
fn number<const N: usize, T>(from: &[u8], at: usize, make: impl Fn([u8; N]) -> T) -> Option<T> {
    from.get(at..)?.first_chunk().copied().map(make)
}
