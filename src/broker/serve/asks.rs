//! Hearing the worker: one ask, one decision, one act.
//!
//! Trust: none. What a worker sends is in type or it is replaced; what it asks
//! is decided by [`decide`].

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use postern_core::audit::{self, Record};
use postern_core::catalogue::Rate;
use postern_core::ipc::{ReceiveError, Received};
use postern_core::messages::{Answer, Ask, FreezeState, Role, Text};
use postern_core::policy::ShutdownMode;

use super::{Broker, acts, text};
use crate::decide::{Decision, State, decide};
use crate::fsfreeze::{Status, Why};
use crate::launch::Fatal;
use crate::say::Level;
use crate::shutdown;

impl Broker {
    /// Trust: none. What it sends is in type or it is replaced; what it asks
    /// is decided.
    pub(super) fn hear_worker(&mut self) -> Result<(), Fatal> {
        let Some(worker) = &mut self.worker else { return Ok(()) };
        // One that has ended can be told nothing, but may have said why.
        let ended = worker.tell_on().is_err();
        let received = match worker.pipe.try_receive() {
            Ok(received) => received,
            Err(ReceiveError::Empty) if !ended => return Ok(()),
            Err(ReceiveError::Malformed(why)) => {
                self.replace_hostile(&why.to_string());
                return Ok(());
            }
            Err(_) => {
                self.lose_worker();
                return Ok(());
            }
        };
        let ready = worker.ready;
        self.heard_worker();
        // A thaw that has ended and was not yet heard of: first the log.
        if self.parts.log.is_held() && !self.is_frozen() {
            self.hear_engine();
            if self.worker.is_none() {
                return Ok(());
            }
        }
        let state = State {
            ready,
            fetching: self.fetching,
            freeze: self.status(),
            thawing: self.owes_thaw,
            files: self.files.len(),
            opening: self.opening.is_some() || self.telling.is_some(),
            privileged: self.parts.privileged,
            acting: self.acting.is_some(),
            stopping: self.stopping.is_some(),
        };
        match decide(state, &received.message, &self.parts.policy) {
            Decision::Note => self.take_note(received),
            Decision::Hostile(why) => {
                self.replace_hostile(why);
                Ok(())
            }
            decision => {
                match self.too_many(&received.message) {
                    Some(why) => self.refuse(&why),
                    None => self.act(decision, received.message),
                }
                Ok(())
            }
        }
    }

    pub(super) fn replace_hostile(&mut self, why: &str) {
        let (child, pid) = self.worker.as_ref().map_or((0, 0), |worker| (worker.id, worker.pid));
        self.say(Level::Error, &format!("worker {pid} is not sound ({why}); replacing it"));
        self.note(&Record::MalformedFrame { role: audit::Role::Worker, child, reason: text(why.as_bytes()) });
        self.lose_worker();
    }

    /// Takes in what needs no decision.
    fn take_note(&mut self, received: Received<Ask>) -> Result<(), Fatal> {
        let sender = received.sender;
        match received.message {
            Ask::Ready { standing } => {
                let Some(worker) = &mut self.worker else { return Ok(()) };
                worker.ready = true;
                self.worker_stood = true;
                worker.pid = sender.map_or(0, |sender| sender.pid);
                let child = worker.id;
                self.child_ready(Role::Worker, child, &standing, sender);
                self.hand_channel();
            }
            // A barrier that stood before is possible here: the guest is short of
            // something, and the next worker may not be.
            Ask::Unconfined { why } if self.worker_stood => {
                self.say(Level::Error, &format!("worker: could not be confined: {}; trying again", why.to_text()));
                self.last_words = Some(text(why.as_slice()));
                self.lose_worker();
            }
            Ask::Unconfined { why } => return Err(Fatal::Unconfined { who: "worker", why: why.to_text() }),
            Ask::Panicked { message } => {
                self.say(Level::Error, &format!("worker: {}", message.to_text()));
                self.last_words = Some(text(message.as_slice()));
                self.lose_worker();
            }
            Ask::Closed { handle, used } => self.closed(handle, &used),
            Ask::HostGone {} => match self.parts.host.drop_current() {
                Some(left) => self.note(&Record::HostDisconnected { peer: left.peer }),
                None => self.replace_hostile("it let go of a host that cannot have left"),
            },
            Ask::PortGone {} => self.channel_lost(),
            Ask::Port {} => self.port_fetched(received.descriptor),
            Ask::NoPort { errno } => self.port_not_fetched(Errno::from_raw(errno)),
            Ask::Denied { command, why } => {
                let child = self.worker_number();
                self.note(&Record::CommandRefused { child, command: text(command.as_slice()), because: why });
            }
            Ask::Counted { commands } => {
                let counts = commands.as_slice().iter().map(|count| (count.command, count.times)).collect();
                self.note(&Record::Counted { child: self.worker_number(), counts });
            }
            Ask::Limited { commands } => {
                // Of what is limited here it has nothing to say.
                let own = commands.as_slice().iter().filter(|count| count.command.entry().rate == Rate::Requests);
                let counts = own.map(|count| (count.command, count.times)).collect();
                self.note(&Record::Limited { child: self.worker_number(), counts });
            }
            // It was heard, which is all.
            Ask::Alive {}
            | Ask::Open { .. }
            | Ask::Freeze { .. }
            | Ask::Thaw {}
            | Ask::Status {}
            | Ask::Fact { .. }
            | Ask::Shutdown { .. }
            | Ask::Trim { .. }
            | Ask::Suspend { .. }
            | Ask::SetVcpus { .. }
            | Ask::SetMemoryBlocks { .. } => {}
        }
        Ok(())
    }

