//! What `postern run`, or a start in stock's place, was asked for, checked.

use std::path::PathBuf;

use postern_core::policy::written::Origin;
use postern_core::policy::{Channel, Policy};

use crate::family::Pace;
use crate::say::Level;

/// A start of the broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checked policy.
    pub policy: Policy,
    /// Where it came from, to read it again; none, and it is never reloaded.
    pub origin: Option<Origin>,
    /// Where to meet the host, if not where the policy says.
    pub channel: Option<Channel>,
    /// What to tell the operator.
    pub verbosity: Level,
    /// What an init script asks for.
    pub service: Service,
    /// How fast children are replaced: [`Pace::Slowed`] but before a test.
    pub pace: Pace,
}

/// What init scripts want of a daemon, and service managers do themselves. All
/// paths absolute.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Go to the background, with this pidfile; the starter ends when the agent
    /// serves.
    pub daemon: Option<PathBuf>,
    /// Where the operator's log goes, if not to stderr.
    pub logfile: Option<PathBuf>,
    /// Wait for the channel's path to appear.
    pub waits: bool,
    /// What the operator is told once, at the start.
    pub notes: Vec<String>,
}
