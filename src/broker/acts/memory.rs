//! `guest-set-memory-blocks`: by the `state` file of each memory block.
//!
//! Trust: as [`super`]. Blocks are named by the host and looked up here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use postern_core::messages::{BlockResponse, BlockSet, Switch};

use super::{Outcome, numbered, open_switch, read_now, tell};

/// Most memory blocks that are held: those with the highest numbers, for memory
/// that can be plugged lies there. On x86 a block is 128 MiB, and up to 2 GiB
/// where there are 64 GiB and more: so this is 256 GiB to 4 TiB. Room for their
/// descriptors is in `confine::limits::BROKER_DESCRIPTORS`.
pub const MOST_BLOCKS: usize = 2048;

/// The memory blocks that there were at the start.
#[derive(Debug)]
pub struct Blocks {
    /// By number; none for one that is not held, or has no such file.
    state: BTreeMap<u64, Option<File>>,
    left_out: usize,
}

impl Blocks {
    /// Opens the file of each block below `/sys/devices/system/memory`.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let found = numbered(directory, "memory")?;
        let left_out = found.len().saturating_sub(MOST_BLOCKS);
        let mut state = BTreeMap::new();
        for (place, (number, path)) in found.into_iter().enumerate() {
            let file = if place < left_out { None } else { open_switch(&path.join("state"))? };
            state.insert(number, file);
        }
        Ok(Self { state, left_out })
    }

    /// How many are not held, for there are too many.
    pub(super) const fn left_out(&self) -> usize {
        self.left_out
    }

    /// Switches each.
    pub(super) fn set(&self, list: &[Switch]) -> Outcome {
        Outcome::BlocksSet(list.iter().map(|switch| self.set_one(switch)).collect())
    }

    fn set_one(&self, &Switch { number, online }: &Switch) -> BlockSet {
        let said =
            |response, errno: Option<Errno>| BlockSet { number, response, errno: errno.map(|errno| errno as i32) };
        let failed = |errno| said(BlockResponse::Failed, Some(errno));
        let file = match self.state.get(&number) {
            Some(Some(file)) => file,
            Some(None) => return said(BlockResponse::NotSupported, None),
            None => return said(BlockResponse::NotFound, Some(Errno::ENOENT)),
        };
        let now = match read_now(file) {
            Ok(now) => now,
            Err(errno) => return failed(errno),
        };
        // As stock: one that is going offline is not online.
        if online != now.starts_with("online")
            && let Err(errno) = tell(file, if online { "online" } else { "offline" })
        {
            return failed(errno);
        }
        said(BlockResponse::Success, None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_block_is_answered_for_itself() {
        let machine = tempfile::tempdir().unwrap();
        for (name, state) in [("memory0", "online\n"), ("memory1", "offline\n"), ("memory2", ""), ("memory40", "")] {
            fs::create_dir(machine.path().join(name)).unwrap();
            if !state.is_empty() {
                fs::write(machine.path().join(name).join("state"), state).unwrap();
            }
        }
        fs::write(machine.path().join("memory40/state"), "online\n").unwrap();
        let mut blocks = Blocks::open(machine.path()).unwrap();
        assert_eq!((blocks.state.len(), blocks.left_out()), (4, 0));
        blocks.state.insert(41, Some(File::open("/proc/self/comm").unwrap()));
        let switch = |(number, online)| Switch { number, online };
        let list =
            [(0, false), (1, true), (2, false), (3, true), (40, true), (41, true), (u64::MAX, false)].map(switch);
        let Outcome::BlocksSet(set) = blocks.set(&list) else { panic!("no blocks") };
        let got: Vec<_> = set.iter().map(|one| (one.number, one.response, one.errno)).collect();
        assert_eq!(
            got,
            [
                (0, BlockResponse::Success, None),
                (1, BlockResponse::Success, None),
                (2, BlockResponse::NotSupported, None),
                (3, BlockResponse::NotFound, Some(2)),
                (40, BlockResponse::Success, None),
                (41, BlockResponse::Failed, Some(9)),
                (u64::MAX, BlockResponse::NotFound, Some(2)),
            ]
        );
        let state = |name: &str| fs::read_to_string(machine.path().join(name).join("state")).unwrap();
        assert!(state("memory0").starts_with("offline"));
        assert!(state("memory1").starts_with("online"));
        assert_eq!(state("memory40"), "online\n", "what is so already is not written");
    }

    #[test]
    fn of_too_many_the_highest_are_held() {
        let machine = tempfile::tempdir().unwrap();
        for number in 0..MOST_BLOCKS + 3 {
            fs::create_dir(machine.path().join(format!("memory{number}"))).unwrap();
        }
        fs::write(machine.path().join("memory2/state"), "online\n").unwrap();
        fs::write(machine.path().join("memory3/state"), "online\n").unwrap();
        let blocks = Blocks::open(machine.path()).unwrap();
        assert_eq!(blocks.left_out(), 3);
        let Outcome::BlocksSet(set) = blocks.set(&[2, 3].map(|number| Switch { number, online: true })) else {
            panic!("no blocks")
        };
        assert_eq!(
            set.iter().map(|one| one.response).collect::<Vec<_>>(),
            [BlockResponse::NotSupported, BlockResponse::Success]
        );
    }
}
