//! The chain: every line carries a number one above, and the SHA-256 of, the
//! line before it.
//!
//! A line's shape is fixed at both ends:
//!
//! ```text
//! {"@timestamp":"2025-01-02T03:04:05.678901Z","event":{"sequence":7,…,"postern":{…,"previous":"<64 hex digits>"}}
//! ```
//!
//! so that the broker can continue a log from its last line without a JSON
//! parser: [`sequence_of`] looks at these places and nowhere else.
//!
//! Trust: lines that are read back may have been edited by anyone with root;
//! they are taken only if their fixed places are right, and only the number is.

use std::fmt::Write as _;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::ecs::Body;
use super::json::hex;

/// Longest line in bytes, without its newline. The longest record holds three
/// texts, or two lists of mountpoints, each of whose bytes takes six as escape
/// or eight as U+FFFD and hexadecimal; a test holds the sum below this.
pub const MAX_LINE: usize = 256 << 10;

const BEFORE_TIME: &str = "{\"@timestamp\":\"";
const TIME: usize = "2025-01-02T03:04:05.678901Z".len();
const BEFORE_SEQUENCE: &str = "\",\"event\":{\"sequence\":";
const BEFORE_HASH: &str = "\"previous\":\"";
const END: &str = "\"}}";

/// A SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What the first record of all names as the line before it.
    pub const NONE: Self = Self([0; 32]);

    /// The hash of a line, without its newline.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    /// The hash that 64 lower-case hexadecimal digits are.
    #[must_use]
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(hash))
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Bytes between two whole lines that are none: what a full disk or a crash
/// left of a record. The record behind them says how many and which.
#[derive(Clone, Debug, Default)]
pub struct Torn {
    bytes: u64,
    hash: Sha256,
}

impl Torn {
    /// Adds bytes, newlines too.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    /// How many bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash over all bytes.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(self.hash.clone().finalize().into())
    }
}

/// Where a log stands: the number of its next record, and the hash that this
/// record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `event.sequence` of the next record.
    pub next: u64,
    /// `postern.previous` of the next record.
    pub previous: Hash,
}

impl Chain {
    /// Before the first record of all.
    pub const START: Self = Self { next: 1, previous: Hash::NONE };

    /// The chain behind a whole line; `None` if it is none: a power cut can leave
    /// the beginning of one record and the end of another with zeros between.
    #[must_use]
    pub fn after(line: &[u8]) -> Option<Self> {
        let next = sequence_of(line)?.checked_add(1)?;
        let is_text = line.len() <= MAX_LINE && line.iter().all(|&byte| byte >= b' ');
        (is_text && is_whole(line)).then(|| Self { next, previous: Hash::of(line) })
    }

    /// The line of a record at this place, without a newline. `torn` says what
    /// stands between the line before and this one.
    #[must_use]
    pub fn seal(&self, at: Timestamp, body: &Body, torn: Option<&Torn>) -> String {
        let mut line = String::with_capacity(body.len() + 512);
        // Writing to a String cannot fail.
        _ = write!(line, "{BEFORE_TIME}{at:.6}{BEFORE_SEQUENCE}{},{}", self.next, body.as_str());
        if let Some(torn) = torn.filter(|torn| torn.bytes > 0) {
            _ = write!(line, "\"torn\":{{\"bytes\":{},\"sha256\":\"{}\"}},", torn.bytes, torn.hash());
        }
        _ = write!(line, "{BEFORE_HASH}{}{END}", self.previous);
        line
    }

    /// Moves behind `line`, which [`Chain::seal`] made and which is written.
    pub fn advance(&mut self, line: &[u8]) {
        self.next += 1;
        self.previous = Hash::of(line);
    }
}

/// What [`Chain::seal`] put around a record's body, read back from its fixed
/// places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal<'a> {
    /// `event.sequence`.
    pub sequence: u64,
    /// What is between: `"action":"…` and so on. Nothing of it is checked.
    pub body: &'a [u8],
    /// `postern.torn`: how many bytes, and their hash.
    pub torn: Option<(u64, Hash)>,
    /// `postern.previous`.
    pub previous: Hash,
}

impl<'a> Seal<'a> {
    /// The seal of a line without its newline; `None` if it is no whole record.
    #[must_use]
    pub fn of(line: &'a [u8]) -> Option<Self> {
        let (sequence, rest) = split_sequence(line)?;
        let (rest, previous) = split_hash(rest.strip_suffix(END.as_bytes())?)?;
        let rest = rest.strip_suffix(BEFORE_HASH.as_bytes())?;
        let (body, torn) = split_torn(rest).map_or((rest, None), |(body, torn)| (body, Some(torn)));
        Some(Self { sequence, body, torn, previous })
    }
}

/// A hash at the end of `text`, and what is before it.
fn split_hash(text: &[u8]) -> Option<(&[u8], Hash)> {
    let (rest, digits) = text.split_at(text.len().checked_sub(64)?);
    Some((rest, Hash::from_digits(digits)?))
}

/// An account of torn bytes at the end of `text`, and what is before it. No
/// string of a record looks like one: the quotes in there have a backslash.
fn split_torn(text: &[u8]) -> Option<(&[u8], (u64, Hash))> {
    let (rest, hash) = split_hash(text.strip_suffix(b"\"},")?)?;
    let rest = rest.strip_suffix(b",\"sha256\":\"")?;
    let digits = rest.len() - rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let bytes = std::str::from_utf8(&rest[digits..]).ok()?.parse().ok()?;
    Some((rest[..digits].strip_suffix(b"\"torn\":{\"bytes\":")?, (bytes, hash)))
}

