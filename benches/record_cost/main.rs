//! What the record costs: pairs of `guest-file-open` and `guest-file-close` per
//! second with the log in memory, on a disk, and forced to the disk for each
//! open or each record; stock, which keeps none, beside it; and the broker's
//! writer alone.
//!
//! A pair makes two records: the grant, before its descriptor leaves the broker,
//! and the close. All agents run all the time and take turns with their client on
//! one CPU. It asserts what replies say, never how fast they come.
//!
//! The disk is that of cargo's target directory, or of `RECORD_COST_DISK=DIR`.
//! Started by `cargo test --benches`, which asks for no figures, it does
//! everything once and shortly.
//!
//! Trust: started by a developer on a machine of theirs.
#![forbid(unsafe_code)]

#[path = "../versus_stock/agents.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod agents;
#[path = "../versus_stock/host.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod host;
#[path = "../../tests/audit/samples.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod samples;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use postern_broker::log::{Log, prepare_directory};
use postern_core::audit::Record;
use postern_core::policy::Audit;
use tempfile::TempDir;

use agents::{Agent, Place, Which};
use host::{Host, command};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What takes part: its name, which agent, whether its log is on the disk, and
/// its `[audit]`.
const CONTESTANTS: [(&str, Which, bool, &str); 5] = [
    ("stock, no record", Which::Stock, false, ""),
    ("log in memory", Which::Postern, false, ""),
    ("log on a disk", Which::Postern, true, ""),
    ("log on a disk, fsync = \"open\"", Which::Postern, true, "fsync = \"open\"\n"),
    ("log on a disk, fsync = \"record\"", Which::Postern, true, "fsync = \"record\"\n"),
];

fn main() -> ExitCode {
    let figures = std::env::args().any(|argument| argument == "--bench");
    let (rounds, time) = if figures { (9, Duration::from_millis(200)) } else { (1, Duration::from_millis(1)) };
    match run(rounds, time) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("record_cost: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(rounds: usize, time: Duration) -> Result<()> {
    let disk = std::env::var_os("RECORD_COST_DISK").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let disk = tempfile::Builder::new().prefix("record-cost-").tempdir_in(disk)?;
    std::fs::set_permissions(disk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut contestants = Vec::new();
    for (number, contestant) in (0..).zip(CONTESTANTS) {
        contestants.push(Contestant::new(number, contestant, &disk)?);
    }
    let mut rates = vec![Vec::new(); contestants.len()];
    for _ in 0..rounds {
        for (rates, contestant) in rates.iter_mut().zip(&mut contestants) {
            rates.push(contestant.pairs_per_second(time)?);
        }
    }
    let rates: Vec<f64> = rates.into_iter().map(median).collect();
    println!("| open and close, one CPU | pairs per s | of stock's | µs per pair |\n|---|---:|---:|---:|");
    for ((name, ..), rate) in CONTESTANTS.iter().zip(&rates) {
        println!("| {name} | {rate:.0} | {:.2} | {:.1} |", rate / rates[0], 1e6 / rate);
    }
    drop(contestants);

    println!("\n| the broker's writer alone | µs per record | bytes per record |\n|---|---:|---:|");
    let memory = TempDir::new_in("/dev/shm")?;
    for (name, directory) in [("log in memory", memory.path()), ("log on a disk", disk.path())] {
        let (seconds, bytes) = writer_alone(&directory.join("alone"), rounds, time)?;
        println!("| {name} | {:.2} | {bytes} |", seconds * 1e6);
    }
    Ok(())
}

/// One agent with a connection.
struct Contestant {
    agent: Agent,
    host: Host,
    open: Vec<u8>,
    /// Lives as long as its agent.
    _place: Place,
}

impl Contestant {
    fn new(number: u32, (_, which, on_disk, audit): (&str, Which, bool, &str), disk: &TempDir) -> Result<Self> {
        let log = on_disk.then(|| disk.path().join(number.to_string()));
        let place = Place::numbered(number, log.as_deref(), audit)?;
        let file = place.file("opened", b"some bytes")?;
        let agent = Agent::start(&place, which)?;
        let host = agent.meet()?;
        let open = command("guest-file-open", &format!("\"path\": \"{}\", \"mode\": \"r\"", file.display()));
        Ok(Self { agent, host, open, _place: place })
    }

    fn pairs_per_second(&mut self, time: Duration) -> Result<f64> {
        let all = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
        let last = (0..CpuSet::count()).rev().find(|&cpu| all.is_set(cpu).unwrap_or(false)).ok_or("no CPU")?;
        let mut one = CpuSet::new();
        one.set(last)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        self.agent.pin(&one)?;
        let (mut pairs, since) = (0, Instant::now());
        while pairs == 0 || since.elapsed() < time {
            let handle = self.host.number(&self.open)?;
            self.host.expect(&command("guest-file-close", &format!("\"handle\": {handle}")), b"{\"return\": {}}")?;
            pairs += 1;
        }
        let rate = f64::from(pairs) / since.elapsed().as_secs_f64();
        sched_setaffinity(Pid::from_raw(0), &all)?;
        self.agent.pin(&all)?;
        Ok(rate)
    }
}

/// Seconds per record, and bytes of one, of the writer in this process.
fn writer_alone(directory: &Path, rounds: usize, time: Duration) -> Result<(f64, u64)> {
    let uid = nix::unistd::geteuid().as_raw();
    let path = directory.join("audit.jsonl");
    prepare_directory(&path, uid, nix::unistd::getegid().as_raw())?;
    let mut log = Log::start(&Audit::at(path.clone()), samples::run())?;
    let mut all = samples::all(b"/srv/data/a-file-of-usual-length.txt").into_iter();
    let record = all.find(|record| matches!(record, Record::OpenGranted { .. })).ok_or("no grant")?;
    let mut figures = Vec::new();
    for _ in 0..rounds {
        let (mut records, since) = (0, Instant::now());
        while records == 0 || since.elapsed() < time {
            log.record(&record)?;
            records += 1;
        }
        figures.push(since.elapsed().as_secs_f64() / f64::from(records));
    }
    let text = std::fs::read_to_string(&path)?;
    let bytes = text.lines().last().ok_or("no record")?.len() + 1;
    Ok((median(figures), bytes as u64))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
