//! Heads: where the audit log stands, told to journald and syslog, so that a
//! log that is cut or written anew contradicts what left the machine with them.
//!
//! A head goes out at the start, after each rotation and each thaw, at the
//! orderly end, and else once enough records or enough time lie behind the last
//! one. Without a new record there is none, and no clock.
//!
//! Sockets are made and connected at the start, before any barrier, and never
//! waited for: a head that finds no room is counted, and told once there is. Of a
//! receiver that was restarted under a new socket the old one is deaf; then the
//! same name is connected to again, which is all that the filter allows with
//! these descriptors.
//!
//! Trust: all of a head is the broker's own: numbers, a hash, the policy's path
//! of the log. Receivers are only written to. Callers: the broker's loop.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use postern_core::audit::{self, Hash};
use postern_core::confine::filters::Reconnects;
use postern_core::policy;

use crate::datagram::{self, Sent};
use crate::log::Log;
use crate::say::{Level, Voice};

/// What journald knows such messages by, among all that is in a journal. Drawn
/// by lot for this purpose; `audit/RECORDS.md` names it.
pub(crate) const MESSAGE_ID: &str = "f65ad1f760e644e4a4fcec55bd2d21eb";
/// By RFC 3164: notice. The operator's word, see [`Level::Notice`].
const PRIORITY: u8 = Level::Notice as u8;
/// By RFC 3164: security/authorization messages, private.
const FACILITY: u8 = 10;

/// journald's socket, by its documentation of the native protocol.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// syslog's, by syslog(3).
const SYSLOG: &str = "/dev/log";

/// Heads, and to whom they go.
#[derive(Debug)]
pub(crate) struct Heads {
    ways: Vec<Way>,
    log: PathBuf,
    boot_id: String,
    records: u64,
    interval: Duration,
    /// Number of the record that the last head told of.
    told: u64,
    /// When the first record behind that one was seen.
    since: Option<Instant>,
    /// As the log counts them, when the last head was told.
    files: u64,
    /// The log was held when it was last looked at.
    held: bool,
}

/// One receiver.
#[derive(Debug)]
struct Way {
    name: &'static str,
    address: &'static str,
    form: fn(&Head<'_>) -> Vec<u8>,
    socket: UnixDatagram,
    /// Whether the policy in force wants it told.
    on: bool,
    /// A head found no room, and none has gone through since.
    owes: bool,
    /// Heads that could not be sent when they were due, since one that was.
    missed: u64,
    /// Whether the operator knows.
    said: bool,
}

/// What a head says.
struct Head<'a> {
    number: u64,
    hash: Hash,
    log: &'a Path,
    boot_id: &'a str,
    missed: u64,
}

impl Heads {
    /// Makes the sockets that the policy asks for. A receiver that is not there
    /// is one line for the operator; it is looked for again with each head.
    ///
    /// # Errors
    /// As socket(2).
    pub(crate) fn open(audit: &policy::Audit, boot_id: String, voice: &Voice) -> io::Result<Self> {
        let chosen = [
            (audit.heads.journal, "journald", JOURNAL, journal as fn(&Head<'_>) -> Vec<u8>),
            (audit.heads.syslog, "syslog", SYSLOG, syslog),
        ];
        let mut ways = Vec::new();
        for (_, name, address, form) in chosen.into_iter().filter(|(chosen, ..)| *chosen) {
            let socket = datagram::socket()?;
            let mut way = Way { name, address, form, socket, on: true, owes: false, missed: 0, said: false };
            if let Err(why) = way.socket.connect(address) {
                way.warn(voice, &why);
            }
            ways.push(way);
        }
        Ok(Self {
            ways,
            log: audit.log.clone(),
            boot_id,
            records: audit.heads.records,
            interval: audit.heads.interval,
            told: 0,
            since: None,
            files: 0,
            held: false,
        })
    }

    /// Goes on as another policy says, of those whom the start has reached out to.
    pub(crate) fn adopt(&mut self, audit: &policy::Audit) {
        (self.records, self.interval) = (audit.heads.records, audit.heads.interval);
        for way in &mut self.ways {
            way.on = if way.address == JOURNAL { audit.heads.journal } else { audit.heads.syslog };
            way.owes &= way.on;
        }
    }

    /// Whether journald, and whether syslog was reached out to at the start.
    pub(crate) fn reached(&self) -> (bool, bool) {
        let has = |address| self.ways.iter().any(|way| way.address == address);
        (has(JOURNAL), has(SYSLOG))
    }

    /// What the filter must let pass for connecting anew.
    pub(crate) fn reconnects(&self) -> Vec<Reconnects> {
        self.ways.iter().map(|way| Reconnects::new(way.socket.as_raw_fd(), way.address)).collect()
    }

    /// Directories in which the sockets are, through every link on the way, that
    /// are there now.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        for way in &self.ways {
            let named = Path::new(way.address);
            let real = named.canonicalize().unwrap_or_else(|_| named.to_owned());
            found.extend([named, &real].into_iter().filter_map(Path::parent).map(Path::to_owned));
        }
        found.sort();
        found.dedup();
        found.retain(|directory| directory.is_dir());
        found
    }

