//! Attacks made from the tables, for every process under several policies and
//! behind the real confinement: each rule obeyed lives, each condition of each
//! rule violated once dies, and every call without a rule dies, by every entry
//! that the kernel has. A child of its own for every call.

use nix::libc;
use postern_core::confine::seccomp::Rule;

use super::evaluate::{Arguments, allows, disobedient, obedient};
use super::needs::Role;
use super::probe::in_halves;
use super::raw::{self, End, call};
use super::roles;

const DEAD: End = End::Killed(libc::SIGSYS);

/// One call, and what must come of it.
struct Probe {
    what: &'static str,
    number: i64,
    arguments: Arguments,
    lives: bool,
}

/// Makes every call in this role, and says what came out wrong.
fn wrong(name: &str, role: &Role, probes: &[Probe]) -> Vec<String> {
    in_halves(probes.len(), |prober, index| {
        let Probe { what, number, arguments, lives } = &probes[index];
        let end = prober.probe(
            || role.confine(),
            || {
                let mut arguments = *arguments;
                if *number == libc::SYS_tgkill {
                    arguments[0] ^= u64::from(HERE ^ std::process::id());
                }
                call(*number, &arguments)
            },
        );
        let right = if *lives { end.survived(*number) } else { end == DEAD || excused(*number, &end) };
        (!right).then(|| format!("{name}: {what}: call {number} {arguments:x?}: {end:?}"))
    })
}

/// A debug build takes a rule that several tables have in the first of them
/// alone, and numbers for all but the widest tables in steps: its children are
/// slow.
const THRIFTY: bool = cfg!(debug_assertions);

/// The process id in the tables: that of the test, which is the first of its
/// cell. What is as far from it is, in the child, as far from the child's own.
const HERE: u32 = 1;

impl End {
    /// Whether the filter let it through.
    fn survived(&self, number: i64) -> bool {
        let ends = number == libc::SYS_exit_group && matches!(self, Self::Became(_));
        let aborts = number == libc::SYS_tgkill && *self == Self::Killed(libc::SIGABRT);
        matches!(self, Self::Back(_)) || ends || aborts
    }
}

/// The kernel lets uretprobe(2) and uprobe(2) of `x86_64` past every filter, and
/// from elsewhere than a probe they do nothing.
fn excused(number: i64, end: &End) -> bool {
    let refused = [End::Killed(libc::SIGILL), End::Back(-i64::from(libc::ENXIO))];
    cfg!(target_arch = "x86_64") && matches!(number, 335 | 336) && refused.contains(end)
}

fn check(count_of: &str, wrong: &[String], tried: usize) {
    assert!(wrong.is_empty(), "\n    {}", wrong.join("\n    "));
    assert!(tried > 0, "{count_of}: nothing was tried");
}

/// Obeyed rules whose effect a test does not want, with the reason.
const SPARED: [(&str, &str); 1] = [("sync", "it would wait for every disk of the machine")];

pub(crate) fn inside_each_rule_is_life() {
    for (name, why) in SPARED {
        println!("    not tried: {name}: {why}");
    }
    roles::set_ground();
    let (mut rules, mut tried) = (0, 0);
    let mut all = Vec::new();
    for (name, role) in Role::all() {
        let table = role.filter();
        let mut probes = Vec::new();
        for rule in table.iter().filter(|rule| SPARED.iter().all(|(name, _)| *name != rule.name)) {
            let good = harmless(rule);
            probes.push(Probe { what: rule.name, number: rule.number, arguments: good, lives: true });
            // What the kernel does not look at may be anything.
            if !rule.when.is_empty() {
                let mut arguments = good;
                for when in &rule.when {
                    arguments[usize::from(when.argument())] |= 0xffff_ffff_0000_0000;
                }
                probes.push(Probe { what: "upper halves", number: rule.number, arguments, lives: true });
            }
        }
        rules += table.len();
        tried += probes.len();
        all.extend(wrong(name, &role, &probes));
    }
    check("rules", &all, tried);
    println!("    {} tables, {rules} rules; {tried} calls that obey one live", Role::all().len());
}

/// Arguments that obey a rule and do nothing that a test does not want: a child
/// of its own shares the stack of who makes it, as fork(2)'s does.
fn harmless(rule: &Rule) -> Arguments {
    let mut arguments = obedient(rule);
    if rule.number == libc::SYS_clone {
        arguments[1] = 0;
    }
    arguments
}

