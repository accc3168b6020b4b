//! The operator's voice: short lines on stderr, quiet by default.
//!
//! Never waits: a line goes out if stderr has room for it, or is dropped.
//! While filesystems are frozen lines are held back, for stderr may be a file.
//!
//! Trust: texts are ours; what a host or a worker said is escaped first.

use std::cell::RefCell;
use std::fmt;
use std::io::Write;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;

use crate::background::Starter;

/// Urgency, by the numbers of syslog and journald.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Does not work.
    Error = 3,
    /// Works, but look at it.
    Warning = 4,
    /// What an operator wants to find later.
    Notice = 5,
    /// What happens.
    Info = 6,
}

/// Most bytes of one line's text. A pipe that has room takes `PIPE_BUF`, 4096,
/// without blocking; a worker's last words, escaped, may be longer.
const LONGEST: usize = 4000;

/// Most lines held back.
const HELD: usize = 64;

/// So many filesystems, in words for an operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filesystems(pub(crate) usize);

impl fmt::Display for Filesystems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} filesystem{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// Where lines go.
#[derive(Debug)]
pub struct Voice {
    most: Level,
    /// Whether stderr goes to journald, which reads a `<N>` in front.
    journal: bool,
    held: RefCell<Option<Vec<String>>>,
    /// Who started a daemon, and hears it until it serves.
    starter: Option<Starter>,
}

impl Voice {
    /// A voice that says what is as urgent as `most`, or more.
    #[must_use]
    pub fn new(most: Level, starter: Option<Starter>) -> Self {
        Self { most, journal: to_journal(), held: RefCell::new(None), starter }
    }

    /// Looks anew where stderr goes, which was made a file.
    pub fn moved(&mut self) {
        self.journal = to_journal();
    }

    /// Tells the starter that the agent serves.
    pub fn serves(&self) {
        if let Some(starter) = &self.starter {
            starter.serves();
        }
    }

    /// Says one line.
    pub fn say(&self, level: Level, text: &str) {
        if level > self.most {
            return;
        }
        let mut room = LONGEST;
        let fits = |character: &char| {
            room = room.saturating_sub(character.len_utf8());
            room > 0
        };
        let text: String = text.chars().flat_map(escaped).take_while(fits).collect();
        let line = if self.journal { format!("<{}>{text}\n", level as u8) } else { format!("postern: {text}\n") };
        match self.held.borrow_mut().as_mut() {
            Some(held) if held.len() < HELD => held.push(line),
            Some(_) => {}
            None => self.write(&line),
        }
    }

    /// Holds lines back from now on.
    pub fn hold(&self) {
        self.held.borrow_mut().get_or_insert_default();
    }

    /// Says what was held back.
    pub fn release(&self) {
        for line in self.held.take().into_iter().flatten() {
            self.write(&line);
        }
    }

    fn write(&self, line: &str) {
        write_if_room(line);
        if let Some(starter) = &self.starter {
            starter.say(line);
        }
    }
}

/// Whether stderr is the stream that journald says it is, as `DEVICE:INODE`.
fn to_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fstat(std::io::stderr()).is_ok_and(|facts| stream == format!("{}:{}", facts.st_dev, facts.st_ino))
}

/// A character as it may stand on a terminal.
fn escaped(character: char) -> impl Iterator<Item = char> {
    let plain = !character.is_control();
    let escape = (!plain).then(|| character.escape_default()).into_iter().flatten();
    plain.then_some(character).into_iter().chain(escape)
}

/// A pipe with room takes `PIPE_BUF` bytes without blocking; our lines are
/// shorter, see [`LONGEST`].
fn write_if_room(line: &str) {
    let stderr = std::io::stderr();
    let mut room = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        let _ = stderr.lock().write_all(line.as_bytes());
    }
}
