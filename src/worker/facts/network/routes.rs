//! The answer to `guest-network-get-route`: the kernel's own tables of routes as
//! text, `/proc/net/route` and `/proc/net/ipv6_route`.
//!
//! Not over netlink, although a socket is there for interfaces: the text has what
//! stock answers line by line, counts of use and the entries that refuse included,
//! and a descriptor of it tells who takes the worker over nothing but the routes.
//!
//! Differs from stock where that gives numbers that no kernel has: flags and metrics
//! from 2^31 on come out of it with their sign extended, `80200001` as
//! 18446744071564165121 and not as 2149580801, `ffffffff` as -1 and not as
//! 4294967295.
//!
//! Trust: pure. The lines are the kernel's; what is no route's is left out. Called by
//! the worker's dispatch.

use std::net::{Ipv4Addr, Ipv6Addr};

use postern_core::policy::telling::Telling;
use serde::Serialize;

use super::v6;

/// Most routes of an answer, IPv4 and IPv6 together: 4 MiB of it.
pub const ROUTES_MAX: usize = 16 << 10;
/// One route of the answer. What only one of the two versions has is left out of the
/// other's.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Route {
    iface: String,
    destination: String,
    metric: u32,
    flags: u32,
    refcnt: u32,
    #[serde(rename = "use")]
    uses: u32,
    version: u8,
    #[serde(flatten)]
    v4: Option<V4>,
    #[serde(flatten)]
    v6: Option<V6>,
}

#[derive(Debug, PartialEq, Serialize)]
struct V4 {
    gateway: String,
    mask: String,
    mtu: u32,
    window: u32,
    irtt: u32,
}

#[derive(Debug, PartialEq, Serialize)]
struct V6 {
    source: String,
    nexthop: String,
    desprefixlen: String,
    srcprefixlen: String,
}

/// Which of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `/proc/net/route`.
    V4,
    /// `/proc/net/ipv6_route`.
    V6,
}

/// More routes than an answer has room for: [`ROUTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// Adds a table's routes to the answer, which begins with those of IPv4.
///
/// # Errors
/// [`TooMany`].
pub fn add(
    told: &mut Vec<Route>,
    (table, text): (Table, &[u8]),
    telling: &Telling,
    redacted: bool,
) -> Result<(), TooMany> {
    for line in text.split(|byte| *byte == b'\n') {
        let line = str::from_utf8(line).unwrap_or_default();
        let read = match table {
            Table::V4 => v4_line(line),
            Table::V6 => v6_line(line),
        };
        let Some((route, default)) = read else { continue };
        if !telling.shows_route(redacted, &route.iface, default) {
            continue;
        }
        if told.len() == ROUTES_MAX {
            return Err(TooMany);
        }
        told.push(route);
    }
    Ok(())
}

/// The route of a line of `/proc/net/route`, and whether it is one to everywhere.
/// The line of titles is none.
fn v4_line(line: &str) -> Option<(Route, bool)> {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next();
    let iface = word()?.to_owned();
    let (destination, gateway) = (v4_address(word()?)?, v4_address(word()?)?);
    let (flags, refcnt, uses) = (hexadecimal(word()?)?, decimal(word()?)?, decimal(word()?)?);
    let (metric, mask) = (decimal(word()?)?, v4_address(word()?)?);
    let (mtu, window, irtt) = (decimal(word()?)?, decimal(word()?)?, decimal(word()?)?);
    let default = destination.is_unspecified() && mask.is_unspecified();
    let v4 = V4 { gateway: gateway.to_string(), mask: mask.to_string(), mtu, window, irtt };
    let destination = destination.to_string();
    Some((Route { iface, destination, metric, flags, refcnt, uses, version: 4, v4: Some(v4), v6: None }, default))
}

/// The same of a line of `/proc/net/ipv6_route`, which has none of titles.
fn v6_line(line: &str) -> Option<(Route, bool)> {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next();
    let (destination, wide) = (v6_address(word()?)?, hexadecimal(word()?)?);
    let (source, source_wide) = (v6_address(word()?)?, hexadecimal(word()?)?);
    let nexthop = v6_address(word()?)?;
    let (metric, refcnt) = (hexadecimal(word()?)?, hexadecimal(word()?)?);
    let (uses, flags) = (hexadecimal(word()?)?, hexadecimal(word()?)?);
    let iface = word()?.to_owned();
    let v6 = V6 {
        source: v6(source),
        nexthop: v6(nexthop),
        desprefixlen: wide.to_string(),
        srcprefixlen: source_wide.to_string(),
    };
    let route = Route {
        iface,
        destination: self::v6(destination),
        metric,
        flags,
        refcnt,
        uses,
        version: 6,
        v4: None,
        v6: Some(v6),
    };
    Some((route, wide == 0))
}

/// Four bytes of the network's order, which the kernel writes as one number of its
/// own.
fn v4_address(word: &str) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(hexadecimal(word)?.to_ne_bytes()))
}

fn v6_address(word: &str) -> Option<Ipv6Addr> {
    u128::from_str_radix(word, 16).ok().filter(|_| word.len() == 32).map(Ipv6Addr::from)
}

fn hexadecimal(word: &str) -> Option<u32> {
    u32::from_str_radix(word, 16).ok()
}

/// A number of 32 bits, which the kernel writes with a sign here and there.
fn decimal(word: &str) -> Option<u32> {
    word.parse().ok().or_else(|| word.parse().ok().map(i32::cast_unsigned))
}
