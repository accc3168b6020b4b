//! What a broker has for its acts, under which policy.

use std::collections::BTreeSet;
use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::beside::{NOTHING, POLICY, no_vcpu};
use crate::support::agent::{Agent, Home, eventually};
use crate::support::cell;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("descriptors_and_capabilities_follow_the_policy", descriptors_and_capabilities_follow_the_policy),
    ("a_policy_that_newly_allows_an_act_takes_a_new_start", a_policy_that_newly_allows_an_act_takes_a_new_start),
    ("without_room_for_a_record_nothing_is_done", without_room_for_a_record_nothing_is_done),
    ("acts_are_as_many_in_a_second_as_the_policy_says", acts_are_as_many_in_a_second_as_the_policy_says),
    ("without_root_nothing_is_done", without_root_nothing_is_done),
];

/// What the broker has open below /sys, with `r` or `rw`.
fn held(agent: &Agent<'_>) -> BTreeSet<(String, &'static str)> {
    let process = format!("/proc/{}", agent.pid());
    let entries = fs::read_dir(format!("{process}/fd")).expect("its descriptors").flatten();
    let found = entries.filter_map(|entry| {
        let path = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
        let info = fs::read_to_string(format!("{process}/fdinfo/{}", entry.file_name().to_str()?)).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"))?.to_owned();
        let access = if flags.ends_with('2') { "rw" } else { "r" };
        path.starts_with("/sys/").then_some((path, access))
    });
    found.collect()
}

fn capabilities(agent: &Agent<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("CapEff");
    u64::from_str_radix(line, 16).expect("a number")
}

