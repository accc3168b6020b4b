//! Framing: any chunking, recovery, limits, memory, work.

use postern_core::policy::Limits;

use super::super::{Decoder, QgaError};
use super::{answer, answers, events, feed};

const PING: &str = "{\"execute\":\"guest-ping\"}";
const PONG: &str = "{\"return\": {}}\n";

/// Streams with something of everything that the lexer knows.
const SAMPLES: &[&[u8]] = &[
    b"{\"execute\":\"guest-ping\"}{\"execute\":\"guest-sync\",\"arguments\":{\"id\":-12}}\n",
    b"\r\n\t {'execute' : 'guest-ping', 'id' : \"it's \\\"\\u00e9\\ud83d\\ude00\\\\\" }\n\n",
    b"\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":1}}\n{\"execute\":\"guest-ping\"}",
    b"{\"execute\":\"guest-p\xff{\"execute\":\"guest-ping\"}12\xff nul\xff",
    b"{\"a\":[1,2.5e+3,-0,0.0,1E9,true,false,null,{}],\"b\":@1,\"c\":\"d\"}\n{\"execute\":\"guest-ping\"}",
    b"{\"execute\":\"a\nb\"}{\"execute\":\"guest-ping\"}\n",
    b"1.5.5 01 -x 1e 0x10 tru ab_c +1 \x00\x01\x7f \xc3\xa9 \xfe ] } , : [}{]\n",
    b"{\"a\":\"\\\n\"}\n[\"\xed\xa0\x80\"]\n[\"\\\xfd\"]",
    "{\"execute\":\"guest-ping\",\"id\":{\"é\":[\"😀\",18446744073709551616]}}\u{feff}".as_bytes(),
];

#[test]
fn any_chunking_gives_the_same_events() {
    let small = Limits { message: 60, nesting: 3, string: 12, ..Limits::default() };
    for limits in [Limits::default(), small] {
        for sample in SAMPLES {
            let whole = events(&limits, sample, &[]);
            assert_eq!(events(&limits, sample, &[1]), whole, "byte by byte: {}", sample.escape_ascii());
            for at in 1..sample.len() {
                assert_eq!(events(&limits, sample, &[at]), whole, "in two at {at}: {}", sample.escape_ascii());
                assert_eq!(events(&limits, sample, &[at, 1, 2]), whole, "{at}, 1, 2: {}", sample.escape_ascii());
            }
        }
    }
}

#[test]
fn a_reply_needs_no_newline_and_no_later_byte() {
    let mut decoder = Decoder::new(Limits::default());
    let mut replies = Vec::new();
    for (at, byte) in PING.bytes().enumerate() {
        assert!(replies.is_empty(), "answered before byte {at}");
        feed(&mut decoder, &[byte], &[], &mut |event| answer(event, &mut replies));
    }
    assert_eq!(replies, PONG.as_bytes());
}

#[test]
fn ff_drops_the_half_message_without_a_word() {
    for half in ["", "{", "{\"execute\":\"gue", "{\"a\":[1,", "{\"a\":12", "{\"a\":tr", "[\"\\", "[1.", "@", "[[[["] {
        let bytes = [half.as_bytes(), b"\xff", PING.as_bytes()].concat();
        let reply = String::from_utf8(answers(&Limits::default(), &bytes, &[])).unwrap();
        let own = if half == "@" {
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '@'\"}}\n"
        } else {
            ""
        };
        assert_eq!(reply, format!("{own}{PONG}"), "{half}");
    }
}

/// `filler` once, then `unit` until `bytes` are full, then a newline and a request.
fn flooded(limits: &Limits, head: &[u8], unit: &[u8], bytes: usize) -> (String, usize, usize) {
    let mut decoder = Decoder::new(limits.clone());
    let (mut out, mut memory, mut sent) = (Vec::new(), 0, 0);
    let block = unit.repeat((50 << 10) / unit.len() + 1);
    let mut give = |bytes: &[u8], out: &mut Vec<u8>| {
        feed(&mut decoder, bytes, &[], &mut |event| answer(event, out));
        memory = memory.max(decoder.memory());
        decoder.looked_at
    };
    give(head, &mut out);
    while sent < bytes {
        give(&block, &mut out);
        sent += block.len();
    }
    let looked_at = give([b"\n", PING.as_bytes()].concat().as_slice(), &mut out);
    assert!(looked_at < (sent + head.len()) * 2 + 1000, "{looked_at} bytes looked at for {sent}");
    (String::from_utf8(out).unwrap(), memory, sent)
}

