//! Keeping opener and worker there: born, heard of, let go of, replaced.
//!
//! Trust: the spawner is believed. A child is what it says only once it has
//! said that it is confined.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use postern_core::audit::{Closing, End, Record, Stands};
use postern_core::ipc::{Frame, ReceiveError, Sender};
use postern_core::messages::{Answer, Barrier, Role, SpawnerReport, Standing};

use super::reload::RELOADED;
use super::{Broker, Gone, text};
use crate::decide::Refusal;
use crate::family::{Child, Opener};
use crate::host::{HostError, Lost, Met};
use crate::launch::Fatal;
use crate::say::Level;

/// So many children in a row that die before they are confined end postern.
const STILLBORN: u32 = 3;
/// So many frames of a child that ended are still heard: more than its socket
/// holds. The kernel counts 212,992 bytes of a socket's queue
/// (`net.core.wmem_default`), and no frame as less than 256.
const LAST_FRAMES: usize = 1024;

/// Why a child is let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parting {
    /// It ended, or gave reason to end it.
    Unwanted,
    /// The broker had another reason.
    Wanted,
    /// One under a new policy takes its place.
    Reloaded,
}

/// A child with what it is to be told first. One that cannot be told has ended
/// already, or was never born: its pipe or the spawner says so.
pub(super) fn told<Out: Frame, In: Frame>(
    mut child: Child<Out, In>,
    first: impl IntoIterator<Item = Out>,
) -> Child<Out, In> {
    let _ = child.tell(first);
    child
}

impl Broker {
    /// Sees to it that there are an opener and a worker.
    pub(super) fn keep_family(&mut self) -> Result<(), Fatal> {
        if self.opener_due().is_some_and(|due| due <= Instant::now()) {
            match self.parts.family.start(Role::Opener) {
                Ok(opener) => self.tell_rules(opener)?,
                Err(errno) => self.not_born(Role::Opener, errno)?,
            }
        }
        if self.worker_due().is_some_and(|due| due <= Instant::now()) {
            // A worker without a port has nothing to do.
            let mut fetch = None;
            if let Some(port) = self.parts.host.port_mut().filter(|port| port.is_gone()) {
                fetch = port.is_back();
                if fetch.is_none() {
                    return Ok(());
                }
            }
            let is_sent = fetch.is_some();
            match self.parts.family.start(Role::Worker) {
                Ok(worker) => {
                    self.fetching = is_sent;
                    self.equip(&worker, self.parts.policy.facts());
                    let setup = Answer::Setup { part: self.parts.policy.worker_part(), frozen: self.is_frozen() };
                    self.worker = Some(told(worker, fetch.into_iter().chain([setup])));
                }
                Err(errno) => {
                    if let Some(port) = self.parts.host.port_mut().filter(|_| is_sent) {
                        port.look_again();
                    }
                    self.not_born(Role::Worker, errno)?;
                }
            }
        }
        Ok(())
    }

    /// When the next opener is to be born, if one is missing.
    pub(super) fn opener_due(&self) -> Option<Instant> {
        let missing = self.opener.is_none() && self.parts.policy.has_opener() && self.stopping.is_none();
        (missing && !self.too_many_hang()).then(|| self.parts.family.next_birth(Role::Opener).1)
    }

    /// When the next worker is to be born, if one is missing. No worker is due
    /// while there is no port; the time to look for one is.
    pub(super) fn worker_due(&self) -> Option<Instant> {
        if self.worker.is_some() || self.stopping.is_some() || self.reload.has_worker() {
            return None;
        }
        let birth = self.parts.family.next_birth(Role::Worker).1;
        match self.parts.host.port().filter(|port| port.is_gone()) {
            None => Some(birth),
            Some(port) => port.next_look().map(|look| look.max(birth)),
        }
    }

    /// Has an opener know the policy's part of it.
    fn tell_rules(&mut self, opener: Opener) -> Result<(), Fatal> {
        let mut part = self.parts.policy.opener_part();
        // Who may remove a file that a rule names must not be able to end
        // postern: what is not there is granted to nobody.
        for rule in &mut part.rules {
            rule.optional |= self.paths_stood;
        }
        let long = |path: PathBuf| Fatal::Unconfined { who: "opener", why: format!("{} is too long", path.display()) };
        self.equip_opener(&opener, &self.parts.policy);
        self.opener = Some(told(opener, part.orders().map_err(long)?));
        Ok(())
    }

