//! JSON → command: one message → a request or an error, and its reply.
//!
//! The first byte says which commands are offered.

use postern_core::catalogue::{Command, CommandSet};
use postern_core::messages::Switch;
use postern_core::policy::Limits;
use postern_worker::qga::reply::{self, Info};
use postern_worker::qga::request::while_frozen;
use postern_worker::qga::value::Value;
use postern_worker::qga::{Decoder, Incoming, QgaError, Request, Whence};
use serde_json::{Value as Json, json};

/// Takes an input.
///
/// # Panics
/// Where a reply is not one line of JSON with the request's id, where a request
/// written anew means something else, or where `serde_json` reads it otherwise.
pub fn run(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let all: CommandSet = Command::all().collect();
    let offered = match how % 3 {
        0 => all,
        1 => while_frozen(all),
        _ => Command::all().filter(|&command| (command as u8) & 1 == how >> 7).collect(),
    };
    let mut decoder = Decoder::new(Limits::default());
    let space = decoder.space();
    let take = bytes.len().min(space.len());
    space[..take].copy_from_slice(&bytes[..take]);
    decoder.advance(take);
    while let Some(event) = decoder.next_message() {
        match event {
            Ok(message) => one(message, offered),
            Err(error) => drop(line(&error_line(&error, &reply::Id::NONE))),
        }
    }
}

fn one(message: &[u8], offered: CommandSet) {
    let incoming = Incoming::read(message, offered);
    let mut out = Vec::new();
    match &incoming.request {
        Err(error) => out = error_line(error, &incoming.id),
        Ok(Request::Sync { id }) => reply::success(&mut out, id, &incoming.id),
        Ok(Request::SyncDelimited { id }) => reply::delimited(&mut out, *id, &incoming.id),
        Ok(Request::Info) => reply::success(&mut out, &Info::of(offered), &incoming.id),
        Ok(Request::FileRead { count, .. }) => {
            reply::read_head(&mut out);
            reply::read_tail(&mut out, count.unsigned_abs(), *count < 0, &incoming.id);
        }
        Ok(_) => reply::success(&mut out, &reply::Empty {}, &incoming.id),
    }
    let said = line(&out);
    let theirs = serde_json::from_slice::<Json>(message).ok();
    if let Some(Json::Object(members)) = &theirs
        && !matches!(incoming.request, Err(QgaError::IdTooLarge | QgaError::Syntax(_) | QgaError::NotACharacter(_)))
    {
        // Of an id without a number the echo is the same, of one with a number
        // the number.
        assert!(alike(members.get("id"), said.get("id")), "{said}");
    }
    compare(message, theirs.as_ref());
    if let Ok(request) = &incoming.request {
        let command = incoming.command.expect("a request is of a command");
        assert!(offered.contains(command));
        if let Some(theirs) = &theirs {
            assert_eq!(theirs["execute"], command.name());
            for (name, value) in arguments(request).as_object().into_iter().flatten() {
                let whence = ["set", "cur", "end"].iter().position(|&whence| theirs["arguments"][name] == whence);
                let said = whence.filter(|_| name == "whence").map(Json::from);
                let said = said.as_ref().or_else(|| theirs["arguments"].get(name)).map(as_switched);
                assert!(
                    said.as_ref().is_none_or(|said| alike(Some(value), Some(said))),
                    "{name}: {value}, not {said:?}"
                );
            }
        }
        let again = json!({ "execute": command.name(), "arguments": arguments(request) }).to_string();
        let again = Incoming::read(again.as_bytes(), offered);
        assert_eq!((again.request.as_ref(), again.command), (Ok(request), incoming.command));
    }
}

/// A list of processors or memory blocks without what a request leaves unread, and
/// numbers as they are taken; else the same.
fn as_switched(said: &Json) -> Json {
    let mut said = said.clone();
    for one in said.as_array_mut().into_iter().flatten().filter_map(Json::as_object_mut) {
        one.remove("can-offline");
        if let Some(number) = one.get("phys-index").and_then(Json::as_i64) {
            one["phys-index"] = number.cast_unsigned().into();
        }
    }
    said
}

fn error_line(error: &QgaError, id: &reply::Id) -> Vec<u8> {
    let mut out = Vec::new();
    reply::error(&mut out, error, id);
    out
}

/// A reply as the host reads it.
fn line(out: &[u8]) -> Json {
    let text = out.strip_prefix(b"\xff").unwrap_or(out);
    let text = text.strip_suffix(b"\n").expect("a reply ends a line");
    assert!(text.iter().all(|byte| (b' '..0x7f).contains(byte)), "{}", String::from_utf8_lossy(text));
    let said: Json = serde_json::from_slice(text).expect("a reply is JSON");
    let members = said.as_object().expect("a reply is an object");
    assert_ne!(members.contains_key("return"), members.contains_key("error"));
    assert!(members.len() - usize::from(members.contains_key("id")) == 1, "{said}");
    if let Some(error) = said.get("error") {
        let class = error["class"].as_str().expect("a class");
        assert!(["GenericError", "CommandNotFound"].contains(&class) && error["desc"].is_string());
    }
    said
}