fn error(text: &str) -> String {
    format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"{text}\"}}}}\n")
}

#[test]
fn after_1100_open_brackets_the_next_request_is_answered() {
    let (out, ..) = flooded(&Limits::default(), b"", b"[", 1100);
    assert_eq!(out, error(&QgaError::TooDeep(1024).to_string()) + PONG);
    // Closed again, what follows on the same line is answered too.
    let closed = format!("{}{}{PING}", "[".repeat(1100), "]".repeat(1100));
    let out = String::from_utf8(answers(&Limits::default(), closed.as_bytes(), &[])).unwrap();
    assert_eq!(out, error(&QgaError::TooDeep(1024).to_string()) + PONG);
    let deepest = format!("{}{}{PING}", "[".repeat(1024), "]".repeat(1024));
    let out = String::from_utf8(answers(&Limits::default(), deepest.as_bytes(), &[])).unwrap();
    assert_eq!(out, error("QMP input must be a JSON object") + PONG);
}

#[test]
fn after_100_mb_without_a_newline_the_next_request_is_answered() {
    let limits = Limits::default();
    for (head, unit) in
        [(&b"{\"execute\":\"guest-file-write\",\"arguments\":{\"buf-b64\":\""[..], &b"QUJD"[..]), (b"", b"x")]
    {
        let (out, memory, sent) = flooded(&limits, head, unit, 100_000_000);
        assert!(sent >= 100_000_000);
        assert_eq!(out, error(&QgaError::TooLong(64 << 20).to_string()) + PONG);
        assert!(memory <= limits.message as usize + (64 << 10), "{memory}");
    }
}

#[test]
fn an_endless_array_is_answered_once_and_dropped() {
    let (out, memory, _) = flooded(&Limits::default(), b"[1", b",[]", 20_000_000);
    assert_eq!(out, error(&QgaError::TooManyTokens.to_string()) + PONG);
    assert!(memory <= 32 << 20, "{memory}");
    let small = Limits { message: 1 << 20, ..Limits::default() };
    let (out, memory, _) = flooded(&small, b"[\"", b"ab\",\"", 20_000_000);
    assert_eq!(out, error(&QgaError::TooLong(1 << 20).to_string()) + PONG);
    assert!(memory <= (1 << 20) + (64 << 10), "{memory}");
}

