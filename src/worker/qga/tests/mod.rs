//! Tests of the protocol room, in tables; what stock really answers is held by
//! `tests/compatibility.rs` against the real agent.

mod errors;
mod framing;
mod random;
mod replies;

use postern_core::catalogue::{Command, CommandSet};
use postern_core::policy::Limits;

use super::{Decoder, Id, Incoming, QgaError, Request, reply};

/// Feeds `bytes` in pieces of the given lengths (the last one repeated) and
/// collects what comes out: messages as they are, errors as the host reads them.
fn events(limits: &Limits, bytes: &[u8], pieces: &[usize]) -> Vec<Result<Vec<u8>, QgaError>> {
    let mut decoder = Decoder::new(limits.clone());
    let mut found = Vec::new();
    feed(&mut decoder, bytes, pieces, &mut |event| found.push(event.map(<[u8]>::to_vec)));
    found
}

/// Takes what the decoder finds.
type Each<'a> = &'a mut dyn FnMut(Result<&[u8], QgaError>);

fn feed(decoder: &mut Decoder, mut bytes: &[u8], pieces: &[usize], each: Each<'_>) {
    let mut pieces = pieces.iter().copied();
    let mut piece = usize::MAX;
    while !bytes.is_empty() {
        piece = pieces.next().unwrap_or(piece);
        let space = decoder.space();
        let take = space.len().min(bytes.len()).min(piece.max(1));
        space[..take].copy_from_slice(&bytes[..take]);
        bytes = &bytes[take..];
        decoder.advance(take);
        while let Some(event) = decoder.next_message() {
            each(event);
        }
    }
}

/// What an agent without files would answer, line by line.
fn answers(limits: &Limits, bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
    let mut decoder = Decoder::new(limits.clone());
    let mut out = Vec::new();
    feed(&mut decoder, bytes, pieces, &mut |event| answer(event, &mut out));
    out
}

fn answer(event: Result<&[u8], QgaError>, out: &mut Vec<u8>) {
    match event {
        Err(error) => reply::error(out, &error, &Id::NONE),
        Ok(message) => {
            let incoming = Incoming::read(message, everything());
            match &incoming.request {
                Err(error) => reply::error(out, error, &incoming.id),
                Ok(Request::Sync { id }) => reply::success(out, id, &incoming.id),
                Ok(Request::SyncDelimited { id }) => reply::delimited(out, *id, &incoming.id),
                Ok(_) => reply::success(out, &reply::Empty {}, &incoming.id),
            }
        }
    }
}

fn answered(request: &str) -> String {
    String::from_utf8_lossy(&answers(&Limits::default(), request.as_bytes(), &[])).into_owned()
}

fn everything() -> CommandSet {
    Command::all().collect()
}
