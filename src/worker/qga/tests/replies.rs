//! Reply lines, ids, guest-info and base64.

use postern_core::catalogue::{CATALOGUE, Command, CommandSet};
use postern_core::messages::{SuspendMode, Switch};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use super::super::base64::{Encoded, Encoder};
use super::super::request::READ_DEFAULT;
use super::super::{Incoming, QgaError, Request, Whence, reply};
use super::{Id, answered, everything};

#[test]
fn an_id_comes_back_as_stock_prints_it() {
    let rows = [
        ("7", "7"),
        ("null", "null"),
        ("\"\"", "\"\""),
        ("-0", "0"),
        ("-0.0", "-0"),
        ("0.1", "0.10000000000000001"),
        ("1.0", "1"),
        ("1e5", "100000"),
        ("1E-7", "9.9999999999999995e-08"),
        ("0.0001", "0.0001"),
        ("0.00001", "1.0000000000000001e-05"),
        ("1e22", "1e+22"),
        ("1e16", "10000000000000000"),
        ("1e17", "1e+17"),
        ("123456789012345678.5", "1.2345678901234568e+17"),
        ("5e-324", "4.9406564584124654e-324"),
        ("9223372036854775807", "9223372036854775807"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775809", "-9.2233720368547758e+18"),
        ("[1,[],{},true,false,{'a' : 'b\"c'}]", "[1, [], {}, true, false, {\"a\": \"b\\\"c\"}]"),
        (
            "\"\\u00e9\\ud83d\\ude00\\n\\t\\b\\f\\r\\/\\\\\\u0001\u{7f}\\u0000é😀'\\'\\\"\"",
            "\"\\u00E9\\uD83D\\uDE00\\n\\t\\b\\f\\r/\\\\\\u0001\\u007F\\u0000\\u00E9\\uD83D\\uDE00''\\\"\"",
        ),
        // Stock prints `inf`, which is no JSON.
        ("1e400", "null"),
    ];
    for (id, echo) in rows {
        let request = format!("{{\"execute\":\"guest-ping\",\"id\":{id}}} ");
        assert_eq!(answered(&request), format!("{{\"return\": {{}}, \"id\": {echo}}}\n"));
    }
}

#[test]
fn an_id_is_bounded() {
    let ping = |length: usize| format!("{{\"execute\":\"guest-ping\",\"id\":\"{}\"}}", "x".repeat(length));
    assert!(answered(&ping(reply::ID_MAX - 2)).starts_with("{\"return\": {}, \"id\": \"xx"));
    let refused = answered(&ping(reply::ID_MAX - 1));
    assert_eq!(
        refused,
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"QMP input member 'id' is too large\"}}\n"
    );
}

#[test]
fn every_offered_command_becomes_its_request() {
    let mut rows: Vec<(&str, &str, Request<'_>)> = vec![
        ("guest-sync-delimited", "{'id':-5}", Request::SyncDelimited { id: -5 }),
        ("guest-sync", "{'id':5}", Request::Sync { id: 5 }),
        ("guest-ping", "{}", Request::Ping),
        ("guest-info", "{}", Request::Info),
        ("guest-shutdown", "{}", Request::Shutdown { mode: ShutdownMode::Powerdown }),
        ("guest-shutdown", "{'mode':'halt'}", Request::Shutdown { mode: ShutdownMode::Halt }),
        (
            "guest-file-open",
            "{'path':'/a'}",
            Request::FileOpen { path: "/a".into(), mode: Mode::Read, written: "r".into() },
        ),
        (
            "guest-file-open",
            "{'mode':'w+b','path':'/\\u00e9'}",
            Request::FileOpen { path: "/é".into(), mode: Mode::WritePlus, written: "w+b".into() },
        ),
        ("guest-file-close", "{'handle':1000}", Request::FileClose { handle: 1000 }),
        ("guest-file-read", "{'handle':1000}", Request::FileRead { handle: 1000, count: READ_DEFAULT }),
        ("guest-file-read", "{'count':-1,'handle':1000}", Request::FileRead { handle: 1000, count: -1 }),
        (
            "guest-file-write",
            "{'handle':1,'buf-b64':'QQ==','count':1}",
            Request::FileWrite { handle: 1, data: "QQ==".into(), count: Some(1) },
        ),
        (
            "guest-file-seek",
            "{'handle':1,'offset':-2,'whence':'end'}",
            Request::FileSeek { handle: 1, offset: -2, whence: Whence::End },
        ),
        (
            "guest-file-seek",
            "{'handle':1,'offset':0,'whence':7}",
            Request::FileSeek { handle: 1, offset: 0, whence: Whence::Other(7) },
        ),
        ("guest-file-flush", "{'handle':1}", Request::FileFlush { handle: 1 }),
        ("guest-fsfreeze-status", "{}", Request::FsfreezeStatus),
        ("guest-fsfreeze-freeze", "{}", Request::FsfreezeFreeze),
        ("guest-fsfreeze-freeze-list", "{}", Request::FsfreezeFreezeList { mountpoints: None }),
        (
            "guest-fsfreeze-freeze-list",
            "{'mountpoints':['/a','/b']}",
            Request::FsfreezeFreezeList { mountpoints: Some(vec!["/a".into(), "/b".into()]) },
        ),
        ("guest-fsfreeze-thaw", "{}", Request::FsfreezeThaw),
        ("guest-fstrim", "{}", Request::Fstrim { minimum: 0 }),
        ("guest-fstrim", "{'minimum':4096}", Request::Fstrim { minimum: 4096 }),
        ("guest-suspend-disk", "{}", Request::Suspend { mode: SuspendMode::Disk }),
        ("guest-suspend-ram", "{}", Request::Suspend { mode: SuspendMode::Ram }),
        ("guest-suspend-hybrid", "{}", Request::Suspend { mode: SuspendMode::Hybrid }),
        (
            "guest-set-vcpus",
            "{'vcpus':[{'online':true,'logical-id':1}]}",
            Request::SetVcpus { vcpus: vec![Switch { number: 1, online: true }] },
        ),
        (
            "guest-set-memory-blocks",
            "{'mem-blks':[{'online':false,'phys-index':7}]}",
            Request::SetMemoryBlocks { blocks: vec![Switch { number: 7, online: false }] },
        ),
    ];
    let telling = Command::all().filter(|command| command.name().contains("-get-"));
    rows.extend(telling.map(|command| (command.name(), "{}", Request::Tell(command))));
    for (name, arguments, wanted) in &rows {
        let message = format!("{{'execute':'{name}','arguments':{arguments}}}");
        let incoming = Incoming::read(message.as_bytes(), everything());
        assert_eq!(incoming.request.as_ref(), Ok(wanted), "{message}");
        assert_eq!(incoming.command.map(Command::name), Some(*name));
    }
    for command in Command::all() {
        assert!(rows.iter().any(|(name, ..)| *name == command.name()), "{command} has no row");
    }
}

#[test]
fn info_lists_every_stock_command_with_three_keys() {
    let offered: CommandSet = [Command::Ping, Command::Shutdown].into_iter().collect();
    let mut out = Vec::new();
    reply::success(&mut out, &reply::Info::of(offered), &Id::NONE);
    let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let version = parsed["return"]["version"].as_str().unwrap();
    assert_eq!(version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version}");
    let commands = parsed["return"]["supported_commands"].as_array().unwrap();
    assert_eq!(commands.len(), CATALOGUE.len());
    for (command, entry) in commands.iter().zip(&CATALOGUE) {
        let enabled = entry.name == "guest-ping" || entry.name == "guest-shutdown";
        let wanted = serde_json::json!({"enabled": enabled, "name": entry.name, "success-response": !entry.silent});
        assert_eq!(*command, wanted);
    }
}

#[test]
fn replies_are_laid_out_as_stock_lays_them_out() {
    let id = Incoming::read(b"{'execute':'guest-ping','id':[1,2]}", everything()).id;
    let print = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let rows: [(Vec<u8>, &[u8]); 5] = [
        (print(&|out| reply::delimited(out, 3, &id)), b"\xff{\"return\": 3, \"id\": [1, 2]}\n"),
        (
            print(&|out| reply::success(out, &reply::Written { count: 3, eof: false }, &Id::NONE)),
            b"{\"return\": {\"count\": 3, \"eof\": false}}\n",
        ),
        (
            print(&|out| reply::success(out, &reply::Sought { eof: false, position: 9 }, &Id::NONE)),
            b"{\"return\": {\"eof\": false, \"position\": 9}}\n",
        ),
        (
            print(&|out| reply::error(out, &QgaError::Handle(1), &id)),
            b"{\"id\": [1, 2], \"error\": {\"class\": \"GenericError\", \"desc\": \"handle '1' has not been found\"}}\n",
        ),
        (
            print(&|out| {
                reply::read_head(out);
                let mut encoder = Encoder::default();
                encoder.push(b"ab", out);
                encoder.push(b"cd", out);
                encoder.finish(out);
                reply::read_tail(out, 4, true, &id);
            }),
            b"{\"return\": {\"buf-b64\": \"YWJjZA==\", \"count\": 4, \"eof\": true}, \"id\": [1, 2]}\n",
        ),
    ];
    for (out, wanted) in rows {
        assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(wanted));
    }
}

