//! Attacks made from the filters themselves: each condition of each rule
//! violated once dies, each rule obeyed lives, and every call without a rule
//! dies.

use nix::libc;
use postern_core::confine::seccomp::{Rule, When};

use super::raw::{End, attempt, call};
use super::roles::Role;

fn roles() -> [Role; 7] {
    let brokers = [Role::broker(), Role::rebooting_broker(), Role::idle_broker(), Role::rotating_broker()];
    let [freezing, rebooting, idle, rotating] = brokers;
    [Role::Worker, every_opener(), Role::Spawner, freezing, rebooting, idle, rotating]
}

/// An opener whose rules make every rule of the filter.
fn every_opener() -> Role {
    use postern_core::policy::rules::Rights;
    let all = Rights::READ.with(Rights::WRITE).with(Rights::CREATE).with(Rights::APPEND);
    super::roles::opener(vec![super::roles::rule("/bin", all)])
}

/// Every argument that no condition names: an address, length or descriptor
/// that the kernel refuses.
const BAD: u64 = u64::MAX;

type Arguments = [u64; 6];

/// Arguments that obey a rule.
fn obedient(rule: &Rule) -> Arguments {
    let mut arguments = [BAD; 6];
    for when in &rule.when {
        match *when {
            When::Is(argument, value) => arguments[usize::from(argument)] = u64::from(value),
            When::Lacks(argument, bits) => arguments[usize::from(argument)] &= !u64::from(bits),
            When::Has(argument, bits) => arguments[usize::from(argument)] |= u64::from(bits),
        }
    }
    arguments
}

/// As the kernel will: lower 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the lower 32 bits are what is compared")]
fn obeys(rule: &Rule, number: i64, arguments: &Arguments) -> bool {
    let of = |argument: u8| arguments[usize::from(argument)] as u32;
    rule.number == number
        && rule.when.iter().all(|when| match *when {
            When::Is(argument, value) => of(argument) == value,
            When::Lacks(argument, bits) => of(argument) & bits == 0,
            When::Has(argument, bits) => of(argument) & bits == bits,
        })
}

/// Arguments that violate this condition of a rule and no other: the values
/// next to it.
fn disobedient(rule: &Rule, condition: usize) -> Vec<Arguments> {
    let with = |argument: u8, value: u32| {
        let mut arguments = obedient(rule);
        arguments[usize::from(argument)] = u64::from(value);
        arguments
    };
    let each_bit = |bits: u32| (0..32).map(|bit| 1_u32 << bit).filter(move |bit| bits & bit != 0);
    match rule.when[condition] {
        When::Is(argument, value) => {
            let near = [value ^ 1, value.wrapping_add(1), value.wrapping_sub(1), !value, value ^ (1 << 31)];
            let flipped = (0..32).map(|bit| value ^ (1 << bit));
            near.into_iter().chain(flipped).map(|value| with(argument, value)).collect()
        }
        When::Lacks(argument, bits) => each_bit(bits).map(|bit| with(argument, bit)).collect(),
        When::Has(argument, bits) => each_bit(bits).map(|bit| with(argument, !bit & bits)).collect(),
    }
}

pub(crate) fn just_outside_each_rule_is_death() {
    for role in roles() {
        let mut tried = 0;
        for (index, rule) in role.filter().iter().enumerate() {
            for condition in 0..rule.when.len() {
                for variant in 0..disobedient(rule, condition).len() {
                    // In the child, whose process id may be part of a rule.
                    let end = attempt(
                        || role.prepare(),
                        |()| {
                            let filter = role.filter();
                            let arguments = disobedient(&filter[index], condition)[variant];
                            let number = filter[index].number;
                            if filter.iter().any(|rule| obeys(rule, number, &arguments)) {
                                return ALLOWED;
                            }
                            call(number, &arguments)
                        },
                    );
                    match end {
                        End::Killed(libc::SIGSYS) => tried += 1,
                        // Another rule of the same call allows it.
                        End::Back(ALLOWED) => {}
                        _ => panic!("{role:?}: {} outside of {:?}: {end:?}", rule.name, rule.when[condition]),
                    }
                }
            }
        }
        println!("    {role:?}: {tried} calls just outside a rule");
        assert!(tried > 10, "{role:?}: {tried}");
    }
}

const ALLOWED: i64 = i64::MAX;

/// Obeyed rules whose effect a test does not want, with the reason.
const SPARED: [(&str, &str); 5] = [
    ("kill", "it would signal; see a_broker_signals_process_1_as_its_init_wants"),
    ("reboot", "it would; see the tests of shutting down"),
    ("sync", "it would wait for every disk of the machine"),
    ("clone", "a child without a stack; the live spawner's children show it"),
    ("execveat", "see a_spawner_executes_its_own_file_only"),
];

pub(crate) fn inside_each_rule_is_life() {
    for (name, why) in SPARED {
        println!("    not tried: {name}: {why}");
    }
    for role in roles() {
        for (index, rule) in role.filter().iter().enumerate() {
            if SPARED.iter().any(|(name, _)| *name == rule.name) {
                continue;
            }
            let end = attempt(
                || role.prepare(),
                |()| {
                    let rule = &role.filter()[index];
                    call(rule.number, &obedient(rule))
                },
            );
            assert_ne!(end, End::Killed(libc::SIGSYS), "{role:?}: {} with {:?}", rule.name, rule.when);
        }
    }
}

pub(crate) fn a_call_that_no_rule_names_is_death() {
    // Above the highest number of Linux 6.18 on both architectures.
    const NUMBERS: i64 = 512;
    for role in roles() {
        let filter = role.filter();
        for number in (0..NUMBERS).filter(|number| filter.iter().all(|rule| rule.number != *number)) {
            let end = attempt(|| role.prepare(), |()| call(number, &[0; 6]));
            // The kernel lets uretprobe(2) and uprobe(2) of x86_64 past every
            // filter, and from elsewhere than a probe they do nothing.
            let refused = [End::Killed(libc::SIGILL), End::Back(-i64::from(libc::ENXIO))];
            let probe = cfg!(target_arch = "x86_64") && matches!(number, 335 | 336) && refused.contains(&end);
            let dead = end == End::Killed(libc::SIGSYS) || probe;
            assert!(dead, "{role:?}: call {number}: {end:?}");
        }
    }
}

pub(crate) fn each_rule_says_why() {
    for role in roles() {
        for rule in role.filter() {
            assert!(rule.why.len() > 5, "{role:?}: {} has no reason", rule.name);
        }
    }
}
