//! The worker ended at the calls that it makes for each command, in four ways,
//! thawed and frozen: another one answers on the same connection, the handles are
//! gone, what is frozen stays frozen, and the record names the signal.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::scene::policy;
use crate::strike::{Kind, Traced, call_of};
use crate::support::agent::{Agent, Home, LIVELY, eventually};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;
use crate::table::Times;

pub(crate) const TESTS: &[Test] = &[
    ("a_worker_that_ends_anywhere_is_replaced_while_thawed", || matrix(false)),
    ("a_worker_that_ends_anywhere_is_replaced_while_frozen", || matrix(true)),
    ("a_reply_half_written_ends_with_its_worker", a_reply_half_written_ends_with_its_worker),
];

/// How many crashes of a worker an agent makes good at once, within the hour.
const FREE: usize = 4;
/// Strikes for each kind and state, unless `POSTERN_CRASHES` says how many.
const STRIKES: usize = if cfg!(debug_assertions) { 3 } else { 24 };
/// All of a kind take no longer in the middle: a hundred times what it takes on a
/// machine that does nothing else.
const BOUND: Duration = Duration::from_secs(2);

/// How many strikes a row gets: the usual number, or what was asked for.
pub(crate) fn strikes(usual: usize) -> usize {
    std::env::var("POSTERN_CRASHES").ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

/// A host that counts its questions.
pub(crate) struct Line {
    stream: UnixStream,
    text: Vec<u8>,
    asked: u32,
}

impl Line {
    pub(crate) fn to(home: &Home) -> Self {
        let stream = eventually("it listens", || UnixStream::connect(home.path("host.sock")).ok());
        stream.set_write_timeout(Some(LIVELY)).expect("a time limit");
        Self { stream, text: Vec::new(), asked: 0 }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the channel is open");
    }

    /// A second way to it, for what does not fit at once.
    pub(crate) fn writer(&self) -> UnixStream {
        self.stream.try_clone().expect("a second descriptor")
    }

    /// Takes in what is there; panics if the channel has ended.
    fn take_in(&mut self, wait: Duration) {
        self.stream.set_read_timeout(Some(wait)).expect("a time limit");
        let mut bytes = vec![0; 65_536];
        match self.stream.read(&mut bytes) {
            Ok(0) => panic!("the channel ended"),
            Ok(count) => self.text.extend_from_slice(&bytes[..count]),
            Err(why) => assert!(matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{why}"),
        }
    }

    /// The reply with this id, if it is there.
    pub(crate) fn reply(&self, id: &str) -> Option<Value> {
        let lines = self.text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        lines
            // What stands before a reply that is delimited is what a host throws away.
            .map(|line| line.rsplit(|byte| *byte == 0xff).next().unwrap_or_default())
            .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
            .find(|reply| reply["id"] == id)
    }

    pub(crate) fn has_reply(&mut self, id: &str) -> bool {
        self.take_in(Duration::from_micros(1));
        self.reply(id).is_some()
    }

    /// Asks until it is answered: a question, too, may end with a worker.
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        loop {
            self.asked += 1;
            let id = format!("ask {}", self.asked);
            let request = json!({ "execute": command, "arguments": arguments, "id": id });
            self.send(&[b"\xff", request.to_string().as_bytes(), b"\n"].concat());
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_secs(3) {
                if let Some(reply) = self.reply(&id) {
                    return reply;
                }
                self.take_in(Duration::from_millis(20));
            }
            assert!(self.asked < 500, "nobody answers: {:?}", String::from_utf8_lossy(&self.text));
        }
    }

    /// Forgets all replies.
    pub(crate) fn forget(&mut self) {
        self.text.clear();
    }

    pub(crate) fn ping(&mut self) {
        let reply = self.ask("guest-ping", &json!({}));
        assert!(reply.get("return").is_some(), "{reply}");
    }

    pub(crate) fn frozen(&mut self) -> bool {
        self.ask("guest-fsfreeze-status", &json!({}))["return"] == "frozen"
    }

    /// Opens a file: its handle.
    pub(crate) fn open(&mut self, path: &std::path::Path, mode: &str) -> u64 {
        let reply = self.ask("guest-file-open", &json!({ "path": path, "mode": mode }));
        reply["return"].as_u64().unwrap_or_else(|| panic!("{reply}"))
    }
}

/// A command at whose steps workers end. `HANDLE` and `FILE` stand for what a
/// strike opened before.
struct Act {
    name: &'static str,
    arguments: &'static str,
}

const fn act(name: &'static str, arguments: &'static str) -> Act {
    Act { name, arguments }
}

const THAWED: &[Act] = &[
    act("guest-ping", "{}"),
    act("guest-sync", "{\"id\":7}"),
    act("guest-info", "{}"),
    act("guest-fsfreeze-status", "{}"),
    act("guest-file-open", "{\"path\":\"FILE\",\"mode\":\"r\"}"),
    act("guest-file-read", "{\"handle\":HANDLE}"),
    act("guest-file-write", "{\"handle\":HANDLE,\"buf-b64\":\"LARGE\"}"),
    act("guest-file-seek", "{\"handle\":HANDLE,\"offset\":0,\"whence\":0}"),
    act("guest-file-flush", "{\"handle\":HANDLE}"),
    act("guest-file-close", "{\"handle\":HANDLE}"),
    act("guest-fsfreeze-freeze", "{}"),
    act("guest-exec", "{}"),
];

const FROZEN: &[Act] = &[
    act("guest-ping", "{}"),
    act("guest-sync-delimited", "{\"id\":7}"),
    act("guest-info", "{}"),
    // Refused, but not before it was read.
    act("guest-sync", "{\"id\":7,\"more\":\"LARGE\"}"),
    act("guest-fsfreeze-status", "{}"),
    act("guest-file-open", "{\"path\":\"FILE\"}"),
    act("guest-fsfreeze-freeze", "{}"),
    act("guest-fsfreeze-thaw", "{}"),
];

/// A point: the command, and after how many stops.
#[derive(Clone, Copy)]
struct Point {
    act: &'static Act,
    stop: usize,
    kind: Kind,
}

/// What the strikes are made in.
struct Stage<'a> {
    home: &'a Home,
    mounted: &'a Mounted,
    agent: Agent<'a>,
    line: Line,
    frozen: bool,
}

