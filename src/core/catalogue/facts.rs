//! Facts: what commands tell of the guest, and where each is read; once, as data.
//!
//! A command's row names its facts, so what the opener may read, by Landlock and
//! by its filter, follows from the commands that the policy allows. Nothing else
//! of `/proc`, `/sys`, `/etc` or `/run` is read for a host, and no path comes from
//! one.
//!
//! Trust: plain data, no input. Anyone may read it.
//! Source of the paths: proc(5), and the kernel's `Documentation/ABI` for `/sys`.

use std::time::Duration;

/// Something of the guest that is read where it stands. The number is its bit in a
/// [`FactSet`] and its form in IPC frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each variant is the name in its row")]
pub enum Fact {
    Load,
    Timezone,
    OsRelease,
    Users,
    Cpustats,
    Diskstats,
    Vcpus,
    MemoryBlocks,
    MemoryBlockSize,
    Interfaces,
    Routes,
    Routes6,
    Filesystems,
    Disks,
    CpusPresent,
    CpusOnline,
    Mounts,
}

/// How a fact reaches the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// As a descriptor of the first of these that is there, which says something new
    /// each time it is read:
    /// the broker opens it at its start, and each worker that asks keeps a duplicate.
    /// No domain of a later process could promise it: a Landlock rule is of an inode,
    /// and a file of `/proc` has another one once the kernel was short of memory.
    Kept(&'static [&'static str]),
    /// The same, of a file below `/proc/net`, in the guest's own network namespace.
    Network(&'static str),
    /// Over a netlink socket, in answers of the kernel's. The worker is handed it
    /// before it confines itself, and never asks for it.
    Netlink,
    /// As bytes: the opener reads all of these each time it is asked, and hands on
    /// what it read, not what it read from.
    Gathered(&'static [Part]),
    /// The same, to be told again by the worker until what is named first among these
    /// shows a change. Some changes show there only later, or never: a file that comes
    /// to be where there was none, a link behind a link, a mount. So what was told is
    /// never older than this.
    Lasting(&'static [Part], Duration),
}

/// Some of what is gathered. What is not there is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What stands in a file. Links are followed, to beneath `reach` if it is a
    /// link that leads elsewhere from time to time.
    File {
        /// The file.
        path: &'static str,
        /// Where else it may lie, if not only where it lies at the start.
        reach: Option<&'static str>,
    },
    /// Of every entry of a directory: the directory's names, and beneath each name
    /// what stands in files, where links lead, and the names in directories.
    Each {
        /// The directory.
        directory: &'static str,
        /// What the names begin with.
        prefix: &'static str,
        /// Where the entries lie if they are links: what is read is beneath it.
        reach: &'static str,
        /// Files, by their path beneath the entry.
        files: &'static [&'static str],
        /// Links, likewise; the empty path is the entry itself.
        links: &'static [&'static str],
        /// Directories, likewise.
        lists: &'static [&'static str],
    },
    /// Filesystems on block devices, of those that the policy shows: the line of the
    /// mount table, the device's name, and how full each is that tells so without anyone
    /// being asked: no server, no process, no automounter.
    Mounts,
    /// Of each block device on which such a filesystem lies, and each that it is made
    /// of: where it is, what it is made of, its driver, what udev has noted.
    Chains,
    /// The same of every block device that has a size, and its name with the device
    /// mapper.
    Disks,
}

/// Under which name what the mount table says stands in a bundle.
pub const MOUNTS: &str = "/proc/self/mountinfo";

/// Where the kernel lists block devices by their names, disks and partitions alike.
pub const BLOCK_DEVICES: &str = "/sys/class/block";
/// Where it links to them by their numbers.
pub const BLOCK_NUMBERS: &str = "/sys/dev/block";
/// Where devices are.
pub const DEVICES: &str = "/sys/devices";
/// Where udev keeps what it knows of devices.
pub const UDEV: &str = "/run/udev/data";

/// One row: a fact and where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which.
    pub fact: Fact,
    /// Its name in records and in what `policy explain` says.
    pub name: &'static str,
    /// Where it is read.
    pub reads: Reads,
}

/// How old what lasts may be.
const LASTS: Duration = Duration::from_secs(5);

