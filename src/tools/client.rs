//! A host's side of the QGA protocol: one connection, one request at a time.
//!
//! Trust: none in the other end. It may be a guest's agent that somebody took
//! over: what it sends is bounded in size and in time, and whoever prints it
//! escapes it with [`harmless`] first. Used by `postern call` and `postern demo`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;

/// Largest reply, in bytes. A read of 48 MiB, the most that stock gives at once,
/// comes as 64 MiB of base64 and a little.
pub const MAX_REPLY: usize = 65 << 20;

/// How long a silent command's success is waited for: an error would have come
/// by then, for the agent answers before it acts.
const QUIET: Duration = Duration::from_secs(2);

/// Before the reply line of `guest-sync-delimited`; to the agent: drop what is
/// half read.
const DELIMITER: u8 = 0xFF;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Nobody listens there.
    #[error("cannot connect to {}: {why}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// The agent took too long.
    #[error("no answer to {0} in time; is the agent running, and is no other host connected?")]
    Timeout(String),
    /// The agent closed the channel.
    #[error("the channel was closed before the answer to {0}")]
    Closed(String),
    /// What came is no reply.
    #[error("the answer to {0} is no QGA reply: {1}")]
    Malformed(String, &'static str),
    /// A call failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, #[source] io::Error),
}

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{class}: {text}")]
pub struct Refusal {
    /// `CommandNotFound` or `GenericError`.
    pub class: String,
    /// For people.
    pub text: String,
}

/// One reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// As it came, without the newline.
    pub line: Vec<u8>,
    /// What it says.
    pub outcome: Result<Value, Refusal>,
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// What came and was not used yet.
    rest: Vec<u8>,
    timeout: Duration,
}

impl Client {
    /// Connects to the agent's socket, or to the one that a hypervisor has for
    /// it. `timeout` bounds this, and every later request.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Lost> {
        let failed = |why: Errno| Lost::Connect { path: path.to_owned(), why: why.into() };
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        // Bounds connecting too: a full backlog makes connect(2) wait.
        let limit = TimeVal::milliseconds(i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::SendTimeout, &limit).map_err(failed)?;
        connect(socket.as_raw_fd(), &address).map_err(failed)?;
        Ok(Self { stream: UnixStream::from(socket), rest: Vec::new(), timeout })
    }

    /// Brings both ends to the same place with `guest-sync-delimited`: whatever
    /// an earlier host left, half a request or replies that nobody read, is
    /// dropped.
    pub fn sync(&mut self) -> Result<(), Lost> {
        const COMMAND: &str = "guest-sync-delimited";
        let until = self.until();
        let id = random_id().map_err(|why| Lost::Call("reading /dev/urandom", why))?;
        let mut request = vec![DELIMITER];
        request.extend(line_of(COMMAND, Some(&format!("{{\"id\": {id}}}"))));
        self.send(COMMAND, &request, until)?;
        loop {
            while let Some(at) = self.rest.iter().position(|byte| *byte == DELIMITER) {
                self.rest.drain(..=at);
                let line = self.line(COMMAND, until)?;
                // Another host's answer may stand before ours.
                if parse(COMMAND, line).is_ok_and(|reply| reply.outcome == Ok(Value::from(id))) {
                    return Ok(());
                }
            }
            self.rest.clear();
            self.receive(COMMAND, until)?;
        }
    }

    /// Sends a command with its arguments, a JSON object as text, and waits for
    /// the reply.
    pub fn ask(&mut self, command: &str, arguments: Option<&str>) -> Result<Reply, Lost> {
        let until = self.until();
        self.send(command, &line_of(command, arguments), until)?;
        let line = self.line(command, until)?;
        parse(command, line)
    }

    /// As [`Client::ask`], for a command whose success has no reply: `None` if
    /// the channel was closed or stayed quiet.
    pub fn ask_silent(&mut self, command: &str, arguments: Option<&str>) -> Result<Option<Reply>, Lost> {
        let until = self.until();
        self.send(command, &line_of(command, arguments), until)?;
        match self.line(command, until.min(Instant::now() + QUIET)) {
            Ok(line) => parse(command, line).map(Some),
            Err(Lost::Timeout(_) | Lost::Closed(_)) if self.rest.is_empty() => Ok(None),
            Err(lost) => Err(lost),
        }
    }

    fn until(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn send(&mut self, command: &str, mut bytes: &[u8], until: Instant) -> Result<(), Lost> {
        while !bytes.is_empty() {
            let left = left(command, until)?;
            self.stream.set_write_timeout(Some(left)).map_err(|why| Lost::Call("setsockopt", why))?;
            match self.stream.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(why) => settle(command, why)?,
            }
        }
        Ok(())
    }

    /// The next line, without its newline.
    fn line(&mut self, command: &str, until: Instant) -> Result<Vec<u8>, Lost> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.rest[seen..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=seen + at).collect();
                line.pop();
                return Ok(line);
            }
            seen = self.rest.len();
            if seen > MAX_REPLY {
                return Err(Lost::Malformed(command.to_owned(), "it does not end"));
            }
            self.receive(command, until)?;
        }
    }

    /// Waits for more bytes.
    fn receive(&mut self, command: &str, until: Instant) -> Result<(), Lost> {
        let mut piece = [0; 16 << 10];
        loop {
            let left = left(command, until)?;
            self.stream.set_read_timeout(Some(left)).map_err(|why| Lost::Call("setsockopt", why))?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Lost::Closed(command.to_owned())),
                Ok(count) => {
                    self.rest.extend_from_slice(&piece[..count]);
                    return Ok(());
                }
                Err(why) => settle(command, why)?,
            }
        }
    }
}

