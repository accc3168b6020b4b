//! A cell: mount and PID namespaces of one test, with a tmpfs for a root.
//!
//! The mount table in there shows no block device but the test's own scratch
//! disks, so even a plain `guest-fsfreeze-freeze` reaches nothing of the machine;
//! process 1 in there is the test, so no signal reaches the machine's init.
//! Programs are copied in with their libraries: a bind mount of the machine's
//! root would put its block device into the table.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::trace;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

/// Where the test's own executable lies in a cell.
pub(crate) const SELF: &str = "/test";

/// Makes `root`, an empty directory, the root of this process, which must be
/// the first of new mount and PID namespaces.
pub(crate) fn enter(root: &Path, programs: &[&str]) {
    assert_eq!(std::process::id(), 1, "a cell has its own process ids");
    let none: Option<&str> = None;
    mount(Some("cell"), root, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a tmpfs");
    for dir in ["proc", "sys", "dev", "old", "tmp", "run", "bin"] {
        fs::create_dir(root.join(dir)).expect("a directory of the cell");
    }
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("/tmp");
    copy(&std::env::current_exe().expect("the path of this test"), root, Path::new(SELF));
    for program in programs {
        copy(&find(program), root, &Path::new("/bin").join(program));
    }
    for (kind, dir) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev")] {
        mount(Some(kind), &root.join(dir), Some(kind), MsFlags::empty(), none).expect(kind);
    }
    if let Some(directory) = trace::directory() {
        let to = root.join(trace::IN_CELL.trim_start_matches('/'));
        fs::create_dir(&to).expect("a directory of the cell");
        mount(Some(Path::new(&directory)), &to, none, MsFlags::MS_BIND, none).expect("the directory of traces");
        copy(&find("strace"), root, Path::new("/bin/strace"));
    }
    pivot_root(root, &root.join("old")).expect("pivot_root");
    chdir("/").expect("/");
    umount2("/old", MntFlags::MNT_DETACH).expect("the old root");
    fs::remove_dir("/old").expect("/old");
    // SAFETY net of every freeze test: what is on a block device here is frozen.
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    for line in table.lines() {
        let device = line.split(' ').nth(2).expect("a device number");
        assert!(device.starts_with("0:"), "a cell shows a block device: {line}");
    }
}

/// Takes away in a cell what could put this machine to sleep: an agent that is asked
/// to finds a kernel that cannot.
pub(crate) fn sleepless() {
    let none: Option<&str> = None;
    mount(Some("sleepless"), "/sys/power", Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs over /sys/power");
    fs::write("/sys/power/state", "freeze\n").expect("a file");
}

/// Where a program of the machine is.
pub(crate) fn find(program: &str) -> PathBuf {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is not installed"))
}

/// Copies a program and what ldd(1) says it needs.
fn copy(program: &Path, root: &Path, to: &Path) {
    let place = |from: &Path, to: &Path| {
        let to = root.join(to.strip_prefix("/").expect("an absolute path"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory of the cell");
        if !to.exists() {
            fs::copy(from, &to).unwrap_or_else(|why| panic!("{} to {}: {why}", from.display(), to.display()));
        }
    };
    place(program, to);
    for library in libraries(program) {
        place(&library, &library);
    }
}

/// What ldd(1) says that a program needs, the loader among it.
pub(crate) fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let said = String::from_utf8_lossy(&output.stdout);
    // Lines without an address are complaints.
    let found = said.lines().filter(|line| line.contains(" (0x"));
    found.flat_map(str::split_whitespace).filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