#[test]
fn base64_is_decoded_as_stock_decodes_it() {
    let rows: [(&str, Option<&[u8]>); 33] = [
        ("", Some(b"")),
        ("QUJD", Some(b"ABC")),
        ("QUI=", Some(b"AB")),
        ("QQ==", Some(b"A")),
        ("QR==", Some(b"A")),
        ("QQ", Some(b"")),
        ("QQ=", Some(b"")),
        ("QUI", Some(b"")),
        ("A", Some(b"")),
        ("=", Some(b"")),
        ("QUJDQQ", Some(b"ABC")),
        ("QUJDQQ==QUJD", Some(b"ABCAABC")),
        ("Q=QQ", Some(b"@\x04\x10")),
        ("QU=D", Some(b"A\x03")),
        ("Q=JD", Some(b"@\x02C")),
        ("=QUJD", Some(b"\x01\x05\t")),
        ("==QUJDQQ", Some(b"\0\x04\x14$4\x10")),
        ("====", Some(b"\0")),
        ("Q===", Some(b"@")),
        ("QUJD=", Some(b"ABC")),
        ("QUJD===", Some(b"ABC")),
        ("QUJD====", Some(b"ABC\0")),
        ("QUJDUVE=QQ==", Some(b"ABCQQA")),
        ("QUJD\nQUJD\n", Some(b"ABCABC")),
        ("QU\nJD", Some(b"ABC")),
        ("Q\nQ=\n=", Some(b"A")),
        ("\n\n", Some(b"")),
        ("QUJD\r\n", None),
        ("QUJD QUJD", None),
        ("QU-_", None),
        ("QUJD!", None),
        ("QUJDQ\u{e9}", None),
        ("QUJD\0", None),
    ];
    for (text, wanted) in rows {
        let wanted = wanted.ok_or(QgaError::Base64);
        for groups in [1, 2, 1000] {
            assert_eq!(decode(text, groups).as_deref(), wanted.as_deref(), "{text:?} by {groups}");
        }
        let encoded = Encoded::new(text);
        let checked = encoded.check_rest().map(|()| encoded.decoded_length());
        assert_eq!(checked, wanted.map(<[u8]>::len), "{text:?}");
    }
}

