//! Trims, sleeps, and switching processors and memory blocks: the record, then the
//! thread's order; and telling of what came of it.
//!
//! Trust: the asks are the worker's, and decided. The thread is part of the broker.

use postern_core::audit::{self, Asked, Mounts, Record};
use postern_core::catalogue::Command;
use postern_core::ipc::{List, MAX_FRAME, Wire};
use postern_core::messages::{Answer, Ask, BlockResponse, Switch, Text};

use super::{Broker, text};
use crate::acts::{Acts, Failure, Order, Outcome};
use crate::say::Level;

/// The act under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acting {
    command: Command,
    /// The worker that asked, who alone is told.
    child: u32,
}

/// The command of an ask for an act.
pub(super) const fn command(ask: &Ask) -> Option<Command> {
    match ask {
        Ask::Trim { .. } => Some(Command::Fstrim),
        Ask::Suspend { mode } => Some(mode.command()),
        Ask::SetVcpus { .. } => Some(Command::SetVcpus),
        Ask::SetMemoryBlocks { .. } => Some(Command::SetMemoryBlocks),
        _ => None,
    }
}

/// What the record says is asked for, and what the thread is told.
fn order(ask: Ask) -> Option<(Asked, Order)> {
    let switched = |list: &[Switch]| {
        let those = |online| list.iter().filter(move |one| one.online == online).map(|one| one.number);
        Asked::Switch { on: audit::Text::ranges(those(true)), off: audit::Text::ranges(those(false)) }
    };
    Some(match ask {
        Ask::Trim { minimum } => (Asked::Trim { minimum }, Order::Trim(minimum)),
        Ask::Suspend { mode } => (Asked::Suspend, Order::Suspend(mode)),
        Ask::SetVcpus { vcpus } => (switched(vcpus.as_slice()), Order::SetVcpus(vcpus.as_slice().to_vec())),
        Ask::SetMemoryBlocks { blocks } => {
            (switched(blocks.as_slice()), Order::SetMemoryBlocks(blocks.as_slice().to_vec()))
        }
        _ => return None,
    })
}

impl Broker {
    pub(super) fn begin_act(&mut self, command: Command, ask: Ask) {
        let Some((asked, order)) = order(ask) else {
            return self.replace_hostile("it asked what was not decided");
        };
        let child = self.worker_number();
        let asked = Record::ActAsked { child, command, asked };
        if !self.parts.log.bears(&asked) {
            return self.refuse_fruitless(command, "too many acts at once: the audit log takes about one in a second");
        }
        if !self.record_first(&asked) {
            return self.refuse("the audit log takes no records");
        }
        // Whatever comes of it, the log would fill with no more than these.
        self.parts.log.charge(&asked, None);
        self.say(Level::Notice, &format!("the host asks for {command}"));
        match self.parts.acts.as_ref().map_or(Err(Failure::NoMeans), |acts| acts.begin(order)) {
            Ok(()) => {
                self.acting = Some(Acting { command, child });
                self.answer(&Answer::Begun {}, None);
            }
            Err(why) => {
                self.note_failed(Acting { command, child }, &why);
                self.refuse(&why.to_string());
            }
        }
    }

    /// Trust: the thread is part of the broker.
    pub(super) fn hear_acts(&mut self) {
        let Some(ended) = self.parts.acts.as_ref().and_then(Acts::ended) else { return };
        let Some(acting) = self.acting.take() else { return };
        let Acting { command, child } = acting;
        let notes = match ended {
            Ok(outcome) => {
                self.note(&Record::ActDone { child, command, outcome: recorded(&outcome) });
                told(outcome)
            }
            Err(why) => {
                self.note_failed(acting, &why);
                vec![Answer::ActFailed { why: Text::cut(why.to_string().as_bytes()) }]
            }
        };
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.id == child) else { return };
        // As much as it has room for, the rest as it reads.
        if worker.tell(notes).is_err() {
            self.lose_worker();
        }
    }

    /// postern ends before the act has; the kernel ends it with this process.
    pub(super) fn forget_act(&mut self) {
        self.hear_acts();
        if let Some(Acting { command, child }) = self.acting.take() {
            self.note(&Record::ActFailed { child, command, reason: text(b"postern is stopping"), errno: None });
        }
    }

    fn note_failed(&mut self, Acting { command, child }: Acting, why: &Failure) {
        self.say(Level::Warning, &format!("{command}: {why}"));
        let reason = text(why.to_string().as_bytes());
        self.note(&Record::ActFailed { child, command, reason, errno: why.errno() });
    }
}

/// What the record says came of an act.
fn recorded(outcome: &Outcome) -> audit::Outcome {
    let nothing =
        audit::Outcome { count: 0, mounts: Mounts::default(), trimmed: None, failed: Mounts::default(), left: 0 };
    match outcome {
        Outcome::Trimmed(all) => {
            let where_it = |done| {
                let those = all.iter().filter(move |one| one.done.is_some() == done);
                those.map(|one| text(one.path.as_slice())).collect::<Mounts>()
            };
            let bytes = all.iter().filter_map(|one| one.done.as_ref()).map(|done| done.trimmed);
            audit::Outcome {
                count: all.iter().filter(|one| one.done.is_some()).count() as u64,
                mounts: where_it(true),
                trimmed: Some(bytes.fold(0, u64::saturating_add)),
                failed: where_it(false),
                left: 0,
            }
        }
        Outcome::Slept => audit::Outcome { count: 1, ..nothing },
        Outcome::VcpusSet { count, left } => audit::Outcome { count: *count, left: *left, ..nothing },
        Outcome::BlocksSet(all) => {
            let count = all.iter().filter(|one| one.response == BlockResponse::Success).count();
            audit::Outcome { count: count as u64, left: (all.len() - count) as u64, ..nothing }
        }
    }
}

