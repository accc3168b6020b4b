//! What the four processes take at most, under the worst of each limit, and what
//! the kernel would let them take.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postern_core::confine::limits::worker_data;
use postern_core::policy::{Limits, TOKENS_MAX};
use serde_json::{Value, json};

use crate::policy;
use crate::support::agent::{Agent, Home, Host};
use crate::support::runner::Test;
use crate::support::usage::Usage;

pub(crate) const TESTS: &[Test] = &[
    ("the_worst_requests_of_small_limits_fit", small),
    ("the_worst_requests_of_all_limits_fit", largest),
    ("the_worst_of_everything_else_fits", everything_else),
];

/// As many of an item, with a comma behind each but the last, as fit between head
/// and tail in so many bytes and tokens.
fn filled(head: &str, item: &str, tokens: usize, tail: &str, bytes: usize) -> String {
    let most = usize::try_from(TOKENS_MAX).expect("a small number") - 32;
    let times = ((bytes - head.len() - tail.len()) / (item.len() + 1)).min(most / (tokens + 1));
    format!("{head}{}{item}{tail}", format!("{item},").repeat(times - 1))
}

/// An object with as many members as fit, no two of one name.
fn members(head: &str, tail: &str, bytes: usize) -> String {
    let mut request = head.to_owned();
    for number in 0..usize::try_from(TOKENS_MAX).expect("a small number") / 4 - 16 {
        if request.len() + tail.len() + 16 > bytes {
            break;
        }
        let _ = write!(request, "\"{number:x}\":0,");
    }
    request.pop();
    request + tail
}

/// Requests of up to so many bytes that take the most once they are parsed.
fn worst(bytes: usize, handle: i64) -> Vec<(&'static str, String)> {
    let array = |item: &str, tokens| filled("{\"execute\":\"guest-ping\",\"x\":[", item, tokens, "]}", bytes);
    // To the last level of nesting: brackets without commas.
    let deep = "[".repeat(1000) + "0" + &"]".repeat(1000);
    let string = |head: &str, part: &str, tail: &str| {
        format!("{head}{}{tail}", part.repeat((bytes - head.len() - tail.len()) / part.len()))
    };
    let write = format!("{{\"execute\":\"guest-file-write\",\"arguments\":{{\"handle\":{handle},\"buf-b64\":\"");
    vec![
        ("numbers", array("0", 1)),
        ("arrays", array("[0]", 3)),
        ("nested arrays", array("[[[[0]]]]", 9)),
        ("deep arrays", array(&deep, 2001)),
        ("objects", array("{\"\":0}", 5)),
        ("objects of arrays", array("{\"\":[0]}", 7)),
        ("escaped strings", array("\"\\n\"", 1)),
        ("members", members("{\"execute\":\"guest-ping\",\"x\":{", "}}", bytes)),
        ("an escaped string", string("{\"execute\":\"guest-ping\",\"x\":\"", "\\n", "\"}")),
        ("a write with newlines", string(&write, "AAAA\\n", "\"}}")),
        ("a write", string(&write, "AAAA", "\"}}")),
    ]
}

/// Soft limit of a process, in bytes.
fn limit(pid: i32, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let line = text.lines().find(|line| line.starts_with(name)).expect("a limit of that name");
    line[name.len()..].split_whitespace().next().expect("soft").parse().ok()
}

/// Sends each of the worst; the worker that was there is there still.
fn survives(agent: &Agent<'_>, host: &mut Host, bytes: usize) {
    let handle = host.open(agent.home.files().join("new"), "w+").expect("a handle");
    let worker = agent.process("worker", 0);
    for (name, request) in worst(bytes, handle) {
        assert!(request.len() <= bytes, "{name}: {}", request.len());
        host.send(request.as_bytes());
        host.send(b"\n");
        let reply = host.hear();
        let expected = name.starts_with("a write")
            || reply["error"]["desc"].as_str().is_some_and(|why| why.contains("'x' is unexpected"));
        assert!(expected, "{name}: {reply}");
        let usage = Usage::of(worker);
        println!("    {name}, {} bytes: most resident {} KiB", request.len(), usage.peak);
    }
    host.ping();
    host.close(handle);
    assert_eq!(agent.process("worker", 0), worker, "the same worker");
}

