//! Records as a table that a person can read.
//!
//! Trust: none in the lines. What is printed as table has every control
//! character escaped and, on a terminal, fits its width.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use postern_core::sys::terminal;
use serde_json::Value;

use super::lines;
use super::verify::Problem;

/// Which records to show; all that are not given mean any.
#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Records about this path or one beneath it, requested or resolved
    #[arg(long, value_name = "PREFIX")]
    pub path: Option<PathBuf>,
    /// Records of this command or event, such as guest-file-open or process-died
    #[arg(long, value_name = "NAME")]
    pub command: Option<String>,
    /// Records with this outcome
    #[arg(long)]
    pub outcome: Option<Outcome>,
    /// Records from this time on: 2025-11-22, or with time, UTC unless it says otherwise
    #[arg(long, value_name = "T", value_parser = time)]
    pub since: Option<Timestamp>,
    /// Records before this time
    #[arg(long, value_name = "T", value_parser = time)]
    pub until: Option<Timestamp>,
}

/// `event.outcome`; the third, `unknown`, is what was only asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Outcome {
    /// It was done or granted.
    Success,
    /// It was refused or failed.
    Failure,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let civil: DateTime = text
        .parse()
        .map_err(|_| "write a date or a time, such as 2025-11-22 or 2025-11-22T13:05:00+01:00".to_owned())?;
    civil.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
}

impl Filter {
    fn takes(&self, record: &Value) -> bool {
        let event = &record["event"];
        let at = || record["@timestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let beneath =
            |value: &Value, prefix: &Path| value.as_str().is_some_and(|path| Path::new(path).starts_with(prefix));
        self.path.as_ref().is_none_or(|prefix| {
            beneath(&record["file"]["path"], prefix) || beneath(&record["postern"]["requested"], prefix)
        }) && self.command.as_ref().is_none_or(|name| event["action"] == name.as_str())
            && self.outcome.is_none_or(|outcome| event["outcome"] == outcome.name())
            && self.since.is_none_or(|since| at().is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| at().is_some_and(|at| at < until))
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self { path: None, command: None, outcome: None, since: None, until: None })
    }
}

/// All records of a log as a table, as wide as the terminal at stdout, or as
/// wide as it needs.
pub fn table(reader: impl BufRead) -> io::Result<String> {
    table_for(reader, &Filter::default(), terminal::columns(io::stdout()))
}

/// The records that `filter` takes as a table of at most `width` characters.
pub fn table_for(mut reader: impl BufRead, filter: &Filter, width: Option<usize>) -> io::Result<String> {
    let mut out = Vec::new();
    writeln!(out, "{}", heading(width))?;
    rows(&mut reader, filter, width, &mut out)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

pub(super) fn run(files: &[PathBuf], filter: &Filter, json: bool) -> Result<(), Problem> {
    let width = terminal::columns(io::stdout());
    let mut out = BufWriter::new(io::stdout().lock());
    let mut print = || {
        if !json {
            writeln!(out, "{}", heading(width)).map_err(|source| (PathBuf::from("stdout"), source))?;
        }
        for file in files {
            let at = |source| (file.clone(), source);
            let mut reader = lines::open(file).map_err(at)?;
            if json { raw(reader.as_mut(), filter, &mut out) } else { rows(reader.as_mut(), filter, width, &mut out) }
                .map_err(at)?;
        }
        out.flush().map_err(|source| (PathBuf::from("stdout"), source))
    };
    match print() {
        // Whoever read the output, such as `head`, has had enough.
        Err((_, source)) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|(file, source)| Problem::Unreadable { file, source }),
    }
}

