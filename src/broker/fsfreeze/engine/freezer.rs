//! The thread that freezes. It opens, remembers, then freezes one filesystem
//! after the other; any of these may block for ever.
//!
//! Trust: as [`super`].

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use postern_core::mountinfo::{Device, Mount};
use postern_core::sys::fs;

use super::super::mounts::plan;
use super::super::open::{Reached, reach};
use super::super::{Event, Failure, Note, Reason, Remembered, Status, errno};
use super::{Order, Phase, Shared, State, now};

impl Shared {
    pub(super) fn freezer(&self) {
        self.lock().running += 1;
        self.changed.notify_all();
        loop {
            let mut state = self.await_work();
            if state.quit {
                return;
            }
            let Some(Order { only }) = state.order.take() else {
                drop(self.thaw_last(state));
                continue;
            };
            drop(state);
            let done = self.prepare(only.as_deref()).and_then(|(reached, notes)| self.freeze_all(reached, notes));
            self.finish(done);
        }
    }

    /// Sleeps until there is a freeze to do, or something to thaw behind one whose
    /// thaw hangs, or until the threads shall end.
    fn await_work(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !state.quit && state.order.is_none() {
            state = match state.unhelped() {
                Some(Duration::ZERO) => break,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state
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
            let since = self.lock().since.unwrap_or_else(now);
            self.memory
                .write(&Remembered { since, filesystems })
                .map_err(|error| Failure::Remember { errno: errno(&error) })?;
            let mut state = self.lock();
            if state.abort {
                return Err(Failure::Aborted);
            }
            state.phase = Phase::Freezing;
        }
        Ok((reached, notes))
    }

    /// Whether all that was mounted of a filesystem has been unmounted since.
    fn is_gone(&self, then: &[Mount], device: Device) -> Result<bool, Failure> {
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
}