fn print(family: &BTreeMap<String, i32>) {
    for (name, pid) in family {
        let usage = Usage::of(*pid);
        let most = limit(*pid, "Max data size").map_or("none".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
        println!("    {name}: {usage}; most address space {} KiB; RLIMIT_DATA {most}", usage.peak_space);
    }
}

fn small() {
    let home = Home::new();
    let all = ["64KiB", "1MiB", "2MiB", "4MiB"];
    // As many tokens as there may be take a debug build long.
    for message in if cfg!(debug_assertions) { &all[..2] } else { &all[..] } {
        let agent = home.start(&policy(&format!("message = \"{message}\"\n")));
        let bytes = limit_of(message);
        let worker = agent.process("worker", 0);
        let due = worker_data(&Limits { message: u32::try_from(bytes).expect("it fits"), ..Limits::default() });
        assert_eq!(limit(worker, "Max data size"), Some(due));
        println!("    message = {message}: RLIMIT_DATA {} KiB", due >> 10);
        survives(&agent, &mut agent.connect(), bytes);
        // No more than is needed: three quarters of it were used.
        let peak = Usage::of(worker).peak;
        assert!(bytes < 1 << 20 || peak * 4 / 3 > due >> 10, "{peak} of {} KiB", due >> 10);
    }
}

fn limit_of(text: &str) -> usize {
    let (number, unit) = text.split_at(text.len() - 3);
    number.parse::<usize>().expect("a number") << if unit == "KiB" { 10 } else { 20 }
}

fn largest() {
    if cfg!(debug_assertions) {
        // A request of 64 MiB takes a debug build half a minute, and each is of the
        // same kinds as those of 4 MiB.
        println!("    in release builds only");
        return;
    }
    let home = Home::new();
    let agent = home.start(&policy(""));
    let mut host = agent.connect();
    survives(&agent, &mut host, 64 << 20);
    print(&agent.family());
    let peak = Usage::of(agent.process("worker", 0)).peak;
    assert!(peak << 10 < worker_data(&Limits::default()), "{peak} KiB");
}

fn everything_else() {
    let home = Home::new();
    let size = if cfg!(debug_assertions) { 8 << 20 } else { 48 << 20 };
    let path = home.write("file", &vec![7; size]);
    // A policy of many rules with long paths.
    let mut rules = String::new();
    let long = "directory-with-a-name-as-long-as-names-may-be-".repeat(5);
    for number in 0..500 {
        let _ = write!(
            rules,
            "[[files]]\npath = \"/srv/{long}/{number}\"\nrights = [\"read\"]\noptional = true\n\
             except = [\"/srv/{long}/{number}/{long}\"]\n"
        );
    }
    let text = policy("handles = 1024\n") + &rules;
    let agent = home.start(&text);
    let mut host = agent.connect();
    let handles: Vec<i64> = (0..1024).map(|_| host.open(&path, "r").expect("a handle")).collect();
    host.open(&path, "r").expect_err("one too many");
    let arguments = json!({ "handle": handles[0], "count": size });
    let read = host.returns("guest-file-read", &arguments);
    assert_eq!(STANDARD.decode(read["buf-b64"].as_str().expect("text")).expect("base64").len(), size);
    // Floods of what is refused, and of what is held while frozen.
    for request in [
        json!({ "execute": "guest-exec" }),
        json!({ "execute": "guest-file-open", "arguments": { "path": "/x".repeat(2000) } }),
        json!({ "execute": "guest-fsfreeze-freeze-list", "arguments": { "mountpoints": vec!["/nowhere"; 256] } }),
        json!({ "execute": "guest-info" }),
    ] {
        for _ in 0..if cfg!(debug_assertions) { 10 } else { 100 } {
            host.send(format!("{request}\n").repeat(20).as_bytes());
            (0..20).for_each(|_| _ = host.hear());
        }
    }
    let family = agent.family();
    print(&family);
    // In KiB: what the table of policy/README.md says.
    let most = [("broker", 16 << 10), ("opener", 12 << 10), ("spawner", 12 << 10), ("worker", 16 << 10)];
    for (name, most) in most {
        let peak = Usage::of(family[name]).peak;
        assert!(peak <= most, "{name}: {peak} KiB");
    }
    // A look at each file, its own, and what is about to be closed.
    let descriptors = Usage::of(family["broker"]).descriptors;
    assert!((1024..1024 + 32).contains(&descriptors), "{descriptors}");
    for handle in handles {
        host.close(handle);
    }
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "thawed");
}
