//! Filesystems on block devices, as the mount table has them, and how full they are:
//! asked only where the answer is the kernel's own, of filesystems on its block devices,
//! reached through none that asks a server, a process or an automounter.
//!
//! Trust: mountpoints are named by whoever may mount. Between reading the table and
//! looking another may be mounted: what is asked is the mount that the table has, or
//! none.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, openat, readlinkat};
use nix::sys::stat::{self, Mode as Permissions, SFlag};
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pread;
use postern_core::catalogue::facts::{BLOCK_NUMBERS, MOUNTS};
use postern_core::confine::filters::LOOK;
use postern_core::ipc::bundle::{Gathered, Kind, path_of};
use postern_core::mountinfo::{self, Device, Line, Malformed};
use postern_core::place::Place;
use postern_core::sys::descriptors;
use postern_core::sys::fs::mount_id;

use crate::gather::room;

/// Longest mount table, in bytes: ten thousand mounts with long names.
const TABLE_MAX: usize = 4 << 20;
/// Bytes that are read at once; the kernel has no more of a table at once.
const PIECE: usize = 4096;
/// Most ways to one filesystem that are tried.
const TRIES: usize = 8;

/// Filesystems without a block device that nobody else answers for.
const MEMORY: [&[u8]; 8] = [b"tmpfs", b"ramfs", b"rootfs", b"devtmpfs", b"overlay", b"btrfs", b"zfs", b"bcachefs"];

/// Reads the mount table as it is now.
///
/// # Errors
/// As pread(2); `EFBIG` for one that is too long.
pub(crate) fn read(mounts: &OwnedFd, table: &mut Vec<u8>) -> Result<(), Errno> {
    let mut filled = 0;
    while filled < TABLE_MAX {
        table.resize(filled + PIECE, 0);
        match pread(mounts, &mut table[filled..], i64::try_from(filled).map_err(|_| Errno::EFBIG)?) {
            Ok(0) => {
                table.truncate(filled);
                return Ok(());
            }
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EFBIG)
}

/// A filesystem that is told, under the first of its mountpoints that are shown.
#[derive(Debug)]
pub(crate) struct Filesystem<'a> {
    line: Line<'a>,
    /// The size of a block, and how many blocks there are, are free, and are free for
    /// users; `None` where it cannot be asked.
    space: Option<String>,
    pub(crate) disk: Disk,
}

/// The block device that a filesystem is on, or the first of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) number: Device,
    /// Where the kernel links to by its number.
    pub(crate) link: OsString,
}

/// The filesystems of a table at mountpoints that are shown, in the table's order. One
/// whose device the kernel does not list is none.
///
/// # Errors
/// [`Malformed`].
pub(crate) fn shown(table: &[u8], shows: impl Fn(&Path) -> bool) -> Result<Vec<Filesystem<'_>>, Malformed> {
    let lines: Vec<Line<'_>> = mountinfo::lines(table).collect::<Result<_, _>>()?;
    let is_told = |line: &Line<'_>| line.device.major != 0 || line.kind == b"btrfs";
    let mut places: Vec<(Device, usize)> =
        lines.iter().enumerate().filter(|(_, line)| is_told(line)).map(|(at, line)| (line.device, at)).collect();
    places.sort_unstable();
    let shown = |&(_, at): &(Device, usize)| shows(&unescaped(lines[at].mountpoint));
    let by_device = places.chunk_by(|one, other| one.0 == other.0);
    let mut told: Vec<_> =
        by_device.filter_map(|same| Some((same.iter().find(|place| shown(place))?.1, same))).collect();
    told.sort_unstable_by_key(|(at, _)| *at);
    let ways = Ways::new(&lines);
    let filesystem = |(at, same): (usize, &[(Device, usize)])| {
        let line = lines[at];
        let disk = Disk::of(&line, &ways)?;
        let asked = same.iter().map(|(_, at)| &lines[*at]).filter(|line| is_measured(line) && ways.ask_nobody(line));
        Some(Filesystem { line, space: asked.take(TRIES).find_map(|mount| space(mount)), disk })
    };
    Ok(told.into_iter().filter_map(filesystem).collect())
}

