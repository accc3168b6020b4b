//! The attacker's code in the worker: does what its host says, line by line, over
//! the channel, with the shipped confinement around it.
//!
//! | host says | it does | it says |
//! |---|---|---|
//! | `calls` | before it confines itself: each call of the table in a child that does | `call KIND NAME END` each, `done` |
//! | `confine` | what a worker does | `confined` |
//! | `guess` | asks for and uses each number up to 4096 | `live NUMBERS` |
//! | `ask MODE PATH` | an open, in type | `opened HANDLE NUMBERS WHEN` or `refused ERRNO` |
//! | `peek MODE PATH` | the same, looking at the answer three times first | the same |
//! | `race MODE PATH` | the same, using every free number until the answer is there | the same, after `early NUMBER` |
//! | `drop HANDLE NUMBERS` | closes and says so | `done` |
//! | `lie HANDLE` | says that it closed what it keeps | `done` |
//! | `raw HEX` | sends that | `done` |
//!
//! `WHEN` is its witness: a descriptor of the log from before its confinement,
//! which no real worker has, read as soon as the answer is there. `recorded`: the
//! record that grants this handle was in the log already.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode as Permission;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, read, write};
use postern_core::confine::{self, filters};
use postern_core::ipc::{ReceiveError, Wire};
use postern_core::messages::{Answer, Ask, Use, WirePath};
use postern_core::policy::parts::WorkerPart;
use postern_core::policy::rules::Mode;
use postern_core::sys::{descriptors, process};
use serde_json::Value;

use super::table;
use crate::raw;
use crate::worker::{Broker, frame, raw as send_raw, ready};

/// Where its log can be read, by this account too, once the test has seen to it.
pub(super) const LOG: &str = "/tmp/fallen-log";
/// Numbers up to this are guessed.
pub(super) const GUESSES: RawFd = 4096;
/// The witness.
pub(super) const WITNESS: RawFd = 500;
/// What a child's success ends it with; an error number is its own status.
const SUCCESS: i32 = 200;

/// Plays a worker that has fallen.
pub(crate) fn play(mut broker: Broker, part: &WorkerPart) -> i32 {
    // As a real one: the fourth descriptor waits.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll").0;
    let _ = descriptors::move_to(epoll, filters::EPOLL).expect("its number").into_raw_fd();
    let witness = loop {
        match open(LOG, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Permission::empty()) {
            Ok(log) => break descriptors::move_to(log, WITNESS).expect("its number"),
            Err(_) => drop(poll(&mut [], PollTimeout::from(10_u8))),
        }
    };
    // A lie: it is not confined yet. So its children have the channel, too.
    let _ = broker.send(&ready(), None);
    let Some(channel) = channel(&mut broker) else { return 1 };
    let mut fallen = Fallen { broker, channel, witness, granted: BTreeSet::new(), tail: Vec::new() };
    let mut heard = Vec::new();
    while let Some(line) = fallen.hear(&mut heard) {
        fallen.obey(&line, part);
    }
    0
}

/// The channel, when it comes.
fn channel(broker: &mut Broker) -> Option<OwnedFd> {
    loop {
        match broker.receive() {
            Ok(received) => match received.message {
                Answer::Channel { .. } => return received.descriptor,
                Answer::End {} => return None,
                _ => {}
            },
            Err(_) => return None,
        }
    }
}

struct Fallen {
    broker: Broker,
    channel: OwnedFd,
    witness: OwnedFd,
    /// Handles that records of the log grant, as far as it was read.
    granted: BTreeSet<u64>,
    /// A line that is not whole yet.
    tail: Vec<u8>,
}

impl Fallen {
    fn wait(&self, events: PollFlags) {
        let _ = poll(&mut [PollFd::new(self.channel.as_fd(), events)], PollTimeout::NONE);
    }

