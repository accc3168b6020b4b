//! A hostile host, a hostile worker and a hostile broker, against the real
//! processes. Needs root. Each test runs in a cell (`support::cell`).
//!
//! Two executables besides the shipped one play along: this test itself, whose
//! workers are attackers' (see [`worker`]), and a build in which broker and
//! opener do not check (see `support::sabotage`).

mod support;

#[path = "confinement/attacks.rs"]
#[allow(dead_code, reason = "controls are the business of the target `confinement`")]
mod attacks;
#[path = "hostile/fallen/mod.rs"]
mod fallen;
#[path = "hostile/host.rs"]
mod host;
#[path = "hostile/impostor.rs"]
mod impostor;
#[path = "hostile/matrix/mod.rs"]
mod matrix;
#[path = "hostile/objects.rs"]
mod objects;
#[path = "confinement/raw.rs"]
#[allow(dead_code, reason = "attempts are made by the fallen worker's own children")]
mod raw;
#[path = "hostile/sabotage.rs"]
mod sabotage;
#[path = "facts/scene.rs"]
#[allow(dead_code, reason = "its files are wanted, not its disks")]
mod scene;
#[path = "hostile/told.rs"]
mod told;
#[path = "hostile/worker.rs"]
mod worker;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

/// The attacker's account, where a call names one.
pub(crate) const ACCOUNT: u32 = 70_100;

fn main() -> ExitCode {
    if let Some(status) = worker::as_child() {
        return status;
    }
    let sabotaged = support::sabotage::binary();
    if std::env::args().nth(1).is_none_or(|argument| !matches!(argument.as_str(), "--role" | "--in-cell" | "--list")) {
        support::sabotage::build();
    }
    let mut tests: Vec<runner::Test> = vec![
        ("what_the_policy_reaches_is_reached", host::what_the_policy_reaches_is_reached),
        ("no_name_leads_outside", host::no_name_leads_outside),
        ("a_link_swapped_during_the_open_leads_nowhere", host::a_link_swapped_during_the_open_leads_nowhere),
        ("a_directory_swapped_during_the_open_leads_nowhere", host::a_directory_swapped_leads_nowhere),
        ("what_root_put_inside_is_reached_and_recorded", host::what_root_put_inside_is_reached_and_recorded),
        ("only_the_types_of_the_rule_are_opened", objects::only_the_types_of_the_rule_are_opened),
        ("an_exception_holds_for_the_resolved_object", objects::an_exception_holds_for_the_resolved_object),
        ("read_only_changes_nothing", objects::read_only_changes_nothing),
        ("append_overwrites_nothing", objects::append_overwrites_nothing),
        ("create_makes_and_overwrites_nothing", objects::create_makes_and_overwrites_nothing),
        ("a_new_file_has_the_policys_mode", objects::a_new_file_has_the_policys_mode),
        ("open_handles_are_limited", objects::open_handles_are_limited),
        ("a_network_of_links_costs_no_more_than_the_kernels_limit", objects::links_are_bounded),
        ("without_its_own_checks_the_kernel_still_refuses", sabotage::the_kernel_still_refuses),
        ("a_hostile_worker_is_replaced_and_recorded", worker::is_replaced_and_recorded),
        ("a_hostile_worker_that_asks_in_type_gets_what_the_policy_allows", worker::gets_what_the_policy_allows),
        ("random_frames_of_a_worker_do_no_harm", worker::random_frames_do_no_harm),
        ("a_fallen_worker_gets_no_file_without_a_record", fallen::no_file_without_a_record),
        ("the_fallen_worker_finds_a_record_that_comes_too_late", fallen::a_late_record_is_found),
        ("an_opener_takes_no_nonsense_from_a_broker", impostor::an_opener_takes_no_nonsense),
        ("a_worker_takes_no_nonsense_from_a_broker", impostor::a_worker_takes_no_nonsense),
        ("a_spawner_takes_no_nonsense_from_a_broker", impostor::a_spawner_takes_no_nonsense),
    ];
    tests.extend_from_slice(matrix::TESTS);
    tests.extend_from_slice(told::TESTS);
    runner::main(
        &tests,
        &[("broker", worker::broker), ("impostor", impostor::play), ("liar", matrix::points::liar)],
        &[BINARY, &sabotaged, "mkfs.ext4", "losetup"],
    )
}
