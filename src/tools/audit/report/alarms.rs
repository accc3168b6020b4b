//! What in a log somebody must look at, as a table.
//!
//! Trust: none in the records.

use super::super::record::Record;
use super::gather::Seen;

/// Number of SIGSYS: a filter stopped the process.
const SIGSYS: i64 = 31;

/// A reason to look, by its row in [`KINDS`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Alarm {
    NoRecord,
    Lost,
    Torn,
    Forbidden,
    Malformed,
    Stranger,
    FoundFrozen,
    ThawFailed,
    Unprivileged,
    Killed,
    Died,
    TimeLimit,
    PolicyChanged,
    LogRemoved,
}

/// What the count counts, and what it means.
pub(super) const KINDS: [(&str, &str); 14] = [
    (
        "lines that are no record",
        "somebody else wrote to the log, or a disk or machine failed in the middle of a write",
    ),
    ("records lost", "events without a record: no room while frozen, or not written and therefore refused"),
    ("bytes of torn records", "a full disk or a crash cut a line; the record behind it accounts for it"),
    ("forbidden system calls", "a process of postern was ended by its filter: take it for taken over"),
    ("malformed frames", "a process of postern sent what no sound one sends: take it for taken over"),
    ("strangers", "others than the host connected, and were closed at once"),
    ("starts that found filesystems frozen", "an earlier run froze them, or was about to, and ended before their thaw"),
    ("thaws that failed", "filesystems may still be frozen: the record names them"),
    ("runs without every barrier", "development runs: nothing here was enforced as in production"),
    ("runs without an end", "postern was killed, or the machine stopped without warning"),
    ("processes died", "a worker, an opener or the spawner ended by itself; it was replaced"),
    ("thaws at the time limit", "the host froze filesystems and did not come back in time"),
    ("changes of policy", "the log was opened under another policy than before"),
    ("rotated files removed", "postern removed files of its log that were older than the policy keeps"),
];

/// How often each, when, and where first.
#[derive(Debug, Default)]
pub(super) struct Alarms([(Seen, Option<u64>); KINDS.len()]);

/// A row for the report.
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) means: &'static str,
    pub(super) seen: Seen,
    /// Number of the first record.
    pub(super) number: Option<u64>,
}

impl Alarms {
    pub(super) fn raise(&mut self, alarm: Alarm, at: i64, number: Option<u64>, times: u64) {
        let (seen, first) = &mut self.0[alarm as usize];
        if seen.count == 0 {
            *first = number;
        }
        seen.at(at, times);
    }

    /// Whether a record is a reason to look.
    pub(super) fn look(&mut self, at: i64, record: &Record<'_>) -> bool {
        let ours = &record.postern;
        let lost = ours.lost.unwrap_or(0).saturating_add(ours.unwritten.unwrap_or(0));
        let torn = ours.torn.map_or(0, |torn| torn.bytes);
        let found = match &*record.event.action {
            "process-died" if ours.signal == Some(SIGSYS) => Some((Alarm::Forbidden, 1)),
            "process-died" => Some((Alarm::Died, 1)),
            "malformed-frame" => Some((Alarm::Malformed, 1)),
            "host-refused" => Some((Alarm::Stranger, ours.count.unwrap_or(1))),
            "found-frozen" => Some((Alarm::FoundFrozen, 1)),
            "log-removed" => Some((Alarm::LogRemoved, 1)),
            "guest-fsfreeze-thaw" if ours.stage == "failed" => Some((Alarm::ThawFailed, 1)),
            "log-opened" if ours.privileged == Some(false) && record.event.reason == "started" => {
                Some((Alarm::Unprivileged, 1))
            }
            "guest-fsfreeze-thaw" if record.event.reason == "the time limit passed" => Some((Alarm::TimeLimit, 1)),
            _ => None,
        };
        let all = [found, (lost > 0).then_some((Alarm::Lost, lost)), (torn > 0).then_some((Alarm::Torn, torn))];
        for (alarm, times) in all.into_iter().flatten() {
            self.raise(alarm, at, Some(record.event.sequence), times);
        }
        all.iter().any(Option::is_some)
    }

    /// What there is, gravest first.
    pub(super) fn rows(&self) -> impl Iterator<Item = Row> {
        KINDS.iter().zip(&self.0).filter(|(_, (seen, _))| seen.count > 0).map(|((what, means), (seen, number))| Row {
            what,
            means,
            seen: *seen,
            number: *number,
        })
    }
}
