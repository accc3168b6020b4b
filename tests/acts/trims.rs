//! What else goes on while an act runs, and what it refuses.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use postern_core::sys::fs::FITRIM;
use serde_json::{Value, json};

use crate::beside::{NOTHING, POLICY, no_vcpu};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::{Disk, Mounted};
use crate::support::process::is_inside_ioctl;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("all_else_is_answered_while_a_trim_runs", all_else_is_answered_while_a_trim_runs),
    ("who_gave_a_trim_up_never_sees_its_reply", who_gave_a_trim_up_never_sees_its_reply),
    ("a_worker_that_dies_is_owed_nothing_and_the_trim_ends", a_worker_that_dies_is_owed_nothing),
    ("while_frozen_nothing_is_trimmed", while_frozen_nothing_is_trimmed),
];

/// A filesystem in a file of another one, an xfs: a hole that is to be punched into
/// that file waits for as long as somebody else has the lower one frozen. (An ext4
/// does not hold up a loop device.) Dropped in this order: a frozen lower one would
/// hold up the unmounting of the upper.
struct Stuck {
    lower: Mounted,
    upper: Mounted,
    _disks: [Disk; 2],
}

impl Stuck {
    fn new() -> Self {
        let below = Disk::new("xfs", Path::new("/lower.img"), 400);
        let lower = below.mount("/lower");
        let above = Disk::small("ext4", "/lower/upper.img");
        let upper = above.mount("/upper");
        fs::write(upper.path("junk"), vec![0x5a; 8 << 20]).expect("written");
        upper.sync();
        fs::remove_file(upper.path("junk")).expect("removed");
        upper.sync();
        lower.sync();
        Self { upper, lower, _disks: [above, below] }
    }

    /// Begins a trim that cannot end.
    fn begin(&self, agent: &Agent<'_>, host: &mut Host) {
        self.lower.freeze();
        host.send(br#"{"execute": "guest-fstrim"}"#);
        eventually("the trim is stuck", || is_inside_ioctl(agent.child.id(), FITRIM, &self.upper.at).then_some(()));
    }
}

fn is_whole_trim(reply: &Value) -> bool {
    let paths = reply["return"]["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = paths.iter().filter_map(|one| one["path"].as_str()).collect();
    names == ["/upper", "/lower"]
}

fn all_else_is_answered_while_a_trim_runs() {
    let home = Home::new();
    let file = home.write("a", b"content").display().to_string();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let stuck = Stuck::new();
    stuck.begin(&agent, &mut host);
    host.ping();
    assert_eq!(host.returns("guest-fsfreeze-status", &NOTHING), "thawed");
    let handle = host.open(&file, "r").expect("a handle");
    assert_eq!(host.read(handle), "Y29udGVudA==");
    host.close(handle);
    // A freeze and another act wait, as behind stock.
    host.send(br#"{"execute": "guest-set-vcpus", "arguments": {"vcpus": []}, "id": "vcpus"}"#);
    host.send(br#"{"execute": "guest-fsfreeze-freeze", "id": "freeze"}"#);
    host.ping();
    let asked = |action: &str| agent.records_of(action).len();
    assert_eq!([asked("guest-fstrim"), asked("guest-fsfreeze-freeze"), asked("guest-set-vcpus")], [1, 0, 0]);
    assert!(stuck.lower.thaw());
    let trimmed = host.hear();
    assert!(is_whole_trim(&trimmed), "{trimmed}");
    assert_eq!(host.hear(), json!({ "return": 0, "id": "vcpus" }));
    assert_eq!(host.hear(), json!({ "return": 2, "id": "freeze" }));
    assert_eq!(host.returns("guest-fsfreeze-thaw", &NOTHING), 2);
    // A thaw waits for no record.
    agent.await_record("guest-fsfreeze-thaw", |record| record["postern"]["stage"] == "done");
    let order: Vec<String> = agent
        .records()
        .iter()
        .filter(|record| record["postern"]["stage"].is_string() && record["event"]["category"] == json!(["host"]))
        .map(|record| format!("{} {}", record["event"]["action"], record["postern"]["stage"]).replace('"', ""))
        .collect();
    let due = [
        "guest-fstrim asked",
        "guest-fstrim done",
        "guest-set-vcpus asked",
        "guest-set-vcpus done",
        "guest-fsfreeze-freeze asked",
        "guest-fsfreeze-freeze done",
        "guest-fsfreeze-thaw done",
    ];
    assert_eq!(order, due);
}

fn who_gave_a_trim_up_never_sees_its_reply() {
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let stuck = Stuck::new();
    stuck.begin(&agent, &mut host);
    // What waits behind it is dropped too: done late it would be unasked for.
    host.send(br#"{"execute": "guest-fsfreeze-freeze"}"#);
    host.send(br#"{"execute": "guest-sync", "arguments": {"id": 7}}"#);
    assert_eq!(host.hear()["return"], 7);
    // The next host is owed nothing either, and what it asks for waits.
    drop(host);
    let mut host = agent.connect();
    host.ping();
    host.send(br#"{"execute": "guest-set-vcpus", "arguments": {"vcpus": []}}"#);
    host.ping();
    assert!(stuck.lower.thaw());
    assert_eq!(host.hear(), json!({ "return": 0 }));
    assert_eq!(host.returns("guest-fsfreeze-status", &NOTHING), "thawed");
    assert!(agent.records_of("guest-fsfreeze-freeze").is_empty());
    let stages = |action: &str| -> Vec<String> {
        agent.records_of(action).iter().filter_map(|one| one["postern"]["stage"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(stages("guest-fstrim"), ["asked", "done"], "it was done all the same");
}

fn a_worker_that_dies_is_owed_nothing() {
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let stuck = Stuck::new();
    stuck.begin(&agent, &mut host);
    let worker = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    agent.process("worker", worker);
    host.ping();
    // The new worker knows of no act; the broker does.
    let why = host.fails("guest-set-vcpus", &no_vcpu());
    assert!(why.ends_with("is under way"), "{why}");
    let refused = agent.await_record("guest-set-vcpus", |record| record["postern"]["stage"] == "refused");
    assert_eq!(refused["event"]["reason"], why);
    let why = host.fails("guest-fsfreeze-freeze", &NOTHING);
    assert!(why.ends_with("is under way"), "{why}");
    assert!(stuck.lower.thaw());
    agent.await_record("guest-fstrim", |record| record["postern"]["stage"] == "done");
    host.ping();
    assert_eq!(host.returns("guest-set-vcpus", &no_vcpu()), 0);
}

fn while_frozen_nothing_is_trimmed() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    assert_eq!(host.returns("guest-fsfreeze-freeze", &NOTHING), 1);
    for (command, arguments) in
        [("guest-fstrim", NOTHING), ("guest-suspend-ram", NOTHING), ("guest-set-vcpus", no_vcpu())]
    {
        let reply = host.ask(command, &arguments);
        assert_eq!(reply["error"]["class"], "CommandNotFound", "{reply}");
    }
    assert_eq!(host.returns("guest-fsfreeze-thaw", &NOTHING), 1);
    let trimmed = host.returns("guest-fstrim", &NOTHING);
    assert_eq!(trimmed["paths"][0]["path"], "/disk", "{trimmed}");
    assert_eq!(trimmed["paths"].as_array().map(Vec::len), Some(1), "{trimmed}");
}
