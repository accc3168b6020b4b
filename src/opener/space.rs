//! How full filesystems are: asked only where the answer is the kernel's own, of
//! filesystems on its block devices, reached through none that asks a server, a
//! process or an automounter.
//!
//! Trust: mountpoints are named by whoever may mount. Between reading the table and
//! looking another may be mounted: what is asked is the mount that the table has, or
//! none.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat};
use nix::sys::stat::Mode as Permissions;
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pread;
use postern_core::confine::filters::LOOK;
use postern_core::mountinfo::{self, Device, Mount};
use postern_core::sys::fs::mount_id;

/// Longest mount table, in bytes: ten thousand mounts with long names.
const TABLE_MAX: usize = 4 << 20;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
/// Most ways to one filesystem that are tried.
const TRIES: usize = 8;

/// Filesystems without a block device that nobody else answers for.
const MEMORY: [&str; 8] = ["tmpfs", "ramfs", "rootfs", "devtmpfs", "overlay", "btrfs", "zfs", "bcachefs"];

/// The mount table as it is now.
///
/// # Errors
/// As pread(2); `EFBIG` for one that is too long.
pub(crate) fn table(mounts: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut table = Vec::new();
    let mut piece = vec![0; PIECE];
    while table.len() < TABLE_MAX {
        match pread(mounts, &mut piece, i64::try_from(table.len()).map_err(|_| Errno::EFBIG)?) {
            Ok(0) => return Ok(table),
            Ok(count) => table.extend_from_slice(&piece[..count]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EFBIG)
}

/// How full each local filesystem of the table is: the size of a block, and how many
/// blocks there are, are free, and are free for users. One that cannot be asked is
/// left out.
pub(crate) fn measure(table: &[u8]) -> Vec<(Device, String)> {
    let Ok(mounts) = mountinfo::parse(table) else { return Vec::new() };
    let mut seen: Vec<Device> = Vec::new();
    let mut found = Vec::new();
    for mount in mounts.iter().filter(|mount| is_measured(mount)) {
        if seen.contains(&mount.device) {
            continue;
        }
        seen.push(mount.device);
        let of_it = mounts.iter().filter(|other| other.device == mount.device && is_measured(other));
        let mut ways = of_it.filter(|mount| asks_nobody(&mounts, mount)).take(TRIES);
        found.extend(ways.find_map(space).map(|space| (mount.device, space)));
    }
    found
}

fn space(mount: &Mount) -> Option<String> {
    let look = openat(AT_FDCWD, &mount.mountpoint, LOOK, Permissions::empty()).ok()?;
    if mount_id(look.as_fd()) != Ok(mount.id) {
        return None;
    }
    let space = fstatvfs(&look).ok()?;
    let (blocks, free, users) = (space.blocks(), space.blocks_free(), space.blocks_available());
    Some(format!("{} {blocks} {free} {users}", space.fragment_size()))
}

/// On a block device, and the kernel's own.
fn is_on_device(mount: &Mount) -> bool {
    mount.device.major != 0 && mount.kind.to_str().is_some_and(|kind| !kind.starts_with("fuse"))
}

fn is_measured(mount: &Mount) -> bool {
    is_on_device(mount) || mount.kind == "btrfs"
}

/// Whether finding a name in it asks nobody else.
fn is_local(mount: &Mount) -> bool {
    is_on_device(mount) || mount.kind.to_str().is_some_and(|kind| MEMORY.contains(&kind))
}

/// Whether the way to its mountpoint ends there, and not at one that covers it, and
/// leads through names of local filesystems only.
///
/// A mountpoint is found in the mount that it lies on, and entered at once; a mount
/// that covers another whole asks nothing of it.
fn asks_nobody(mounts: &[Mount], wanted: &Mount) -> bool {
    let root = |mount: &&Mount| {
        mount.mountpoint.as_os_str() == "/"
            && mounts.iter().all(|other| other.id != mount.parent || other.id == mount.id)
    };
    let Some(mut at) = mounts.iter().find(root) else { return false };
    // A table with a circle in it ends all the same.
    for _ in 0..mounts.len() {
        let on_the_way =
            |next: &&Mount| next.parent == at.id && next.id != at.id && wanted.mountpoint.starts_with(&next.mountpoint);
        // The nearest; of several in one place the last covers the others.
        let depth = |next: &&Mount| next.mountpoint.components().count();
        let Some(nearest) = mounts.iter().filter(on_the_way).map(|next| depth(&next)).min() else {
            return at.id == wanted.id;
        };
        let Some(next) = mounts.iter().filter(on_the_way).rfind(|next| depth(next) == nearest) else { return false };
        if next.mountpoint != at.mountpoint && !is_local(at) {
            return false;
        }
        at = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// id, parent, device, mountpoint, type.
    const TABLE: &str = "\
20 1 254:1 / / rw - ext4 /dev/vda1 rw
21 20 0:21 / /proc rw - proc proc rw
22 20 0:22 / /boot rw - autofs systemd-1 rw,direct
23 22 254:2 / /boot rw - vfat /dev/vda2 rw
24 20 0:24 / /misc rw - autofs auto.misc rw,indirect
25 24 11:0 / /misc/cd rw - iso9660 /dev/sr0 ro
26 20 0:26 / /far rw - nfs4 server:/ rw
27 26 7:0 / /far/disk rw - ext4 /dev/loop0 rw
28 26 7:1 / /far rw - ext4 /dev/loop1 rw
29 20 7:2 / /covered rw - xfs /dev/loop2 rw
30 29 0:30 / /covered rw - fuse.sshfs me@server rw
31 20 7:3 / /a/b rw - ext4 /dev/loop3 rw
32 20 0:32 / /a rw - tmpfs tmpfs rw
33 32 7:4 / /a/b rw - ext4 /dev/loop4 rw
34 20 8:1 / /ntfs rw - fuseblk /dev/sda1 rw
35 20 0:35 /@home /home rw - btrfs /dev/sdb rw
36 35 7:5 / /home/user/disk rw - ext4 /dev/loop5 rw
37 20 7:0 / /near rw - ext4 /dev/loop0 rw
38 20 7:6 / /farther rw - ext4 /dev/loop6 rw
";

    fn asked() -> Vec<String> {
        let mounts = mountinfo::parse(TABLE.as_bytes()).expect("a table");
        let asked = mounts.iter().filter(|mount| is_measured(mount) && asks_nobody(&mounts, mount));
        asked.map(|mount| format!("{} {}", mount.id, mount.mountpoint.display())).collect()
    }

    #[test]
    fn only_ways_that_ask_nobody_are_gone() {
        // 25: the automounter might be asked; 27: the server, and it is covered; 29:
        // covered by a process's; 31: covered from above; 34: a process's own.
        let wanted =
            ["20 /", "23 /boot", "28 /far", "33 /a/b", "35 /home", "36 /home/user/disk", "37 /near", "38 /farther"];
        assert_eq!(asked(), wanted);
    }

    #[test]
    fn a_table_that_is_none_ends() {
        let circle = mountinfo::parse(b"1 2 7:0 / /a rw - ext4 a rw\n2 1 7:1 / / rw - ext4 b rw\n").expect("a table");
        assert!(circle.iter().all(|mount| !asks_nobody(&circle, mount)));
        let own = mountinfo::parse(b"1 1 7:0 / / rw - ext4 a rw\n").expect("a table");
        assert!(asks_nobody(&own, &own[0]), "a root that is its own parent");
        assert!(measure(b"nonsense").is_empty());
    }

    #[test]
    fn a_filesystem_tells_what_it_told_the_test() {
        let table = std::fs::read("/proc/self/mountinfo").expect("a table");
        let mounts = mountinfo::parse(&table).expect("a table");
        let measured = measure(&table);
        let root = mounts.iter().rfind(|mount| mount.mountpoint.as_os_str() == "/").expect("a root");
        if is_measured(root) {
            let (_, told) = measured.iter().find(|(device, _)| *device == root.device).expect("the root's");
            let numbers: Vec<u64> = told.split(' ').map(|number| number.parse().expect("a number")).collect();
            let now = nix::sys::statvfs::statvfs("/").expect("the root's");
            assert_eq!(numbers[..2], [now.fragment_size(), now.blocks()]);
            assert!(numbers[3] <= numbers[2] && numbers[2] <= numbers[1], "{told}");
        }
    }
}
