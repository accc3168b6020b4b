//! What the host of a soak sends: requests in the proportions of real hosts, each
//! with the reply that is due, in batches, so that many are on their way at once.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::agent::{Agent, Home, Host, eventually};
use crate::tally::{Standing, Standings, Tally};

/// Requests on their way at once.
const BATCH: usize = 48;
/// Files that the host may have open; the policy's limit is above it.
const OPEN: usize = 40;
/// Crashes of a worker, the last one left out: one more within an hour is replaced
/// only after a while.
const CRASHES: u32 = 3;
/// Base64.
const SMALL: &str = "UG9zdGVybiBpcyBhIHNtYWxsIGdhdGUu";

/// What a request must bring.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// A `return`, counted under this name.
    Return(&'static str),
    /// A handle.
    Handle,
    /// An error whose text holds this.
    Error(&'static str, &'static str),
}

/// Makes what the host opens.
pub(crate) fn stage(home: &Home) {
    for number in 0..16 {
        home.write(&format!("old-{number}"), SMALL.repeat(500).as_bytes());
    }
    let private = home.files().join("private");
    fs::create_dir(&private).expect("a directory");
    fs::write(private.join("file"), "content").expect("a file");
    chown(private, Some(home.worker), Some(home.worker)).expect("its owner");
}

/// A host that does not tire.
pub(crate) struct Soak<'a> {
    pub(crate) agent: &'a Agent<'a>,
    pub(crate) host: Host,
    pub(crate) tally: Tally,
    files: PathBuf,
    noise: u64,
    /// Handles to read, and handles to write.
    pub(crate) readable: Vec<i64>,
    pub(crate) writable: Vec<i64>,
    /// How many requests lie between two events of a kind.
    pub(crate) every: u64,
    pub(crate) next: [u64; 4],
    /// How many crashes are left.
    pub(crate) crashes: u32,
    number: u64,
    big: String,
}

impl<'a> Soak<'a> {
    pub(crate) fn new(agent: &'a Agent<'a>, wanted: u64) -> Self {
        let every = (wanted / 40).clamp(500, 10_000);
        Self {
            agent,
            host: agent.connect(),
            tally: Tally::new(),
            files: agent.home.files(),
            noise: 0x9e37_79b9_7f4a_7c15,
            readable: Vec::new(),
            writable: Vec::new(),
            every,
            next: [every / 3, every, every * 2, wanted / 8],
            crashes: CRASHES,
            number: 0,
            big: SMALL.repeat(24 << 10),
        }
    }

    /// xorshift of Marsaglia, 2003; any noise does, and the same one each time.
    pub(crate) fn random(&mut self, below: usize) -> usize {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        usize::try_from(self.noise % below as u64).expect("a small number")
    }

    /// Goes on until so many requests were answered.
    pub(crate) fn run_to(&mut self, requests: u64, crashes: bool) {
        while self.tally.requests < requests {
            self.batch();
            self.events(crashes);
        }
    }

    /// Has each buffer at the size that the largest request gives it, closes every
    /// file and takes stock.
    pub(crate) fn settle(&mut self) -> Standings {
        self.excess();
        let new = self.host.open(self.files.join("new-0"), "w").expect("a file");
        let reply = self.host.write(new, &self.big);
        assert!(reply.get("return").is_some(), "{reply}");
        self.writable.push(new);
        self.tally.count(2);
        for handle in std::mem::take(&mut self.readable).into_iter().chain(std::mem::take(&mut self.writable)) {
            self.host.close(handle);
            self.tally.count(1);
        }
        // The broker answers this behind the closes.
        self.host.returns("guest-fsfreeze-status", &Value::Null);
        self.tally.count(1);
        // What it handed on it lets go of a moment later.
        let is_of_host = |link: PathBuf| fs::read_link(link).is_ok_and(|of| of.starts_with(&self.files));
        eventually("the broker holds no file", || {
            let mut held = fs::read_dir(format!("/proc/{}/fd", self.agent.pid())).expect("its descriptors").flatten();
            (!held.any(|one| is_of_host(one.path()))).then_some(())
        });
        Standing::of(self.agent)
    }

