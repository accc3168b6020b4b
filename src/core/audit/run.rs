//! What the first record of every file says: which postern writes it, where,
//! under which policy, and how each of its processes is to be confined.
//!
//! Trust: put together by the broker before it hears any host, from the checked
//! policy, the kernel and its own executable.

use super::text::Text;
use crate::catalogue::CommandSet;

/// What every log file says first about the postern that writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// postern's version.
    pub version: &'static str,
    /// SHA-256 of the executable that runs; none where its user may not read
    /// it, as in a development run of an installed one.
    pub executable: Option<[u8; 32]>,
    /// The kernel's release (`/proc/sys/kernel/osrelease`).
    pub kernel: String,
    /// SHA-256 of the policy's files, as read.
    pub policy_digest: [u8; 32],
    /// SHA-256 of the policy in force; see `Policy::in_force`.
    pub policy_in_force: [u8; 32],
    /// Commands that the host may use.
    pub commands: CommandSet,
    /// Those of them whose answers say little.
    pub redact: CommandSet,
    /// Number of file rules in force.
    pub file_rules: usize,
    /// Where the host is met.
    pub channel: Text,
    /// Whether every barrier that needs root at start was put up.
    pub privileged: bool,
    /// Landlock ABI of the kernel; 0 where it has none.
    pub landlock_abi: u32,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The broker's process id.
    pub pid: u32,
    /// The broker's user id.
    pub uid: u32,
    /// How each process is to be confined, as planned from the policy.
    pub confinement: Vec<Confinement>,
}

/// A policy that comes into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// SHA-256 of its files, as read.
    pub digest: [u8; 32],
    /// SHA-256 of it as it holds; see `Policy::in_force`.
    pub in_force: [u8; 32],
    /// Commands that the host may use.
    pub commands: CommandSet,
    /// Those of them whose answers say little.
    pub redact: CommandSet,
    /// Number of file rules.
    pub file_rules: usize,
    /// Keys of which it takes something away.
    pub tightened: Vec<&'static str>,
    /// Keys of which it gives something.
    pub widened: Vec<&'static str>,
    /// What the broker may still do that the policy has no use for, until the
    /// next start.
    pub surplus: Vec<&'static str>,
}

/// How one of postern's processes is to be confined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// `broker`, `spawner`, `opener` or `worker`.
    pub name: &'static str,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// What it keeps in the permitted, effective and bounding sets; nothing is
    /// inheritable or ambient.
    pub capabilities: Vec<String>,
    /// What its Landlock domain leaves.
    pub landlock: &'static str,
    /// Number of rules of its seccomp filter; a call that none allows kills it.
    pub filter_rules: u16,
    /// Digest of these rules; see `confine::seccomp::digest`.
    pub filter_digest: [u8; 32],
}

/// Why a log file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// postern started.
    Started,
    /// The file was rotated and postern was told (`SIGHUP`).
    Rotated,
    /// The file had been unlinked while postern was writing it.
    Removed,
}