/// Whether two values are the same, 1 and 1.0 and -0 and 0 among them.
fn alike(one: Option<&Json>, other: Option<&Json>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(Json::Number(one)), Some(Json::Number(other))) => {
            // As serde_json is built here, it reads a fraction off by one bit.
            let near = |(one, other): (f64, f64)| (one - other).abs() <= one.abs() * 1e-15;
            one == other || one.as_f64().zip(other.as_f64()).is_some_and(near)
        }
        (Some(Json::Array(one)), Some(Json::Array(other))) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(Some(one), Some(other)))
        }
        (Some(Json::Object(one)), Some(Json::Object(other))) => {
            one.len() == other.len() && one.iter().all(|(key, value)| alike(Some(value), other.get(key)))
        }
        (one, other) => one == other,
    }
}

/// Our reading of a message against another parser's.
fn compare(message: &[u8], theirs: Option<&Json>) {
    match (Value::parse(message), theirs) {
        (Ok(ours), theirs) => {
            // A number beyond every other is printed as null.
            let printed = serde_json::to_string(&ours).expect("a value prints");
            if !has_infinity(&ours) {
                assert_eq!(Value::parse(printed.as_bytes()).as_ref(), Ok(&ours), "{printed}");
            }
            let printed: Json = serde_json::from_str(&printed).unwrap_or_default();
            if let Some(theirs) = theirs {
                assert!(alike(Some(&printed), Some(theirs)), "{printed} {theirs}");
            } else {
                // What only we take: stock's single quotes, and what is too
                // deep or too large for them.
                let deep = message.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > 100;
                let odd = message.contains(&b'\'') || deep || has_infinity(&ours);
                assert!(odd, "{}", String::from_utf8_lossy(message));
            }
        }
        (
            Err(QgaError::Syntax("duplicate key" | "invalid UTF-8 sequence in string") | QgaError::NotACharacter(_)),
            _,
        )
        | (Err(_), None) => {}
        // As stock we take no exponent behind a bare zero.
        (Err(_), _) if message.windows(2).any(|pair| pair.eq_ignore_ascii_case(b"0e")) => {}
        (Err(error), Some(theirs)) => panic!("{error}, but {theirs}"),
    }
}

fn has_infinity(value: &Value<'_>) -> bool {
    match value {
        Value::Float(number) => !number.is_finite(),
        Value::Array(values) => values.iter().any(has_infinity),
        Value::Object(members) => members.iter().any(|(_, value)| has_infinity(value)),
        _ => false,
    }
}

/// A request's arguments, every optional one written out.
fn arguments(request: &Request<'_>) -> Json {
    match request {
        Request::SyncDelimited { id } | Request::Sync { id } => json!({ "id": id }),
        Request::Ping
        | Request::Tell(_)
        | Request::Suspend { .. }
        | Request::Info
        | Request::FsfreezeStatus
        | Request::FsfreezeFreeze
        | Request::FsfreezeThaw
        | Request::FsfreezeFreezeList { mountpoints: None } => json!({}),
        Request::Shutdown { mode } => json!({ "mode": mode.name() }),
        Request::FileOpen { path, written, .. } => json!({ "path": path, "mode": written }),
        Request::FileClose { handle } | Request::FileFlush { handle } => json!({ "handle": handle }),
        Request::FileRead { handle, count } => json!({ "handle": handle, "count": count }),
        Request::FileWrite { handle, data, count: None } => json!({ "handle": handle, "buf-b64": data }),
        Request::FileWrite { handle, data, count } => json!({ "handle": handle, "buf-b64": data, "count": count }),
        Request::FileSeek { handle, offset, whence } => {
            let whence = match whence {
                Whence::Set => 0,
                Whence::Cur => 1,
                Whence::End => 2,
                Whence::Other(other) => *other,
            };
            json!({ "handle": handle, "offset": offset, "whence": whence })
        }
        Request::FsfreezeFreezeList { mountpoints: Some(list) } => json!({ "mountpoints": list }),
        Request::Fstrim { minimum } => json!({ "minimum": minimum.cast_signed() }),
        Request::SetVcpus { vcpus } => {
            let vcpu = |one: &Switch| json!({ "logical-id": one.number.cast_signed(), "online": one.online });
            json!({ "vcpus": vcpus.iter().map(vcpu).collect::<Vec<_>>() })
        }
        Request::SetMemoryBlocks { blocks } => {
            let block = |one: &Switch| json!({ "phys-index": one.number, "online": one.online });
            json!({ "mem-blks": blocks.iter().map(block).collect::<Vec<_>>() })
        }
    }
}
