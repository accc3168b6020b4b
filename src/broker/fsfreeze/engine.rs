//! The two threads that freeze and thaw, and what the broker's loop says to
//! them.
//!
//! The lock is held for memory accesses only, never over a system call that may
//! block: so every function of [`Engine`] returns at once. The freezer owns a
//! freeze until it is over; every thaw is the thawer's, also that of a freeze
//! that failed. A descriptor in `held` is a frozen filesystem.
//!
//! Trust: takes its orders from the broker's loop only. No host input but the
//! list of mountpoints, which is compared and not opened.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::time::{ClockId, clock_gettime};
use postern_core::sys::fs;

use super::mounts::{Mount, candidates, plan};
use super::open::{MountTable, Reached, reach};
use super::{Event, Failure, Filesystem, Memory, Note, Reason, Remembered, Status, Why, errno};

/// Why a freeze was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Filesystems are frozen, or a thaw left some.
    #[error("filesystems are frozen already; thaw them first")]
    Frozen,
    /// A freeze or thaw is under way.
    #[error("a freeze or thaw is still under way")]
    Busy,
}

/// The freezer, the thawer and their state.
///
/// Dropping it tells the threads to end but waits for neither and thaws
/// nothing: ask for a thaw and wait for its event first.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    signal: EventFd,
    table: MountTable,
    memory: Memory,
}

/// A freeze that was asked for: of all, or of these.
#[derive(Debug)]
struct Order {
    only: Option<Vec<PathBuf>>,
}

/// What the freezer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Reading, opening, remembering: nothing is frozen yet.
    Preparing,
    /// Between the first FIFREEZE and the last.
    Freezing,
}

#[derive(Debug)]
struct State {
    /// Threads that run, for the start.
    running: u8,
    quit: bool,
    phase: Phase,
    /// What is told; `Freezing` from [`Engine::freeze`] until its event is out.
    status: Status,
    /// A freeze for the freezer to take up.
    order: Option<Order>,
    /// The freezer shall stop after what it is in.
    abort: bool,
    /// Why a freeze must be undone.
    undo: Option<Failure>,
    /// A thaw was asked for and its event is not out.
    thaw: Option<Why>,
    /// The thawer is at work.
    thawing: bool,
    /// When the freeze began, by `CLOCK_BOOTTIME`.
    since: Option<Duration>,
    /// Frozen by us, in freeze order.
    held: Vec<Reached>,
    /// Frozen by an earlier run, in freeze order.
    remembered: Vec<Filesystem>,
    events: VecDeque<Event>,
}

