//! Why a broker does not start, or ends out of order, and the exit status of each.
//!
//! Trust: plain data. Used by the launch and by all that can end the broker.

use std::io;
use std::path::PathBuf;

use postern_core::confine::ConfineError;

use crate::background::OwnFileError;
use crate::host::HostError;
use crate::log::LogError;

/// Why the broker did not start, or ended out of order.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// An account of the policy can't be used.
    #[error("{0}")]
    Account(String),
    /// A barrier could not be put up.
    #[error("not starting unconfined: {who}: {why}")]
    Unconfined {
        /// Which process.
        who: &'static str,
        /// Which barrier, and why.
        why: String,
    },
    /// There is no channel.
    #[error("no channel: {0}")]
    Host(#[from] HostError),
    /// The audit log can't be used.
    #[error("no audit log: {0}")]
    Log(#[from] LogError),
    /// The state directory can't be used.
    #[error("state directory {path}: {why}", path = .0.display(), why = .1)]
    State(PathBuf, String),
    /// The spawner ended, or spoke nonsense.
    #[error("the spawner {0}")]
    Spawner(&'static str),
    /// Pidfile or logfile can't be used.
    #[error("{0}")]
    OwnFile(#[from] OwnFileError),
    /// Told to stop, and something could not be thawed.
    #[error("ending, although filesystems are still frozen; thaw them with: fsfreeze --unfreeze MOUNTPOINT")]
    StillFrozen,
    /// An earlier run left something frozen, and this one could not thaw it.
    #[error(
        "an earlier run left filesystems frozen, and this one could not thaw them; start it as root with a policy \
         that allows guest-fsfreeze-thaw, or thaw them (fsfreeze --unfreeze MOUNTPOINT) and remove the file \
         'frozen' from the state directory"
    )]
    CannotThaw,
    /// A system call failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, #[source] io::Error),
}

impl Fatal {
    /// The exit status that tells these apart; listed in the README.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Unconfined { .. } | Self::Account(_) => 4,
            Self::Host(_) => 5,
            Self::Log(_) => 6,
            Self::OwnFile(_)
            | Self::State(..)
            | Self::Spawner(_)
            | Self::StillFrozen
            | Self::CannotThaw
            | Self::Call(..) => 1,
        }
    }
}

impl From<ConfineError> for Fatal {
    fn from(why: ConfineError) -> Self {
        Self::Unconfined { who: "broker", why: why.to_string() }
    }
}
