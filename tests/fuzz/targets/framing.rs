//! Framing: the host's bytes → messages, the same however they are cut.
//!
//! The first byte says how they are cut and which limits hold.

use postern_core::policy::Limits;
use postern_worker::qga::{Decoder, QgaError};

const PING: &[u8] = b"{\"execute\":\"guest-ping\"}";

/// What came out, and whether a message is half received.
type Seen = (Vec<Result<Vec<u8>, QgaError>>, bool);

/// Feeds `bytes` in pieces that `next` names.
fn feed(decoder: &mut Decoder, mut bytes: &[u8], mut next: impl FnMut() -> usize) -> Seen {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty());
        let take = space.len().min(bytes.len()).min(next().max(1));
        space[..take].copy_from_slice(&bytes[..take]);
        bytes = &bytes[take..];
        decoder.advance(take);
        while let Some(event) = decoder.next_message() {
            found.push(event.map(<[u8]>::to_vec));
        }
    }
    (found, decoder.is_midway())
}

/// Takes an input.
///
/// # Panics
/// Where cutting makes a difference, a limit does not hold, or a request behind
/// the input is not understood.
pub fn run(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let limits = if how & 1 == 0 {
        Limits::default()
    } else {
        Limits { message: 96, nesting: 6, string: 24, ..Limits::default() }
    };
    let mut decoder = Decoder::new(limits.clone());
    let whole = feed(&mut decoder, bytes, || usize::MAX);
    assert_eq!(feed(&mut Decoder::new(limits.clone()), bytes, || 1), whole, "byte by byte");
    let mut seed = u32::from(how);
    let random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as usize % 23
    };
    let mut cut = Decoder::new(limits.clone());
    assert_eq!(feed(&mut cut, bytes, random), whole, "in pieces");
    assert!(cut.memory() <= (64 << 10) + 2 * bytes.len());

    let mut rest = bytes;
    for message in whole.0.iter().flatten() {
        assert!(message.len() <= limits.message as usize && !message.is_empty());
        // Nothing is made up, nothing comes twice, and all in order.
        let at = rest.windows(message.len()).position(|window| window == message);
        rest = &rest[at.expect("a message is a part of what came") + message.len()..];
    }
    // Behind 0xFF, and on a new line where nothing is half received.
    let separator: &[u8] = if whole.1 { b"\xff" } else { b"\n" };
    let (after, midway) = feed(&mut decoder, &[separator, PING].concat(), || usize::MAX);
    assert_eq!((after.last(), midway), (Some(&Ok(PING.to_vec())), false), "the next request is understood");
    // 0xFF ends a word or a number, which is a message of its own.
    assert!(after.len() == 1 || (whole.1 && after.len() == 2), "{after:?}");
}
