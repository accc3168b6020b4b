//! The table, as Markdown.

use std::fmt;
use std::process::Command;

use super::agents::{Place, Which};

/// Which way a figure is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

struct Row {
    what: String,
    unit: &'static str,
    better: Better,
    /// Stock's, ours.
    figures: [Option<f64>; 2],
}

/// All figures, and what could not be done.
pub(crate) struct Table {
    versions: [String; 2],
    notes: Vec<String>,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(place: &Place) -> Self {
        let versions = Which::BOTH.map(|which| {
            let output = Command::new(place.program(which)).arg("--version").output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
        });
        let mut table = Self { versions, notes: Vec::new(), rows: Vec::new() };
        if !place.root {
            table.could_not("run postern with accounts and capabilities of its own; root can".to_owned());
        }
        if !place.tmpfs {
            table.could_not("use /dev/shm; files, log and state are on a disk".to_owned());
        }
        table
    }

    pub(crate) fn add(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        better: Better,
        figures: [Option<f64>; 2],
    ) {
        self.rows.push(Row { what: what.into(), unit, better, figures });
    }

    /// Notes what this run could not do.
    pub(crate) fn could_not(&mut self, what: String) {
        if !self.notes.contains(&what) {
            self.notes.push(what);
        }
    }
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "?".to_owned(),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stock, postern] = &self.versions;
        writeln!(f, "Stock: {stock}. Ours: {postern}. Better by more than 1 speaks for postern.\n")?;
        writeln!(f, "| what | unit | stock | postern | better by |\n|---|---|---:|---:|---:|")?;
        for Row { what, unit, better, figures } in &self.rows {
            let [stock, postern] = figures.map(figure);
            let ratio = match (better, figures) {
                (Better::Less, [Some(stock), Some(postern)]) => format!("{:.2}", stock / postern),
                (Better::More, [Some(stock), Some(postern)]) => format!("{:.2}", postern / stock),
                _ => "?".to_owned(),
            };
            writeln!(f, "| {what} | {unit} | {stock} | {postern} | {ratio} |")?;
        }
        for note in &self.notes {
            write!(f, "\nCould not {note}.")?;
        }
        Ok(())
    }
}
