//! What a log says, summed up record by record in bounded memory.
//!
//! Trust: none in the records. What only the worker says is kept apart by name:
//! `read`, `written` and `counted` are its own word.

use super::super::record::{self, Peer, Record};
use super::super::words;
use super::alarms::{Alarm, Alarms};
use super::bins::{Bins, Lane};
use super::most::{Most, Newest, Tally};

/// How an open can be asked for, in the order of the bits of [`Modes`].
pub(super) const MODES: [&str; 6] = ["r", "w", "a", "r+", "w+", "a+"];

/// Most paths that are known by name at the end.
pub(super) const PATHS: usize = 10_000;
/// Most bytes of a path that are kept; the kernel opens none that is longer.
const PATH_BYTES: usize = 4096;
/// Most of everything else that is known by name: events, reasons, days.
const OTHERS: usize = 2_000;
/// Most sessions, freezes and runs, the newest.
const SPANS: usize = 1_000;

/// How often, and when first and last, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) count: u64,
    pub(super) first: i64,
    pub(super) last: i64,
}

impl Default for Seen {
    fn default() -> Self {
        Self { count: 0, first: i64::MAX, last: i64::MIN }
    }
}

impl Seen {
    pub(super) fn at(&mut self, at: i64, times: u64) {
        self.absorb(&Self { count: times, first: at, last: at });
    }

    fn absorb(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// A set of [`MODES`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Modes(u8);

impl Modes {
    fn add(&mut self, mode: &str) {
        if let Some(bit) = MODES.iter().position(|known| *known == mode) {
            self.0 |= 1 << bit;
        }
    }

    pub(super) fn names(self) -> Vec<&'static str> {
        (0..MODES.len()).filter(|bit| self.0 & (1 << bit) != 0).map(|bit| MODES[bit]).collect()
    }
}

/// What files were used for: of a path, a day, a session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    pub(super) opened: u64,
    pub(super) created: u64,
    pub(super) refused: u64,
    /// Handles at whose end the file was another than at the open, whoever
    /// changed it.
    pub(super) changed: u64,
    /// Bytes; the worker's word.
    pub(super) read: u64,
    /// Bytes; the worker's word.
    pub(super) written: u64,
}

impl Use {
    fn absorb(&mut self, other: &Self) {
        let sum = |mine: &mut u64, more: u64| *mine = mine.saturating_add(more);
        sum(&mut self.opened, other.opened);
        sum(&mut self.created, other.created);
        sum(&mut self.refused, other.refused);
        sum(&mut self.changed, other.changed);
        sum(&mut self.read, other.read);
        sum(&mut self.written, other.written);
    }
}

/// What became of a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PathUse {
    pub(super) seen: Seen,
    pub(super) used: Use,
    pub(super) modes: Modes,
    pub(super) refused_modes: Modes,
    /// Opened by a name that resolved to this one.
    pub(super) renamed: u64,
}

impl Tally for PathUse {
    /// What was opened before what was only asked for: asking is free.
    type Weight = (u64, u64, i64);

    fn weight(&self) -> Self::Weight {
        (self.used.opened, self.used.refused, self.seen.last)
    }

    fn absorb(&mut self, other: &Self) {
        self.seen.absorb(&other.seen);
        self.used.absorb(&other.used);
        self.modes.0 |= other.modes.0;
        self.refused_modes.0 |= other.refused_modes.0;
        self.renamed = self.renamed.saturating_add(other.renamed);
    }
}

/// How often there was an event, or why something was refused.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventUse {
    pub(super) seen: Seen,
    pub(super) refused: u64,
    pub(super) failed: u64,
    /// Answers of which there is no record each; the worker's word.
    pub(super) counted: u64,
    /// Records that the log did not take because the host repeated itself.
    pub(super) left_out: u64,
}

impl Tally for EventUse {
    type Weight = u64;

    fn weight(&self) -> u64 {
        self.seen.count.saturating_add(self.counted).saturating_add(self.left_out)
    }

    fn absorb(&mut self, other: &Self) {
        self.seen.absorb(&other.seen);
        self.refused = self.refused.saturating_add(other.refused);
        self.failed = self.failed.saturating_add(other.failed);
        self.counted = self.counted.saturating_add(other.counted);
        self.left_out = self.left_out.saturating_add(other.left_out);
    }
}

/// A day.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Day {
    pub(super) seen: Seen,
    pub(super) used: Use,
}

impl Tally for Day {
    type Weight = i64;

