//! Freezing and thawing filesystems, on the host's asking.
//!
//! `FIFREEZE` may block for minutes, even for ever, and no signal ends it. So two
//! threads do it, the freezer and the thawer ([`Engine`]), and the broker's
//! loop only asks and polls: it answers pings, keeps the time limit and may
//! thaw while a freeze is stuck in the kernel.
//!
//! Trust: the list of mountpoints comes from the host and is only compared
//! with the mount table, never opened. The mount table is the kernel's. Called
//! by the broker alone, which has decided and recorded before.

mod engine;
mod handles;
pub mod mounts;
pub(crate) mod open;
pub mod remember;
mod stacking;
mod state;

use std::fmt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

pub use engine::{Engine, Refused};
pub use handles::{FILE as HANDLES_FILE, Handles};
pub use open::MountTable;
pub use remember::{Error, FILE as FROZEN_FILE, Filesystem, Memory, Remembered};
pub use stacking::Stacking;

/// What filesystems are, as far as postern froze them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// None is frozen by us.
    Thawed,
    /// A freeze is under way, or being undone. To a host it reads "thawed": only
    /// "frozen" says that a snapshot may be taken.
    Freezing,
    /// All that were asked for are frozen, also while a thaw is under way.
    Frozen,
    /// A thaw left some frozen, or a remembered one could not be reached.
    /// Another thaw tries those again.
    Error,
}

impl Status {
    /// As `guest-fsfreeze-status` says it.
    #[must_use]
    pub const fn on_wire(self) -> &'static str {
        match self {
            Self::Thawed | Self::Freezing => "thawed",
            Self::Frozen => "frozen",
            Self::Error => "error",
        }
    }
}

/// Who wants a thaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `guest-fsfreeze-thaw`.
    Host,
    /// The policy's time limit is over.
    TimeLimit,
    /// postern is ending.
    Ending,
}

/// What became of a request. Each [`Engine::freeze`] that was not refused ends
/// in one [`Event::Frozen`] or [`Event::FreezeFailed`]; each
/// [`Engine::thaw`] in one [`Event::Thawed`], several that wait at once in one
/// together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Done. The host is told the number of `filesystems`; with 0 there is
    /// nothing to thaw and the status is thawed again.
    Frozen {
        /// What is frozen now, in freeze order.
        filesystems: Vec<Filesystem>,
        /// What was left out, for record and log.
        notes: Vec<Note>,
    },
    /// Not done, and what was frozen already is thawed again.
    FreezeFailed {
        /// Why; what the host is told.
        failure: Failure,
        /// What could not be undone; if any is a filesystem, status is error.
        left: Vec<Failure>,
    },
    /// Thawed. The host is told the number of `filesystems`.
    Thawed {
        /// Who wanted it; of several the first.
        why: Why,
        /// What was frozen and is not any more, in thaw order.
        filesystems: Vec<Filesystem>,
        /// What could not be done; if any is a filesystem, status is error.
        left: Vec<Failure>,
    },
}

/// A filesystem that a freeze left out without failing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// One of its mountpoints.
    pub mountpoint: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// Why a freeze left a filesystem out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Every mount of it is covered by another one, so no path leads there. The
    /// stock agent leaves it out too, silently. Who writes to it still could
    /// only be one that holds it open since before it was covered.
    Covered,
    /// It has no freeze operation (`EOPNOTSUPP`).
    NotSupported,
    /// Somebody else froze it (`EBUSY`): not ours to count, nor to thaw. Only a
    /// broker started anew while frozen cannot tell, and thaws it with the rest:
    /// what was remembered was written before the first FIFREEZE.
    FrozenByOthers,
}

impl Reason {
    /// As a record has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Covered => "covered",
            Self::NotSupported => "not-supported",
            Self::FrozenByOthers => "frozen-by-others",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.reason {
            Reason::Covered => "other mounts cover it",
            Reason::NotSupported => "this filesystem cannot be frozen",
            Reason::FrozenByOthers => "it was frozen already",
        };
        write!(f, "{} was left out: {why}", self.mountpoint.display())
    }
}

/// What a freeze or thaw failed at. The text is what hosts are told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The mount table could not be read.
    #[error("failed to read the mount table: {}", text(*.errno))]
    Table {
        /// The system's word; `EBADMSG`: it has a form that we do not know.
        errno: Errno,
    },
    /// A mountpoint could not be opened.
    #[error("failed to open {}: {}", .mountpoint.display(), text(*.errno))]
    Open {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The system's word. `ENOTDIR`: the filesystem is only to be reached
        /// through mountpoints that are files, which the broker's Landlock
        /// domain does not let it open.
        errno: Errno,
    },
    /// The kernel could not freeze a filesystem.
    #[error("failed to freeze {}: {}", .mountpoint.display(), text(*.errno))]
    Freeze {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The system's word.
        errno: Errno,
    },
    /// The kernel could not thaw a filesystem. It stays frozen.
    #[error("failed to thaw {}: {}", .mountpoint.display(), text(*.errno))]
    Thaw {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The system's word.
        errno: Errno,
    },
    /// A filesystem that an earlier run froze is mounted nowhere that a path
    /// leads to. It may stay frozen: mount it and ask for a thaw again.
    #[error("failed to open {}: it is not mounted there any more", .mountpoint.display())]
    Unreachable {
        /// Where it was.
        mountpoint: PathBuf,
    },
    /// The state directory could not be written, so nothing was frozen: after
    /// a crash nobody would have known.
    #[error("failed to write the state directory: {}", text(*.errno))]
    Remember {
        /// The system's word.
        errno: Errno,
    },
    /// The state file could not be removed. All is thawed; a postern started
    /// in this boot will believe that it is not until its first thaw.
    #[error("failed to remove a file from the state directory: {}", text(*.errno))]
    Forget {
        /// The system's word.
        errno: Errno,
    },
    /// A thaw was wanted before the freeze was done.
    #[error("the freeze was ended by a thaw")]
    Aborted,
}

impl Failure {
    /// The mountpoint that it was about, if it was about one.
    #[must_use]
    pub fn mountpoint(&self) -> Option<&Path> {
        match self {
            Self::Open { mountpoint, .. }
            | Self::Freeze { mountpoint, .. }
            | Self::Thaw { mountpoint, .. }
            | Self::Unreachable { mountpoint } => Some(mountpoint),
            Self::Table { .. } | Self::Remember { .. } | Self::Forget { .. } | Self::Aborted => None,
        }
    }

    /// The system's word, if it had one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Table { errno }
            | Self::Open { errno, .. }
            | Self::Freeze { errno, .. }
            | Self::Thaw { errno, .. }
            | Self::Remember { errno }
            | Self::Forget { errno } => Some(*errno),
            Self::Unreachable { .. } | Self::Aborted => None,
        }
    }
}

/// The C library's text, which clients match; nix's own differs in places.
pub(crate) fn text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The errno of an I/O error; `EIO` for one that the system did not give.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_as_the_stock_agents() {
        let open = Failure::Open { mountpoint: "/mnt".into(), errno: Errno::EACCES };
        assert_eq!(open.to_string(), "failed to open /mnt: Permission denied");
        let freeze = Failure::Freeze { mountpoint: "/mnt".into(), errno: Errno::EIO };
        assert_eq!(freeze.to_string(), "failed to freeze /mnt: Input/output error");
    }
}