    /// A child could not even be asked for. What the guest is short of it may have
    /// again.
    fn not_born(&mut self, role: Role, errno: Errno) -> Result<(), Fatal> {
        self.parts.family.failed(role);
        match errno {
            // The spawner is gone, which its pipe tells.
            Errno::EPIPE | Errno::ECONNRESET => Ok(()),
            _ if !self.has_stood(role) => Err(Fatal::Call("asking for a child", errno.into())),
            _ => {
                self.say(Level::Error, &format!("no {role:?} could be asked for: {errno}; trying again"));
                Ok(())
            }
        }
    }

    /// Trust: the spawner is believed.
    pub(super) fn hear_spawner(&mut self) -> Result<(), Fatal> {
        loop {
            match self.parts.family.spawner.try_receive().map(|received| received.message) {
                Ok(SpawnerReport::Spawned { .. }) => {}
                Ok(SpawnerReport::NotSpawned { id, errno }) => self.not_spawned(id, Errno::from_raw(errno))?,
                Ok(SpawnerReport::Died { id, signal, status }) => {
                    let end = signal.map_or(End::Exited(status), End::Signalled);
                    self.child_died(id, end)?;
                }
                // Its end follows, and with it ours.
                Ok(SpawnerReport::Panicked { message }) => {
                    self.say(Level::Error, &format!("spawner: {}", message.to_text()));
                }
                Ok(SpawnerReport::Ready { .. } | SpawnerReport::Unconfined { .. })
                | Err(ReceiveError::Malformed(_)) => {
                    return Err(Fatal::Spawner("spoke nonsense"));
                }
                Err(ReceiveError::Empty) => return Ok(()),
                Err(ReceiveError::Closed | ReceiveError::Socket(_)) => return Err(Fatal::Spawner("ended")),
            }
        }
    }

    fn child_died(&mut self, id: u32, end: End) -> Result<(), Fatal> {
        // Its last frames may lie unread behind the news of its end.
        for _ in 0..LAST_FRAMES {
            if self.worker.as_ref().is_some_and(|worker| worker.id == id) {
                self.hear_worker()?;
            }
            if self.opener.as_ref().is_some_and(|opener| opener.id == id) {
                self.hear_opener()?;
            }
        }
        if self.worker.as_ref().is_some_and(|worker| worker.id == id) {
            self.lose_worker();
        }
        if self.opener.as_ref().is_some_and(|opener| opener.id == id) {
            self.lose_opener();
        }
        if self.reload.tries(id) {
            self.tried_ended(&format!("ended ({end:?})"));
        }
        let Some(at) = self.gone.iter().position(|gone| gone.id == id) else { return Ok(()) };
        let gone = self.gone.swap_remove(at);
        if self.stopping.is_some() && end == End::Exited(0) {
            return Ok(());
        }
        let waits = if gone.is_crash { self.how_long_it_waits(gone.role) } else { None };
        if !gone.blameless {
            let then = waits.as_deref().unwrap_or("replaced");
            self.say(Level::Warning, &format!("{:?} {} ended ({end:?}); {then}", gone.role, gone.pid));
        }
        let reason = match (gone.why, waits) {
            (Some(why), Some(waits)) => Some(text(&[why.bytes(), b"; ", waits.as_bytes()].concat())),
            (why, waits) => why.or_else(|| waits.map(|waits| text(waits.as_bytes()))),
        };
        self.note(&Record::ProcessDied { role: gone.role.into(), child: id, end, reason });
        // Only a start can show that a barrier is impossible here; later it is
        // the guest that is short of something.
        let unborn = !gone.ready && !gone.blameless && !self.has_stood(gone.role);
        self.stillborn = if unborn { self.stillborn + 1 } else { 0 };
        if self.stillborn >= STILLBORN && self.stopping.is_none() {
            let who = match gone.role {
                Role::Opener => "opener",
                Role::Worker => "worker",
            };
            return Err(Fatal::Unconfined { who, why: format!("it ends before it is confined ({end:?})") });
        }
        Ok(())
    }

