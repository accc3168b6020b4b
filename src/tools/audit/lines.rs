//! Lines of log files, bounded, and what makes one a record of the chain.
//!
//! Trust: the bytes are anyone's.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use postern_core::audit::{Hash, MAX_LINE, Seal, sequence_of};
use serde_json::Value;

/// What is read at once: enough that reading costs little, and little enough
/// that the first lines of a pipe are seen at once.
const AT_ONCE: usize = 64 << 10;

/// The first two bytes of what `gzip` and logrotate's `compress` make.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A file, or standard input.
pub(super) type Input = BufReader<Box<dyn Read>>;

/// Opens a file, or standard input for `-`. What is compressed is refused, with
/// the command that reads it.
pub(super) fn open(path: &Path) -> io::Result<Input> {
    let source: Box<dyn Read> = if is_stdin(path) {
        Box::new(io::stdin())
    } else {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Box::new(file)
    };
    let mut input = BufReader::with_capacity(AT_ONCE, source);
    if !is_stdin(path) && input.fill_buf()?.starts_with(&GZIP) {
        return Err(io::Error::other("it is compressed: zcat -f OLDEST … NEWEST | postern audit … - reads it"));
    }
    Ok(input)
}

/// Whether a file's name stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// The files, oldest first by the number of their first records, so that
/// `audit.jsonl*` can be given. In the order given where one of them is no
/// regular file or does not begin with a record.
pub(super) fn oldest_first(files: &[PathBuf]) -> Vec<PathBuf> {
    let numbers: Option<Vec<u64>> = files.iter().map(|file| first_number(file)).collect();
    let Some(numbers) = numbers else { return files.to_vec() };
    let mut order: Vec<_> = numbers.into_iter().zip(files).collect();
    order.sort_by_key(|(number, _)| *number);
    order.into_iter().map(|(_, file)| file.clone()).collect()
}

/// The number of a regular file's first record.
pub(super) fn first_number(path: &Path) -> Option<u64> {
    if is_stdin(path) || !path.metadata().ok()?.is_file() {
        return None;
    }
    sequence_of(&next(&mut open(path).ok()?).ok()?)
}

/// What [`read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A line with its newline, if it has one; of a line that is longer than any
    /// record, its beginning.
    Line,
    /// More of such a line, which is no line of its own, whatever it looks like.
    More,
    /// Nothing: the end.
    End,
}

/// The first line; empty if there is none.
fn next(reader: &mut dyn BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    read(reader, &mut line)?;
    Ok(line)
}

/// The next line, or part of one, into a buffer that still holds what was read
/// before it where that was no record.
pub(super) fn read(reader: &mut (impl BufRead + ?Sized), line: &mut Vec<u8>) -> io::Result<Part> {
    let inside = line.len() > MAX_LINE && line.last() != Some(&b'\n');
    line.clear();
    reader.take(MAX_LINE as u64 + 1).read_until(b'\n', line)?;
    Ok(match (line.is_empty(), inside) {
        (true, _) => Part::End,
        (false, true) => Part::More,
        (false, false) => Part::Line,
    })
}

/// What the chain needs of a line.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) previous: Hash,
    pub(super) hash: Hash,
    /// Length and hash of the torn bytes before it, as it claims.
    pub(super) torn: Option<(u64, Hash)>,
    /// Records that it says were lost.
    pub(super) lost: u64,
    /// Whether it is the first of its file or of its run.
    pub(super) opens: bool,
}

/// The record that a line is, if it is no longer than any, begins and ends as
/// records do and has no control character. What is between is not parsed, for the next record vouches
/// for every byte of it; where none was written by the same run, see [`is_record`].
pub(super) fn link(line: &[u8]) -> Option<Link> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let seal = seal(line)?;
    Some(Link {
        sequence: seal.sequence,
        previous: seal.previous,
        hash: Hash::of(line),
        torn: seal.torn,
        lost: if seal.body.starts_with(b"\"action\":\"records-lost\"") { lost(line) } else { 0 },
        opens: seal.body.starts_with(b"\"action\":\"log-opened\""),
    })
}

fn seal(line: &[u8]) -> Option<Seal<'_>> {
    Seal::of(line).filter(|_| line.len() <= MAX_LINE && line.iter().all(|byte| *byte >= b' '))
}

/// Whether a line has a [`link`], which costs a hash to make.
pub(super) fn is_sealed(line: &[u8]) -> bool {
    seal(line.strip_suffix(b"\n").unwrap_or(line)).is_some()
}

fn lost(line: &[u8]) -> u64 {
    let record: Value = serde_json::from_slice(line).unwrap_or_default();
    let number = |name: &str| record["postern"][name].as_u64().unwrap_or(0);
    number("lost").saturating_add(number("unwritten"))
}

/// Whether a line that has a [`link`] is JSON, and says so what its fixed places
/// say.
pub(super) fn is_record(line: &[u8], link: &Link) -> bool {
    let Ok(record) = serde_json::from_slice::<Value>(line) else { return false };
    let ours = &record["postern"];
    record["event"]["sequence"] == link.sequence
        && ours["previous"] == link.previous.to_string()
        && ours["torn"]["bytes"].as_u64() == link.torn.map(|(bytes, _)| bytes)
}
