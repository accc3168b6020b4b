//! What a table lets through, said a second time and without its compiler: the
//! kernel's answer is compared with this one. And the calls that are made of a
//! table: obedient ones, and such as are just outside.

use postern_core::confine::seccomp::{Rule, When};

pub(crate) type Arguments = [u64; 6];

/// Every argument that no condition names: an address, length or descriptor
/// that the kernel refuses.
const BAD: u64 = u64::MAX;

/// As the kernel will: all of a rule's conditions, on the lower 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the lower 32 bits are what is compared")]
pub(crate) fn obeys(rule: &Rule, number: i64, arguments: &Arguments) -> bool {
    let of = |argument: u8| arguments[usize::from(argument)] as u32;
    rule.number == number
        && rule.when.iter().all(|when| match *when {
            When::Is(argument, value) => of(argument) == value,
            When::Lacks(argument, bits) => of(argument) & bits == 0,
            When::Has(argument, bits) => of(argument) & bits == bits,
        })
}

/// Whether any rule of the table allows the call.
pub(crate) fn allows(table: &[Rule], number: i64, arguments: &Arguments) -> bool {
    table.iter().any(|rule| obeys(rule, number, arguments))
}

/// Arguments that obey a rule.
pub(crate) fn obedient(rule: &Rule) -> Arguments {
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

/// Arguments that violate this condition of a rule and no other: the values next
/// to it, each bit that may not be otherwise, and nothing at all.
pub(crate) fn disobedient(rule: &Rule, condition: usize) -> Vec<Arguments> {
    let good = obedient(rule);
    let each_bit = |bits: u32| (0..32).map(|bit| 1_u32 << bit).filter(move |bit| bits & bit != 0);
    let (argument, values): (u8, Vec<u64>) = match rule.when[condition] {
        When::Is(argument, value) => {
            let near = [value.wrapping_add(1), value.wrapping_sub(1), !value, 0, u32::MAX];
            let flipped = each_bit(u32::MAX).map(|bit| value ^ bit);
            (argument, near.into_iter().chain(flipped).filter(|other| *other != value).map(u64::from).collect())
        }
        When::Lacks(argument, bits) => {
            let others = good[usize::from(argument)];
            (argument, each_bit(bits).flat_map(|bit| [u64::from(bit), others | u64::from(bit)]).collect())
        }
        When::Has(argument, bits) => {
            let others = good[usize::from(argument)];
            (argument, each_bit(bits).map(|bit| others & !u64::from(bit)).chain([0]).collect())
        }
    };
    let mut found: Vec<Arguments> = Vec::new();
    for value in values {
        let mut arguments = good;
        arguments[usize::from(argument)] = value;
        if !found.contains(&arguments) {
            found.push(arguments);
        }
    }
    found
}