    /// Some forty requests at once, then their replies.
    fn batch(&mut self) {
        let mut text = String::with_capacity(16 << 10);
        let mut due = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            self.request(&mut text, &mut due);
        }
        let mut bytes = text.into_bytes();
        // Not valid in a string: the byte that drops a half message.
        if self.random(4) == 0 {
            bytes.extend_from_slice(b"{\"execute\":\"guest-shutdo\xff\n");
            self.tally.event("half messages dropped by 0xFF");
        }
        self.host.send(&bytes);
        for due in &due {
            let reply = self.host.hear();
            self.check(*due, &reply);
        }
        self.tally.count(due.len() as u64);
    }

    fn check(&mut self, due: Due, reply: &Value) {
        let error = reply["error"]["desc"].as_str();
        match (due, error) {
            (Due::Return(name), None) => *self.tally.kinds.entry(name).or_default() += 1,
            (Due::Handle, None) => *self.tally.kinds.entry("guest-file-open").or_default() += 1,
            (Due::Error(kind, text), Some(error)) if error.contains(text) => {
                *self.tally.errors.entry(kind).or_default() += 1;
            }
            _ => self.tally.wonder(format!("{reply} where {due:?} was due")),
        }
        if let (Due::Handle, Some(handle)) = (due, reply["return"].as_i64()) {
            // Which of both it is stands in the request's id.
            let written = reply["id"] == "w";
            if written { self.writable.push(handle) } else { self.readable.push(handle) }
        }
    }

    fn put(&mut self, text: &mut String, command: &str, arguments: &Value) {
        self.number += 1;
        // Some hosts give ids, some write arguments that are not needed.
        let _ = match (self.random(4), arguments.is_null()) {
            (0, true) => write!(text, "{{\"execute\":\"{command}\",\"arguments\":{{}}}}"),
            (_, true) => writeln!(text, "{{\"execute\":\"{command}\",\"id\":{}}}", self.number),
            (0, false) => write!(text, "{{\"arguments\":{arguments},\"execute\":\"{command}\"}}\r\n"),
            (_, false) => {
                writeln!(text, "{{\"execute\":\"{command}\",\"arguments\":{arguments},\"id\":{}}}", self.number)
            }
        };
    }

    fn path(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    /// One of the open files.
    fn pick(&mut self, writable: bool) -> Option<i64> {
        let count = if writable { self.writable.len() } else { self.readable.len() };
        let at = (count > 0).then(|| self.random(count))?;
        Some(if writable { self.writable[at] } else { self.readable[at] })
    }

    /// One request and what it must bring. In thousandths.
    fn request(&mut self, text: &mut String, due: &mut Vec<Due>) {
        let number = self.random(1000);
        let handles = self.readable.len() + self.writable.len();
        let ends = due.iter().filter(|due| matches!(due, Due::Handle)).count();
        due.push(match number {
            0..250 => self.simple(text, "guest-ping", &Value::Null),
            250..330 => self.simple(text, "guest-sync", &json!({ "id": number })),
            330..350 => self.simple(text, "guest-sync-delimited", &json!({ "id": -4 })),
            350..360 => self.simple(text, "guest-info", &Value::Null),
            360..440 => self.simple(text, "guest-fsfreeze-status", &Value::Null),
            440..540 if handles + ends < OPEN => self.open(text, number),
            440..620 => self.close(text, number.is_multiple_of(2)),
            620..770 => match self.pick(false) {
                Some(handle) => self.simple(text, "guest-file-read", &json!({ "handle": handle, "count": 1024 })),
                None => self.simple(text, "guest-ping", &Value::Null),
            },
            770..850 => match self.pick(true) {
                Some(handle) => self.simple(text, "guest-file-write", &json!({ "handle": handle, "buf-b64": SMALL })),
                None => self.simple(text, "guest-ping", &Value::Null),
            },
            850..890 => {
                let handle = self.pick(number.is_multiple_of(2));
                let arguments = json!({ "handle": handle.unwrap_or(0), "offset": 0, "whence": 0 });
                match handle {
                    Some(_) => self.simple(text, "guest-file-seek", &arguments),
                    None => self.wrong(text, "guest-file-seek", &arguments, "no such handle", "has not been found"),
                }
            }
            890..905 => match self.pick(true) {
                Some(handle) => self.simple(text, "guest-file-flush", &json!({ "handle": handle })),
                None => self.simple(text, "guest-ping", &Value::Null),
            },
            905..907 => match self.pick(true) {
                Some(handle) => {
                    let part = self.random(self.big.len() / 4) * 4;
                    let arguments = json!({ "handle": handle, "buf-b64": &self.big[..part] });
                    self.simple(text, "guest-file-write", &arguments)
                }
                None => self.simple(text, "guest-ping", &Value::Null),
            },
            _ => self.error(text, number - 907),
        });
    }

    fn simple(&mut self, text: &mut String, command: &'static str, arguments: &Value) -> Due {
        self.put(text, command, arguments);
        Due::Return(command)
    }

    fn wrong(
        &mut self,
        text: &mut String,
        command: &str,
        arguments: &Value,
        kind: &'static str,
        error: &'static str,
    ) -> Due {
        self.put(text, command, arguments);
        Due::Error(kind, error)
    }

    fn open(&mut self, text: &mut String, number: usize) -> Due {
        let file = self.random(16);
        let (name, mode, id) = match number % 5 {
            0 => (format!("new-{file}"), "w", "w"),
            1 => (format!("new-{file}"), "w+", "w"),
            _ => (format!("old-{file}"), "r", "r"),
        };
        let request = json!({
            "execute": "guest-file-open",
            "arguments": { "path": self.path(&name), "mode": mode },
            "id": id,
        });
        let _ = writeln!(text, "{request}");
        Due::Handle
    }

    fn close(&mut self, text: &mut String, writable: bool) -> Due {
        let files = if writable { &mut self.writable } else { &mut self.readable };
        match files.pop() {
            Some(handle) => self.simple(text, "guest-file-close", &json!({ "handle": handle })),
            None => self.wrong(
                text,
                "guest-file-close",
                &json!({ "handle": 1 }),
                "no such handle",
                "'1' has not been found",
            ),
        }
    }

    /// What is refused, or is no request: `number` of 93.
    fn error(&mut self, text: &mut String, number: usize) -> Due {
        let raw = |text: &mut String, bytes: &str, kind, error| {
            let _ = writeln!(text, "{bytes}");
            Due::Error(kind, error)
        };
        match number {
            0..15 => self.wrong(
                text,
                "guest-file-read",
                &json!({ "handle": 7 }),
                "no such handle",
                "handle '7' has not been found",
            ),
            15..25 => self.wrong(text, "guest-exec", &json!({ "path": "/bin/sh" }), "not offered", "has been disabled"),
            25..30 => self.wrong(text, "guest-shutdown", &Value::Null, "denied", "has been disabled"),
            30..38 => self.wrong(text, "guest-nonsense", &Value::Null, "unknown command", "has not been found"),
            38..44 => self.wrong(text, "guest-file-open", &json!({}), "argument missing", "'path' is missing"),
            44..48 => self.wrong(text, "guest-sync", &json!({ "id": "x" }), "argument type", "expected: integer"),
            48..50 => self.wrong(text, "guest-ping", &json!({ "x": 1 }), "argument unexpected", "is unexpected"),
            50..65 => {
                let path = self.path(["private/file", "../log/audit.jsonl", "old-1/../../secret"][number % 3]);
                let arguments = json!({ "path": path, "mode": "r" });
                self.wrong(text, "guest-file-open", &arguments, "open refused", "Permission denied")
            }
            65..75 => {
                let mode = ["r", "r+"][number % 2];
                let arguments = json!({ "path": self.path("none"), "mode": mode });
                self.wrong(text, "guest-file-open", &arguments, "no such file", "No such file or directory")
            }
            75..78 => {
                let arguments = json!({ "path": self.path("old-1"), "mode": "q" });
                self.wrong(text, "guest-file-open", &arguments, "open mode", "invalid file open mode")
            }
            78..80 => match self.pick(true) {
                Some(handle) => self.wrong(
                    text,
                    "guest-file-write",
                    &json!({ "handle": handle, "buf-b64": "????" }),
                    "base64",
                    "Base64 data contains invalid characters",
                ),
                None => self.simple(text, "guest-ping", &Value::Null),
            },
            80..82 => match self.pick(false) {
                Some(handle) => self.wrong(
                    text,
                    "guest-file-read",
                    &json!({ "handle": handle, "count": 1_i64 << 40 }),
                    "count",
                    "for argument count",
                ),
                None => self.simple(text, "guest-ping", &Value::Null),
            },
            82..85 => raw(text, "@", "stray byte", "JSON parse error, stray '@'"),
            85..87 => raw(text, "{\"execute\":nonsense}", "keyword", "invalid keyword 'nonsense'"),
            87..89 => raw(text, "[1,2,3]", "no object", "must be a JSON object"),
            89..91 => raw(text, "{\"id\":1}", "no command", "lacks member 'execute'"),
            _ => raw(text, "{\"execute\":\"guest-ping\",\"x\":[{}]}", "member", "'x' is unexpected"),
        }
    }
}
