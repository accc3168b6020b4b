//! How often: a token bucket, and one for each command.
//!
//! Nothing here has a timer: who asks says what time it is, and what was refused
//! is told with a later question.
//!
//! Trust: plain arithmetic, no input. When and how often is the host's. Callers:
//! the worker and the broker, each for what it does itself; the log, in bytes.

use std::time::{Duration, Instant};

use crate::catalogue::{Command, Rate};
use crate::policy::Limits;

/// A token bucket, kept as the time at which it is full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// Whether something is left in a bucket that takes so long to fill. Who takes
    /// more than is left is waited for, so that what is large is not starved by
    /// what is small.
    #[must_use]
    pub fn has_room(&self, now: Instant, depth: Duration) -> bool {
        self.full_at.is_none_or(|full| full.saturating_duration_since(now) < depth)
    }

    /// Takes what flows in during this time.
    pub fn take(&mut self, now: Instant, time: Duration) {
        self.full_at = Some(self.full_at.map_or(now, |full| full.max(now)) + time);
    }
}

/// How long a bucket of requests takes to fill: so many as may come in a second
/// may come at once. A second, in nanoseconds.
const DEPTH_NANOS: u64 = 1_000_000_000;
/// What was refused is told at once, and then no more often than this.
pub const TELL_AGAIN: Duration = Duration::from_secs(10);
/// At least as many as there are commands.
const COMMANDS: usize = 64;

/// A bucket for each command, and how often it was empty.
#[derive(Debug)]
pub struct Rates {
    buckets: [Bucket; COMMANDS],
    refused: [u64; COMMANDS],
    told: Option<Instant>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { buckets: [Bucket::default(); COMMANDS], refused: [0; COMMANDS], told: None }
    }
}

impl Rates {
    /// Whether one more may be done of a command of which so many may be in a
    /// second, at least one; takes its place if so, counts it if not.
    pub fn admits(&mut self, command: Command, per_second: u32, now: Instant) -> bool {
        let bucket = &mut self.buckets[command as usize];
        let cost = DEPTH_NANOS / u64::from(per_second.max(1));
        // Room for all of it: a bucket that the first has just begun to empty is
        // not full again a moment later.
        let admits = bucket.has_room(now, Duration::from_nanos(DEPTH_NANOS - cost + 1));
        if admits {
            bucket.take(now, Duration::from_nanos(cost));
        } else {
            self.refuse(command);
        }
        admits
    }

    /// Counts one that was refused for another number.
    pub fn refuse(&mut self, command: Command) {
        self.refused[command as usize] += 1;
    }

    /// How often each command was refused since this last told, if it is time to
    /// tell.
    pub fn due(&mut self, now: Instant) -> Option<Vec<(Command, u64)>> {
        let waits = self.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_AGAIN);
        if waits { None } else { self.rest(now) }
    }

    /// The same, whatever the time.
    pub fn rest(&mut self, now: Instant) -> Option<Vec<(Command, u64)>> {
        let counts: Vec<_> = Command::all()
            .map(|command| (command, std::mem::take(&mut self.refused[command as usize])))
            .filter(|(_, times)| *times > 0)
            .collect();
        if counts.is_empty() {
            return None;
        }
        self.told = Some(now);
        Some(counts)
    }
}

impl Rate {
    /// The policy's key and its number, where there is one.
    #[must_use]
    pub const fn limit(self, limits: &Limits) -> Option<(&'static str, u32)> {
        match self {
            Self::Unlimited => None,
            Self::Requests => Some(("limits.requests", limits.requests)),
            Self::Opens => Some(("limits.opens", limits.opens)),
            Self::Acts => Some(("limits.acts", limits.acts)),
        }
    }
}

/// What the host is told of a request too many.
#[must_use]
pub fn too_many(command: Command, (key, most): (&str, u32)) -> String {
    format!("{command}: more than {most} requests in a second ({key} of the guest's policy)")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn so_many_at_once_and_then_so_many_a_second() {
        for per_second in [1, 3, 10, 30_000] {
            let mut rates = Rates::default();
            let start = Instant::now();
            let mut many =
                |now: Instant| (0..100_000).take_while(|_| rates.admits(Command::FileRead, per_second, now)).count();
            assert_eq!(many(start), per_second as usize);
            assert_eq!(many(start), 0);
            let next = SECOND / per_second;
            assert_eq!(many(start + next / 2), 0, "{per_second}");
            assert_eq!(many(start + next), 1, "{per_second}");
            assert_eq!(many(start + 3 * SECOND), per_second as usize, "{per_second}");
        }
    }

    #[test]
    fn one_command_takes_nothing_from_another() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        assert!(rates.admits(Command::FileRead, 1, now));
        assert!(!rates.admits(Command::FileRead, 1, now));
        assert!(rates.admits(Command::FileWrite, 1, now));
    }

    #[test]
    fn what_is_refused_is_told_at_once_and_then_now_and_then() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        assert_eq!(rates.due(now), None);
        let refuse = |rates: &mut Rates, times: u64| {
            (0..=times).for_each(|_| _ = rates.admits(Command::FileRead, 1, now));
        };
        refuse(&mut rates, 1);
        assert_eq!(rates.due(now), Some(vec![(Command::FileRead, 1)]));
        refuse(&mut rates, 4);
        assert_eq!(rates.due(now + SECOND), None);
        assert_eq!(rates.due(now + TELL_AGAIN), Some(vec![(Command::FileRead, 5)]));
        assert_eq!(rates.rest(now + TELL_AGAIN), None);
        refuse(&mut rates, 0);
        assert_eq!(rates.rest(now + TELL_AGAIN), Some(vec![(Command::FileRead, 1)]));
    }

    #[test]
    fn what_must_come_through_is_never_limited() {
        let unlimited: Vec<_> =
            Command::all().filter(|command| command.entry().rate.limit(&Limits::default()).is_none()).collect();
        assert_eq!(
            unlimited,
            [Command::SyncDelimited, Command::Sync, Command::Ping, Command::FsfreezeStatus, Command::FsfreezeThaw]
        );
        // What the broker does is limited there.
        for command in Command::all().filter(|command| !unlimited.contains(command)) {
            let entry = command.entry();
            assert_eq!(entry.rate == Rate::Requests, entry.needs.acts.is_empty(), "{command}");
        }
        assert!(Command::all().count() <= COMMANDS);
    }
}
