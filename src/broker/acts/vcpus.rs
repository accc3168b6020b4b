//! `guest-set-vcpus`: by the `online` file of each processor.
//!
//! Trust: as [`super`]. Processors are named by the host and looked up here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use postern_core::messages::Switch;

use super::{Failure, Outcome, numbered, open_switch, read_now, tell};

/// Most processors that are held, those with the lowest numbers; any other is not
/// switched, and a host is told so. Room for their descriptors is in
/// `confine::limits::BROKER_DESCRIPTORS`.
pub const MOST_VCPUS: usize = 512;

/// The processors that there were at the start.
#[derive(Debug)]
pub struct Vcpus {
    /// By number; none for one that is always on and so has no such file.
    online: BTreeMap<u64, Option<File>>,
    /// The numbers of those that are not held.
    beyond: BTreeSet<u64>,
}

impl Vcpus {
    /// Opens the file of each processor below `/sys/devices/system/cpu`.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let mut found = numbered(directory, "cpu")?.into_iter();
        let mut online = BTreeMap::new();
        for (number, path) in found.by_ref().take(MOST_VCPUS) {
            online.insert(number, open_switch(&path.join("online"))?);
        }
        Ok(Self { online, beyond: found.map(|(number, _)| number).collect() })
    }

    /// Switches one after the other; as in stock the first that fails ends it, and
    /// is told of only where none went before.
    pub(super) fn set(&self, list: &[Switch]) -> Result<Outcome, Failure> {
        let mut count = 0;
        for switch in list {
            match self.set_one(switch) {
                Ok(()) => count += 1,
                Err(why) if count == 0 => return Err(why),
                Err(_) => break,
            }
        }
        Ok(Outcome::VcpusSet { count, left: list.len() as u64 - count })
    }

    fn set_one(&self, &Switch { number, online }: &Switch) -> Result<(), Failure> {
        if self.beyond.contains(&number) {
            return Err(Failure::VcpuBeyond(number));
        }
        let Some(file) = self.online.get(&number).ok_or(Failure::NoVcpu(number))? else {
            return if online { Ok(()) } else { Err(Failure::VcpuStays(number)) };
        };
        let failed = |call| move |errno| Failure::Vcpu { call, number, errno };
        let now = read_now(file).map_err(failed("pread"))?;
        if now.is_empty() {
            return Err(Failure::Vcpu { call: "pread", number, errno: Errno::EIO });
        }
        if online != (now != "0") {
            tell(file, if online { "1" } else { "0" }).map_err(failed("pwrite"))?;
        }
        Ok(())
    }
}

/// A processor's directory, as stock names it.
pub(super) fn directory(number: u64) -> String {
    format!("/sys/devices/system/cpu/cpu{}/", number.cast_signed())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn on(number: u64) -> Switch {
        Switch { number, online: true }
    }

    fn off(number: u64) -> Switch {
        Switch { number, online: false }
    }

    /// Three processors: one that is always on, one that is on, one that is off.
    fn machine() -> (tempfile::TempDir, Vcpus) {
        let machine = tempfile::tempdir().unwrap();
        for name in ["cpu0", "cpu1", "cpu10", "cpufreq", "cpu2x"] {
            fs::create_dir(machine.path().join(name)).unwrap();
        }
        fs::write(machine.path().join("cpu1/online"), "1\n").unwrap();
        fs::write(machine.path().join("cpu10/online"), "0\n").unwrap();
        let vcpus = Vcpus::open(machine.path()).unwrap();
        (machine, vcpus)
    }

    #[test]
    fn each_list_ends_as_stocks() {
        /// A list, how many were set and left, and the files behind it.
        type Case<'a> = (&'a [Switch], Result<(u64, u64), &'a str>, &'a str);
        let cases: [Case<'_>; 9] = [
            (&[], Ok((0, 0)), "1\n0\n"),
            (&[on(0), on(1), off(10)], Ok((3, 0)), "1\n0\n"),
            (&[off(1)], Ok((1, 0)), "0\n0\n"),
            (&[off(1), on(10)], Ok((2, 0)), "0\n1\n"),
            (&[off(0)], Err("logical processor #0 can't be offlined"), "1\n0\n"),
            (&[on(2)], Err("open(\"/sys/devices/system/cpu/cpu2/\"): No such file or directory"), "1\n0\n"),
            (&[on(u64::MAX)], Err("open(\"/sys/devices/system/cpu/cpu-1/\"): No such file or directory"), "1\n0\n"),
            (&[off(1), off(0), on(10)], Ok((1, 2)), "0\n0\n"),
            (&[on(10), on(99)], Ok((1, 1)), "1\n1\n"),
        ];
        for (list, due, left) in cases {
            let (machine, vcpus) = machine();
            let got = match vcpus.set(list) {
                Ok(Outcome::VcpusSet { count, left }) => Ok((count, left)),
                Ok(other) => panic!("{other:?}"),
                Err(why) => Err(why.to_string()),
            };
            assert_eq!(got, due.map_err(str::to_owned), "{list:?}");
            let now = ["cpu1", "cpu10"].map(|cpu| fs::read_to_string(machine.path().join(cpu).join("online")).unwrap());
            assert_eq!(now.concat(), left, "{list:?}");
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_told_as_stock_tells_it() {
        let (_machine, mut vcpus) = machine();
        vcpus.online.insert(1, Some(File::open("/proc/self/comm").unwrap()));
        let why = vcpus.set(&[off(1)]).unwrap_err();
        assert_eq!(why.to_string(), "pwrite(\"/sys/devices/system/cpu/cpu1//online\"): Bad file descriptor");
        assert_eq!(why.errno(), Some(Errno::EBADF));
    }

    #[test]
    fn of_too_many_the_lowest_are_held_and_the_others_refused() {
        let machine = tempfile::tempdir().unwrap();
        for number in 0..MOST_VCPUS + 2 {
            let cpu = machine.path().join(format!("cpu{number}"));
            fs::create_dir(&cpu).unwrap();
            fs::write(cpu.join("online"), "1\n").unwrap();
        }
        let vcpus = Vcpus::open(machine.path()).unwrap();
        assert!(vcpus.set(&[off(511)]).is_ok());
        let why = vcpus.set(&[off(512)]).unwrap_err();
        assert_eq!(
            why.to_string(),
            "logical processor #512 is not among the first 512 of the guest, which alone can be switched"
        );
        assert_eq!(
            (vcpus.set(&[on(513)]), vcpus.set(&[on(514)])),
            (Err(Failure::VcpuBeyond(513)), Err(Failure::NoVcpu(514)))
        );
        assert!(fs::read_to_string(machine.path().join("cpu512/online")).unwrap().starts_with('1'), "it is left");
    }

    #[test]
    fn without_the_directory_there_is_no_processor() {
        let vcpus = Vcpus::open(Path::new("/nonexistent")).unwrap();
        assert_eq!(vcpus.set(&[on(0)]), Err(Failure::NoVcpu(0)));
    }
}
