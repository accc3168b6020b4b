//! Watching a worker that holds files: reading, writing, seeking or closing one
//! may wait for ever, for a server of a network filesystem or of FUSE, or for a
//! disk that somebody else has frozen, and the host would be without answer as
//! long. A worker that says nothing for the policy's `limits.hang` is replaced.
//!
//! It is asked whether it is there, at rest as well as between the pieces of a
//! long transfer and while its host does not take a reply. So nothing is said
//! for the sake of a file that is fast, and whatever it is that a worker hangs
//! in shows. A worker without files is not watched: it waits for nobody but its
//! host and the broker.
//!
//! Children that cannot be killed, for the kernel lets no signal end what they wait
//! for, are counted: beyond a few of them no file is opened any more, so that
//! neither they nor what the broker lets go of for them fill the guest.
//!
//! Trust: a worker's word that it is there is worth no more than the worker; one
//! that fell and says so hurts only itself.

use std::time::{Duration, Instant};

use postern_core::messages::Answer;

use super::{Broker, text};
use crate::closer::THREADS;
use crate::say::Level;

/// So many questions may go without an answer. More than one: a guest that was
/// stopped for an hour goes on with its clocks behind.
const QUESTIONS: u32 = 3;
/// A child that was let go of and has not ended for so long hangs.
const HANGS: Duration = Duration::from_secs(1);
/// With so many that hang nothing is opened: as many as can close what nobody lets
/// them close. A unit may have 32 tasks (`TasksMax=`), of which postern needs ten.
const HANGING_MOST: usize = THREADS;

/// What is known of the worker's silence.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When it was heard or asked last; none while it need not be.
    since: Option<Instant>,
    unanswered: u32,
}

impl Broker {
    /// The worker has spoken, or has got its first file.
    pub(super) fn heard_worker(&mut self) {
        let watched = !self.files.is_empty();
        self.watch = Watch { since: watched.then(Instant::now), unanswered: 0 };
    }

    /// When it is asked next, or replaced.
    pub(super) fn next_question(&self) -> Option<Instant> {
        let worker = self.worker.as_ref().filter(|_| !self.files.is_empty());
        self.watch.since.filter(|_| worker.is_some()).map(|since| since + self.parts.policy.hang / (QUESTIONS + 1))
    }

    /// Asks a silent worker, or gives it up.
    pub(super) fn keep_watch(&mut self, now: Instant) {
        if self.next_question().is_none_or(|due| now < due) {
            return;
        }
        if self.watch.unanswered < QUESTIONS {
            self.watch = Watch { since: Some(now), unanswered: self.watch.unanswered + 1 };
            return self.answer(&Answer::Alive {}, None);
        }
        let pid = self.worker.as_ref().map_or(0, |worker| worker.pid);
        let hang = self.parts.policy.hang;
        let why = format!("it said nothing for {} s: it hangs in an operation on a file", hang.as_secs());
        self.say(Level::Error, &format!("worker {pid}: {why}; replacing it"));
        self.last_words = Some(text(why.as_bytes()));
        self.lose_worker();
    }

    /// Whether so many children, and closes, hang in files that no more may be
    /// opened.
    pub(super) fn too_many_hang(&self) -> bool {
        let hanging = self.gone.iter().filter(|gone| gone.since.elapsed() > HANGS).count();
        hanging + self.closer.hanging(HANGS) >= HANGING_MOST
    }
}
