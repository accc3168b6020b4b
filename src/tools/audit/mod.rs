//! `postern audit`: verify that a log is whole, show it to a person, sum it up.
//!
//! Trust: none in the files. Every line may have been edited by somebody who
//! knows this code; lines are bounded, and nothing of them reaches a terminal
//! unescaped.

mod anchors;
mod filter;
pub(crate) mod follow;
mod head;
mod lines;
pub(crate) mod record;
mod report;
mod show;
mod verify;
pub(crate) mod words;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use show::Form;

pub use anchors::{Against, Anchored, Contradiction, Doubt, verify_against};
pub use filter::{Filter, Outcome};
pub use head::head;
pub use report::report;
pub use show::{table, table_for};
pub use verify::{Broken, Kind, Place, Problem, Verified, verify};

/// Exit status where a file cannot be read; clap's own for wrong usage.
const USAGE: u8 = 2;
/// Exit status where a head that left the machine contradicts the log.
const CONTRADICTED: u8 = 3;

/// What `postern audit` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check that no record was edited, removed, swapped or cut
    #[command(
        after_help = "Exit status: 0 whole, 1 broken, 2 a file could not be read, the usage was wrong or no head\n\
        counts, 3 a head contradicts the log.\n\n\
        The end of a log can be cut off, or written anew, without a trace in the file itself: hold it\n\
        against the heads that left the machine.\n\n\
        Examples:\n  postern audit verify /var/log/postern/audit.jsonl\n  \
        journalctl -o json SYSLOG_IDENTIFIER=postern | postern audit verify --anchors - audit.jsonl.1 audit.jsonl\n  \
        zcat audit.jsonl.2.gz | postern audit verify - audit.jsonl.1 audit.jsonl"
    )]
    Verify {
        /// Log files, oldest first; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// What to hold them against
        #[command(flatten)]
        against: Against,
    },
    /// Print number and hash of the last record, without checking those before it
    #[command(after_help = "Exit status: 0, 1 there is no record, 2 a file could not be read or the usage was wrong.")]
    Head {
        /// Log files, oldest first; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Show records as a table, or as the lines that they are
    #[command(
        after_help = "Options of different kinds narrow each other; one given several times takes what any of them\n\
        takes. Where nothing is filtered, lines that are no records are shown too.\n\n\
        Exit status: 0, 2 a file could not be read or the usage was wrong.\n\nExamples:\n  \
        postern audit show --denied --since 2h /var/log/postern/audit.jsonl\n  \
        postern audit show --follow --since 0s /var/log/postern/audit.jsonl\n  \
        postern audit show --path '/etc/*.conf' --since 2025-11-22 /var/log/postern/audit.jsonl*\n  \
        zcat audit.jsonl.2.gz | postern audit show --event guest-file-open --json - | jq .file"
    )]
    Show {
        /// Log files; - is standard input. Those that begin with a record are read oldest first
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Which records
        #[command(flatten)]
        filter: Filter,
        /// The lines as they stand in the file, byte for byte
        #[arg(long)]
        json: bool,
        /// Go on with what is added to the newest file, also when it is rotated
        #[arg(short, long)]
        follow: bool,
    },
    /// Sum up a log: which files the host opened, was refused, when, how often
    #[command(
        after_help = "Exit status: 0 whole, 1 broken (there is a report all the same), 2 a file could not be read or the\n\
        usage was wrong.\n\n\
        The page that --html makes is one file without scripts and without references: it can be kept\n\
        and opened offline.\n\nExamples:\n  postern audit report /var/log/postern/audit.jsonl\n  \
        postern audit report --html /var/log/postern/audit.jsonl* > report.html\n  \
        zcat -f $(ls -rv /var/log/postern/audit.jsonl*) | postern audit report -"
    )]
    Report {
        /// Log files; - is standard input. Those that begin with a record are read oldest first
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// A page for a browser instead of text
        #[arg(long)]
        html: bool,
        /// How many rows of each table; the rest is summed up
        #[arg(long, value_name = "N", default_value_t = 100)]
        top: usize,
    },
}

impl Command {
    /// Does it; output goes to stdout, errors to stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self {
            Self::Verify { files, against } if !against.anchors.is_empty() => match verify_against(&files, &against) {
                Ok((verified, anchored)) => {
                    _ = writeln!(io::stdout(), "{verified}\n{anchored}");
                    ExitCode::SUCCESS
                }
                Err(doubt) => {
                    _ = writeln!(io::stderr(), "{doubt}");
                    match doubt {
                        Doubt::Problem(Problem::Broken(_)) => ExitCode::FAILURE,
                        Doubt::Contradicted { .. } => ExitCode::from(CONTRADICTED),
                        _ => ExitCode::from(USAGE),
                    }
                }
            },
            Self::Head { files } => match head(&files) {
                Ok(Some((number, hash))) => {
                    _ = writeln!(io::stdout(), "{number} {hash}");
                    ExitCode::SUCCESS
                }
                Ok(None) => {
                    _ = writeln!(io::stderr(), "there is no record");
                    ExitCode::FAILURE
                }
                Err(problem) => {
                    _ = writeln!(io::stderr(), "{problem}");
                    ExitCode::from(USAGE)
                }
            },
            Self::Verify { files, .. } => match verify(&files) {
                Ok(verified) => {
                    // Nobody is left to tell if stdout is closed.
                    _ = writeln!(io::stdout(), "{verified}");
                    ExitCode::SUCCESS
                }
                Err(problem) => {
                    _ = writeln!(io::stderr(), "{problem}");
                    match problem {
                        Problem::Broken(_) => ExitCode::FAILURE,
                        Problem::Unreadable { .. } => ExitCode::from(USAGE),
                    }
                }
            },
            Self::Show { files, filter, json, follow } => {
                let form = if json { Form::Lines } else { Form::Table };
                status(show::run(&files, &filter, form, follow).map(|()| true))
            }
            Self::Report { files, html, top } => status(report::run(&files, html, top)),
        }
    }
}

/// The exit status of what printed something; whether that was a whole log.
fn status(result: Result<bool, Problem>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            // Nobody is left to tell if stderr is closed.
            _ = writeln!(io::stderr(), "{problem}");
            ExitCode::from(USAGE)
        }
    }
}
