//! Which rules of the filters were used, by what strace saw of the shipped
//! executable: `tests/confinement/used` runs the suites and then this. No part of
//! `cargo test`, for it needs their traces.

mod needs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::libc;
use postern_core::confine::seccomp::{Rule, When};

use needs::{LOG_DIRECTORY, POLICY_DIRECTORY, Role, STATE_DIRECTORY};

/// Rules that no suite uses, and that stay all the same: process, call, and why.
#[rustfmt::skip]
const KEPT: &[(&str, &str, &str)] = &[
    ("worker", "getpid", "after a panic, which no suite of these has; see ends.rs"),
    ("worker", "gettid", "after a panic, which no suite of these has; see ends.rs"),
    ("worker", "rt_sigprocmask", "after a panic, which no suite of these has; see ends.rs"),
    ("worker", "tgkill", "after a panic, which no suite of these has; see ends.rs"),
    ("worker", "brk", "memory as it comes and goes: what a run needs is no bound"),
    ("worker", "mmap", "memory as it comes and goes: what a run needs is no bound"),
    ("worker", "munmap", "memory as it comes and goes: what a run needs is no bound"),
    ("worker", "mremap", "memory as it comes and goes: what a run needs is no bound"),
    ("worker", "madvise", "memory as it comes and goes: what a run needs is no bound"),
    ("worker", "restart_syscall", "only after SIGSTOP and SIGCONT"),
    ("opener", "getpid", "after a panic, which no suite of these has; see ends.rs"),
    ("opener", "gettid", "after a panic, which no suite of these has; see ends.rs"),
    ("opener", "rt_sigprocmask", "after a panic, which no suite of these has; see ends.rs"),
    ("opener", "tgkill", "after a panic, which no suite of these has; see ends.rs"),
    ("opener", "brk", "memory as it comes and goes: what a run needs is no bound"),
    ("opener", "mmap", "memory as it comes and goes: what a run needs is no bound"),
    ("opener", "munmap", "memory as it comes and goes: what a run needs is no bound"),
    ("opener", "mremap", "memory as it comes and goes: what a run needs is no bound"),
    ("opener", "madvise", "memory as it comes and goes: what a run needs is no bound"),
    ("opener", "restart_syscall", "only after SIGSTOP and SIGCONT"),
    ("broker", "getpid", "after a panic, which no suite of these has; see ends.rs"),
    ("broker", "gettid", "after a panic, which no suite of these has; see ends.rs"),
    ("broker", "rt_sigprocmask", "after a panic, which no suite of these has; see ends.rs"),
    ("broker", "tgkill", "after a panic, which no suite of these has; see ends.rs"),
    ("broker", "brk", "memory as it comes and goes: what a run needs is no bound"),
    ("broker", "mmap", "memory as it comes and goes: what a run needs is no bound"),
    ("broker", "munmap", "memory as it comes and goes: what a run needs is no bound"),
    ("broker", "mremap", "memory as it comes and goes: what a run needs is no bound"),
    ("broker", "madvise", "memory as it comes and goes: what a run needs is no bound"),
    ("broker", "restart_syscall", "only after SIGSTOP and SIGCONT"),
    ("spawner", "tgkill", "after a panic, which no suite of these has; see ends.rs"),
    ("spawner", "mremap", "memory as it comes and goes: what a run needs is no bound"),
    ("spawner", "madvise", "memory as it comes and goes: what a run needs is no bound"),
    ("spawner", "restart_syscall", "only after SIGSTOP and SIGCONT"),
    ("worker", "ppoll", "what another architecture or C library makes of poll or epoll_wait"),
    ("worker", "epoll_pwait", "what another architecture or C library makes of poll or epoll_wait"),
    ("spawner", "ppoll", "what another architecture or C library makes of poll or epoll_wait"),
    ("spawner", "epoll_pwait", "what another architecture or C library makes of poll or epoll_wait"),
    ("broker", "ppoll", "what another architecture or C library makes of poll or epoll_wait"),
    ("worker", "clock_gettime", "a clock that the vDSO does not tell, as some guests have"),
    ("spawner", "clock_gettime", "a clock that the vDSO does not tell, as some guests have"),
    ("broker", "clock_gettime", "a clock that the vDSO does not tell, as some guests have"),
    ("worker", "fcntl", "debug builds ask it before they close a descriptor"),
    ("opener", "fcntl", "debug builds ask it before they close a descriptor"),
    ("opener", "openat", "a mode that no suite asks for of a missing file"),
    ("spawner", "dup3", "a descriptor that is born under another number than its own"),
    ("spawner", "readlink", "the start of a static build, and of older C libraries"),
    ("spawner", "getuid", "the start of a static build, and of older C libraries"),
    ("spawner", "getgid", "the start of a static build, and of older C libraries"),
    ("spawner", "getegid", "the start of a static build, and of older C libraries"),
    ("spawner", "getrlimit", "the start of a static build, and of older C libraries"),
    ("spawner", "faccessat", "the dynamic loader of aarch64"),
    ("spawner", "futex", "the standard library's, where a lock is contended"),
    ("broker", "getpeername", "vsock, which virtual machines alone have; see tests/vm"),
    ("broker", "reboot", "ends the guest; see the targets shutdown and vm"),
    ("broker", "getrandom", "a thread's first table"),
    ("broker", "sched_yield", "where two of its threads meet"),
    ("broker", "openat", "reloads; see the target reload"),
    ("broker", "getdents64", "reloads; see the target reload"),
    ("broker", "lseek", "reloads; see the target reload"),
];