/// What the worker is told, in frames that fit.
fn told(outcome: Outcome) -> Vec<Answer> {
    let (mut notes, count) = match outcome {
        Outcome::Trimmed(all) => {
            let count = all.len() as u64;
            (frames(all, |filesystems| Answer::Trimmed { filesystems }), count)
        }
        Outcome::Slept => (Vec::new(), 1),
        Outcome::VcpusSet { count, .. } => (Vec::new(), count),
        Outcome::BlocksSet(all) => {
            let count = all.len() as u64;
            (frames(all, |blocks| Answer::BlocksSet { blocks }), count)
        }
    };
    notes.push(Answer::ActDone { count });
    notes
}

/// Cuts a list into as many frames as it takes.
fn frames<T: Wire, const MOST: usize>(all: Vec<T>, answer: impl Fn(List<T, MOST>) -> Answer) -> Vec<Answer> {
    // The frame's number and the list's length stand before it.
    const HEAD: usize = 3;
    let mut frames = Vec::new();
    let (mut part, mut bytes) = (Vec::new(), HEAD);
    let mut close = |part: Vec<T>| frames.extend(List::new(part).map(&answer));
    for one in all {
        let mut frame = Vec::new();
        one.put(&mut frame);
        if part.len() == MOST || bytes + frame.len() > MAX_FRAME {
            close(std::mem::take(&mut part));
            bytes = HEAD;
        }
        bytes += frame.len();
        part.push(one);
    }
    if !part.is_empty() {
        close(part);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_core::messages::{BlockSet, Trimmed, TrimmedBytes, WirePath};

    fn length(answer: &Answer) -> usize {
        let mut frame = Vec::new();
        answer.put(&mut frame);
        frame.len()
    }

    #[test]
    fn what_came_of_an_act_fits_frames_whole_and_in_order() {
        for (count, path) in [(0, 1), (1, 4095), (255, 10), (256, 10), (257, 10), (600, 1), (100, 4095)] {
            let one = |number: usize| Trimmed {
                path: WirePath::cut(&vec![b'x'; path]),
                done: Some(TrimmedBytes { trimmed: number as u64, minimum: 0 }),
                error: Text::cut(&[b'e'; 1024]),
            };
            let notes = told(Outcome::Trimmed((0..count).map(one).collect()));
            assert!(notes.iter().all(|note| length(note) <= MAX_FRAME), "{count} of {path}");
            let (last, parts) = notes.split_last().expect("an end");
            assert_eq!(*last, Answer::ActDone { count: count as u64 });
            let mut numbers = Vec::new();
            for part in parts {
                let Answer::Trimmed { filesystems } = part else { panic!("{part:?}") };
                numbers.extend(filesystems.as_slice().iter().map(|one| one.done.as_ref().expect("done").trimmed));
            }
            assert_eq!(numbers, (0..count as u64).collect::<Vec<_>>(), "{count} of {path}");
        }
        let block = |number| BlockSet { number, response: BlockResponse::Failed, errno: Some(16) };
        let notes = told(Outcome::BlocksSet((0..4096).map(block).collect()));
        assert_eq!(notes.len(), 2, "a list as long as an ask's fits one frame");
        assert!(length(&notes[0]) <= MAX_FRAME);
    }

    #[test]
    fn the_record_counts_what_was_done_and_what_was_not() {
        let trimmed = |path: &str, done: Option<u64>| Trimmed {
            path: WirePath::cut(path.as_bytes()),
            done: done.map(|trimmed| TrimmedBytes { trimmed, minimum: 0 }),
            error: Text::cut(b""),
        };
        let all = vec![trimmed("/a", Some(u64::MAX)), trimmed("/b", None), trimmed("/c", Some(7))];
        let found = recorded(&Outcome::Trimmed(all));
        let mounts = |paths: &[&str]| paths.iter().copied().collect::<Mounts>();
        assert_eq!((found.count, found.trimmed, found.left), (2, Some(u64::MAX), 0));
        assert_eq!((found.mounts, found.failed), (mounts(&["/a", "/c"]), mounts(&["/b"])));
        let block = |number, response| BlockSet { number, response, errno: None };
        let all = [(0, BlockResponse::Success), (1, BlockResponse::Failed), (2, BlockResponse::NotFound)];
        let found = recorded(&Outcome::BlocksSet(all.map(|(number, response)| block(number, response)).to_vec()));
        assert_eq!((found.count, found.left, found.trimmed), (1, 2, None));
        let found = recorded(&Outcome::VcpusSet { count: 3, left: 1 });
        assert_eq!((found.count, found.left), (3, 1));
    }
}