    /// Does what was decided.
    fn act(&mut self, decision: Decision, ask: Ask) {
        match (decision, ask) {
            (Decision::Open { rule, changes }, Ask::Open { path, mode }) => self.act_open(path, mode, rule, changes),
            (Decision::RefuseOpen(refusal), Ask::Open { path, mode }) => self.refuse_open(&path, mode, refusal),
            (Decision::Freeze(command), Ask::Freeze { only }) => {
                let only = only.map(|list| list.as_slice().iter().map(|path| path.as_path().to_owned()).collect());
                self.act_freeze(command, only);
            }
            (Decision::Thaw, _) => {
                if let Some(engine) = &self.parts.engine {
                    engine.thaw(Why::Host);
                    self.owes_thaw = true;
                    self.answer(&Answer::Begun {}, None);
                }
            }
            (Decision::Status, _) => {
                let state = match self.status() {
                    Status::Thawed | Status::Freezing => FreezeState::Thawed,
                    Status::Frozen => FreezeState::Frozen,
                    Status::Error => FreezeState::Error,
                };
                self.answer(&Answer::Status { state }, None);
            }
            (Decision::Fact(fact), _) => self.act_fact(fact),
            (Decision::RefuseFact(errno), _) => self.answer(&Answer::NotTold { errno: errno as i32 }, None),
            (Decision::Shutdown(mode), _) => self.act_shutdown(mode),
            (Decision::Act(command), ask) => self.begin_act(command, ask),
            (Decision::Refuse(why), ask) => {
                let (child, reason) = (self.worker_number(), text(why.as_bytes()));
                if let Ask::Shutdown { mode } = ask {
                    let mode = text(mode.name().as_bytes());
                    self.note(&Record::ShutdownRefused { child, mode, reason });
                } else if let Some(command) = acts::command(&ask) {
                    self.note(&Record::ActRefused { child, command, reason });
                }
                self.refuse(why);
            }
            _ => self.replace_hostile("it asked what was not decided"),
        }
    }

    fn act_shutdown(&mut self, mode: ShutdownMode) {
        let (child, method) = (self.worker_number(), self.parts.policy.shutdown.method);
        let planned = match self.parts.shutdown.plan(mode) {
            Ok(planned) => planned,
            Err(why) => {
                let reason = text(why.to_string().as_bytes());
                self.note(&Record::ShutdownRefused { child, mode: text(mode.name().as_bytes()), reason });
                return self.refuse(match why {
                    shutdown::Refusal::Mode(_) => "the guest's policy does not allow this mode",
                    shutdown::Refusal::UnknownInit => "the guest's init is not one that can be asked",
                });
            }
        };
        if !self.record_first(&Record::ShutdownAsked { child, mode, method }) {
            return self.refuse("the audit log takes no records");
        }
        self.say(Level::Notice, &format!("the host asks for {}", mode.name()));
        match self.parts.shutdown.act(planned) {
            Ok(()) => self.answer(&Answer::ShuttingDown {}, None),
            Err(why) => {
                let errno = why.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                self.note(&Record::ShutdownFailed { mode, method, errno });
                self.refuse(&format!("asking init failed: {why}"));
            }
        }
    }

    pub(super) fn refuse(&mut self, why: &str) {
        self.answer(&Answer::Refused { why: Text::cut(why.as_bytes()) }, None);
    }

    /// Answers the worker. One that does not take its answer is not sound.
    pub(super) fn answer(&mut self, answer: &Answer, file: Option<&OwnedFd>) {
        let Some(worker) = &self.worker else { return };
        if worker.pipe.send(answer, file.map(AsFd::as_fd)).is_err() {
            self.lose_worker();
        }
    }
}
