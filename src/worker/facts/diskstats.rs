//! `guest-get-diskstats`, of `/proc/diskstats`: the kernel's
//! `Documentation/admin-guide/iostats.rst`.
//!
//! Trust: the kernel's bytes; any others are read as far as they have its form.

use serde::{Serialize, Serializer};

use super::text::{number, words};

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskStats {
    name: String,
    stats: Stats,
    minor: u32,
    major: u32,
}

/// A device's counters, as the kernel has them: sectors of 512 bytes, times in
/// milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stats(Vec<u64>);

/// Most counters that the host is told.
const MOST: usize = 17;

/// By how many counters there are at least: names, in stock's order, and which
/// counter each is. A name whose counter is not there is left out.
type Names = &'static [(&'static str, usize)];
static NAMES: [(usize, Names); 3] = [
    // Linux 2.6.25 and on; 4.18 added four for discards, 5.5 two for flushes.
    (
        11,
        &[
            ("discard-sectors", 13),
            ("write-ios", 4),
            ("discard-ios", 11),
            ("discard-ticks", 14),
            ("weight-ticks", 10),
            ("read-ios", 0),
            ("flush-ios", 15),
            ("write-sectors", 6),
            ("write-merges", 5),
            ("write-ticks", 7),
            ("ios-pgr", 8),
            ("read-sectors", 2),
            ("read-merges", 1),
            ("total-ticks", 9),
            ("discard-merges", 12),
            ("flush-ticks", 16),
            ("read-ticks", 3),
        ],
    ),
    (5, &[]),
    // A partition before that.
    (4, &[("write-ios", 2), ("read-ios", 0), ("write-sectors", 3), ("read-sectors", 1)]),
];

impl Serialize for Stats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(counters) = self;
        let names = NAMES.iter().find(|(least, _)| counters.len() >= *least).map_or(&[][..], |(_, names)| names);
        serializer.collect_map(names.iter().filter_map(|(name, index)| Some((name, counters.get(*index)?))))
    }
}

/// What each device did since it is there. A line of fewer than four counters, which
/// no kernel writes, is left out.
#[must_use]
pub fn stats(diskstats: &[u8]) -> Vec<DiskStats> {
    diskstats.split(|byte| *byte == b'\n').filter_map(DiskStats::of).collect()
}

impl DiskStats {
    fn of(line: &[u8]) -> Option<Self> {
        let mut words = words(line);
        let (major, minor) = (number(words.next()?)?, number(words.next()?)?);
        let name = String::from_utf8_lossy(words.next()?).into_owned();
        let mut counters: Vec<u64> = words.map_while(number).take(MOST).collect();
        // Discards and flushes are there as a whole or not at all.
        let whole = match counters.len() {
            4.. if counters.len() >= MOST => MOST,
            15.. => 15,
            11.. => 11,
            count => count,
        };
        counters.truncate(whole);
        (counters.len() >= 4).then_some(Self { name, stats: Stats(counters), minor, major })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{json, list};
    use super::*;

    #[test]
    fn counters_by_the_columns_that_the_kernel_has() {
        let told = stats(
            b"   8       0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n\
              \x20  8       1 sda1 1 2 3 4\n\
              \x20  8       3 sda3 1 2 3 4 5 6 7 8 9 10 11\n\
              \x20  8       4 sda4 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15\n\
              \x20  8       5 sda5 1 2 3 4 5 6\n\
              \x20  8       6 sda6 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
              \x20259  1048575 nvme0n1p1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19\n",
        );
        let all = r#"{"name": "sda", "stats": {"discard-sectors": 14, "write-ios": 5, "discard-ios": 12, "discard-ticks": 15, "weight-ticks": 11, "read-ios": 1, "flush-ios": 16, "write-sectors": 7, "write-merges": 6, "write-ticks": 8, "ios-pgr": 9, "read-sectors": 3, "read-merges": 2, "total-ticks": 10, "discard-merges": 13, "flush-ticks": 17, "read-ticks": 4}, "minor": 0, "major": 8}"#;
        assert_eq!(json(&told[0]), all);
        let partition = r#"{"name": "sda1", "stats": {"write-ios": 3, "read-ios": 1, "write-sectors": 4, "read-sectors": 2}, "minor": 1, "major": 8}"#;
        assert_eq!(json(&told[1]), partition);
        let eleven = r#"{"write-ios": 5, "weight-ticks": 11, "read-ios": 1, "write-sectors": 7, "write-merges": 6, "write-ticks": 8, "ios-pgr": 9, "read-sectors": 3, "read-merges": 2, "total-ticks": 10, "read-ticks": 4}"#;
        assert_eq!(json(&told[2].stats), eleven);
        let fifteen = r#"{"discard-sectors": 14, "write-ios": 5, "discard-ios": 12, "discard-ticks": 15, "weight-ticks": 11, "read-ios": 1, "write-sectors": 7, "write-merges": 6, "write-ticks": 8, "ios-pgr": 9, "read-sectors": 3, "read-merges": 2, "total-ticks": 10, "discard-merges": 13, "read-ticks": 4}"#;
        assert_eq!(json(&told[3].stats), fifteen);
        assert_eq!(json(&told[4].stats), "{}");
        assert_eq!(json(&told[5].stats), fifteen, "half of what flushes have is none of it");
        assert_eq!((told[6].major, told[6].minor, told[6].stats.0.len()), (259, 1_048_575, 17));
        assert_eq!(told.len(), 7);
    }

    #[test]
    fn what_is_no_line_of_a_device_is_passed_over() {
        let odd = b"8 0\n8 0 sda\n8 0 sda 1 2 3\n8 0 sda 1 2 3 x\nx 0 sda 1 2 3 4\n-8 0 sda 1 2 3 4\n\n\xff\n\0";
        assert_eq!(stats(odd), []);
        assert_eq!(stats(b"8 0 d\xff 1 2 3 4")[0].name, "d\u{FFFD}");
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read(
            lines in prop::collection::vec(
                (any::<(u32, u32)>(), "[!-~]{1,20}", prop::collection::vec(any::<u64>(), 4..30)), 0..40)
        ) {
            let file: Vec<String> = lines
                .iter()
                .map(|((major, minor), name, counters)| format!("{major:4} {minor:7} {name} {}", list(counters)))
                .collect();
            let told = stats(file.join("
    ").as_bytes());
            prop_assert_eq!(told.len(), lines.len());
            for (told, ((major, minor), name, counters)) in told.iter().zip(&lines) {
                prop_assert_eq!((told.major, told.minor, &told.name), (*major, *minor, name));
                prop_assert_eq!(&told.stats.0[..], &counters[..told.stats.0.len()]);
                let told: serde_json::Value = serde_json::from_str(&json(&told.stats)).expect("an object");
                let members = told.as_object().expect("an object").len();
                prop_assert_eq!(members, match counters.len() { 4 => 4, 5..11 => 0, 11..15 => 11, 15..17 => 15, _ => 17 });
            }
        }
    }
}
