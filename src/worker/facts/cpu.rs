//! `guest-get-cpustats`, of `/proc/stat` (proc(5)), and `guest-get-vcpus`, of
//! `/sys/devices/system/cpu` (sysfs-devices-system-cpu).
//!
//! Trust: the kernel's bytes; any others are read as far as they have its form.

use std::ops::RangeInclusive;

use postern_core::catalogue::facts::Fact;
use postern_core::ipc::bundle::{Bundle, Entry};
use serde::Serialize;

use super::FactError;
use super::text::{number, words};

/// Where the processors are.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// Milliseconds of one tick of what the kernel tells programs: its `USER_HZ` is 100
/// on x86 and arm64, whatever it counts by itself.
const TICK: u64 = 1000 / 100;

/// The time that one processor spent, in milliseconds since the start, by what it
/// did. What an older kernel has no column for is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    cpu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    guestnice: Option<u64>,
    idle: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    steal: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iowait: Option<u64>,
    system: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<u64>,
    nice: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    irq: Option<u64>,
    #[serde(rename = "type")]
    kind: &'static str,
    user: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    softirq: Option<u64>,
}

/// What each processor did; what all did together is left out, and so is a line
/// that tells less than the four columns that every kernel has.
#[must_use]
pub fn stats(stat: &[u8]) -> Vec<CpuStats> {
    stat.split(|byte| *byte == b'\n').filter_map(CpuStats::of).collect()
}

impl CpuStats {
    fn of(line: &[u8]) -> Option<Self> {
        let mut words = words(line);
        let cpu = number(words.next()?.strip_prefix(b"cpu")?)?;
        let mut times = words.map_while(number::<u64>).map(|ticks| ticks.saturating_mul(TICK));
        // In the file's order.
        let (user, nice, system, idle) = (times.next()?, times.next()?, times.next()?, times.next()?);
        let (iowait, irq, softirq) = (times.next(), times.next(), times.next());
        let (steal, guest, guestnice) = (times.next(), times.next(), times.next());
        Some(Self { cpu, guestnice, idle, steal, iowait, system, guest, nice, irq, kind: "linux", user, softirq })
    }
}

/// One processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vcpu {
    online: bool,
    #[serde(rename = "can-offline")]
    can_offline: bool,
    #[serde(rename = "logical-id")]
    logical_id: u32,
}

/// The processors that are there, in the kernel's order as stock has them.
///
/// # Errors
/// [`FactError::NoVcpus`].
pub fn vcpus(bundle: &Bundle<'_>) -> Result<Vec<Vcpu>, FactError> {
    let vcpus: Vec<Vcpu> = bundle.directory(PROCESSORS).into_iter().flatten().filter_map(Vcpu::of).collect();
    if vcpus.is_empty() { Err(FactError::NoVcpus) } else { Ok(vcpus) }
}

impl Vcpu {
    fn of(entry: Entry<'_>) -> Option<Self> {
        let logical_id = number(entry.name.strip_prefix(b"cpu")?)?;
        // Where there is none the processor runs for ever.
        let online = entry.content("online");
        Some(Self { online: online != Some(b"0"), can_offline: online.is_some(), logical_id })
    }
}

/// The kernel's lists of processors: those that there are, and those of them that are
/// on.
pub const LISTS: [Fact; 2] = [Fact::CpusPresent, Fact::CpusOnline];
/// What stands in them; in some guests, nothing.
pub type Lists = [Option<Vec<u8>>; LISTS.len()];

/// Processors as they were gathered last, and of which lists: while these tell of the
/// same ones, only which are on has to be asked.
#[derive(Debug, Default)]
pub struct Known {
    lists: Lists,
    vcpus: Vec<Vcpu>,
}

impl Known {
    /// As they were gathered after `lists` had been read.
    #[must_use]
    pub const fn new(lists: Lists, vcpus: Vec<Vcpu>) -> Self {
        Self { lists, vcpus }
    }