/// The time that is left, never zero.
fn left(command: &str, until: Instant) -> Result<Duration, Lost> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Lost::Timeout(command.to_owned())) } else { Ok(left.max(Duration::from_millis(1))) }
}

/// What a failed read or write means; `Ok` is to try again.
fn settle(command: &str, why: io::Error) -> Result<(), Lost> {
    match why.kind() {
        // The time that is left says whether it is over.
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(Lost::Closed(command.to_owned())),
        _ => Err(Lost::Call("talking to the agent", why)),
    }
}

/// A request on one line. The arguments go out as they were written, so that
/// no number or repeated name is changed on the way.
fn line_of(command: &str, arguments: Option<&str>) -> Vec<u8> {
    let command = Value::from(command);
    let mut line = match arguments {
        Some(arguments) => format!("{{\"execute\": {command}, \"arguments\": {arguments}}}"),
        None => format!("{{\"execute\": {command}}}"),
    };
    line.push('\n');
    line.into_bytes()
}

fn parse(command: &str, line: Vec<u8>) -> Result<Reply, Lost> {
    let malformed = |why| Lost::Malformed(command.to_owned(), why);
    let Ok(Value::Object(mut reply)) = serde_json::from_slice(&line) else {
        return Err(malformed("it is no JSON object"));
    };
    let outcome = match (reply.remove("return"), reply.remove("error")) {
        (Some(value), None) => Ok(value),
        (None, Some(error)) => {
            let text = |name: &str| error[name].as_str().map(str::to_owned);
            let (Some(class), Some(text)) = (text("class"), text("desc")) else {
                return Err(malformed("its error has no class and text"));
            };
            Err(Refusal { class, text })
        }
        _ => return Err(malformed("it holds neither a return value nor an error")),
    };
    Ok(Reply { line, outcome })
}

/// A number that no earlier host used, within what every JSON reader holds
/// exactly.
fn random_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes) >> 11)
}

/// `text` with whatever could move a cursor or turn the direction of text as
/// JSON escapes; newlines stay. JSON stays the JSON that it was.
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character != '\n' && postern_core::audit::is_harmful(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(character);
        }
    }
    out
}
