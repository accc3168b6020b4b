//! Values as a person reads them: hostile text made harmless, times, amounts.
//!
//! Trust: none in what is shown.

use std::fmt::Write as _;

use postern_core::audit::{Timestamp, is_harmful};

/// Nothing in the result moves a cursor or turns the direction of text.
pub(crate) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        if is_harmful(character) {
            // Writing to a String cannot fail.
            _ = write!(out, "\\u{{{:x}}}", u32::from(character));
        } else {
            out.push(character);
        }
        out
    })
}

/// [`escape`] for bytes: what is not UTF-8 is written as `\xff`.
pub(super) fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(&escape(chunk.valid()));
        for byte in chunk.invalid() {
            _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Microseconds since 1970 as UTC, to the second.
pub(super) fn time(micros: i64) -> String {
    format(micros, "%Y-%m-%d %H:%M:%S")
}

/// Microseconds since 1970 as a day, UTC.
pub(super) fn day(micros: i64) -> String {
    format(micros, "%Y-%m-%d")
}

/// Microseconds since 1970, UTC, in a form of `strftime`.
pub(super) fn format(micros: i64, form: &str) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| "?".to_owned(), |time| time.strftime(form).to_string())
}

/// A length of time in its two largest units.
pub(super) fn span(micros: i64) -> String {
    let seconds = micros.max(0) / 1_000_000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, 0) => format!("{} ms", micros.max(0) / 1000),
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// A number in groups of three digits.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An amount of bytes, rounded down to a tenth of a binary unit.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(unit) = (0..UNITS.len()).rev().find(|unit| bytes >> (10 * (unit + 1)) > 0) else {
        return format!("{bytes} B");
    };
    let shift = 10 * unit;
    // In 1/1024 of the unit, which leaves room to multiply.
    let parts = bytes >> shift;
    format!("{}.{} {}", parts >> 10, ((parts & 1023) * 10) >> 10, UNITS[unit])
}

/// A plural's letter.
pub(super) const fn s(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        let numbers = [0, 999, 1000, 1_234_567, u64::MAX].map(number);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567", "18,446,744,073,709,551,615"]);
        let amounts = [0, 1023, 1024, 1536, 1 << 20, (5 << 30) + (1 << 29), u64::MAX].map(bytes);
        assert_eq!(amounts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.5 GiB", "15.9 EiB"]);
        let spans = [-5, 900_000, 59_000_000, 61_000_000, 3_700_000_000, 180_000_000_000].map(span);
        assert_eq!(spans, ["0 ms", "900 ms", "59 s", "1 min 1 s", "1 h 1 min", "2 d 2 h"]);
        assert_eq!(time(1_700_000_000_000_001), "2023-11-14 22:13:20");
        assert_eq!(time(i64::MAX), "?");
    }

    #[test]
    fn hostile_text_is_harmless() {
        assert_eq!(escape("a\u{1b}[2J\u{202e}b\n"), "a\\u{1b}[2J\\u{202e}b\\u{a}");
        assert_eq!(escape_bytes(b"/srv/\xff\xc3\xa9\r"), "/srv/\\xff\u{e9}\\u{d}");
    }
}
