//! The tables of what lasted: sessions, freezes, runs.
//!
//! Trust: cells hold hostile text; who shows them escapes them.

use super::super::words::{number, span};
use super::Page;
use super::most::Newest;
use super::tables::{Cell, Kind, Table, text};

/// The newest rows, oldest first, and how many are older.
fn newest<'a, T>(
    list: &'a Newest<T>,
    top: usize,
    row: impl Fn(&'a T) -> Vec<Cell<'a>>,
) -> (Vec<Vec<Cell<'a>>>, Vec<String>) {
    let mut rows: Vec<_> = list.iter().rev().take(top).map(row).collect();
    rows.reverse();
    let older = list.count() - rows.len() as u64;
    let notes = (older > 0).then(|| format!("{} earlier ones are not shown.", number(older)));
    (rows, notes.into_iter().collect())
}

fn length(from: Option<i64>, to: Option<i64>) -> Cell<'static> {
    text(from.zip(to).map_or_else(String::new, |(from, to)| span(to.saturating_sub(from))))
}

pub(super) fn sessions<'a>(page: &Page<'a>) -> Table<'a> {
    let (rows, notes) = newest(&page.gathered.sessions, page.top, |session| {
        let peer = match (session.from, session.peer) {
            (_, Some(peer)) => format!("uid {}, pid {}", peer.uid, peer.pid),
            (Some(_), None) => "a port, without credentials".to_owned(),
            (None, None) => "its connection is not on record".to_owned(),
        };
        let used = &session.used;
        vec![
            Cell::Time(session.from),
            Cell::Time(session.to),
            length(session.from, session.to),
            Cell::Count(used.opened),
            Cell::Count(used.refused),
            Cell::Bytes(used.read),
            Cell::Bytes(used.written),
            text(peer),
        ]
    });
    Table {
        id: "sessions",
        title: "Host sessions",
        columns: &[
            ("From", Kind::Words),
            ("To", Kind::Words),
            ("Length", Kind::Words),
            ("Opened", Kind::Numbers),
            ("Refused", Kind::Numbers),
            ("Read*", Kind::Numbers),
            ("Written*", Kind::Numbers),
            ("Who", Kind::Name),
        ],
        rows,
        notes,
        empty: "No host connected.",
    }
}

pub(super) fn freezes<'a>(page: &Page<'a>) -> Table<'a> {
    let (rows, notes) = newest(&page.gathered.freezes, page.top, |freeze| {
        vec![
            Cell::Time(Some(freeze.from)),
            Cell::Time(freeze.to),
            length(Some(freeze.from), freeze.to),
            Cell::Count(freeze.count.unwrap_or(0)),
            text(if freeze.to.is_none() { "not thawed on record" } else { &freeze.why }),
        ]
    });
    Table {
        id: "freezes",
        title: "Freezes",
        columns: &[
            ("Frozen", Kind::Words),
            ("Thawed", Kind::Words),
            ("Length", Kind::Words),
            ("Filesystems", Kind::Numbers),
            ("Thawed because", Kind::Name),
        ],
        rows,
        notes,
        empty: "No filesystem was frozen.",
    }
}

pub(super) fn runs<'a>(page: &Page<'a>) -> Table<'a> {
    let (rows, notes) = newest(&page.gathered.runs, page.top, |run| {
        let policy: String = run.policy.chars().take(16).collect();
        vec![
            Cell::Time(run.begun.then_some(run.from)),
            Cell::Time(run.to),
            text(run.version.as_str()),
            text(if run.privileged { "all" } else { "not all" }),
            text(run.ended.as_deref().unwrap_or("no end on record")),
            text(policy),
        ]
    });
    Table {
        id: "runs",
        title: "Runs of postern",
        columns: &[
            ("Started", Kind::Words),
            ("Ended", Kind::Words),
            ("Version", Kind::Words),
            ("Barriers", Kind::Words),
            ("End", Kind::Words),
            ("Policy, first digits of its SHA-256", Kind::Name),
        ],
        rows,
        notes,
        empty: "No start of postern is on record.",
    }
}
