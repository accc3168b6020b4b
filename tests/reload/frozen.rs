//! Reloads while filesystems are frozen, or on their way to be.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::scene::{freeze, policy, status, story, thaw, with};
use crate::support::agent::{Home, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;
use crate::{outcome, reload};

pub(crate) const TESTS: &[Test] = &[
    ("what_only_tightens_is_taken_while_frozen", what_only_tightens_is_taken_while_frozen),
    ("what_widens_is_not_taken_while_frozen", what_widens_is_not_taken_while_frozen),
    ("less_privilege_needed_is_said", less_privilege_needed_is_said),
];

fn what_only_tightens_is_taken_while_frozen() {
    let home = Home::new();
    let path = home.write("file", b"here");
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let agent = home.start(&with("[freeze]\nlimit = \"10m\"\n"));
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    assert_eq!(freeze(&mut host), 1);
    let worker = agent.process("worker", 0);
    let tighter = policy().replace("\"read\", \"write\", \"create\"", "\"read\"");
    home.policy(&format!("{tighter}[freeze]\nlimit = \"9m\"\n"));
    agent.signal("broker", Signal::SIGHUP);
    let next = agent.process("worker", worker);
    assert_ne!(next, worker);
    // Nothing is written, nothing is thawed.
    assert!(mounted.is_frozen());
    assert_eq!(status(&mut host), "frozen");
    assert!(agent.records_of("policy-reloaded").is_empty(), "the log is held");
    assert!(host.open(&path, "r").is_err(), "not while frozen");
    assert_eq!(thaw(&mut host), 1);
    assert!(host.open(&path, "r+").is_err(), "the new policy is in force");
    host.open(&path, "r").expect("a handle");
    let gone = host.fails("guest-file-read", &serde_json::json!({ "handle": handle }));
    assert_eq!(gone, format!("handle '{handle}' has not been found"));
    let story = story(&agent);
    let at = |what: &str| story.iter().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{story:#?}"));
    let reloaded = at("policy-reloaded");
    assert!(at("guest-fsfreeze-freeze done") < reloaded && reloaded < at("guest-fsfreeze-thaw done"), "{story:#?}");
    // The limit that the reload brought thaws by itself.
    reload(&agent, &format!("{tighter}[freeze]\nlimit = \"1s\"\n"));
    assert_eq!(freeze(&mut host), 1);
    eventually("the limit thaws", || (!mounted.is_frozen()).then_some(()));
}

fn what_widens_is_not_taken_while_frozen() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    let worker = agent.process("worker", 0);
    let wider = policy().replace("\"powerdown\"", "\"powerdown\", \"halt\"");
    // The second: nobody could thaw any more.
    let thawless = policy().replace(
        "\"guest-fsfreeze-freeze\", \"guest-fsfreeze-freeze-list\", \"guest-fsfreeze-thaw\"",
        "\"guest-ping\"",
    );
    for (text, times) in [(&wider, 1), (&thawless, 2)] {
        home.policy(text);
        agent.signal("broker", Signal::SIGHUP);
        // Its attempts are a second apart.
        std::thread::sleep(Duration::from_millis(1200));
        assert!(mounted.is_frozen());
        assert_eq!(status(&mut host), "frozen");
        assert_eq!(agent.process("worker", 0), worker, "{times}");
    }
    assert_eq!(thaw(&mut host), 1);
    let kept = eventually("both were recorded", || {
        let kept = agent.records_of("policy-kept");
        (kept.len() == 2).then_some(kept)
    });
    for record in &kept {
        assert!(record["event"]["reason"].as_str().expect("a reason").contains("frozen"), "{record}");
    }
    assert!(kept[1]["event"]["reason"].as_str().expect("a reason").contains("could not thaw"), "{kept:?}");
    // Thawed, it is taken.
    assert_eq!(outcome(&agent)["event"]["action"], "policy-reloaded");
    host.ping();
}

fn less_privilege_needed_is_said() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let record = reload(&agent, crate::FILES);
    let surplus = record["postern"]["surplus"].as_array().expect("what is left").clone();
    assert_eq!(surplus, ["freezing", "shutting down"], "{record}");
    host.ping();
    // It is still there for the way back.
    let record = reload(&agent, &policy());
    assert!(record["postern"].get("surplus").is_none(), "{record}");
    assert_eq!(freeze(&mut host), 1);
    assert!(mounted.is_frozen());
    assert_eq!(thaw(&mut host), 1);
}
