//! An open cut off at each system call of each process, at its entry and behind
//! it, by SIGKILL. Where the record comes first, no cut leaves an effect, or a
//! handle, without one; whoever is next goes on with the chain.
//!
//! The cuts are made by `ptrace(2)`: it is the only way to stop a process between
//! two calls. Nothing here watches order; that is [`crate::stress`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::load::POLICY;
use crate::support::agent::{Agent, BINARY, Home, LIVELY, eventually, lives};
use crate::support::sabotage;

/// Stops, two to a call, that lead through an open that creates and well into one
/// that truncates.
const STOPS: [(&str, usize); 3] = [("broker", 56), ("opener", 36), ("worker", 34)];

/// Files of a home, made or emptied without a record; handles without one.
fn violations(home: &Home, handles: &[u64]) -> Vec<String> {
    let text = fs::read_to_string(home.log()).expect("the log");
    let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |stage: &str, field: &str| -> BTreeSet<String> {
        let at = records.iter().filter(|record| record["postern"]["stage"] == stage);
        at.map(|record| record["postern"][field].to_string()).collect()
    };
    let (asked, granted) = (of("asked", "requested"), of("granted", "handle"));
    let files = fs::read_dir(home.files()).expect("files").flatten().filter_map(|entry| {
        let path = entry.path();
        let name = entry.file_name().into_string().ok()?;
        let empty = fs::metadata(&path).ok()?.len() == 0;
        (name.starts_with("new") || (name.starts_with("old") && empty)).then(|| json!(path).to_string())
    });
    let files = files.filter(|path| !asked.contains(path)).map(|path| format!("{path} changed"));
    let handles = handles.iter().filter(|handle| !granted.contains(&handle.to_string()));
    files.chain(handles.map(|handle| format!("handle {handle}"))).collect()
}

fn open(path: &str, mode: &str) -> String {
    json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": mode } }).to_string()
}

/// Opens files in one go; kills the process of this name at its `stop`th stop.
/// The handles that the host was given, whether or not it came to the kill.
fn cut(agent: &Agent<'_>, name: &str, stop: usize) -> Vec<u64> {
    let home = agent.home;
    let pid = Pid::from_raw(agent.process(name, 0));
    let mut stream = UnixStream::connect(home.path("host.sock")).expect("the channel");
    stream.set_read_timeout(Some(LIVELY)).expect("a time limit");
    // A reply: the worker has the channel, and all three are idle.
    stream.write_all(b"{\"execute\":\"guest-ping\"}").expect("the channel");
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a reply");
    }
    ptrace::attach(pid).expect("attach");
    waitpid(pid, None).expect("it stops");
    ptrace::syscall(pid, None).expect("it goes on");
    let path =
        |kind: &str, part: usize| home.files().join(format!("{kind}-{name}-{stop}-{part}")).display().to_string();
    let requests: String = (0..3)
        .flat_map(|part| {
            fs::write(path("old", part), "content").expect("a file");
            std::os::unix::fs::chown(path("old", part), Some(home.worker), Some(home.worker)).expect("its owner");
            [open(&path("new", part), "w"), open(&path("old", part), "w")]
        })
        .collect();
    stream.write_all(requests.as_bytes()).expect("the channel");
    let mut stops = 0;
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)).expect("a stop") {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                stops += 1;
                if stops >= stop {
                    break;
                }
                ptrace::syscall(pid, None).expect("it goes on");
            }
            WaitStatus::Stopped(_, signal) => ptrace::syscall(pid, signal).expect("it goes on"),
            other => panic!("{name}: {other:?} at stop {stops}"),
        }
    }
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("SIGKILL");
    // The broker is this process's child, too, and waited for as such.
    if name != "broker" {
        waitpid(pid, Some(WaitPidFlag::__WALL)).expect("its end");
    }
    heard(&mut stream, name == "broker")
}

/// The handles in all replies that come; up to the channel's end, or up to the
/// answer to a last question. That question, too, may die with a worker.
fn heard(stream: &mut UnixStream, ends: bool) -> Vec<u64> {
    let mut text = Vec::new();
    if ends {
        let _ = stream.read_to_end(&mut text);
    } else {
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
        let mut asked = 0;
        let answered = |text: &[u8]| String::from_utf8_lossy(text).contains("\"id\": \"last\"");
        while !answered(&text) {
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&bytes[..count]),
                Err(_) => {
                    asked += 1;
                    assert!(asked < 150, "it hangs");
                    stream.write_all(b"{\"execute\":\"guest-ping\",\"id\":\"last\"}").expect("the channel");
                }
            }
        }
    }
    let replies = text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    replies.filter_map(|reply| reply["return"].as_u64()).collect()
}

/// Cuts one process at every stop; what was found amiss.
fn cut_everywhere(binary: &str, name: &str, stops: usize) -> Vec<String> {
    let mut home = Home::new();
    home.binary = binary.into();
    fs::create_dir(home.path("narrow")).expect("a directory");
    fs::create_dir(home.path("files/private")).expect("a directory");
    let mut handles = Vec::new();
    let mut stop = 1;
    while stop <= stops {
        let mut agent = home.start(POLICY);
        // Two births for a start, and three more in ten seconds.
        let last = if name == "broker" { stop } else { (stop + 2).min(stops) };
        let family = agent.family();
        while stop <= last {
            handles.extend(cut(&agent, name, stop));
            stop += 1;
        }
        if name == "broker" {
            agent.ended();
            eventually("its family is gone", || family.values().all(|pid| !lives(*pid)).then_some(()));
        } else {
            // The agent goes on, with another.
            let mut host = agent.connect();
            let path = home.write("served", b"content");
            let handle = host.open(&path, "r").expect("it serves");
            handles.push(u64::try_from(handle).expect("a handle"));
        }
    }
    let verified = Command::new(BINARY).args(["audit", "verify"]).arg(home.log()).output();
    let verified = verified.expect("postern audit verify");
    assert!(verified.status.success(), "{name}: {}", String::from_utf8_lossy(&verified.stdout));
    let made = fs::read_dir(home.files()).expect("files").count();
    println!("    {name}: killed at {stops} stops; {} handles, {made} files", handles.len());
    violations(&home, &handles)
}

pub(crate) fn everywhere() {
    let waiting = Mutex::new(STOPS.iter());
    let next = || waiting.lock().expect("no panic in here").next();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, stops)) = next() {
                    let found = cut_everywhere(BINARY, name, *stops);
                    assert!(found.is_empty(), "{name}: {found:#?}");
                }
            });
        }
    });
    // The control: a broker that hands over, and orders, before it records.
    let found = cut_everywhere(&sabotage::binary(), "broker", STOPS[0].1);
    let files = found.iter().filter(|what| what.ends_with("changed")).count();
    println!("    a broken broker leaves {files} files and {} handles without a record", found.len() - files);
    assert!(files > 0 && found.len() > files, "{found:?}");
}