    /// Sends a head if one is due.
    pub(crate) fn keep(&mut self, log: &Log, voice: &Voice, now: Instant) {
        if log.is_held() {
            self.held = true;
            return;
        }
        let Some((number, hash)) = log.head().filter(|(number, _)| *number != self.told) else { return };
        let since = *self.since.get_or_insert(now);
        let moment = self.held || log.files() != self.files;
        if moment || number.saturating_sub(self.told) >= self.records || now >= since + self.interval {
            self.tell(log.files(), number, hash, voice);
        }
    }

    /// Sends a head because nothing will follow.
    pub(crate) fn end(&mut self, log: &Log, voice: &Voice) {
        if let Some((number, hash)) = log.head().filter(|(number, _)| *number != self.told && !log.is_held()) {
            self.tell(log.files(), number, hash, voice);
        }
    }

    /// When [`Heads::keep`] is due by time; `None` without a new record.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.since.filter(|_| !self.held && self.ways.iter().any(|way| way.on)).map(|since| since + self.interval)
    }

    /// What to poll for room, while a head waits for it.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ways.iter().filter(|way| way.owes && !self.held).map(|way| way.socket.as_fd())
    }

    /// Tells those that had no room where the log stands by now.
    pub(crate) fn tell_on(&mut self, log: &Log, voice: &Voice) {
        let Some((number, hash)) = log.head().filter(|_| !log.is_held()) else { return };
        let head = Head { number, hash, log: &self.log, boot_id: &self.boot_id, missed: 0 };
        for way in self.ways.iter_mut().filter(|way| way.owes) {
            way.tell(&head, voice);
        }
    }

    fn tell(&mut self, files: u64, number: u64, hash: Hash, voice: &Voice) {
        self.told = number;
        self.since = None;
        self.files = files;
        self.held = false;
        let head = Head { number, hash, log: &self.log, boot_id: &self.boot_id, missed: 0 };
        for way in self.ways.iter_mut().filter(|way| way.on) {
            way.owes = false;
            way.tell(&head, voice);
        }
    }
}

impl Way {
    fn tell(&mut self, head: &Head<'_>, voice: &Voice) {
        let message = (self.form)(&Head { missed: self.missed, ..*head });
        let mut sent = datagram::send(&self.socket, &message);
        if matches!(sent, Sent::Gone(_)) {
            sent = match self.socket.connect(self.address) {
                Ok(()) => datagram::send(&self.socket, &message),
                Err(why) => Sent::Gone(why),
            };
        }
        let why = match sent {
            Sent::Yes => {
                (self.owes, self.missed, self.said) = (false, 0, false);
                return;
            }
            // It was counted when it was due, and still waits.
            Sent::NoRoom if self.owes => return,
            Sent::NoRoom => io::ErrorKind::WouldBlock.into(),
            Sent::Gone(why) => why,
        };
        self.owes = why.kind() == io::ErrorKind::WouldBlock;
        self.missed += 1;
        self.warn(voice, &why);
    }