fn raw(reader: &mut dyn BufRead, filter: &Filter, out: &mut dyn Write) -> io::Result<()> {
    loop {
        let line = lines::next(reader)?;
        if line.is_empty() {
            return Ok(());
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        if serde_json::from_slice(line).is_ok_and(|record| filter.takes(&record)) {
            out.write_all(line)?;
            out.write_all(b"\n")?;
        }
    }
}

fn rows(reader: &mut dyn BufRead, filter: &Filter, width: Option<usize>, out: &mut dyn Write) -> io::Result<()> {
    loop {
        let line = lines::next(reader)?;
        if line.is_empty() {
            return Ok(());
        }
        match serde_json::from_slice::<Value>(&line) {
            Ok(record) if record.is_object() && filter.takes(&record) => {
                writeln!(out, "{}", fit(row(&record), width))?;
            }
            Ok(record) if record.is_object() => {}
            // What is no record is shown where nothing was filtered.
            _ if filter.is_empty() => {
                let text = escape(String::from_utf8_lossy(&line).trim_end_matches('\n'));
                writeln!(out, "{}", fit(columns("", "", "(no record)", "", &text), width))?;
            }
            _ => {}
        }
    }
}

fn heading(width: Option<usize>) -> String {
    fit(columns("TIME (UTC)", "NUMBER", "EVENT", "RESULT", "DETAILS"), width)
}

fn columns(time: &str, number: &str, event: &str, result: &str, details: &str) -> String {
    format!("{time:<23} {number:>6} {event:<26} {result:<8} {details}").trim_end().to_owned()
}

fn row(record: &Value) -> String {
    let (event, ours) = (&record["event"], &record["postern"]);
    // 2025-01-02T03:04:05.678901Z: a space for the T, milliseconds.
    let time: String = plain(&record["@timestamp"]).replacen('T', " ", 1).chars().take(23).collect();
    let result = if ours["stage"].is_null() { plain(&event["outcome"]) } else { plain(&ours["stage"]) };
    columns(&time, &plain(&event["sequence"]), &plain(&event["action"]), &result, &details(record))
}

/// Members that a row shows, in this order: before the value, where it stands.
const DETAILS: [(&str, &str); 31] = [
    ("", "/process/name"),
    ("#", "/postern/child"),
    ("pid ", "/process/pid"),
    ("", "/postern/requested"),
    ("", "/file/path"),
    ("", "/postern/command"),
    ("mode ", "/postern/mode"),
    ("handle ", "/postern/handle"),
    ("rule ", "/postern/rule"),
    ("device ", "/file/device"),
    ("inode ", "/file/inode"),
    ("", "/file/type"),
    ("size ", "/file/size"),
    ("read ", "/postern/self_reported/bytes_read"),
    ("wrote ", "/postern/self_reported/bytes_written"),
    ("by ", "/postern/refused_by"),
    ("", "/event/reason"),
    ("", "/postern/errno"),
    ("status ", "/process/exit_code"),
    ("signal ", "/postern/signal"),
    ("", "/postern/shutdown/mode"),
    ("through ", "/postern/shutdown/method"),
    ("count ", "/postern/count"),
    ("", "/postern/mounts"),
    ("failed ", "/postern/failed"),
    ("", "/postern/counts"),
    ("lost ", "/postern/lost"),
    ("unwritten ", "/postern/unwritten"),
    ("peer pid ", "/postern/peer/pid"),
    ("uid ", "/postern/peer/uid"),
    ("version ", "/postern/version"),
];

fn details(record: &Value) -> String {
    let mut out = String::new();
    for (label, pointer) in DETAILS {
        let Some(value) = record.pointer(pointer) else { continue };
        // The resolved path only where it is another than the requested one.
        if pointer == "/file/path" && record.pointer("/postern/requested") == Some(value) {
            continue;
        }
        let arrow = if pointer == "/file/path" && record.pointer("/postern/requested").is_some() { "→ " } else { "" };
        let separator = if out.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        _ = write!(out, "{separator}{arrow}{label}{}", plain(value));
    }
    out
}

/// A value as text of one line.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escape(text),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| format!("{} {}", escape(name), plain(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

/// Nothing in `text` moves a cursor or turns the direction of text.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        if postern_core::audit::is_harmful(character) {
            _ = write!(out, "\\u{{{:x}}}", u32::from(character));
        } else {
            out.push(character);
        }
        out
    })
}

/// Cuts a row to the width of the terminal. Every character counts as one
/// column; only the last column of the table holds any that may take two.
fn fit(mut row: String, width: Option<usize>) -> String {
    let Some(width) = width else { return row };
    if let Some((keep, _)) = row.char_indices().nth(width.saturating_sub(1))
        && row[keep..].chars().nth(1).is_some()
    {
        row.truncate(keep);
        row.push('…');
    }
    row
}
