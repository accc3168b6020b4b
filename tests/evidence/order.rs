//! What must stand before what, in a trace of the whole family.
//!
//! * before a descriptor leaves the broker for a worker, as `Opened`: the record
//!   that grants its handle, and of this file, written whole;
//! * before the opener calls what creates or truncates: the record that it was
//!   asked for, written whole, and since the order before this one;
//! * where the policy waits for the disk: `fdatasync` between the two.

use std::collections::BTreeMap;
use std::path::Path;

use postern_core::ipc::Wire;
use postern_core::messages::{Answer, OpenerOrder};
use postern_core::policy::rules::Mode;
use serde_json::Value;

use crate::strace::{Call, Trace, field, name_of, string};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Opens that a worker asked for.
    pub(crate) asks: usize,
    /// Descriptors that were handed to a worker.
    pub(crate) handed: usize,
    /// Calls that could create or truncate.
    pub(crate) effects: usize,
    /// Records written whole, by their `event.sequence`.
    pub(crate) written: Vec<u64>,
    /// Writes to the log that failed.
    pub(crate) failed: usize,
    /// Calls that the tracer made fail.
    pub(crate) injected: BTreeMap<String, usize>,
    /// Effects and descriptors without a record before them.
    pub(crate) late: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Broker,
    Spawner,
    Opener,
    Worker,
}

#[derive(Debug)]
struct Asked {
    path: String,
    mode: String,
    on_disk: bool,
}

#[derive(Debug)]
struct Order {
    path: Vec<u8>,
    mode: Mode,
    asked: bool,
}

struct Reader<'a> {
    log: &'a str,
    /// Whether records must be on the disk first.
    waits: bool,
    roles: BTreeMap<i32, Role>,
    verdict: Verdict,
    /// Path by handle.
    granted: BTreeMap<u64, String>,
    /// The same of records that must be on the disk yet.
    fresh: BTreeMap<u64, String>,
    /// The last open that was announced, until it is ordered.
    asked: Option<Asked>,
    orders: Vec<Order>,
    /// What each opener looks at: the path of its order.
    looking: BTreeMap<i32, Vec<u8>>,
    /// What is left to write of a record that the kernel took in parts.
    line: Vec<u8>,
    left: usize,
}

/// Reads a trace that begins with the broker's birth; whether its policy `waits`
/// for the disk before an open.
pub(crate) fn judge(trace: &Trace, log: &Path, waits: bool) -> Result<Verdict, String> {
    let mut reader = Reader {
        log: log.to_str().ok_or("the log's path")?,
        waits,
        roles: BTreeMap::new(),
        verdict: Verdict::default(),
        granted: BTreeMap::new(),
        fresh: BTreeMap::new(),
        asked: None,
        orders: Vec::new(),
        looking: BTreeMap::new(),
        line: Vec::new(),
        left: 0,
    };
    let broker = trace.calls.first().map(|first| first.pid);
    reader.roles.extend(broker.map(|pid| (pid, Role::Broker)));
    // What the broker sends may be received before its call has ended.
    let sends = |call: &Call| Some(call.pid) == broker && call.name.starts_with("send");
    let mut calls: Vec<&Call> = trace.calls.iter().collect();
    calls.sort_by_key(|call| if sends(call) { call.begun } else { call.ended });
    for call in calls {
        reader.meet(call).map_err(|why| format!("line {}: {why}: {call:?}", call.ended + 1))?;
    }
    Ok(reader.verdict)
}

