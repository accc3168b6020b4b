//! The report as data: facts, and tables with their columns, for text and page
//! alike.
//!
//! Trust: cells hold hostile text; who shows them escapes them.

use std::borrow::Cow;

use super::super::words::{bytes, number, s, span, time};
use super::gather::{EventUse, PathUse, Seen, Use};
use super::most::Top;
use super::{Page, spans};

/// What stands below every table with a column that is marked so.
pub(super) const OWN_WORD: &str = "* the worker's own word, and the worker is assumed to fall";

/// What a column of the table of events counts.
const LEFT_OUT: &str =
    "Left out: records that the log did not take because the host repeated itself; the broker's count.";

/// One cell.
#[derive(Clone, Debug)]
pub(super) enum Cell<'a> {
    /// Text, hostile or not.
    Text(Cow<'a, str>),
    /// A path in its own bytes.
    Path(&'a [u8]),
    /// A number; 0 is left empty.
    Count(u64),
    /// Bytes; 0 is left empty.
    Bytes(u64),
    /// Microseconds since 1970.
    Time(Option<i64>),
}

/// How a column looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Words,
    /// The one of which a row is; the last where lines have to fit.
    Name,
    Numbers,
}

/// A table, ready to be shown.
#[derive(Debug)]
pub(super) struct Table<'a> {
    /// For links within a page.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    pub(super) rows: Vec<Vec<Cell<'a>>>,
    /// What is not in the rows.
    pub(super) notes: Vec<String>,
    /// Said where there is no row.
    pub(super) empty: &'static str,
}

impl Table<'_> {
    /// Whether a column is the worker's word.
    pub(super) fn is_own_word(&self) -> bool {
        self.columns.iter().any(|(name, _)| name.ends_with('*'))
    }
}

pub(super) fn text<'a>(text: impl Into<Cow<'a, str>>) -> Cell<'a> {
    Cell::Text(text.into())
}

fn first(seen: &Seen) -> Cell<'static> {
    Cell::Time((seen.first <= seen.last).then_some(seen.first))
}

fn last(seen: &Seen) -> Cell<'static> {
    Cell::Time((seen.first <= seen.last).then_some(seen.last))
}

/// The figures at the top: value, name, remark.
pub(super) fn figures(page: &Page<'_>) -> Vec<(String, &'static str, String)> {
    let all = page.gathered;
    let known = all.paths.top(0, |path| path.used.opened > 0).others;
    let more = if all.paths.folded().0 > 0 { "at least " } else { "" };
    let files = format!("{more}{} file{}", number(known), s(known));
    let created = if all.total.created > 0 { format!("{} created", number(all.total.created)) } else { String::new() };
    let frozen = all.freezes.iter().filter(|freeze| freeze.to.is_none()).count();
    let frozen = if frozen > 0 { "the last is not thawed".to_owned() } else { String::new() };
    let runs = all.runs.count();
    let left_out = match all.left_out {
        0 => String::new(),
        count => format!("{} repeated events were only counted", number(count)),
    };
    vec![
        (number(all.total.opened), "opens granted", join([files, created])),
        (number(all.total.refused), "opens refused", left_out),
        (bytes(all.total.read), "read*", String::new()),
        (bytes(all.total.written), "written*", String::new()),
        (number(all.sessions.count()), "host sessions", String::new()),
        (number(all.freezes.count()), "freezes", frozen),
        (number(all.seen.count), "records", format!("{} run{} of postern", number(runs), s(runs))),
    ]
}

fn join<const N: usize>(parts: [String; N]) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// From when to when.
pub(super) fn period(page: &Page<'_>) -> Option<String> {
    let seen = page.gathered.seen;
    (seen.count > 0).then(|| {
        format!("{} to {} UTC, {}", time(seen.first), time(seen.last), span(seen.last.saturating_sub(seen.first)))
    })
}