pub(crate) fn just_outside_each_rule_is_death() {
    roles::set_ground();
    let (mut conditions, mut tried, mut elsewhere) = (0, 0, 0);
    let mut all = Vec::new();
    let mut seen: Vec<Rule> = Vec::new();
    for (name, role) in Role::all() {
        let table = role.filter();
        let mut probes = Vec::new();
        for rule in table.iter().filter(|rule| !THRIFTY || !seen.contains(rule)) {
            conditions += rule.when.len();
            for condition in 0..rule.when.len() {
                for arguments in disobedient(rule, condition) {
                    let number = rule.number;
                    let lives = allows(&table, number, &arguments);
                    elsewhere += usize::from(lives);
                    if !lives {
                        probes.push(Probe { what: rule.name, number, arguments, lives });
                    }
                }
            }
        }
        tried += probes.len();
        all.extend(wrong(name, &role, &probes));
        seen.extend(table);
    }
    check("conditions", &all, tried);
    println!(
        "    {conditions} conditions; {tried} calls just outside one die ({elsewhere} more are inside another rule)"
    );
}

/// Highest number of the sweep: Linux 6.18 ends at 470 on `x86_64` and aarch64, and
/// at 547 in the x32 table.
const LAST: i64 = 600;

pub(crate) fn a_call_that_no_rule_names_is_death() {
    // Numbers that no kernel has, and such as are another's when they are cut.
    const ODD: [i64; 8] = [-1, 1023, 0x7fff_ffff, 0x8000_0000, -0x8000_0000, 0x0fff_ffff, 0x2000_0000, 0xffff];
    roles::set_ground();
    let mut tried = 0;
    let mut all = Vec::new();
    for (name, role) in Role::all() {
        let table = role.filter();
        let named = |number: i64| table.iter().any(|rule| rule.number == number);
        let probes: Vec<Probe> = numbers(name, if THRIFTY { 4 } else { 1 })
            .chain(ODD)
            .filter(|number| !named(*number))
            .map(|number| Probe { what: "no rule", number, arguments: [0; 6], lives: false })
            .collect();
        tried += probes.len();
        all.extend(wrong(name, &role, &probes));
    }
    check("calls", &all, tried);
    println!("    {} tables: {tried} calls that no rule names die, 0 to {LAST} and beyond", Role::all().len());
}

/// A filter that looks at numbers only would take these for other calls: bit 30
/// marks the x32 interface, and `int 0x80` has the numbers of i386. What tells
/// them apart is at the beginning of every program, so not every table is asked
/// all.
#[cfg(target_arch = "x86_64")]
pub(crate) fn another_entry_is_death() {
    const X32: i64 = 0x4000_0000;
    roles::set_ground();
    let (mut x32, mut i386) = (0, 0);
    let mut all = Vec::new();
    for (name, role) in Role::all() {
        let probes: Vec<Probe> = numbers(name, if THRIFTY { 64 } else { 16 })
            .map(|number| Probe { what: "x32", number: X32 | number, arguments: [0; 6], lives: false })
            .collect();
        x32 += probes.len();
        all.extend(wrong(name, &role, &probes));
        let numbers: Vec<i64> = numbers(name, if THRIFTY { 64 } else { 16 }).collect();
        i386 += numbers.len();
        all.extend(in_halves(numbers.len(), |prober, index| {
            let end = prober.probe(|| role.confine(), || raw::call_i386(numbers[index]));
            // Where a kernel runs no 32-bit code its entry is a fault.
            let dead = end == DEAD || end == End::Killed(libc::SIGSEGV);
            (!dead).then(|| format!("{name}: int 0x80, {}: {end:?}", numbers[index]))
        }));
    }
    check("entries", &all, x32 + i386);
    println!("    {x32} calls by x32 and {i386} by int 0x80 die");
}

/// All numbers for a table of each process, every so many for the others.
fn numbers(name: &str, step: usize) -> impl Iterator<Item = i64> {
    let widest = ["worker, every command", "opener, every right", "spawner", "broker, everything"].contains(&name);
    (0..=LAST).step_by(if widest { 1 } else { step })
}
