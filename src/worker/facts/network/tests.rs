//! The answers, from what a kernel said (6.18, in a network namespace with a tunnel
//! and a pair of `veth`) and beside what stock 10.0 answered to it there; and reading
//! of what no kernel says.
//!
//! `captured/` has both: `links.bin` and `addresses.bin` are whole dumps, under the
//! number 1, the rest is text.

use nix::errno::Errno;
use proptest::prelude::*;
use serde_json::Value;

use super::messages::{Counters, Told, Wanted, read};
use super::routes::{ROUTES_MAX, Table, TooMany, add};
use super::*;

const LINKS: &[u8] = include_bytes!("captured/links.bin");
const ADDRESSES: &[u8] = include_bytes!("captured/addresses.bin");
const V4: &[u8] = include_bytes!("captured/route.txt");
const V6: &[u8] = include_bytes!("captured/ipv6_route.txt");

fn all<T>(part: &[u8], wanted: Wanted, of: fn(&[u8]) -> Option<T>) -> Result<(Vec<T>, Told), Errno> {
    let mut found = Vec::new();
    let told = read(part, wanted, 1, |body| {
        found.extend(of(body));
        Ok(())
    })?;
    Ok((found, told))
}

fn links(part: &[u8]) -> Result<(Vec<Link>, Told), Errno> {
    all(part, Wanted::Links, Link::read)
}

fn addresses(part: &[u8]) -> Result<(Vec<Address>, Told), Errno> {
    all(part, Wanted::Addresses, Address::read)
}

fn answer(telling: &Telling, redacted: bool) -> Value {
    let (links, _) = links(LINKS).expect("links");
    let (addresses, _) = addresses(ADDRESSES).expect("addresses");
    serde_json::to_value(interfaces(&links, &addresses, telling, redacted)).expect("JSON")
}

fn routes(telling: &Telling, redacted: bool) -> Value {
    let mut told = Vec::new();
    for table in [(Table::V4, V4), (Table::V6, V6)] {
        add(&mut told, table, telling, redacted).expect("not too many");
    }
    serde_json::to_value(told).expect("JSON")
}

fn listing(patterns: &[&str]) -> Telling {
    Telling { interfaces: patterns.iter().map(ToString::to_string).collect(), ..Telling::default() }
}

fn names(answer: &Value) -> Vec<&str> {
    answer.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect()
}

#[test]
fn interfaces_are_what_stock_answers() {
    let stock: Value = serde_json::from_str(include_str!("captured/interfaces.json")).expect("JSON");
    assert_eq!(answer(&Telling::default(), false), stock);
    assert_eq!(names(&stock), ["lo", "eth1", "eth0", "tun0", "eth0:alias"], "the control");
}

#[test]
fn routes_are_what_stock_answers_but_for_its_signs() {
    let mut stock: Value = serde_json::from_str(include_str!("captured/routes.json")).expect("JSON");
    let mut mended = 0;
    for route in stock.as_array_mut().expect("routes") {
        for of_32_bits in ["flags", "metric"] {
            let whole = &mut route[of_32_bits];
            let bits = whole.as_u64().or_else(|| whole.as_i64().map(i64::cast_unsigned)).expect("a number");
            mended += u32::from(bits > u64::from(u32::MAX));
            *whole = Value::from(bits & u64::from(u32::MAX));
        }
    }
    assert_eq!(routes(&Telling::default(), false), stock);
    assert_eq!(mended, 6, "four local addresses, an entry that refuses, and a metric");
}

#[test]
fn a_redacted_answer_names_no_address_of_the_guest_alone_and_counts_nothing() {
    let told = answer(&Telling::default(), true);
    assert_eq!(names(&told), ["eth1", "eth0", "tun0", "eth0:alias"]);
    let text = told.to_string();
    assert!(text.contains("192.0.2.5") && text.contains("2001:db8::5") && text.contains("192.0.2.77"));
    assert!(!text.contains("fe80") && !text.contains("127.0") && !text.contains("statistics"), "{text}");
    assert!(told[0].get("ip-addresses").is_none(), "there is none left");
    let default = routes(&Telling::default(), true);
    let default: Vec<_> = default.as_array().expect("routes").iter().map(|route| &route["destination"]).collect();
    assert_eq!(default, ["0.0.0.0", "::"]);
}

#[test]
fn what_the_policy_lists_is_what_is_told() {
    let listed = listing(&["eth0", "lo"]);
    // A label goes with its interface.
    assert_eq!(names(&answer(&listed, false)), ["lo", "eth0", "eth0:alias"]);
    assert_eq!(names(&answer(&listing(&["eth0:*"]), false)), [""; 0]);
    assert_eq!(answer(&listing(&["nothing"]), false), serde_json::json!([]));
    let over = routes(&listing(&["eth1"]), false);
    let over = over.as_array().expect("routes");
    assert!(!over.is_empty() && over.iter().all(|route| route["iface"] == "eth1"), "{over:?}");
}

#[test]
fn hardware_addresses_have_six_bytes() {
    for (address, text) in [
        (&[][..], "00:00:00:00:00:00"),
        (&[0xc0, 0, 2, 1], "c0:00:02:01:00:00"),
        (&[2, 0, 0, 0xAA, 0xBB, 1], "02:00:00:aa:bb:01"),
        (&[0xff; 20], "ff:ff:ff:ff:ff:ff"),
    ] {
        assert_eq!(hardware(address), text);
    }
}

#[test]
fn addresses_are_written_as_the_c_library_does() {
    for text in ["::", "::1", "::ffff", "::0.1.0.0", "::192.0.2.1", "::ffff:192.0.2.1", "fe80::1", "1:0:0:2::3"] {
        assert_eq!(v6(text.parse().expect("an address")), text);
    }
}