/// The sequence number of a line that begins as records do.
#[must_use]
pub fn sequence_of(line: &[u8]) -> Option<u64> {
    split_sequence(line).map(|(sequence, _)| sequence)
}

/// The number, and what is behind its comma.
fn split_sequence(line: &[u8]) -> Option<(u64, &[u8])> {
    let rest = line.strip_prefix(BEFORE_TIME.as_bytes())?;
    let (time, rest) = rest.split_at_checked(TIME)?;
    let fits = time.iter().zip(b"0000-00-00T00:00:00.000000Z").all(|(&byte, &shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        _ => byte == shape,
    });
    let rest = rest.strip_prefix(BEFORE_SEQUENCE.as_bytes()).filter(|_| fits)?;
    let digits = &rest[..rest.iter().position(|byte| !byte.is_ascii_digit())?];
    let rest = rest[digits.len()..].strip_prefix(b",").filter(|_| digits.first() != Some(&b'0'))?;
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

/// Whether a line ends as records do. No beginning of a record does: a quote
/// inside one of its strings has a backslash before it.
#[must_use]
pub fn is_whole(line: &[u8]) -> bool {
    let Some(rest) = line.strip_suffix(END.as_bytes()) else { return false };
    let Some(at) = rest.len().checked_sub(64) else { return false };
    let (rest, hash) = rest.split_at(at);
    hash.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && rest.ends_with(BEFORE_HASH.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::{Record, Text};
    use super::*;
    use crate::messages::Denial;

    fn time() -> Timestamp {
        Timestamp::from_microsecond(1_700_000_000_000_001).unwrap()
    }

    fn refused(name: &str) -> Body {
        Body::of(&Record::CommandRefused { child: 1, command: Text::from(name), because: Denial::Policy })
    }

    #[test]
    fn a_line_looks_so() {
        let mut torn = Torn::default();
        torn.add(b"{\"@tim\n");
        let line = Chain { next: 7, previous: Hash::NONE }.seal(time(), &refused("nope"), Some(&torn));
        assert_eq!(
            line,
            "{\"@timestamp\":\"2023-11-14T22:13:20.000001Z\",\"event\":{\"sequence\":7,\
             \"action\":\"unknown-command\",\"category\":[\"api\"],\"type\":[\"denied\"],\"outcome\":\"failure\",\
             \"reason\":\"the policy does not allow it\"},\"ecs\":{\"version\":\"8.11.0\"},\
             \"postern\":{\"stage\":\"refused\",\"child\":1,\"refused_by\":\"policy\",\"command\":\"nope\",\
             \"torn\":{\"bytes\":7,\"sha256\":\"500d7cea3387f93cf726bffa3229b0dd0e02e16c84fb8e9860877af96d3fcc00\"},\
             \"previous\":\"0000000000000000000000000000000000000000000000000000000000000000\"}}"
        );
    }

    #[test]
    fn a_seal_is_read_back() {
        // A host that knows the format names a file after it.
        let hostile = format!("\"torn\":{{\"bytes\":7,\"sha256\":\"{}\"}},", "0".repeat(64));
        let body = refused(&hostile);
        let mut torn = Torn::default();
        torn.add(b"{\"@tim\n");
        for (torn, account) in [(None, None), (Some(&torn), Some((7, torn.hash())))] {
            let line = Chain { next: u64::MAX, previous: Hash::of(b"x") }.seal(time(), &body, torn);
            let seal = Seal::of(line.as_bytes()).unwrap();
            assert_eq!((seal.sequence, seal.torn, seal.previous), (u64::MAX, account, Hash::of(b"x")));
            assert_eq!(seal.body, body.as_str().as_bytes());
            for end in 0..line.len() {
                assert_eq!(Seal::of(&line.as_bytes()[..end]), None, "{end}");
            }
        }
    }

    #[test]
    fn a_line_continues_the_chain_and_no_part_of_it_does() {
        // A host that knows the format tries to end a line early.
        let hostile = format!("\"previous\":\"{}\"}}}}", "0".repeat(64));
        let mut chain = Chain::START;
        for number in 1..=11 {
            let line = chain.seal(time(), &refused(&hostile), None);
            assert_eq!(sequence_of(line.as_bytes()), Some(number));
            for end in 0..line.len() {
                assert_eq!(Chain::after(&line.as_bytes()[..end]), None, "{end}");
            }
            chain.advance(line.as_bytes());
            assert_eq!(Chain::after(line.as_bytes()), Some(chain));
        }
    }

    #[test]
    fn only_the_fixed_form_has_a_number() {
        let line = |time: &str, number: &str| {
            sequence_of(format!("{{\"@timestamp\":\"{time}\",\"event\":{{\"sequence\":{number}").as_bytes())
        };
        let good = "2023-11-14T22:13:20.000001Z";
        assert_eq!(line(good, "1,"), Some(1));
        assert_eq!(line(good, "18446744073709551615,"), Some(u64::MAX));
        for number in ["", ",", "0,", "01,", "-1,", "1", "1}", "1.0,", "1e3,", "18446744073709551616,"] {
            assert_eq!(line(good, number), None, "{number}");
        }
        for time in ["2023-11-14 22:13:20.000001Z", "2023-11-14T22:13:20.00001Z", "2023-11-14T22:13:20.000001+", ""] {
            assert_eq!(line(time, "1,"), None, "{time}");
        }
        // The last number has no next one.
        let last = Chain { next: u64::MAX, previous: Hash::NONE }.seal(time(), &refused("nope"), None);
        assert_eq!(Chain::after(last.as_bytes()), None);
    }
}
