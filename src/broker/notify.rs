//! Notes to the service manager, by the protocol of `sd_notify(3)`: a few lines
//! of text in a datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! Connected at the start, as root and before any barrier, so that no name is
//! looked up later. Never waited for: what the manager has no room for is sent
//! when it has. Only the broker has this descriptor; what it sends it makes up
//! itself, from numbers and fixed words, none of it a host's.
//!
//! Trust: the environment, as much as who started postern. The manager is only
//! written to, never read.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::datagram::{self, Sent};

/// Most notes that wait for room: a manager that reads none of them for so long
/// has given up on us, or will when it misses the watchdog's.
const WAITING: usize = 16;

/// The note that keeps the manager's watchdog quiet.
const ALIVE: &str = "WATCHDOG=1";

/// The way to the service manager; nothing, if none asked to be told.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    socket: Option<UnixDatagram>,
    /// What it had no room for yet, oldest first.
    owed: VecDeque<String>,
    watchdog: Option<Watchdog>,
}

#[derive(Clone, Copy, Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Notify {
    /// Connects to the manager that the environment names, if it names one.
    ///
    /// # Errors
    /// There is no such socket, or `NOTIFY_SOCKET` is neither an absolute path
    /// nor an abstract name (`@...`).
    pub(crate) fn from_environment() -> io::Result<Self> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // A watchdog for another process, as a wrapper's that became our parent.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let limit = number("WATCHDOG_USEC").filter(|_| ours).map(Duration::from_micros);
        Self::connect(&name, limit)
    }

    /// Connects to a manager's socket; `limit` is its watchdog's.
    fn connect(name: &OsStr, limit: Option<Duration>) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
        };
        let socket = datagram::socket()?;
        socket.connect_addr(&address)?;
        // Half of the limit, as sd_watchdog_enabled(3) advises.
        let every = limit.map(|limit| limit / 2).filter(|every| !every.is_zero());
        let watchdog = every.map(|every| Watchdog { every, next: Instant::now() });
        Ok(Self { socket: Some(socket), owed: VecDeque::new(), watchdog })
    }

    /// The host can be served.
    pub(crate) fn ready(&mut self) {
        self.tell("READY=1".to_owned());
    }

    /// The policy's log is being opened anew; [`Notify::ready`] follows. With
    /// the time, by which a unit of `Type=notify-reload` tells this answer from
    /// an earlier one's.
    pub(crate) fn reloading(&mut self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.tell(format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The orderly end has begun.
    pub(crate) fn stopping(&mut self) {
        self.tell("STOPPING=1".to_owned());
    }

    /// What an operator sees in the unit's status. One line.
    pub(crate) fn status(&mut self, line: &str) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // Only the last one counts.
        self.owed.retain(|owed| !owed.starts_with("STATUS="));
        self.tell(format!("STATUS={line}"));
    }

    /// Tells the watchdog that the loop goes round, if it is time to.
    pub(crate) fn keep_alive(&mut self, now: Instant) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| now >= watchdog.next) else { return };
        watchdog.next = now + watchdog.every;
        if !self.owed.iter().any(|owed| owed == ALIVE) {
            self.tell(ALIVE.to_owned());
        }
    }

    /// When [`Notify::keep_alive`] is due; `None` without a watchdog, which then
    /// wakes nobody.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.watchdog.map(|watchdog| watchdog.next)
    }

    /// What to poll for room, while a note waits for it.
    pub(crate) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().filter(|_| !self.owed.is_empty()).map(AsFd::as_fd)
    }

    fn tell(&mut self, note: String) {
        if self.socket.is_some() && self.owed.len() < WAITING {
            self.owed.push_back(note);
            self.tell_on();
        }
    }

    /// Sends what is owed, as far as there is room.
    pub(crate) fn tell_on(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(note) = self.owed.front() {
            match datagram::send(socket, note.as_bytes()) {
                Sent::NoRoom => return,
                // A manager that is gone has nobody to tell it from us, and to
                // try again would be to try for ever.
                Sent::Yes | Sent::Gone(_) => drop(self.owed.pop_front()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> Option<String> {
        let mut note = [0; 256];
        let length = manager.recv(&mut note).ok()?;
        Some(String::from_utf8(note[..length].to_vec()).expect("text"))
    }

    fn manager(directory: &tempfile::TempDir) -> (UnixDatagram, std::path::PathBuf) {
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        manager.set_nonblocking(true).expect("a flag");
        (manager, path)
    }

    #[test]
    fn notes_arrive_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let (by_path, path) = manager(&directory);
        let name = format!("postern-notify-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("bind");
        for (manager, place) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            let mut notify = Notify::connect(&place, None).expect("a manager");
            notify.ready();
            notify.status("two\nlines");
            notify.stopping();
            assert_eq!(heard(&manager).as_deref(), Some("READY=1"));
            assert_eq!(heard(&manager).as_deref(), Some("STATUS=two lines"));
            assert_eq!(heard(&manager).as_deref(), Some("STOPPING=1"));
            assert_eq!(notify.next(), None, "no watchdog, no wake-up");
            notify.keep_alive(Instant::now());
            notify.reloading();
            let reloading = heard(&manager).expect("a note");
            let (first, second) = reloading.split_once('\n').expect("two lines");
            assert_eq!(first, "RELOADING=1");
            let time = second.strip_prefix("MONOTONIC_USEC=").and_then(|text| text.parse::<u64>().ok());
            assert!(time.is_some_and(|time| time > 0), "{second}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        for name in ["", "relative", "@", "vsock:2:1", "/nowhere/at/all"] {
            assert!(Notify::connect(OsStr::new(name), None).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_watchdog_is_told_at_half_of_its_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let (manager, path) = manager(&directory);
        let mut notify = Notify::connect(path.as_os_str(), Some(Duration::from_secs(10))).expect("a manager");
        let first = notify.next().expect("a watchdog");
        notify.keep_alive(first);
        assert_eq!(heard(&manager).as_deref(), Some(ALIVE));
        notify.keep_alive(first + Duration::from_millis(4999));
        assert_eq!(heard(&manager), None, "not before its time");
        assert_eq!(notify.next(), Some(first + Duration::from_secs(5)));
        notify.keep_alive(first + Duration::from_secs(5));
        assert_eq!(heard(&manager).as_deref(), Some(ALIVE));
    }

    #[test]
    fn a_manager_that_does_not_read_is_told_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let (manager, path) = manager(&directory);
        let mut notify = Notify::connect(path.as_os_str(), Some(Duration::from_secs(2))).expect("a manager");
        let filler = UnixDatagram::unbound().expect("a socket");
        filler.set_nonblocking(true).expect("a flag");
        while filler.send_to(b"filler", &path).is_ok() {}
        assert!(notify.awaited().is_none());
        let begun = notify.next().expect("a watchdog");
        for second in 0..40 {
            notify.keep_alive(begun + Duration::from_secs(second));
            notify.status(&format!("status {second}"));
        }
        notify.ready();
        assert!(notify.awaited().is_some(), "something waits");
        while heard(&manager).is_some_and(|note| note == "filler") {}
        notify.tell_on();
        assert!(notify.awaited().is_none());
        let notes: Vec<String> = std::iter::from_fn(|| heard(&manager)).collect();
        assert_eq!(notes, [ALIVE, "STATUS=status 39", "READY=1"], "each once, the last status");
    }

    #[test]
    fn a_manager_that_is_gone_is_no_reason_to_try_for_ever() {
        let directory = tempfile::tempdir().expect("a directory");
        let (manager, path) = manager(&directory);
        let mut notify = Notify::connect(path.as_os_str(), None).expect("a manager");
        drop(manager);
        notify.ready();
        assert!(notify.awaited().is_none());
    }
}