    fn weight(&self) -> i64 {
        self.seen.last
    }

    fn absorb(&mut self, other: &Self) {
        self.seen.absorb(&other.seen);
        self.used.absorb(&other.used);
    }
}

/// A host's connection.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Not on record for opens before the first connection.
    pub(super) from: Option<i64>,
    pub(super) to: Option<i64>,
    pub(super) peer: Option<Peer>,
    pub(super) used: Use,
}

/// From the first freeze that was asked for to the thaw.
#[derive(Clone, Debug)]
pub(super) struct Freeze {
    pub(super) from: i64,
    pub(super) to: Option<i64>,
    /// Filesystems; `None` until it is done.
    pub(super) count: Option<u64>,
    pub(super) why: String,
}

/// From a start of postern to its end.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) from: i64,
    /// Whether its start is on record.
    pub(super) begun: bool,
    pub(super) to: Option<i64>,
    pub(super) version: String,
    pub(super) policy: String,
    pub(super) privileged: bool,
    /// Why it ended; `None` while it runs, or if it was killed.
    pub(super) ended: Option<String>,
}

/// All that a report says.
#[derive(Debug)]
pub(super) struct Gathered {
    /// All records.
    pub(super) seen: Seen,
    pub(super) total: Use,
    /// Records that were left out because the host repeated itself.
    pub(super) left_out: u64,
    pub(super) paths: Most<Vec<u8>, PathUse>,
    pub(super) events: Most<String, EventUse>,
    /// By whom and why, of everything that was refused.
    pub(super) refusals: Most<String, EventUse>,
    pub(super) days: Most<String, Day>,
    pub(super) sessions: Newest<Session>,
    pub(super) freezes: Newest<Freeze>,
    pub(super) runs: Newest<Run>,
    pub(super) alarms: Alarms,
    pub(super) bins: Bins,
    /// The time of the record before.
    now: i64,
}

impl Default for Gathered {
    fn default() -> Self {
        Self {
            seen: Seen::default(),
            total: Use::default(),
            left_out: 0,
            paths: Most::new(PATHS),
            events: Most::new(OTHERS),
            refusals: Most::new(OTHERS),
            days: Most::new(OTHERS),
            sessions: Newest::new(SPANS),
            freezes: Newest::new(SPANS),
            runs: Newest::new(SPANS),
            alarms: Alarms::default(),
            bins: Bins::default(),
            now: 0,
        }
    }
}

impl Gathered {
    /// Adds a line of the log.
    pub(super) fn add(&mut self, line: &[u8]) {
        let parsed = record::parse(line).and_then(|record| Some((record.time()?.as_microsecond(), record)));
        let Some((at, record)) = parsed else {
            self.alarms.raise(Alarm::NoRecord, self.now, None, 1);
            return;
        };
        let before = std::mem::replace(&mut self.now, at);
        self.seen.at(at, 1);
        self.event(at, &record);
        let used = self.file(at, &record);
        self.total.absorb(&used);
        let day = self.days.of(words::day(at));
        day.seen.at(at, 1);
        day.used.absorb(&used);
        self.span(at, before, &record, &used);
        let alarmed = self.alarms.look(at, &record);
        let lane = match () {
            () if alarmed => Lane::Alarm,
            () if record.is_denied() => Lane::Refused,
            () if used.opened > 0 => Lane::Opened,
            () => Lane::Other,
        };
        self.bins.add(at, lane);
    }

    fn event(&mut self, at: i64, record: &Record<'_>) {
        let count = |event: &mut EventUse| {
            event.seen.at(at, 1);
            event.refused += u64::from(record.is_denied());
            event.failed += u64::from(record.event.outcome == "failure" && !record.is_denied());
        };
        count(self.events.of(bounded(&record.event.action)));
        if record.is_denied() {
            let by = &record.postern.refused_by;
            let by = if by.is_empty() { String::new() } else { format!(" (by {by})") };
            count(self.refusals.of(bounded(&format!("{}: {}{by}", record.event.action, record.event.reason))));
        }
        for (command, times) in record.postern.counts.iter().flatten() {
            let event = self.events.of(bounded(command));
            let sum = if record.event.action == "repeated" {
                self.left_out = self.left_out.saturating_add(*times);
                &mut event.left_out
            } else {
                &mut event.counted
            };
            *sum = sum.saturating_add(*times);
            // When they were counted, not when they were answered.
            event.seen.at(at, 0);
        }
    }