/// All tables, in the order in which they are read.
pub(super) fn all<'a>(page: &Page<'a>) -> Vec<Table<'a>> {
    vec![
        alarms(page),
        paths(page, true),
        paths(page, false),
        refusals(page),
        events(page),
        days(page),
        spans::sessions(page),
        spans::freezes(page),
        spans::runs(page),
    ]
}

fn alarms<'a>(page: &Page<'a>) -> Table<'a> {
    let rows = page.gathered.alarms.rows().map(|row| {
        let number = row.number.map_or_else(String::new, |number| format!("record {number}"));
        let (first, last) = (first(&row.seen), last(&row.seen));
        vec![text(row.what), Cell::Count(row.seen.count), first, last, text(number), text(row.means)]
    });
    Table {
        id: "look",
        title: "To look at",
        columns: &[
            ("What", Kind::Words),
            ("How many", Kind::Numbers),
            ("First", Kind::Words),
            ("Last", Kind::Words),
            ("At", Kind::Words),
            ("What it means", Kind::Name),
        ],
        rows: rows.collect(),
        notes: Vec::new(),
        empty: "Nothing: no record lost, no process ended by its filter, no stranger.",
    }
}

fn paths<'a>(page: &Page<'a>, opened: bool) -> Table<'a> {
    let all = &page.gathered.paths;
    let top = all.top(page.top, |path| (path.used.opened > 0 || path.used.refused == 0) == opened);
    let rows = top.rows.iter().map(|(name, path)| {
        let modes = |path: &PathUse| text(if opened { path.modes } else { path.refused_modes }.names().join(" "));
        let (used, first, last) = (&path.used, first(&path.seen), last(&path.seen));
        let mut row = vec![Cell::Path(name.as_slice())];
        if opened {
            row.extend([Cell::Count(used.opened), Cell::Count(used.changed)]);
        }
        row.extend([Cell::Count(used.refused), modes(path)]);
        if opened {
            row.extend([Cell::Bytes(used.read), Cell::Bytes(used.written), Cell::Count(path.renamed)]);
        }
        row.extend([first, last]);
        row
    });
    let rows = rows.collect();
    let mut notes = Vec::new();
    more(&mut notes, &top, |rest| amounts(&rest.used));
    let (folded, rest) = all.folded();
    if folded > 0 {
        notes.push(format!(
            "More paths than are kept by name: {} with the fewest opens were given up and are only summed up here: {}. \
             One that came back later begins anew, so that its own figures are too low.",
            number(folded),
            amounts(&rest.used)
        ));
    }
    Table {
        id: if opened { "opened" } else { "refused" },
        title: if opened { "Files that were opened" } else { "Paths that were only refused" },
        columns: if opened {
            &[
                ("File, as the kernel resolved it", Kind::Name),
                ("Opened", Kind::Numbers),
                ("Changed", Kind::Numbers),
                ("Refused", Kind::Numbers),
                ("Modes", Kind::Words),
                ("Read*", Kind::Numbers),
                ("Written*", Kind::Numbers),
                ("Through links", Kind::Numbers),
                ("First", Kind::Words),
                ("Last", Kind::Words),
            ]
        } else {
            &[
                ("Path, as the host asked for it", Kind::Name),
                ("Refused", Kind::Numbers),
                ("Modes", Kind::Words),
                ("First", Kind::Words),
                ("Last", Kind::Words),
            ]
        },
        rows,
        notes,
        empty: if opened { "No file was opened." } else { "No open was refused." },
    }
}

/// Says how much a table leaves out.
fn more<K, V>(notes: &mut Vec<String>, top: &Top<'_, K, V>, amounts: impl Fn(&V) -> String) {
    if top.others > 0 {
        notes.push(format!("{} more, with {}; --top N shows them.", number(top.others), amounts(&top.rest)));
    }
}

