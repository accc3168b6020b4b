//! Telling the service manager how postern stands.
//!
//! Trust: numbers of our own; see [`crate::notify`].

use std::fmt;
use std::time::Duration;

use postern_core::audit::Timestamp;

use super::Broker;
use super::clocks::boottime;
use crate::fsfreeze::{Engine, Status};
use crate::say::Filesystems;

/// How postern stands, as a unit's status shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// No worker has been confined yet, or no opener, or there is no channel.
    #[default]
    Starting,
    /// The host is, or can be, served.
    Serving,
    /// The host is served, but nothing is opened: the log's room is spent.
    LogSpent,
    /// The port is not there.
    NoPort,
    /// Filesystems are being frozen.
    Freezing,
    /// So many are frozen.
    Frozen { filesystems: usize, since: Timestamp },
    /// A thaw left so many frozen.
    Stuck { filesystems: usize },
    /// The orderly end has begun.
    Stopping,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Serving => f.write_str("serving"),
            Self::LogSpent => f.write_str("serving, but refusing opens: audit.max_bytes is spent, move old logs away"),
            Self::NoPort => f.write_str("waiting for the port"),
            Self::Freezing => f.write_str("freezing"),
            Self::Frozen { filesystems, since } => write!(f, "frozen: {} since {since}", Filesystems(*filesystems)),
            Self::Stuck { filesystems } => write!(f, "still frozen after a thaw: {}", Filesystems(*filesystems)),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

impl Broker {
    /// Tells the manager what has changed, and its watchdog that this loop goes
    /// round. Called by the loop alone, once each time round: one that is stuck
    /// says nothing, and is restarted.
    pub(super) fn tell_manager(&mut self) {
        self.parts.notify.keep_alive(std::time::Instant::now());
        let standing = self.standing();
        let news = std::mem::take(&mut self.reload.news);
        if standing == self.told && !news {
            return;
        }
        if self.told == Standing::Starting && standing != Standing::Stopping {
            self.parts.notify.ready();
            self.parts.voice.serves();
        }
        if standing == Standing::Stopping {
            self.parts.notify.stopping();
        }
        let kept =
            self.reload.kept.as_ref().map_or_else(String::new, |why| format!("; the new policy was refused: {why}"));
        self.parts.notify.status(&format!("{standing}{kept}"));
        self.told = standing;
    }

    /// The first worker is confined and so is the first opener, if there is to
    /// be one, and a host can reach us; or, to thaw, without a port.
    fn is_up(&self) -> bool {
        let stands = self.worker_stood && (self.paths_stood || !self.parts.policy.has_opener());
        self.parts.host.is_gone() || (stands && self.has_channel())
    }

    /// Whether a host can reach us: a listener waits for it, or the port is here.
    fn has_channel(&self) -> bool {
        self.parts.host.listens().is_some() || self.parts.host.current().is_some()
    }

    fn standing(&self) -> Standing {
        if self.stopping.is_some() {
            return Standing::Stopping;
        }
        if self.told == Standing::Starting && !self.is_up() {
            return Standing::Starting;
        }
        let filesystems = self.parts.engine.as_ref().map_or(0, Engine::frozen);
        match self.status() {
            Status::Freezing => Standing::Freezing,
            Status::Frozen => Standing::Frozen { filesystems, since: self.frozen_since() },
            Status::Error => Standing::Stuck { filesystems },
            Status::Thawed if !self.has_channel() => Standing::NoPort,
            Status::Thawed if self.parts.log.is_spent() => Standing::LogSpent,
            Status::Thawed => Standing::Serving,
        }
    }

    /// When the freeze began, by the clock on the wall, which may have been set
    /// since: what was told once stands.
    fn frozen_since(&self) -> Timestamp {
        if let Standing::Frozen { since, .. } = self.told {
            return since;
        }
        let began = self.parts.engine.as_ref().and_then(|engine| engine.deadline(Duration::ZERO));
        // In whole seconds, as the state directory keeps it: a broker that was
        // started meanwhile says the same.
        let began = began.map_or_else(boottime, |began| Duration::from_secs(began.as_secs()));
        let since = Timestamp::now().checked_sub(boottime().saturating_sub(began)).unwrap_or_default();
        Timestamp::from_second(since.as_second()).unwrap_or_default()
    }
}
