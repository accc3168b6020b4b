//! How many records of which kind at which time, in bounded memory: bins of a
//! width that doubles when there would be too many.
//!
//! Trust: times are anyone's; a wrong one costs a bin.

use std::collections::BTreeMap;

/// Most bins.
const MOST: usize = 4096;

/// What a record is counted as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    Opened,
    Refused,
    Alarm,
    Other,
}

/// How many lanes there are.
pub(super) const LANES: usize = 4;

/// Counts by time.
#[derive(Debug, Default)]
pub(super) struct Bins {
    /// By time in microseconds, shifted.
    counts: BTreeMap<i64, [u64; LANES]>,
    /// So that the bins are the same whatever order the times came in: it is the
    /// least with which they are few enough.
    shift: u32,
}

impl Bins {
    /// Counts one at a time in microseconds.
    pub(super) fn add(&mut self, at: i64, lane: Lane) {
        self.counts.entry(at >> self.shift).or_default()[lane as usize] += 1;
        while self.counts.len() > MOST {
            self.shift += 1;
            for (bin, counts) in std::mem::take(&mut self.counts) {
                let wider = self.counts.entry(bin >> 1).or_default();
                wider.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more);
            }
        }
    }

    /// The width of a bin in microseconds.
    pub(super) const fn width(&self) -> i64 {
        1 << self.shift
    }

    /// Bins by the time at which they begin, clamped to `first`.
    pub(super) fn iter(&self, first: i64) -> impl Iterator<Item = (i64, &[u64; LANES])> {
        self.counts.iter().map(move |(bin, counts)| ((bin << self.shift).max(first), counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_order_and_any_times_make_the_same_bounded_bins() {
        let times: Vec<i64> = (0..20_000).map(|number| number * 7_000_003).chain([i64::MIN, i64::MAX, -1]).collect();
        let (mut one, mut other) = (Bins::default(), Bins::default());
        for (at, from_behind) in times.iter().zip(times.iter().rev()) {
            one.add(*at, Lane::Opened);
            other.add(*from_behind, Lane::Opened);
        }
        assert_eq!(one.counts, other.counts);
        assert!(one.counts.len() <= MOST && one.counts.len() > MOST / 4);
        assert_eq!(one.counts.values().map(|counts| counts[0]).sum::<u64>(), 20_003);
    }
}
