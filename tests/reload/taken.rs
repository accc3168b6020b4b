//! Policies that are taken.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scene::{disabled, story, verify};
use crate::support::agent::{Home, eventually};
use crate::support::runner::Test;
use crate::{FILES, elsewhere, last, number, outcomes, reload};

pub(crate) const TESTS: &[Test] = &[
    ("a_new_policy_is_in_force_and_the_host_stays", a_new_policy_is_in_force_and_the_host_stays),
    ("a_request_that_is_half_here_is_finished", a_request_that_is_half_here_is_finished),
    ("an_open_under_way_is_finished", an_open_under_way_is_finished),
    ("drop_ins_count", drop_ins_count),
    ("other_words_for_the_same_replace_nobody", other_words_for_the_same_replace_nobody),
    ("a_thousand_signals_are_a_few_reloads", a_thousand_signals_are_a_few_reloads),
    ("a_reload_while_a_worker_is_born_or_waits_for_its_turn", a_reload_while_a_worker_is_born_or_waits_for_its_turn),
    ("the_logs_bounds_change_at_once", the_logs_bounds_change_at_once),
    ("without_root_too", without_root_too),
    ("a_policy_without_files_and_back", a_policy_without_files_and_back),
];

/// Read only, elsewhere, and no info.
const OTHER: &str = "profile = \"files\"\n[commands]\ndeny = [\"guest-info\"]\n\
                     [[files]]\npath = \"HOME/elsewhere\"\nrights = [\"read\"]\n";

