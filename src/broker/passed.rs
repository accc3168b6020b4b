//! What a service manager passed, by `sd_listen_fds(3)`: a listening socket on which
//! to meet the host, a netlink socket in the guest's own network namespace, or both.
//!
//! Trust: the environment is the starter's. What each descriptor is, the kernel says;
//! a name may only agree. Called once, by the launch.

use std::env;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc::{AF_NETLINK, AF_UNIX, NETLINK_ROUTE, SO_DOMAIN, SO_PROTOCOL};
use postern_core::sys::descriptors;
use postern_core::sys::process::FIRST_HANDED;

use crate::host::{Host, HostError};

/// `FileDescriptorName=` of `postern-netlink.socket`.
const NETLINK: &str = "netlink";

/// What was passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Where the host is met.
    pub(crate) host: Option<Host>,
    /// By which the kernel tells of interfaces.
    pub(crate) netlink: Option<OwnedFd>,
    /// How many descriptors that is, from the first that can be on.
    pub(crate) count: i32,
}

impl Passed {
    /// Takes over what was passed to this process: `LISTEN_PID` names it.
    ///
    /// # Errors
    /// [`HostError::Activation`] if anything else came, or two of one kind;
    /// [`HostError::OpenToAll`] if everybody may connect to the listening socket:
    /// systemd's default.
    pub(crate) fn take() -> Result<Self, HostError> {
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(Self::default());
        }
        let count = number("LISTEN_FDS").filter(|count| (1..=2).contains(count)).ok_or(HostError::Activation)?;
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = Self { count: i32::try_from(count).map_err(|_| HostError::Activation)?, ..Self::default() };
        for place in FIRST_HANDED..FIRST_HANDED + passed.count {
            let socket = descriptors::inherited(place).map_err(|_| HostError::Activation)?;
            let named = names.next().filter(|name| !name.is_empty());
            match kind(socket.as_fd()) {
                Some((AF_NETLINK, NETLINK_ROUTE))
                    if passed.netlink.is_none() && named.is_none_or(|name| name == NETLINK) =>
                {
                    passed.netlink = Some(socket);
                }
                Some((AF_UNIX, _)) if passed.host.is_none() && named != Some(NETLINK) => {
                    passed.host = Some(Host::passed(socket)?);
                }
                _ => return Err(HostError::Activation),
            }
        }
        Ok(passed)
    }
}

/// Family and protocol of a socket, if it is one.
fn kind(socket: BorrowedFd<'_>) -> Option<(i32, i32)> {
    let ask = |option| descriptors::socket_option(socket, option).ok();
    Some((ask(SO_DOMAIN)?, ask(SO_PROTOCOL)?))
}
