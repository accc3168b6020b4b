//! What a host can repeat at will without effect: so much of it is listed, the
//! rest is counted.
//!
//! Token buckets in bytes: one for each kind of record, and a larger one behind
//! them that all kinds share. So a flood of one kind is listed for a while, and
//! hides no other kind, which still has its own. Nothing here wakes anybody: what
//! was counted is told with the next record for which there is room.
//!
//! An act that must be announced before anybody knows what comes of it cannot be
//! counted instead. If nothing came of it, it is charged for afterwards, to a
//! bucket that nothing else takes from, and where nothing is left there the next
//! of its kind is refused.
//!
//! Trust: events are the broker's names; when and how often is the host's.
//! Caller: the log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postern_core::audit::{Record, ThawCause, Timestamp};
use postern_core::rate::Bucket;

/// Bytes of records that a host can have written at once beyond what each kind
/// has for itself: some 500 refusals.
pub const BURST_BYTES: u64 = 256 << 10;
/// Bytes of records per second behind that: two refusals, 86 MB in a day.
pub const BYTES_PER_SECOND: u64 = 1 << 10;
/// So many of both each kind has for itself: some 30 refusals at once, then one
/// in eight seconds.
pub const OWN_PART: u64 = 16;
/// How many kinds there are. All that a host can have written is the two numbers
/// above, and [`OWN_PART`] of them for each kind: 400 KiB, then 1.6 KiB a second;
/// and the two numbers once more for each of [`Fruitless`].
pub const KINDS: u64 = Kind::Repeated as u64 + 1;

/// Bytes that time, number, hash and newline add to a body.
const SEAL_BYTES: usize = 165;

/// How far ahead of the clock a bucket may be: the same for both sizes.
const AHEAD: Duration = Duration::from_secs(BURST_BYTES / BYTES_PER_SECOND);

/// What shares a bucket: few kinds, so that all of them together stay small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A command that the policy withholds, or that nobody has.
    Command,
    /// An open that was refused.
    Open,
    /// A shutdown or another act that was refused.
    Shutdown,
    /// A thaw where nothing was frozen.
    Thaw,
    /// What was counted in the first place.
    Counted,
    /// What was refused for its number.
    Limited,
    /// Hosts that come and go.
    Host,
    /// Facts that were gathered, or could not be told.
    Fact,
    /// What tells of the rest. The last one: see [`KINDS`].
    Repeated,
}

/// An act that was announced, and of which nothing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fruitless {
    /// An open that should have made or emptied a file.
    Open,
    /// A freeze that froze nothing, or failed.
    Freeze,
    /// Any other act, whatever came of it: none is sensible twice a second.
    Act,
}

/// The buckets, and what found no room in them.
#[derive(Debug, Default)]
pub(super) struct Flood {
    own: [Bucket; Kind::Repeated as usize + 1],
    shared: Bucket,
    fruitless: [Bucket; 3],
    counts: BTreeMap<&'static str, u64>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// What a record costs, at this many bytes a second.
fn cost(body: usize, per_second: u64) -> Duration {
    let bytes = (body + SEAL_BYTES) as u64;
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / per_second)
}

impl Flood {
    /// Whether there is room. One record more than fits is let through, so that
    /// the longest is not starved by short ones.
    pub(super) fn has_room(&self, kind: Kind, now: Instant) -> bool {
        self.own[kind as usize].has_room(now, AHEAD) || self.shared.has_room(now, AHEAD)
    }

    /// Takes the room of a record whose body is so long.
    pub(super) fn pay(&mut self, kind: Kind, now: Instant, body: usize) {
        let own = &mut self.own[kind as usize];
        if own.has_room(now, AHEAD) {
            own.take(now, cost(body, BYTES_PER_SECOND / OWN_PART));
        } else {
            self.shared.take(now, cost(body, BYTES_PER_SECOND));
        }
    }

    /// Whether one more of these acts may be announced.
    pub(super) fn bears(&self, act: Fruitless, now: Instant) -> bool {
        self.fruitless[act as usize].has_room(now, AHEAD)
    }

    /// Takes the room of a record of such an act, whose body is so long.
    pub(super) fn charge(&mut self, act: Fruitless, now: Instant, body: usize) {
        self.fruitless[act as usize].take(now, cost(body, BYTES_PER_SECOND));
    }

    /// Counts what is not listed.
    pub(super) fn count(&mut self, record: &Record, at: Timestamp) {
        *self.counts.entry(record.action()).or_default() += 1;
        self.since.get_or_insert(at);
        self.until = Some(at);
    }

    /// The record of what was counted, if anything was.
    pub(super) fn told(&self) -> Option<Record> {
        let counts: Vec<_> = self.counts.iter().map(|(&event, &count)| (event, count)).collect();
        Some(Record::Repeated { counts, since: self.since?, until: self.until? })
    }

    /// Begins to count anew: the record is written.
    pub(super) fn forget(&mut self) {
        self.counts.clear();
        (self.since, self.until) = (None, None);
    }
}

