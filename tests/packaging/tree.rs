//! A Debian to install into: one of the userlands of the tests on virtual
//! machines, read only, with a memory filesystem over it for what changes, in
//! mount and PID namespaces of its own. Gone with all its processes when it goes
//! out of scope. No init runs in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{output, root};

/// What the first process in there does; it reaps what daemons leave, too.
const HOLDER: &str = r#"set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root
mount -o ro,loop,noload "$1" /mnt/lower
mount -t overlay overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mount -t proc proc /mnt/root/proc
mount -t tmpfs -o mode=1777 tmpfs /mnt/root/tmp
mount -t tmpfs -o mode=755 tmpfs /mnt/root/run
mount -t tmpfs -o mode=755 tmpfs /mnt/root/dev
for node in null zero full random urandom tty; do
    touch /mnt/root/dev/$node
    mount --bind /dev/$node /mnt/root/dev/$node
done
echo ready
while sleep 0.1; do :; done"#;

/// A Debian.
pub(crate) struct Tree {
    holder: Child,
    /// The first process in there, as it is numbered out here.
    inside: String,
}

impl Tree {
    /// With `kind` (`systemd` or `sysvinit`) and Debian's stock agent installed;
    /// nothing of it runs.
    pub(crate) fn new(kind: &str) -> Self {
        let printed = output(Command::new(root().join("tests/vm/prepare")).args(["userland", kind]));
        let image = printed.trim_end().lines().next_back().expect("a path");
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"])
            .args(["sh", "-c", HOLDER, "sh", image])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux)");
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().expect("its output")).read_line(&mut said).expect("its output");
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).unwrap_or_default();
        let tree = Self { holder, inside: children.trim().to_owned() };
        assert_eq!(said, "ready\n", "the tree could not be mounted");
        tree
    }

    /// Copies a file to `/tmp`.
    pub(crate) fn bring(&self, file: &Path, name: &str) {
        let to = format!("/proc/{}/root/mnt/root/tmp/{name}", self.inside);
        fs::copy(file, &to).unwrap_or_else(|why| panic!("{to}: {why}"));
    }

    /// Runs a script in there as root: whether it succeeded, and what it said on
    /// both outputs.
    pub(crate) fn try_sh(&self, script: &str) -> (bool, String) {
        let output = Command::new("nsenter")
            .args(["--target", &self.inside, "--mount", "--pid", "--root", "--wd=/", "--"])
            .args(["chroot", "/mnt/root", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"])
            .args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", &format!("exec 2>&1\nset -e\n{script}")])
            .stdin(Stdio::null())
            .output()
            .expect("nsenter (util-linux)");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a script that must succeed; what it said.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (succeeded, said) = self.try_sh(script);
        assert!(succeeded, "{script}\n{said}");
        said
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // With --kill-child its end is the end of all in there.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
