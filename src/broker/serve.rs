//! The broker's loop: hears worker, opener, spawner, freezer, hosts that
//! connect, signals and its own clocks, one at a time, and never waits for any
//! of them.
//!
//! Every ask goes through [`decide`]; every effect and every descriptor has a
//! record before it.
//!
//! Trust: see each `hear_…`. Texts and paths of worker and host are bounded by
//! their frames and escaped by the log.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::time::{ClockId, clock_gettime};
use postern_core::audit::{self, Closing, End, Mounts, Record, ThawCause};
use postern_core::catalogue::Command;
use postern_core::confine::Confined;
use postern_core::ipc::{Frame, ReceiveError, Received, Sender};
use postern_core::messages::{
    Answer, Ask, BIRTH_LIMIT, Barrier, Facts, FreezeState, OpenerOrder, OpenerReport, Role, SpawnerReport, Standing,
    Text, Use, WirePath,
};
use postern_core::policy::rules::Mode;
use postern_core::policy::{Policy, ShutdownMode};

use crate::decide::{Decision, State, decide};
use crate::family::{Child, Family, Opener, Worker};
use crate::fsfreeze::{Engine, Event, Failure, Filesystem, Handles, Note, Status, Why};
use crate::host::Host;
use crate::launch::Fatal;
use crate::log::Log;
use crate::say::{Level, Voice};
use crate::shutdown::{self, Shutdown};

/// How long an open may take before the opener is given up: a dead network
/// filesystem in a path of the policy.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// How long a worker may take to count and end when postern stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// While something is frozen, how often the clock that goes on in a sleeping
/// guest is looked at; `poll` waits by one that does not.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What the launch put together.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) policy: Policy,
    pub(crate) voice: Voice,
    pub(crate) log: Log,
    pub(crate) engine: Option<Engine>,
    pub(crate) shutdown: Shutdown,
    pub(crate) handles: Handles,
    pub(crate) host: Host,
    pub(crate) family: Family,
    pub(crate) signals: SignalFd,
    pub(crate) privileged: bool,
}

/// An open under way.
#[derive(Debug)]
struct Opening {
    id: u64,
    handle: u64,
    path: WirePath,
    mode: Mode,
    rule: usize,
    /// Whether the opener was told; one that is being replaced is told later.
    sent: bool,
    since: Instant,
}

/// A child that is being let go of, until the spawner tells how it ended.
#[derive(Debug)]
struct Gone {
    id: u32,
    role: Role,
    pid: i32,
    /// Its last words, or why it was let go of.
    why: Option<audit::Text>,
}

/// The broker.
#[derive(Debug)]
pub(crate) struct Broker {
    parts: Parts,
    opener: Option<Opener>,
    worker: Option<Worker>,
    gone: Vec<Gone>,
    /// What is known of why the next child is let go of.
    last_words: Option<audit::Text>,
    /// The worker's open files: their resolved paths.
    files: BTreeMap<u64, WirePath>,
    opening: Option<Opening>,
    opens: u64,
    /// Which freeze command runs; for the record of its end.
    freezing: Option<Command>,
    /// The worker awaits the end of a freeze, of a thaw.
    owes_freeze: bool,
    owes_thaw: bool,
    /// When to try next to thaw what is frozen past the policy's limit.
    next_limit: Option<Instant>,
    /// Postern stops; the worker may take until then.
    stopping: Option<Instant>,
    stop_reason: &'static str,
    landlock_abi: u8,
}

/// What poll told of.
#[derive(Default)]
struct Awake {
    signals: bool,
    spawner: bool,
    engine: bool,
    opener: bool,
    worker: bool,
    host: bool,
}

fn text(bytes: &[u8]) -> audit::Text {
    audit::Text::new(bytes)
}

fn mounts(filesystems: &[Filesystem]) -> Mounts {
    filesystems.iter().map(|one| path_text(&one.mountpoint)).collect()
}

fn path_text(path: &std::path::Path) -> audit::Text {
    text(path.as_os_str().as_encoded_bytes())
}

fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

impl Broker {
    pub(crate) fn new(parts: Parts, landlock_abi: u8) -> Self {
        let frozen = parts.engine.as_ref().is_some_and(|engine| engine.status() != Status::Thawed);
        Self {
            parts,
            opener: None,
            worker: None,
            gone: Vec::new(),
            last_words: None,
            files: BTreeMap::new(),
            opening: None,
            opens: 0,
            freezing: None,
            owes_freeze: false,
            owes_thaw: false,
            next_limit: frozen.then(Instant::now),
            stopping: None,
            stop_reason: "",
            landlock_abi,
        }
    }