/// The kind of a record that a host, or a worker that has fallen, can cause
/// without end and without effect.
pub(super) fn repeatable(record: &Record) -> Option<Kind> {
    Some(match record {
        Record::CommandRefused { .. } => Kind::Command,
        Record::OpenRefused { .. } => Kind::Open,
        Record::ShutdownRefused { .. } | Record::ActRefused { .. } => Kind::Shutdown,
        Record::Counted { .. } => Kind::Counted,
        Record::Limited { .. } => Kind::Limited,
        Record::FactTold { fact, errno, .. } if fact.is_gathered() || errno.is_some() => Kind::Fact,
        Record::HostConnected { .. } | Record::HostDisconnected { .. } | Record::HostRefused { .. } => Kind::Host,
        // Asked to thaw where nothing was frozen.
        Record::Thawed { cause: ThawCause::Host, count: 0, failed, .. }
            if failed.kept().is_empty() && failed.omitted() == 0 =>
        {
            Kind::Thaw
        }
        _ => return None,
    })
}

/// What an announcement is charged as if nothing comes of it.
pub(super) const fn announces(record: &Record) -> Option<Fruitless> {
    match record {
        Record::OpenAsked { .. } => Some(Fruitless::Open),
        Record::FreezeAsked { .. } => Some(Fruitless::Freeze),
        Record::ActAsked { .. } => Some(Fruitless::Act),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of records of this kind, asked for every millisecond for so long.
    fn flood_of(
        flood: &mut Flood,
        kinds: &[Kind],
        start: Instant,
        milliseconds: u64,
        most: impl Fn(u64) -> u64,
    ) -> u64 {
        // A long record among short ones.
        let size = |number: u64| if number.is_multiple_of(100) { 64 << 10 } else { 480_usize };
        let mut written = 0;
        for number in 0..milliseconds {
            let now = start + Duration::from_millis(number);
            for &kind in kinds {
                if flood.has_room(kind, now) {
                    let bytes = size(number);
                    flood.pay(kind, now, bytes - SEAL_BYTES);
                    written += bytes as u64;
                }
            }
            assert!(written <= most(number + 1), "{written} of {} bytes after {number} ms", most(number + 1));
        }
        written
    }

    /// What so many kinds may take, each of the buckets once overdrawn.
    fn bound(kinds: u64) -> impl Fn(u64) -> u64 {
        let part = move |whole: u64| whole + kinds * whole / OWN_PART;
        move |milliseconds| part(BURST_BYTES) + part(BYTES_PER_SECOND) * milliseconds / 1000 + (kinds + 1) * (64 << 10)
    }

    #[test]
    fn a_flood_is_let_through_at_the_rate_and_no_faster() {
        let start = Instant::now();
        for kinds in [&[Kind::Open][..], &[Kind::Open, Kind::Command, Kind::Host, Kind::Limited]] {
            let mut flood = Flood::default();
            let written = flood_of(&mut flood, kinds, start, 3_600_000, bound(kinds.len() as u64));
            // And it is used: no less either.
            assert!(written >= BURST_BYTES + BYTES_PER_SECOND * 3599, "{written}");
            // A pause fills it again, and no more than that.
            let later = start + Duration::from_secs(1_000_000);
            let burst = (0..1_000_000)
                .take_while(|_| {
                    let room = flood.has_room(Kind::Open, later);
                    flood.pay(Kind::Open, later, 1024 - SEAL_BYTES);
                    room
                })
                .count();
            assert_eq!(burst as u64, (BURST_BYTES + BURST_BYTES / OWN_PART) / 1024);
        }
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other() {
        let (mut flood, now) = (Flood::default(), Instant::now());
        while flood.has_room(Kind::Command, now) {
            flood.pay(Kind::Command, now, 480);
        }
        let others = [Kind::Open, Kind::Shutdown, Kind::Thaw, Kind::Counted, Kind::Limited, Kind::Host];
        for kind in others.into_iter().chain([Kind::Repeated]) {
            let listed = (0..1000)
                .take_while(|_| {
                    let room = flood.has_room(kind, now);
                    flood.pay(kind, now, 480);
                    room
                })
                .count();
            assert!((20..40).contains(&listed), "{kind:?}: {listed}");
        }
        assert!(!flood.has_room(Kind::Command, now));
        assert!(flood.bears(Fruitless::Open, now) && flood.bears(Fruitless::Freeze, now), "refusals cost no act");
        while flood.bears(Fruitless::Freeze, now) {
            flood.charge(Fruitless::Freeze, now, 480);
        }
        assert!(flood.bears(Fruitless::Open, now));
    }

    #[test]
    fn what_is_counted_is_told_once() {
        let mut flood = Flood::default();
        assert_eq!(flood.told(), None);
        let [first, last] = [1, 9].map(|second| Timestamp::from_second(second).expect("a time"));
        flood.count(&Record::HostConnected { peer: None }, first);
        flood.count(&Record::HostDisconnected { peer: None }, first);
        flood.count(&Record::HostConnected { peer: None }, last);
        let counts = vec![("host-connected", 2), ("host-disconnected", 1)];
        assert_eq!(flood.told(), Some(Record::Repeated { counts, since: first, until: last }));
        flood.forget();
        assert_eq!(flood.told(), None);
    }
}
