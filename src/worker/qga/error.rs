//! Every error that the host can be told, with stock's class and text.
//!
//! Hosts match on these texts (`KubeVirt` on the strerror part, libvirt on the
//! class), so they are part of the wire, not prose: the table in the tests
//! holds them.
//!
//! Trust: texts may quote the host's own bytes, bounded by [`TEXT_MAX`] and made
//! valid UTF-8 here; escaping is the reply writer's work.

use std::borrow::Cow;

use nix::errno::Errno;
use postern_core::policy::TOKENS_MAX;
use thiserror::Error;

/// Most bytes of the host's own text that an error quotes back: a Linux path
/// (`PATH_MAX`). Stock quotes without limit, so one bad byte after 64 MiB of
/// string costs it a 64 MiB reply.
pub const TEXT_MAX: usize = 4096;

/// The `class` member of an error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Everything that has no class of its own.
    GenericError,
    /// Unknown, not offered, or not now; libvirt reads it as "unsupported".
    CommandNotFound,
}

impl Class {
    /// Text on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
        }
    }
}

/// What a request can fail with, as the host reads it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum QgaError {
    /// A token that no JSON has: a stray byte, a broken number, a control
    /// character inside a string. Quotes the token.
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    /// Tokens in an order that no JSON has, or a bad string; the text says what.
    #[error("JSON parse error, {0}")]
    Syntax(&'static str),
    /// A word other than true, false and null.
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    /// A `\u` escape that is no character: bad digits, lone surrogate, noncharacter.
    #[error("JSON parse error, {0} is not a valid Unicode character")]
    NotACharacter(String),
    /// A message longer than `limits.message`. What stands before the colon of
    /// this and the next three is stock's.
    #[error("JSON token size limit exceeded: a request of more than {0} bytes (limits.message of the guest's policy)")]
    TooLong(u32),
    /// A string longer than `limits.string`.
    #[error("JSON token size limit exceeded: a string of more than {0} bytes (limits.string of the guest's policy)")]
    StringTooLong(u32),
    /// More tokens than [`TOKENS_MAX`].
    #[error("JSON token count limit exceeded: a request of more than {TOKENS_MAX} tokens")]
    TooManyTokens,
    /// Deeper than `limits.nesting`.
    #[error("JSON nesting depth limit exceeded: more than {0} levels (limits.nesting of the guest's policy)")]
    TooDeep(u32),

    /// A request that is no object.
    #[error("QMP input must be a JSON object")]
    NotAnObject,
    /// No `execute`.
    #[error("QMP input lacks member 'execute'")]
    LacksExecute,
    /// `execute` is no string.
    #[error("QMP input member 'execute' must be a string")]
    ExecuteNotAString,
    /// `arguments` is no object.
    #[error("QMP input member 'arguments' must be an object")]
    ArgumentsNotAnObject,
    /// A member other than execute, arguments and id.
    #[error("QMP input member '{0}' is unexpected")]
    UnexpectedMember(String),
    /// An `id` that would be larger than [`super::reply::ID_MAX`] when echoed.
    /// Stock has no such limit.
    #[error("QMP input member 'id' is too large")]
    IdTooLarge,

    /// No such command.
    #[error("The command {0} has not been found")]
    CommandNotFound(String),
    /// A stock command that postern does not offer, that the policy withholds,
    /// or that may not run while frozen. Holds the name in the catalogue.
    #[error("Command {0} has been disabled: the command is not allowed")]
    CommandDisabled(&'static str),

    /// A required argument is not there.
    #[error("Parameter '{0}' is missing")]
    ArgumentMissing(Cow<'static, str>),
    /// An argument of the wrong JSON type.
    #[error("Invalid parameter type for '{name}', expected: {expected}")]
    ArgumentType {
        /// Argument; an element of a list with its index.
        name: Cow<'static, str>,
        /// The type that it should have.
        expected: &'static str,
    },
    /// An argument that is no number of 64 bits.
    #[error("Parameter '{0}' expects uint64")]
    ArgumentUint(Cow<'static, str>),
    /// An argument that the command does not have.
    #[error("Parameter '{0}' is unexpected")]
    ArgumentUnexpected(String),
    /// A text that an enumeration does not have.
    #[error("Parameter '{name}' does not accept value '{value}'")]
    ArgumentValue {
        /// Argument.
        name: &'static str,
        /// What the host wrote.
        value: String,
    },

    /// An open mode that `fopen` does not have.
    #[error("invalid file open mode '{0}'")]
    OpenMode(String),
    /// A file could not be opened. See [`QgaError::open`].
    #[error("failed to open file '{path}' (mode: '{mode}'): {}", strerror(*.errno))]
    Open {
        /// Path as requested.
        path: String,
        /// Mode as requested.
        mode: String,
        /// Why.
        errno: Errno,
    },
    /// As many files are open as `limits.handles` allows. See
    /// [`QgaError::too_many_files`].
    #[error(
        "failed to open file '{path}' (mode: '{mode}'): Too many open files: {most} (limits.handles of the guest's policy)"
    )]
    TooManyFiles {
        /// Path as requested.
        path: String,
        /// Mode as requested.
        mode: String,
        /// The limit.
        most: u32,
    },
    /// A handle that is not open.
    #[error("handle '{0}' has not been found")]
    Handle(i64),
    /// A `count` out of range: negative, above the read limit, or more than was sent.
    #[error("value '{0}' is invalid for argument count")]
    Count(i64),
    /// A `count` that stock would take, and the policy does not.
    #[error("a count of {count} is more than {most} bytes (limits.read of the guest's policy)")]
    ReadLimit {
        /// As requested.
        count: i64,
        /// The limit.
        most: u32,
    },
    /// Reading failed.
    #[error("failed to read file: {}", strerror(*.0))]
    Read(Errno),
    /// `buf-b64` has a byte that base64 has not.
    #[error("Base64 data contains invalid characters")]
    Base64,
    /// Writing failed.
    #[error("failed to write to file: {}", strerror(*.0))]
    Write(Errno),
    /// A `whence` number other than 0, 1 and 2.
    #[error("invalid whence code {0}")]
    Whence(i64),
    /// Seeking failed.
    #[error("failed to seek file: {}", strerror(*.0))]
    Seek(Errno),

    /// A shutdown mode that does not exist. Stock's text has no closing bracket.
    #[error("mode is invalid (valid values are: halt|powerdown|reboot")]
    ShutdownMode,
    /// What the broker says of an act that it refused or that failed.
    #[error("{0}")]
    Told(String),
}

impl QgaError {
    /// The `class` member.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::CommandNotFound(_) | Self::CommandDisabled(_) => Class::CommandNotFound,
            _ => Class::GenericError,
        }
    }

    /// [`QgaError::Open`] of the host's path and mode, bounded.
    #[must_use]
    pub fn open(path: &str, mode: &str, errno: Errno) -> Self {
        Self::Open { path: quoted(path), mode: quoted(mode), errno }
    }

    /// [`QgaError::TooManyFiles`] of the host's path and mode, bounded.
    #[must_use]
    pub fn too_many_files(path: &str, mode: &str, most: u32) -> Self {
        Self::TooManyFiles { path: quoted(path), mode: quoted(mode), most }
    }
}

