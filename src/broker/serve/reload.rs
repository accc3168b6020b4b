//! A new policy for a broker that runs: read, compared, tried on, put in force;
//! or left, and the old one stays, all of it.
//!
//! An opener and a worker are born under the new policy beside the old ones. Only
//! once both are confined is the old worker asked to leave, which it does between
//! two requests, under the old rules to its end. Then comes the record, and then
//! the new policy is in force: no effect under it is older. Filesystems that are
//! frozen, and the host's connection, are none of this file's business.
//!
//! Trust: root, by the signal and by the files. A candidate is what it says only
//! once it has said that it is confined.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use postern_core::audit::{Record, Reloaded};
use postern_core::catalogue::Act;
use postern_core::ipc::ReceiveError;
use postern_core::messages::{Answer, Ask, OpenerReport, Role};
use postern_core::policy::compare::{Comparison, Held, Outcome, compare};
use postern_core::policy::written::PolicyError;
use postern_core::policy::{Audit, Policy};

use super::candidate::{Candidate, Tried};
use super::children::{Parting, told};
use super::manager::Standing as Status;
use super::{Broker, Gone, text};
use crate::about;
use crate::family::{Child, Opener, Worker};
use crate::say::Level;

/// Between two attempts: a thousand signals are as good as one.
const APART: Duration = Duration::from_secs(1);
/// How long the old worker may take to be done with its request. A request that
/// is half here, or a reply that a host is slow to take, has so long.
const LEAVE: Duration = Duration::from_secs(10);
/// So many mistakes of a policy are told, one a line.
const TOLD: usize = 8;

impl Broker {
    /// A signal: the policy is to be read anew.
    pub(super) fn ask_reload(&mut self) {
        self.reload.asked = self.parts.kept.is_some();
        // One that starts tells its manager so already.
        if self.told != Status::Starting {
            self.parts.notify.reloading();
            self.reload.announced = true;
        }
    }

    /// Whether an attempt may begin. Not while a freeze, a thaw or another act is under way, of
    /// which nobody knows yet how it ends: a worker is owed its end.
    pub(super) fn may_reload(&self) -> bool {
        self.told != Status::Starting && self.stopping.is_none() && !self.is_freezing()
    }

    fn is_freezing(&self) -> bool {
        self.freezing.is_some()
            || self.owes_thaw
            || self.acting.is_some()
            || self.status() == crate::fsfreeze::Status::Freezing
    }

    /// Goes on with a reload; called by the loop, once each time round.
    pub(super) fn keep_reload(&mut self) {
        if self.stopping.is_some() {
            self.drop_candidate("postern is stopping");
        } else if self.reload.candidate.is_some() {
            self.try_on();
        } else if self.reload.asked && self.may_reload() && self.reload.next.is_none_or(|next| Instant::now() >= next) {
            self.reload.asked = false;
            self.reload.next = Some(Instant::now() + APART);
            self.begin_reload();
        }
        if self.reload.announced && self.reload.candidate.is_none() {
            self.reload.announced = false;
            self.parts.notify.ready();
        }
    }

    fn begin_reload(&mut self) {
        let Some(kept) = &self.parts.kept else { return };
        let loaded = match kept.load() {
            Ok(loaded) => loaded,
            Err(mistakes) => return self.policy_is_bad(&mistakes),
        };
        let held = Held { shutdown_fits: self.shutdown_fits(&loaded.policy), ..self.parts.held.clone() };
        let comparison = compare(&self.parts.policy, &loaded.policy, &held);
        match comparison.outcome(self.is_frozen()) {
            Outcome::Unchanged if loaded.policy.digest == self.parts.policy.digest => {
                self.reload.ended(None);
                self.say(Level::Info, "the policy has not changed");
            }
            // Other words for the same: nobody is replaced, and the log knows the
            // files.
            Outcome::Unchanged => {
                let policy = loaded.policy;
                self.reload.candidate =
                    Some(Candidate { policy, comparison, opener: None, worker: None, leaves: None });
                self.put_in_force();
            }
            Outcome::Kept(why) => self.keep_policy(&why, Some(&loaded.policy), comparison.restart),
            Outcome::Fits => {
                for warning in &loaded.warnings {
                    self.say(Level::Warning, &one_line(&warning.to_string()));
                }
                self.bear_candidate(loaded.policy, comparison);
            }
        }
    }

    fn shutdown_fits(&self, policy: &Policy) -> bool {
        !policy.needs(Act::Shutdown) || (self.parts.held.shuts_down && self.parts.shutdown.fits(&policy.shutdown))
    }