#[test]
fn what_is_left_of_a_long_message_ends_with_it_or_with_the_line() {
    let limits = Limits { message: 40, nesting: 4, string: 10, ..Limits::default() };
    let [long, string, deep] =
        [QgaError::TooLong(40), QgaError::StringTooLong(10), QgaError::TooDeep(4)].map(|error| error.to_string());
    let rows: [(&str, &str, usize); 8] = [
        // The message's own end, then a request on the same line.
        ("{\"a\":\"12345678901\",\"b\":[{}]}", &string, 1),
        ("[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", "QMP input must be a JSON object", 1),
        ("[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,7]", &long, 1),
        ("[[[[[]]]]]", &deep, 1),
        ("\"12345678901\"", &string, 1),
        // Its end cannot be known: a newline ends it.
        ("{\"a\":\"12345678901\",@}", &string, 0),
        ("{\"a\":\"12345678901\",\"b\t", &string, 0),
        ("{\"a\":\"12345678901\",\"b", &string, 0),
    ];
    for (long, text, same_line) in rows {
        let line = format!("{long}{PING}\n{PING}");
        for pieces in [&[][..], &[1], &[7]] {
            let out = String::from_utf8(answers(&limits, line.as_bytes(), pieces)).unwrap();
            assert_eq!(out, error(text) + &PONG.repeat(1 + same_line), "{line}");
        }
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let strings = |length: usize| format!("[\"{}\"]", "x".repeat(length));
    let limits = Limits { message: 100, string: 10, nesting: 2, ..Limits::default() };
    let rows = [
        (strings(10), true, "a string as long as the limit"),
        (strings(11), false, "a longer one"),
        (format!("[1{}]", " ".repeat(97)), true, "a message as long as the limit"),
        (format!("[1{}]", " ".repeat(98)), false, "a longer one"),
        ("[[]]".into(), true, "as deep as the limit"),
        ("[[[]]]".into(), false, "deeper"),
    ];
    for (message, fits, what) in rows {
        for pieces in [&[][..], &[1]] {
            let found = events(&limits, message.as_bytes(), pieces);
            assert_eq!(found.len(), 1, "{what}");
            assert_eq!(found[0].is_ok(), fits, "{what}");
        }
    }
}

#[test]
fn a_big_message_gives_its_memory_back() {
    let mut decoder = Decoder::new(Limits::default());
    let big = format!("{{\"execute\":\"guest-ping\",\"id\":\"{}\"}}", "é".repeat(4 << 20));
    let (most, last) = big.as_bytes().split_at(big.len() - 1);
    feed(&mut decoder, most, &[], &mut |_| panic!("it is not whole"));
    assert!(decoder.memory() >= most.len());
    let mut whole = false;
    feed(&mut decoder, last, &[], &mut |event| whole = event == Ok(big.as_bytes()));
    assert!(whole);
    assert_eq!(decoder.memory(), 0);
    assert!(!decoder.space().is_empty());
    assert_eq!(decoder.memory(), 64 << 10);
    assert!(!decoder.is_midway());
}

#[test]
fn a_token_that_straddles_the_buffers_end_is_whole() {
    let limits = Limits { string: 40_000, ..Limits::default() };
    for (pings, length) in [(2_600, 20_000), (1_300, 39_999), (2_700, 39_000), (100, 39_999)] {
        let fits = format!("{}[\"{}\"]", PING.repeat(pings), "x".repeat(length));
        let found = events(&limits, fits.as_bytes(), &[]);
        assert_eq!(found.len(), pings + 1);
        assert_eq!(found[pings].as_ref().map(Vec::len), Ok(length + 4));
        let broken = format!("{}[\"{}\n", PING.repeat(pings), "x".repeat(length));
        let found = events(&limits, broken.as_bytes(), &[]);
        let quoted = format!("\"{}", "x".repeat(super::super::error::TEXT_MAX - 1));
        assert_eq!(found.last(), Some(&Err(QgaError::Stray(quoted))));
    }
}

#[test]
fn a_reset_forgets_what_was_half_received() {
    let mut decoder = Decoder::new(Limits::default());
    let mut out = Vec::new();
    feed(&mut decoder, b"{\"execute\":\"gue", &[], &mut |event| answer(event, &mut out));
    assert!(decoder.is_midway());
    decoder.reset();
    feed(&mut decoder, PING.as_bytes(), &[], &mut |event| answer(event, &mut out));
    assert_eq!(out, PONG.as_bytes());
}

#[test]
fn many_keys_are_compared_without_a_square() {
    let members: Vec<String> = (0..200_000).map(|key| format!("\"k{key}\":0")).collect();
    let object = format!("{{{}}}", members.join(","));
    let found = events(&Limits::default(), object.as_bytes(), &[]);
    assert_eq!(found, [Ok(object.clone().into_bytes())]);
    let parsed = super::super::value::Value::parse(object.as_bytes());
    assert!(matches!(parsed, Ok(super::super::value::Value::Object(members)) if members.len() == 200_000));
    let twice = format!("{{{},\"k7\":0}}", members.join(","));
    assert_eq!(super::super::value::Value::parse(twice.as_bytes()), Err(QgaError::Syntax("duplicate key")));
}
