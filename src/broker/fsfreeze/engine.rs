//! The two threads that freeze and thaw, and what the broker's loop says to
//! them.
//!
//! The lock is held for memory accesses only, never over a system call that may
//! block: so every function of [`Engine`] returns at once. The freezer owns a
//! freeze until it is over; every thaw is the thawer's, also that of a freeze
//! that failed. Where one `FITHAW` hangs, the freezer thaws the others. A
//! descriptor in `held` is a frozen filesystem.
//!
//! Trust: takes its orders from the broker's loop only. No host input but the
//! list of mountpoints, which is compared and not opened.

mod freezer;
mod thawer;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::time::{ClockId, clock_gettime};

use super::open::{MountTable, Reached};
use super::{Event, Failure, Filesystem, Memory, Remembered, Status, Why};

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
    thawing: Option<Thawing>,
    /// When the freeze was asked for, by `CLOCK_BOOTTIME`.
    since: Option<Duration>,
    /// Frozen by us, in freeze order.
    held: Vec<Reached>,
    /// Frozen by an earlier run, in freeze order.
    remembered: Vec<Filesystem>,
    events: VecDeque<Event>,
}

/// A thaw that is under way.
#[derive(Debug)]
struct Thawing {
    /// How many threads are in a `FITHAW`.
    busy: u8,
    /// When the thawer took up the one that it is in.
    since: Instant,
    outcome: Outcome,
}

/// What a thaw has come to so far.
#[derive(Debug, Default)]
struct Outcome {
    thawed: Vec<Filesystem>,
    left: Vec<Failure>,
    /// What could not be thawed, in freeze order.
    still: Vec<Reached>,
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
            thawing: None,
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
        if state.phase != Phase::Idle || state.thawing.is_some() || state.thaw.is_some() || state.undo.is_some() {
            return Err(Refused::Busy);
        }
        if state.status != Status::Thawed {
            return Err(Refused::Frozen);
        }
        state.phase = Phase::Preparing;
        state.status = Status::Freezing;
        state.since = Some(now());
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

    /// How long until a freeze that is there, or under way, has lasted for
    /// `limit`; zero when it is over. `None`: nothing is frozen. When it is zero the loop calls
    /// [`Engine::thaw`] once; if that ends in [`Status::Error`] it stays zero,
    /// and the loop chooses when to try again.
    #[must_use]
    pub fn time_left(&self, limit: Duration) -> Option<Duration> {
        self.deadline(limit).map(|deadline| deadline.saturating_sub(now()))
    }

    /// When a freeze that is there, or under way, must be over: a time of `CLOCK_BOOTTIME`,
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
}
