//! Every frame in every state: the matrix proper, and its table.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Instant;

use postern_core::messages::{Answer, Ask, Use, WirePath};
use postern_core::policy::rules::Mode;

use super::grammar::{Fill, flips, lengths, valid};
use super::is_full;
use super::play::{Found, Play};
use super::stage::{Ground, State};
use crate::worker::frame;

pub(super) fn every_frame_in_every_state() {
    let null = fs::File::open("/dev/null").expect("/dev/null");
    let mut all: Vec<Found> = Vec::new();
    for state in State::ALL {
        let started = Instant::now();
        let ground = Ground::new();
        let mut play = Play::begin(&ground, state);
        let samples = valid(4711);
        let fills: &[Fill] = if is_full() { &Fill::ALL } else { &[Fill::Valid] };
        for &fill in fills {
            for number in 0..=u8::MAX {
                for length in lengths(number, &samples, is_full()) {
                    play.frame("type by length", &fill.frame(number, length, &samples), &[]);
                }
            }
        }
        for (number, sample) in samples.iter().enumerate() {
            // In debug one in five, another one of each frame.
            let step = if cfg!(debug_assertions) && !is_full() { 5 } else { 1 };
            for bytes in flips(sample).skip(number % step).step_by(step) {
                play.frame("byte changed", &bytes, &[]);
            }
            for count in [1, 2, 253] {
                play.frame("descriptors", sample, &vec![null.as_raw_fd(); count]);
            }
            // Changes of a close whose handle is there, one at a time.
            let is_closed = sample[0] == 4;
            for at in (0..sample.len()).filter(|_| is_closed && matches!(state, State::Thawed | State::ShuttingDown)) {
                let Answer::Opened { handle } =
                    play.ask(&Ask::Open { path: WirePath::cut(b"/m/ro/f"), mode: Mode::Read })
                else {
                    panic!("no file of the policy")
                };
                play.known.handles.insert(handle);
                let close = Ask::Closed { handle, used: Use { read: 0, written: 0, calls: 0 } };
                let changed = flips(&frame(&close)).nth(at * 9 + number % 9).expect("a change");
                play.frame("byte changed", &changed, &[]);
                if play.known.handles.contains(&handle) && play.life.is_some() {
                    play.frame("byte changed", &frame(&close), &[]);
                }
            }
        }
        let found = play.end();
        println!("    {state:?}: {} lives, {:?}", found.lives, started.elapsed());
        all.push(found);
    }
    print_table(&all);
    let odd: Vec<&String> = all.iter().flat_map(|found| &found.odd).collect();
    assert!(odd.is_empty(), "{odd:#?}");
}

fn print_table(all: &[Found]) {
    println!("\n    | state | type by length | byte changed | descriptors | workers | peak KiB | of its own |");
    println!("    |---|---|---|---|---|---|---|");
    let (mut frames, mut peak) = (0, 0);
    for found in all {
        let of = |kind| found.tried.get(kind).copied().unwrap_or_default();
        println!(
            "    | {:?} | {} | {} | {} | {} | {} | {} |",
            found.state,
            of("type by length"),
            of("byte changed"),
            of("descriptors"),
            found.lives,
            found.resident,
            found.own
        );
        frames += found.tried.values().sum::<u64>();
        peak = peak.max(found.resident);
    }
    let odd: usize = all.iter().map(|found| found.odd.len()).sum();
    println!("    {frames} frames, {odd} acts outside the policy, peak of the broker {peak} KiB\n");
}
