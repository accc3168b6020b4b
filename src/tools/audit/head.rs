//! The head of a log: number and hash of its last record, to be kept elsewhere
//! or compared with what was.
//!
//! Trust: none. Whether the log is whole is not asked here.

use std::io;
use std::path::Path;

use postern_core::audit::Hash;

use super::lines::{self, Part};
use super::verify::Problem;

/// Number and hash of the last record in the files, oldest first; `None` if there
/// is none.
pub fn head<P: AsRef<Path>>(files: &[P]) -> Result<Option<(u64, Hash)>, Problem> {
    for file in files.iter().rev().map(AsRef::as_ref) {
        let found = last(file).map_err(|source| Problem::Unreadable { file: file.to_owned(), source })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn last(file: &Path) -> io::Result<Option<(u64, Hash)>> {
    let mut reader = lines::open(file)?;
    let (mut line, mut last) = (Vec::new(), Vec::new());
    loop {
        match lines::read(&mut reader, &mut line)? {
            Part::Line if lines::is_sealed(&line) => std::mem::swap(&mut line, &mut last),
            Part::Line | Part::More => {}
            Part::End => break,
        }
    }
    Ok(lines::link(&last).map(|link| (link.sequence, link.hash)))
}