/// Every fact, in [`Fact`]'s order, so that a fact indexes its own row.
pub static FACTS: [Row; 17] = [
    Row { fact: Fact::Load, name: "load", reads: Reads::Kept(&["/proc/loadavg"]) },
    Row {
        fact: Fact::Timezone,
        name: "timezone",
        reads: Reads::Lasting(&[Part::File { path: "/etc/localtime", reach: Some("/usr/share/zoneinfo") }], LASTS),
    },
    // os-release(5): the first that is there.
    Row {
        fact: Fact::OsRelease,
        name: "os-release",
        reads: Reads::Lasting(&[file("/etc/os-release"), file("/usr/lib/os-release")], LASTS),
    },
    // The second where nobody writes the first.
    Row {
        fact: Fact::Users,
        name: "users",
        reads: Reads::Lasting(
            &[
                file("/run/utmp"),
                // logind puts a new file in place of one that says something else.
                Part::Each {
                    directory: "/run/systemd/sessions",
                    prefix: "",
                    reach: "/run/systemd/sessions",
                    files: &[""],
                    links: &[],
                    lists: &[],
                },
            ],
            LASTS,
        ),
    },
    Row { fact: Fact::Cpustats, name: "cpustats", reads: Reads::Kept(&["/proc/stat"]) },
    Row { fact: Fact::Diskstats, name: "diskstats", reads: Reads::Kept(&["/proc/diskstats"]) },
    Row {
        fact: Fact::Vcpus,
        name: "vcpus",
        reads: Reads::Gathered(&[Part::Each {
            directory: "/sys/devices/system/cpu",
            prefix: "cpu",
            reach: "/sys/devices/system/cpu",
            files: &["online"],
            links: &[],
            lists: &[],
        }]),
    },
    Row {
        fact: Fact::MemoryBlocks,
        name: "memory-blocks",
        reads: Reads::Gathered(&[Part::Each {
            directory: "/sys/devices/system/memory",
            prefix: "memory",
            reach: "/sys/devices/system/memory",
            files: &["state", "removable"],
            links: &[],
            lists: &[],
        }]),
    },
    Row {
        fact: Fact::MemoryBlockSize,
        name: "memory-block-size",
        reads: Reads::Kept(&["/sys/devices/system/memory/block_size_bytes"]),
    },
    Row { fact: Fact::Interfaces, name: "interfaces", reads: Reads::Netlink },
    Row { fact: Fact::Routes, name: "routes", reads: Reads::Network("route") },
    Row { fact: Fact::Routes6, name: "routes6", reads: Reads::Network("ipv6_route") },
    Row { fact: Fact::Filesystems, name: "filesystems", reads: Reads::Gathered(&[Part::Mounts, Part::Chains]) },
    Row { fact: Fact::Disks, name: "disks", reads: Reads::Gathered(&[Part::Disks]) },
    // The first since Linux 6.11: where virtual processors are plugged into aarch64, all
    // that ever could be are present.
    Row {
        fact: Fact::CpusPresent,
        name: "cpus-present",
        reads: Reads::Kept(&["/sys/devices/system/cpu/enabled", "/sys/devices/system/cpu/present"]),
    },
    Row { fact: Fact::CpusOnline, name: "cpus-online", reads: Reads::Kept(&["/sys/devices/system/cpu/online"]) },
    // Filesystems without what they lie on.
    Row { fact: Fact::Mounts, name: "mounts", reads: Reads::Gathered(&[Part::Mounts]) },
];

/// A file that lies where it lies.
const fn file(path: &'static str) -> Part {
    Part::File { path, reach: None }
}

/// What a grant is for: what may be done beneath a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allows {
    /// Reading this file, or files beneath this directory.
    Read,
    /// Listing this directory, and those beneath it.
    List,
}

impl Fact {
    /// Every fact, in the order of their rows.
    pub fn all() -> impl Iterator<Item = Self> {
        FACTS.iter().map(|row| row.fact)
    }

    /// This fact's row.
    #[must_use]
    pub fn row(self) -> &'static Row {
        &FACTS[self as usize]
    }

    /// The fact with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        FACTS.get(usize::from(number)).map(|row| row.fact)
    }

    /// Whether the opener reads it, and hands on what it read.
    #[must_use]
    pub fn is_gathered(self) -> bool {
        matches!(self.row().reads, Reads::Gathered(_) | Reads::Lasting(..))
    }

    /// What is gathered for it.
    #[must_use]
    pub fn parts(self) -> &'static [Part] {
        match self.row().reads {
            Reads::Gathered(parts) | Reads::Lasting(parts, _) => parts,
            Reads::Kept(_) | Reads::Network(_) | Reads::Netlink => &[],
        }
    }

    /// How old it may be when it is told again, if it may.
    #[must_use]
    pub fn lasts(self) -> Option<Duration> {
        match self.row().reads {
            Reads::Lasting(_, most) => Some(most),
            _ => None,
        }
    }

    /// Whether it is read from a descriptor that the broker has since its start, and a
    /// worker once it has asked.
    #[must_use]
    pub fn is_kept(self) -> bool {
        matches!(self.row().reads, Reads::Kept(_) | Reads::Network(_))
    }

    /// Whether a worker has what it is read from since before its first word.
    #[must_use]
    pub fn is_handed(self) -> bool {
        matches!(self.row().reads, Reads::Netlink)
    }

    /// Whether it is one of these, or gathered of less than one of them.
    #[must_use]
    pub fn is_within(self, facts: &[Self]) -> bool {
        let is_less = |fact: &Self| self.is_gathered() && self.parts().iter().all(|part| fact.parts().contains(part));
        facts.contains(&self) || facts.iter().any(is_less)
    }

    /// What the opener's Landlock domain must leave it for this fact.
    pub fn grants(self) -> impl Iterator<Item = (&'static str, Allows)> {
        self.parts().iter().flat_map(Part::grants)
    }
}