fn descriptors_and_capabilities_follow_the_policy() {
    /// `CAP_DAC_READ_SEARCH` and `CAP_SYS_ADMIN`, linux/capability.h.
    const TRIMS: u64 = 1 << 2 | 1 << 21;
    cell::sleepless();
    fs::write("/sys/power/disk", "[platform] suspend\n").expect("a file");
    let numbered = |directory: &str, prefix: &str, file: &str| -> BTreeSet<(String, &'static str)> {
        let entries = fs::read_dir(format!("/sys/devices/system/{directory}")).into_iter().flatten().flatten();
        let of = entries.filter(|entry| {
            let name = entry.file_name().into_string().unwrap_or_default();
            name.strip_prefix(prefix).is_some_and(|digits| digits.parse::<u32>().is_ok())
        });
        of.map(|entry| entry.path().join(file))
            .filter(|path| path.exists())
            .map(|path| (path.display().to_string(), "rw"))
            .collect()
    };
    let (cpus, blocks) = (numbered("cpu", "cpu", "online"), numbered("memory", "memory", "state"));
    let power = |files: &[(&str, &'static str)]| -> BTreeSet<(String, &'static str)> {
        files.iter().map(|&(file, access)| (format!("/sys/power/{file}"), access)).collect()
    };
    let cases: [(&str, BTreeSet<_>, u64); 8] = [
        ("guest-ping", BTreeSet::new(), 0),
        ("guest-fsfreeze-status", BTreeSet::new(), 0),
        ("guest-fstrim", BTreeSet::new(), TRIMS),
        ("guest-suspend-ram", power(&[("state", "rw")]), 0),
        ("guest-suspend-disk", power(&[("state", "rw"), ("disk", "r")]), 0),
        ("guest-suspend-hybrid", power(&[("state", "rw"), ("disk", "rw")]), 0),
        ("guest-set-vcpus", cpus, 0),
        ("guest-set-memory-blocks", blocks, 0),
    ];
    for (command, due, capable) in cases {
        let home = Home::new();
        let agent = home.start(&format!("profile = \"minimal\"\n[commands]\nallow = [\"{command}\"]\n"));
        assert_eq!(held(&agent), due, "{command}");
        assert_eq!(capabilities(&agent), capable, "{command}");
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("its threads").flatten();
        let names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
        let acts = names.filter(|name| name.trim_end() == "acts").count();
        assert_eq!(acts, usize::from(!matches!(command, "guest-ping" | "guest-fsfreeze-status")), "{command}");
        for role in ["worker", "spawner"] {
            let entries = fs::read_dir(format!("/proc/{}/fd", agent.process(role, 0))).expect("its descriptors");
            let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
            assert!(links.into_iter().all(|link| !link.starts_with("/sys")), "{command}: the {role} has it");
        }
    }
}

fn a_policy_that_newly_allows_an_act_takes_a_new_start() {
    cell::sleepless();
    let home = Home::new();
    let allow = |commands: &str| format!("profile = \"minimal\"\n[commands]\nallow = [{commands}]\n");
    let agent = home.start(&allow("\"guest-set-vcpus\""));
    let mut host = agent.connect();
    for (number, command) in ["fstrim", "suspend-ram", "set-memory-blocks"].into_iter().enumerate() {
        home.policy(&allow(&format!("\"guest-set-vcpus\", \"guest-{command}\"")));
        agent.signal("broker", Signal::SIGHUP);
        eventually("it is kept", || (agent.records_of("policy-kept").len() > number).then_some(()));
        let kept = agent.records_of("policy-kept").pop().expect("a record");
        let restart = kept["postern"]["restart"].as_array().expect("keys").clone();
        assert!(restart.contains(&json!("commands.allow")), "{kept}");
        let reply = host.ask(&format!("guest-{command}"), &NOTHING);
        assert_eq!(reply["error"]["class"], "CommandNotFound", "{reply}");
    }
    // What it has it keeps; what is taken away goes at once.
    assert_eq!(host.returns("guest-set-vcpus", &no_vcpu()), 0);
    home.policy(&allow(""));
    agent.signal("broker", Signal::SIGHUP);
    let reloaded = agent.await_record("policy-reloaded", |_| true);
    assert_eq!(reloaded["postern"]["surplus"], json!(["switching processors"]));
    eventually("it is gone", || {
        let reply = host.ask("guest-set-vcpus", &no_vcpu());
        (reply["error"]["class"] == "CommandNotFound").then_some(())
    });
}

fn without_room_for_a_record_nothing_is_done() {
    let home = Home::new();
    let at = home.path("log");
    fs::create_dir(&at).expect("a directory");
    let options = format!("size=64k,mode=700,uid={},gid={}", home.broker, home.broker);
    mount(Some("small"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).expect("a tmpfs");
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    assert_eq!(host.returns("guest-set-vcpus", &no_vcpu()), 0);
    fs::write(at.join("filler"), vec![0; 128 << 10]).expect_err("it is full now");
    // A page may have room for some more.
    let mut last = String::new();
    eventually("it refuses", || {
        let reply = host.ask("guest-set-vcpus", &no_vcpu());
        reply["error"]["desc"].as_str().unwrap_or_default().clone_into(&mut last);
        (last == "the audit log takes no records").then_some(())
    });
    let before = agent.records_of("guest-set-vcpus").len();
    assert_eq!(host.fails("guest-fstrim", &NOTHING), last);
    host.ping();
    assert_eq!(agent.records_of("guest-set-vcpus").len(), before);
    fs::remove_file(at.join("filler")).expect("removed");
    eventually("it acts again", || {
        let reply = host.ask("guest-set-vcpus", &no_vcpu());
        (reply["return"] == 0).then_some(())
    });
}

fn acts_are_as_many_in_a_second_as_the_policy_says() {
    let home = Home::new();
    let agent = home.start(&format!("{POLICY}[limits]\nacts = 1\n"));
    let mut host = agent.connect();
    let replies: Vec<_> = (0..20).map(|_| host.ask("guest-set-vcpus", &no_vcpu())).collect();
    let refused: Vec<&str> = replies.iter().filter_map(|reply| reply["error"]["desc"].as_str()).collect();
    assert!(replies[0]["return"] == 0 && !refused.is_empty(), "{replies:?}");
    let due = "guest-set-vcpus: more than 1 requests in a second (limits.acts of the guest's policy)";
    assert!(refused.iter().all(|why| *why == due), "{refused:?}");
    let counted = agent.await_record("limited", |_| true);
    assert!(counted["postern"]["counts"]["guest-set-vcpus"].is_u64(), "{counted}");
    // Another command has its own number.
    assert!(host.ask("guest-set-memory-blocks", &json!({ "mem-blks": [] })).get("return").is_some());
}

fn without_root_nothing_is_done() {
    let home = Home::unprivileged();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    for (command, arguments) in
        [("guest-fstrim", NOTHING), ("guest-suspend-ram", NOTHING), ("guest-set-vcpus", no_vcpu())]
    {
        assert_eq!(host.fails(command, &arguments), "not possible: postern was started without root", "{command}");
        let refused = agent.await_record(command, |record| record["postern"]["stage"] == "refused");
        assert_eq!(refused["event"]["reason"], "not possible: postern was started without root");
    }
    assert!(held(&agent).is_empty());
}