impl<'a> Stage<'a> {
    fn set(home: &'a Home, mounted: &'a Mounted, frozen: bool) -> Self {
        let agent = home.start(&policy());
        let mut line = Line::to(home);
        line.ping();
        Self { home, mounted, agent, line, frozen }
    }

    /// Frozen or thawed as the row says, with a file open if one can be.
    fn prepare(&mut self) -> u64 {
        let file = self.home.files().join("file");
        let (line, frozen) = (&mut self.line, self.frozen);
        // A freeze or thaw whose worker was struck goes on without it.
        eventually("it is as it was", || {
            if line.frozen() {
                if frozen {
                    return Some(0);
                }
                line.ask("guest-fsfreeze-thaw", &json!({}));
            }
            let opened = line.ask("guest-file-open", &json!({ "path": file, "mode": "r+" }));
            let handle = opened["return"].as_u64()?;
            let done = !frozen || line.ask("guest-fsfreeze-freeze", &json!({}))["return"] == 1;
            done.then_some(handle)
        })
    }

    fn request(&self, act: &Act, handle: u64, id: &str) -> Vec<u8> {
        let file = self.home.files().join("file").display().to_string();
        let arguments = act.arguments.replace("HANDLE", &handle.to_string()).replace("FILE", &file);
        // Longer than any buffer that a new worker has.
        let arguments = arguments.replace("LARGE", &"QUJD".repeat(1 << 16));
        format!("{{\"execute\":\"{}\",\"arguments\":{arguments},\"id\":\"{id}\"}}", act.name).into_bytes()
    }

