//! Opener, spawner and all at once killed: who is replaced, who ends the rest, and
//! what becomes of what is frozen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scene::{start_quietly, status, thaw, with};
use crate::strike::{Kind, Traced};
use crate::support::agent::{Agent, Home, LIVELY, eventually, lives};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;
use crate::table::{self, Times};
use crate::worker::{Line, strikes};

pub(crate) const TESTS: &[Test] = &[
    ("an_opener_that_ends_anywhere_is_replaced", an_opener_that_ends_anywhere_is_replaced),
    ("a_spawner_killed_anywhere_ends_the_rest_in_order", a_spawner_killed_anywhere_ends_the_rest),
    ("a_spawner_killed_while_frozen_has_all_thawed", a_spawner_killed_while_frozen_has_all_thawed),
    ("all_killed_at_once_are_followed_by_others", all_killed_at_once_are_followed_by_others),
];

const OPENS: usize = if cfg!(debug_assertions) { 2 } else { 10 };
const BIRTHS: usize = if cfg!(debug_assertions) { 2 } else { 8 };
/// Crashes of an opener that are made good at once.
const FREE: usize = 4;

fn policy() -> String {
    with("[freeze]\nlimit = \"6s\"\n")
}

fn disk() -> (Disk, Mounted) {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    (disk, mounted)
}

fn open(line: &mut Line, path: &std::path::Path) -> Value {
    line.ask("guest-file-open", &json!({ "path": path, "mode": "w" }))
}

fn an_opener_that_ends_anywhere_is_replaced() {
    let home = Home::new();
    let path = home.files().join("file");
    // The stops of an open: as many as there are until it is answered.
    let all = {
        let agent = home.start(&policy());
        let mut line = Line::to(&home);
        line.ping();
        let mut traced = Traced::attach(agent.process("opener", 0));
        line.send(asked(&path).as_bytes());
        let until = Instant::now() + LIVELY;
        while !line.has_reply("open") && traced.next_stop(until) {
            traced.go_on();
        }
        let stops = traced.stops;
        traced.let_go();
        stops
    };
    for kind in [Kind::Kill, Kind::Segv, Kind::Sys] {
        let fits = |stop: &usize| kind == Kind::Kill || stop.is_multiple_of(2) == (kind == Kind::Segv);
        let stops: Vec<usize> = (1..=all).filter(fits).collect();
        let wanted = strikes(OPENS).min(stops.len());
        let chosen: Vec<usize> = (0..wanted).map(|number| stops[number * stops.len() / wanted]).collect();
        let (mut times, mut failed) = (Times::default(), 0);
        for few in chosen.chunks(FREE) {
            let agent = home.start(&policy());
            let before = agent.records_of("process-died").len();
            let mut line = Line::to(&home);
            line.ping();
            for stop in few {
                let opener = settled(&agent);
                let mut traced = Traced::attach(opener);
                line.send(asked(&path).as_bytes());
                let until = Instant::now() + LIVELY;
                while traced.next_stop(until) && traced.stops < *stop {
                    traced.go_on();
                }
                let struck = traced.strike(kind);
                assert!(traced.ends_within(LIVELY));
                // Whatever became of that one, the next is served.
                let reply = open(&mut line, &path);
                assert!(reply.get("return").is_some(), "{kind:?} at {stop}: {reply}");
                times.push(struck.elapsed());
                let first = line.reply("open").expect("an answer to the first");
                failed += usize::from(first.get("error").is_some());
                line.forget();
                let _ = std::fs::remove_file(&path);
            }
            let died = eventually("a record of each death", || {
                let died = agent.records_of("process-died").split_off(before);
                (died.len() == few.len()).then_some(died)
            });
            for record in died {
                assert_eq!(record["process"]["name"], "opener", "{record}");
                assert_eq!(record["postern"]["signal"], kind.signal() as i32, "{record}");
            }
        }
        let outcome = format!("replaced; the open itself failed with EIO in {failed}; time to the next open's answer");
        times.row(&format!("opener, {}", kind.name()), &format!("{wanted} of {all} stops of an open"), false, &outcome);
        assert!(times.median() < Duration::from_secs(2));
    }
}

fn asked(path: &std::path::Path) -> String {
    json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": "w" }, "id": "open" }).to_string()
}

/// An opener that was confined: only then has it heard of an open.
fn settled(agent: &Agent<'_>) -> i32 {
    eventually("a confined opener", || {
        let started = agent.records_of("process-started");
        let of = started.iter().rfind(|record| record["process"]["name"] == "opener")?;
        let pid = i32::try_from(of["process"]["pid"].as_i64()?).ok()?;
        (agent.family().get("opener") == Some(&pid)).then_some(pid)
    })
}

