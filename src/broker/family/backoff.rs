//! When the next child of a role may be born: at once after one crash, later and
//! later after many.
//!
//! Every child is born by exec into an address space laid out anew, so each
//! crash is a guess that costs its maker nothing but time, and a guess that
//! failed tells nothing about the next one. What is left to the guest is how many
//! guesses it lets be made: [`LONGEST`] apart, 12 an hour, 105,000 a year. On
//! average 2^bits are needed (`vm.mmap_rnd_bits`):
//!
//! | kernel | bits | guessed after, on average | within a year |
//! |---|---|---|---|
//! | `x86_64` | 28 | 2,554 years | 1 in 2,554 |
//! | aarch64, pages of 4 KiB, the kernel's own default | 18 | 2.5 years | 1 in 3 |
//! | aarch64, where 33 is set (`sysctl vm.mmap_rnd_bits=33`) | 33 | 81,700 years | 1 in 81,700 |
//!
//! and every guess is a record, `process-died` with its signal. At the 30 a
//! minute that [`BURST`] alone would let through, 18 bits fall in six days.
//!
//! A child that died before it was confined is no guess, for it has heard no
//! host; nor is one that the broker let go of for its own reasons. Those are
//! bounded by [`BURST`] only, and one that could not be born at all is tried again
//! each second, so that a guest that was short of memory or processes for a
//! while is served as soon as it is not.
//!
//! Frozen filesystems wait for none of this: the policy's limit thaws without a
//! worker.
//!
//! Trust: plain arithmetic on the broker's own clock, the monotonic one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many children of a role are started at once within [`WINDOW`]; the next
/// waits until the window has moved on. That costs a guest a few hundred
/// milliseconds of one processor in ten seconds.
const BURST: usize = 5;
/// See [`BURST`].
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// So long after one that could not be born, for want of memory, descriptors or
/// processes, the next is tried.
const AGAIN: Duration = Duration::from_secs(1);

/// Crashes are remembered for so long.
const MEMORY: Duration = Duration::from_secs(3600);
/// So many crashes within [`MEMORY`] are made good at once: a host that met one
/// flaw a few times in a row does not wait.
const FREE: usize = 4;
/// How long the child after the next crash waits; with each further one twice as
/// long.
const FIRST: Duration = Duration::from_secs(10);
/// The longest that a child waits. A host is without answer for no longer; see the
/// table above for what that lets through.
const LONGEST: Duration = Duration::from_secs(300);
/// No more crashes need be known: from these on it is [`LONGEST`].
const KNOWN: usize = 16;

/// One role's births and crashes.
#[derive(Debug, Default)]
pub(super) struct Line {
    births: VecDeque<Instant>,
    crashes: VecDeque<Instant>,
    failed: Option<Instant>,
}

impl Line {
    /// A child is asked for.
    pub(super) fn born(&mut self, now: Instant) {
        keep(&mut self.births, BURST, now);
    }

    /// The one that was asked for last could not be born.
    pub(super) fn failed(&mut self, now: Instant) {
        self.births.pop_back();
        self.failed = Some(now);
    }

    /// A confined child crashed.
    pub(super) fn crashed(&mut self, now: Instant) {
        keep(&mut self.crashes, KNOWN, now);
    }

    /// How many crashes are remembered ([`KNOWN`] at most), and when the next
    /// child may be born.
    pub(super) fn next(&self, now: Instant) -> (usize, Instant) {
        let crashes = self.crashes.iter().filter(|crash| now.saturating_duration_since(**crash) < MEMORY).count();
        let burst = self.births.front().filter(|_| self.births.len() >= BURST).map_or(now, |oldest| *oldest + WINDOW);
        let calm = self.crashes.back().map_or(now, |last| *last + pause(crashes));
        let again = self.failed.map_or(now, |failed| failed + AGAIN);
        (crashes, burst.max(calm).max(again))
    }
}

fn keep(times: &mut VecDeque<Instant>, most: usize, now: Instant) {
    times.push_back(now);
    if times.len() > most {
        times.pop_front();
    }
}

/// How long to wait behind the last of so many crashes.
fn pause(crashes: usize) -> Duration {
    match crashes.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => LONGEST.min(FIRST * (1 << doublings.min(8))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lives a line of children that crash as soon as they are born; when each
    /// was born, in seconds from the first.
    fn loop_of_crashes(until: Duration) -> Vec<u64> {
        let start = Instant::now();
        let (mut line, mut now, mut births) = (Line::default(), start, Vec::new());
        while now < start + until {
            line.born(now);
            births.push((now - start).as_secs());
            line.crashed(now);
            now = line.next(now).1.max(now);
        }
        births
    }

    #[test]
    fn a_loop_slows_down_to_twelve_an_hour() {
        let births = loop_of_crashes(Duration::from_secs(30 * 24 * 3600));
        assert_eq!(births[..10], [0, 0, 0, 0, 0, 10, 30, 70, 150, 310]);
        let within = |from: u64, to: u64| births.iter().filter(|at| (from..to).contains(at)).count();
        assert!(within(0, 3600) <= 22, "{}", within(0, 3600));
        for day in 1..30 {
            let (from, to) = (day * 86_400, (day + 1) * 86_400);
            assert!((280..=288).contains(&within(from, to)), "day {day}: {}", within(from, to));
        }
        let longest = births.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!(longest, Some(LONGEST.as_secs()), "and no host is without answer for longer");
    }

    #[test]
    fn a_few_crashes_are_made_good_at_once() {
        let start = Instant::now();
        let mut line = Line::default();
        for crash in 0..100 {
            // One every quarter of an hour, for a day.
            let now = start + Duration::from_secs(crash * 900);
            line.born(now);
            line.crashed(now);
            assert!(line.next(now).1 <= now, "crash {crash}");
        }
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let start = Instant::now();
        let mut line = Line::default();
        for _ in 0..50 {
            line.born(start);
            line.crashed(start);
        }
        assert_eq!(line.next(start), (KNOWN, start + LONGEST));
        let later = start + MEMORY;
        assert_eq!(line.next(later), (0, later.min(line.next(later).1)));
        assert!(line.next(later).1 <= later);
    }

    #[test]
    fn births_without_a_crash_are_bounded_too() {
        let start = Instant::now();
        let mut line = Line::default();
        for _ in 0..BURST {
            assert!(line.next(start).1 <= start);
            line.born(start);
        }
        assert_eq!(line.next(start), (0, start + WINDOW));
    }

    #[test]
    fn what_cannot_be_born_is_tried_each_second_and_is_no_birth() {
        let start = Instant::now();
        let (mut line, mut now) = (Line::default(), start);
        for _ in 0..100 {
            line.born(now);
            line.failed(now);
            assert_eq!(line.next(now), (0, now + AGAIN));
            now += AGAIN;
        }
        line.born(now);
        assert!(line.next(now).1 <= now, "and then others at once");
    }
}