/// Adds filesystems to a bundle, each under its device's name.
///
/// # Errors
/// `EFBIG` for more than a bundle holds.
pub(crate) fn add(gathered: &mut Gathered, filesystems: &[Filesystem<'_>]) -> Result<(), Errno> {
    room(gathered.add(Kind::Directory, MOUNTS.as_bytes(), b""))?;
    for filesystem in filesystems {
        let Some(place) = Place::of_link(filesystem.disk.link.as_bytes()) else { continue };
        room(gathered.add(Kind::Entry, place.name().as_bytes(), b""))?;
        room(gathered.add(Kind::Content, b"", filesystem.line.text))?;
        if let Some(space) = &filesystem.space {
            room(gathered.add(Kind::Space, b"", space.as_bytes()))?;
        }
    }
    Ok(())
}

impl Disk {
    fn of(line: &Line<'_>, ways: &Ways<'_>) -> Option<Self> {
        let number = if line.device.major == 0 { numbered_by_source(line, ways)? } else { line.device };
        let link = readlinkat(AT_FDCWD, format!("{BLOCK_NUMBERS}/{number}").as_str()).ok()?;
        Some(Self { number, link })
    }
}

/// The device that a filesystem was mounted from where its own number is none's: that
/// of the node below `/dev` which the table has, or to which a link there leads.
fn numbered_by_source(line: &Line<'_>, ways: &Ways<'_>) -> Option<Device> {
    let source = line.source.strip_prefix(b"/dev/")?;
    if source.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
        return None;
    }
    ways.end(line.source)?;
    let look = openat(AT_FDCWD, unescaped(line.source).as_ref(), LOOK, Permissions::empty()).ok()?;
    let stat = descriptors::stat(look.as_fd()).ok()?;
    let is_block = SFlag::from_bits_truncate(stat.mode) & SFlag::S_IFMT == SFlag::S_IFBLK;
    let part = |number: u64| u32::try_from(number).ok();
    let (major, minor) = (part(stat::major(stat.stands_for))?, part(stat::minor(stat.stands_for))?);
    is_block.then_some(Device { major, minor })
}

fn space(mount: &Line<'_>) -> Option<String> {
    let look = openat(AT_FDCWD, unescaped(mount.mountpoint).as_ref(), LOOK, Permissions::empty()).ok()?;
    if mount_id(look.as_fd()) != Ok(mount.id) {
        return None;
    }
    let space = fstatvfs(&look).ok()?;
    let (blocks, free, users) = (space.blocks(), space.blocks_free(), space.blocks_available());
    Some(format!("{} {blocks} {free} {users}", space.fragment_size()))
}

fn unescaped(field: &[u8]) -> Cow<'_, Path> {
    if field.contains(&b'\\') { Cow::Owned(mountinfo::path(field)) } else { Cow::Borrowed(path_of(field)) }
}

/// Whether it is asked how full it is.
fn is_measured(mount: &Line<'_>) -> bool {
    mount.is_on_device() || mount.kind == b"btrfs"
}

/// Whether finding a name in it asks nobody else.
fn is_local(mount: &Line<'_>) -> bool {
    mount.is_on_device() || MEMORY.contains(&mount.kind)
}

/// Where paths lead through the mounts of a table.
#[derive(Debug)]
struct Ways<'a> {
    lines: &'a [Line<'a>],
    root: Option<&'a Line<'a>>,
    /// Parent, mountpoint and place of each, in this order; of several in one place the
    /// last covers the others.
    beneath: Vec<(u64, &'a [u8], usize)>,
}

