//! Random and mutated input, 100,000 and more: no panic, same events over any
//! chunking, bounded memory, work linear in the bytes (counted, not timed), and
//! a request after it is answered.

use postern_core::policy::Limits;
use proptest::prelude::*;

use super::super::value::Value;
use super::super::{Decoder, Incoming};
use super::{answer, events, everything, feed};

/// Pieces that requests are made of, whole and broken.
const SCRAPS: &[&[u8]] = &[
    b"{\"execute\":\"guest-ping\"}",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\"",
    b"'",
    b"\\",
    b"\n",
    b"\t",
    b" ",
    b"\xff",
    b"\xfe",
    b"\x00",
    b"\x1f",
    b"\x7f",
    b"\"execute\"",
    b"\"arguments\"",
    b"\"id\"",
    b"'guest-sync'",
    b"\\u00e9",
    b"\\ud83d\\ude00",
    b"\\ud800",
    b"\\q",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98",
    b"0",
    b"-",
    b"1",
    b".",
    b"e",
    b"+",
    b"99999999999999999999",
    b"1.5e300",
    b"true",
    b"null",
    b"falsch",
    b"@",
    b"[[[[[[[[",
    b"]]]]]]]]",
    b"\"buf-b64\":\"QUJDQUJDQUJD\"",
    b"{\"a\":1,\"a\":2}",
    b"/* */",
    b"guest-file-open",
];

fn small() -> Limits {
    Limits { message: 96, nesting: 6, string: 24, ..Limits::default() }
}

/// Everything that must hold for any bytes.
fn holds(bytes: &[u8], pieces: &[usize]) {
    for limits in [Limits::default(), small()] {
        let whole = events(&limits, bytes, &[]);
        let mut decoder = Decoder::new(limits.clone());
        let mut again = Vec::new();
        feed(&mut decoder, bytes, pieces, &mut |event| again.push(event.map(<[u8]>::to_vec)));
        assert_eq!(again, whole);
        assert!(decoder.memory() <= 64 << 10);
        assert!(decoder.looked_at <= bytes.len() * 3, "{} for {}", decoder.looked_at, bytes.len());
        let mut out = Vec::new();
        for event in &whole {
            let event = event.as_ref().map(Vec::as_slice).map_err(Clone::clone);
            if let Ok(message) = event {
                assert!(message.len() <= limits.message as usize);
                let _ = Incoming::read(message, everything());
            }
            answer(event, &mut out);
        }
        assert!(out.split(|&byte| byte == b'\n').count() == whole.len() + 1, "one line per event");
        // 0xFF, and what is half received is forgotten.
        out.clear();
        feed(&mut decoder, b"\xff{\"execute\":\"guest-ping\"}", &[], &mut |event| {
            out.clear();
            answer(event, &mut out);
        });
        assert_eq!(out, b"{\"return\": {}}\n");
    }
    let _ = Value::parse(bytes);
}

fn scraps() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(SCRAPS), 0..12).prop_map(|scraps| scraps.concat())
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..20_usize, 1..4)
}

/// What the mutations start from.
const REQUESTS: &[&[u8]] = &[
    b"{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/etc/\\u00e9\",\"mode\":\"r+\"},\"id\":[1.5,\"x\"]}\n",
    b"{'execute':'guest-file-seek','arguments':{'handle':1000,'offset':-1,'whence':'set'}}{\"execute\":\"guest-ping\"}",
    b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":4}}\n{\"execute\":\"guest-info\"}\n",
];

/// A request with some bytes overwritten, taken out or put in.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let request = prop::sample::select(REQUESTS);
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    (request, prop::collection::vec(change, 1..6)).prop_map(|(request, changes)| {
        let mut bytes = request.to_vec();
        for (at, byte, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes[at] ^= 1 << (byte & 7),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scraps_of_requests(bytes in scraps(), pieces in pieces()) {
        holds(&bytes, &pieces);
    }

    #[test]
    fn mutated_requests(bytes in mutated(), pieces in pieces()) {
        holds(&bytes, &pieces);
    }

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40), pieces in pieces()) {
        holds(&bytes, &pieces);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What our reader takes, serde_json's takes with the same meaning, and the
    /// other way round but for what stock refuses (duplicates, noncharacters).
    #[test]
    fn json_means_what_it_means_elsewhere(bytes in "[\\[\\]{}:,\"a1.e\\-\\\\u0 ]{0,16}") {
        let ours = events(&Limits::default(), bytes.as_bytes(), &[]);
        if let [Ok(message)] = ours.as_slice() && let Ok(value) = Value::parse(message) {
            let theirs: serde_json::Value = serde_json::from_slice(message).unwrap_or(serde_json::Value::Null);
            let printed = serde_json::to_value(&value).unwrap();
            // 1.0 and 1, -0 and 0 are the same number.
            let alike = |json: &serde_json::Value| json.to_string().replace(".0", "").replace("-0", "0");
            prop_assert_eq!(alike(&printed), alike(&theirs));
        }
    }
}