    /// The calls that a worker makes from the first news of a request until its
    /// reply is there.
    fn calls(&mut self, act: &'static Act) -> Vec<&'static str> {
        let handle = self.prepare();
        let mut traced = Traced::attach(self.agent.process("worker", 0));
        let request = self.request(act, handle, "counted");
        let (mut stream, sent) = (self.line.writer(), request);
        let writer = std::thread::spawn(move || stream.write_all(&sent).expect("the channel"));
        let mut calls = Vec::new();
        let until = Instant::now() + LIVELY;
        while !self.line.has_reply("counted") && traced.next_stop(until) {
            calls.push(call_of(traced.pid));
            traced.go_on();
        }
        writer.join().expect("it was sent");
        traced.let_go();
        assert!(self.line.reply("counted").is_some(), "{}: no reply", act.name);
        self.line.text.clear();
        self.prepare();
        calls
    }

    /// Ends the worker at a point: how long until the next one has answered; none
    /// if it did not end.
    fn strike(&mut self, point: Point) -> Option<Duration> {
        let handle = self.prepare();
        let worker = self.agent.process("worker", 0);
        let mut traced = Traced::attach(worker);
        let request = self.request(point.act, handle, "struck");
        let mut stream = self.line.writer();
        let writer = std::thread::spawn(move || {
            let _ = stream.write_all(&request);
        });
        let until = Instant::now() + LIVELY;
        while traced.next_stop(until) && traced.stops < point.stop {
            traced.go_on();
        }
        let struck = traced.strike(point.kind);
        // One that asks for no memory any more lives on.
        let patience = if point.kind == Kind::Memory { Duration::from_millis(500) } else { LIVELY };
        let ended = traced.ends_within(patience);
        if !ended {
            kill(traced.pid, Signal::SIGKILL).expect("SIGKILL");
            assert!(traced.ends_within(LIVELY));
        }
        // The next one reads what this one left.
        writer.join().expect("it was sent");
        self.line.ping();
        let back = struck.elapsed();
        let name = format!("{} at {} of {}", point.kind.name(), point.stop, point.act.name);
        assert_ne!(self.agent.process("worker", worker), worker);
        if self.frozen && point.act.name != "guest-fsfreeze-thaw" {
            assert!(self.line.frozen(), "{name}: still frozen");
            assert!(self.mounted.is_frozen(), "{name}: still frozen");
        } else if !self.frozen && point.act.name != "guest-fsfreeze-freeze" {
            let reply = self.line.ask("guest-file-read", &json!({ "handle": handle }));
            assert_eq!(reply["error"]["desc"], format!("handle '{handle}' has not been found"), "{name}");
        }
        self.line.text.clear();
        ended.then_some(back)
    }

    /// Thaws, and holds the records against what was done.
    fn end(mut self, before: usize, struck: &[(Kind, bool)]) {
        self.frozen = false;
        self.prepare();
        assert!(!self.mounted.is_frozen());
        let died = eventually("a record of each death", || {
            let died = self.agent.records_of("process-died").split_off(before);
            (died.len() == struck.len()).then_some(died)
        });
        for (record, (kind, by_it)) in died.iter().zip(struck) {
            assert_eq!(record["process"]["name"], "worker", "{record}");
            let signal = record["postern"]["signal"].as_i64().expect("a signal");
            // Who has said its last words may be killed before it aborts.
            let last_words = record["event"]["reason"].as_str().is_some_and(|why| why.contains("allocation"));
            let killed = !by_it || (*kind == Kind::Memory && last_words);
            let expected = signal == kind.signal() as i64 || (killed && signal == Signal::SIGKILL as i64);
            assert!(expected, "{kind:?}: {record}");
        }
    }
}

/// Every point of a row, evenly thinned out.
fn points(calls: &[(&'static Act, usize)], kind: Kind) -> Vec<Point> {
    // A call is entered at odd stops. A forbidden one is made there; a jump is
    // taken behind one.
    let fits = |stop: usize| match kind {
        Kind::Kill => true,
        Kind::Segv => stop.is_multiple_of(2),
        Kind::Sys | Kind::Memory => stop % 2 == 1,
    };
    let all: Vec<Point> = calls
        .iter()
        // What takes memory is a large request.
        .filter(|(act, _)| kind != Kind::Memory || act.arguments.contains("LARGE"))
        .flat_map(|&(act, count)| (1..=count).filter(|stop| fits(*stop)).map(move |stop| Point { act, stop, kind }))
        .collect();
    let wanted = strikes(STRIKES).min(all.len());
    (0..wanted).map(|number| all[number * all.len() / wanted]).collect()
}

fn matrix(frozen: bool) {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    home.write("file", b"content");
    let acts = if frozen { FROZEN } else { THAWED };
    let mut calls = Vec::new();
    let mut stage = Stage::set(&home, &mounted, frozen);
    for act in acts {
        let made = stage.calls(act);
        calls.push((act, made.len()));
        if made.len() < 60 {
            let entered: Vec<&str> = made.iter().step_by(2).copied().collect();
            println!("    {}: {} stops, at {}", act.name, made.len(), entered.join(" "));
        } else {
            println!("    {}: {} stops", act.name, made.len());
        }
    }
    stage.end(0, &[]);
    for kind in Kind::ALL {
        let points = points(&calls, kind);
        let mut times = Times::default();
        let mut lived = 0;
        for few in points.chunks(FREE) {
            let mut stage = Stage::set(&home, &mounted, frozen);
            let before = stage.agent.records_of("process-died").len();
            let mut struck = Vec::new();
            for point in few {
                let back = stage.strike(*point);
                struck.push((kind, back.is_some()));
                match back {
                    Some(back) => times.push(back),
                    None => lived += 1,
                }
            }
            stage.end(before, &struck);
        }
        let of = calls.iter().map(|(_, count)| count).sum::<usize>();
        let points = format!("{} of {of} stops of {} commands", points.len(), acts.len());
        let outcome =
            if lived > 0 { format!("as above; {lived} asked for no more memory") } else { OUTCOME.to_owned() };
        times.row(&format!("worker, {}", kind.name()), &points, frozen, &outcome);
        assert!(times.len() > lived / 8, "{kind:?}: none ended");
        if times.len() > 0 {
            assert!(times.median() < BOUND, "{kind:?}: {:?}", times.median());
        }
    }
}

const OUTCOME: &str = "same connection, next worker; handles gone; frozen stays frozen; `process-died` with its signal";

/// A host that does not read holds up the reply to a long read; the worker that
/// waits in the midst of it ends.
fn a_reply_half_written_ends_with_its_worker() {
    let home = Home::new();
    let large = home.write("large", &vec![7; 4 << 20]);
    let agent = home.start(&policy());
    let mut line = Line::to(&home);
    let handle = line.open(&large, "r");
    let worker = agent.process("worker", 0);
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 4 << 20 } });
    line.send(read.to_string().as_bytes());
    // The second piece is read once the first is written: half a reply is there.
    eventually("the reply is half written", || {
        let position = std::fs::read_to_string(format!("/proc/{worker}/fdinfo/6")).unwrap_or_default();
        let read = position.lines().find_map(|line| line.strip_prefix("pos:")?.trim().parse::<u64>().ok());
        read.is_some_and(|read| (128 << 10..4 << 20).contains(&read)).then_some(())
    });
    let struck = Instant::now();
    kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).expect("SIGKILL");
    // What a host does that lost count: everything before the delimiter is thrown
    // away, half a reply with it.
    let reply = line.ask("guest-sync-delimited", &json!({ "id": 7 }));
    assert_eq!(reply["return"], 7);
    let mut times = Times::default();
    times.push(struck.elapsed());
    let reply = line.ask("guest-file-read", &json!({ "handle": handle }));
    assert_eq!(reply["error"]["desc"], format!("handle '{handle}' has not been found"));
    assert!(line.text.len() > 64 << 10, "half a reply came: {}", line.text.len());
    times.row("worker, SIGKILL", "a reply of 5.6 MB half written", false, OUTCOME);
}
