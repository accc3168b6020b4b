//! The executable `postern`: the command line, then one role.
//!
//! A process that the broker or spawner started knows its role by its only
//! argument, which is its name in `ps`; it reads nothing else of its
//! surroundings. Everything else is a person's or an init's command.
//!
//! Trust: the command line is trusted as much as who may start a process.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use postern_broker::say::Level;
use postern_broker::{Options, spawner};
use postern_core::messages::Role;
use postern_core::policy::Channel;
use postern_core::policy::written::{self, World};
use postern_core::sys::process;

/// A policy that can't be used.
const STATUS_POLICY: u8 = 3;

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
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the host: broker, spawner, opener, worker
    #[command(
        after_help = "Exit status: 0 ended in order, 1 failed, 2 usage, 3 policy, 4 a barrier could not be put up, \
                      5 no channel, 6 no audit log.\n\nExamples:\n  postern run\n  postern run --policy ./p.toml \
                      --channel unix-listen:/run/vm/ga.sock"
    )]
    Run(Run),
    Demo(postern_tools::demo::Demo),
    Call(postern_tools::call::Call),
    /// Check, explain and try a policy
    #[command(subcommand)]
    Policy(postern_tools::policy::Command),
    /// Verify and read audit logs
    #[command(subcommand)]
    Audit(postern_tools::audit::Command),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The policy file; drop-ins are read from the directory of the same name ending in .d
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where to meet the host, if not where the policy says: unix-listen:PATH or virtio-serial:PATH
    #[arg(long, value_name = "METHOD:PATH", value_parser = Channel::from_text)]
    channel: Option<Channel>,
    /// Say more: -v notices, -vv everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let [only] = arguments.as_slice() {
        role(only);
    }
    match Cli::parse_from(arguments).command {
        Command::Run(arguments) => run(arguments),
        Command::Demo(demo) => demo.run(),
        Command::Call(call) => call.run(),
        Command::Policy(command) => command.run(),
        Command::Audit(command) => command.run(),
    }
}

/// Plays the role that a parent asked for by name, if it is one.
///
/// Confined processes end by `_exit`: what a runtime does on its way out is in
/// no filter.
fn role(name: &OsString) {
    let is = |known: &std::ffi::CStr| name.as_encoded_bytes() == known.to_bytes();
    let status = if is(spawner::NAME) {
        spawner::run() as i32
    } else if is(spawner::name(Role::Opener)) {
        postern_opener::run() as i32
    } else if is(spawner::name(Role::Worker)) {
        postern_worker::run() as i32
    } else {
        return;
    };
    process::exit_now(status)
}

fn run(arguments: Run) -> ExitCode {
    let loaded = match written::load(arguments.policy.as_deref(), &World { wants_accounts: false, ..World::live() }) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(STATUS_POLICY);
        }
    };
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    let verbosity = match arguments.verbose {
        0 => Level::Warning,
        1 => Level::Notice,
        _ => Level::Info,
    };
    match postern_broker::run(Options { policy: loaded.policy, channel: arguments.channel, verbosity }) {
        Ok(()) => process::exit_now(0),
        Err(fatal) => {
            eprintln!("postern: {fatal}");
            process::exit_now(i32::from(fatal.status()))
        }
    }
}
