//! `postern audit`: verify that a log is whole, show it to a person.
//!
//! Trust: none in the files. Every line may have been edited by somebody who
//! knows this code; lines are bounded, and nothing of them reaches a terminal
//! unescaped.

mod lines;
mod show;
mod verify;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

pub use show::{Filter, Outcome, table, table_for};
pub use verify::{Broken, Kind, Place, Problem, Verified, verify};

/// Exit status where a file cannot be read; clap's own for wrong usage.
const USAGE: u8 = 2;

/// What `postern audit` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check that no record was edited, removed, swapped or cut
    #[command(after_help = "Exit status: 0 whole, 1 broken, 2 a file could not be read or the usage was wrong.\n\n\
        The end of a log can be cut off without a trace in the file itself: compare the head that\n\
        is printed with the one that left the machine.\n\n\
        Examples:\n  postern audit verify /var/log/postern/audit.jsonl\n  \
        zcat audit.jsonl.2.gz | postern audit verify - audit.jsonl.1 audit.jsonl")]
    Verify {
        /// Log files, oldest first; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Show records as a table
    #[command(after_help = "Examples:\n  \
        postern audit show --outcome failure /var/log/postern/audit.jsonl\n  \
        postern audit show --path /etc --since 2025-11-22 audit.jsonl.1 audit.jsonl\n  \
        postern audit show --command guest-file-open --json audit.jsonl | jq .file")]
    Show {
        /// Log files, oldest first; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Which records
        #[command(flatten)]
        filter: Filter,
        /// The records as they stand in the file, one per line
        #[arg(long)]
        json: bool,
    },
}

impl Command {
    /// Does it; output goes to stdout, errors to stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self {
            Self::Verify { files } => match verify(&files) {
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
            Self::Show { files, filter, json } => match show::run(&files, &filter, json) {
                Ok(()) => ExitCode::SUCCESS,
                Err(problem) => {
                    _ = writeln!(io::stderr(), "{problem}");
                    ExitCode::from(USAGE)
                }
            },
        }
    }
}
