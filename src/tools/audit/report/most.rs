//! Sums per name in bounded memory, whatever names a log holds: what matters
//! most is kept by name, the rest as one sum.
//!
//! Trust: names and figures are anyone's; who writes many names can push only
//! names of less weight out.

use std::collections::{BTreeMap, VecDeque};

/// Most bytes that the names of one table take: 16 MiB.
const BYTES: usize = 16 << 20;

/// What is summed up per name.
pub(super) trait Tally: Clone + Default {
    /// What of it decides who is kept.
    type Weight: Ord;
    /// More is kept longer, and shown first.
    fn weight(&self) -> Self::Weight;
    /// Adds what another name had.
    fn absorb(&mut self, other: &Self);
}

/// Tallies by name. Up to twice `limit` names are held; then those of least
/// weight become part of the rest.
#[derive(Debug)]
pub(super) struct Most<K, V> {
    kept: BTreeMap<K, V>,
    limit: usize,
    bytes: usize,
    rest: V,
    folded: u64,
}

/// The heaviest, and the sum of those that were left out.
#[derive(Debug)]
pub(super) struct Top<'a, K, V> {
    /// Heaviest first; of equal weight by name.
    pub(super) rows: Vec<(&'a K, &'a V)>,
    /// How many were left out.
    pub(super) others: u64,
    /// Their sum.
    pub(super) rest: V,
}

impl<K: AsRef<[u8]> + Clone + Ord, V: Tally> Most<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: BTreeMap::new(), limit, bytes: 0, rest: V::default(), folded: 0 }
    }

    /// The tally of a name.
    pub(super) fn of(&mut self, name: K) -> &mut V {
        let cost = name.as_ref().len();
        if !self.kept.contains_key(&name) {
            if self.kept.len() >= 2 * self.limit || self.bytes + cost > BYTES {
                self.fold();
            }
            self.bytes += cost;
        }
        self.kept.entry(name).or_default()
    }

    fn fold(&mut self) {
        let mut all: Vec<(K, V)> = std::mem::take(&mut self.kept).into_iter().collect();
        all.sort_by(|a, b| b.1.weight().cmp(&a.1.weight()).then_with(|| a.0.cmp(&b.0)));
        self.bytes = 0;
        for (name, tally) in all {
            if self.kept.len() < self.limit && self.bytes + name.as_ref().len() <= BYTES / 2 {
                self.bytes += name.as_ref().len();
                self.kept.insert(name, tally);
            } else {
                self.folded += 1;
                self.rest.absorb(&tally);
            }
        }
    }

    /// The `count` heaviest of those that are wanted.
    pub(super) fn top(&self, count: usize, wanted: impl Fn(&V) -> bool) -> Top<'_, K, V> {
        let mut rows: Vec<_> = self.kept.iter().filter(|(_, tally)| wanted(tally)).collect();
        // Stable: of equal weight by name.
        rows.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.weight()));
        let mut rest = V::default();
        let cut = rows.split_off(count.min(rows.len()));
        for (_, tally) in &cut {
            rest.absorb(tally);
        }
        Top { rows, others: cut.len() as u64, rest }
    }

    /// How often a name was given up, and the sum of what they had. One that
    /// came back afterwards began at zero, and may be among them twice.
    pub(super) const fn folded(&self) -> (u64, &V) {
        (self.folded, &self.rest)
    }
}

/// The newest of a list; older ones are counted.
#[derive(Debug)]
pub(super) struct Newest<T> {
    kept: VecDeque<T>,
    limit: usize,
    older: u64,
}

impl<T> Newest<T> {
    pub(super) const fn new(limit: usize) -> Self {
        Self { kept: VecDeque::new(), limit, older: 0 }
    }

    pub(super) fn push(&mut self, item: T) {
        if self.kept.len() == self.limit {
            self.kept.pop_front();
            self.older += 1;
        }
        self.kept.push_back(item);
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        self.kept.back_mut()
    }

    /// All that are kept, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.kept.iter()
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.older + self.kept.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Count(u64);

    impl Tally for Count {
        type Weight = u64;
        fn weight(&self) -> u64 {
            self.0
        }
        fn absorb(&mut self, other: &Self) {
            self.0 += other.0;
        }
    }

    #[test]
    fn a_flood_of_names_pushes_out_only_lighter_ones() {
        let mut most = Most::<String, Count>::new(10);
        for name in ["b", "a"] {
            most.of(name.to_owned()).0 += 5;
        }
        for number in 0..10_000 {
            most.of(format!("flood {number}")).0 += 1;
            assert!(most.kept.len() <= 20);
        }
        let top = most.top(3, |_| true);
        assert_eq!(top.rows[..2], [(&"a".to_owned(), &Count(5)), (&"b".to_owned(), &Count(5))]);
        let (folded, rest) = most.folded();
        assert_eq!((top.rows.len(), top.others + folded, top.rest.0 + rest.0), (3, 9_999, 9_999));
        assert!(folded > 9_000);
    }

    #[test]
    fn long_names_are_bounded_together() {
        let mut most = Most::<String, Count>::new(1000);
        for number in 0..200 {
            most.of(format!("{number}{}", "x".repeat(1 << 20))).0 += 1;
            assert!(most.bytes <= BYTES && most.kept.len() <= 16);
        }
        assert_eq!(most.top(0, |_| true).rest.0 + most.folded().1.0, 200);
    }

    #[test]
    fn the_newest_are_kept() {
        let mut newest = Newest::new(2);
        (0..5).for_each(|item| newest.push(item));
        assert_eq!((newest.iter().copied().collect::<Vec<_>>(), newest.count()), (vec![3, 4], 5));
    }
}
