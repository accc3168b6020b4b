//! The client: what a host does, as cheaply as it can be done, for its cost is
//! in both columns. Requests are built beforehand; of a long reply only the
//! length and the last part are kept.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Result;

/// As much as is read at a time, in bytes.
const READ_AT_ONCE: usize = 1 << 20;

/// One connection.
pub(crate) struct Host {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// A reply: its whole length in bytes, and the bytes of the last read, which is
/// all of it where it is short.
#[derive(Clone, Copy)]
pub(crate) struct Reply<'a> {
    pub(crate) length: usize,
    pub(crate) last: &'a [u8],
}

/// A request for `name` with `arguments` as JSON members.
pub(crate) fn command(name: &str, arguments: &str) -> Vec<u8> {
    format!("{{\"execute\": \"{name}\", \"arguments\": {{{arguments}}}}}\n").into_bytes()
}

impl Host {
    pub(crate) fn connect(socket: &Path) -> std::io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(socket)?, buffer: vec![0; READ_AT_ONCE] })
    }

    /// Sends one request and takes its reply.
    pub(crate) fn call(&mut self, request: &[u8]) -> Result<Reply<'_>> {
        self.stream.write_all(request)?;
        let mut length = 0;
        loop {
            let got = self.stream.read(&mut self.buffer)?;
            if got == 0 {
                return Err("the agent closed the connection".into());
            }
            length += got;
            if memchr::memchr(b'\n', &self.buffer[..got]).is_some() {
                return Ok(Reply { length, last: &self.buffer[..got] });
            }
        }
    }

    /// Sends many requests at once and takes as many replies.
    pub(crate) fn call_all(&mut self, requests: &[u8], count: usize) -> Result<()> {
        self.stream.write_all(requests)?;
        let mut lines = 0;
        while lines < count {
            let got = self.stream.read(&mut self.buffer)?;
            if got == 0 {
                return Err("the agent closed the connection".into());
            }
            lines += memchr::memchr_iter(b'\n', &self.buffer[..got]).count();
        }
        Ok(())
    }

    /// Sends one request whose reply has to be `reply`.
    pub(crate) fn expect(&mut self, request: &[u8], reply: &[u8]) -> Result<()> {
        let got = self.call(request)?;
        if got.last.trim_ascii_end() == reply { Ok(()) } else { Err(unexpected(request, got.last)) }
    }

    /// Sends one request whose reply has to be a number.
    pub(crate) fn number(&mut self, request: &[u8]) -> Result<i64> {
        let got = self.call(request)?;
        let number = got.last.strip_prefix(b"{\"return\": ").and_then(|rest| rest.trim_ascii_end().strip_suffix(b"}"));
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        number.ok_or_else(|| unexpected(request, got.last))
    }
}

/// Says what came instead.
pub(crate) fn unexpected(request: &[u8], reply: &[u8]) -> Box<dyn std::error::Error> {
    let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    format!("to {} came {}", start(request).trim(), start(reply).trim()).into()
}
