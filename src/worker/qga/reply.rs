//! Replies: one line of JSON per request, byte for byte as stock prints it:
//! `", "` and `": "`, everything beyond ASCII escaped, `return` before `id`,
//! `id` before `error`.
//!
//! Trust: writes to memory only. Host-supplied text arrives bounded (see
//! [`super::error::TEXT_MAX`], [`ID_MAX`]).

use std::io;

use postern_core::catalogue::{CATALOGUE, CommandSet};
use postern_core::messages::{BlockResponse, BlockSet, Trimmed};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use super::error::QgaError;
use super::value::Value;

/// Largest `id`, in bytes of the echo. Stock has no limit; an id of 64 MiB of
/// non-ASCII text would become a reply of 192 MiB.
pub const ID_MAX: usize = 64 << 10;

/// What stock's version string would be: three dotted numbers. It is postern's
/// own, for a QEMU version would promise commands and bugs that are not here.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A request's `id`, ready to be echoed; empty if it had none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Id(Vec<u8>);

impl Id {
    /// No id.
    pub const NONE: Self = Self(Vec::new());

    /// The echo of `value`.
    pub(super) fn of(value: &Value<'_>) -> Result<Self, QgaError> {
        let mut echo = Bounded(Vec::new());
        match value.serialize(&mut Serializer::with_formatter(&mut echo, Stock)) {
            Ok(()) => Ok(Self(echo.0)),
            Err(_) => Err(QgaError::IdTooLarge),
        }
    }
}

/// Memory that takes [`ID_MAX`] bytes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > ID_MAX - self.0.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends `{"return": …}`.
pub fn success(out: &mut Vec<u8>, value: &impl Serialize, id: &Id) {
    out.extend_from_slice(b"{\"return\": ");
    write_json(out, value);
    finish(out, id);
}

/// Appends the reply of `guest-sync-delimited`: 0xFF, then `{"return": …}`.
pub fn delimited(out: &mut Vec<u8>, value: i64, id: &Id) {
    out.push(0xFF);
    success(out, &value, id);
}

/// Appends `{"error": …}`.
pub fn error(out: &mut Vec<u8>, error: &QgaError, id: &Id) {
    out.push(b'{');
    if !id.0.is_empty() {
        out.extend_from_slice(b"\"id\": ");
        out.extend_from_slice(&id.0);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(b"\"error\": ");
    write_json(out, &ErrorBody { class: error.class().name(), desc: &error.to_string() });
    out.extend_from_slice(b"}\n");
}

/// Appends the beginning of `guest-file-read`'s reply. Base64 text follows, see
/// [`super::base64::Encoder`], then [`read_tail`].
pub fn read_head(out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"return\": {\"buf-b64\": \"");
}

/// Appends the end of `guest-file-read`'s reply: how many bytes were read, and
/// whether the file ended there.
pub fn read_tail(out: &mut Vec<u8>, count: u64, eof: bool, id: &Id) {
    out.extend_from_slice(b"\", \"count\": ");
    write_json(out, &count);
    out.extend_from_slice(b", \"eof\": ");
    write_json(out, &eof);
    out.push(b'}');
    finish(out, id);
}

fn finish(out: &mut Vec<u8>, id: &Id) {
    if !id.0.is_empty() {
        out.extend_from_slice(b", \"id\": ");
        out.extend_from_slice(&id.0);
    }
    out.extend_from_slice(b"}\n");
}

/// `{}`: what commands without a value return.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Empty {}

/// What `guest-file-write` returns.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Written {
    /// Bytes written.
    pub count: u64,
    /// Whether the file's end was met: stock says false.
    pub eof: bool,
}

/// What `guest-file-seek` returns.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sought {
    /// Whether the file's end was met: stock says false.
    pub eof: bool,
    /// Bytes from the file's beginning.
    pub position: u64,
}

/// What `guest-fstrim` returns.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FilesystemsTrimmed {
    /// Each filesystem, in the reverse order of the mount table.
    pub paths: Vec<FilesystemTrimmed>,
}

/// One filesystem of [`FilesystemsTrimmed`]: what was done, or an error.
#[derive(Clone, Debug, Serialize)]
pub struct FilesystemTrimmed {
    /// Shortest range, in bytes, that the kernel told the disk of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<i64>,
    /// Where it is mounted.
    pub path: String,
    /// Bytes that the disk was told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trimmed: Option<i64>,
    /// Why it was not trimmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<&Trimmed> for FilesystemTrimmed {
    fn from(one: &Trimmed) -> Self {
        Self {
            minimum: one.done.as_ref().map(|done| done.minimum.cast_signed()),
            path: String::from_utf8_lossy(one.path.as_slice()).into_owned(),
            trimmed: one.done.as_ref().map(|done| done.trimmed.cast_signed()),
            error: one.done.is_none().then(|| one.error.to_text()),
        }
    }
}

/// What `guest-set-memory-blocks` returns of each block.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryBlockSet {
    /// What became of it.
    pub response: &'static str,
    /// The kernel's error number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i32>,
    /// Its number.
    pub phys_index: u64,
}

impl From<&BlockSet> for MemoryBlockSet {
    fn from(one: &BlockSet) -> Self {
        let response = match one.response {
            BlockResponse::Success => "success",
            BlockResponse::NotFound => "not-found",
            BlockResponse::NotSupported => "operation-not-supported",
            BlockResponse::Failed => "operation-failed",
        };
        Self { response, error_code: one.errno, phys_index: one.number }
    }
}

/// What `guest-info` returns.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// See [`VERSION`].
    pub version: &'static str,
    /// Every stock command.
    pub supported_commands: Vec<CommandInfo>,
}

/// One command of [`Info`]. Clients compare whole entries: exactly these keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CommandInfo {
    /// Whether the host may use it now.
    pub enabled: bool,
    /// Its name.
    pub name: &'static str,
    /// Whether success sends a reply.
    #[serde(rename = "success-response")]
    pub success_response: bool,
}

impl Info {
    /// Every command of the catalogue, `offered` ones enabled.
    #[must_use]
    pub fn of(offered: CommandSet) -> Self {
        let command = |entry: &postern_core::catalogue::Entry| CommandInfo {
            enabled: entry.command.is_some_and(|command| offered.contains(command)),
            name: entry.name,
            success_response: !entry.silent,
        };
        Self { version: VERSION, supported_commands: CATALOGUE.iter().map(command).collect() }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    class: &'static str,
    desc: &'a str,
}

fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    // Memory takes every byte, and no value here has keys that are not strings.
    let written = value.serialize(&mut Serializer::with_formatter(out, Stock));
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Stock's way to print JSON.
struct Stock;

impl Formatter for Stock {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(seventeen_digits(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|char: char| char >= '\x7F') {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut chars = rest[at..].chars();
            let mut units = [0; 2];
            for unit in chars.next().map_or(&[][..], |char| char.encode_utf16(&mut units)) {
                write!(writer, "\\u{unit:04X}")?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\b"),
            CharEscape::FormFeed => writer.write_all(b"\\f"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04X}"),
        }
    }
}

/// A number as C's `%.17g` prints it: 17 significant digits without trailing
/// zeros, with an exponent if that is below -4 or above 16.
fn seventeen_digits(value: f64) -> String {
    let scientific = format!("{value:.16e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let trimmed = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    if (-4..17).contains(&exponent) {
        let decimals = usize::try_from(16 - exponent).unwrap_or_default();
        let fixed = format!("{value:.decimals$}");
        if decimals == 0 { fixed } else { trimmed(&fixed) }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs())
    }
}
