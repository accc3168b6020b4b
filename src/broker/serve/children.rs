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

use super::{Broker, Gone, text};
use crate::decide::Refusal;
use crate::family::{Child, Opener, Worker};
use crate::host::{HostError, Lost, Met};
use crate::launch::Fatal;
use crate::say::Level;

/// So many children in a row that die before they are confined end postern.
const STILLBORN: u32 = 3;
/// So many frames of a worker that ended are still heard.
const LAST_FRAMES: usize = 64;

impl Broker {
    /// Sees to it that there are an opener and a worker.
    pub(super) fn keep_family(&mut self) -> Result<(), Fatal> {
        if self.stopping.is_some() || self.parts.family.next_birth() > Instant::now() {
            return Ok(());
        }
        let failed = |errno: Errno| Fatal::Call("asking for a child", errno.into());
        if self.opener.is_none() && !self.parts.policy.files.is_empty() {
            let mut opener: Opener = self.parts.family.start(Role::Opener).map_err(failed)?;
            let mut part = self.parts.policy.opener_part();
            // Who may remove a file that a rule names must not be able to end
            // postern: what is not there is granted to nobody.
            for rule in &mut part.rules {
                rule.optional |= self.paths_stood;
            }
            let orders = part.orders();
            let long =
                |path: PathBuf| Fatal::Unconfined { who: "opener", why: format!("{} is too long", path.display()) };
            opener.tell(orders.map_err(long)?).map_err(failed)?;
            self.opener = Some(opener);
        }
        if self.worker.is_none() && self.parts.family.next_birth() <= Instant::now() {
            // A worker without a port has nothing to do.
            let mut fetch = None;
            if let Some(port) = self.parts.host.port_mut().filter(|port| port.is_gone()) {
                fetch = port.is_back();
                if fetch.is_none() {
                    return Ok(());
                }
            }
            self.fetching = fetch.is_some();
            let mut worker: Worker = self.parts.family.start(Role::Worker).map_err(failed)?;
            let setup = Answer::Setup { part: self.parts.policy.worker_part(), frozen: self.is_frozen() };
            worker.tell(fetch.into_iter().chain([setup])).map_err(failed)?;
            self.worker = Some(worker);
        }
        Ok(())
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
        let Some(at) = self.gone.iter().position(|gone| gone.id == id) else { return Ok(()) };
        let gone = self.gone.swap_remove(at);
        if self.stopping.is_some() && end == End::Exited(0) {
            return Ok(());
        }
        if !gone.blameless {
            self.say(Level::Warning, &format!("{:?} {} ended ({end:?}); replaced", gone.role, gone.pid));
        }
        self.note(&Record::ProcessDied { role: gone.role.into(), child: id, end, reason: gone.why });
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

    /// A child was not born. One that was before will be tried again.
    fn not_spawned(&mut self, id: u32, errno: Errno) -> Result<(), Fatal> {
        let role = if self.worker.as_ref().is_some_and(|worker| worker.id == id) { Role::Worker } else { Role::Opener };
        if !self.has_stood(role) {
            return Err(Fatal::Call("starting a child", errno.into()));
        }
        self.say(Level::Error, &format!("no {role:?} could be started: {errno}; trying again"));
        match role {
            Role::Worker => self.lose_worker(),
            Role::Opener => self.lose_opener(),
        }
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
        self.let_go(Role::Worker, &worker);
        // One that ended on its way to the port: another one goes.
        if std::mem::take(&mut self.fetching)
            && let Some(port) = self.parts.host.port_mut()
        {
            port.look_again();
        }
        self.owes_thaw = false;
        if let Some(opening) = self.opening.take() {
            self.leave_unanswered(worker.id, opening);
        }
        let why = if self.stopping.is_some() { Closing::Stopping } else { Closing::WorkerDied };
        for (handle, held) in std::mem::take(&mut self.files) {
            self.note(&held.closed(worker.id, handle, why, None));
        }
    }

    pub(super) fn lose_opener(&mut self) {
        if let Some(opener) = self.opener.take() {
            self.let_go(Role::Opener, &opener);
        }
        self.forget_unanswered();
        if let Some(opening) = self.opening.take() {
            let rule = Some(opening.rule);
            let why = "the opener ended";
            let refusal = Refusal { errno: Errno::EIO, by: Barrier::Opener, why, rule, resolved: None };
            self.refuse_open(&opening.path, opening.mode, refusal);
        }
    }

    pub(super) fn let_go<Out: Frame, In: Frame>(&mut self, role: Role, child: &Child<Out, In>) {
        self.parts.family.kill(child.id);
        let why = self.last_words.take();
        let blameless = role == Role::Worker && self.parts.host.is_gone();
        self.gone.push(Gone { id: child.id, role, pid: child.pid, ready: child.ready, why, blameless });
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
