//! Base64 of file contents: what stock takes, at the speed of a library.
//!
//! Stock refuses a text with a byte outside the alphabet, `=` and newline, and
//! takes everything else: an incomplete last group is dropped, padding may
//! stand anywhere. The library decodes what is well formed, which is all that
//! clients send; what it refuses is decoded group by group as stock does. Groups
//! know nothing of each other, so that a long text can be decoded in pieces.
//!
//! Trust: the host's text, of at most `limits.message` bytes.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::DecodePaddingMode::RequireCanonical;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::error::QgaError;

/// So many bytes are checked at once.
const BLOCK: usize = 64;

const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(RequireCanonical),
);

/// A text of base64, decoded piece by piece.
#[derive(Clone, Debug)]
pub struct Encoded<'a> {
    /// All of it, without newlines.
    text: Cow<'a, [u8]>,
    /// How much of it is decoded.
    done: usize,
}

impl<'a> Encoded<'a> {
    /// A text, of which nothing is decoded yet.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self { text: without_newlines(text.as_bytes()), done: 0 }
    }

    /// Makes sure that what is left to decode will not be refused.
    ///
    /// # Errors
    /// [`QgaError::Base64`]
    pub fn check_rest(&self) -> Result<(), QgaError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() | matches!(byte, b'+' | b'/' | b'=');
        // In blocks without a branch, which become vector instructions.
        let mut blocks = self.text[self.done..].chunks(BLOCK);
        if blocks.all(|block| block.iter().fold(true, |all, &byte| all & good(byte))) {
            Ok(())
        } else {
            Err(QgaError::Base64)
        }
    }

    /// How many bytes all of it decodes to, if none of it is refused.
    #[must_use]
    pub fn decoded_length(&self) -> usize {
        let (groups, _) = self.text.as_chunks::<4>();
        groups.iter().map(|group| 3 - usize::from(group[2] == b'=') - usize::from(group[3] == b'=')).sum()
    }

    /// Decodes up to so many groups of four, in place of what `out` held;
    /// nothing only if nothing is left.
    ///
    /// # Errors
    /// [`QgaError::Base64`]
    pub fn decode_next(&mut self, groups: usize, out: &mut Vec<u8>) -> Result<(), QgaError> {
        let rest = &self.text[self.done..];
        let piece = &rest[..rest.len().min(groups * 4)];
        self.done += piece.len();
        out.clear();
        if ENGINE.decode_vec(piece, out).is_ok() {
            return Ok(());
        }
        out.clear();
        decode_leniently(piece, out)
    }
}

fn without_newlines(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\n', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut kept = Vec::with_capacity(text.len());
    text.split(|&byte| byte == b'\n').for_each(|line| kept.extend_from_slice(line));
    Cow::Owned(kept)
}

fn decode_leniently(text: &[u8], out: &mut Vec<u8>) -> Result<(), QgaError> {
    let (groups, rest) = text.as_chunks::<4>();
    for &group in groups {
        let mut bits = 0;
        for byte in group {
            bits = bits << 6 | sextet(byte)?;
        }
        let [_, first, second, third] = bits.to_be_bytes();
        out.push(first);
        if group[2] != b'=' {
            out.push(second);
        }
        if group[3] != b'=' {
            out.push(third);
        }
    }
    rest.iter().try_for_each(|&byte| sextet(byte).map(|_| ()))
}

fn sextet(byte: u8) -> Result<u32, QgaError> {
    Ok(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        b'=' => 0,
        _ => return Err(QgaError::Base64),
    }))
}

/// Encodes a file piece by piece, whatever the pieces' lengths.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    /// Bytes that do not yet make a group of three.
    carry: [u8; 3],
    carried: usize,
}

impl Encoder {
    /// Appends the text of all whole groups up to the end of `bytes`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        if self.carried > 0 {
            let (fill, rest) = bytes.split_at(bytes.len().min(3 - self.carried));
            self.carry[self.carried..self.carried + fill.len()].copy_from_slice(fill);
            self.carried += fill.len();
            bytes = rest;
            if self.carried < 3 {
                return;
            }
            encode(&self.carry, out);
        }
        let (groups, rest) = bytes.split_at(bytes.len() / 3 * 3);
        encode(groups, out);
        self.carry[..rest.len()].copy_from_slice(rest);
        self.carried = rest.len();
    }

    /// Appends what is left, padded.
    pub fn finish(self, out: &mut Vec<u8>) {
        encode(&self.carry[..self.carried], out);
    }
}

fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let before = out.len();
    out.resize(before + bytes.len().div_ceil(3) * 4, 0);
    let written = ENGINE.encode_slice(bytes, &mut out[before..]);
    debug_assert_eq!(written, Ok(out.len() - before));
}