fn amounts(used: &Use) -> String {
    let read = if used.read > 0 { format!("{} read*", bytes(used.read)) } else { String::new() };
    let written = if used.written > 0 { format!("{} written*", bytes(used.written)) } else { String::new() };
    let counts = [(used.opened, "opened"), (used.refused, "refused")];
    let [opened, refused] =
        counts.map(|(count, what)| if count > 0 { format!("{} {what}", number(count)) } else { String::new() });
    let all = join([opened, refused, read, written]);
    if all.is_empty() { "nothing opened".to_owned() } else { all }
}

fn refusals<'a>(page: &Page<'a>) -> Table<'a> {
    let top = page.gathered.refusals.top(page.top, |_| true);
    let row = |(why, event): &(&'a String, &EventUse)| {
        vec![text(why.as_str()), Cell::Count(event.seen.count), first(&event.seen), last(&event.seen)]
    };
    Table {
        id: "why",
        title: "Why something was refused",
        columns: &[
            ("What and why", Kind::Name),
            ("How often", Kind::Numbers),
            ("First", Kind::Words),
            ("Last", Kind::Words),
        ],
        rows: top.rows.iter().map(row).collect(),
        notes: others(&top, page.gathered.refusals.folded()),
        empty: "Nothing was refused.",
    }
}

fn events<'a>(page: &Page<'a>) -> Table<'a> {
    let top = page.gathered.events.top(page.top, |_| true);
    let row = |(name, event): &(&'a String, &EventUse)| {
        let counts = [event.seen.count, event.refused, event.failed, event.left_out, event.counted].map(Cell::Count);
        [vec![text(name.as_str())], counts.to_vec(), vec![first(&event.seen), last(&event.seen)]].concat()
    };
    Table {
        id: "commands",
        title: "Commands and events",
        columns: &[
            ("Command or event", Kind::Name),
            ("Records", Kind::Numbers),
            ("Refused", Kind::Numbers),
            ("Failed", Kind::Numbers),
            ("Left out", Kind::Numbers),
            ("Only counted*", Kind::Numbers),
            ("First", Kind::Words),
            ("Last", Kind::Words),
        ],
        rows: top.rows.iter().map(row).collect(),
        notes: [LEFT_OUT.to_owned()].into_iter().chain(others(&top, page.gathered.events.folded())).collect(),
        empty: "There is no record.",
    }
}

fn others<K>(top: &Top<'_, K, EventUse>, (folded, rest): (u64, &EventUse)) -> Vec<String> {
    let mut notes = Vec::new();
    more(&mut notes, top, |rest| format!("{} records", number(rest.seen.count)));
    if folded > 0 {
        notes.push(format!(
            "{} of the rarest were given up, with {} records.",
            number(folded),
            number(rest.seen.count)
        ));
    }
    notes
}

fn days<'a>(page: &Page<'a>) -> Table<'a> {
    let mut top = page.gathered.days.top(page.top, |_| true);
    top.rows.sort_by_key(|(day, _)| *day);
    let rows = top.rows.iter().map(|(day, of)| {
        let used = &of.used;
        let counts = [of.seen.count, used.opened, used.refused].map(Cell::Count);
        [vec![text(day.as_str())], counts.to_vec(), vec![Cell::Bytes(used.read), Cell::Bytes(used.written)]].concat()
    });
    let rows = rows.collect();
    let mut notes = Vec::new();
    more(&mut notes, &top, |rest| amounts(&rest.used));
    let (folded, rest) = page.gathered.days.folded();
    if folded > 0 {
        notes.push(format!("{} earlier days were given up, with {}.", number(folded), amounts(&rest.used)));
    }
    Table {
        id: "days",
        title: "Days",
        columns: &[
            ("Day, UTC", Kind::Name),
            ("Records", Kind::Numbers),
            ("Opened", Kind::Numbers),
            ("Refused", Kind::Numbers),
            ("Read*", Kind::Numbers),
            ("Written*", Kind::Numbers),
        ],
        rows,
        notes,
        empty: "There is no record.",
    }
}
