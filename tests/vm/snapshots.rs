//! Snapshots of a domain's disk, taken between freeze and thaw while the guest
//! writes: by hand, and by libvirt. Each is checked and mounted on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::libvirt::{Domain, Libvirt, NAME, copy_sparsely};
use crate::machine::eventually;
use crate::shell::Shell;
use crate::support::runner::Test;
use crate::virsh::name;

pub(crate) const TESTS: &[Test] = &[("libvirt_snapshots_are_consistent", snapshots_are_consistent)];

/// A filesystem image of the guest's, mounted read-only; undone when dropped.
pub(crate) struct Image(TempDir);

impl Image {
    /// It must be clean: nothing to replay, nothing to repair.
    pub(crate) fn mount(libvirt: &Libvirt, name: &str) -> Self {
        let image = libvirt.path(name);
        assert!(!needs_recovery(&image), "{name}: its journal is to be replayed");
        let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().expect("e2fsck");
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{name}: {said}");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount").args(["-o", "ro,loop"]).arg(&image).arg(directory.path()).status();
        assert!(mounted.expect("mount").success(), "{name} cannot be mounted");
        Self(directory)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Every line that the guest's writer was told is on disk, whole and in order.
    fn holds(&self, acknowledged: usize) {
        let text = fs::read_to_string(self.path("srv/data")).expect("what the writer wrote");
        let lines = text.lines().count();
        let whole = |(at, line): (usize, &str)| line == format!("line {} end", at + 1);
        let untorn = text.ends_with('\n') && text.lines().enumerate().all(whole);
        assert!(untorn, "a torn or lost line:\n{text}");
        assert!(lines >= acknowledged, "{lines} lines, but {acknowledged} were acknowledged");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Whether whoever mounts this has to replay its journal.
fn needs_recovery(image: &Path) -> bool {
    let output = Command::new("dumpe2fs").arg("-h").arg(image).output().expect("dumpe2fs");
    let text = String::from_utf8_lossy(&output.stdout);
    let features = text.lines().find(|line| line.starts_with("Filesystem features:")).expect("features");
    features.split_whitespace().any(|word| word == "needs_recovery")
}

/// Appends numbered lines, and acknowledges each when it is on disk, as a database
/// does; the acknowledgements are not on that disk.
const WRITER: &str = "mkdir -p /srv; : >/srv/data
(number=0
while [ ! -e /run/stop ]; do
    number=$((number + 1))
    echo \"line $number end\" | dd of=/srv/data oflag=append conv=notrunc,fsync 2>/dev/null || exit 1
    echo $number >/run/next && mv /run/next /run/acknowledged
done) >/dev/null 2>&1 &";

fn acknowledged(shell: &mut Shell) -> usize {
    shell.sh("cat /run/acknowledged 2>/dev/null || echo 0").trim().parse().expect("a number")
}

/// Waits for some more acknowledgements.
fn keeps_writing(shell: &mut Shell) -> usize {
    let before = acknowledged(shell);
    eventually("the writer writes", || Some(acknowledged(shell)).filter(|now| *now >= before + 10))
}

fn snapshots_are_consistent() {
    let mut domain = Domain::boot();
    domain.shell.sh(WRITER);
    keeps_writing(&mut domain.shell);

    // The other side: without a freeze a copy is that of a crash.
    copy_sparsely(&domain.libvirt.path("root.raw"), &domain.libvirt.path("crash.raw"));
    assert!(
        needs_recovery(&domain.libvirt.path("crash.raw")),
        "a copy of a running disk looks clean, so the check is none"
    );

    // By hand: freeze, copy, thaw.
    let known = keeps_writing(&mut domain.shell);
    domain.virsh(&["domfsfreeze", NAME]);
    let during = acknowledged(&mut domain.shell);
    copy_sparsely(&domain.libvirt.path("root.raw"), &domain.libvirt.path("frozen.raw"));
    assert_eq!(acknowledged(&mut domain.shell), during, "nothing is written while frozen");
    domain.virsh(&["domfsthaw", NAME]);
    assert!(during >= known);
    Image::mount(&domain.libvirt, "frozen.raw").holds(during);

    // By libvirt, which freezes and thaws itself; the old image is the snapshot.
    let known = keeps_writing(&mut domain.shell);
    let before = domain.sent().len();
    let overlay = format!("vda,snapshot=external,file={}", domain.libvirt.path("overlay.qcow2").display());
    domain.virsh(&[
        "snapshot-create-as",
        NAME,
        "before",
        "--disk-only",
        "--quiesce",
        "--atomic",
        "--diskspec",
        &overlay,
    ]);
    let sent: Vec<String> = domain.sent()[before..].iter().map(|one| name(one)).collect();
    assert_eq!(sent, ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    Image::mount(&domain.libvirt, "root.raw").holds(known);

    keeps_writing(&mut domain.shell);
    domain.shell.sh("touch /run/stop; postern audit verify /var/log/postern/audit.jsonl");
}