    /// The processors as they are now by the lists; `None` if that is not known, for
    /// there are others, or no lists.
    #[must_use]
    pub fn now(&self, lists: &Lists) -> Option<Vec<Vcpu>> {
        let [present, online] = lists;
        if present.is_none() || *present != self.lists[0] {
            return None;
        }
        let online = ranges(online.as_ref()?)?;
        let is_on = |id| online.iter().any(|range| range.contains(&id));
        let now = |vcpu: &Vcpu| Vcpu { online: !vcpu.can_offline || is_on(vcpu.logical_id), ..*vcpu };
        Some(self.vcpus.iter().map(now).collect())
    }
}

/// The ranges of a list such as `0-3,8`: the kernel's `Documentation/admin-guide/cputopology.rst`.
fn ranges(list: &[u8]) -> Option<Vec<RangeInclusive<u32>>> {
    let parts = list.trim_ascii_end().split(|byte| *byte == b',').filter(|part| !part.is_empty());
    let range = |part: &[u8]| {
        let (first, last) = part.split_at(part.iter().position(|byte| *byte == b'-').unwrap_or(part.len()));
        let first = number(first)?;
        Some(first..=last.strip_prefix(b"-").map_or(Some(first), number)?)
    };
    parts.map(range).collect()
}

#[cfg(test)]
mod tests {
    use postern_core::ipc::bundle::{Gathered, Kind};
    use proptest::prelude::*;

    use super::super::tests::{json, list};
    use super::*;

    #[test]
    fn each_processor_by_the_columns_that_its_kernel_has() {
        let told = stats(
            b"cpu  5000302 494884 1249872 2691814\n\
              cpu0 1 2 3 4 5 6 7 8 9 10\n\
              cpu1 10 20 30 40 50 60 70 80 90\n\
              cpu5 10 20 30 40 50 60 70\n\
              cpu17 10 20 30 40\n\
              intr 66615819 0 0\nctxt 1\nprocs_running 3\n",
        );
        let all = r#"{"cpu": 0, "guestnice": 100, "idle": 40, "steal": 80, "iowait": 50, "system": 30, "guest": 90, "nice": 20, "irq": 60, "type": "linux", "user": 10, "softirq": 70}"#;
        assert_eq!(json(&told[0]), all);
        assert_eq!((told[1].guest, told[1].guestnice), (Some(900), None));
        assert_eq!((told[2].softirq, told[2].steal), (Some(700), None));
        let four = r#"{"cpu": 17, "idle": 400, "system": 300, "nice": 200, "type": "linux", "user": 100}"#;
        assert_eq!(json(&told[3]), four);
        assert_eq!(told.len(), 4);
    }

    #[test]
    fn what_is_no_line_of_a_processor_is_passed_over() {
        let odd = b"cpu\ncpu0\ncpu0 1 2 3\ncpux 1 2 3 4\ncpu-1 1 2 3 4\ncpu4294967296 1 2 3 4\n\xff\xfe\ncpu1 1 2 \xff 4\n\0\n";
        assert_eq!(stats(odd), []);
        assert_eq!(stats(b""), []);
        let most = stats(b"cpu3 18446744073709551615 1 2 3 18446744073709551616 5");
        assert_eq!((most[0].user, most[0].iowait), (u64::MAX, None), "as much as the type holds");
    }

