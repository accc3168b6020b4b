//! The floor program: the same socket as an agent's, no parser, ready-made replies of
//! the same size. What it costs, every agent's figure has in it: the client, the
//! kernel and the wake-ups.
//!
//! Every line is answered with the reply that was set last. A line that begins with
//! `!` sets it, unanswered: `!=TEXT` to the text behind it, `!NUMBER` to so many
//! bytes.
//!
//! Trust: started by the benchmark, for its own client.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::Result;

/// As much as is read at a time, in bytes.
const READ_AT_ONCE: usize = 1 << 20;

/// Serves one client after another, for ever.
pub(crate) fn serve(socket: &OsStr) -> Result<std::convert::Infallible> {
    let listener = UnixListener::bind(socket)?;
    loop {
        answer(listener.accept()?.0)?;
    }
}

fn answer(mut client: UnixStream) -> Result<()> {
    let mut buffer = vec![0; READ_AT_ONCE];
    let mut reply = b"{\"return\": 7}\n".to_vec();
    loop {
        let got = client.read(&mut buffer)?;
        if got == 0 {
            return Ok(());
        }
        // A setting comes alone, for the client waits before it sets the next.
        if let Some(setting) = buffer[..got].strip_prefix(b"!") {
            reply = set(setting.trim_ascii_end())?;
            // Set, says one byte.
            client.write_all(b"\n")?;
            continue;
        }
        for _ in memchr::memchr_iter(b'\n', &buffer[..got]) {
            client.write_all(&reply)?;
        }
    }
}

fn set(setting: &[u8]) -> Result<Vec<u8>> {
    let mut reply = match setting.strip_prefix(b"=") {
        Some(text) => text.to_vec(),
        None => vec![b'A'; std::str::from_utf8(setting)?.parse::<usize>()?.saturating_sub(1)],
    };
    reply.push(b'\n');
    Ok(reply)
}