/// Decodes a text in pieces of so many groups.
fn decode(text: &str, groups: usize) -> Result<Vec<u8>, QgaError> {
    let mut text = Encoded::new(text);
    let (mut all, mut piece) = (Vec::new(), b"of before".to_vec());
    loop {
        text.decode_next(groups, &mut piece)?;
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
}

#[test]
fn what_is_no_base64_is_found_wherever_it_stands() {
    let good = "QUJD".repeat(40);
    for done in [0, 1, 39] {
        for at in done * 4..good.len() {
            let bad = format!("{}*{}", &good[..at], &good[at + 1..]);
            let mut text = Encoded::new(&bad);
            (0..done).for_each(|_| text.decode_next(1, &mut Vec::new()).unwrap());
            assert_eq!(text.check_rest(), Err(QgaError::Base64), "at {at}");
        }
    }
}

#[test]
fn pieces_of_any_length_encode_as_the_whole() {
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for length in 0..40 {
        for step in 1..9 {
            let mut out = Vec::new();
            let mut encoder = Encoder::default();
            bytes[..length].chunks(step).for_each(|piece| encoder.push(piece, &mut out));
            encoder.finish(&mut out);
            let back = decode(std::str::from_utf8(&out).unwrap(), step);
            assert_eq!(back.as_deref(), Ok(&bytes[..length]), "{length} by {step}");
        }
    }
}
