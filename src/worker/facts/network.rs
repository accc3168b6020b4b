//! The answers about the guest's network: `guest-network-get-interfaces`, from what
//! the kernel tells over a netlink socket, and `guest-network-get-route`.
//!
//! Stock asks the C library, which asks the kernel the same; names, order and values
//! come out equal. As there, an interface without an address has no statistics, and
//! an address with a label of its own stands under that, as an interface would.
//!
//! Trust: names, addresses and counters are the kernel's; the policy says which are
//! told. Called by the worker's dispatch.

pub(crate) mod dump;
pub mod messages;
pub mod routes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postern_core::policy::telling::Telling;
use serde::Serialize;

use messages::{Address, Carried, Link};

/// One interface of the answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    name: String,
    hardware_address: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_addresses: Vec<IpAddress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<Statistics>,
}

/// One address of an interface.
#[derive(Debug, Serialize)]
struct IpAddress {
    #[serde(rename = "ip-address")]
    text: String,
    #[serde(rename = "ip-address-type")]
    kind: &'static str,
    prefix: u8,
}

/// An interface's counters.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Statistics {
    rx_bytes: u64,
    rx_packets: u64,
    rx_errs: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errs: u64,
    tx_dropped: u64,
}

/// The answer: the interfaces in the kernel's order, then the labels that are none,
/// in the order of their first addresses.
#[must_use]
pub fn interfaces(links: &[Link], addresses: &[Address], telling: &Telling, redacted: bool) -> Vec<Interface> {
    let mut told: Vec<Interface> = Vec::new();
    let mut places: BTreeMap<&[u8], usize> = BTreeMap::new();
    let shows = |link: &Link| telling.shows_interface(redacted, &String::from_utf8_lossy(&link.name));
    let shown: BTreeMap<u32, &Link> = links.iter().filter(|link| shows(link)).map(|link| (link.index, link)).collect();
    for link in links.iter().filter(|link| shown.contains_key(&link.index)) {
        places.insert(&link.name, told.len());
        told.push(Interface::new(&link.name, link));
    }
    for address in addresses {
        // A label stands or falls with its interface.
        let Some(link) = shown.get(&address.index) else { continue };
        if !telling.shows_address(redacted, address.ip) {
            continue;
        }
        let name: &[u8] = if address.label.is_empty() { &link.name } else { &address.label };
        let place = match places.entry(name) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                told.push(Interface::new(name, link));
                *place.insert(told.len() - 1)
            }
        };
        let interface = &mut told[place];
        interface.ip_addresses.push(IpAddress::new(address));
        if name == link.name && telling.shows_statistics(redacted) {
            interface.statistics = link.carried.map(Statistics::from);
        }
    }
    told
}

impl Interface {
    fn new(name: &[u8], link: &Link) -> Self {
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            hardware_address: hardware(&link.hardware),
            ip_addresses: Vec::new(),
            statistics: None,
        }
    }
}

impl IpAddress {
    fn new(address: &Address) -> Self {
        let (text, kind) = match address.ip {
            IpAddr::V4(address) => (address.to_string(), "ipv4"),
            IpAddr::V6(address) => (v6(address), "ipv6"),
        };
        Self { text, kind, prefix: address.prefix }
    }
}

impl From<Carried> for Statistics {
    fn from(Carried { received, sent }: Carried) -> Self {
        Self {
            rx_bytes: received.bytes,
            rx_packets: received.packets,
            rx_errs: received.errors,
            rx_dropped: received.dropped,
            tx_bytes: sent.bytes,
            tx_packets: sent.packets,
            tx_errs: sent.errors,
            tx_dropped: sent.dropped,
        }
    }
}

/// Six bytes, as stock and `SIOCGIFHWADDR` have them: the first of a longer address,
/// with zeros behind a shorter one or none.
fn hardware(address: &[u8]) -> String {
    let byte = |index: usize| address.get(index).copied().unwrap_or_default();
    format!("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", byte(0), byte(1), byte(2), byte(3), byte(4), byte(5))
}

/// As the C library writes it: the deprecated addresses that end in one of IPv4 with
/// that.
fn v6(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            format!("::{}", Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        _ => address.to_string(),
    }
}