    /// Tells the operator, once until a head goes through.
    fn warn(&mut self, voice: &Voice, why: &io::Error) {
        if std::mem::replace(&mut self.said, true) {
            return;
        }
        let why = match why.kind() {
            io::ErrorKind::WouldBlock => "no room".to_owned(),
            _ => why.to_string(),
        };
        let Self { name, address, .. } = self;
        voice.say(Level::Warning, &format!("{name} takes no heads of the audit log now: {address}: {why}"));
    }
}

/// One line that says it all; what `postern audit verify --anchors` and
/// `audit/verify.py` look for in a syslog file.
fn text(head: &Head<'_>) -> String {
    let Head { number, hash, boot_id, missed, .. } = head;
    let mut text = format!("audit head: record {number}, sha256 {hash}, boot {boot_id}, missed {missed}, log ");
    for character in head.log.to_string_lossy().chars() {
        if audit::is_harmful(character) {
            // Writing to a String cannot fail.
            _ = write!(text, "\\u{:04x}", u32::from(character));
        } else {
            text.push(character);
        }
    }
    text
}

/// journald's native protocol: `NAME=VALUE` lines; a value of any bytes has its
/// length before it, as 64 bits, little-endian.
fn journal(head: &Head<'_>) -> Vec<u8> {
    let Head { number, hash, boot_id, missed, log } = head;
    let log = log.as_os_str().as_bytes();
    let text = text(head);
    let mut out = format!(
        "MESSAGE={text}\nMESSAGE_ID={MESSAGE_ID}\nPRIORITY={PRIORITY}\nSYSLOG_FACILITY={FACILITY}\n\
         SYSLOG_IDENTIFIER=postern\nPOSTERN_SEQUENCE={number}\nPOSTERN_HASH={hash}\nPOSTERN_BOOT_ID={boot_id}\n\
         POSTERN_MISSED={missed}\nPOSTERN_LOG\n"
    )
    .into_bytes();
    out.extend((log.len() as u64).to_le_bytes());
    out.extend(log);
    out.push(b'\n');
    out
}

/// RFC 3164, as a program of the same machine writes it: without the host's
/// name, and without the time, for local time's rules are in files that the
/// broker cannot read; the receiver puts its own.
fn syslog(head: &Head<'_>) -> Vec<u8> {
    let number = FACILITY * 8 + PRIORITY;
    format!("<{number}>postern[{}]: {}", std::process::id(), text(head)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Hash = Hash([0xab; 32]);

    fn head(log: &Path) -> Head<'_> {
        Head { number: 12, hash: HASH, log, boot_id: "11-22", missed: 3 }
    }

    #[test]
    fn a_head_reads_so() {
        let hash = "ab".repeat(32);
        let line = format!("audit head: record 12, sha256 {hash}, boot 11-22, missed 3, log /srv/a b\\u000a.jsonl");
        let log = Path::new("/srv/a b\n.jsonl");
        assert_eq!(syslog(&head(log)), format!("<85>postern[{}]: {line}", std::process::id()).into_bytes());
        let fields = format!(
            "MESSAGE={line}\nMESSAGE_ID={MESSAGE_ID}\nPRIORITY=5\nSYSLOG_FACILITY=10\nSYSLOG_IDENTIFIER=postern\n\
             POSTERN_SEQUENCE=12\nPOSTERN_HASH={hash}\nPOSTERN_BOOT_ID=11-22\nPOSTERN_MISSED=3\n\
             POSTERN_LOG\n\x0f\0\0\0\0\0\0\0/srv/a b\n.jsonl\n"
        );
        assert_eq!(String::from_utf8(journal(&head(log))).expect("text"), fields);
    }
}