impl Engine {
    /// Starts both threads and returns when they run.
    ///
    /// `remembered` is what [`Memory::read`] found. Call this *after* the
    /// calling thread has dropped its capabilities and entered its Landlock
    /// domain, which the new threads inherit and could not be given later,
    /// and *before* seccomp, which reaches them with `TSYNC`. Opened before
    /// confinement: `table` and `memory`.
    ///
    /// # Errors
    /// No thread or no descriptor can be had.
    pub fn start(table: MountTable, memory: Memory, remembered: Option<Remembered>) -> io::Result<Self> {
        let (since, remembered) = remembered.map_or((None, Vec::new()), |r| (Some(r.since), r.filesystems));
        let state = State {
            running: 0,
            quit: false,
            phase: Phase::Idle,
            status: if remembered.is_empty() { Status::Thawed } else { Status::Frozen },
            order: None,
            abort: false,
            undo: None,
            thaw: None,
            thawing: false,
            since,
            held: Vec::new(),
            remembered,
            events: VecDeque::new(),
        };
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), signal, table, memory });
        // Signals are the loop's; the threads inherit the mask.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let started =
            spawn("freezer", &shared, Shared::freezer).and_then(|()| spawn("thawer", &shared, Shared::thawer));
        mask.thread_set_mask()?;
        let engine = Self { shared };
        started?;
        // A thread's first steps (naming itself, its signal stack) must be over
        // before the filter comes.
        drop(engine.shared.wait(|state| state.running == 2));
        Ok(engine)
    }

    /// Readable when [`Engine::events`] has something.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }

    /// What has happened since the last call.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        // First the counter, then the queue: an event between is in both.
        let _ = self.shared.signal.read();
        self.shared.lock().events.drain(..).collect()
    }

    /// Begins a freeze: of all real local filesystems, or of those that have a
    /// mountpoint in `only`.
    ///
    /// # Errors
    /// It was not begun, and no event will come.
    pub fn freeze(&self, only: Option<Vec<PathBuf>>) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        if state.phase != Phase::Idle || state.thawing || state.thaw.is_some() || state.undo.is_some() {
            return Err(Refused::Busy);
        }
        if state.status != Status::Thawed {
            return Err(Refused::Frozen);
        }
        state.phase = Phase::Preparing;
        state.status = Status::Freezing;
        state.order = Some(Order { only });
        state.abort = false;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Thaws all that is frozen and ends a freeze that is under way after the
    /// filesystem it is at. What is frozen is thawed even while that one is
    /// stuck in the kernel.
    pub fn thaw(&self, why: Why) {
        let mut state = self.shared.lock();
        state.thaw.get_or_insert(why);
        state.abort = true;
        self.shared.changed.notify_all();
    }

    /// What the filesystems are.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.lock().status
    }

    /// From before the first FIFREEZE until after the last FITHAW: nothing may
    /// be written to any disk.
    #[must_use]
    pub fn holds_writes(&self) -> bool {
        self.status() != Status::Thawed
    }

    /// How many filesystems are frozen, by this run or an earlier one.
    #[must_use]
    pub fn frozen(&self) -> usize {
        let state = self.shared.lock();
        state.held.len() + state.remembered.len()
    }

    /// How long until a freeze that is there has lasted for `limit`; zero when it
    /// is over. `None`: nothing is frozen. When it is zero the loop calls
    /// [`Engine::thaw`] once; if that ends in [`Status::Error`] it stays zero,
    /// and the loop chooses when to try again.
    #[must_use]
    pub fn time_left(&self, limit: Duration) -> Option<Duration> {
        self.deadline(limit).map(|deadline| deadline.saturating_sub(now()))
    }

    /// When a freeze that is there must be over: a time of `CLOCK_BOOTTIME`,
    /// which goes on while the guest sleeps. `None`: nothing is frozen.
    #[must_use]
    pub fn deadline(&self, limit: Duration) -> Option<Duration> {
        self.shared.lock().since.map(|since| since.saturating_add(limit))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().quit = true;
        self.shared.changed.notify_all();
    }
}

fn spawn(name: &str, shared: &Arc<Shared>, body: fn(&Shared)) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(move || body(&shared)).map(drop)
}

