//! What the loop waits for, how long at most, and what is due when nothing was
//! heard. Without anything frozen, opening or being born there is no clock at
//! all, but the service manager's watchdog's and, once, that of a record which no
//! head told of yet.
//!
//! Trust: time is the kernel's.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use postern_core::messages::BIRTH_LIMIT;

use super::{Broker, Opening};
use crate::family::Child;
use crate::fsfreeze::Why;
use crate::launch::Fatal;
use crate::say::Level;

/// How long an open waits for an opener. How long that one may take is the policy's
/// `limits.hang`: a dead network filesystem in a path of the policy.
const OPENER_LIMIT: Duration = Duration::from_secs(20);
/// How long a worker may take to count and end when postern stops.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);
/// While something is frozen, how often the clock that goes on in a sleeping
/// guest is looked at; `poll` waits by one that does not.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);

// An open waits for an opener that is being born.
const _: () = assert!(BIRTH_LIMIT.as_secs() < OPENER_LIMIT.as_secs());

/// What poll told of.
#[derive(Default)]
pub(super) struct Awake {
    pub(super) signals: bool,
    pub(super) spawner: bool,
    pub(super) engine: bool,
    pub(super) acts: bool,
    pub(super) opener: bool,
    pub(super) worker: bool,
    pub(super) host: bool,
    pub(super) manager: bool,
    pub(super) heads: bool,
    pub(super) news: bool,
    pub(super) tried_opener: bool,
    pub(super) tried_worker: bool,
}

pub(super) fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

impl Broker {
    /// Waits for something to hear, or for the next time limit.
    pub(super) fn wait(&self) -> Result<Awake, Fatal> {
        let read = PollFlags::POLLIN;
        let opener = self.opener.as_ref().map(|opener| (opener.pipe.as_fd(), opener.awaited()));
        let worker = self.worker.as_ref().map(|worker| (worker.pipe.as_fd(), worker.awaited()));
        // A host is met by a worker, not by the broker.
        let met = self.worker.as_ref().is_some_and(|worker| worker.ready);
        let sources = [
            Some((self.parts.signals.as_fd(), read)),
            Some((self.parts.family.spawner.as_fd(), read)),
            self.parts.engine.as_ref().map(|engine| (engine.event_fd(), read)),
            opener,
            worker,
            self.parts.host.awaited().filter(|_| met).map(|host| (host, read)),
            self.parts.notify.awaited().map(|manager| (manager, PollFlags::POLLOUT)),
            // While it is there, nothing in /dev is news.
            self.parts.host.port().filter(|port| port.is_gone()).map(|port| (port.news(), read)),
            self.reload.opener().map(|opener| (opener.pipe.as_fd(), opener.awaited())),
            self.reload.worker().map(|worker| (worker.pipe.as_fd(), worker.awaited())),
            self.parts.acts.as_ref().map(|acts| (acts.event_fd(), read)),
        ];
        let heads = self.parts.heads.awaited().map(|way| (way, PollFlags::POLLOUT));
        let mut watched: Vec<PollFd<'_>> =
            sources.into_iter().flatten().chain(heads).map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        let timeout = self.next_deadline().map_or(PollTimeout::NONE, |at| {
            // Rounded up, so that the time has come when the wait is over.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
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
            manager: next(sources[6].is_some()),
            news: next(sources[7].is_some()),
            tried_opener: next(sources[8].is_some()),
            tried_worker: next(sources[9].is_some()),
            acts: next(sources[10].is_some()),
            heads: ready.any(|ready| ready),
        })
    }

    /// When something is due next.
    fn next_deadline(&self) -> Option<Instant> {
        let opening = self.open_given_up_at();
        let births = [self.opener_due(), self.worker_due()];
        let now = Instant::now();
        // Asked anew after each wait, none of which is longer.
        let thaw = self.thaw_due(now).map(|due| due.min(now + LOOK_AGAIN));
        let farewell = self.stopping.filter(|_| self.worker.is_some());
        let worker = self.worker.as_ref().and_then(Child::given_up_at);
        let opener = self.opener.as_ref().and_then(Child::given_up_at);
        let watchdog = self.parts.notify.next();
        let head = self.parts.heads.next();
        let reload = self.reload.due(self.may_reload());
        let times = [opening, thaw, farewell, worker, opener, self.next_question(), watchdog, head, reload];
        births.into_iter().chain(times).flatten().min()
    }

    /// When the open or fact under way has taken too long.
    fn open_given_up_at(&self) -> Option<Instant> {
        let limit = |opening: &Opening| if opening.sent { self.parts.policy.hang } else { OPENER_LIMIT };
        let telling = self.telling.as_ref().map(|telling| telling.since + OPENER_LIMIT);
        self.opening.as_ref().map(|opening| opening.since + limit(opening)).or(telling)
    }

    /// When to thaw by ourselves what is frozen too long; `now` if it is time.
    fn thaw_due(&self, now: Instant) -> Option<Instant> {
        let deadline = self.parts.engine.as_ref()?.deadline(self.parts.policy.freeze.limit)?;
        let next = self.next_limit?;
        // A time from the state directory may be any.
        let due = now + deadline.saturating_sub(boottime()).min(2 * LOOK_AGAIN);
        Some(due.max(next))
    }

    /// Does what is due.
    pub(super) fn keep_time(&mut self) {
        let now = Instant::now();
        if self.open_given_up_at().is_some_and(|until| now >= until) {
            self.say(Level::Error, "an open took too long; replacing the opener");
            self.lose_opener();
        }
        if self.opener.as_ref().and_then(Child::given_up_at).is_some_and(|until| now >= until) {
            self.say(Level::Error, "an opener said nothing; replacing it");
            self.lose_opener();
        }
        if self.worker.as_ref().and_then(Child::given_up_at).is_some_and(|until| now >= until) {
            self.say(Level::Error, "a worker said nothing; replacing it");
            self.lose_worker();
        }
        self.keep_watch(now);
        if self.thaw_due(now).is_some_and(|due| now >= due)
            && let Some(engine) = &self.parts.engine
        {
            self.next_limit = Some(now + LOOK_AGAIN);
            engine.thaw(Why::TimeLimit);
        }
        if self.stopping.is_some_and(|until| now >= until) {
            self.lose_worker();
        }
    }
}
