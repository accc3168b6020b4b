//! What a process takes, by the kernel's word: `/proc/PID/status`,
//! `smaps_rollup` and `fd`.

use std::fmt;
use std::fs;

/// Sizes in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident now (`VmRSS`).
    pub(crate) resident: u64,
    /// Resident, what is shared divided among those that share it (`Pss`).
    pub(crate) share: u64,
    /// Private writable memory, touched or not, but the stack (`VmData`): what
    /// `RLIMIT_DATA` counts.
    pub(crate) data: u64,
    /// Address space (`VmSize`): what `RLIMIT_AS` counts.
    pub(crate) space: u64,
    /// Most that was ever resident (`VmHWM`).
    pub(crate) peak: u64,
    /// Most address space ever (`VmPeak`).
    pub(crate) peak_space: u64,
    /// Open descriptors.
    pub(crate) descriptors: usize,
}

impl Usage {
    /// Of a process that lives.
    pub(crate) fn of(pid: i32) -> Self {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"))
        };
        let (status, rollup) = (read("status"), read("smaps_rollup"));
        Self {
            resident: field(&status, "VmRSS"),
            share: field(&rollup, "Pss"),
            data: field(&status, "VmData"),
            space: field(&status, "VmSize"),
            peak: field(&status, "VmHWM"),
            peak_space: field(&status, "VmPeak"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count(),
        }
    }
}

/// `NAME:   123 kB`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}"))
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, share, data, peak, descriptors, .. } = self;
        write!(
            f,
            "RSS {resident} KiB, PSS {share} KiB, VmData {data} KiB, most resident {peak} KiB, {descriptors} descriptors"
        )
    }
}