    /// What a crash that was one too many comes to, if its successor has to wait.
    fn how_long_it_waits(&self, role: Role) -> Option<String> {
        let missing = match role {
            Role::Opener => self.opener.is_none(),
            Role::Worker => self.worker.is_none(),
        };
        let (crashes, next) = self.parts.family.next_birth(role);
        let left = next.saturating_duration_since(Instant::now());
        (missing && !left.is_zero() && self.stopping.is_none())
            .then(|| format!("{crashes} crashes within an hour: the next one starts in {} s", left.as_secs() + 1))
    }

    /// A child was not born. One that was before will be tried again.
    fn not_spawned(&mut self, id: u32, errno: Errno) -> Result<(), Fatal> {
        if self.reload.tries(id) {
            self.tried_ended(&format!("could not be started: {errno}"));
            self.gone.retain(|gone| gone.id != id);
            return Ok(());
        }
        let role = if self.worker.as_ref().is_some_and(|worker| worker.id == id) { Role::Worker } else { Role::Opener };
        if !self.has_stood(role) {
            return Err(Fatal::Call("starting a child", errno.into()));
        }
        self.say(Level::Error, &format!("no {role:?} could be started: {errno}; trying again"));
        match role {
            Role::Worker => self.lose_worker(),
            Role::Opener => self.lose_opener(),
        }
        self.parts.family.failed(role);
        // Nobody will tell of its end.
        self.gone.retain(|gone| gone.id != id);
        Ok(())
    }

    /// Whether a child of this role has been confined in this run.
    const fn has_stood(&self, role: Role) -> bool {
        match role {
            Role::Opener => self.paths_stood,
            Role::Worker => self.worker_stood,
        }
    }

    /// Lets go of a worker and of all that it held.
    pub(super) fn lose_worker(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let is_due = self.stopping.is_some() || self.parts.host.is_gone();
        self.let_go(Role::Worker, &worker, if is_due { Parting::Wanted } else { Parting::Unwanted });
        // One that ended on its way to the port: another one goes.
        if std::mem::take(&mut self.fetching)
            && let Some(port) = self.parts.host.port_mut()
        {
            port.look_again();
        }
        self.owes_thaw = false;
        self.telling = None;
        if let Some(opening) = self.opening.take() {
            self.leave_unanswered(worker.id, opening);
        }
        let why = match (&self.stopping, self.reload.is_leaving()) {
            (Some(_), _) => Closing::Stopping,
            (None, true) => Closing::Reloaded,
            (None, false) => Closing::WorkerDied,
        };
        for (handle, held) in std::mem::take(&mut self.files) {
            self.note(&held.closed(worker.id, handle, why, None));
        }
    }

    pub(super) fn lose_opener(&mut self) {
        if let Some(opener) = self.opener.take() {
            let parting = if self.stopping.is_some() { Parting::Wanted } else { Parting::Unwanted };
            self.let_go(Role::Opener, &opener, parting);
        }
        self.forget_unanswered();
        self.give_up_telling();
        if let Some(opening) = self.opening.take() {
            let rule = Some(opening.rule);
            let why = "the opener ended";
            let refusal = Refusal { errno: Errno::EIO, by: Barrier::Opener, why, rule, resolved: None };
            self.refuse_open(&opening.path, opening.mode, refusal);
        }
    }

    /// Lets go of a child. One that was confined, and so could hear somebody, has
    /// crashed if nobody wanted it to end. Its words say nothing about that: they
    /// are its own.
    pub(super) fn let_go<Out: Frame, In: Frame>(&mut self, role: Role, child: &Child<Out, In>, parting: Parting) {
        self.parts.family.kill(child.id);
        let words = self.last_words.take();
        let leaves = role == Role::Worker && self.reload.is_leaving() && words.is_none();
        let reloaded = leaves || parting == Parting::Reloaded;
        let why = if reloaded { Some(text(RELOADED)) } else { words };
        let blameless = reloaded || (role == Role::Worker && self.parts.host.is_gone());
        let is_crash = parting == Parting::Unwanted && child.ready && !reloaded;
        if is_crash {
            self.parts.family.crashed(role);
        }
        let since = Instant::now();
        self.gone.push(Gone {
            id: child.id,
            role,
            pid: child.pid,
            ready: child.ready,
            why,
            blameless,
            is_crash,
            since,
        });
    }

