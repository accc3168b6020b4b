//! What a host can repeat at will without effect: so much of it is listed, the
//! rest is counted.
//!
//! A token bucket in bytes, kept as the time at which it is full again. Nothing
//! here wakes anybody: what was counted is told with the next record for which
//! there is room.
//!
//! Trust: events are the broker's names; when and how often is the host's.
//! Caller: the log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postern_core::audit::{Record, ThawCause, Timestamp};

/// Bytes of records that a host can have written at once: some 500 refusals.
pub const BURST_BYTES: u64 = 256 << 10;
/// Bytes of records per second behind that: two refusals, 86 MB in a day.
pub const BYTES_PER_SECOND: u64 = 1 << 10;

/// Bytes that time, number, hash and newline add to a body.
const SEAL_BYTES: usize = 165;

/// How far ahead of the clock the bucket may be.
const AHEAD: Duration = Duration::from_secs(BURST_BYTES / BYTES_PER_SECOND);

/// The bucket, and what found no room in it.
#[derive(Debug, Default)]
pub(super) struct Flood {
    /// When all that was let through is paid for.
    paid_at: Option<Instant>,
    counts: BTreeMap<&'static str, u64>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Flood {
    /// Whether there is room. One record more than fits is let through, so that
    /// the longest is not starved by short ones.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.paid_at.is_none_or(|paid| paid.saturating_duration_since(now) < AHEAD)
    }

    /// Takes the room of a record whose body is so long.
    pub(super) fn pay(&mut self, now: Instant, body: usize) {
        let bytes = body + SEAL_BYTES;
        let cost = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / BYTES_PER_SECOND);
        self.paid_at = Some(self.paid_at.map_or(now, |paid| paid.max(now)) + cost);
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

/// Whether a host, or a worker that has fallen, can cause such records without
/// end and without effect.
pub(super) fn is_repeatable(record: &Record) -> bool {
    match record {
        Record::CommandRefused { .. }
        | Record::OpenRefused { .. }
        | Record::ShutdownRefused { .. }
        | Record::Counted { .. }
        | Record::HostConnected { .. }
        | Record::HostDisconnected { .. }
        | Record::HostRefused { .. } => true,
        // Asked to thaw where nothing was frozen.
        Record::Thawed { cause: ThawCause::Host, count: 0, failed, .. } => {
            failed.kept().is_empty() && failed.omitted() == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_let_through_at_the_rate_and_no_faster() {
        let start = Instant::now();
        // A long record among short ones, asked for every millisecond for an hour.
        let size = |number: u64| if number.is_multiple_of(100) { 64 << 10 } else { 480_usize };
        let mut flood = Flood::default();
        let (mut written, mut longest) = (0, 0);
        for number in 0..3_600_000 {
            let now = start + Duration::from_millis(number);
            if flood.has_room(now) {
                let bytes = size(number);
                flood.pay(now, bytes - SEAL_BYTES);
                written += bytes as u64;
                longest = longest.max(bytes as u64);
            }
            let most = BURST_BYTES + BYTES_PER_SECOND * (number + 1) / 1000 + longest;
            assert!(written <= most, "{written} of {most} bytes after {number} ms");
        }
        // And it is used: no less either.
        assert!(written >= BURST_BYTES + BYTES_PER_SECOND * 3599, "{written}");
        assert_eq!(longest, 64 << 10);
        // A pause fills it again, and no more than that.
        let later = start + Duration::from_secs(1_000_000);
        let burst = (0..1_000_000)
            .take_while(|_| flood.has_room(later) && (flood.pay(later, 1024 - SEAL_BYTES), true).1)
            .count();
        assert_eq!(burst as u64, BURST_BYTES / 1024);
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
