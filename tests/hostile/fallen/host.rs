//! The host of a fallen worker, with the worker in its hand: what it has it do,
//! and a look from outside at what came of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{major, minor};
use serde_json::Value;

use super::attacker::to_hex;
use super::{Findings, SECRET, TARGET};
use crate::support::agent::{Agent, LIVELY, eventually};

/// The host, with its worker in its hand.
pub(super) struct Attack<'a> {
    pub(super) agent: &'a Agent<'a>,
    stream: BufReader<UnixStream>,
    pub(super) pid: i32,
    pub(super) found: Findings,
    log: File,
    /// What each handle's record says: device, inode, path.
    pub(super) granted: BTreeMap<u64, (String, String, String)>,
    tail: String,
    deaths: usize,
}

impl<'a> Attack<'a> {
    pub(super) fn new(agent: &'a Agent<'a>) -> Self {
        let stream = UnixStream::connect(agent.home.path("host.sock")).expect("the channel");
        stream.set_read_timeout(Some(LIVELY)).expect("a time limit");
        Self {
            agent,
            stream: BufReader::new(stream),
            pid: agent.process("worker", 0),
            found: Findings::default(),
            log: File::open(agent.home.log()).expect("the log"),
            granted: BTreeMap::new(),
            tail: String::new(),
            deaths: 0,
        }
    }

    pub(super) fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).expect("the channel takes a line");
    }

    pub(super) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the worker's line");
        assert!(line.ends_with('\n'), "the channel ended");
        line.trim_end().to_owned()
    }

    pub(super) fn tell(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    /// Passes descriptors of a file outside the policy, beside noise.
    pub(super) fn pass(&mut self, times: usize, each: usize) {
        let secret = File::options().read(true).write(true).open(SECRET).expect("a file");
        let numbers = vec![secret.as_raw_fd(); each];
        let rights = [ControlMessage::ScmRights(&numbers)];
        for _ in 0..times {
            let noise = [IoSlice::new(b"noise\n")];
            sendmsg::<()>(self.stream.get_ref().as_raw_fd(), &noise, &rights, MsgFlags::MSG_NOSIGNAL, None)
                .expect("the channel takes descriptors");
        }
        self.found.count("the host passes descriptors over the channel", times * each);
    }

    /// The worker's descriptors, as the kernel has them.
    pub(super) fn held(&self) -> Vec<(i32, String)> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("its descriptors").flatten();
        let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        entries
            .filter_map(|entry| Some((number(&entry)?, fs::read_link(entry.path()).ok()?.display().to_string())))
            .collect()
    }

    /// Reads on in the log.
    pub(super) fn read_log(&mut self) {
        self.log.read_to_string(&mut self.tail).expect("the log");
        while let Some(end) = self.tail.find('\n') {
            let line: String = self.tail.drain(..=end).collect();
            let Ok(record) = serde_json::from_str::<Value>(&line) else { continue };
            if record["postern"]["stage"] == "granted" {
                let text = |name: &str| record["file"][name].as_str().unwrap_or_default().to_owned();
                let handle = record["postern"]["handle"].as_u64().expect("a handle");
                self.granted.insert(handle, (text("device"), text("inode"), text("path")));
            }
        }
    }

    /// Has the worker ask and looks at what it got. Whether it got one.
    pub(super) fn ask(&mut self, how: &str, kind: &str, mode: &str, path: &[u8]) -> bool {
        let Some((handle, numbers)) = self.ask_and_keep(how, kind, mode, path) else { return false };
        assert_eq!(self.tell(&format!("drop {handle} {numbers}")), "done");
        true
    }

    pub(super) fn ask_and_keep(&mut self, how: &str, kind: &str, mode: &str, path: &[u8]) -> Option<(u64, String)> {
        self.found.count(kind, 1);
        let said = self.tell(&format!("{how} {mode} {}", to_hex(path)));
        let words: Vec<&str> = said.split(' ').collect();
        let what = format!("{how} {mode} {}", String::from_utf8_lossy(path).escape_default());
        match words[..] {
            ["refused", _] => None,
            ["opened", handle, numbers, when] => {
                let handle = handle.parse().expect("a handle");
                if when != "recorded" {
                    self.found.unrecorded.push(format!("{what}: {when}"));
                }
                for number in numbers.split(',') {
                    self.look_at(handle, number, &what);
                }
                Some((handle, numbers.to_owned()))
            }
            _ => {
                self.found.odd.push(format!("{what}: {said}"));
                None
            }
        }
    }

    /// The object behind a descriptor is the one of the handle's record, and one
    /// of the policy.
    pub(super) fn look_at(&mut self, handle: u64, number: &str, what: &str) {
        self.found.descriptors += 1;
        self.read_log();
        let at = format!("/proc/{}/fd/{number}", self.pid);
        let facts = fs::metadata(&at).expect("the worker's descriptor");
        let device = format!("{}:{}", major(facts.dev()), minor(facts.dev()));
        let name = fs::read_link(&at).expect("its name").display().to_string();
        match self.granted.get(&handle) {
            Some((of, inode, path)) if *of == device && *inode == facts.ino().to_string() => {
                if !path.starts_with(TARGET) {
                    self.found.outside.push(format!("{what}: recorded as {path}"));
                }
            }
            other => self.found.unrecorded.push(format!("{what}: {device} {} is not {other:?}", facts.ino())),
        }
        if !name.starts_with(TARGET) {
            self.found.outside.push(format!("{what}: {name}"));
        }
    }

    /// Waits until one more worker's end is on record.
    pub(super) fn await_death(&mut self) {
        self.deaths += 1;
        let is_worker = |record: &&Value| record["process"]["name"] == "worker";
        eventually("a worker's end is on record", || {
            let died = self.agent.records_of("process-died").iter().filter(is_worker).count();
            (died >= self.deaths).then_some(())
        });
    }

    /// Ends a life by what no sound worker sends, and waits for the next.
    pub(super) fn dies_of(&mut self, kind: &str, frames: &[Vec<u8>]) {
        self.found.count(kind, frames.len());
        for frame in frames {
            self.say(&format!("raw {}", to_hex(frame)));
        }
        self.await_death();
        self.pid = self.agent.process("worker", self.pid);
        // What it was told and did not read is for nobody; what it said may be
        // unread.
        while self.tell("confine") != "confined" {}
    }
}
