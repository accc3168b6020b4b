//! A worker that has fallen, with the real socket, before the real and really
//! confined broker: every type of frame at every length that matters, and every
//! byte of valid frames changed, in every state; floods, half-closed sockets,
//! lies about the sender, and an end at each point of an exchange.
//!
//! | file | |
//! |---|---|
//! | [`grammar`] | what a frame is, told a second time; the frames that are tried |
//! | [`oracle`] | what must come of each in each state, told a second time |
//! | [`standin`] | the test in the spawner's place, so that a worker's life is cheap |
//! | [`stage`] | the agent, its disks, and how an outsider sees them |
//! | [`play`] | one state: frames against what is due |
//! | [`frames`] | every frame in every state |
//! | [`floods`] | much of it, and none of it read |
//! | [`points`] | an end at each point of an exchange |
//!
//! The decoder alone meets all lengths there are ([`every_length_is_decoded`]).
//!
//! `POSTERN_MATRIX=full` tries every type with the lengths and fillings of the
//! known ones.

mod floods;
mod frames;
mod grammar;
mod oracle;
mod play;
pub(crate) mod points;
mod stage;
pub(crate) mod standin;

use postern_core::ipc::{MAX_FRAME, Wire};
use postern_core::messages::Ask;

use crate::support::runner::Test;
use grammar::{Fill, judge, valid};

pub(crate) const TESTS: &[Test] = &[
    ("matrix_every_length_is_decoded_or_refused", every_length_is_decoded),
    ("matrix_every_frame_in_every_state", frames::every_frame_in_every_state),
    ("matrix_floods_stay_within_bounds", floods::floods_stay_within_bounds),
    ("matrix_an_end_at_every_point", points::an_end_at_every_point),
    ("matrix_frames_while_postern_stops", points::frames_while_postern_stops),
    ("matrix_a_barrier_that_fails_later_ends_nothing", points::a_barrier_that_fails_later),
    ("matrix_a_lie_about_the_sender_is_the_kernels_to_refuse", points::a_lie_about_the_sender),
];

/// Whether all types are tried alike.
fn is_full() -> bool {
    std::env::var_os("POSTERN_MATRIX").is_some_and(|value| value == "full")
}

/// Type by length by filling, all there are: what the table says is a frame is
/// decoded, nothing else is.
fn every_length_is_decoded() {
    let valid = valid(0);
    let (mut tried, mut frames) = (0_u64, 0_u64);
    // In debug every length only up to here, and some beyond.
    let dense = if cfg!(debug_assertions) { 1024 } else { MAX_FRAME };
    for fill in Fill::ALL {
        for number in 0..=u8::MAX {
            let whole = fill.frame(number, MAX_FRAME, &valid);
            for length in (1..=dense).chain((dense..=MAX_FRAME).step_by(257)) {
                let bytes = &whole[..length];
                let decoded = Ask::whole(bytes);
                // What carries a descriptor is judged without here.
                let due = judge(bytes, usize::from(number == 14)).is_ok();
                assert_eq!(decoded.is_ok(), due, "type {number}, {length} bytes, {fill:?}: {decoded:?}");
                tried += 1;
                frames += u64::from(due);
            }
        }
    }
    println!("    {tried} frames decoded or refused as the table says, {frames} of them valid");
    assert!(frames > 15, "{frames}");
}