    fn policy_is_bad(&mut self, mistakes: &PolicyError) {
        for mistake in mistakes.mistakes.iter().take(TOLD) {
            self.say(Level::Error, &one_line(&mistake.to_string()));
        }
        let more = match mistakes.mistakes.len() + mistakes.more {
            0 | 1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let first = mistakes.mistakes.first().map(|mistake| one_line(&mistake.to_string())).unwrap_or_default();
        self.keep_policy(&format!("{first}{more}"), None, Vec::new());
    }

    /// The old policy stays: says so, in the record, to the operator, and in the
    /// unit's status.
    fn keep_policy(&mut self, why: &str, refused: Option<&Policy>, restart: Vec<&'static str>) {
        let refused = refused.map(|policy| policy.digest);
        self.note(&Record::PolicyKept { reason: text(why.as_bytes()), refused, restart });
        self.say(Level::Error, &format!("the policy in force stays: {why}"));
        self.reload.ended(Some(why.to_owned()));
    }

    /// Starts an opener and a worker under the new policy.
    fn bear_candidate(&mut self, policy: Policy, comparison: Comparison) {
        match self.births(&policy) {
            Ok((opener, worker)) => {
                let (opener, worker) = (opener.map(Tried::new), worker.map(Tried::new));
                self.reload.candidate = Some(Candidate { policy, comparison, opener, worker, leaves: None });
                self.try_on();
            }
            Err(why) => self.keep_policy(&why, Some(&policy), Vec::new()),
        }
    }

    fn births(&mut self, policy: &Policy) -> Result<(Option<Opener>, Option<Worker>), String> {
        let failed = |errno: Errno| format!("no process could be started: {errno}");
        let mut opener = None;
        if policy.has_opener() {
            let mut part = policy.opener_part();
            // As at a replacement, what is not there any more ends nothing. What
            // is new must be there.
            for rule in part.rules.iter_mut().filter(|rule| self.parts.policy.files.contains(rule)) {
                rule.optional = true;
            }
            let orders = part.orders().map_err(|path| format!("{} is too long", path.display()))?;
            let child: Opener = self.parts.family.start_apart(Role::Opener).map_err(failed)?;
            self.equip_opener(&child, policy);
            opener = Some(told(child, orders));
        }
        // Without a port there is none, and the next one is of the new policy. Where
        // one waits for its turn to be born, the new one does not.
        let mut worker = None;
        if !self.parts.host.is_gone() {
            let child: Worker = self.parts.family.start_apart(Role::Worker).map_err(failed)?;
            let setup = Answer::Setup { part: policy.worker_part(), frozen: self.is_frozen() };
            self.equip(&child, policy.facts());
            worker = Some(told(child, [setup]));
        }
        Ok((opener, worker))
    }

    /// Trust: as good as its confinement.
    pub(super) fn hear_tried_opener(&mut self) {
        let Some(tried) = self.reload.candidate.as_mut().and_then(|candidate| candidate.opener.as_mut()) else {
            return;
        };
        let _ = tried.child.tell_on();
        let why = match tried.child.pipe.try_receive().map(|received| (received.message, received.sender)) {
            Ok((OpenerReport::Ready { standing }, sender)) if tried.stands.is_none() => {
                return tried.stand(standing, sender);
            }
            Ok((OpenerReport::Unconfined { why }, _)) => why.to_text(),
            Ok((OpenerReport::Panicked { message }, _)) => message.to_text(),
            Err(ReceiveError::Empty) => return,
            Ok(_) | Err(ReceiveError::Malformed(_)) => "it spoke nonsense".to_owned(),
            Err(_) => "it ended".to_owned(),
        };
        self.drop_candidate(&format!("the new opener: {why}"));
    }

    /// Trust: it has not met a host.
    pub(super) fn hear_tried_worker(&mut self) {
        let Some(tried) = self.reload.candidate.as_mut().and_then(|candidate| candidate.worker.as_mut()) else {
            return;
        };
        let _ = tried.child.tell_on();
        let why = match tried.child.pipe.try_receive().map(|received| (received.message, received.sender)) {
            Ok((Ask::Ready { standing }, sender)) if tried.stands.is_none() => return tried.stand(standing, sender),
            Ok((Ask::Unconfined { why }, _)) => why.to_text(),
            Ok((Ask::Panicked { message }, _)) => message.to_text(),
            Err(ReceiveError::Empty) => return,
            Ok(_) | Err(ReceiveError::Malformed(_)) => "it spoke nonsense".to_owned(),
            Err(_) => "it ended".to_owned(),
        };
        self.drop_candidate(&format!("the new worker: {why}"));
    }

    /// A child that was tried could not be started, or ended; its last words may
    /// lie unread.
    pub(super) fn tried_ended(&mut self, why: &str) {
        self.hear_tried_opener();
        self.hear_tried_worker();
        self.drop_candidate(&format!("a new process {why}"));
    }

    /// Lets go of what is tried on, if anything is.
    fn drop_candidate(&mut self, why: &str) {
        let Some(Candidate { policy, opener, worker, .. }) = self.reload.candidate.take() else { return };
        self.keep_policy(why, Some(&policy), Vec::new());
        if let Some(tried) = opener {
            self.dismiss(Role::Opener, tried.child.id);
        }
        if let Some(tried) = worker {
            self.dismiss(Role::Worker, tried.child.id);
        }
    }

    /// Lets go of one that never served.
    fn dismiss(&mut self, role: Role, id: u32) {
        self.parts.family.kill(id);
        let why = Some(text(b"it was tried for a new policy"));
        let since = Instant::now();
        self.gone.push(Gone { id, role, pid: 0, ready: false, why, blameless: true, is_crash: false, since });
    }

    /// What the candidate waits for next.
    fn try_on(&mut self) {
        let now = Instant::now();
        let late = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if late(self.reload.opener().and_then(Child::given_up_at)) {
            return self.drop_candidate("the new opener said nothing");
        }
        if late(self.reload.worker().and_then(Child::given_up_at)) {
            return self.drop_candidate("the new worker said nothing");
        }
        let is_freezing = self.is_freezing();
        let Some(candidate) = &mut self.reload.candidate else { return };
        let stand = candidate.opener.as_ref().is_none_or(|tried| tried.stands.is_some())
            && candidate.worker.as_ref().is_none_or(|tried| tried.stands.is_some());
        if !stand {
            return;
        }
        let Some(worker) = &self.worker else { return self.put_in_force() };
        match candidate.leaves {
            None => {
                candidate.leaves = Some(now + LEAVE);
                let told = worker.ready && worker.pipe.send(&Answer::Retire {}, None).is_ok();
                if !told {
                    self.lose_worker();
                    self.put_in_force();
                }
            }
            // Who waits for the end of a freeze is no worse for that.
            Some(until) if now >= until && is_freezing => candidate.leaves = Some(now + LEAVE),
            Some(until) if now >= until => {
                self.last_words = Some(text(b"it was not done in time for the new policy"));
                self.lose_worker();
                self.put_in_force();
            }
            Some(_) => {}
        }
    }

    /// The old worker has left: the record, then the new policy.
    fn put_in_force(&mut self) {
        let Some(candidate) = &self.reload.candidate else { return };
        // A freeze that the old worker asked for on its way out.
        if let Outcome::Kept(why) = candidate.comparison.outcome(self.is_frozen()) {
            return self.drop_candidate(&why);
        }
        let Candidate { policy, comparison, .. } = candidate;
        let reloaded = Reloaded {
            digest: policy.digest,
            in_force: policy.in_force(),
            commands: policy.commands,
            redact: policy.redact,
            file_rules: policy.files.len(),
            tightened: comparison.tightened.clone(),
            widened: comparison.widened.clone(),
            surplus: comparison.surplus.clone(),
        };
        // The record finds the room of both: a log that is full may get it by this,
        // and one that gets less may be over it already.
        let most = policy.audit.max_bytes.max(self.parts.policy.audit.max_bytes);
        self.parts.log.adopt(&Audit { max_bytes: most, ..policy.audit.clone() });
        // While something is frozen it waits in memory, and so does every effect.
        let recorded = self.parts.log.record(&Record::PolicyReloaded(Box::new(reloaded.clone())));
        self.tell_trouble();
        if let Err(why) = recorded {
            self.parts.log.adopt(&self.parts.policy.audit);
            self.log_failed(&why);
            return self.drop_candidate("the audit log does not take the record");
        }
        let Some(Candidate { policy, comparison, opener, worker, .. }) = self.reload.candidate.take() else { return };
        self.parts.log.adopt(&policy.audit);
        self.parts.log.tell(|run| {
            (run.policy_digest, run.policy_in_force) = (reloaded.digest, reloaded.in_force);
            (run.commands, run.file_rules) = (reloaded.commands, reloaded.file_rules);
            about::replan(&mut run.confinement, &policy);
        });
        self.parts.heads.adopt(&policy.audit);
        self.parts.shutdown.adopt(policy.shutdown.clone());
        self.parts.policy = policy;
        self.reload.ended(None);
        if let Some(old) = self.opener.take_if(|_| comparison.changes()) {
            self.let_go(Role::Opener, &old, Parting::Reloaded);
            self.forget_unanswered();
        }
        if let Some((opener, standing, sender)) = opener.and_then(Tried::into_child) {
            self.paths_stood = true;
            let id = opener.id;
            self.opener = Some(opener);
            self.child_ready(Role::Opener, id, &standing, sender);
        }
        if let Some(tried) = worker.as_ref().filter(|_| self.parts.host.is_gone()) {
            // The next one goes for the port first.
            self.dismiss(Role::Worker, tried.child.id);
        } else if let Some((worker, standing, sender)) = worker.and_then(Tried::into_child) {
            let id = worker.id;
            self.worker = Some(worker);
            self.child_ready(Role::Worker, id, &standing, sender);
            // What changed since it was born.
            self.answer(&Answer::Frozen { frozen: self.is_frozen() }, None);
            self.hand_channel();
        }
        let surplus = match reloaded.surplus.as_slice() {
            [] => String::new(),
            what => format!("; until the next start the broker keeps what it needs for {}", what.join(", ")),
        };
        self.say(Level::Notice, &format!("a new policy is in force{surplus}"));
    }
}

/// Why an opener or a worker of the old policy ended.
pub(super) const RELOADED: &[u8] = b"the policy was reloaded";

/// A mistake without the excerpt below it.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
