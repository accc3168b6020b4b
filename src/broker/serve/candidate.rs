//! What a reload knows: that it was asked for, the policy that is tried on, and
//! opener and worker under it.
//!
//! Trust: data of the broker's own; see [`super::reload`], which alone changes it.

use std::time::Instant;

use postern_core::ipc::{Frame, Sender};
use postern_core::messages::Standing;
use postern_core::policy::Policy;
use postern_core::policy::compare::Comparison;

use crate::family::{Child, Opener, Worker};

/// What there is to reload, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Reload {
    /// A signal came that nothing was done about yet.
    pub(super) asked: bool,
    /// The service manager was told that it is being seen to.
    pub(super) announced: bool,
    /// No attempt before.
    pub(super) next: Option<Instant>,
    pub(super) candidate: Option<Candidate>,
    /// Why the last attempt came to nothing, for the unit's status.
    pub(super) kept: Option<String>,
    /// The manager does not know that yet.
    pub(super) news: bool,
}

/// A policy that is tried on.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) policy: Policy,
    pub(super) comparison: Comparison,
    pub(super) opener: Option<Tried<Opener>>,
    pub(super) worker: Option<Tried<Worker>>,
    /// Until when the old worker may take to leave, once it was asked to.
    pub(super) leaves: Option<Instant>,
}

/// A child under the new policy, and what it said first.
#[derive(Debug)]
pub(super) struct Tried<C> {
    pub(super) child: C,
    pub(super) stands: Option<(Standing, Option<Sender>)>,
}

impl<C> Tried<C> {
    pub(super) const fn new(child: C) -> Self {
        Self { child, stands: None }
    }
}

impl Reload {
    /// A worker is there for when the one that leaves has left.
    pub(super) fn has_worker(&self) -> bool {
        self.candidate.as_ref().is_some_and(|candidate| candidate.worker.is_some())
    }

    /// The old worker was asked to leave.
    pub(super) fn is_leaving(&self) -> bool {
        self.candidate.as_ref().is_some_and(|candidate| candidate.leaves.is_some())
    }

    pub(super) fn opener(&self) -> Option<&Opener> {
        Some(&self.candidate.as_ref()?.opener.as_ref()?.child)
    }

    pub(super) fn worker(&self) -> Option<&Worker> {
        Some(&self.candidate.as_ref()?.worker.as_ref()?.child)
    }

    /// Whether a child belongs to the policy that is tried on.
    pub(super) fn tries(&self, id: u32) -> bool {
        self.opener().is_some_and(|child| child.id == id) || self.worker().is_some_and(|child| child.id == id)
    }

    /// How an attempt ended: why it came to nothing, if it did.
    pub(super) fn ended(&mut self, kept: Option<String>) {
        self.news |= self.kept != kept;
        self.kept = kept;
    }

    /// When something is due; `free` says that nothing forbids an attempt.
    pub(super) fn due(&self, free: bool) -> Option<Instant> {
        match &self.candidate {
            Some(candidate) => {
                let births = self.opener().and_then(Child::given_up_at).into_iter();
                births.chain(self.worker().and_then(Child::given_up_at)).chain(candidate.leaves).min()
            }
            None => self.next.filter(|_| self.asked && free),
        }
    }
}

impl<Out: Frame, In: Frame> Tried<Child<Out, In>> {
    /// It is confined.
    pub(super) fn stand(&mut self, standing: Standing, sender: Option<Sender>) {
        self.child.ready = true;
        self.child.pid = sender.map_or(0, |sender| sender.pid);
        self.stands = Some((standing, sender));
    }

    /// The child, if it is confined.
    pub(super) fn into_child(self) -> Option<(Child<Out, In>, Standing, Option<Sender>)> {
        let (standing, sender) = self.stands?;
        Some((self.child, standing, sender))
    }
}