    /// A child's first word: that it is confined.
    pub(super) fn child_ready(&mut self, role_of: Role, child: u32, standing: &Standing, sender: Option<Sender>) {
        if standing.landlock_abi != self.landlock_abi {
            self.say(Level::Warning, &format!("{role_of:?} enforces Landlock ABI {}", standing.landlock_abi));
        }
        for &rule in standing.missing.as_slice() {
            if let Some(rule) = self.parts.policy.files.get(usize::from(rule)) {
                self.say(Level::Notice, &format!("path {} is not there", rule.path.display()));
            }
        }
        let (pid, uid) = sender.map_or((0, 0), |sender| (sender.pid, sender.uid));
        let stands = self.stands(standing);
        let pid = Some(pid.cast_unsigned());
        self.note(&Record::ProcessStarted { role: role_of.into(), child, pid, uid, stands });
        if role_of == Role::Worker {
            self.say(Level::Info, "ready");
        }
    }

    /// What a child says of its own barriers, for its record.
    fn stands(&self, standing: &Standing) -> Stands {
        let rules = &self.parts.policy.files;
        let missing = standing.missing.as_slice().iter().filter_map(|&rule| rules.get(usize::from(rule)));
        Stands::of(standing, missing.map(|rule| rule.path.as_path()))
    }

    /// Trust: who connects is hostile; who they are is the kernel's word.
    pub(super) fn meet_host(&mut self) {
        match self.parts.host.accept() {
            Met::Nobody => {}
            Met::Host => self.introduce_host(),
            Met::Other { cid, times } => {
                self.note(&Record::HostRefused { cid, times });
                self.say(Level::Warning, &format!("vsock context {cid} is not the one that may connect; closed"));
            }
        }
    }

    /// Trust: none; the kernel is asked whether the channel is lost.
    pub(super) fn channel_lost(&mut self) {
        match self.parts.host.lost() {
            Lost::Unplugged => {
                self.say(Level::Notice, "the port was unplugged; waiting for it");
                self.note(&Record::HostDisconnected { peer: None });
                self.last_words = Some(text(b"the port was unplugged"));
                self.lose_worker();
            }
            Lost::ForGood => self.end_without_channel(HostError::HungUp),
            Lost::Not => self.replace_hostile("it lost a channel that is there"),
        }
    }

    /// Trust: the worker has read no host's byte yet; what it brought is looked
    /// at all the same.
    pub(super) fn port_fetched(&mut self, channel: Option<OwnedFd>) {
        let taken = channel.ok_or("it brought no port").and_then(|channel| self.parts.host.take_back(channel));
        match taken {
            Ok(()) => {
                self.fetching = false;
                self.say(Level::Notice, "the port is back");
                self.note(&Record::HostConnected { peer: None });
            }
            Err(why) => self.replace_hostile(why),
        }
    }

    pub(super) fn port_not_fetched(&mut self, errno: Errno) {
        self.fetching = false;
        let Some(port) = self.parts.host.port_mut() else { return };
        if matches!(errno, Errno::ENOENT | Errno::ENXIO | Errno::ENODEV | Errno::ENOTDIR) {
            port.not_there();
            self.last_words = Some(text(b"the port was not there"));
            self.lose_worker();
        } else {
            let lost = HostError::NotReopened(port.path().to_owned(), errno);
            self.end_without_channel(lost);
        }
    }

    /// Ends in order: what is frozen is thawed first.
    fn end_without_channel(&mut self, why: HostError) {
        self.lost = Some(why);
        self.stop("the channel is lost");
    }

    fn introduce_host(&mut self) {
        let peer = self.parts.host.current().and_then(|(_, _, peer)| peer);
        self.note(&Record::HostConnected { peer });
        self.hand_channel();
    }

    /// Gives the worker the channel, if both are there.
    pub(super) fn hand_channel(&mut self) {
        let Some(worker) = self.worker.as_ref().filter(|worker| worker.ready) else { return };
        let Some((channel, kind, _)) = self.parts.host.current() else { return };
        if worker.pipe.send(&Answer::Channel { kind }, Some(channel)).is_err() {
            self.lose_worker();
        }
    }
}
