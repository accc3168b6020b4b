//! Evidence under stress: thousands of opens with a fault at every step of one,
//! and an independent tracer (strace) that sees whether each record stands before
//! what it announces. Needs root, strace, loop devices. Each test runs in a cell
//! (`support::cell`).

mod support;

#[path = "evidence/cuts.rs"]
mod cuts;
#[path = "evidence/load.rs"]
mod load;
#[path = "evidence/order.rs"]
mod order;
#[path = "evidence/strace.rs"]
mod strace;
#[path = "evidence/stress.rs"]
mod stress;

use std::process::ExitCode;

use support::agent::BINARY;
use support::{runner, sabotage};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_none_or(|argument| !matches!(argument.as_str(), "--role" | "--in-cell" | "--list")) {
        sabotage::build();
    }
    runner::main(
        &[
            ("the_reader_reads_what_strace_writes", strace::reads_what_strace_writes),
            ("each_record_stands_before_its_effect", stress::each_record_stands_before_its_effect),
            ("a_log_without_room_or_rights_refuses_opens", stress::a_failing_disk_refuses_opens),
            ("the_tracer_sees_a_record_that_comes_too_late", stress::a_late_record_is_seen),
            ("a_process_killed_anywhere_in_an_open_leaves_the_record", cuts::everywhere),
        ],
        &[],
        &[BINARY, &sabotage::binary(), "strace", "losetup", "mkfs.ext4", "e2fsck"],
    )
}
