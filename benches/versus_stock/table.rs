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

/// A median, and how far the middle half of all turns spreads around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    median: f64,
    /// Between the quartiles; none of a single figure.
    spread: Option<f64>,
}

impl Figure {
    pub(crate) fn of(mut all: Vec<f64>) -> Option<Self> {
        all.sort_unstable_by(f64::total_cmp);
        let at = |quarter: usize| all.get((all.len() * quarter / 4).min(all.len().checked_sub(1)?)).copied();
        let spread = (all.len() > 2).then(|| Some(at(3)? - at(1)?)).flatten();
        Some(Self { median: at(2)?, spread })
    }

    /// One that was taken once.
    pub(crate) const fn one(median: f64) -> Self {
        Self { median, spread: None }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = if self.median < 1.0 { 3 } else { usize::from(self.median < 100.0) };
        write!(f, "{:.places$}", self.median)?;
        match self.spread {
            Some(spread) => write!(f, " ±{:.0} %", spread / 2.0 / self.median * 100.0),
            None => Ok(()),
        }
    }
}

struct Row {
    what: String,
    unit: &'static str,
    better: Better,
    /// Stock's, ours, the floor program's.
    figures: [Option<Figure>; 3],
}

/// All figures, and what could not be done.
pub(crate) struct Table {
    versions: [String; 2],
    machine: String,
    notes: Vec<String>,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(place: &Place) -> Self {
        let versions = Which::BOTH.map(|which| {
            let output = Command::new(place.program(which)).arg("--version").output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
        });
        let mut table = Self { versions, machine: machine(), notes: Vec::new(), rows: Vec::new() };
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
        figures: [Option<Figure>; 3],
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

/// Processor, kernel, and how busy the machine is.
fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let processors = info.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    format!(
        "{processors} processors ({}), kernel {}, load {}",
        model.trim_start_matches(['\t', ' ', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or_default()
    )
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stock, postern] = &self.versions;
        writeln!(f, "Stock: {stock}. Ours: {postern}. {}.", self.machine)?;
        writeln!(f, "Medians of turns, ± half of what is between the quartiles. Ratios above 1 speak for postern.\n")?;
        writeln!(f, "| what | unit | stock | postern | floor | to stock | to the floor |")?;
        writeln!(f, "|---|---|---:|---:|---:|---:|---:|")?;
        for Row { what, unit, better, figures } in &self.rows {
            let [stock, postern, floor] = figures.map(|figure| figure.map_or_else(String::new, |one| one.to_string()));
            let ratio = |other: Option<Figure>| match (better, figures[1], other) {
                (Better::Less, Some(ours), Some(other)) => format!("{:.2}", other.median / ours.median),
                (Better::More, Some(ours), Some(other)) => format!("{:.2}", ours.median / other.median),
                _ => String::new(),
            };
            let (to_stock, to_floor) = (ratio(figures[0]), ratio(figures[2]));
            writeln!(f, "| {what} | {unit} | {stock} | {postern} | {floor} | {to_stock} | {to_floor} |")?;
        }
        for note in &self.notes {
            write!(f, "\nCould not {note}.")?;
        }
        Ok(())
    }
}
