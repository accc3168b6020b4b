//! Which filesystems a freeze takes, in which order, and ways to reach them.
//!
//! Pure: a mount table in, a plan out. Called by the engine and by tests.

use std::path::{Path, PathBuf};

use postern_core::mountinfo::{Device, Mount};

use super::stacking::Stacking;

/// One way to reach a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The mount that a descriptor opened there must be on.
    pub id: u64,
    /// Where to open it.
    pub mountpoint: PathBuf,
}

/// A filesystem to freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its device number, which no other filesystem has.
    pub device: Device,
    /// Ways to reach it, best first, never empty: mounts of the whole
    /// filesystem before bind mounts and subvolumes, which may be of a file.
    pub candidates: Vec<Candidate>,
}

impl Target {
    /// The mountpoint that stands for this filesystem in messages.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.candidates[0].mountpoint
    }
}

/// What a freeze takes, in this order, each filesystem once.
///
/// Taken are real local filesystems: those on a block device, and btrfs. Left
/// out is FUSE on a block device: the kernel cannot freeze it, and
/// opening it asks a process that may not answer or lets only its owner in.
/// With `only`, those of them that have a mountpoint named there; a mountpoint
/// that is not there means nothing, as with the stock agent.
///
/// A filesystem in an image file must be frozen before the filesystem that
/// the file is on, else its last writes wait for a thaw. The order is
/// therefore the reverse of each filesystem's *first* appearance: the kernel
/// lists mounts as they were made (in a new mount namespace: parents first),
/// and what an image is on was there before it. The last appearance would not
/// do: a bind mount may be younger than the image. Where the order in the
/// table says nothing (a copied namespace, a lower filesystem mounted anew),
/// what `stacking` knows goes before it.
#[must_use]
pub fn plan(mounts: &[Mount], only: Option<&[PathBuf]>, stacking: &Stacking) -> Vec<Target> {
    let mut devices: Vec<Device> = Vec::new();
    for mount in mounts.iter().filter(|mount| freezable(mount)) {
        if !devices.contains(&mount.device) {
            devices.push(mount.device);
        }
    }
    devices.retain(|&device| only.is_none_or(|only| of(mounts, device).any(|mount| only.contains(&mount.mountpoint))));
    devices.reverse();
    let devices = stacking.upper_first(devices, mounts);
    devices.into_iter().map(|device| Target { device, candidates: candidates(mounts, device) }).collect()
}

/// Every way to reach the filesystem `device`, best first.
#[must_use]
pub fn candidates(mounts: &[Mount], device: Device) -> Vec<Candidate> {
    let mut found: Vec<&Mount> = of(mounts, device).collect();
    found.sort_by_key(|mount| mount.root.as_os_str() != "/");
    found.into_iter().map(|mount| Candidate { id: mount.id, mountpoint: mount.mountpoint.clone() }).collect()
}

fn of(mounts: &[Mount], device: Device) -> impl Iterator<Item = &Mount> {
    mounts.iter().filter(move |mount| mount.device == device)
}

fn freezable(mount: &Mount) -> bool {
    let kind = mount.kind.as_encoded_bytes();
    let fuse = kind == b"fuseblk" || kind.starts_with(b"fuseblk.");
    kind == b"btrfs" || (mount.device.major != 0 && !fuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_core::mountinfo::parse;
    use proptest::prelude::*;

    const TABLE: &[u8] = include_bytes!("../../core/mountinfo/sample.mountinfo");

    fn order(only: Option<&[&str]>) -> Vec<String> {
        let only: Option<Vec<PathBuf>> = only.map(|only| only.iter().map(PathBuf::from).collect());
        let mounts = parse(TABLE).unwrap();
        plan(&mounts, only.as_deref(), &Stacking::default()).iter().map(|t| t.device.to_string()).collect()
    }

    #[test]
    fn takes_each_real_filesystem_once_and_the_first_mounted_last() {
        // 254:1 is bound again on line 26, after 7:0; still it comes last.
        assert_eq!(order(None), ["7:0", "0:40", "254:1"]);
    }

    #[test]
    fn a_list_chooses_by_any_mountpoint_and_ignores_what_is_not_there() {
        assert_eq!(order(Some(&["/run/hosts", "/nowhere", "/home/"])), ["0:40", "254:1"]);
        assert_eq!(order(Some(&["/proc", "/ntfs", "relative"])), [""; 0]);
        assert_eq!(order(Some(&[])), [""; 0]);
    }

    #[test]
    fn whole_filesystems_are_tried_before_parts() {
        let mounts = parse(TABLE).unwrap();
        let btrfs = candidates(&mounts, Device { major: 0, minor: 40 });
        assert_eq!(btrfs.iter().map(|c| c.id).collect::<Vec<_>>(), [24, 23]);
    }

    proptest! {
        #[test]
        fn any_fields_parse_or_fail(fields in proptest::collection::vec("[0-9:/ \\\\-]{0,4}|ext4|btrfs|-", 0..16)) {
            if let Ok(mounts) = parse(fields.join(" ").as_bytes()) {
                let _ = plan(&mounts, None, &Stacking::default());
            }
        }
    }
}
