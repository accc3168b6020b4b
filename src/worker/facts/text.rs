//! What the files of `/proc`, `/etc` and `/run` are made of: words, numbers and
//! assignments.
//!
//! Trust: any bytes.

use std::str::FromStr;

/// The words of a line, which are separated by any number of spaces.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The number that these digits are, if the type holds it; without a sign.
pub(super) fn number<N: FromStr>(digits: &[u8]) -> Option<N> {
    let is_plain = digits.first().is_some_and(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

/// The assignments of a file as a shell could read it, with the values as they are
/// written; of two for one key a shell takes the later.
pub(super) fn assignments(content: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    content.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        Some((line[..at].trim_ascii(), line[at + 1..].trim_ascii()))
    })
}
