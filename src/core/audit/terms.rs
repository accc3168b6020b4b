//! What records are made of: who, how, and what stood where.
//!
//! Trust: as of the records themselves; see [`super::record`].

use std::path::Path;

use jiff::Timestamp;
use nix::errno::Errno;

use super::mounts::Mounts;
use super::text::Text;
use crate::messages;

/// Who is at the other end of a unix socket, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id; 0 where it is outside our PID namespace.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Why a handle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The host closed it.
    Host,
    /// The worker that held it died.
    WorkerDied,
    /// postern is stopping.
    Stopping,
    /// A new policy came into force, with a new worker.
    Reloaded,
}

/// What made the broker thaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThawCause {
    /// The host asked.
    Host,
    /// The policy's time limit passed.
    TimeLimit,
    /// postern is stopping.
    Stopping,
}

/// One of postern's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Parses the host's bytes.
    Worker,
    /// Opens files.
    Opener,
    /// Starts the two others.
    Spawner,
}

impl From<messages::Role> for Role {
    fn from(role: messages::Role) -> Self {
        match role {
            messages::Role::Opener => Self::Opener,
            messages::Role::Worker => Self::Worker,
        }
    }
}

/// What a process found of its own barriers, before it heard any host. Its own
/// word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stands {
    /// Landlock ABI as enforced.
    pub landlock_abi: u8,
    /// Number of rules of the filter that it put itself under.
    pub filter_rules: u16,
    /// Digest of these rules; see `confine::seccomp::digest`.
    pub filter_digest: [u8; 32],
    /// Paths of the policy that were not there.
    pub missing: Mounts,
}

impl Stands {
    /// Of a child's own words, and the paths of the rules that it could not find.
    pub fn of<'a>(standing: &messages::Standing, missing: impl Iterator<Item = &'a Path>) -> Self {
        Self {
            landlock_abi: standing.landlock_abi,
            filter_rules: standing.filter_rules,
            filter_digest: standing.filter_digest,
            missing: missing.collect(),
        }
    }
}

/// A file when its handle ended, by the kernel's word to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// Bytes.
    pub size: u64,
    /// When its content was last changed.
    pub mtime: Timestamp,
    /// Whether one of both is another than at the grant.
    pub changed: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Exit status.
    Exited(i32),
    /// Signal number; SIGSYS means that a filter stopped it.
    Signalled(i32),
    /// It is gone and nobody could wait for it.
    Unknown,
}

/// What an act was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To trim ranges of at least so many bytes.
    Trim {
        /// As the host wrote it, as a number without sign.
        minimum: u64,
    },
    /// To put the guest to sleep; how, the command says.
    Suspend,
    /// To switch processors or memory blocks.
    Switch {
        /// Those that are to be on, as [`Text::ranges`] writes them.
        on: Text,
        /// Those that are to be off.
        off: Text,
    },
}

/// What came of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Filesystems, processors or memory blocks that it was done to; 1 for a sleep.
    pub count: u64,
    /// Where, of a trim.
    pub mounts: Mounts,
    /// Bytes that disks were told of, of a trim.
    pub trimmed: Option<u64>,
    /// Mountpoints that could not be trimmed.
    pub failed: Mounts,
    /// Memory blocks that could not be switched, or after the first processor that
    /// could not, how many were left as they were.
    pub left: u64,
}

/// Why there are fewer records than events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records that found the ring of waiting records full.
    pub ring: u64,
    /// Records that could not be written, whose acts were therefore refused.
    pub unwritten: u64,
    /// The last error of writing, if that was why.
    pub errno: Option<Errno>,
}
