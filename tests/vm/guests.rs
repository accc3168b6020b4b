//! What can be booted: Debian's kernels and three userlands, made once by
//! `tests/vm/prepare`, and the executable that ships.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a guest's code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    X86_64,
    /// Always emulated here; its executable is built by Debian's compilers.
    Aarch64,
}

/// A kernel of Debian's, the newest of its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As `tests/vm/prepare` knows it.
    pub(crate) series: &'static str,
    /// The version of Landlock that it must have; 0 is none. By
    /// `landlock(7)`: Linux 5.13 has 1, 6.2 has 3, 6.7 has 4, 6.10 has 5, 6.12
    /// has 6; 6.1 has 2 since 5.19. 7.2's is what it was found to be.
    pub(crate) landlock: u32,
    pub(crate) processor: Processor,
}

const fn x86_64(series: &'static str, landlock: u32) -> Kernel {
    Kernel { series, landlock, processor: Processor::X86_64 }
}

pub(crate) const LINUX_5_10: Kernel = x86_64("5.10", 0);
pub(crate) const LINUX_6_1: Kernel = x86_64("6.1", 2);
pub(crate) const LINUX_6_12: Kernel = x86_64("6.12", 6);
pub(crate) const NEWEST: Kernel = x86_64("newest", 10);
pub(crate) const LINUX_6_12_ARM64: Kernel = Kernel { series: "6.12-arm64", landlock: 6, processor: Processor::Aarch64 };

/// A root filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Userland {
    /// Busybox alone, its init, no udev.
    Busybox,
    /// Debian 12 with systemd, udev and the stock agent.
    Systemd,
    /// Debian 12 with System V's init, udev and the stock agent.
    Sysvinit,
}

impl Userland {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Systemd => "systemd",
            Self::Sysvinit => "sysvinit",
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The last line that a script of ours prints: a path.
fn path_by(script: &str, arguments: &[&str]) -> PathBuf {
    let output = Command::new(root().join(script))
        .args(arguments)
        .stderr(Stdio::piped())
        .output()
        .unwrap_or_else(|why| panic!("{script}: {why}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} {arguments:?}: {}\n{said}", output.status);
    let printed = String::from_utf8(output.stdout).expect("a path");
    PathBuf::from(printed.trim_end().lines().next_back().expect("a path"))
}

/// `vmlinuz` and `initrd` are in there.
pub(crate) fn kernel(kernel: Kernel) -> PathBuf {
    path_by("tests/vm/prepare", &["kernel", kernel.series])
}

/// A raw disk image; not to be written.
pub(crate) fn userland(userland: Userland, processor: Processor) -> PathBuf {
    let ending = if processor == Processor::Aarch64 { "-arm64" } else { "" };
    path_by("tests/vm/prepare", &["userland", &format!("{}{ending}", userland.name())])
}

/// A directory with the stock agent of Debian 13, its libraries, and `start`.
pub(crate) fn newer_stock() -> PathBuf {
    path_by("tests/vm/prepare", &["stock", "trixie"])
}

/// Names the executable that a run of the tests has built.
pub(crate) const EXECUTABLE: &str = "POSTERN_VM_EXECUTABLE";

/// Builds the static executable that ships.
pub(crate) fn build() -> PathBuf {
    path_by("packaging/build", &["--static-only"])
}

/// The executable that ships, of this run.
pub(crate) fn executable(processor: Processor) -> PathBuf {
    if processor == Processor::Aarch64 {
        return path_by("tests/vm/prepare", &["executable", "aarch64"]);
    }
    std::env::var_os(EXECUTABLE).map(PathBuf::from).expect("the run has built it")
}

/// The Debian package.
pub(crate) fn package() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| path_by("packaging/build", &[])).clone()
}

/// A directory with stock of a release of Debian's; `start` in there runs it anywhere.
pub(crate) fn stock(release: &str) -> PathBuf {
    path_by("tests/vm/prepare", &["stock", release])
}

/// A package of Debian's, of the userlands' release.
pub(crate) fn debian(name: &str) -> PathBuf {
    path_by("tests/vm/prepare", &["package", name])
}