fn a_new_policy_is_in_force_and_the_host_stays() {
    let home = Home::new();
    let (here, there) = (home.write("file", b"here"), elsewhere(&home));
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let handle = host.open(&here, "r").expect("a handle");
    assert!(host.open(&there, "r").is_err());
    let before = agent.family();
    let record = reload(&agent, OTHER);
    let ours = &record["postern"];
    assert_eq!(ours["file_rules"], 1);
    assert!(!ours["commands"].as_array().expect("commands").contains(&json!("guest-info")));
    assert_eq!(ours["tightened"][0], "profile", "{record}");
    assert_eq!(ours["widened"][0], "files.path", "{record}");
    assert!(ours.get("surplus").is_none(), "{record}");
    let written = sha256(&home);
    assert_eq!(ours["policy_digest"].as_str(), Some(written.as_str()));
    // The same connection.
    let gone = host.fails("guest-file-read", &json!({ "handle": handle }));
    assert_eq!(gone, format!("handle '{handle}' has not been found"));
    assert!(host.open(&here, "r").is_err(), "the old rule is gone");
    let new = host.open(&there, "r").expect("the new rule holds");
    assert!(new > handle);
    assert_eq!(host.read(new), "ZWxzZXdoZXJl");
    assert_eq!(host.fails("guest-info", &Value::Null), disabled("guest-info"));
    let after = agent.family();
    for role in ["worker", "opener"] {
        assert_ne!(before[role], after[role], "a fresh {role}");
    }
    for role in ["broker", "spawner"] {
        assert_eq!(before[role], after[role], "the same {role}");
    }
    let story = story(&agent);
    let at = |what: &str| story.iter().rposition(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{story:#?}"));
    let closed = at("guest-file-close done (the policy was reloaded)");
    assert!(closed < at("policy-reloaded") && at("policy-reloaded") < at("process-started"), "{story:#?}");
    assert_eq!(story.iter().filter(|line| *line == "host-connected").count(), 1);
    assert!(!story.iter().any(|line| line == "host-disconnected"));
    // A log that begins now says what is in force.
    fs::rename(home.log(), home.path("log/audit.jsonl.1")).expect("a rotation");
    agent.signal("broker", Signal::SIGHUP);
    let opened = agent.await_record("log-opened", |_| true);
    assert_eq!(opened["postern"]["policy_digest"], ours["policy_digest"]);
    assert_eq!(opened["postern"]["policy_in_force"], ours["policy_in_force"]);
    let started = |role: &str| {
        let records = fs::read_to_string(home.path("log/audit.jsonl.1")).expect("the rotated log");
        let all: Vec<Value> = records.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
        let of = |record: &&Value| record["event"]["action"] == "process-started" && record["process"]["name"] == role;
        all.iter().rfind(of).expect("a start")["postern"]["seccomp"]["sha256"].clone()
    };
    for role in ["worker", "opener"] {
        assert_eq!(opened["postern"]["confinement"][role]["seccomp"]["sha256"], started(role), "{role}");
    }
    verify(&[&home.path("log/audit.jsonl.1"), &home.log()]);
}

fn sha256(home: &Home) -> String {
    let output = Command::new("sha256sum").arg(home.path("policy.toml")).output().expect("sha256sum");
    String::from_utf8(output.stdout).expect("text").split(' ').next().expect("a digest").to_owned()
}

fn a_request_that_is_half_here_is_finished() {
    let home = Home::new();
    let path = home.write("file", b"here");
    let agent = home.start(FILES);
    let mut host = agent.connect();
    host.ping();
    let request = json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": "r" } }).to_string();
    let (first, rest) = request.split_at(20);
    host.send(first.as_bytes());
    let old = agent.process("worker", 0);
    elsewhere(&home);
    home.policy(OTHER);
    let before = last(&agent);
    agent.signal("broker", Signal::SIGHUP);
    eventually("a second worker is there", || (workers(&agent) == 2).then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(outcomes(&agent, before).is_empty(), "the first one is not done");
    // By the old rules, which are in force.
    host.send(rest.as_bytes());
    let reply = host.hear();
    assert!(reply["return"].is_i64(), "{reply}");
    let taken = eventually("the outcome", || outcomes(&agent, before).pop());
    assert_eq!(taken["event"]["action"], "policy-reloaded");
    let granted = agent.await_record("guest-file-open", |record| record["postern"]["stage"] == "granted");
    assert!(number(&granted) < number(&taken));
    assert!(host.open(&path, "r").is_err(), "the next one by the new");
    assert_ne!(agent.process("worker", old), old);
}

fn workers(agent: &crate::support::agent::Agent<'_>) -> usize {
    let spawner = agent.process("spawner", 0);
    let children = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).unwrap_or_default();
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    children.split_ascii_whitespace().filter(|pid| name(pid).contains("worker")).count()
}

/// An opener that does not get on is waited for.
fn an_open_under_way_is_finished() {
    let home = Home::new();
    let path = home.write("file", b"here");
    elsewhere(&home);
    let agent = home.start(FILES);
    let mut host = agent.connect();
    host.ping();
    let opener = Pid::from_raw(agent.process("opener", 0));
    kill(opener, Signal::SIGSTOP).expect("a stopped opener");
    let open = json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": "w" } });
    host.send(open.to_string().as_bytes());
    // The old worker has read it: the record comes before the opener is told.
    agent.await_record("guest-file-open", |record| record["postern"]["stage"] == "asked");
    home.policy(OTHER);
    let before = last(&agent);
    agent.signal("broker", Signal::SIGHUP);
    eventually("a second worker is there", || (workers(&agent) == 2).then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(outcomes(&agent, before).is_empty());
    kill(opener, Signal::SIGCONT).expect("it goes on");
    assert!(host.hear()["return"].is_i64());
    let taken = eventually("the outcome", || outcomes(&agent, before).pop());
    assert_eq!(taken["event"]["action"], "policy-reloaded");
    host.ping();
}

fn drop_ins_count() {
    let home = Home::new();
    let there = elsewhere(&home);
    fs::create_dir(home.path("policy.d")).expect("a directory");
    let agent = home.start(FILES);
    let mut host = agent.connect();
    assert!(host.open(&there, "r").is_err());
    let rule =
        format!("version = 1\n[[files]]\npath = \"{}\"\nrights = [\"read\"]\n", home.path("elsewhere").display());
    fs::write(home.path("policy.d/10-more.toml"), rule).expect("a drop-in");
    assert_eq!(crate::outcome(&agent)["postern"]["file_rules"], 2);
    host.open(&there, "r").expect("the drop-in's rule");
    std::os::unix::fs::symlink("/dev/null", home.path("policy.d/20-mask.toml")).expect("a mask");
    fs::remove_file(home.path("policy.d/10-more.toml")).expect("gone again");
    assert_eq!(crate::outcome(&agent)["postern"]["file_rules"], 1);
    assert!(host.open(&there, "r").is_err());
}

fn other_words_for_the_same_replace_nobody() {
    let home = Home::new();
    let path = home.write("file", b"here");
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let family = agent.family();
    let before = last(&agent);
    agent.signal("broker", Signal::SIGHUP);
    eventually("it says so", || agent.said().contains("the policy has not changed").then_some(()));
    assert!(outcomes(&agent, before).is_empty(), "the same files are no news");
    let record = reload(&agent, &format!("# a remark\n{FILES}"));
    assert!(record["postern"].get("widened").is_none() && record["postern"].get("tightened").is_none(), "{record}");
    assert_eq!(host.read(handle), "aGVyZQ==");
    assert_eq!(agent.family(), family);
}

fn a_thousand_signals_are_a_few_reloads() {
    let home = Home::new();
    let there = elsewhere(&home);
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let began = Instant::now();
    for round in 0..1000 {
        home.policy(if round % 2 == 0 { OTHER } else { FILES });
        agent.signal("broker", Signal::SIGHUP);
        if round % 50 == 0 {
            host.ping();
        }
    }
    // In words of its own: an earlier one of the same rules may be in force, and one
    // of the others under way.
    home.policy(&format!("# the last\n{OTHER}"));
    let last = sha256(&home);
    agent.signal("broker", Signal::SIGHUP);
    eventually("the last one counts", || {
        outcomes(&agent, 0).pop().filter(|record| record["postern"]["policy_digest"] == last.as_str())
    });
    // One a second, and each is one worker and one opener.
    let taken = outcomes(&agent, 0).len() as u64;
    let most = began.elapsed().as_secs() + 2;
    assert!((1..=most).contains(&taken), "{taken} of {most}");
    let workers = agent.records_of("process-started").len() as u64;
    assert!(workers <= 3 + 2 * most, "{workers}");
    println!("1001 signals in {} ms: {taken} outcomes", began.elapsed().as_millis());
    let handle = host.open(&there, "r").expect("it serves");
    assert_eq!(host.read(handle), "ZWxzZXdoZXJl");
}

fn a_reload_while_a_worker_is_born_or_waits_for_its_turn() {
    let home = Home::new();
    let there = elsewhere(&home);
    let agent = home.start(FILES);
    let mut host = agent.connect();
    host.ping();
    let worker = agent.process("worker", 0);
    home.policy(OTHER);
    let before = last(&agent);
    kill(Pid::from_raw(worker), Signal::SIGKILL).expect("a dead worker");
    agent.signal("broker", Signal::SIGHUP);
    let taken = eventually("an outcome", || outcomes(&agent, before).pop());
    assert_eq!(taken["event"]["action"], "policy-reloaded");
    host.open(&there, "r").expect("the new rule");
    // So many deaths that no worker is born for a while.
    let mut last_one = 0;
    let waits = (0..12).any(|_| {
        let deadline = Instant::now() + Duration::from_secs(2);
        let next = loop {
            match agent.family().get("worker").copied().filter(|pid| *pid != last_one) {
                Some(next) => break Some(next),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if let Some(next) = next {
            last_one = next;
            let _ = kill(Pid::from_raw(next), Signal::SIGKILL);
        }
        next.is_none()
    });
    assert!(waits, "the control: births are throttled");
    let asked = Instant::now();
    reload(&agent, FILES);
    host.ping();
    println!("served again {} ms after a reload that found no worker", asked.elapsed().as_millis());
    assert!(host.open(&there, "r").is_err(), "by the new policy");
    verify(&[&home.log()]);
}

fn the_logs_bounds_change_at_once() {
    let home = Home::new();
    let path = home.write("file", b"here");
    let with = |audit: &str| format!("{FILES}[audit]\nheads = []\n{audit}");
    let agent = home.start(&with(""));
    let mut host = agent.connect();
    // As if it had been rotated; a signal has the files counted.
    let rotated = home.path("log/audit.jsonl.7");
    fs::File::create(&rotated).and_then(|file| file.set_len(5 << 20)).expect("a large file");
    let record = reload(&agent, &with("max_bytes = \"4MiB\"\n"));
    assert_eq!(record["postern"]["tightened"], json!(["audit.max_bytes"]), "{record}");
    assert!(host.open(&path, "r").is_err(), "no room any more");
    let record = reload(&agent, &with("max_bytes = \"64MiB\"\n"));
    assert_eq!(record["postern"]["widened"], json!(["audit.max_bytes"]), "{record}");
    host.open(&path, "r").expect("room again");
    fs::remove_file(rotated).expect("it goes");
}

fn without_root_too() {
    let home = Home::unprivileged();
    let path = home.write("file", b"here");
    let mut command = home.command(FILES);
    let user = home.user.expect("a user");
    std::os::unix::fs::chown(&path, Some(user), Some(user)).expect("its owner");
    std::os::unix::fs::chown(home.files(), Some(user), Some(user)).expect("their owner");
    command.env_remove("NOTIFY_SOCKET");
    let agent = home.start_command(command);
    let mut host = agent.connect();
    host.open(&path, "r+").expect("it may be written");
    let record = reload(&agent, &FILES.replace(", \"write\"", ""));
    assert_eq!(record["postern"]["tightened"][0], "files.path", "{record}");
    assert!(host.open(&path, "r+").is_err());
    host.open(&path, "r").expect("and read");
}

fn a_policy_without_files_and_back() {
    let home = Home::new();
    let path = home.write("file", b"here");
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let record = reload(&agent, "profile = \"minimal\"\n");
    assert_eq!(record["postern"]["surplus"], json!(["opening files"]), "{record}");
    assert_eq!(host.fails("guest-file-open", &json!({ "path": path, "mode": "r" })), disabled("guest-file-open"));
    eventually("there is no opener", || (!agent.family().contains_key("opener")).then_some(()));
    reload(&agent, FILES);
    host.open(&path, "r").expect("the rule is back");
}