    /// Serves until postern is told to stop, and has thawed.
    pub(crate) fn serve(&mut self, _confined: &Confined) -> Result<(), Fatal> {
        let served = self.run();
        if let Err(fatal) = &served {
            self.last_thaw();
            self.note(&Record::Stopped { reason: text(fatal.to_string().as_bytes()) });
        }
        served
    }

    fn run(&mut self) -> Result<(), Fatal> {
        loop {
            self.keep_family()?;
            self.keep_time();
            if self.is_done() {
                self.note(&Record::Stopped { reason: text(self.stop_reason.as_bytes()) });
                return Ok(());
            }
            let awake = self.wait()?;
            if awake.signals {
                self.hear_signals();
            }
            if awake.spawner {
                self.hear_spawner()?;
            }
            if awake.engine {
                self.hear_engine();
            }
            if awake.opener {
                self.hear_opener()?;
            }
            if awake.worker {
                self.hear_worker()?;
            }
            if awake.host && self.parts.host.accept() {
                self.introduce_host();
            }
        }
    }

    /// Waits for something to hear, or for the next time limit.
    fn wait(&self) -> Result<Awake, Fatal> {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let sources = [
            Some(self.parts.signals.as_fd()),
            Some(self.parts.family.spawner.as_fd()),
            self.parts.engine.as_ref().map(Engine::event_fd),
            self.opener.as_ref().map(|opener| opener.pipe.as_fd()),
            self.worker.as_ref().map(|worker| worker.pipe.as_fd()),
            // A host is met by a worker, not by the broker.
            self.parts.host.awaited().filter(|_| self.worker.as_ref().is_some_and(|worker| worker.ready)),
        ];
        let mut watched: Vec<PollFd<'_>> = sources.iter().flatten().map(|&fd| watch(fd)).collect();
        let timeout = self.next_deadline().map_or(PollTimeout::NONE, |at| {
            // Rounded up, so that the time has come when the wait is over.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left.min(LOOK_AGAIN)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut watched, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Awake::default()),
            Err(errno) => return Err(Fatal::Call("poll", errno.into())),
        }
        let mut ready = watched.iter().map(|one| one.revents().is_some_and(|events| !events.is_empty()));
        let mut next = |there: bool| there && ready.next().unwrap_or(false);
        Ok(Awake {
            signals: next(sources[0].is_some()),
            spawner: next(sources[1].is_some()),
            engine: next(sources[2].is_some()),
            opener: next(sources[3].is_some()),
            worker: next(sources[4].is_some()),
            host: next(sources[5].is_some()),
        })
    }

    // ---- Children -------------------------------------------------------

    /// Sees to it that there are an opener and a worker.
    fn keep_family(&mut self) -> Result<(), Fatal> {
        if self.stopping.is_some() || self.parts.family.next_birth() > Instant::now() {
            return Ok(());
        }
        let failed = |errno: Errno| Fatal::Call("asking for a child", errno.into());
        if self.opener.is_none() && !self.parts.policy.files.is_empty() {
            let opener: Opener = self.parts.family.start(Role::Opener).map_err(failed)?;
            let orders = self.parts.policy.opener_part().orders();
            for order in orders.map_err(|path| Fatal::Unconfined { who: "opener", why: path.display().to_string() })? {
                if opener.pipe.send(&order, None).is_err() {
                    return Err(Fatal::Spawner("starts openers that do not listen"));
                }
            }
            self.opener = Some(opener);
        }
        if self.worker.is_none() && self.parts.family.next_birth() <= Instant::now() {
            let worker: Worker = self.parts.family.start(Role::Worker).map_err(failed)?;
            let setup = Answer::Setup { part: self.parts.policy.worker_part(), frozen: self.is_frozen() };
            worker.pipe.send(&setup, None).map_err(failed)?;
            self.worker = Some(worker);
        }
        Ok(())
    }

    /// Trust: the spawner is believed.
    fn hear_spawner(&mut self) -> Result<(), Fatal> {
        loop {
            match self.parts.family.spawner.try_receive().map(|received| received.message) {
                Ok(SpawnerReport::Spawned { .. }) => {}
                Ok(SpawnerReport::NotSpawned { errno, .. }) => {
                    return Err(Fatal::Call("starting a child", Errno::from_raw(errno).into()));
                }
                Ok(SpawnerReport::Died { id, signal, status }) => {
                    let end = signal.map_or(End::Exited(status), End::Signalled);
                    self.child_died(id, end);
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

    fn child_died(&mut self, id: u32, end: End) {
        if self.worker.as_ref().is_some_and(|worker| worker.id == id) {
            self.lose_worker();
        }
        if self.opener.as_ref().is_some_and(|opener| opener.id == id) {
            self.lose_opener();
        }
        let Some(at) = self.gone.iter().position(|gone| gone.id == id) else { return };
        let gone = self.gone.swap_remove(at);
        if self.stopping.is_none() {
            self.say(Level::Warning, &format!("{:?} {} ended ({end:?}); replaced", gone.role, gone.pid));
        }
        self.note(&Record::ProcessDied { role: gone.role.into(), child: id, end, reason: gone.why });
    }

    /// Lets go of a worker and of all that it held.
    fn lose_worker(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        self.let_go(Role::Worker, &worker);
        self.owes_freeze = false;
        self.owes_thaw = false;
        self.opening = None;
        let why = if self.stopping.is_some() { Closing::Stopping } else { Closing::WorkerDied };
        for (handle, path) in std::mem::take(&mut self.files) {
            self.note(&Record::FileClosed { handle, why, path: text(path.as_slice()), used: None });
        }
    }

    fn lose_opener(&mut self) {
        let Some(opener) = self.opener.take() else { return };
        self.let_go(Role::Opener, &opener);
        if let Some(opening) = self.opening.take() {
            self.refuse_open(&opening.path, opening.mode, Errno::EIO, Barrier::Opener, "the opener ended", None);
        }
    }

    fn let_go<Out: Frame, In: Frame>(&mut self, role: Role, child: &Child<Out, In>) {
        self.parts.family.kill(child.id);
        let why = self.last_words.take();
        self.gone.push(Gone { id: child.id, role, pid: child.pid, why });
    }

    /// A child's first word: that it is confined.
    fn child_ready(&mut self, role_of: Role, child: u32, standing: &Standing, sender: Option<Sender>) {
        if standing.landlock_abi != self.landlock_abi {
            self.say(Level::Warning, &format!("{role_of:?} enforces Landlock ABI {}", standing.landlock_abi));
        }
        for &rule in standing.missing.as_slice() {
            if let Some(rule) = self.parts.policy.files.get(usize::from(rule)) {
                self.say(Level::Notice, &format!("optional path {} is not there", rule.path.display()));
            }
        }
        let (pid, uid) = sender.map_or((0, 0), |sender| (sender.pid, sender.uid));
        self.note(&Record::ProcessStarted { role: role_of.into(), child, pid: Some(pid.cast_unsigned()), uid });
        if role_of == Role::Worker {
            self.say(Level::Info, "ready");
        }
    }

    // ---- The host -------------------------------------------------------

    /// Trust: who connects is hostile; who they are is the kernel's word.
    fn introduce_host(&mut self) {
        let peer = self.parts.host.current().and_then(|(_, _, peer)| peer);
        self.note(&Record::HostConnected { peer });
        self.hand_channel();
    }

    /// Gives the worker the channel, if both are there.
    fn hand_channel(&mut self) {
        let Some(worker) = self.worker.as_ref().filter(|worker| worker.ready) else { return };
        let Some((channel, kind, _)) = self.parts.host.current() else { return };
        if worker.pipe.send(&Answer::Channel { kind }, Some(channel)).is_err() {
            self.lose_worker();
        }
    }

    // ---- The opener -----------------------------------------------------

    /// Trust: as good as its confinement. What it says of an object goes into
    /// the record as its word.
    fn hear_opener(&mut self) -> Result<(), Fatal> {
        let Some(opener) = &mut self.opener else { return Ok(()) };
        let received = match opener.pipe.try_receive() {
            Ok(received) => received,
            Err(ReceiveError::Empty) => return Ok(()),
            Err(ReceiveError::Malformed(why)) => {
                let child = opener.id;
                let reason = text(why.to_string().as_bytes());
                self.note(&Record::MalformedFrame { role: audit::Role::Opener, child, reason });
                self.lose_opener();
                return Ok(());
            }
            Err(_) => {
                self.lose_opener();
                return Ok(());
            }
        };
        match received.message {
            OpenerReport::Ready { standing } => {
                opener.ready = true;
                opener.pid = received.sender.map_or(0, |sender| sender.pid);
                let child = opener.id;
                self.child_ready(Role::Opener, child, &standing, received.sender);
                self.tell_opener();
            }
            OpenerReport::Unconfined { why } => {
                return Err(Fatal::Unconfined { who: "opener", why: why.to_text() });
            }
            OpenerReport::Panicked { message } => {
                self.say(Level::Error, &format!("opener: {}", message.to_text()));
                self.last_words = Some(text(message.as_slice()));
            }
            OpenerReport::Opened { id, facts } => self.opened(id, &facts, received.descriptor),
            OpenerReport::NotOpened { id, errno, by, resolved } => {
                let Some(opening) = self.opening.take_if(|opening| opening.id == id) else { return Ok(()) };
                let why = match by {
                    Barrier::Opener => "no rule allows what the path leads to",
                    _ => "the kernel refused",
                };
                let (errno, rule) = (Errno::from_raw(errno), Some(opening.rule));
                self.refuse_open_at(&opening.path, opening.mode, errno, by, why, rule, resolved.as_ref());
            }
        }
        Ok(())
    }

    /// Sends the open under way, if the opener can take it.
    fn tell_opener(&mut self) {
        let Some(opener) = self.opener.as_ref().filter(|opener| opener.ready) else { return };
        let Some(opening) = self.opening.as_mut().filter(|opening| !opening.sent) else { return };
        opening.sent = true;
        let order = OpenerOrder::Open { id: opening.id, path: opening.path.clone(), mode: opening.mode };
        if opener.pipe.send(&order, None).is_err() {
            self.lose_opener();
        }
    }

    /// An object was opened. Its descriptor goes to the worker only behind the
    /// record.
    fn opened(&mut self, id: u64, facts: &Facts, file: Option<OwnedFd>) {
        let Some(opening) = self.opening.take_if(|opening| opening.id == id) else { return };
        let Some(file) = file else { return };
        let granted = Record::OpenGranted {
            requested: text(opening.path.as_slice()),
            mode: opening.mode,
            handle: opening.handle,
            file: facts.clone(),
        };
        if let Err(why) = self.parts.log.record(&granted) {
            self.log_failed(&why);
            self.answer(&Answer::NotOpened { errno: Errno::EIO as i32 }, None);
            return;
        }
        self.files.insert(opening.handle, facts.path.clone());
        self.answer(&Answer::Opened { handle: opening.handle }, Some(&file));
    }

    fn refuse_open(&mut self, path: &WirePath, mode: Mode, errno: Errno, by: Barrier, why: &str, rule: Option<usize>) {
        self.refuse_open_at(path, mode, errno, by, why, rule, None);
    }

    fn refuse_open_at(
        &mut self,
        path: &WirePath,
        mode: Mode,
        errno: Errno,
        by: Barrier,
        why: &str,
        rule: Option<usize>,
        resolved: Option<&WirePath>,
    ) {
        self.note(&Record::OpenRefused {
            requested: text(path.as_slice()),
            mode,
            by,
            reason: text(why.as_bytes()),
            rule,
            errno: Some(errno),
            resolved: resolved.map(|path| text(path.as_slice())),
        });
        self.answer(&Answer::NotOpened { errno: errno as i32 }, None);
    }

    // ---- The worker -----------------------------------------------------

    /// Trust: none. What it sends is in type or it is replaced; what it asks
    /// is decided.
    fn hear_worker(&mut self) -> Result<(), Fatal> {
        let Some(worker) = &mut self.worker else { return Ok(()) };
        let received = match worker.pipe.try_receive() {
            Ok(received) => received,
            Err(ReceiveError::Empty) => return Ok(()),
            Err(ReceiveError::Malformed(why)) => {
                self.replace_hostile(&why.to_string());
                return Ok(());
            }
            Err(_) => {
                self.lose_worker();
                return Ok(());
            }
        };
        let state = State {
            ready: worker.ready,
            freeze: self.status(),
            thawing: self.owes_thaw,
            files: self.files.len(),
            opening: self.opening.is_some(),
            privileged: self.parts.privileged,
        };
        match decide(state, &received.message, &self.parts.policy) {
            Decision::Note => self.take_note(received),
            Decision::Hostile(why) => {
                self.replace_hostile(why);
                Ok(())
            }
            decision => {
                self.act(decision, received.message);
                Ok(())
            }
        }
    }

    fn replace_hostile(&mut self, why: &str) {
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
                worker.pid = sender.map_or(0, |sender| sender.pid);
                let child = worker.id;
                self.child_ready(Role::Worker, child, &standing, sender);
                self.hand_channel();
            }
            Ask::Unconfined { why } => return Err(Fatal::Unconfined { who: "worker", why: why.to_text() }),
            Ask::Panicked { message } => {
                self.say(Level::Error, &format!("worker: {}", message.to_text()));
                self.last_words = Some(text(message.as_slice()));
            }
            Ask::Closed { handle, used } => self.closed(handle, &used),
            Ask::HostGone {} => {
                let peer = self.parts.host.drop_current();
                self.note(&Record::HostDisconnected { peer });
            }
            Ask::Denied { command, why } => {
                self.note(&Record::CommandRefused { command: text(command.as_slice()), because: why });
            }
            Ask::Counted { commands } => {
                let counts = commands.as_slice().iter().map(|count| (count.command, count.times)).collect();
                self.note(&Record::Counted { counts });
            }
            Ask::Open { .. } | Ask::Freeze { .. } | Ask::Thaw {} | Ask::Status {} | Ask::Shutdown { .. } => {}
        }
        Ok(())
    }

    fn closed(&mut self, handle: u64, used: &Use) {
        let Some(path) = self.files.remove(&handle) else {
            self.replace_hostile("it closed a handle that it did not have");
            return;
        };
        let path = text(path.as_slice());
        self.note(&Record::FileClosed { handle, why: Closing::Host, path, used: Some(used.clone()) });
    }

    /// Does what was decided.
    fn act(&mut self, decision: Decision, ask: Ask) {
        match (decision, ask) {
            (Decision::Open { rule, changes }, Ask::Open { path, mode }) => self.act_open(path, mode, rule, changes),
            (Decision::RefuseOpen { errno, by, why, rule }, Ask::Open { path, mode }) => {
                self.refuse_open(&path, mode, errno, by, why, rule);
            }
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
            (Decision::Shutdown(mode), _) => self.act_shutdown(mode),
            (Decision::Refuse(why), ask) => {
                if let Ask::Shutdown { mode } = ask {
                    let mode = text(mode.name().as_bytes());
                    self.note(&Record::ShutdownRefused { mode, reason: text(why.as_bytes()) });
                }
                self.refuse(why);
            }
            _ => self.replace_hostile("it asked what was not decided"),
        }
    }

    fn act_open(&mut self, path: WirePath, mode: Mode, rule: usize, changes: bool) {
        let handle = match self.parts.handles.next() {
            Ok(handle) => handle.cast_unsigned(),
            Err(why) => {
                self.say(Level::Error, &format!("no file handle to be had: {why}"));
                return self.refuse_open(&path, mode, Errno::EIO, Barrier::Audit, "no handle to be had", Some(rule));
            }
        };
        if changes {
            let asked = Record::OpenAsked { requested: text(path.as_slice()), mode, rule };
            if let Err(why) = self.parts.log.record(&asked) {
                self.log_failed(&why);
                self.answer(&Answer::NotOpened { errno: Errno::EIO as i32 }, None);
                return;
            }
        }
        self.opens += 1;
        self.opening = Some(Opening { id: self.opens, handle, path, mode, rule, sent: false, since: Instant::now() });
        self.tell_opener();
    }

    fn act_freeze(&mut self, command: Command, only: Option<Vec<std::path::PathBuf>>) {
        let named: Mounts = only.iter().flatten().map(|path| path_text(path)).collect();
        if let Err(why) = self.parts.log.record(&Record::FreezeAsked { command, mounts: named }) {
            self.log_failed(&why);
            return self.refuse("the audit log takes no records");
        }
        // From here to the last thaw nothing goes to any disk.
        self.parts.log.hold();
        self.parts.voice.hold();
        let begun = self.parts.engine.as_ref().map(|engine| engine.freeze(only));
        match begun {
            Some(Ok(())) => {
                self.freezing = Some(command);
                self.owes_freeze = true;
                self.next_limit = Some(Instant::now());
                self.answer(&Answer::Begun {}, None);
            }
            Some(Err(why)) => {
                self.release_if_thawed();
                self.refuse(&why.to_string());
            }
            None => {
                self.release_if_thawed();
                self.refuse("not possible: postern was started without root");
            }
        }
    }

    fn act_shutdown(&mut self, mode: ShutdownMode) {
        let method = self.parts.policy.shutdown.method;
        let planned = match self.parts.shutdown.plan(mode) {
            Ok(planned) => planned,
            Err(why) => {
                let reason = text(why.to_string().as_bytes());
                self.note(&Record::ShutdownRefused { mode: text(mode.name().as_bytes()), reason });
                return self.refuse(match why {
                    shutdown::Refusal::Mode(_) => "the guest's policy does not allow this mode",
                    shutdown::Refusal::UnknownInit => "the guest's init is not one that can be asked",
                });
            }
        };
        if let Err(why) = self.parts.log.record(&Record::ShutdownAsked { mode, method }) {
            self.log_failed(&why);
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

    fn refuse(&mut self, why: &str) {
        self.answer(&Answer::Refused { why: Text::cut(why.as_bytes()) }, None);
    }

    /// Answers the worker. One that does not take its answer is not sound.
    fn answer(&mut self, answer: &Answer, file: Option<&OwnedFd>) {
        let Some(worker) = &self.worker else { return };
        if worker.pipe.send(answer, file.map(AsFd::as_fd)).is_err() {
            self.lose_worker();
        }
    }

    // ---- Freezing -------------------------------------------------------

    fn status(&self) -> Status {
        self.parts.engine.as_ref().map_or(Status::Thawed, Engine::status)
    }

    fn is_frozen(&self) -> bool {
        self.status() != Status::Thawed
    }

    /// Trust: the engine is part of the broker.
    fn hear_engine(&mut self) {
        let events = self.parts.engine.as_ref().map(Engine::events).unwrap_or_default();
        for event in events {
            match event {
                Event::Frozen { filesystems, notes } => self.freeze_done(&filesystems, &notes),
                Event::FreezeFailed { failure, left } => self.freeze_failed(&failure, &left),
                Event::Thawed { why, filesystems, left } => self.thawed(why, &filesystems, &left),
            }
        }
        self.release_if_thawed();
    }

    fn freeze_done(&mut self, filesystems: &[Filesystem], notes: &[Note]) {
        let command = self.freezing.take().unwrap_or(Command::FsfreezeFreeze);
        let count = filesystems.len() as u64;
        for note in notes {
            self.say(Level::Notice, &format!("freeze: {note}"));
        }
        self.note(&Record::FreezeDone { command, count, mounts: mounts(filesystems) });
        self.end_freeze(&Answer::FreezeDone { count });
    }

    fn freeze_failed(&mut self, failure: &Failure, left: &[Failure]) {
        let command = self.freezing.take().unwrap_or(Command::FsfreezeFreeze);
        let why = failure.to_string();
        self.say(Level::Warning, &format!("freeze: {why}"));
        for one in left {
            self.say(Level::Error, &format!("after a failed freeze: {one}"));
        }
        let (mount, errno) = (failure.mountpoint().map_or_else(|| text(b""), path_text), failure.errno());
        self.note(&Record::FreezeFailed { command, mount, reason: text(why.as_bytes()), errno });
        self.end_freeze(&Answer::FreezeFailed { why: Text::cut(why.as_bytes()) });
    }

    fn end_freeze(&mut self, answer: &Answer) {
        self.owes_freeze = false;
        self.answer(answer, None);
    }

    fn thawed(&mut self, why: Why, filesystems: &[Filesystem], left: &[Failure]) {
        let count = filesystems.len() as u64;
        let cause = match why {
            Why::Host => ThawCause::Host,
            Why::TimeLimit => ThawCause::TimeLimit,
            Why::Ending => ThawCause::Stopping,
        };
        let failed = left.iter().filter_map(Failure::mountpoint).map(path_text).collect();
        self.note(&Record::Thawed { cause, count, mounts: mounts(filesystems), failed });
        if why == Why::TimeLimit {
            self.say(Level::Warning, &format!("thawed {count} filesystems: the policy's time limit was over"));
        }
        for one in left {
            self.say(Level::Error, &format!("thaw: {one}"));
        }
        self.next_limit = self.is_frozen().then(|| Instant::now() + LOOK_AGAIN);
        if std::mem::take(&mut self.owes_thaw) {
            self.answer(
                &match left.first() {
                    None => Answer::ThawDone { count },
                    Some(failure) => Answer::ThawFailed { why: Text::cut(failure.to_string().as_bytes()) },
                },
                None,
            );
        } else if self.worker.as_ref().is_some_and(|worker| worker.ready) {
            self.answer(&Answer::Frozen { frozen: self.is_frozen() }, None);
        }
    }

    fn release_if_thawed(&mut self) {
        if self.parts.engine.as_ref().is_some_and(|engine| engine.holds_writes()) || !self.parts.log.is_held() {
            return;
        }
        if let Err(why) = self.parts.log.release() {
            self.log_failed(&why);
        }
        self.parts.voice.release();
    }

    /// The last thing before an end out of order: nothing stays frozen if the
    /// engine can help it.
    fn last_thaw(&mut self) {
        let Some(engine) = &self.parts.engine else { return };
        if engine.status() == Status::Thawed {
            return;
        }
        engine.thaw(Why::Ending);
        let until = Instant::now() + LOOK_AGAIN;
        while self.is_frozen() && Instant::now() < until {
            let Some(engine) = &self.parts.engine else { return };
            let mut ready = [PollFd::new(engine.event_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, PollTimeout::from(1000_u16));
            self.hear_engine();
        }
    }

    // ---- Time, signals, end ---------------------------------------------

    fn next_deadline(&self) -> Option<Instant> {
        let opening = self.opening.as_ref().map(|opening| opening.since + OPEN_LIMIT);
        let missing = self.worker.is_none() || (self.opener.is_none() && !self.parts.policy.files.is_empty());
        let birth = (missing && self.stopping.is_none()).then(|| self.parts.family.next_birth());
        let thaw = self.thaw_due();
        [opening, birth, thaw, self.stopping].into_iter().flatten().min()
    }

    /// When to thaw by ourselves what is frozen too long.
    fn thaw_due(&self) -> Option<Instant> {
        let deadline = self.parts.engine.as_ref()?.deadline(self.parts.policy.freeze.limit)?;
        let next = self.next_limit?;
        let due = Instant::now() + deadline.saturating_sub(boottime());
        Some(due.max(next))
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.opening.as_ref().is_some_and(|opening| now >= opening.since + OPEN_LIMIT) {
            self.say(Level::Error, "an open took too long; replacing the opener");
            self.lose_opener();
        }
        if self.thaw_due().is_some_and(|due| now >= due)
            && let Some(engine) = &self.parts.engine
        {
            self.next_limit = Some(now + LOOK_AGAIN);
            engine.thaw(Why::TimeLimit);
        }
        if self.stopping.is_some_and(|until| now >= until) {
            self.lose_worker();
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.parts.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGHUP) => {
                    if let Err(why) = self.parts.log.reopen() {
                        self.log_failed(&why);
                    }
                }
                Ok(Signal::SIGTERM) => self.stop("SIGTERM"),
                Ok(Signal::SIGINT) => self.stop("SIGINT"),
                // Children are the spawner's; its own end shows on its pipe.
                _ => {}
            }
        }
    }

    /// Begins the orderly end: thaw, let the worker count, record, close.
    fn stop(&mut self, reason: &'static str) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now() + FAREWELL);
        self.stop_reason = reason;
        if let Some(engine) = self.parts.engine.as_ref().filter(|engine| engine.status() != Status::Thawed) {
            engine.thaw(Why::Ending);
        }
        match self.worker.as_ref().map(|worker| worker.ready) {
            Some(true) => self.answer(&Answer::End {}, None),
            _ => self.lose_worker(),
        }
    }

    fn is_done(&self) -> bool {
        self.stopping.is_some() && self.worker.is_none() && !self.is_frozen()
    }

    // ---- Voices ---------------------------------------------------------

    /// Records what happened, whether or not the log can take it now.
    fn note(&mut self, record: &Record) {
        if let Err(why) = self.parts.log.note(record) {
            self.log_failed(&why);
        }
    }

    fn log_failed(&self, why: &crate::log::LogError) {
        if self.parts.log.failures() <= 1 {
            self.say(
                Level::Error,
                &format!("audit log: {why}; opens, freezes and shutdowns are refused until it works"),
            );
        }
    }

    fn say(&self, level: Level, text: &str) {
        self.parts.voice.say(level, text);
    }
}

// A child that says nothing for so long is given up by its socket's closing.
const _: () = assert!(BIRTH_LIMIT.as_secs() < OPEN_LIMIT.as_secs());