    /// What it says of a file.
    fn file(&mut self, at: i64, record: &Record<'_>) -> Use {
        let ours = &record.postern;
        let used = match (&*record.event.action, &*ours.stage) {
            ("guest-file-open", "granted") => {
                Use { opened: 1, created: u64::from(ours.created == Some(true)), ..Use::default() }
            }
            ("guest-file-open", "refused") => Use { refused: 1, ..Use::default() },
            ("guest-file-close", _) => {
                let used = ours.self_reported.unwrap_or_default();
                let changed = u64::from(ours.after.is_some_and(|after| after.changed));
                Use { changed, read: used.bytes_read, written: used.bytes_written, ..Use::default() }
            }
            _ => return Use::default(),
        };
        let (resolved, requested) = (record.resolved(), record.requested());
        let renamed = used.opened > 0 && requested.is_some() && resolved != requested;
        let Some(mut name) = resolved.or(requested) else { return used };
        name.truncate(PATH_BYTES);
        let path = self.paths.of(name);
        path.seen.at(at, 1);
        path.used.absorb(&used);
        path.renamed += u64::from(renamed);
        if used.opened > 0 {
            path.modes.add(&ours.mode);
        } else if used.refused > 0 {
            path.refused_modes.add(&ours.mode);
        }
        used
    }

    /// Runs, sessions and freezes. `before` is the time of the record before.
    fn span(&mut self, at: i64, before: i64, record: &Record<'_>, used: &Use) {
        let (event, ours) = (&record.event, &record.postern);
        match (&*event.action, &*ours.stage) {
            ("log-opened", _) => self.opened(at, before, record),
            ("stopped", _) => {
                self.end_session(at);
                if let Some(run) = self.runs.last_mut() {
                    (run.to, run.ended) = (Some(at), Some(bounded(&event.reason)));
                }
            }
            ("host-connected", _) => {
                self.end_session(at);
                self.sessions.push(Session { from: Some(at), to: None, peer: ours.peer, used: Use::default() });
            }
            ("host-disconnected", _) => self.end_session(at),
            ("guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list", stage @ ("asked" | "done" | "failed")) => {
                if self.freezes.last_mut().is_none_or(|freeze| freeze.to.is_some()) {
                    self.freezes.push(Freeze { from: at, to: None, count: None, why: String::new() });
                }
                let Some(freeze) = self.freezes.last_mut() else { return };
                match stage {
                    "done" => freeze.count = Some(freeze.count.unwrap_or(0).saturating_add(ours.count.unwrap_or(0))),
                    "failed" => (freeze.to, freeze.why) = (Some(at), bounded(&format!("failed: {}", event.reason))),
                    _ => {}
                }
            }
            ("guest-fsfreeze-thaw", "done" | "failed") => {
                if let Some(freeze) = self.freezes.last_mut().filter(|freeze| freeze.to.is_none()) {
                    (freeze.to, freeze.why) = (Some(at), bounded(&event.reason));
                }
            }
            _ => {}
        }
        if used.opened + used.refused + used.read + used.written > 0 {
            if self.sessions.last_mut().is_none() {
                self.sessions.push(Session { from: None, to: None, peer: None, used: Use::default() });
            }
            if let Some(session) = self.sessions.last_mut() {
                session.used.absorb(used);
            }
        }
    }

    fn opened(&mut self, at: i64, last: i64, record: &Record<'_>) {
        let ours = &record.postern;
        let begun = record.event.reason == "started";
        let mut before = self.runs.last_mut();
        if let Some(before) = &mut before {
            if begun && before.ended.is_none() {
                // The last that is known of it.
                before.to = Some(last);
                self.alarms.raise(Alarm::Killed, at, Some(record.event.sequence), 1);
            }
            if before.policy != ours.policy_digest {
                self.alarms.raise(Alarm::PolicyChanged, at, Some(record.event.sequence), 1);
            }
        }
        if !begun && before.is_some() {
            return;
        }
        self.end_session(last);
        self.runs.push(Run {
            from: at,
            begun,
            to: None,
            version: bounded(&ours.version),
            policy: bounded(&ours.policy_digest),
            privileged: ours.privileged != Some(false),
            ended: None,
        });
    }

    fn end_session(&mut self, at: i64) {
        if let Some(session) = self.sessions.last_mut() {
            session.to.get_or_insert(at);
        }
    }
}

/// A short string of a record, for a table.
fn bounded(text: &str) -> String {
    const MOST: usize = 300;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