impl Part {
    fn grants(&self) -> impl Iterator<Item = (&'static str, Allows)> + use<> {
        let devices = [Some((DEVICES, Allows::Read)), Some((DEVICES, Allows::List)), Some((UDEV, Allows::Read))];
        let (of, more): ([Option<(&'static str, Allows)>; 3], _) = match *self {
            Self::File { path, reach } => {
                ([Some((path, Allows::Read)), reach.map(|reach| (reach, Allows::Read)), None], None)
            }
            Self::Each { directory, reach, files, lists, .. } => (
                [
                    Some((directory, Allows::List)),
                    (!files.is_empty()).then_some((reach, Allows::Read)),
                    (!lists.is_empty()).then_some((reach, Allows::List)),
                ],
                None,
            ),
            // Looking at a mountpoint takes none, nor does reading a link, and the table
            // is opened before.
            Self::Mounts => ([None; 3], None),
            Self::Chains => (devices, None),
            Self::Disks => (devices, Some((BLOCK_DEVICES, Allows::List))),
        };
        of.into_iter().flatten().chain(more)
    }
}

/// A set of facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactSet(u32);

impl FactSet {
    /// No fact.
    pub const EMPTY: Self = Self(0);

    /// The set with exactly these bits; `None` if a bit stands for no fact.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        let all: Self = Fact::all().collect();
        (bits & !all.0 == 0).then_some(Self(bits))
    }

    /// Bit n stands for the fact with number n.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether there is none in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set holds `fact`.
    #[must_use]
    pub const fn contains(self, fact: Fact) -> bool {
        self.0 & (1 << fact as u8) != 0
    }

    /// The facts of the set, in the order of their rows.
    pub fn iter(self) -> impl Iterator<Item = Fact> {
        Fact::all().filter(move |&fact| self.contains(fact))
    }

    /// Those that the opener gathers.
    #[must_use]
    pub fn gathered(self) -> Self {
        self.iter().filter(|fact| fact.is_gathered()).collect()
    }

    /// Whether any of them is gathered.
    #[must_use]
    pub fn gathers(self) -> bool {
        !self.gathered().is_empty()
    }

    /// How many descriptors a worker keeps for them.
    #[must_use]
    pub fn kept(self) -> usize {
        let of = |fact: Fact| if fact.lasts().is_some() { 2 } else { fact.is_kept().into() };
        self.iter().map(of).sum()
    }

    /// Whether any of them is told again until it changes.
    #[must_use]
    pub fn lasts(self) -> bool {
        self.iter().any(|fact| fact.lasts().is_some())
    }

    /// Whether all of them are in `other`.
    #[must_use]
    pub const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether any of them is of filesystems, and asks how full they are.
    #[must_use]
    pub fn measures(self) -> bool {
        self.iter().any(|fact| fact.parts().contains(&Part::Mounts))
    }
}

impl FromIterator<Fact> for FactSet {
    fn from_iter<T: IntoIterator<Item = Fact>>(facts: T) -> Self {
        facts.into_iter().fold(Self::EMPTY, |set, fact| Self(set.0 | 1 << fact as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_indexes_its_own_row() {
        for (index, row) in FACTS.iter().enumerate() {
            assert_eq!(row.fact as usize, index, "{}", row.name);
            assert_eq!(Fact::from_number(row.fact as u8), Some(row.fact));
        }
        assert!(FACTS.len() <= 32, "each has a bit");
    }

    #[test]
    fn only_known_bits_make_a_set() {
        let all: FactSet = Fact::all().collect();
        assert_eq!(FactSet::from_bits(all.bits()), Some(all));
        assert_eq!(FactSet::from_bits(1 << (FACTS.len() - 1) << 1), None);
        assert_eq!(all.iter().count(), FACTS.len());
    }

    #[test]
    fn every_path_is_plain() {
        for (path, _) in Fact::all().flat_map(Fact::grants) {
            assert!(path.starts_with('/') && !path.ends_with('/') && !path.contains("//"), "{path}");
            assert!(!path.split('/').any(|part| matches!(part, "." | "..")), "{path}");
        }
    }
}
