//! `postern demo`: the real agent in a fresh directory, driven as a host would.
//!
//! Every line that is printed comes from what happened: from the agent's
//! replies, its audit log, or `/proc`. A step that ends otherwise than the
//! policy wants is marked, and makes the exit status 1.
//!
//! Trust: a person's command line. As root it makes and mounts an ext4 image of
//! its own and freezes that, never anything else: the policy that it writes
//! does not allow freezing what is not named.

mod paint;
mod processes;
mod scratch;
mod stage;
mod story;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::audit::Problem;
use crate::client::{Lost, Refusal};

/// `postern demo`
#[derive(Debug, clap::Args)]
#[command(
    about = "Start an agent in a temporary directory, act as its host, and show what happened",
    after_help = "As root it runs the agent as it is installed, with two accounts that nothing else uses, and freezes an \
        ext4 image\nthat it makes. As another user it shows what can be confined without root. It removes what it made.\n\n\
        Exit status: 0 every step ended as expected, 1 one did not, 2 usage, 130 interrupted.\n\n\
        Examples:\n  postern demo\n  postern demo --keep /var/tmp/postern-demo"
)]
pub struct Demo {
    /// Run in this directory, new or empty, and leave policy, log and files there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Why the demo could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// There is no place to run in.
    #[error("{0}")]
    Place(String),
    /// A file could not be made or read.
    #[error("{what} {path}: {why}", path = .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        why: io::Error,
    },
    /// The agent did not start, or ended early.
    #[error("the agent {0}")]
    Agent(String),
    /// The agent does not answer.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The agent refused what its policy allows.
    #[error("refused, against the policy: {0}")]
    Refused(#[from] Refusal),
    /// A step ended otherwise than the policy wants.
    #[error("{0}")]
    Unexpected(String),
    /// The audit log is not whole.
    #[error(transparent)]
    Log(#[from] Problem),
    /// Another call failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, #[source] io::Error),
    /// A person wants it to end.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
}

fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DemoError {
    let path = path.into();
    move |why| DemoError::File { what, path, why }
}

fn unexpected<T>(text: impl Into<String>) -> Result<T, DemoError> {
    Err(DemoError::Unexpected(text.into()))
}

impl Demo {
    /// Does it; every guard has cleaned up when this returns.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let paint = paint::Paint::new();
        match story::tell(self.keep.as_deref(), &paint) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(failed) => {
                paint.bad(&format!("{failed} of the steps above did not end as expected"));
                ExitCode::FAILURE
            }
            Err(DemoError::Interrupted(signal)) => {
                paint.bad(&format!("interrupted by {signal}; what it made is gone"));
                ExitCode::from(130)
            }
            Err(error) => {
                paint.bad(&error.to_string());
                ExitCode::FAILURE
            }
        }
    }
}

/// Signals that end the demo, held back so that it ends between two steps and
/// cleans up.
struct Interrupts(SignalFd);

impl Interrupts {
    fn hold() -> Result<Self, DemoError> {
        let mut held = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            held.add(signal);
        }
        let failed = |why: nix::errno::Errno| DemoError::Call("holding signals back", why.into());
        held.thread_block().map_err(failed)?;
        SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self).map_err(failed)
    }

    fn check(&self) -> Result<(), DemoError> {
        match self.0.read_signal() {
            Ok(Some(info)) => {
                let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                Err(DemoError::Interrupted(Signal::try_from(number).unwrap_or(Signal::SIGINT)))
            }
            _ => Ok(()),
        }
    }
}
