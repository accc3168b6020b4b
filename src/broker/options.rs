//! What `postern run` was asked for, checked.

use postern_core::policy::{Channel, Policy};

use crate::say::Level;

/// A start of the broker.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checked policy.
    pub policy: Policy,
    /// Where to meet the host, if not where the policy says.
    pub channel: Option<Channel>,
    /// What to tell the operator.
    pub verbosity: Level,
}
