//! A policy that tells nothing of the guest costs nothing: what `policy explain
//! --json` says of its processes is what it said before there was anything to tell
//! (`without.txt`, of the commit before). And what each command adds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::agents;
use crate::support::agent::BINARY;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("a_policy_without_facts_adds_nothing", a_policy_without_facts_adds_nothing)];

const BEFORE: &str = include_str!("without.txt");

const POLICIES: &[(&str, &str)] = &[
    ("minimal", "profile = \"minimal\"\n"),
    ("backup", "profile = \"backup\"\n"),
    ("files", "profile = \"files\"\n[[files]]\npath = \"/srv\"\nrights = [\"read\"]\n"),
];

/// What the policy makes of each process: a line for each.
fn processes(policy: &str) -> BTreeMap<String, String> {
    let path = "/tmp/policy.toml";
    fs::write(path, format!("version = 1\n{policy}")).expect("a policy");
    let mut explain = Command::new(BINARY);
    let output = explain.args(["policy", "explain", "--json", "--elsewhere", "--policy", path]).output();
    let output = output.expect("postern");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let explained: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect()
    };
    let mut processes = BTreeMap::new();
    for process in explained["processes"].as_array().expect("processes") {
        let mut line = match texts(&process["capabilities"]).join(" ") {
            none if none.is_empty() => "no capability".to_owned(),
            some => some,
        };
        write!(line, " | {} |", process["landlock"].as_str().expect("a text")).expect("a text");
        for call in process["calls"].as_array().expect("calls") {
            write!(line, " {}", call["name"].as_str().expect("a name")).expect("a text");
            let restricted = texts(&call["restricted_arguments"]);
            if !restricted.is_empty() {
                write!(line, "[{}]", restricted.join(",")).expect("a text");
            }
        }
        processes.insert(process["name"].as_str().expect("a name").to_owned(), line);
    }
    processes
}

/// What a line says, whatever the order.
fn words(line: &str) -> Vec<&str> {
    let (rest, calls) = line.rsplit_once(" | ").expect("calls");
    let mut words: Vec<&str> = calls.split(' ').chain(rest.split(" | ")).collect();
    words.sort_unstable();
    words
}

fn a_policy_without_facts_adds_nothing() {
    let mut now = BTreeMap::new();
    for (name, policy) in POLICIES {
        now.extend(processes(policy).into_iter().map(|(process, line)| (format!("{name} {process}"), line)));
    }
    let before: BTreeMap<String, String> = BEFORE
        .lines()
        .map(|line| line.split_once(" | ").expect("a line"))
        .map(|(name, line)| (name.to_owned(), line.to_owned()))
        .collect();
    assert_eq!(before.len(), 12, "four processes of three policies");
    if cfg!(target_arch = "x86_64") {
        for (name, line) in &before {
            assert_eq!(words(&now[name]), words(line), "{name}");
        }
    }
    let minimal = processes(POLICIES[0].1);
    for command in agents::offered() {
        let with = processes(&agents::policy(std::iter::once(command)));
        println!("    {command}:");
        for (process, line) in &with {
            let mut old = minimal.get(process).map_or_else(Vec::new, |line| words(line));
            let mut added = words(line);
            added.retain(|one| match old.iter().position(|known| known == one) {
                Some(at) => {
                    old.remove(at);
                    false
                }
                None => true,
            });
            if !added.is_empty() {
                println!("        {process}: {}", added.join(", "));
            }
        }
    }
}
