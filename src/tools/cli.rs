//! The command line of `postern`, as data: what there is to type, and its help.
//!
//! Here rather than in `main`, for two reasons: manual pages and completions
//! are made from it (`packaging/pages`), and it is built small, for it runs
//! once.
//!
//! Trust: a person's or an init's command line. Read by `main`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use postern_core::policy::Channel;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "postern",
    version,
    about = "A sandboxed, hardened guest agent that speaks the QEMU Guest Agent protocol",
    after_help = "Examples:\n  postern demo\n  postern policy check\n  postern run --policy /etc/postern/policy.toml\n  \
                  postern call --socket /run/vm/ga.sock guest-info\n  postern audit verify /var/log/postern/audit.jsonl",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads it; ends the process where it is wrong or asks for help.
    #[must_use]
    pub fn read(arguments: Vec<OsString>) -> Self {
        Self::parse_from(arguments)
    }
}

const RELOAD_HELP: &str = "A policy with mistakes is not sent. One that cannot take the place of the old one as a whole \
    leaves it in force.\n\nExit status: 0 the policy is in force, 1 the old one stays, 2 usage, 3 the policy has \
    mistakes, 4 not known: no record of it in time, 5 no running agent.\n\nExamples:\n  postern reload\n  postern \
    reload --pid 4711 --policy ./p.toml";

/// What `postern` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the host: broker, spawner, opener, worker
    #[command(
        after_help = "Exit status: 0 ended in order, 1 failed, 2 usage, 3 policy, 4 a barrier could not be put up, \
                      5 no channel, 6 no audit log.\n\nExamples:\n  postern run\n  postern run --policy ./p.toml \
                      --channel unix-listen:/run/vm/ga.sock"
    )]
    Run(Run),
    /// Take the place of the QEMU guest agent: its options, its configuration file
    #[command(
        disable_help_flag = true,
        after_help = "Under the name qemu-ga, postern does the same. `postern qemu-ga --help` lists the options.\n\n\
                      Exit status: as qemu-ga's: 0 ended in order, 1 anything else."
    )]
    QemuGa(QemuGa),
    #[allow(missing_docs, reason = "a comment here would take the place of the command's own help")]
    Demo(crate::demo::Demo),
    #[allow(missing_docs, reason = "as above")]
    Call(crate::call::Call),
    /// Check the policy, have the running agent take it, and say what came of it
    #[command(after_help = RELOAD_HELP)]
    Reload(crate::reload::Reload),
    /// Check, explain and try a policy
    #[command(subcommand)]
    Policy(crate::policy::Command),
    /// Verify and read audit logs
    #[command(subcommand)]
    Audit(crate::audit::Command),
}

/// `postern run`; `main` does it.
#[derive(Debug, Args)]
pub struct Run {
    /// The policy file; drop-ins are read from the directory of the same name ending in .d
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Where to meet the host, if not where the policy says: virtio-serial:PATH, isa-serial:PATH,
    /// unix-listen:PATH or vsock-listen:CID:PORT
    #[arg(long, value_name = "METHOD:PATH", value_parser = Channel::from_text)]
    pub channel: Option<Channel>,
    /// Say more: -v notices, -vv everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// `postern qemu-ga`; `main` does it.
#[derive(Debug, Args)]
pub struct QemuGa {
    /// qemu-ga's options, such as -m unix-listen -p PATH
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}
