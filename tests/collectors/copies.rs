//! What a log server holds is the guest's log, byte for byte: over rotations, names
//! that a host chose, and collectors that end; so it can be verified there, and
//! shows what root of the guest rewrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use postern_core::audit::Hash;
use serde_json::Value;

use crate::load::{self, POLICY, last_line, records, rotate};
use crate::rsyslog::{DEBIANS, Place, Rsyslog};
use crate::support::agent::{Agent, BINARY, Home, eventually};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("rsyslog_copies_every_record_over_rotations", rsyslog_copies_every_record_over_rotations),
    ("what_a_restart_of_either_end_loses_shows", what_a_restart_of_either_end_loses_shows),
    ("rsyslog_sends_nothing_twice_that_an_orderly_end_left", rsyslog_sends_nothing_twice),
    ("a_log_server_shows_a_rewritten_tail", a_log_server_shows_a_rewritten_tail),
    ("rsyslog_sends_to_no_other_server", rsyslog_sends_to_no_other_server),
    ("rsyslog_needs_to_read_and_no_more", rsyslog_needs_to_read_and_no_more),
    ("debians_rsyslog_takes_both_configurations", debians_rsyslog_takes_both_configurations),
];

/// Whether a log is whole, and what `postern audit verify` says; arguments go before the files.
pub(crate) fn verify(files: &[&Path]) -> Result<String, String> {
    let output = Command::new(BINARY).args(["audit", "verify"]).args(files).output().expect("postern audit verify");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// Of a collector that is not root.
const ACCOUNT: u32 = 71_000;

/// Ends the agent in order; its last record is in the log then.
fn end(agent: &mut Agent<'_>) {
    agent.signal("broker", Signal::SIGTERM);
    agent.ended();
}

/// All files of a log as one.
fn whole(files: &[PathBuf]) -> String {
    files.iter().map(|file| fs::read_to_string(file).expect("a log")).collect()
}

/// Tells the load to end, also where a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The refusals in a log.
fn refusals(log: &str) -> String {
    let is = |line: &&str| serde_json::from_str::<Value>(line).expect("JSON")["postern"]["stage"] == "refused";
    log.split_inclusive('\n').filter(is).collect()
}

/// Lets a host work while `act` is under way, on a log that grows meanwhile; then ends the agent.
fn under_load(home: &Home, agent: &mut Agent<'_>, act: impl FnOnce(&Agent<'_>)) {
    let path = home.write("plain", b"content");
    let host = agent.connect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| load::run(host, &path, &stop));
        let stop = Stop(&stop);
        act(agent);
        drop(stop);
        load.join().expect("the load");
    });
    end(agent);
}

/// Waits until the log has so many bytes.
fn grown(home: &Home, bytes: u64) {
    eventually("the log grows", || fs::metadata(home.log()).is_ok_and(|log| log.len() > bytes).then_some(()));
}

fn rsyslog_copies_every_record_over_rotations() {
    let home = Home::new();
    let place = Place::new(&home);
    let (_receiver, sender) = (place.receiver(), place.sender());
    let mut agent = home.start(POLICY);
    let mut files = Vec::new();
    load::names(&home, &mut agent.connect());
    under_load(&home, &mut agent, |agent| {
        for number in 0..4 {
            grown(&home, 200_000);
            files.push(rotate(agent, number));
            // rsyslog sees that a file was moved only before the next one is: a day's
            // time for logrotate, a moment here.
            let last = last_line(&files[number]);
            eventually("rsyslog has read it to its end", || {
                fs::read_to_string(place.copy()).is_ok_and(|copy| copy.contains(&last)).then_some(())
            });
        }
    });
    files.push(home.log());
    let sent = whole(&files);
    place.await_line(&last_line(&home.log()));
    sender.stop();
    let copy = fs::read_to_string(place.copy()).expect("the copy");
    assert_eq!(copy.lines().count(), sent.lines().count());
    assert!(copy == sent, "the copy differs");
    verify(&[&place.copy()]).expect("the copy can be verified");
    // The control: among them is what rsyslog would have cut or changed.
    let lengths = sent.lines().map(str::len).max();
    assert!(lengths.is_some_and(|longest| longest > 16 << 10), "{lengths:?}");
    for mark in ["path_bytes", "\\u001b", "\\u2028", "日本語", "@cee:", "<13>1 "] {
        assert!(copy.contains(mark), "{mark}");
    }
    // And the fields are fields there.
    let refused = refusals(&sent);
    assert!(refused.lines().count() > 100);
    assert!(fs::read_to_string(place.refused()).expect("the chosen") == refused, "chosen by a field");
    println!("    {} records over {} files", sent.lines().count(), files.len());
}