/// glibc's text for an error number. (nix has its own table, which says "Bad
/// file number" where clients expect "Bad file descriptor".)
#[must_use]
pub fn strerror(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    // The standard library adds " (os error 2)".
    text.rsplit_once(" (os error ").map_or(text.as_str(), |(text, _)| text).to_owned()
}

/// The host's text, cut at [`TEXT_MAX`].
pub(super) fn quoted(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The host's bytes as text: cut at the first NUL as stock's C strings are, and
/// at [`TEXT_MAX`]; each malformed or noncharacter sequence becomes U+FFFD,
/// counted as stock counts (a sequence as long as its first byte says), which
/// is coarser than `String::from_utf8_lossy`.
pub(super) fn quoted_bytes(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(TEXT_MAX)];
    let mut rest = &bytes[..memchr::memchr(0, bytes).unwrap_or(bytes.len())];
    let mut text = String::with_capacity(rest.len());
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(valid) => valid,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default(),
        };
        text.extend(valid.chars().map(|char| if is_noncharacter(char) { char::REPLACEMENT_CHARACTER } else { char }));
        rest = &rest[valid.len()..];
        if let Some(&first) = rest.first() {
            let announced = match first {
                0xC0..=0xDF => 1,
                0xE0..=0xEF => 2,
                0xF0..=0xF7 => 3,
                0xF8..=0xFB => 4,
                0xFC..=0xFD => 5,
                _ => 0,
            };
            let follow = rest[1..].iter().take(announced).take_while(|&&byte| byte & 0xC0 == 0x80).count();
            let (sequence, after) = rest.split_at(1 + follow);
            // "Modified UTF-8" writes U+0000 as two bytes.
            text.push(if sequence == [0xC0, 0x80] { '\0' } else { char::REPLACEMENT_CHARACTER });
            rest = after;
        }
    }
    text
}

/// The 66 code points that Unicode will never assign; stock takes them for errors.
pub(super) fn is_noncharacter(char: char) -> bool {
    let code = u32::from(char);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}
