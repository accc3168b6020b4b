//! What happens to the host of a soak now and then, and what it makes happen:
//! connections that end, messages beyond the limits, freezes, crashes.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::mix::Soak;

/// Where the filesystem is that the host freezes.
pub(crate) const SCRATCH: &str = "/scratch";

impl Soak<'_> {
    /// Does what is due.
    pub(crate) fn events(&mut self, crashes: bool) {
        let due = |soak: &mut Self, at: usize, times: u64| {
            let due = soak.tally.requests >= soak.next[at];
            if due {
                soak.next[at] = soak.tally.requests + soak.every * times;
            }
            due
        };
        if due(self, 0, 1) {
            self.reconnect();
        }
        if due(self, 1, 1) {
            self.freeze();
        }
        if due(self, 2, 2) {
            self.excess();
        }
        if self.tally.requests >= self.next[3] && crashes && self.crashes > 0 {
            self.next[3] *= 2;
            self.crashes -= 1;
            self.crash(self.crashes);
        }
    }

    /// The host leaves, in one of three ways, and another comes. Its files stay
    /// open.
    fn reconnect(&mut self) {
        match self.random(3) {
            0 => self.tally.event("hosts that left"),
            1 => {
                self.host.send(b"{\"execute\":\"guest-file-open\",\"arguments\":{\"pa");
                self.tally.event("hosts that left within a message");
            }
            _ => {
                self.host.send("{\"execute\":\"guest-info\"}\n".repeat(200).as_bytes());
                self.tally.event("hosts that left with replies on the way");
            }
        }
        self.host = self.agent.connect();
        self.expect("guest-ping", &Value::Null);
    }

    /// Asks, and counts what comes.
    fn expect(&mut self, command: &'static str, arguments: &Value) -> Value {
        let returned = self.host.returns(command, arguments);
        *self.tally.kinds.entry(command).or_default() += 1;
        self.tally.count(1);
        returned
    }

    fn expect_error(&mut self, command: &str, arguments: &Value, kind: &'static str, text: &str) {
        let error = self.host.fails(command, arguments);
        assert!(error.contains(text), "{command}: {error}");
        *self.tally.errors.entry(kind).or_default() += 1;
        self.tally.count(1);
    }

    fn frozen_and_thawed(&mut self, crash: bool) {
        let list = json!({ "mountpoints": [SCRATCH] });
        assert_eq!(self.expect("guest-fsfreeze-freeze-list", &list), 1);
        if crash {
            self.kill_worker();
            self.synchronise();
        }
        assert_eq!(self.expect("guest-fsfreeze-status", &Value::Null), "frozen");
        self.expect_error("guest-file-open", &json!({ "path": "/x" }), "not while frozen", "has been disabled");
        self.expect("guest-ping", &Value::Null);
        assert_eq!(self.expect("guest-fsfreeze-thaw", &Value::Null), 1);
        assert_eq!(self.expect("guest-fsfreeze-status", &Value::Null), "thawed");
    }

    fn freeze(&mut self) {
        self.frozen_and_thawed(false);
        self.tally.event("freezes");
    }

    /// Beyond the limits: more files, a longer message, deeper nesting.
    pub(crate) fn excess(&mut self) {
        let path = self.agent.home.files().join("old-1");
        let arguments = json!({ "path": path, "mode": "r" });
        let mut opened = Vec::new();
        let error = loop {
            match self.host.open(&path, "r") {
                Ok(handle) => opened.push(handle),
                Err(why) => break why,
            }
        };
        assert!(error.contains("Too many open files"), "{error}");
        self.tally.count(opened.len() as u64 + 1);
        self.expect_error("guest-file-open", &arguments, "too many files", "Too many open files");
        for handle in opened {
            self.expect("guest-file-close", &json!({ "handle": handle }));
        }
        let long = "x".repeat(2 << 20);
        self.expect_error("guest-ping", &json!({ "x": long }), "message too long", "JSON token size limit");
        let deep = "[".repeat(1100) + &"]".repeat(1100) + "\n";
        self.host.send(deep.as_bytes());
        let reply = self.host.hear();
        assert!(reply["error"]["desc"].as_str().is_some_and(|text| text.contains("nesting depth")), "{reply}");
        *self.tally.errors.entry("nesting too deep").or_default() += 1;
        self.tally.count(1);
        self.tally.event("excesses");
    }

    /// The worker dies: between two requests, among many, or while a filesystem
    /// is frozen.
    pub(crate) fn crash(&mut self, number: u32) {
        if number == 1 {
            let requests = "{\"execute\":\"guest-info\"}\n".repeat(40);
            self.host.send(requests.as_bytes());
            self.kill_worker();
            self.synchronise();
            self.tally.event("workers killed among requests");
        } else if number == 2 {
            self.frozen_and_thawed(true);
            self.tally.event("workers killed while frozen");
        } else {
            self.kill_worker();
            self.synchronise();
            self.tally.event("workers killed between requests");
        }
        self.forget();
    }

    fn kill_worker(&self) {
        let worker = self.agent.process("worker", 0);
        kill(Pid::from_raw(worker), Signal::SIGKILL).expect("SIGKILL");
        // Its successor answers as soon as it is there.
        self.agent.process("worker", worker);
    }

    /// As hosts do: a number behind a 0xFF byte, and all before it is dropped.
    fn synchronise(&mut self) {
        let number = i64::try_from(self.tally.requests).expect("a number");
        let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": number } });
        self.host.send(b"\xff");
        self.host.send(format!("{request}\n").as_bytes());
        self.host.skip_to(number);
        self.tally.count(1);
    }

    /// All handles went with their worker.
    fn forget(&mut self) {
        let handles = std::mem::take(&mut self.readable).into_iter().chain(std::mem::take(&mut self.writable));
        if let Some(handle) = handles.last() {
            let text = format!("handle '{handle}' has not been found");
            self.expect_error("guest-file-close", &json!({ "handle": handle }), "handle of a dead worker", &text);
        }
    }
}