/// The agent after a broker that ended: how long until the next one answers, from
/// then on.
fn followed(home: &Home, since: Instant) -> (Agent<'_>, crate::support::agent::Host, Duration) {
    let (agent, host) = start_quietly(home, &policy());
    (agent, host, since.elapsed())
}

fn await_end(family: &BTreeMap<String, i32>) {
    eventually("no process is left", || family.values().all(|pid| !lives(*pid)).then_some(()));
}

fn a_spawner_killed_anywhere_ends_the_rest() {
    let home = Home::new();
    let run = |stop: usize| {
        let mut agent = home.start(&policy());
        let family = agent.family();
        let mut traced = Traced::attach(family["spawner"]);
        agent.signal("worker", Signal::SIGKILL);
        let until = Instant::now() + Duration::from_secs(2);
        let mut enough = false;
        while !enough && traced.next_stop(until) {
            enough = traced.stops >= stop;
            // As long as it waits for the broker's next order it does not stop.
            let born = agent.family().get("worker").is_some_and(|pid| *pid != family["worker"]);
            if !enough && born && stop == usize::MAX {
                break;
            }
            if !enough {
                traced.go_on();
            }
        }
        let struck = traced.strike(Kind::Kill);
        assert!(traced.ends_within(LIVELY));
        assert_eq!(agent.ended().code(), Some(1), "{}", agent.said());
        await_end(&family);
        let last = agent.records().pop().expect("a record");
        assert_eq!(last["event"]["action"], "stopped", "{last}");
        assert!(last["event"]["reason"].as_str().is_some_and(|why| why.contains("spawner")), "{last}");
        let stops = traced.stops;
        drop(agent);
        let (_agent, _host, back) = followed(&home, struck);
        (stops, back)
    };
    let (all, _) = run(usize::MAX);
    let wanted = strikes(BIRTHS).min(all);
    let mut times = Times::default();
    for number in 0..wanted {
        times.push(run(1 + number * all / wanted).1);
    }
    let outcome = "the broker ends in order, status 1; time until the next start answers";
    times.row("spawner, SIGKILL", &format!("{wanted} of {all} stops of a birth"), false, outcome);
}

fn a_spawner_killed_while_frozen_has_all_thawed() {
    let (_disk, mounted) = disk();
    let home = Home::new();
    let mut agent = home.start(&policy());
    let mut line = Line::to(&home);
    assert_eq!(line.ask("guest-fsfreeze-freeze", &json!({}))["return"], 1);
    assert!(mounted.is_frozen());
    let struck = Instant::now();
    agent.signal("spawner", Signal::SIGKILL);
    assert_eq!(agent.ended().code(), Some(1));
    assert!(!mounted.is_frozen(), "it thawed before it ended");
    let thawed = agent.records_of("guest-fsfreeze-thaw").pop().expect("a record");
    assert_eq!(thawed["event"]["reason"], "postern is stopping");
    drop(agent);
    let (_agent, mut host, back) = followed(&home, struck);
    assert_eq!(status(&mut host), "thawed");
    let outcome = "the broker thaws and ends, status 1; time until the next start answers";
    table::row("spawner, SIGKILL", "at rest", true, back, outcome);
}

fn all_killed_at_once_are_followed_by_others() {
    let (_disk, mounted) = disk();
    let home = Home::new();
    home.write("file", b"content");
    for frozen in [false, true] {
        let mut agent = home.start(&policy());
        let mut line = Line::to(&home);
        let handle = line.open(&home.files().join("file"), "r");
        if frozen {
            assert_eq!(line.ask("guest-fsfreeze-freeze", &json!({}))["return"], 1);
        }
        let family = agent.family();
        assert_eq!(family.len(), 4);
        let struck = Instant::now();
        for pid in family.values() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        agent.ended();
        await_end(&family);
        drop(agent);
        assert_eq!(mounted.is_frozen(), frozen, "as it was");
        let (agent, mut host, back) = followed(&home, struck);
        assert_eq!(mounted.is_frozen(), frozen, "a start thaws nothing");
        if frozen {
            // Nobody asks for a thaw.
            eventually("the limit thaws", || (status(&mut host) == "thawed").then_some(()));
            assert!(!mounted.is_frozen());
            println!(
                "    | all four, SIGKILL | at rest | frozen | 1 | - | - | thawed by the limit of 6 s, {:.1} s after the kill |",
                struck.elapsed().as_secs_f32()
            );
        }
        assert_eq!(thaw(&mut host), 0);
        assert_eq!(
            host.fails("guest-file-read", &json!({ "handle": handle })),
            format!("handle '{handle}' has not been found")
        );
        let next = host.open(home.files().join("file"), "r").expect("a handle");
        assert!(u64::try_from(next).expect("a handle") > handle, "no handle twice");
        let outcome = "time until the next start answers, on a new connection; no handle is given twice";
        table::row("all four, SIGKILL", "at rest", frozen, back, outcome);
        drop(host);
        drop(agent);
    }
}