/// What happens to which end while records come.
fn restart(act: impl FnOnce(&Place, Rsyslog, Rsyslog) -> (Rsyslog, Rsyslog)) -> (String, String) {
    let home = Home::new();
    let place = Place::new(&home);
    let (receiver, sender) = (place.receiver(), place.sender());
    let mut agent = home.start(POLICY);
    let mut ends = None;
    under_load(&home, &mut agent, |_| {
        grown(&home, 200_000);
        eventually("there is a copy", || fs::metadata(place.copy()).is_ok().then_some(()));
        ends = Some(act(&place, receiver, sender));
        grown(&home, fs::metadata(home.log()).expect("the log").len() + 200_000);
    });
    place.await_line(&last_line(&home.log()));
    let (_receiver, sender) = ends.expect("both ends");
    sender.stop();
    let text = |path: &Path| fs::read_to_string(path).expect("a log");
    (text(&home.log()), text(&place.copy()))
}

/// Each line where it came first.
fn once(copy: &str) -> String {
    let mut seen = std::collections::BTreeSet::new();
    copy.split_inclusive('\n').filter(|line| seen.insert(*line)).collect()
}

fn what_a_restart_of_either_end_loses_shows() {
    /// What is done to receiver and sender, and what stands in their place.
    type Act = fn(&Place, Rsyslog, Rsyslog) -> (Rsyslog, Rsyslog);
    let ends: [(&str, Act); 3] = [
        ("a server that restarts", |place, receiver, sender| {
            receiver.stop();
            (place.receiver(), sender)
        }),
        ("a server that is killed", |place, receiver, sender| {
            receiver.kill();
            (place.receiver(), sender)
        }),
        ("a sender that is killed", |place, receiver, sender| {
            sender.kill();
            (receiver, place.sender())
        }),
    ];
    for (what, act) in ends {
        let (log, copy) = restart(act);
        let kept = once(&copy);
        let twice = copy.lines().count() - kept.lines().count();
        println!("    {what}: {} records, {} came, {twice} twice", log.lines().count(), kept.lines().count());
        assert!(kept.lines().all(|line| log.contains(line)), "{what}: what came is what was sent");
        // A killed sender loses what was on its way: then the copy shows it.
        assert!(kept == log || what == "a sender that is killed", "{what}: something is missing");
        fs::write("/tmp/kept.jsonl", &kept).expect("what was kept");
        let verified = verify(&[Path::new("/tmp/kept.jsonl")]);
        assert_eq!(verified.is_ok(), kept == log, "{what}: {verified:?}");
    }
}

fn rsyslog_sends_nothing_twice() {
    let (log, copy) = restart(|place, receiver, sender| {
        sender.stop();
        (receiver, place.sender())
    });
    assert!(copy == log, "{} records of {}", copy.lines().count(), log.lines().count());
}

/// What root of the guest can do: another word in one record, and a chain that fits. Which record.
pub(crate) fn rewrite(log: &Path, from: &str, to: &str) -> usize {
    let text = fs::read_to_string(log).expect("the log");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| line.contains(from)).expect("a record of it");
    lines[at] = lines[at].replace(from, to);
    for next in at + 1..lines.len() {
        let old = lines[next].rsplit_once("\"previous\":\"").expect("a chain").0.to_owned();
        lines[next] = format!("{old}\"previous\":\"{}\"}}}}", Hash::of(lines[next - 1].as_bytes()));
    }
    fs::write(log, lines.join("\n") + "\n").expect("the log");
    at
}

