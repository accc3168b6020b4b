//! The thread that thaws, and what both threads do with one filesystem.
//!
//! Trust: as [`super`].

use std::mem;
use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use postern_core::mountinfo::Mount;
use postern_core::sys::fs;

use super::super::mounts::candidates;
use super::super::open::{Reached, reach};
use super::super::{Event, Failure, Filesystem, Status, errno};
use super::{Outcome, Phase, Shared, State, Thawing};

/// How long one `FITHAW` may take before the other thread goes on with the rest.
/// A disk that is there takes milliseconds; one that hangs must not keep the
/// others frozen.
const PATIENCE: Duration = Duration::from_secs(1);

impl State {
    /// How long until the freezer shall thaw what waits behind a `FITHAW`. `None`:
    /// nothing does.
    pub(super) fn unhelped(&self) -> Option<Duration> {
        let thawing = self.thawing.as_ref().filter(|thawing| thawing.busy > 0)?;
        let waits = self.phase == Phase::Idle && !self.held.is_empty();
        waits.then(|| PATIENCE.saturating_sub(thawing.since.elapsed()))
    }

    /// Whether every filesystem has been thawed, or tried in vain, and the freezer
    /// adds none.
    fn is_all_tried(&self) -> bool {
        self.held.is_empty()
            && self.phase != Phase::Freezing
            && self.thawing.as_ref().is_none_or(|thawing| thawing.busy == 0)
    }
}

impl Shared {
    pub(super) fn thawer(&self) {
        self.lock().running += 1;
        self.changed.notify_all();
        loop {
            let mut state = self.wait(|state| state.thaw.is_some() || state.undo.is_some());
            if state.quit {
                return;
            }
            state.thawing = Some(Thawing { busy: 0, since: Instant::now(), outcome: Outcome::default() });
            drop(state);
            self.thaw_all();
        }
    }

    /// Thaws the filesystem that was frozen last.
    pub(super) fn thaw_last<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let State { thawing: Some(thawing), held, .. } = &mut *state else { return state };
        let Some(reached) = held.pop() else { return state };
        thawing.busy += 1;
        // The freezer may have looked before there was anything to wait for.
        self.changed.notify_all();
        drop(state);
        let done = thaw(reached);
        let mut state = self.lock();
        if let Some(Thawing { busy, outcome, .. }) = &mut state.thawing {
            *busy -= 1;
            match done {
                Ok(thawed) => outcome.thawed.extend(thawed),
                Err((reached, errno)) => {
                    let mountpoint = reached.filesystem.mountpoint.clone();
                    outcome.left.push(Failure::Thaw { mountpoint, errno });
                    outcome.still.insert(0, reached);
                }
            }
        }
        self.changed.notify_all();
        state
    }

    fn thaw_all(&self) {
        // Last frozen, first thawed: what an image lies on must be able to write
        // before what is in the image. The freezer may add one more; it
        // may be stuck in one *because* of what is thawed here.
        let Outcome { mut thawed, mut left, still } = loop {
            let mut state = self.wait(|state| !state.held.is_empty() || state.is_all_tried());
            let nothing_held = state.held.is_empty();
            let Some(thawing) = &mut state.thawing else { return };
            if nothing_held {
                break mem::take(&mut thawing.outcome);
            }
            thawing.since = Instant::now();
            drop(self.thaw_last(state));
        };
        let remembered = self.lock().remembered.clone();
        let remembered = self.thaw_remembered(remembered, &mut thawed, &mut left);
        // A freezer that is still preparing was told to stop, and forgets what
        // it wrote down by itself.
        let clean = still.is_empty() && remembered.is_empty();
        if clean
            && self.lock().phase == Phase::Idle
            && let Err(error) = self.memory.forget()
        {
            left.push(Failure::Forget { errno: errno(&error) });
        }
        let mut state = self.lock();
        state.held = still;
        state.remembered = remembered;
        let unanswered = state.status == Status::Freezing;
        state.status = if clean { Status::Thawed } else { Status::Error };
        if clean {
            state.since = None;
        }
        state.thawing = None;
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

/// Thaws a filesystem, and closes it if that was done: closing may be what ends a
/// lazy unmount, which may block, so nothing is locked here. `None`: somebody
/// else thawed it.
fn thaw(reached: Reached) -> Result<Option<Filesystem>, (Reached, Errno)> {
    match fs::thaw(reached.dir.as_fd()) {
        Ok(()) => Ok(Some(reached.filesystem)),
        Err(Errno::EINVAL) => Ok(None),
        Err(errno) => Err((reached, errno)),
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
