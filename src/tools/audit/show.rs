//! Records as a table that a person can read, or as the lines that they are.
//!
//! Trust: none in the lines. What is printed as table has every control
//! character escaped and, on a terminal, fits its width; lines are printed as
//! they stand, but on a terminal escaped like the table.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};

use postern_core::sys::terminal;
use serde_json::Value;

use super::filter::{FACT_TOLD, Filter, Sieve};
use super::follow::Tail;
use super::lines::{self, Part};
use super::record;
use super::verify::Problem;
use super::words::escape;

/// All records of a log as a table, as wide as the terminal at stdout, or as
/// wide as it needs.
pub fn table(reader: impl BufRead) -> io::Result<String> {
    table_for(reader, &Filter::default(), terminal::columns(io::stdout()))
}

/// The records that `filter` takes as a table of at most `width` characters.
pub fn table_for(mut reader: impl BufRead, filter: &Filter, width: Option<usize>) -> io::Result<String> {
    let mut out = Vec::new();
    let mut printer = Printer::new(filter, Form::Table, width, &mut out);
    printer.heading()?;
    let mut line = Vec::new();
    loop {
        match lines::read(&mut reader, &mut line)? {
            Part::Line => printer.line(&line)?,
            Part::More => printer.more(&line)?,
            Part::End => break,
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// How records are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Table,
    Lines,
}

/// Prints what `filter` takes of `files` to stdout; with `follow` goes on with
/// what is added to the last of them, until it is interrupted.
pub(super) fn run(files: &[PathBuf], filter: &Filter, form: Form, follow: bool) -> Result<(), Problem> {
    let files = lines::oldest_first(files);
    let mut out = BufWriter::new(io::stdout().lock());
    let mut printer = Printer::new(filter, form, terminal::columns(io::stdout()), &mut out);
    match print(&files, &mut printer, follow) {
        // Whoever read the output, such as `head`, has had enough.
        Err((_, source)) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|(file, source)| Problem::Unreadable { file, source }),
    }
}

fn print(files: &[PathBuf], printer: &mut Printer<'_, impl Write>, follow: bool) -> Result<(), (PathBuf, io::Error)> {
    let stdout = |source| (PathBuf::from("stdout"), source);
    printer.heading().map_err(stdout)?;
    let (last, earlier) = files.split_last().map_or((None, files), |(last, earlier)| (Some(last), earlier));
    let (followed, whole) = match last.filter(|last| follow && is_regular(last)) {
        Some(last) => (Some(last), earlier),
        None => (None, files),
    };
    let mut line = Vec::new();
    for file in whole {
        let at = |source| (file.clone(), source);
        let mut input = lines::open(file).map_err(at)?;
        loop {
            // Nobody waits for records that were found, while more are read.
            if input.buffer().is_empty() {
                printer.out.flush().map_err(stdout)?;
            }
            match lines::read(&mut input, &mut line).map_err(at)? {
                Part::Line => printer.line(&line).map_err(stdout)?,
                Part::More => printer.more(&line).map_err(stdout)?,
                Part::End => break,
            }
        }
    }
    if let Some(file) = followed {
        let at = |source| (file.clone(), source);
        let mut tail = Tail::open(file).map_err(at)?;
        loop {
            while let Some(line) = tail.next().map_err(at)? {
                printer.line(line).map_err(stdout)?;
            }
            printer.out.flush().map_err(stdout)?;
            tail.wait(io::stdout()).map_err(at)?;
        }
    }
    printer.out.flush().map_err(stdout)
}

fn is_regular(path: &Path) -> bool {
    !lines::is_stdin(path) && path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// Prints the lines that a filter takes.
struct Printer<'a, W> {
    filter: &'a Filter,
    sieve: Sieve,
    form: Form,
    width: Option<usize>,
    out: W,
}

impl<'a, W: Write> Printer<'a, W> {
    fn new(filter: &'a Filter, form: Form, width: Option<usize>, out: W) -> Self {
        Self { filter, sieve: filter.sieve(), form, width, out }
    }

    fn heading(&mut self) -> io::Result<()> {
        match self.form {
            Form::Table => {
                let heading = columns("TIME (UTC)", "NUMBER", "EVENT", "RESULT", "DETAILS");
                writeln!(self.out, "{}", fit(heading, self.width))
            }
            Form::Lines => Ok(()),
        }
    }

    /// More of a line that is too long for a record: it stands in no row.
    fn more(&mut self, part: &[u8]) -> io::Result<()> {
        let verbatim = self.filter.is_empty() && self.form == Form::Lines && self.width.is_none();
        if verbatim { self.out.write_all(part) } else { Ok(()) }
    }

    /// Where nothing is filtered, what is no record is shown, too.
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let all = self.filter.is_empty();
        let takes = || self.sieve.passes(line) && record::parse(line).is_some_and(|record| self.filter.takes(&record));
        if !all && !takes() {
            return Ok(());
        }
        match self.form {
            Form::Lines if self.width.is_none() => self.out.write_all(line),
            Form::Lines => writeln!(self.out, "{}", escape(text(line).trim_end_matches('\n'))),
            Form::Table => {
                let row = match serde_json::from_slice::<Value>(line) {
                    Ok(value) if value["event"]["action"] == FACT_TOLD && !self.filter.shows_facts() => return Ok(()),
                    Ok(value) if value.is_object() => row(&value),
                    _ => columns("", "", "(no record)", "", &escape(text(line).trim_end_matches('\n'))),
                };
                writeln!(self.out, "{}", fit(row, self.width))
            }
        }
    }
}

