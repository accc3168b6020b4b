//! Freezes and thaws without end: processes, mounts and state stay as they were.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use crate::scene::{freeze, frozen_list, thaw, verify, with};
use crate::support::agent::{Agent, Home};
use crate::support::disk::one_of_each;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] =
    &[("a_storm_of_freezes_leaves_all_as_it_was", a_storm_of_freezes_leaves_all_as_it_was)];

/// By hand as many as one likes.
fn rounds() -> u32 {
    let asked = std::env::var("POSTERN_STORM_ROUNDS").ok();
    asked.map_or(if cfg!(debug_assertions) { 60 } else { 400 }, |rounds| rounds.parse().expect("a number"))
}

/// Of each process: descriptors, threads, resident KiB.
fn standing(agent: &Agent<'_>) -> BTreeMap<String, [usize; 3]> {
    let mut family = agent.family();
    family.insert("broker".to_owned(), agent.pid());
    let of = |pid: i32| {
        let entries = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("it lives").count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let kib = resident.trim().trim_end_matches(" kB").parse().expect("a number");
        [entries("fd"), entries("task"), kib]
    };
    family.into_iter().map(|(name, pid)| (name, of(pid))).collect()
}

fn a_storm_of_freezes_leaves_all_as_it_was() {
    let (_disks, mounts) = one_of_each();
    let home = Home::new();
    let agent = home.start(&with("[limits]\nacts = 1000000\n"));
    let mut host = agent.connect();
    let mut once = |round: u32| {
        if round % 4 == 3 {
            assert_eq!(frozen_list(&mut host, &["/b"]), Ok(1));
            assert_eq!(thaw(&mut host), 1);
        } else {
            assert_eq!(freeze(&mut host), 3);
            assert_eq!(thaw(&mut host), 3);
        }
    };
    // What is taken once and kept.
    (0..20).for_each(&mut once);
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let before = standing(&agent);
    let (rounds, started) = (rounds(), Instant::now());
    (0..rounds).for_each(&mut once);
    let took = started.elapsed();
    let after = standing(&agent);
    println!("    {rounds} freezes and thaws in {took:?}; descriptors, threads, KiB: {before:?}, then {after:?}");
    for (name, [descriptors, threads, kib]) in &before {
        let now = after[name];
        assert_eq!((now[0], now[1]), (*descriptors, *threads), "{name}");
        assert!(now[2] <= kib + 1024, "{name} took {kib} KiB and takes {}", now[2]);
    }
    assert_eq!(table, fs::read_to_string("/proc/self/mountinfo").expect("the mount table"));
    assert!(mounts.iter().all(|mounted| !mounted.is_frozen()));
    assert!(mounts.iter().all(|mounted| fs::write(mounted.path("file"), "").is_ok()));
    assert!(!home.path("state/frozen").exists());
    verify(&[&home.log()]);
}
