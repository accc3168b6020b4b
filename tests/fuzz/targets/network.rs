//! What the kernel says of the network → what the host is told: netlink messages and
//! tables of routes.
//!
//! The first byte says which: one of the two tables, or else where the messages about
//! interfaces end and those about addresses begin, in pieces of 64 bytes.

use postern_core::policy::telling::Telling;
use postern_worker::facts::network::interfaces;
use postern_worker::facts::network::messages::{Address, Link, Wanted, read};
use postern_worker::facts::network::routes::{Table, add};

use super::reply::json;

/// Takes an input.
///
/// # Panics
/// Where a reply is no JSON, or is out of proportion to what it is made of.
pub fn run(input: &[u8]) {
    let Some((&which, bytes)) = input.split_first() else { return };
    for redacted in [false, true] {
        match which {
            b'4' => table(Table::V4, bytes, redacted),
            b'6' => table(Table::V6, bytes, redacted),
            pieces => {
                let (links, addresses) = bytes.split_at((usize::from(pieces) * 64).min(bytes.len()));
                let links = all(links, Wanted::Links, Link::read);
                let addresses = all(addresses, Wanted::Addresses, Address::read);
                let told = interfaces(&links, &addresses, &Telling::default(), redacted);
                assert!(told.len() <= links.len() + addresses.len());
                json(&told, bytes);
            }
        }
    }
}

fn table(table: Table, text: &[u8], redacted: bool) {
    let mut told = Vec::new();
    if add(&mut told, (table, text), &Telling::default(), redacted).is_ok() {
        for route in json(&told, text).as_array().expect("a list") {
            assert!(route["flags"].is_u64() && route["iface"].is_string(), "{route}");
        }
    }
}

/// Everything that is whole up to what is not.
fn all<T>(part: &[u8], wanted: Wanted, of: fn(&[u8]) -> Option<T>) -> Vec<T> {
    let mut found = Vec::new();
    let _ = read(part, wanted, 1, |body| {
        found.extend(of(body));
        Ok(())
    });
    found
}
