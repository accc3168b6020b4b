//! The broker or the worker killed while filesystems are frozen.

use std::fs::{self, File};
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scene::{
    disabled, files_on, freeze, kill_broker, open_that_waits, own_directory, policy, start_quietly, start_quietly_by,
    status, story, story_of_freezes, thaw, with,
};
use crate::support::agent::{Home, eventually, lives};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_broker_is_followed_by_one_that_thaws", a_killed_broker_is_followed_by_one_that_thaws),
    ("one_that_comes_after_the_time_limit_thaws_at_once", one_that_comes_after_the_time_limit_thaws_at_once),
    ("one_that_may_not_thaw_does_not_start", one_that_may_not_thaw_does_not_start),
    ("a_worker_killed_while_frozen_is_replaced", a_worker_killed_while_frozen_is_replaced),
    ("an_opener_that_cannot_die_keeps_nobody_from_starting", an_opener_that_cannot_die_keeps_nobody_from_starting),
];

/// A disk with the home's log and state directory on it.
fn all_on_one(home: &Home) -> (Disk, [Mounted; 3]) {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let log = own_directory(home, &mounted, "log");
    let state = own_directory(home, &mounted, "state");
    (disk, [state, log, mounted])
}

fn a_killed_broker_is_followed_by_one_that_thaws() {
    let home = Home::new();
    let (_disk, [_state, _log, mounted]) = all_on_one(&home);
    let other = Disk::small("xfs", "/other.img");
    let other = other.mount("/other");
    // What it tells its operator goes there too.
    let stderr = File::create(mounted.path("stderr")).expect("a file for stderr");
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    assert_eq!(freeze(&mut host), 2);
    kill_broker(agent);
    assert!(mounted.is_frozen() && other.is_frozen());
    let mut command = home.command(&policy());
    command.stderr(stderr);
    let (agent, mut host) = start_quietly_by(&home, command);
    assert!(mounted.is_frozen() && other.is_frozen(), "starting thaws nothing");
    assert_eq!(status(&mut host), "frozen");
    assert_eq!(host.fails("guest-fsfreeze-freeze", &Value::Null), disabled("guest-fsfreeze-freeze"));
    assert!(host.open(&path, "r").is_err());
    assert_eq!(thaw(&mut host), 2);
    assert!(!mounted.is_frozen() && !other.is_frozen());
    assert_eq!(status(&mut host), "thawed");
    assert!(!home.path("state/frozen").exists());
    eventually("it tells its operator", || {
        let said = fs::read_to_string(mounted.path("stderr")).expect("stderr");
        said.contains("an earlier run left 2 filesystems frozen").then_some(())
    });
    let again = host.open(&path, "r").expect("all commands again");
    assert!(again > handle, "handle {again} after {handle}");
    host.ping();
    agent.await_record("guest-file-open", |record| record["postern"]["handle"] == again);
    let mut story = story(&agent);
    story.retain(|line| !line.starts_with("process-started"));
    assert_eq!(
        story,
        [
            "log-opened (started)",
            "host-connected",
            "guest-file-open granted",
            "guest-fsfreeze-freeze asked",
            // What the first one held back died with it; what the second one
            // held back did not.
            "log-opened (started)",
            "found-frozen /other /disk (an earlier run froze these, or was about to)",
            "host-connected",
            "host-disconnected",
            "host-connected",
            "guest-fsfreeze-freeze refused (not while filesystems are frozen)",
            "guest-file-open refused (not while filesystems are frozen)",
            "guest-fsfreeze-thaw done /disk /other (asked by the host)",
            "guest-file-open granted",
        ]
    );
    assert_eq!(freeze(&mut host), 2, "and again");
    assert_eq!(thaw(&mut host), 2);
}

fn one_that_comes_after_the_time_limit_thaws_at_once() {
    let home = Home::new();
    let (_disk, [_state, _log, mounted]) = all_on_one(&home);
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    kill_broker(agent);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let (agent, mut host) = start_quietly(&home, &with("[freeze]\nlimit = \"1s\"\n"));
    eventually("the time limit thaws", || (status(&mut host) == "thawed").then_some(()));
    assert!(!mounted.is_frozen());
    assert_eq!(thaw(&mut host), 0);
    let story = story_of_freezes(&agent);
    assert_eq!(story[1], "guest-fsfreeze-thaw done /disk (the time limit passed)", "{story:?}");
}

fn one_that_may_not_thaw_does_not_start() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    kill_broker(agent);
    let status = home.command("profile = \"minimal\"").status().expect("the agent");
    assert_eq!(status.code(), Some(1));
    let said = fs::read_to_string(home.path("stderr")).expect("stderr");
    assert!(said.contains("fsfreeze --unfreeze"), "it says what to do: {said}");
    assert!(mounted.is_frozen());
    let (_agent, mut host) = start_quietly(&home, &policy());
    assert_eq!(thaw(&mut host), 1);
}

fn a_worker_killed_while_frozen_is_replaced() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    let first = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    host.ping();
    assert!(!lives(first));
    assert!(mounted.is_frozen());
    assert_eq!(status(&mut host), "frozen");
    assert_eq!(host.open(&path, "r"), Err(disabled("guest-file-open")));
    // The host asks for a thaw, and the worker dies before it is told.
    let second = agent.process("worker", first);
    assert_eq!(thaw(&mut host), 1);
    assert_eq!(status(&mut host), "thawed");
    host.open(&path, "r").expect("all commands again");
    agent.signal("worker", Signal::SIGKILL);
    agent.process("worker", second);
    host.open(&path, "r").expect("and from the next worker");
    let story = story(&agent);
    let died = story.iter().filter(|line| line.starts_with("process-died")).count();
    assert_eq!(died, 2, "{story:?}");
    assert!(Path::new("/proc").join(agent.pid().to_string()).exists());
}

/// One that creates a file where somebody else has frozen is killed in vain
/// until the thaw; the next agent's account is its account.
fn an_opener_that_cannot_die_keeps_nobody_from_starting() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let _files = files_on(&home, &mounted);
    let agent = home.start(&policy());
    let mut host = agent.connect();
    mounted.freeze();
    let opener = open_that_waits(&agent, &mut host);
    drop(agent);
    let (_agent, mut host) = start_quietly(&home, &policy());
    assert!(lives(opener), "it is still there");
    host.ping();
    assert!(mounted.thaw());
    eventually("the opener ends", || (!lives(opener)).then_some(()));
}
