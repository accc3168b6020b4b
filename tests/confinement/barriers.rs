//! What the kernel itself says of each confined process: which barriers stand.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::ACCOUNT;
use super::needs::Role;
use super::probe::Prober;
use super::roles;

/// The value of a key of `/proc/PID/status`.
fn status(process: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).expect(key);
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Soft and hard limit by its name in `/proc/PID/limits`.
fn limit(process: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).expect("its limits");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// `CAP_DAC_READ_SEARCH`, `CAP_KILL`, `CAP_SYS_ADMIN`.
const FREEZES_AND_ASKS: u64 = 1 << 2 | 1 << 5 | 1 << 21;

pub(crate) fn every_barrier_stands() {
    roles::set_ground();
    let prober = Prober::new();
    let mut rows = 0;
    for (name, role, capabilities, bounded) in [
        ("worker", Role::worker(), 0, false),
        ("opener", Role::opener(), 0, false),
        ("spawner", Role::spawner(), 0, true),
        ("broker that freezes and asks init", Role::broker(), FREEZES_AND_ASKS, true),
        ("broker without acts", Role::idle_broker(), 0, true),
    ] {
        let mut wrong = Vec::new();
        let filters_before = status(std::process::id().cast_signed(), "Seccomp_filters");
        let before: u32 = filters_before.parse().expect("a number");
        prober.look_at(
            || role.confine(),
            |process| {
                let mut due = |what: &str, found: String, due: String| {
                    rows += 1;
                    if found != due {
                        wrong.push(format!("{what}: {found}, not {due}"));
                    }
                };
                let account = ACCOUNT.to_string();
                due("no_new_privs", status(process, "NoNewPrivs"), "1".to_owned());
                due("seccomp's mode", status(process, "Seccomp"), "2".to_owned());
                due("filters", status(process, "Seccomp_filters"), (before + 1).to_string());
                due("threads", status(process, "Threads"), "1".to_owned());
                for ids in ["Uid", "Gid"] {
                    due(ids, status(process, ids), [account.as_str(); 4].join(" "));
                }
                due("groups", status(process, "Groups"), String::new());
                let mask = format!("{capabilities:016x}");
                for set in ["CapPrm", "CapEff"] {
                    due(set, status(process, set), mask.clone());
                }
                for set in ["CapInh", "CapAmb"] {
                    due(set, status(process, set), format!("{:016x}", 0));
                }
                if bounded {
                    due("CapBnd", status(process, "CapBnd"), mask);
                }
                // Whose memory nobody may read, its files in /proc are root's.
                let owner = fs::metadata(format!("/proc/{process}/status")).expect("its status").uid();
                due("owner of its files in /proc", owner.to_string(), "0".to_owned());
                for (what, nothing) in
                    [("Max core file size", "0 0"), ("Max locked memory", "0 0"), ("Max msgqueue size", "0 0")]
                {
                    due(what, limit(process, what), nothing.to_owned());
                }
                if matches!(role, Role::Worker(_) | Role::Opener(_)) {
                    due("processes", limit(process, "Max processes"), "0 0".to_owned());
                }
                if matches!(role, Role::Opener(_)) {
                    due("file size", limit(process, "Max file size"), "0 0".to_owned());
                }
                let space = limit(process, "Max address space") == "unlimited unlimited";
                due(
                    "an address space without limit",
                    space.to_string(),
                    (!matches!(role, Role::Worker(_))).to_string(),
                );
            },
        );
        assert!(wrong.is_empty(), "{name}:\n    {}", wrong.join("\n    "));
    }
    println!("    {rows} facts of five processes");
}