/// A message of this kind, with these flags and this body, under the number 1.
fn message(kind: i32, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("short");
    let kind = u16::try_from(kind).expect("a kind");
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &1_u32.to_ne_bytes()];
    let mut message = [header.concat(), 7_u32.to_ne_bytes().to_vec(), body.to_vec()].concat();
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

#[test]
fn a_part_says_how_the_whole_stands() {
    use nix::libc::{EBUSY, NLM_F_DUMP_INTR, NLM_F_MULTI, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN};
    let multi = u16::try_from(NLM_F_MULTI).expect("flags");
    let interrupted = multi | u16::try_from(NLM_F_DUMP_INTR).expect("flags");
    let told = |part: &[u8]| links(part).map(|(_, told)| (told.done, told.interrupted));
    assert_eq!(links(LINKS).map(|(found, told)| (found.len(), told.done, told.interrupted)), Ok((4, true, false)));
    assert_eq!(told(&[]), Ok((false, false)));
    assert_eq!(told(&message(NLMSG_DONE, multi, &0_i32.to_ne_bytes())), Ok((true, false)));
    assert_eq!(told(&message(NLMSG_DONE, interrupted, &[])), Ok((true, true)));
    assert_eq!(told(&message(NLMSG_ERROR, 0, &(-EBUSY).to_ne_bytes())), Err(Errno::EBUSY));
    assert_eq!(told(&message(NLMSG_DONE, multi, &(-EBUSY).to_ne_bytes())), Err(Errno::EBUSY));
    assert_eq!(told(&message(NLMSG_DONE, multi, &i32::MIN.to_ne_bytes())), Err(Errno::UnknownErrno));
    assert_eq!(told(&message(NLMSG_OVERRUN, 0, &[])), Err(Errno::ENOBUFS));
    assert_eq!(told(&message(NLMSG_NOOP, interrupted, &[])), Ok((false, true)));
    // To another request; of another kind.
    assert_eq!(read(LINKS, Wanted::Links, 2, |_| panic!("none")), Ok(Told::default()));
    assert_eq!(addresses(LINKS).map(|(found, _)| found.len()), Ok(0));
    // Cut off.
    for end in [1, 15, 16, 17, LINKS.len() - 1] {
        assert_eq!(told(&LINKS[..end]), Err(Errno::EBADMSG), "{end}");
    }
}

#[test]
fn counters_are_those_of_proc() {
    let stats: Vec<u8> = (100..125_u64).flat_map(u64::to_ne_bytes).collect();
    let attribute = [&u16::try_from(4 + stats.len()).expect("short").to_ne_bytes()[..], &23_u16.to_ne_bytes(), &stats];
    let name = [&7_u16.to_ne_bytes()[..], &3_u16.to_ne_bytes(), b"e0\0\0"];
    let link = |length| Link::read(&[&[0; 16][..], &name.concat(), &attribute.concat()[..length]].concat());
    let whole = link(4 + stats.len()).expect("a link");
    assert_eq!(whole.name, b"e0");
    let received = Counters { bytes: 102, packets: 100, errors: 104, dropped: 106 + 115 };
    let sent = Counters { bytes: 103, packets: 101, errors: 105, dropped: 107 };
    assert_eq!(whole.carried, Some(Carried { received, sent }));
    assert_eq!(link(100).expect("a link").carried, None, "one that is cut off is none");
}

#[test]
fn more_routes_than_an_answer_holds_are_said_to_be_too_many() {
    let line = "eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
    let most = line.repeat(ROUTES_MAX);
    let told = |text: &str, telling: &Telling| {
        let mut told = Vec::new();
        add(&mut told, (Table::V4, text.as_bytes()), telling, false).map(|()| told.len())
    };
    assert_eq!(told(&most, &Telling::default()), Ok(ROUTES_MAX));
    assert_eq!(told(&(most.clone() + line), &Telling::default()), Err(TooMany));
    assert_eq!(told(&(most + line), &listing(&["eth1"])), Ok(0), "what is not told takes no room");
}

/// One of the captures with some bytes changed, and cut off somewhere.
fn changed(from: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let places = prop::collection::vec((0..from.len(), any::<u8>()), 0..12);
    (places, 0..=from.len()).prop_map(move |(places, end)| {
        let mut bytes = from.to_vec();
        for (at, to) in places {
            bytes[at] = to;
        }
        bytes.truncate(end);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2_000 } else { 20_000 }))]

    #[test]
    fn whatever_comes_is_read_to_its_end(
        from in changed(LINKS),
        of in changed(ADDRESSES),
        body in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let found = links(&from).map(|(found, _)| found).unwrap_or_default();
        prop_assert!(found.len() <= from.len() / 32);
        let addresses = addresses(&of).map(|(found, _)| found).unwrap_or_default();
        let told = interfaces(&found, &addresses, &Telling::default(), false);
        prop_assert!(told.len() <= found.len() + addresses.len());
        serde_json::to_string(&told).expect("JSON");
        for kind in [Wanted::Links, Wanted::Addresses] {
            let _ = read(&body, kind, 0, |_| Ok(()));
        }
        let _ = (Link::read(&body), Address::read(&body));
    }

    #[test]
    fn whatever_stands_in_a_table_is_read_to_its_end(v4 in changed(V4), v6 in changed(V6)) {
        let mut told = Vec::new();
        for table in [(Table::V4, &v4[..]), (Table::V6, &v6), (Table::V4, &v6), (Table::V6, &v4)] {
            prop_assert_eq!(add(&mut told, table, &Telling::default(), false), Ok(()));
        }
        prop_assert!(told.len() <= (V4.len() + V6.len()) / 40);
        serde_json::to_string(&told).expect("JSON");
    }
}