    #[test]
    fn as_many_processors_as_linux_takes() {
        let mut file: Vec<String> = (0..8192).map(|cpu| format!("cpu{cpu} 1 2 3 4 5 6 7 8 9 10")).collect();
        file.push(format!("intr 1{}", " 0".repeat(1_000_000)));
        let told = stats(file.join("\n").as_bytes());
        assert_eq!(told.iter().map(|one| one.cpu).collect::<Vec<_>>(), (0..8192).collect::<Vec<_>>());
        assert!(told.iter().all(|one| (one.user, one.guestnice) == (10, Some(100))));
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read(
            lines in prop::collection::vec((any::<u32>(), prop::collection::vec(0..u64::MAX / TICK, 4..14)), 0..40)
        ) {
            let mut file = vec!["cpu  1 1 1 1 1 1 1 1 1 1".to_owned()];
            file.extend(lines.iter().map(|(cpu, times)| format!("cpu{cpu} {}", list(times))));
            let told = stats(file.join("
    ").as_bytes());
            prop_assert_eq!(told.len(), lines.len());
            for (told, (cpu, times)) in told.iter().zip(&lines) {
                let all = [
                    Some(told.user), Some(told.nice), Some(told.system), Some(told.idle), told.iowait, told.irq,
                    told.softirq, told.steal, told.guest, told.guestnice,
                ];
                prop_assert_eq!(told.cpu, *cpu);
                for (column, told) in all.iter().enumerate() {
                    prop_assert_eq!(*told, times.get(column).map(|ticks| ticks * 10));
                }
            }
        }
    }

    #[test]
    fn processors_stand_in_the_kernels_order() {
        let mut gathered = Gathered::default();
        let mut add = |kind, path: &str, told: &[u8]| assert!(gathered.add(kind, path.as_bytes(), told));
        add(Kind::Directory, PROCESSORS, b"");
        let online = [("cpu1", &b"1\n"[..]), ("cpu12", b"0\n"), ("cpu3", b"")];
        for name in ["cpu1", "cpu0", "cpufreq", "cpu12", "cpuidle", "cpu2x", "cpu", "cpu3"] {
            add(Kind::Entry, name, b"");
            if let Some((_, told)) = online.iter().find(|(of, _)| *of == name) {
                add(Kind::Content, "online", told);
            }
        }
        let told = vcpus(&Bundle::read(gathered.bytes()).expect("a bundle")).expect("processors");
        let first = r#"{"online": true, "can-offline": true, "logical-id": 1}"#;
        assert_eq!(json(&told[0]), first);
        let rest: Vec<_> = told.iter().map(|cpu| (cpu.logical_id, cpu.online, cpu.can_offline)).collect();
        assert_eq!(rest, [(1, true, true), (0, true, false), (12, false, true), (3, true, true)]);
        assert_eq!(vcpus(&Bundle::default()), Err(FactError::NoVcpus));
    }

    #[test]
    fn known_processors_are_as_the_lists_say_now() {
        let lists = |lists: [&str; 2]| lists.map(|list| Some(list.as_bytes().to_vec()).filter(|list| !list.is_empty()));
        let vcpu = |logical_id, online| Vcpu { online, can_offline: logical_id > 0, logical_id };
        let all: Vec<_> = [1, 0, 2, 9, 3].map(|id| vcpu(id, true)).into();
        assert_eq!(Known::default().now(&lists(["0-3,9\n", "0-3\n"])), None, "nothing is known");
        let known = Known::new(lists(["0-3,9\n", "0-3,9\n"]), all.clone());
        assert_eq!(known.now(&lists(["0-3,9\n", "0-3,9\n"])), Some(all));
        let some = [(1, false), (0, true), (2, true), (9, false), (3, true)];
        let some: Vec<_> = some.map(|(id, online)| vcpu(id, online)).into();
        assert_eq!(known.now(&lists(["0-3,9\n", "2-3\n"])), Some(some), "the first is always on");
        for others in [
            ["0-3\n", "0-3\n"],
            ["0-4,9\n", "0-3\n"],
            ["", "0-3\n"],
            ["0-3,9\n", ""],
            ["0-3,9\n", "0-x\n"],
            ["0-3,9\n", "-3\n"],
        ] {
            assert_eq!(known.now(&lists(others)), None, "{others:?}");
        }
        assert_eq!(Known::new(lists(["", ""]), Vec::new()).now(&lists(["", "0\n"])), None);
    }
}
