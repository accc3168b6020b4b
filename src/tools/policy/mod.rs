//! `postern policy check|explain|test`: what operators ask of a policy.
//!
//! Trust: run by the operator, with the operator's rights; reads policy files
//! and looks at paths, changes nothing. Mounted by `main` as [`Command`].

pub mod clients;
mod explain;
mod explain_text;
mod permissions;
mod processes;
pub mod reference;
pub mod schema;
mod try_open;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use postern_core::policy::written::{self, Loaded, World};

pub use clients::{Client, Outlook, outlook};
pub use explain::{Explanation, explain};
pub use try_open::{Gate, Outcome, Right, try_open};

/// Check, explain and try a policy.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read a policy and its drop-ins, list every mistake.
    #[command(after_help = "Exit status: 0 good (perhaps with warnings), 1 mistakes.\n\n\
        Examples:\n  postern policy check\n  postern policy check --elsewhere --policy image/etc/postern/policy.toml")]
    Check(Which),
    /// Say what a policy lets the host do, and what holds it to that.
    #[command(
        after_help = "Exit status: 0; 2 if the policy has mistakes; with --client 1 if that does not work at all.\n\n\
        Examples:\n  postern policy explain\n  postern policy explain --json | jq '.processes[].capabilities'\n  \
        postern policy explain --client kubevirt"
    )]
    Explain {
        /// Say instead what of a client's requests will not work, and why.
        #[arg(long, value_name = "CLIENT")]
        client: Option<Client>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Which policy.
        #[command(flatten)]
        which: Which,
    },
    /// Say whether the host could use a path, who would refuse it, and what to change.
    #[command(after_help = "Exit status: 0 allowed, 1 refused, 2 if the policy has mistakes.\n\n\
        Examples:\n  postern policy test read /var/log/syslog\n  postern policy test --policy my.toml create /srv/push/new.conf")]
    Test {
        /// Which policy.
        #[command(flatten)]
        which: Which,
        /// What the host would do.
        right: Right,
        /// Where, as the host would name it.
        path: PathBuf,
    },
}

/// Which policy.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The policy, instead of the installed one; drop-ins are read from X.d beside X.toml.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The policy is for another machine: do not look for its accounts and paths here, nor at who owns the files.
    #[arg(long)]
    pub elsewhere: bool,
}

impl Which {
    fn load(&self) -> Result<Loaded, written::PolicyError> {
        let world = if self.elsewhere { World::elsewhere() } else { World::live() };
        written::load(self.policy.as_deref(), &world)
    }
}

impl Command {
    /// Does it: results on stdout, mistakes and warnings on stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self {
            Self::Check(which) => check(&which),
            Self::Explain { client: Some(client), json, which } => with_policy(&which, |loaded| {
                let outlook = outlook(loaded, client);
                print!("{}", if json { outlook.json() } else { outlook.to_string() });
                if outlook.works { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }),
            Self::Explain { client: None, json, which } => with_policy(&which, |loaded| {
                let explanation = explain(loaded);
                print!("{}", if json { explanation.json() } else { explanation.to_string() });
                ExitCode::SUCCESS
            }),
            Self::Test { which, right, path } => with_policy(&which, |loaded| {
                let outcome = try_open(loaded, right, &path);
                print!("{outcome}");
                if outcome.allowed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }),
        }
    }
}

fn check(which: &Which) -> ExitCode {
    let loaded = match which.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            for warning in &error.warnings {
                eprintln!("{warning}");
            }
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    warn(&loaded);
    let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    println!(
        "{}: good: {}, {}, {}, {}",
        name(&loaded).display(),
        count(loaded.sources.len(), "file", "files"),
        count(loaded.policy.commands.iter().count(), "command", "commands"),
        count(loaded.policy.files.len(), "file rule", "file rules"),
        count(loaded.warnings.len(), "warning", "warnings"),
    );
    ExitCode::SUCCESS
}

fn with_policy(which: &Which, act: impl FnOnce(&Loaded) -> ExitCode) -> ExitCode {
    match which.load() {
        Ok(loaded) => {
            warn(&loaded);
            act(&loaded)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
}

/// The main file.
fn name(loaded: &Loaded) -> &Path {
    loaded.sources.first().map_or(Path::new(""), |source| &source.path)
}
