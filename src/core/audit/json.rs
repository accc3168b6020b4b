//! A small JSON writer: named values in, text out, every string escaped.
//!
//! Names are dotted paths (`file.path`) of our own; names with the same first
//! part become one object. Only values may be hostile, and every character
//! that could break a line, a parser or a terminal leaves here as `\u` escape.
//!
//! Trust: names are ours, values are not. There is no reader in this room.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::sys::terminal::is_harmful;

/// A value of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Signed(i64),
    Bool(bool),
    Str(Cow<'static, str>),
    Names(&'static [&'static str]),
    List(Vec<String>),
    Object(Fields),
}

/// Names and values, in the order in which they are written.
pub(super) type Fields = Vec<(&'static str, Value)>;

/// Writes `fields` as the members of an object, without its braces.
pub(super) fn members<'a>(out: &mut String, fields: &[(&'a str, &Value)]) {
    let mut done: Vec<&'a str> = Vec::new();
    for (name, value) in fields {
        let head = name.split_once('.').map_or(*name, |(head, _)| head);
        if done.contains(&head) {
            continue;
        }
        if !done.is_empty() {
            out.push(',');
        }
        done.push(head);
        string(out, head);
        out.push(':');
        if head.len() == name.len() {
            write_value(out, value);
            continue;
        }
        let inner: Vec<_> = fields
            .iter()
            .filter_map(|(name, value)| name.strip_prefix(head)?.strip_prefix('.').map(|rest| (rest, *value)))
            .collect();
        out.push('{');
        members(out, &inner);
        out.push('}');
    }
}

fn write_value(out: &mut String, value: &Value) {
    // Writing to a String cannot fail.
    match value {
        Value::Number(number) => _ = write!(out, "{number}"),
        Value::Signed(number) => _ = write!(out, "{number}"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Str(text) => string(out, text),
        Value::Names(names) => list(out, names.iter().copied()),
        Value::List(texts) => list(out, texts.iter().map(String::as_str)),
        Value::Object(fields) => {
            out.push('{');
            members(out, &fields.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>());
            out.push('}');
        }
    }
}

fn list<'a>(out: &mut String, texts: impl Iterator<Item = &'a str>) {
    out.push('[');
    for (index, text) in texts.enumerate() {
        if index > 0 {
            out.push(',');
        }
        string(out, text);
    }
    out.push(']');
}

/// Writes `text` as a JSON string. At most six bytes per byte of `text`.
pub(super) fn string(out: &mut String, text: &str) {
    out.push('"');
    // What needs no escape is copied run by run.
    let mut run = 0;
    for (at, character) in text.char_indices() {
        let escape = matches!(character, '"' | '\\');
        if !escape && !is_harmful(character) {
            continue;
        }
        out.push_str(&text[run..at]);
        run = at + character.len_utf8();
        if escape {
            out.extend(['\\', character]);
        } else {
            _ = write!(out, "\\u{:04x}", u32::from(character));
        }
    }
    out.push_str(&text[run..]);
    out.push('"');
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value & 0xf)]);
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        out.extend([digit(byte >> 4), digit(*byte)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_one_head_make_one_object() {
        let fields = [
            ("event.action", Value::Str("a".into())),
            ("postern.peer.pid", Value::Signed(-1)),
            ("event.type", Value::Names(&["x", "y"])),
            ("postern.peer.uid", Value::Number(u64::MAX)),
            ("postern.ok", Value::Bool(true)),
        ];
        let mut out = String::new();
        members(&mut out, &fields.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>());
        assert_eq!(
            out,
            r#""event":{"action":"a","type":["x","y"]},"postern":{"peer":{"pid":-1,"uid":18446744073709551615},"ok":true}"#
        );
    }

    #[test]
    fn nothing_that_moves_a_cursor_leaves_unescaped() {
        let mut out = String::new();
        string(&mut out, "a\"b\\c\n\u{1b}[2J\u{7f}\u{85}\u{202e}é€😀");
        assert_eq!(out, r#""a\"b\\c\u000a\u001b[2J\u007f\u0085\u202eé€😀""#);
    }

    #[test]
    fn an_escape_is_at_most_six_times_as_long() {
        for character in (0..=0xffffu32).filter_map(char::from_u32) {
            let mut out = String::new();
            string(&mut out, character.encode_utf8(&mut [0; 4]));
            assert!(out.len() - 2 <= 6 * character.len_utf8(), "{character:?}");
        }
    }
}
