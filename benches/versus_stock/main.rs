//! Postern beside stock `qemu-ga`, and both beside a floor program: the same client,
//! the same socket type, the same run.
//!
//! All run all the time and take turns, so that a busy machine is busy for all. The
//! floor program (`floor.rs`) answers with ready-made replies of the same size: what
//! is above its figure is the agent's own cost. It asserts what replies say, never how fast they come: the exit
//! status tells whether something failed, the table at the end tells the rest.
//!
//! As root postern runs as it does in a guest, with numeric accounts that need
//! not exist; as another user it runs as that user, and what the kernel does
//! not show of it then is named below the table.
//!
//! * `QEMU_GA=FILE` names a stock agent that is not in the `PATH`.
//! * `POSTERN=FILE` names another build of ours, such as the static one. Cargo
//!   builds a benchmark's executable with the features that tests ask of its
//!   libraries; `cargo build --release` makes one that is 1 % smaller.
//! * `-- open` measures only what has `open` in its name, and start-up, memory
//!   and sizes.
//!
//! Read the rows for one CPU to compare agents. Across CPUs a wake-up costs more
//! than either agent, and an open that goes through four processes has more of
//! them than one that goes through one.
//!
//! Started by `cargo test --benches`, which asks for no figures, it does
//! everything once and shortly.
//!
//! Trust: started by a developer on a machine of theirs.
#![forbid(unsafe_code)]

mod agents;
mod floor;
mod host;
mod measure;
mod memory;
mod session;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use agents::{Agent, Place, Which};
use measure::{Effort, Scenario};
use session::Session;
use table::{Better, Figure, Table};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, socket] = arguments.as_slice()
        && first == "--floor"
    {
        // Ends with its client, by a signal.
        return floor::serve(socket.as_ref()).map_or(ExitCode::FAILURE, |never| match never {});
    }
    let figures = arguments.iter().any(|argument| argument == "--bench");
    let only = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
    let effort = if figures {
        Effort { rounds: 7, starts: 15, exchanges: 3000, time: Duration::from_millis(150) }
    } else {
        Effort { rounds: 1, starts: 1, exchanges: 10, time: Duration::from_millis(1) }
    };
    match run(&effort, only) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("versus_stock: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(effort: &Effort, only: &str) -> Result<Table> {
    let place = Place::new()?;
    let mut table = Table::new(&place);
    let mut sessions = Session::all(&place)?;

    // Before the load, for memory once used is not always given back.
    let rest = memory::pss(&sessions, &mut table);
    for scenario in Scenario::all().into_iter().filter(|scenario| scenario.title().contains(only)) {
        eprintln!("{}", scenario.title());
        measure::take_turns(&scenario, effort, &mut sessions, &mut table)?;
    }
    let after = memory::pss(&sessions, &mut table);
    table.add("memory at rest: PSS of all processes", "KiB", Better::Less, rest);
    table.add("the same after all of the above", "KiB", Better::Less, after);
    measure::rises(&mut sessions, &mut table)?;
    drop(sessions);

    eprintln!("start-up");
    measure::start_up(&place, effort, &mut table)?;
    let sizes = |size: fn(&Path) -> Option<f64>| {
        let [stock, postern] = Which::BOTH.map(|which| size(&place.program(which)).map(Figure::one));
        [stock, postern, None]
    };
    table.add("executable", "bytes", Better::Less, sizes(memory::file_size));
    let mapped = sizes(memory::with_libraries);
    table.add("executable and shared libraries but the C library's", "bytes", Better::Less, mapped);
    Ok(table)
}

/// Starts an agent in its own fresh place and meets it.
fn start(place: &Place, which: Which) -> Result<(Agent, host::Host)> {
    let agent = Agent::start(place, which)?;
    let mut host = agent.meet()?;
    // Also what the floor program says before it is told otherwise.
    host.expect(&host::command("guest-sync", "\"id\": 7"), b"{\"return\": 7}")?;
    Ok((agent, host))
}
