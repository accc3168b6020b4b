//! The executable `postern`: the command line, then one role.
//!
//! A process that the broker or spawner started knows its role by its only
//! argument, which is its name in `ps`; it reads nothing else of its
//! surroundings. Everything else is a person's or an init's command.
//!
//! Trust: the command line is trusted as much as who may start a process.
#![forbid(unsafe_code)]

mod stock;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use postern_broker::say::Level;
use postern_broker::{Options, Pace, Service, spawner};
use postern_core::messages::Role;
use postern_core::policy::written::{self, Origin, World};
use postern_core::policy::{Narrowing, Policy};
use postern_core::sys::{last_words, process};
use postern_tools::cli::{Cli, Command, Run};

/// So that a confined process can say that it got no memory.
#[global_allocator]
static ALLOCATOR: last_words::Allocator = last_words::Allocator;

/// A policy that can't be used.
const STATUS_POLICY: u8 = 3;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let [only] = arguments.as_slice() {
        role(only);
    }
    if arguments.first().is_some_and(|name| Path::new(name).file_name() == Some("qemu-ga".as_ref())) {
        return stock::run(&arguments[1..]);
    }
    match Cli::read(arguments).command {
        Command::Run(arguments) => run(arguments),
        Command::QemuGa(words) => stock::run(&words.words),
        Command::Demo(demo) => demo.run(),
        Command::Call(call) => call.run(),
        Command::Policy(command) => command.run(),
        Command::Reload(reload) => reload.run(),
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
    let Some((policy, origin)) = policy(arguments.policy.as_deref()) else { return ExitCode::from(STATUS_POLICY) };
    let verbosity = match arguments.verbose {
        0 => Level::Warning,
        1 => Level::Notice,
        _ => Level::Info,
    };
    let service = Service::default();
    let options = Options { policy, origin, channel: arguments.channel, verbosity, service, pace: Pace::Slowed };
    process::exit_now(serve(options))
}

/// Reads and checks the policy, and tells the operator what is wrong with it.
/// With it, what is needed to read it again.
fn policy(path: Option<&Path>) -> Option<(Policy, Option<Origin>)> {
    let world = World { wants_accounts: false, ..World::live() };
    match written::load(path, &world) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("{warning}");
            }
            Some((loaded.policy, Origin::new(path, world, Narrowing::default()).ok()))
        }
        Err(mistakes) => {
            eprintln!("{mistakes}");
            None
        }
    }
}

/// Is the broker until it ends. Returns the exit status.
fn serve(options: Options) -> i32 {
    match postern_broker::run(options) {
        Ok(()) => 0,
        Err(fatal) => {
            eprintln!("postern: {fatal}");
            i32::from(fatal.status())
        }
    }
}
