//! Which filesystem lies in a file of which other one (loop devices, also
//! below dm, md and partitions), as sysfs told before confinement.
//!
//! Under its Landlock domain the broker cannot read sysfs again, so this
//! knowledge is of the mounts that were there at the start. It suffices: mounts made
//! later come later in the mount table, which then is the order they were
//! made in (see [`super::mounts::plan`]). An edge therefore counts only while a
//! mount of its upper filesystem that was there at the start still is.
//!
//! Trust: reads sysfs and the mount table as root, once. Called at start-up.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use postern_core::mountinfo::{Device, Mount};

/// What lies on what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stacking {
    /// (upper, lower): the upper filesystem's bytes are in a file of the lower.
    edges: Vec<(Device, Device)>,
    /// Mounts that were there when this was learned.
    known: Vec<(u64, Device)>,
}

impl Stacking {
    /// Learns it from sysfs (`block` is `/sys/block`) for these mounts. What
    /// cannot be read is left out: the order of the mount table then decides.
    #[must_use]
    pub fn learn(block: &Path, mounts: &[Mount]) -> Self {
        let links = links(block, mounts);
        let devices: Vec<Device> = mounts.iter().map(|mount| mount.device).collect();
        Self::from_links(&links, &devices, mounts)
    }

    /// From single steps (a device to what it lies on) to pairs of
    /// filesystems.
    fn from_links(links: &[(Device, Device)], devices: &[Device], mounts: &[Mount]) -> Self {
        let mut edges = Vec::new();
        for &upper in devices {
            let mut below = vec![upper];
            let mut next = 0;
            while let Some(&from) = below.get(next) {
                next += 1;
                for &(_, to) in links.iter().filter(|&&(link, _)| link == from) {
                    if !below.contains(&to) {
                        below.push(to);
                    }
                }
            }
            for lower in below.into_iter().skip(1).filter(|lower| devices.contains(lower)) {
                if !edges.contains(&(upper, lower)) {
                    edges.push((upper, lower));
                }
            }
        }
        Self { edges, known: mounts.iter().map(|mount| (mount.id, mount.device)).collect() }
    }

    /// Changes the order as little as puts each filesystem before those that
    /// it lies on.
    #[must_use]
    pub(super) fn upper_first(&self, mut devices: Vec<Device>, mounts: &[Mount]) -> Vec<Device> {
        let holds = |upper: Device| {
            mounts.iter().any(|mount| mount.device == upper && self.known.contains(&(mount.id, mount.device)))
        };
        let edges: Vec<_> = self.edges.iter().filter(|(upper, _)| holds(*upper)).collect();
        let mut ordered = Vec::with_capacity(devices.len());
        while !devices.is_empty() {
            let free = |device: Device| !edges.iter().any(|(upper, lower)| *lower == device && devices.contains(upper));
            // A circle cannot be, but must not be a loop here either.
            let next = devices.iter().position(|&device| free(device)).unwrap_or(0);
            ordered.push(devices.remove(next));
        }
        ordered
    }
}

/// Single steps: dm and md to their members, a partition to its disk, a loop
/// device to the filesystem of its file.
fn links(block: &Path, mounts: &[Mount]) -> Vec<(Device, Device)> {
    let mut links = Vec::new();
    for disk in entries(block) {
        let Some(device) = device_of(&disk) else { continue };
        for member in entries(&disk.join("slaves")) {
            links.extend(device_of(&member).map(|member| (device, member)));
        }
        for part in entries(&disk).iter().filter(|part| part.join("partition").exists()) {
            links.extend(device_of(part).map(|part| (part, device)));
        }
        if let Ok(file) = fs::read(disk.join("loop/backing_file")) {
            let file = PathBuf::from(OsString::from_vec(file.strip_suffix(b"\n").map(<[u8]>::to_vec).unwrap_or(file)));
            links.extend(backing(&file, device, mounts).into_iter().map(|lower| (device, lower)));
        }
    }
    links
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|dir| dir.filter_map(io::Result::ok).map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn device_of(sysfs: &Path) -> Option<Device> {
    Device::parse(fs::read(sysfs.join("dev")).ok()?.trim_ascii())
}

/// The mounts that a loop device's file may be reached through, by its path: the
/// innermost ones. The file is not opened, for its server may be dead, and a start
/// would hang at it. Of several that cover each other each counts: an order too
/// many does no harm.
fn backing(file: &Path, device: Device, mounts: &[Mount]) -> Vec<Device> {
    let around: Vec<&Mount> =
        mounts.iter().filter(|mount| mount.device != device && file.starts_with(&mount.mountpoint)).collect();
    let depth = |mount: &Mount| mount.mountpoint.components().count();
    let deepest = around.iter().map(|mount| depth(mount)).max();
    around.into_iter().filter(|mount| Some(depth(mount)) == deepest).map(|mount| mount.device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_core::mountinfo::parse;

    const fn dev(minor: u32) -> Device {
        Device { major: 7, minor }
    }

    fn mounts(minors: &[u32]) -> Vec<Mount> {
        let lines: Vec<String> =
            minors.iter().map(|minor| format!("{} 1 7:{minor} / /m{minor} rw - ext4 x rw", 100 + minor)).collect();
        parse(lines.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn puts_the_upper_first_through_what_lies_between() {
        let mounts = mounts(&[1, 2, 3]);
        let devices = vec![dev(1), dev(2), dev(3)];
        // 3 on (dm 9, loop 8) on 1: the order given has 1 before 3.
        let links = [(dev(3), dev(9)), (dev(9), dev(8)), (dev(8), dev(1))];
        let stacking = Stacking::from_links(&links, &devices, &mounts);
        assert_eq!(stacking.upper_first(devices.clone(), &mounts), [dev(2), dev(3), dev(1)]);
        assert_eq!(Stacking::default().upper_first(devices.clone(), &mounts), devices);
    }

    #[test]
    fn a_file_lies_on_the_innermost_mount_of_its_path() {
        let mut mounts = mounts(&[1, 2, 3, 4]);
        for (mount, at) in mounts.iter_mut().zip(["/", "/a", "/a/b", "/a"]) {
            mount.mountpoint = at.into();
        }
        let lower = |file: &str, device| backing(Path::new(file), device, &mounts);
        assert_eq!(lower("/a/b/image", dev(9)), [dev(3)]);
        assert_eq!(lower("/a/bc", dev(9)), [dev(2), dev(4)], "one of them covers the other");
        assert_eq!(lower("/a/image", dev(4)), [dev(2)], "not on itself");
        assert_eq!(lower("/image (deleted)", dev(9)), [dev(1)]);
        assert_eq!(lower("/image", dev(1)), []);
    }

    #[test]
    fn a_circle_ends_and_loses_nothing() {
        let mounts = mounts(&[1, 2]);
        let devices = vec![dev(1), dev(2)];
        let stacking = Stacking::from_links(&[(dev(1), dev(2)), (dev(2), dev(1))], &devices, &mounts);
        assert_eq!(stacking.upper_first(devices.clone(), &mounts), devices);
    }

    #[test]
    fn what_was_mounted_anew_is_not_believed() {
        let old = mounts(&[1, 2]);
        let devices = vec![dev(1), dev(2)];
        let stacking = Stacking::from_links(&[(dev(2), dev(1))], &devices, &old);
        assert_eq!(stacking.upper_first(devices.clone(), &old), [dev(2), dev(1)]);
        let mut new = old;
        new[1].id = 500;
        assert_eq!(stacking.upper_first(devices.clone(), &new), devices);
    }
}