fn text(line: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(line)
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
const DETAILS: [(&str, &str); 42] = [
    ("", "/process/name"),
    ("#", "/postern/child"),
    ("pid ", "/process/pid"),
    ("", "/postern/requested"),
    ("", "/file/path"),
    ("", "/postern/command"),
    ("", "/postern/fact"),
    ("mode ", "/postern/mode"),
    ("handle ", "/postern/handle"),
    ("worker ", "/postern/child"),
    ("rule ", "/postern/rule"),
    ("device ", "/file/device"),
    ("inode ", "/file/inode"),
    ("", "/file/type"),
    ("size ", "/file/size"),
    ("read ", "/postern/self_reported/bytes_read"),
    ("wrote ", "/postern/self_reported/bytes_written"),
    ("now ", "/postern/after/size"),
    ("changed ", "/postern/after/changed"),
    ("by ", "/postern/refused_by"),
    ("", "/event/reason"),
    ("tightened ", "/postern/tightened"),
    ("widened ", "/postern/widened"),
    ("still able to ", "/postern/surplus"),
    ("restart for ", "/postern/restart"),
    ("", "/postern/errno"),
    ("status ", "/process/exit_code"),
    ("signal ", "/postern/signal"),
    ("", "/postern/shutdown/mode"),
    ("through ", "/postern/shutdown/method"),
    ("count ", "/postern/count"),
    ("", "/postern/mounts"),
    ("failed ", "/postern/failed"),
    ("left frozen ", "/postern/left"),
    ("left out ", "/postern/left_out"),
    ("", "/postern/removed"),
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
        let Some(value) = member(record, pointer) else { continue };
        // The resolved path only where it is another than the requested one.
        if pointer == "/file/path" && member(record, "/postern/requested") == Some(value) {
            continue;
        }
        // A process by its name, or the worker that asked.
        if pointer == "/postern/child" && (label == "#") == member(record, "/process/name").is_none() {
            continue;
        }
        let arrow = if pointer == "/file/path" && member(record, "/postern/requested").is_some() { "→ " } else { "" };
        let separator = if out.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        _ = write!(out, "{separator}{arrow}{label}{}", plain(value));
    }
    out
}

/// A member by its path. Not [`Value::pointer`], which makes a string of every
/// part: there are many members, and a log is long.
fn member<'a>(record: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').skip(1).try_fold(record, |value, name| value.get(name))
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