/// A call as it was made: its name, and its arguments' lower halves.
type Call = (String, Vec<u32>);

/// Every call that processes made under a filter, by the process's name; of those
/// that came often once.
fn read() -> BTreeMap<String, BTreeSet<Call>> {
    let directory = std::env::var("POSTERN_TEST_TRACE").expect("POSTERN_TEST_TRACE: a directory of traces");
    let mut all: BTreeMap<String, BTreeSet<Call>> = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("the directory").flatten() {
        let text = fs::read(entry.path()).expect("a trace");
        trace(&String::from_utf8_lossy(&text), &mut all);
    }
    all
}

fn trace(text: &str, all: &mut BTreeMap<String, BTreeSet<Call>>) {
    // By process id: the name that a process gave itself. Threads that name
    // themselves otherwise are the broker's; who has no name yet is a child of the
    // spawner on its way to one, once that is confined.
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut filtered: BTreeSet<&str> = BTreeSet::new();
    let mut spawner = false;
    let mut broker = false;
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((call, rest)) = rest.trim_start().split_once('(') else { continue };
        if !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let arguments = rest.split([')', '<']).next().unwrap_or_default().trim();
        if call == "prctl" && arguments.starts_with("PR_SET_NAME") {
            let name = arguments.split('"').nth(1).unwrap_or_default();
            names.insert(pid, name.strip_prefix("postern-").unwrap_or("broker"));
        }
        let name = names.get(pid).copied().unwrap_or("newborn");
        let numbers: Vec<u32> = arguments.split(", ").map(lower).collect();
        let own = match name {
            "broker" => broker,
            "newborn" => false,
            _ => filtered.contains(pid),
        };
        if own {
            all.entry(name.to_owned()).or_default().insert((call.to_owned(), numbers.clone()));
        }
        // The spawner's filter is above its children's.
        if spawner && matches!(name, "worker" | "opener" | "newborn") {
            all.entry("spawner".to_owned()).or_default().insert((call.to_owned(), numbers.clone()));
        }
        if call == "seccomp" && numbers.first() == Some(&libc::SECCOMP_SET_MODE_FILTER) {
            filtered.insert(pid);
            spawner |= name == "spawner";
            broker |= name == "broker";
        }
    }
}

fn lower(word: &str) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "what the filter compares")]
    u64::from_str_radix(word.trim_start_matches("0x"), 16).map_or(u32::MAX, |value| value as u32)
}

/// Conditions that name what is another in every run: descriptors, process ids, and
/// the signals and commands that shut a guest down.
fn is_of_a_run(rule: &Rule, when: When) -> bool {
    const DESCRIPTORS: [i32; 6] = [23, 24, LOG_DIRECTORY, STATE_DIRECTORY, STATE_DIRECTORY + 1, POLICY_DIRECTORY];
    match (rule.name, when) {
        ("tgkill", When::Is(0, _)) | ("kill", When::Is(1, _)) | ("reboot", When::Is(2, _)) => true,
        (_, When::Is(_, value)) => DESCRIPTORS.iter().any(|number| value == number.cast_unsigned()),
        _ => false,
    }
}

fn uses(rule: &Rule, (name, arguments): &Call) -> bool {
    rule.name == name
        && rule.when.iter().all(|when| {
            let of = |argument: u8| arguments.get(usize::from(argument)).copied().unwrap_or_default();
            is_of_a_run(rule, *when)
                || match *when {
                    When::Is(argument, value) => of(argument) == value,
                    When::Lacks(argument, bits) => of(argument) & bits == 0,
                    When::Has(argument, bits) => of(argument) & bits == bits,
                }
        })
}

#[test]
fn every_rule_is_used() {
    let seen = read();
    let mut unused = BTreeSet::new();
    let (mut rules, mut kept) = (0, BTreeSet::new());
    for (name, role) in Role::all() {
        let process = name.split(',').next().unwrap_or_default();
        let calls = seen.get(process).unwrap_or_else(|| panic!("no {process} in any trace"));
        for rule in role.filter() {
            rules += 1;
            if calls.iter().any(|call| uses(&rule, call)) {
                continue;
            }
            let conditions: Vec<_> = rule.when.iter().filter(|when| !is_of_a_run(&rule, **when)).collect();
            match KEPT.iter().find(|(of, call, _)| *of == process && *call == rule.name) {
                Some(entry) => _ = kept.insert(*entry),
                None => _ = unused.insert(format!("{process}: {} {conditions:x?}: {}", rule.name, rule.why)),
            }
        }
    }
    for (process, call, why) in &kept {
        println!("    unused and kept: {process}: {call}: {why}");
    }
    let calls: usize = seen.values().map(BTreeSet::len).sum();
    println!("    {calls} different calls of {} processes against {rules} rules", seen.len());
    assert!(unused.is_empty(), "never used:\n    {}", unused.into_iter().collect::<Vec<_>>().join("\n    "));
}
