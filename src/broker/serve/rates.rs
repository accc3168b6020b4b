//! How often a worker may ask for what the broker does: opens, freezes, shutdowns
//! and other acts.
//! The worker's own limits are no bound for a worker that fell.
//!
//! Trust: asks are the worker's; the numbers are the policy's. A thaw and the
//! status are never refused for their number.

use std::time::Instant;

use postern_core::audit::Record;
use postern_core::catalogue::Command;
use postern_core::messages::Ask;
use postern_core::rate::too_many;

use super::{Broker, acts};

/// The command that an ask is for, of those that are limited here.
fn limited(ask: &Ask) -> Option<Command> {
    match ask {
        Ask::Open { .. } => Some(Command::FileOpen),
        Ask::Freeze { only: None } => Some(Command::FsfreezeFreeze),
        Ask::Freeze { only: Some(_) } => Some(Command::FsfreezeFreezeList),
        Ask::Shutdown { .. } => Some(Command::Shutdown),
        _ => acts::command(ask),
    }
}

impl Broker {
    /// What the host is told if this ask is one too many; it is counted, and told
    /// of in a record now and then.
    pub(super) fn too_many(&mut self, ask: &Ask) -> Option<String> {
        let command = limited(ask)?;
        let limit = command.entry().rate.limit(&self.parts.policy.limits)?;
        let now = Instant::now();
        if self.rates.admits(command, limit.1, now) {
            return None;
        }
        if let Some(counts) = self.rates.due(now) {
            self.note(&Record::Limited { child: self.worker_number(), counts });
        }
        Some(too_many(command, limit))
    }

    /// Refuses a freeze because too many froze nothing, or another act.
    pub(super) fn refuse_fruitless(&mut self, command: Command, why: &str) {
        let now = Instant::now();
        self.rates.refuse(command);
        if let Some(counts) = self.rates.due(now) {
            self.note(&Record::Limited { child: self.worker_number(), counts });
        }
        self.refuse(why);
    }

    /// What a freeze put into the log counts against the next, if it froze nothing.
    pub(super) fn charge_freeze(&mut self, outcome: &Record, fruitless: bool) {
        if let Some(announced) = self.announced.take().filter(|_| fruitless) {
            self.parts.log.charge(&announced, Some(outcome));
        }
    }

    /// Tells of those that no record has told of yet.
    pub(super) fn tell_refused(&mut self) {
        if let Some(counts) = self.rates.rest(Instant::now()) {
            self.note(&Record::Limited { child: self.worker_number(), counts });
        }
    }
}
