//! The tables of the filters, as text: what each process may call under several
//! policies, and why. `tables.txt` is that text as it was last looked at, so that
//! no call or condition comes or goes unseen. `UPDATE=1 cargo test --test filters`
//! writes it anew, to be read in the change.

mod needs;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use needs::Role;
use nix::libc;
use postern_core::confine::filters;
use postern_core::confine::seccomp::{Rule, When, digest};

/// A condition: `2=5`, argument 2 is 5; `2!5`, it has none of these bits; `2&5`, it
/// has them all. In hexadecimal.
fn shown(rule: &Rule, when: When) -> String {
    match when {
        When::Is(0, _) if rule.number == libc::SYS_tgkill => "0=self".to_owned(),
        When::Is(argument, value) => format!("{argument}={value:x}"),
        When::Lacks(argument, bits) => format!("{argument}!{bits:x}"),
        When::Has(argument, bits) => format!("{argument}&{bits:x}"),
    }
}

fn line(rule: &Rule) -> String {
    let conditions: Vec<String> = rule.when.iter().map(|when| shown(rule, *when)).collect();
    format!("  {:<24} {:<32} {}", rule.name, conditions.join(" "), rule.why)
}

/// All tables; of a rule that a process has under its smallest policy already
/// only that there is one more.
fn text() -> String {
    let mut text = String::new();
    let mut smallest: (String, Vec<Rule>) = Default::default();
    for (name, role) in Role::all() {
        let table = role.filter();
        let process = name.split(',').next().unwrap_or_default().to_owned();
        let first = smallest.0 != process;
        if first {
            smallest = (process, table.clone());
        }
        let _ = writeln!(text, "{name}: {} rules", table.len());
        if !first {
            assert!(smallest.1.iter().all(|rule| covers(&table, rule)), "{name} lacks what every one has");
            let _ = writeln!(text, "  as '{}', and", Role::smallest(&smallest.0));
        }
        for rule in table.iter().filter(|rule| first || !smallest.1.contains(rule)) {
            let _ = writeln!(text, "{}", line(rule).trim_end());
        }
        text.push('\n');
    }
    text
}

/// Whether a table permits all that a rule does.
fn covers(table: &[Rule], rule: &Rule) -> bool {
    table.iter().any(|other| other.number == rule.number && other.when.iter().all(|when| rule.when.contains(when)))
}

#[test]
fn the_tables_are_those_that_were_looked_at() {
    let (text, known) = (text(), include_str!("tables.txt"));
    if !cfg!(target_arch = "x86_64") || filters::LOADER.is_none() {
        println!("not compared: numbers and flags are those of x86_64, the loader's calls a dynamic build's");
        return;
    }
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/confinement/tables.txt");
        std::fs::write(path, &text).expect("the tables");
        return;
    }
    let news: Vec<&str> = text.lines().filter(|line| !known.lines().any(|other| other == *line)).collect();
    let gone: Vec<&str> = known.lines().filter(|line| !text.lines().any(|other| other == *line)).collect();
    assert!(news.is_empty() && gone.is_empty(), "new: {news:#?}\ngone: {gone:#?}\nUPDATE=1 writes them anew");
    assert_eq!(text, known, "in another order; UPDATE=1 writes them anew");
}

#[test]
fn no_table_says_two_things_of_a_call() {
    for (name, role) in Role::all() {
        let table = role.filter();
        for (at, rule) in table.iter().enumerate() {
            assert!(rule.why.len() > 5, "{name}: {} has no reason", rule.name);
            for other in &table[at + 1..] {
                assert!(rule.number != other.number || rule.name == other.name, "{name}: {rule:?} {other:?}");
                let same = rule.number == other.number;
                let free = rule.when.is_empty() || other.when.is_empty();
                assert!(!same || !free, "{name}: {} is free and restricted", rule.name);
                assert!(!same || rule.when != other.when, "{name}: {} is there twice", rule.name);
            }
            let arguments: BTreeSet<u8> = rule.when.iter().map(|when| when.argument()).collect();
            assert_eq!(arguments.len(), rule.when.len(), "{name}: {} restricts an argument twice", rule.name);
        }
    }
}

#[test]
fn a_larger_policy_takes_nothing_away() {
    let all = Role::all();
    let process = |name: &str| name.split(',').next().map(str::to_owned);
    for (name, role) in &all {
        let (first, smallest) = all.iter().find(|(other, _)| process(other) == process(name)).expect("itself");
        let table = role.filter();
        for rule in smallest.filter() {
            assert!(covers(&table, &rule), "{name} lacks {} of {first}", rule.name);
        }
    }
}

#[test]
fn what_a_child_may_its_parent_may_too() {
    // Filters stack: what the spawner's lacks, none of its children can have.
    let spawner = Role::spawner().filter();
    for (name, role) in Role::all().iter().filter(|(_, role)| matches!(role, Role::Worker(_) | Role::Opener(_))) {
        for rule in role.filter() {
            assert!(covers(&spawner, &rule), "{name}: {} {:?} dies by the spawner's filter", rule.name, rule.when);
        }
    }
}

#[test]
fn a_digest_tells_tables_apart() {
    let mut seen = BTreeSet::new();
    for (name, role) in Role::all() {
        let table = role.filter();
        assert!(seen.insert(digest(&table).1), "{name} has another's digest");
        for at in 0..table.len() {
            let mut fewer = table.clone();
            fewer.remove(at);
            assert_ne!(digest(&fewer).1, digest(&table).1, "{name} without rule {at}");
        }
    }
}