impl<'a> Ways<'a> {
    fn new(lines: &'a [Line<'a>]) -> Self {
        let is_root = |mount: &&Line<'_>| {
            mount.mountpoint == b"/" && lines.iter().all(|other| other.id != mount.parent || other.id == mount.id)
        };
        let beneath = lines.iter().enumerate().filter(|(_, line)| line.id != line.parent);
        let mut beneath: Vec<_> = beneath.map(|(at, line)| (line.parent, line.mountpoint, at)).collect();
        beneath.sort_unstable();
        Self { lines, root: lines.iter().find(is_root), beneath }
    }

    /// What is mounted there on this mount.
    fn next(&self, on: &Line<'_>, mountpoint: &[u8]) -> Option<&'a Line<'a>> {
        let behind = self.beneath.partition_point(|(parent, place, _)| (*parent, *place) <= (on.id, mountpoint));
        let (parent, place, at) = self.beneath.get(behind.checked_sub(1)?)?;
        (*parent == on.id && *place == mountpoint).then(|| &self.lines[*at])
    }

    /// The mount in which a path ends that leads through names of local filesystems only.
    ///
    /// A mountpoint is found in the mount that it lies on, and entered at once; a mount
    /// that covers another whole asks nothing of it.
    fn end(&self, path: &[u8]) -> Option<&'a Line<'a>> {
        let mut at = self.root?;
        // A table with a circle in it ends all the same.
        let mut left = self.lines.len();
        let slashes = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for end in [1].into_iter().chain(slashes).chain([path.len()]) {
            while let Some(next) = self.next(at, path.get(..end)?) {
                if next.mountpoint != at.mountpoint && !is_local(at) {
                    return None;
                }
                left = left.checked_sub(1)?;
                at = next;
            }
        }
        (path == at.mountpoint || is_local(at)).then_some(at)
    }

    /// Whether the way to its mountpoint ends there, and not at one that covers it.
    fn ask_nobody(&self, wanted: &Line<'_>) -> bool {
        self.end(wanted.mountpoint).is_some_and(|end| end.id == wanted.id)
    }
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

    fn lines(table: &str) -> Vec<Line<'_>> {
        mountinfo::lines(table.as_bytes()).collect::<Result<_, _>>().expect("a table")
    }

    fn asked() -> Vec<String> {
        let mounts = lines(TABLE);
        let ways = Ways::new(&mounts);
        let asked = mounts.iter().filter(|mount| is_measured(mount) && ways.ask_nobody(mount));
        asked.map(|mount| format!("{} {}", mount.id, unescaped(mount.mountpoint).display())).collect()
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
    fn a_path_is_gone_only_through_local_filesystems() {
        let mounts = lines(TABLE);
        let ways = Ways::new(&mounts);
        let ends = |path: &str| ways.end(path.as_bytes()).map(|mount| mount.id);
        for (path, id) in [
            ("/dev/vda", Some(20)),
            ("/proc", Some(21)),
            ("/proc/1", None),
            ("/a/x", Some(32)),
            ("/a/b/x", Some(33)),
            ("/far/x", Some(28)),
            ("/boot/x", Some(23)),
            ("/misc/cd", None),
            ("/covered/x", None),
            ("/home/user/x", Some(35)),
        ] {
            assert_eq!(ends(path), id, "{path}");
        }
    }

    #[test]
    fn a_table_that_is_none_ends() {
        let circle = lines("1 2 7:0 / /a rw - ext4 a rw\n2 1 7:1 / / rw - ext4 b rw\n");
        assert!(circle.iter().all(|mount| !Ways::new(&circle).ask_nobody(mount)));
        let circle = lines(
            "9 8 7:9 / / rw - ext4 a rw\n1 9 7:0 / /a rw - ext4 a rw\n1 1 7:1 / /a rw - ext4 b rw\n2 1 7:1 / /a rw - ext4 b rw\n1 2 7:1 / /a rw - ext4 b rw\n",
        );
        assert!(!Ways::new(&circle).ask_nobody(&circle[4]));
        let own = lines("1 1 7:0 / / rw - ext4 a rw\n");
        assert!(Ways::new(&own).ask_nobody(&own[0]), "a root that is its own parent");
        assert!(shown(b"nonsense", |_| true).is_err());
        assert!(shown(b"", |_| true).is_ok_and(|told| told.is_empty()));
    }

    /// The guest's own filesystems: those of its disks that the kernel lists.
    fn own_table() -> Vec<u8> {
        let mounts = std::fs::File::open("/proc/self/mountinfo").expect("a table");
        let mut table = vec![7; 3];
        read(&mounts.into(), &mut table).expect("a table");
        table
    }

    #[test]
    fn a_filesystem_tells_what_it_told_the_test() {
        let table = own_table();
        let told = shown(&table, |_| true).expect("a table");
        let at_root = told.iter().rfind(|told| told.line.mountpoint == b"/" && is_measured(&told.line));
        let Some(root) = at_root else { return println!("the root is on no disk here") };
        let numbers: Vec<u64> =
            root.space.as_ref().expect("an answer").split(' ').map(|n| n.parse().expect("a number")).collect();
        let now = nix::sys::statvfs::statvfs("/").expect("the root's");
        assert_eq!(numbers[..2], [now.fragment_size(), now.blocks()]);
        assert!(numbers[3] <= numbers[2] && numbers[2] <= numbers[1], "{numbers:?}");
        // Found by its number, or by its node.
        let name = Place::of_link(root.disk.link.as_bytes()).expect("a place").name();
        let line = format!("1 1 0:9 / / rw - btrfs /dev/{name} rw\n");
        let line = lines(&line);
        let ways = Ways::new(&line);
        let number = std::fs::read_to_string(format!("/sys/class/block/{name}/dev")).expect("its number");
        assert_eq!(root.disk.number.to_string(), number.trim());
        let is_there = Path::new("/dev").join(name).exists();
        assert_eq!(numbered_by_source(&line[0], &ways), is_there.then_some(root.disk.number));
    }

    #[test]
    fn no_source_is_looked_at_but_nodes_below_dev() {
        for source in
            ["/dev/null", "/dev/not-there", "/dev/../etc", "/dev//null", "/dev/.", "/dev", "none", "", "/etc/passwd"]
        {
            let line = format!("1 1 0:9 / / rw - btrfs {source} rw\n");
            let line = lines(&line);
            assert_eq!(numbered_by_source(&line[0], &Ways::new(&line)), None, "{source}");
        }
        // The way there asks a server.
        let far = lines("1 1 0:9 / / rw - btrfs /dev/vda rw\n2 1 0:10 / /dev rw - nfs4 x rw\n");
        assert!(Ways::new(&far).end(far[0].source).is_none());
    }

    #[test]
    fn a_filesystem_is_told_once_and_under_the_first_mountpoint_that_is_shown() {
        let table = own_table();
        let own = shown(&table, |_| true).expect("a table");
        let Some(one) = own.first() else { return println!("no filesystem is on a disk here") };
        let number = one.disk.number;
        let table = format!(
            "1 1 {number} / / rw - ext4 a rw\n2 1 {number} /b /srv/b\\040c rw - ext4 a rw\n3 1 0:5 / /t rw - tmpfs t rw\n\
             4 1 {number} /b /srv rw - ext4 a rw\n5 1 4095:9 / /gone rw - ext4 a rw\n"
        );
        for (only, told) in [
            (None, Some("/")),
            (Some("/srv/b c"), Some("/srv/b\\040c")),
            (Some("/srv"), Some("/srv")),
            (Some("/t"), None),
        ] {
            let found =
                shown(table.as_bytes(), |path| only.is_none_or(|only| path == Path::new(only))).expect("a table");
            let found: Vec<&[u8]> = found.iter().map(|one| one.line.mountpoint).collect();
            assert_eq!(found, told.map(str::as_bytes).into_iter().collect::<Vec<_>>(), "{only:?}");
        }
    }
}
