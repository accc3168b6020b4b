//! Lines of a log file, bounded, and what makes one a record.
//!
//! Trust: the bytes are anyone's.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use postern_core::audit::{Hash, MAX_LINE, is_whole, sequence_of};
use serde_json::Value;

/// Opens a file, or standard input for `-`.
pub(super) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(Box::new(BufReader::new(file)))
}

/// The next line, with its newline if it has one; empty at the end. A line that
/// is longer than any record comes in pieces, none of which is a record.
pub(super) fn next(reader: &mut dyn BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// What the chain needs of a line.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) previous: String,
    pub(super) hash: Hash,
    /// Length and hash of the torn bytes before it, as it claims.
    pub(super) torn: Option<(u64, String)>,
    /// Records that it says were lost.
    pub(super) lost: u64,
}

/// The record that a line is, if it is one in postern's fixed form.
pub(super) fn link(line: &[u8]) -> Option<Link> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let sequence = sequence_of(line).filter(|_| is_whole(line))?;
    let record: Value = serde_json::from_slice(line).ok()?;
    let ours = &record["postern"];
    let torn = match ours.get("torn") {
        Some(torn) => Some((torn["bytes"].as_u64()?, torn["sha256"].as_str()?.to_owned())),
        None => None,
    };
    let number = |name: &str| ours[name].as_u64().unwrap_or(0);
    // The number at its fixed place is the number that a JSON reader sees.
    (record["event"]["sequence"].as_u64() == Some(sequence)).then_some(())?;
    Some(Link {
        sequence,
        previous: ours["previous"].as_str()?.to_owned(),
        hash: Hash::of(line),
        torn,
        lost: number("lost").saturating_add(number("unwritten")),
    })
}