impl Reader<'_> {
    fn meet(&mut self, call: &Call) -> Result<(), String> {
        if call.injected {
            *self.verdict.injected.entry(call.name.clone()).or_default() += 1;
        }
        let argument = |number: usize| call.arguments.get(number).map(String::as_str).ok_or("an argument is missing");
        let role = self.roles.get(&call.pid).copied();
        match (call.name.as_str(), role) {
            ("execve" | "execveat", _) => {
                let is = |name: &str| call.arguments.iter().any(|one| one == &format!("[\"postern: {name}\"]"));
                let found = [("spawner", Role::Spawner), ("opener", Role::Opener), ("worker", Role::Worker)];
                if let Some((_, role)) = found.into_iter().find(|(name, _)| is(name)) {
                    self.roles.insert(call.pid, role);
                }
            }
            ("write", Some(Role::Broker)) if self.is_log(argument(0)?) => {
                self.write(&string(argument(1)?).ok_or("a record was cut")?, call.result)?;
            }
            ("fdatasync", Some(Role::Broker)) if call.result == Some(0) && self.is_log(argument(0)?) => {
                self.asked.iter_mut().for_each(|asked| asked.on_disk = true);
                self.granted.extend(std::mem::take(&mut self.fresh));
            }
            ("sendto", Some(Role::Broker)) => {
                let frame = string(argument(1)?).ok_or("a frame was cut")?;
                // An answer that starts with the same byte has 5.
                if frame.first() == Some(&4) && frame.len() > 5 && call.result.is_none_or(|sent| sent > 0) {
                    self.order(&frame)?;
                }
            }
            ("sendto", Some(Role::Worker)) => {
                let frame = string(argument(1)?).ok_or("a frame was cut")?;
                self.verdict.asks += usize::from(frame.first() == Some(&3));
            }
            ("sendmsg", Some(Role::Broker)) => self.hand(call)?,
            ("sendmsg" | "sendto", Some(Role::Opener)) => drop(self.looking.remove(&call.pid)),
            ("openat", Some(Role::Opener)) => self.open(call)?,
            ("sendmsg", Some(_)) => return Err("who passes descriptors here?".to_owned()),
            // Before its birth by exec, a child is its parent's copy.
            (_, None) if matches!(call.name.as_str(), "sendmsg" | "sendto") => return Err("who is this?".to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// Whether a descriptor is of the log, or of what it was rotated to.
    fn is_log(&self, descriptor: &str) -> bool {
        name_of(descriptor).is_some_and(|name| name.starts_with(self.log))
    }

    /// A write to the log: whole, or but for its newline, it is a record.
    fn write(&mut self, bytes: &[u8], result: Option<i64>) -> Result<(), String> {
        let Some(written) = result.and_then(|count| usize::try_from(count).ok()) else {
            self.verdict.failed += 1;
            self.left = 0;
            return Ok(());
        };
        if self.left == bytes.len() && self.line.ends_with(bytes) {
            self.left -= written;
        } else {
            self.line = bytes.to_vec();
            self.left = bytes.len() - written;
        }
        if self.left > 1 {
            return Ok(());
        }
        self.left = 0;
        let record: Value =
            serde_json::from_slice(self.line.trim_ascii()).map_err(|why| format!("no record: {why}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.verdict.written.push(record["event"]["sequence"].as_u64().ok_or("a record without a number")?);
        if record["event"]["action"] == "guest-file-open" {
            let postern = &record["postern"];
            match text(&postern["stage"]).as_str() {
                "granted" => {
                    let handle = postern["handle"].as_u64().ok_or("a handle")?;
                    let granted = if self.waits { &mut self.fresh } else { &mut self.granted };
                    granted.insert(handle, text(&record["file"]["path"]));
                }
                "asked" => {
                    let (path, mode) = (text(&postern["requested"]), text(&postern["mode"]));
                    self.asked = Some(Asked { path, mode, on_disk: !self.waits });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn order(&mut self, frame: &[u8]) -> Result<(), String> {
        let order = OpenerOrder::whole(frame).map_err(|why| format!("no order: {why}"))?;
        let OpenerOrder::Open { path, mode, .. } = order else { return Err("another order".to_owned()) };
        let path = path.as_slice().to_vec();
        let asked = self
            .asked
            .take()
            .is_some_and(|asked| asked.path.as_bytes() == path && asked.mode == mode.fopen() && asked.on_disk);
        self.orders.push(Order { path, mode, asked });
        Ok(())
    }

    /// The broker passes a descriptor on.
    fn hand(&mut self, call: &Call) -> Result<(), String> {
        let message = call.arguments.get(1).ok_or("a message")?;
        if !message.contains("SCM_RIGHTS") {
            return Ok(());
        }
        let frame = field(message, "iov_base").and_then(string).ok_or("a frame")?;
        let file = field(message, "cmsg_data").and_then(|list| list.strip_prefix('[')?.strip_suffix(']'));
        let file = file.and_then(name_of).ok_or("what descriptor?")?;
        let is_socket = file.starts_with("socket:");
        match Answer::whole(&frame) {
            // A channel, or a new child's socket to the spawner.
            _ if is_socket && (frame.first() == Some(&2)) => Ok(()),
            Ok(Answer::Opened { handle }) => {
                self.verdict.handed += 1;
                match self.granted.get(&handle) {
                    Some(path) if path == file => {}
                    other => self.verdict.late.push(format!("handle {handle}, {file}, is handed over: {other:?}")),
                }
                Ok(())
            }
            _ => Err("what is passed here?".to_owned()),
        }
    }

    fn open(&mut self, call: &Call) -> Result<(), String> {
        let [at, path, flags, ..] = &call.arguments[..] else { return Err("too few arguments".to_owned()) };
        let path = string(path).ok_or("a path was cut")?;
        if flags.contains("O_PATH") && at.starts_with("AT_FDCWD") {
            // The first look is at the order's path, the next at its directory.
            self.looking.entry(call.pid).or_insert(path);
            return Ok(());
        }
        if !flags.contains("O_CREAT") && !flags.contains("O_TRUNC") {
            return Ok(());
        }
        self.verdict.effects += 1;
        let wanted = self.looking.get(&call.pid).ok_or("it opens without looking")?;
        let order = self.orders.iter().rev().find(|order| order.path == *wanted).ok_or("nobody ordered this")?;
        if !order.asked {
            let wanted = String::from_utf8_lossy(wanted);
            self.verdict.late.push(format!("{wanted} ({}) is opened with {flags}", order.mode.fopen()));
        }
        Ok(())
    }
}