fn now() -> Duration {
    // The call cannot fail: the clock exists since Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until `ready`, or until the threads shall end.
    fn wait(&self, ready: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        self.changed
            .wait_while(self.lock(), |state| !ready(state) && !state.quit)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &mut State, event: Event) {
        state.events.push_back(event);
        // The counter is far from full, and full would be readable too.
        let _ = self.signal.write(1);
    }

    // ---- the freezer -------------------------------------------------------

    fn freezer(&self) {
        self.lock().running += 1;
        self.changed.notify_all();
        loop {
            let mut state = self.wait(|state| state.order.is_some());
            if state.quit {
                return;
            }
            let Some(Order { only }) = state.order.take() else { continue };
            drop(state);
            let done = self.prepare(only.as_deref()).and_then(|(reached, notes)| self.freeze_all(reached, notes));
            self.finish(done);
        }
    }

    /// Opens every filesystem of the plan, and writes down what will be frozen.
    /// Nothing is frozen yet.
    fn prepare(&self, only: Option<&[PathBuf]>) -> Result<(Vec<Reached>, Vec<Note>), Failure> {
        let mounts = self.table.read_or_fail()?;
        let (mut reached, mut notes) = (Vec::new(), Vec::new());
        for target in plan(&mounts, only, &self.table.stacking) {
            self.go_on()?;
            let found = reach(target.device, &target.candidates);
            if !matches!(found, Ok(Some(_))) && self.is_gone(&mounts, target.device)? {
                continue;
            }
            match found? {
                Some(found) => reached.push(found),
                None => notes.push(Note { mountpoint: target.name().to_owned(), reason: Reason::Covered }),
            }
        }
        if !reached.is_empty() {
            self.go_on()?;
            let filesystems = reached.iter().map(|reached| reached.filesystem.clone()).collect();
            let since = now();
            self.memory
                .write(&Remembered { since, filesystems })
                .map_err(|error| Failure::Remember { errno: errno(&error) })?;
            let mut state = self.lock();
            if state.abort {
                return Err(Failure::Aborted);
            }
            state.since = Some(since);
            state.phase = Phase::Freezing;
        }
        Ok((reached, notes))
    }

    /// Whether all that was mounted of a filesystem has been unmounted since.
    fn is_gone(&self, then: &[Mount], device: super::mounts::Device) -> Result<bool, Failure> {
        let now = self.table.read_or_fail()?;
        Ok(!then.iter().any(|mount| mount.device == device && now.contains(mount)))
    }

    fn go_on(&self) -> Result<(), Failure> {
        if self.lock().abort { Err(Failure::Aborted) } else { Ok(()) }
    }

    fn freeze_all(&self, reached: Vec<Reached>, mut notes: Vec<Note>) -> Result<Vec<Note>, Failure> {
        for reached in reached {
            self.go_on()?;
            let mountpoint = reached.filesystem.mountpoint.clone();
            let reason = match fs::freeze(reached.dir.as_fd()) {
                Ok(()) => {
                    self.lock().held.push(reached);
                    continue;
                }
                Err(Errno::EOPNOTSUPP) => Reason::NotSupported,
                Err(Errno::EBUSY) => Reason::FrozenByOthers,
                Err(errno) => return Err(Failure::Freeze { mountpoint, errno }),
            };
            notes.push(Note { mountpoint, reason });
        }
        Ok(notes)
    }

    /// Ends a freeze. If all went well its event goes out here; a failed one is
    /// undone and answered by the thawer, as is one that a thaw has ended.
    fn finish(&self, mut done: Result<Vec<Note>, Failure>) {
        let mut state = self.lock();
        // What was written down is forgotten here if nothing was frozen; the
        // thawer does not thaw meanwhile. Forgetting may block: no lock.
        let forget = match state.phase {
            Phase::Freezing => done.is_ok() && state.held.is_empty() && !state.abort,
            Phase::Idle | Phase::Preparing => true,
        };
        if forget {
            drop(state);
            if let Err(error) = self.memory.forget() {
                done = done.and(Err(Failure::Forget { errno: errno(&error) }));
            }
            state = self.lock();
        }
        state.phase = Phase::Idle;
        match done {
            _ if state.abort => {}
            Ok(notes) => {
                let filesystems: Vec<_> = state.held.iter().map(|reached| reached.filesystem.clone()).collect();
                if filesystems.is_empty() {
                    state.status = Status::Thawed;
                    state.since = None;
                } else {
                    state.status = Status::Frozen;
                }
                self.tell(&mut state, Event::Frozen { filesystems, notes });
            }
            Err(failure) => state.undo = Some(failure),
        }
        self.changed.notify_all();
    }

    // ---- the thawer --------------------------------------------------------

    fn thawer(&self) {
        self.lock().running += 1;
        self.changed.notify_all();
        loop {
            let mut state = self.wait(|state| state.thaw.is_some() || state.undo.is_some());
            if state.quit {
                return;
            }
            state.thawing = true;
            drop(state);
            self.thaw_all();
        }
    }

    fn thaw_all(&self) {
        let (mut thawed, mut left, mut stuck) = (Vec::new(), Vec::new(), Vec::new());
        // Last frozen, first thawed: what an image lies on must be able to write
        // before what is in the image. The freezer may add one more; it
        // may be stuck in one *because* of what is thawed here.
        loop {
            let mut state = self.wait(|state| !state.held.is_empty() || state.phase != Phase::Freezing);
            let Some(reached) = state.held.pop() else { break };
            drop(state);
            match fs::thaw(reached.dir.as_fd()) {
                Ok(()) => thawed.push(reached.filesystem),
                // Somebody else thawed it.
                Err(Errno::EINVAL) => {}
                Err(errno) => {
                    left.push(Failure::Thaw { mountpoint: reached.filesystem.mountpoint.clone(), errno });
                    stuck.insert(0, reached);
                }
            }
        }
        let remembered = self.lock().remembered.clone();
        let remembered = self.thaw_remembered(remembered, &mut thawed, &mut left);
        // A freezer that is still preparing was told to stop, and forgets what
        // it wrote down by itself.
        let clean = stuck.is_empty() && remembered.is_empty();
        if clean
            && self.lock().phase == Phase::Idle
            && let Err(error) = self.memory.forget()
        {
            left.push(Failure::Forget { errno: errno(&error) });
        }
        let mut state = self.lock();
        state.held = stuck;
        state.remembered = remembered;
        let unanswered = state.status == Status::Freezing;
        state.status = if clean { Status::Thawed } else { Status::Error };
        if clean {
            state.since = None;
        }
        state.thawing = false;
        let undo = state.undo.take();
        if unanswered {
            let failure = undo.unwrap_or(Failure::Aborted);
            self.tell(&mut state, Event::FreezeFailed { failure, left: left.clone() });
        }
        if let Some(why) = state.thaw.take() {
            self.tell(&mut state, Event::Thawed { why, filesystems: thawed, left });
        }
        self.changed.notify_all();
    }

    /// Thaws what an earlier run froze; returns what may still be frozen. The
    /// mounts are walked again: ids may differ in another mount namespace.
    fn thaw_remembered(
        &self,
        remembered: Vec<Filesystem>,
        thawed: &mut Vec<Filesystem>,
        left: &mut Vec<Failure>,
    ) -> Vec<Filesystem> {
        if remembered.is_empty() {
            return remembered;
        }
        let mounts = match self.table.read_or_fail() {
            Ok(mounts) => mounts,
            Err(failure) => {
                left.push(failure);
                let lost = |one: &Filesystem| Failure::Unreachable { mountpoint: one.mountpoint.clone() };
                left.extend(remembered.iter().map(lost));
                return remembered;
            }
        };
        let mut still = Vec::new();
        for filesystem in remembered.into_iter().rev() {
            match thaw_one(&mounts, &filesystem) {
                Ok(true) => thawed.push(filesystem),
                Ok(false) => {}
                Err(failure) => {
                    left.push(failure);
                    still.insert(0, filesystem);
                }
            }
        }
        still
    }
}

/// Whether this filesystem was frozen and is not any more.
fn thaw_one(mounts: &[Mount], filesystem: &Filesystem) -> Result<bool, Failure> {
    let mountpoint = &filesystem.mountpoint;
    let mut ways = candidates(mounts, filesystem.device);
    ways.sort_by_key(|way| (way.mountpoint != *mountpoint, way.id != filesystem.mount));
    let Some(reached) = reach(filesystem.device, &ways)? else {
        return Err(Failure::Unreachable { mountpoint: mountpoint.clone() });
    };
    match fs::thaw(reached.dir.as_fd()) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(Failure::Thaw { mountpoint: mountpoint.clone(), errno }),
    }
}
