//! What it costs to tell of the guest: the time from request to reply of each command
//! that only reads, postern's beside stock's.
//!
//! Both agents run all the time and take turns, with their client on one CPU and then
//! on all; a figure is the median of all turns' medians. Beside it stands what the first
//! ask costs of an agent that was asked for nothing before, on one CPU: nothing is kept
//! yet. It asserts that replies are no errors, never how fast they come.
//!
//! `QEMU_GA=FILE` names a stock agent that is not in the `PATH`, such as a newer one,
//! which has every command: `tests/vm/prepare stock trixie` says where it puts one.
//! `-- load` measures only what has `load` in its name. Started by `cargo test
//! --benches`, which asks for no figures, it does everything once and shortly.
//!
//! Trust: started by a developer on a machine of theirs.
#![forbid(unsafe_code)]

#[path = "../versus_stock/agents.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod agents;
#[path = "../versus_stock/host.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod host;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use postern_core::catalogue::Command;

use agents::{Agent, Place, Which};
use host::{Host, command, unexpected};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let figures = arguments.iter().any(|argument| argument == "--bench");
    let only = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
    let amount = if figures {
        Amount { rounds: 9, time: Duration::from_millis(80), starts: 15 }
    } else {
        Amount { rounds: 1, time: Duration::from_millis(1), starts: 1 }
    };
    match run(only, &amount) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("fact_cost: {why}");
            ExitCode::FAILURE
        }
    }
}

/// How much is measured.
struct Amount {
    /// Turns of each agent.
    rounds: usize,
    /// Of one turn.
    time: Duration,
    /// Fresh agents.
    starts: usize,
}

fn commands() -> impl Iterator<Item = &'static str> {
    Command::all().map(Command::name).filter(|name| name.contains("-get-"))
}

fn run(only: &str, amount: &Amount) -> Result<()> {
    let allowed: Vec<&str> = commands().collect();
    let place = Place::numbered(0, None, &format!("[commands]\nallow = {allowed:?}\n"))?;
    let names: Vec<&str> = commands().filter(|name| name.contains(only)).collect();
    let first = first_asks(&place, &names, amount.starts)?;
    let [stock, postern] = Which::BOTH.map(|which| Contestant::new(&place, which));
    let mut contestants = [stock?, postern?];
    println!(
        "| command | stock, one CPU, µs | postern | of stock's | stock, all CPUs | postern | of stock's \
         | stock, first ask | postern | of stock's |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (name, first) in names.into_iter().zip(first) {
        let request = command(name, "");
        let mut cells = String::new();
        for pinned in [true, false] {
            let figures = take_turns(&mut contestants, &place, &request, pinned, amount)?;
            cells += &row(figures);
        }
        cells += &row(first);
        println!("| {name} |{cells}");
    }
    Ok(())
}

/// What the first ask of each costs, of agents that were started anew, one after the
/// other in turns.
fn first_asks(place: &Place, names: &[&str], starts: usize) -> Result<Vec<[Option<f64>; 2]>> {
    let mut all = vec![[Some(Vec::new()), Some(Vec::new())]; names.len()];
    for (which, column) in std::iter::repeat_n(Which::BOTH.into_iter().zip(0..), starts).flatten() {
        let mut contestant = Contestant::new(place, which)?;
        contestant.pin(place, true)?;
        for (name, figures) in names.iter().zip(&mut all) {
            match (contestant.latency(&command(name, ""), Duration::ZERO)?, &mut figures[column]) {
                (Some(figure), Some(figures)) => figures.push(figure),
                (_, figures) => *figures = None,
            }
        }
    }
    Ok(all.into_iter().map(|figures| figures.map(|figures| figures.map(median))).collect())
}

fn row(figures: [Option<f64>; 2]) -> String {
    let shown = figures.map(|figure| figure.map_or("not there".to_owned(), |figure| format!("{figure:.1}")));
    let ratio = figures[0].zip(figures[1]).map_or(String::new(), |(stock, postern)| format!("{:.2}", postern / stock));
    format!(" {} | {} | {ratio} |", shown[0], shown[1])
}

fn take_turns(
    contestants: &mut [Contestant; 2],
    place: &Place,
    request: &[u8],
    pinned: bool,
    amount: &Amount,
) -> Result<[Option<f64>; 2]> {
    let mut medians = [Some(Vec::new()), Some(Vec::new())];
    for round in 0..amount.rounds {
        for turn in 0..2 {
            // Who begins changes from round to round.
            let which = (round + turn) % 2;
            contestants[which].pin(place, pinned)?;
            match (contestants[which].latency(request, amount.time)?, &mut medians[which]) {
                (Some(figure), Some(all)) => all.push(figure),
                _ => medians[which] = None,
            }
        }
    }
    Ok(medians.map(|all| all.map(median)))
}

struct Contestant {
    agent: Agent,
    host: Host,
    which: Which,
}

impl Contestant {
    fn new(place: &Place, which: Which) -> Result<Self> {
        let agent = Agent::start(place, which)?;
        let mut host = agent.meet()?;
        host.expect(&command("guest-sync", "\"id\": 7"), b"{\"return\": 7}")?;
        Ok(Self { agent, host, which })
    }

    /// Lets client and agent run on one CPU, or on all.
    fn pin(&self, place: &Place, pinned: bool) -> Result<()> {
        let mut cpus = place.cpus;
        // The last one: the first gets most interrupts.
        let last = (0..CpuSet::count()).rev().find(|&cpu| cpus.is_set(cpu).unwrap_or(false));
        if let (true, Some(last)) = (pinned, last) {
            cpus = CpuSet::new();
            cpus.set(last)?;
        }
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        self.agent.pin(&cpus)
    }

    /// The median of one turn, in microseconds; `None` if it does not have the command.
    fn latency(&mut self, request: &[u8], time: Duration) -> Result<Option<f64>> {
        let mut times = Vec::new();
        let begun = Instant::now();
        while times.is_empty() || begun.elapsed() < time {
            let since = Instant::now();
            let reply = self.host.call(request)?;
            times.push(since.elapsed().as_secs_f64() * 1e6);
            if self.which == Which::Stock && memchr::memmem::find(reply.last, b"CommandNotFound").is_some() {
                return Ok(None);
            }
            // Of a long reply the beginning is not there any more.
            if reply.length == reply.last.len() && !reply.last.starts_with(b"{\"return\": ") {
                return Err(unexpected(request, reply.last));
            }
        }
        Ok(Some(median(times)))
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
