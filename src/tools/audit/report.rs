//! `postern audit report`: what a log says, as text or as one page for a
//! browser. One pass over the lines, memory bounded whatever they are, and the
//! same output for the same log.
//!
//! Trust: none in the lines. Nothing of them is shown unescaped; what only the
//! worker says is marked.

mod alarms;
mod bins;
mod gather;
mod html;
mod most;
mod spans;
mod tables;
mod text;
mod timeline;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::lines;
use super::verify::{Broken, Problem, Verified, verify_and_see};
use gather::Gathered;

/// All that a report shows.
struct Page<'a> {
    files: &'a [PathBuf],
    verdict: &'a Result<Verified, Broken>,
    gathered: &'a Gathered,
    /// Most rows of a table.
    top: usize,
}

/// Prints the report of `files` to stdout; whether the log is whole.
pub(super) fn run(files: &[PathBuf], as_html: bool, top: usize) -> Result<bool, Problem> {
    report(files, as_html, top, &mut BufWriter::new(io::stdout().lock()))
}

/// Writes the report of `files`, oldest first, with at most `top` rows in each
/// table; whether the log is whole.
///
/// # Errors
/// A file that cannot be read, or `out` that cannot be written. That nobody
/// reads `out` any more is none.
pub fn report(files: &[PathBuf], as_html: bool, top: usize, out: &mut dyn Write) -> Result<bool, Problem> {
    let files = lines::oldest_first(files);
    let mut gathered = Gathered::default();
    let verdict = match verify_and_see(&files, &mut |line| gathered.add(line)) {
        Ok(verified) => Ok(verified),
        Err(Problem::Broken(broken)) => Err(broken),
        Err(unreadable) => return Err(unreadable),
    };
    let page = Page { files: &files, verdict: &verdict, gathered: &gathered, top };
    let written = if as_html { html::write(&page, out) } else { text::write(&page, out) };
    match written.and_then(|()| out.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(Problem::Unreadable { file: "stdout".into(), source })
        }
        _ => Ok(verdict.is_ok()),
    }
}
