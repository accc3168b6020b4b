//! Scratch disks: image files on loop devices, and mounts of them. Guards undo
//! everything when they go out of scope, also when a test panics: a mount is
//! thawed before it is unmounted, for a frozen filesystem never goes away.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use postern_core::sys::fs::{freeze, thaw};

/// A filesystem image on a loop device.
pub(crate) struct Disk {
    pub(crate) device: PathBuf,
    kind: &'static str,
}

impl Disk {
    /// Makes an image of `mebibytes` at `image` with a filesystem of this kind.
    pub(crate) fn new(kind: &'static str, image: &Path, mebibytes: u64) -> Self {
        let file = File::create(image).expect("an image file");
        file.set_len(mebibytes << 20).expect("an image's size");
        let force = if kind == "ext4" { "-F" } else { "-f" };
        run(Command::new(format!("/bin/mkfs.{kind}")).args(["-q", force]).arg(image));
        Self::attach(kind, image)
    }

    /// The usual sizes: the smallest that each mkfs takes.
    pub(crate) fn small(kind: &'static str, image: impl AsRef<Path>) -> Self {
        let mebibytes = match kind {
            "xfs" => 304,
            "btrfs" => 128,
            _ => 32,
        };
        Self::new(kind, image.as_ref(), mebibytes)
    }

    /// Puts an existing image on a loop device.
    pub(crate) fn attach(kind: &'static str, image: &Path) -> Self {
        // Finding a free device and taking it are two steps; others may come
        // between.
        for _ in 0..50 {
            let output = Command::new("/bin/losetup").args(["--find", "--show"]).arg(image).output().expect("losetup");
            if output.status.success() {
                let device = String::from_utf8(output.stdout).expect("a device name");
                return Self { device: device.trim().into(), kind };
            }
        }
        panic!("no loop device for {}", image.display());
    }

    /// Mounts it.
    pub(crate) fn mount(&self, at: impl AsRef<Path>) -> Mounted {
        self.mount_with(at, None)
    }

    /// Mounts it with options.
    pub(crate) fn mount_with(&self, at: impl AsRef<Path>, options: Option<&str>) -> Mounted {
        let at = at.as_ref();
        fs::create_dir_all(at).expect("a mountpoint");
        mount(Some(&self.device), at, Some(self.kind), MsFlags::empty(), options)
            .unwrap_or_else(|why| panic!("mounting {} at {}: {why}", self.device.display(), at.display()));
        Mounted::of(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("/bin/losetup").arg("--detach").arg(&self.device).status();
    }
}

/// One of each kind that a guest's disks have: ext4 at `/a`, xfs at `/b`, btrfs
/// at `/c`.
pub(crate) fn one_of_each() -> ([Disk; 3], Vec<Mounted>) {
    let disks = ["ext4", "xfs", "btrfs"].map(|kind| Disk::small(kind, format!("/{kind}.img")));
    let mounts = disks.iter().zip(["/a", "/b", "/c"]).map(|(disk, at)| disk.mount(at)).collect();
    (disks, mounts)
}

/// Filesystems at `/plain`, `/broken` and `/last`, of which `/broken` cannot be
/// frozen: its image is sparse and lies on a tmpfs too small for what was written
/// to it, so what the freeze must flush cannot be.
pub(crate) fn one_that_fails() -> ([Disk; 3], [Mounted; 3]) {
    let none: Option<&str> = None;
    fs::create_dir("/small").expect("a directory");
    mount(none, "/small", Some("tmpfs"), MsFlags::empty(), Some("size=12m")).expect("a tmpfs");
    let images = [("ext4", "/1.img", 32), ("ext4", "/small/broken.img", 64), ("xfs", "/3.img", 304)];
    let disks = images.map(|(kind, image, mebibytes)| Disk::new(kind, Path::new(image), mebibytes));
    let mounts = [(0, "/plain"), (1, "/broken"), (2, "/last")].map(|(disk, at): (usize, _)| disks[disk].mount(at));
    fs::write("/small/filler", vec![1; 16 << 20]).expect_err("the tmpfs is full now");
    fs::write(mounts[1].path("data"), vec![7; 8 << 20]).expect("a write that stays in memory");
    (disks, mounts)
}

/// A mount of a scratch disk.
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
    root: File,
}

impl Mounted {
    /// What is mounted here already.
    pub(crate) fn of(at: &Path) -> Self {
        Self { at: at.to_owned(), root: File::open(at).expect("the mount's root") }
    }

    /// Binds `from` at `at`; both are directories, or both files.
    pub(crate) fn bind(from: &Path, at: &Path) -> Self {
        if from.is_dir() {
            fs::create_dir_all(at).expect("a mountpoint");
        } else {
            fs::write(at, "").expect("a mountpoint");
        }
        let none: Option<&str> = None;
        mount(Some(from), at, none, MsFlags::MS_BIND, none).expect("a bind mount");
        Self::of(at)
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Brings what was written to its disk. Of all disks, by sync(2), it would wait
    /// for those that another test has frozen.
    pub(crate) fn sync(&self) {
        nix::unistd::syncfs(&self.root).expect("syncfs");
    }

    /// Freezes it behind the engine's back.
    pub(crate) fn freeze(&self) {
        freeze(self.root.as_fd()).expect("FIFREEZE");
    }

    /// Thaws it behind the engine's back; whether it was frozen.
    pub(crate) fn thaw(&self) -> bool {
        thaw(self.root.as_fd()).is_ok()
    }

    /// Whether it is frozen. Asks by freezing, and undoes that: so not to be
    /// asked while somebody may be freezing it.
    pub(crate) fn is_frozen(&self) -> bool {
        match freeze(self.root.as_fd()) {
            Ok(()) => {
                assert!(self.thaw(), "undoing the question");
                false
            }
            Err(nix::errno::Errno::EBUSY) => true,
            Err(errno) => panic!("{}: {errno}", self.at.display()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = thaw(self.root.as_fd());
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