fn a_log_server_shows_a_rewritten_tail() {
    let home = Home::new();
    let place = Place::new(&home);
    let (_receiver, _sender) = (place.receiver(), place.sender());
    let mut agent = home.start(POLICY);
    let mut host = agent.connect();
    for _ in 0..20 {
        host.open("/etc/shadow", "r").expect_err("outside of the policy");
    }
    end(&mut agent);
    place.await_line(&last_line(&home.log()));
    let copy = fs::read_to_string(place.copy()).expect("the copy");
    let before = verify(&[&home.log()]).expect("the log is whole");
    let at = rewrite(&home.log(), "/etc/shadow", "/etc/motd");
    let after = verify(&[&home.log()]).expect("the guest alone cannot tell: the chain fits");
    assert_ne!(before, after, "another head");
    verify(&[&place.copy()]).expect("what the server has is whole");
    let now = fs::read_to_string(home.log()).expect("the log");
    let first = copy.lines().zip(now.lines()).position(|(kept, shown)| kept != shown);
    assert_eq!(first, Some(at), "the first record that differs is the one that was edited");
    assert_eq!(records(&place.copy())[at]["postern"]["requested"], "/etc/shadow");
    assert_eq!(records(&home.log())[at]["postern"]["requested"], "/etc/motd");
}

fn rsyslog_sends_to_no_other_server() {
    let home = Home::new();
    let place = Place::new(&home);
    // One with a certificate of the same authority, but not the log server's.
    place.mistake_for("server", "guest");
    let (_receiver, _sender) = (place.receiver(), place.sender());
    let mut agent = home.start(POLICY);
    load::names(&home, &mut agent.connect());
    end(&mut agent);
    eventually("rsyslog says that this is not the server", || {
        place.said().contains("authentication error 'no permited name found'").then_some(())
    });
    assert!(!place.copy().exists(), "nothing was sent");
}

fn rsyslog_needs_to_read_and_no_more() {
    let home = Home::new();
    let place = Place::new(&home);
    let _receiver = place.receiver();
    let mut agent = home.start(POLICY);
    load::names(&home, &mut agent.connect());
    end(&mut agent);
    place.give_to(ACCOUNT);
    let without = place.sender_as(ACCOUNT, "");
    eventually("rsyslog says that it may not", || place.said().contains("Permission denied").then_some(()));
    without.stop();
    assert!(!place.copy().exists());
    let _with = place.sender_as(ACCOUNT, "+dac_read_search");
    place.await_line(&last_line(&home.log()));
    assert_eq!(whole(&[home.log()]), whole(&[place.copy()]));
}

fn debians_rsyslog_takes_both_configurations() {
    let home = Home::new();
    let place = Place::new(&home);
    fs::create_dir_all("/etc/rsyslog.d").expect("a directory");
    fs::create_dir_all("/var/spool/rsyslog").expect("a directory");
    // Accounts that it names.
    fs::write("/etc/passwd", "root:x:0:0::/root:/bin/sh\n").expect("a file");
    fs::write("/etc/group", "root:x:0:\nadm:x:4:\n").expect("a file");
    for configuration in place.configurations() {
        fs::copy(configuration, "/etc/rsyslog.d/10-postern.conf").expect("a configuration");
        let checked = Command::new("/bin/rsyslogd").args(["-N1", "-f", DEBIANS]).output().expect("rsyslogd");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && !said.contains("error"), "{said}");
    }
    // The control: it was read.
    fs::write("/etc/rsyslog.d/10-postern.conf", "global(nothing=\"of the kind\")").expect("a configuration");
    let checked = Command::new("/bin/rsyslogd").args(["-N1", "-f", DEBIANS]).output().expect("rsyslogd");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(said.contains("error"), "{said}");
}
