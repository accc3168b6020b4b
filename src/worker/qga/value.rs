//! Parsing: one whole message → a value that borrows from it, with stock's
//! error texts.
//!
//! Trust: reads hostile bytes that [`super::frame`] has cut; holds no more
//! than the message's tokens cost. Depth of recursion is bounded by the framer's
//! `limits.nesting` (1024 at most).

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::error::{QgaError, is_noncharacter, quoted_bytes};

/// An object's members, in the order written.
pub type Members<'a> = Vec<(Cow<'a, str>, Value<'a>)>;

/// Up to here an object's keys are compared one by one, above it in a tree.
const FEW: usize = 16;

/// A JSON value. Strings without escapes are slices of the message.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// A whole number that fits 64 bits with sign.
    Int(i64),
    /// A larger one that fits 64 bits without sign.
    Uint(u64),
    /// Every other number.
    Float(f64),
    /// A string.
    Str(Cow<'a, str>),
    /// An array.
    Array(Vec<Value<'a>>),
    /// An object; no key is there twice.
    Object(Members<'a>),
}

impl<'a> Value<'a> {
    /// Parses one message.
    pub fn parse(message: &'a [u8]) -> Result<Self, QgaError> {
        Parser { bytes: message, at: 0 }.value()
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Uint(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Str(value) => serializer.serialize_str(value),
            Self::Array(values) => {
                let mut seq = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| seq.serialize_element(value))?;
                seq.end()
            }
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    /// The first byte of the next token.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Takes the next token if it is this one byte.
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// The bytes from here on that `holds`.
    fn run(&mut self, holds: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        let run = &rest[..rest.iter().take_while(|&&byte| holds(byte)).count()];
        self.at += run.len();
        run
    }

    fn value(&mut self) -> Result<Value<'a>, QgaError> {
        match self.peek() {
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(Value::Str),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'a'..=b'z') => match self.run(|byte| byte.is_ascii_lowercase()) {
                b"null" => Ok(Value::Null),
                b"true" => Ok(Value::Bool(true)),
                b"false" => Ok(Value::Bool(false)),
                word => Err(QgaError::Keyword(quoted_bytes(word))),
            },
            _ => Err(QgaError::Syntax("expecting value")),
        }
    }

    fn array(&mut self) -> Result<Value<'a>, QgaError> {
        self.at += 1;
        let mut values = Vec::new();
        while !self.eat(b']') {
            if !values.is_empty() && !self.eat(b',') {
                return Err(QgaError::Syntax("expected separator in list"));
            }
            values.push(self.value()?);
        }
        Ok(Value::Array(values))
    }

    fn object(&mut self) -> Result<Value<'a>, QgaError> {
        self.at += 1;
        let mut members = Members::new();
        let mut keys = BTreeSet::new();
        while !self.eat(b'}') {
            if !members.is_empty() && !self.eat(b',') {
                return Err(QgaError::Syntax("expected separator in dict"));
            }
            let Value::Str(key) = self.value()? else {
                return Err(QgaError::Syntax("key is not a string in object"));
            };
            if !self.eat(b':') {
                return Err(QgaError::Syntax("missing : in object pair"));
            }
            let value = self.value()?;
            if members.len() == FEW {
                keys.extend(members.iter().map(|(key, _)| key.clone()));
            }
            let fresh = if members.len() < FEW {
                members.iter().all(|(other, _)| *other != key)
            } else {
                keys.insert(key.clone())
            };
            if !fresh {
                return Err(QgaError::Syntax("duplicate key"));
            }
            members.push((key, value));
        }
        Ok(Value::Object(members))
    }

    fn number(&mut self) -> Result<Value<'a>, QgaError> {
        let start = self.at;
        let digits = |byte: u8| byte.is_ascii_digit();
        self.at += usize::from(self.bytes[start] == b'-');
        let bare_zero = self.run(digits) == b"0";
        let mut whole = true;
        if self.bytes.get(self.at) == Some(&b'.') {
            whole = false;
            self.at += 1;
            self.run(digits);
        }
        // As in the framer: no exponent after a bare zero.
        if let Some(b'e' | b'E') = self.bytes.get(self.at)
            && !(whole && bare_zero)
        {
            whole = false;
            self.at += 1;
            self.at += usize::from(matches!(self.bytes.get(self.at), Some(b'+' | b'-')));
            self.run(digits);
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        if whole {
            if let Ok(value) = text.parse() {
                return Ok(Value::Int(value));
            }
            if let Ok(value) = text.parse() {
                return Ok(Value::Uint(value));
            }
        }
        // The framer lets no other text through than what parses here.
        text.parse().map(Value::Float).map_err(|_| QgaError::Syntax("expecting value"))
    }

    fn string(&mut self, quote: u8) -> Result<Cow<'a, str>, QgaError> {
        self.at += 1;
        let mut escaped: Option<String> = None;
        loop {
            let rest = &self.bytes[self.at..];
            let Some(plain) = memchr::memchr2(quote, b'\\', rest) else {
                return Err(QgaError::Syntax("expecting value"));
            };
            let text = utf8(&rest[..plain])?;
            self.at += plain + 1;
            if rest[plain] == quote {
                return Ok(match escaped {
                    None => Cow::Borrowed(text),
                    Some(mut string) => {
                        string.push_str(text);
                        Cow::Owned(string)
                    }
                });
            }
            let string = escaped.get_or_insert_default();
            string.push_str(text);
            string.push(self.escape(quote)?);
        }
    }

    /// The character of an escape whose backslash is behind us.
    fn escape(&mut self, quote: u8) -> Result<char, QgaError> {
        let backslash = self.at - 1;
        let letter = self.bytes.get(self.at).copied();
        self.at += 1;
        Ok(match letter {
            Some(byte @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.hex4();
                if unit.is_some() {
                    self.at += 4;
                }
                let mut code = unit;
                let mut length = 6;
                if let Some(high @ 0xD800..=0xDBFF) = unit
                    && self.bytes[self.at..].starts_with(b"\\u")
                {
                    self.at += 2;
                    if let Some(low @ 0xDC00..=0xDFFF) = self.hex4() {
                        self.at += 4;
                        length = 12;
                        code = Some(0x10000 + ((high & 0x3FF) << 10 | (low & 0x3FF)));
                    }
                }
                let char = code.and_then(char::from_u32).filter(|&char| !is_noncharacter(char));
                char.ok_or_else(|| QgaError::NotACharacter(self.escape_text(backslash, length, quote)))?
            }
            _ => return Err(QgaError::Syntax("invalid escape sequence in string")),
        })
    }

    /// `length` bytes from the backslash on, but not past the closing quote.
    fn escape_text(&self, backslash: usize, length: usize, quote: u8) -> String {
        let text = &self.bytes[backslash..];
        let mut end = 2;
        while end < length.min(text.len()) && text[end - 1] != quote {
            end += if text[end] == b'\\' { 2 } else { 1 };
        }
        quoted_bytes(&text[..end.min(length).min(text.len())])
    }

    fn hex4(&self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        digits.iter().try_fold(0, |code, &digit| Some(code << 4 | char::from(digit).to_digit(16)?))
    }
}

/// Text as stock takes it: UTF-8 without noncharacters.
fn utf8(bytes: &[u8]) -> Result<&str, QgaError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() || !text.chars().any(is_noncharacter) => Ok(text),
        _ => Err(QgaError::Syntax("invalid UTF-8 sequence in string")),
    }
}
