//! What worker and opener are told of the policy: only their part.
//!
//! Trust: cut from the checked policy by the broker; the children take it as
//! given, for who speaks on their first descriptor is their parent.

use super::rules::FileRule;
use super::telling::Telling;
use super::{Limits, Policy};
use crate::catalogue::CommandSet;
use crate::catalogue::facts::FactSet;

/// The worker's part: no path, no account, no log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPart {
    /// Commands that the host may use.
    pub commands: CommandSet,
    /// Those of them whose answers say little.
    pub redact: CommandSet,
    /// How much answers about the guest tell.
    pub telling: Telling,
    /// Limits on requests.
    pub limits: Limits,
}

/// The opener's part: the file rules, which facts, and of which filesystems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenerPart {
    /// File rules, with the broker's numbering.
    pub rules: Vec<FileRule>,
    /// Permission bits of a created file.
    pub create_mode: u32,
    /// What it may tell of the guest.
    pub facts: FactSet,
    /// The filesystems of which it may; nothing else of it is said.
    pub telling: Telling,
}

impl WorkerPart {
    /// What it may ask to be told of the guest.
    #[must_use]
    pub fn facts(&self) -> FactSet {
        self.telling.facts(self.commands, self.redact)
    }

    /// Those of its commands that make the calls of their rows.
    #[must_use]
    pub fn calling(&self) -> CommandSet {
        self.telling.calling(self.commands, self.redact)
    }
}

impl Policy {
    /// What may be told of the guest.
    #[must_use]
    pub fn facts(&self) -> FactSet {
        self.facts.facts(self.commands, self.redact)
    }

    /// Whether it takes an opener.
    #[must_use]
    pub fn has_opener(&self) -> bool {
        !self.files.is_empty() || self.facts().gathers()
    }

    /// What the worker is told.
    #[must_use]
    pub fn worker_part(&self) -> WorkerPart {
        WorkerPart {
            commands: self.commands,
            redact: self.redact,
            telling: self.facts.clone(),
            limits: self.limits.clone(),
        }
    }

    /// What the opener is told.
    #[must_use]
    pub fn opener_part(&self) -> OpenerPart {
        let facts = self.facts().gathered();
        let mountpoints = if facts.measures() { self.facts.mountpoints.clone() } else { Vec::new() };
        let telling = Telling { mountpoints, ..Telling::default() };
        OpenerPart { rules: self.files.clone(), create_mode: self.create_mode, facts, telling }
    }
}