    /// The host's next line, by `read`: what came beside it came in vain.
    fn hear(&self, heard: &mut Vec<u8>) -> Option<String> {
        loop {
            if let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = heard.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let mut bytes = [0; 4096];
            match read(&self.channel, &mut bytes) {
                Ok(0) => return None,
                Ok(count) => heard.extend_from_slice(&bytes[..count]),
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLIN),
                Err(_) => return None,
            }
        }
    }

    fn say(&self, line: &str) {
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match write(&self.channel, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT),
                Err(_) => return,
            }
        }
    }

    fn obey(&mut self, line: &str, part: &WorkerPart) {
        let mut words = line.splitn(3, ' ');
        let word = words.next().unwrap_or_default();
        let mut argument = || words.next().unwrap_or_default();
        match word {
            "calls" => self.make_calls(part),
            "confine" => {
                confine::worker(part).expect("confinement");
                self.say("confined");
            }
            "guess" => self.guess(),
            "ask" | "peek" | "race" => {
                let (mode, path) = (argument(), argument());
                let said = self.ask(word, mode, path);
                self.say(&said);
            }
            "drop" => {
                let handle = argument().parse().unwrap_or_default();
                for number in argument().split(',').filter_map(|number| number.parse::<u64>().ok()) {
                    raw::call(libc::SYS_close, &[number]);
                }
                self.close(handle);
            }
            "lie" => self.close(argument().parse().unwrap_or_default()),
            "raw" => {
                send_raw(&from_hex(argument()));
                self.say("done");
            }
            // Noise: what came with descriptors.
            _ => {}
        }
    }

    /// Says that a handle is closed.
    fn close(&mut self, handle: u64) {
        let used = Use { read: 0, written: 0, calls: 0 };
        let _ = self.broker.send(&Ask::Closed { handle, used }, None);
        self.say("done");
    }

    /// Makes each call of the table in a child of its own, which confines itself
    /// first and holds all that this process holds.
    fn make_calls(&self, part: &WorkerPart) {
        let channel = u64::try_from(self.channel.as_raw_fd()).expect("a descriptor");
        for row in table::rows(channel) {
            // Of the call's own, without a library that would do more. The
            // spawner's filter allows it as long as there is no other.
            let child = raw::call(libc::SYS_clone, &[u64::try_from(libc::SIGCHLD).unwrap_or_default(), 0, 0, 0, 0]);
            if child == 0 {
                confine::worker(part).expect("confinement");
                let result = (row.act)();
                process::exit_now(i32::try_from(-result).ok().filter(|errno| *errno > 0).unwrap_or(SUCCESS));
            }
            let child = Pid::from_raw(i32::try_from(child).expect("a process id"));
            let end = match waitpid(child, None) {
                Ok(WaitStatus::Signaled(_, signal, _)) => signal.to_string(),
                Ok(WaitStatus::Exited(_, SUCCESS)) => "success".to_owned(),
                Ok(WaitStatus::Exited(_, errno)) => Errno::from_raw(errno).to_string().replace(' ', "-"),
                other => format!("{other:?}").replace(' ', ""),
            };
            self.say(&format!("call {}\t{}\t{end}", row.kind, row.name));
        }
        self.say("done");
    }

    /// Asks for and uses every number: those that are there.
    fn guess(&self) {
        let buffer = raw::room(8);
        let mut said = "live".to_owned();
        for number in 0..GUESSES {
            let number = u64::try_from(number).expect("a descriptor");
            let flag = u64::try_from(libc::F_GETFD).expect("a number");
            let there = raw::call(libc::SYS_fcntl, &[number, flag]) >= 0;
            let read = raw::call(libc::SYS_read, &[number, buffer, 0]);
            let sought = raw::call(libc::SYS_lseek, &[number, 0, 1]);
            let absent = -i64::from(libc::EBADF);
            if there || read >= 0 || read != absent || sought != absent {
                let _ = write!(said, " {number}");
            }
        }
        self.say(&said);
    }

    fn ask(&mut self, how: &str, mode: &str, path: &str) -> String {
        let mode = Mode::ALL.iter().copied().find(|one| one.fopen() == mode).unwrap_or(Mode::Read);
        let path = WirePath::cut(&from_hex(path));
        let before = if how == "race" { live_below(80) } else { BTreeSet::new() };
        send_raw(&frame(&Ask::Open { path, mode }));
        let mut numbers = Vec::new();
        let mut when = None;
        let mut early = None;
        if how == "peek" {
            for _ in 0..3 {
                if let Some((handle, number)) = peek() {
                    numbers.push(number);
                    when.get_or_insert_with(|| self.is_recorded(handle));
                }
            }
        }
        let answer = loop {
            if how == "race" {
                let new = live_below(80).difference(&before).next().copied();
                early = early.or(new);
                match self.broker.try_receive() {
                    Err(ReceiveError::Empty) => continue,
                    other => break other,
                }
            }
            match self.broker.receive() {
                Ok(received) if !matches!(received.message, Answer::Opened { .. } | Answer::NotOpened { .. }) => {}
                other => break other,
            }
        };
        let Ok(answer) = answer else { process::exit_now(9) };
        match (answer.message, answer.descriptor) {
            (Answer::Opened { handle }, Some(file)) => {
                let recorded = *when.get_or_insert_with(|| self.is_recorded(handle));
                numbers.push(file.into_raw_fd());
                let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
                let when = match (recorded, early) {
                    (_, Some(number)) => format!("early-{number}"),
                    (true, None) => "recorded".to_owned(),
                    (false, None) => "unrecorded".to_owned(),
                };
                format!("opened {handle} {} {when}", numbers.join(","))
            }
            (Answer::NotOpened { errno }, None) => format!("refused {:?}", Errno::from_raw(errno)),
            (other, descriptor) => format!("odd {other:?} {descriptor:?}"),
        }
    }

    /// Whether a record in the log grants this handle by now.
    fn is_recorded(&mut self, handle: u64) -> bool {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = read(&self.witness, &mut bytes) {
            self.tail.extend_from_slice(&bytes[..count]);
        }
        while let Some(end) = self.tail.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.tail.drain(..=end).collect();
            let Ok(record) = serde_json::from_slice::<Value>(&line) else { continue };
            if record["postern"]["stage"] == "granted" {
                self.granted.extend(record["postern"]["handle"].as_u64());
            }
        }
        self.granted.contains(&handle)
    }
}

fn live_below(end: u64) -> BTreeSet<u64> {
    let flag = u64::try_from(libc::F_GETFD).expect("a number");
    (0..end).filter(|number| raw::call(libc::SYS_fcntl, &[*number, flag]) >= 0).collect()
}

/// Looks at the broker's next message without taking it; the kernel hands out its
/// descriptor all the same.
fn peek() -> Option<(u64, RawFd)> {
    let mut bytes = [0; 64];
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let packet = recvmsg::<()>(filters::BROKER, &mut parts, Some(&mut control), MsgFlags::MSG_PEEK).ok()?;
    let numbers: Vec<RawFd> = packet
        .cmsgs()
        .ok()?
        .filter_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => numbers.first().copied(),
            _ => None,
        })
        .collect();
    let length = packet.bytes;
    let message = Answer::whole(&bytes[..length]).ok()?;
    match (message, numbers.first()) {
        (Answer::Opened { handle }, Some(&number)) => Some((handle, number)),
        _ => None,
    }
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
