//! What is measured, and how turns are taken.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::agents::{Agent, Place, Which};
use super::host::{Host, command, unexpected};
use super::table::{Better, Table};
use super::{Result, start};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The file's size, and the most that one read returns.
const LARGEST: usize = 48 * MIB;
/// A write of [`LARGEST`] makes a larger message than any agent takes.
const LARGEST_WRITE: usize = LARGEST - 64 * KIB;

/// How much is done.
pub(crate) struct Effort {
    /// Turns of each agent.
    pub(crate) rounds: usize,
    /// Starts of each agent.
    pub(crate) starts: usize,
    /// Exchanges of one turn, where each is timed.
    pub(crate) exchanges: usize,
    /// Time of one turn, where a rate is taken.
    pub(crate) time: Duration,
}

/// One thing to measure.
#[derive(Clone, Copy)]
pub(crate) enum Scenario {
    Latency { command: &'static str, arguments: &'static str, pinned: bool },
    OpenClose { pinned: bool },
    Read { size: usize },
    Write { size: usize },
}

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for pinned in [true, false] {
            all.push(Self::Latency { command: "guest-ping", arguments: "", pinned });
            all.push(Self::Latency { command: "guest-sync", arguments: "\"id\": 7", pinned });
            all.push(Self::OpenClose { pinned });
        }
        all.extend([4 * KIB, 64 * KIB, MIB, LARGEST].map(|size| Self::Read { size }));
        all.extend([4 * KIB, 64 * KIB, MIB, LARGEST_WRITE].map(|size| Self::Write { size }));
        all
    }

    pub(crate) fn title(&self) -> String {
        let (what, pinned) = match self {
            Self::Latency { command, pinned, .. } => ((*command).to_owned(), *pinned),
            Self::OpenClose { pinned } => ("open and close".to_owned(), *pinned),
            Self::Read { size } => (format!("read {}", bytes(*size)), false),
            Self::Write { size } => (format!("write {}", bytes(*size)), false),
        };
        format!("{what}{}", if pinned { ", one CPU" } else { "" })
    }

    /// The rows that its figures make.
    fn rows(&self) -> Vec<(String, &'static str, Better)> {
        match self {
            Self::Latency { .. } => {
                ["p50", "p99"].map(|rank| (format!("{}, {rank}", self.title()), "µs", Better::Less)).into()
            }
            Self::OpenClose { .. } => vec![(self.title(), "per s", Better::More)],
            Self::Read { .. } | Self::Write { .. } => vec![(self.title(), "MB/s", Better::More)],
        }
    }

    const fn is_pinned(self) -> bool {
        matches!(self, Self::Latency { pinned: true, .. } | Self::OpenClose { pinned: true })
    }
}

fn bytes(count: usize) -> String {
    match count {
        LARGEST_WRITE => "48 MiB less 64 KiB".to_owned(),
        _ if count < MIB => format!("{} KiB", count / KIB),
        _ => format!("{} MiB", count / MIB),
    }
}

/// An agent with a connection and the files of its own.
pub(crate) struct Session {
    pub(crate) agent: Agent,
    host: Host,
    cpus: CpuSet,
    /// What both files hold at first.
    content: Vec<u8>,
    written: PathBuf,
    readable: i64,
    writable: i64,
    open: Vec<u8>,
}

impl Session {
    /// Starts both agents.
    pub(crate) fn both(place: &Place) -> Result<[Self; 2]> {
        let [stock, postern] = Which::BOTH.map(|which| Self::new(place, which));
        Ok([stock?, postern?])
    }

    fn new(place: &Place, which: Which) -> Result<Self> {
        let content = noise(LARGEST);
        let read = place.file(&format!("{which:?}-read"), &content)?;
        let written = place.file(&format!("{which:?}-write"), &content)?;
        let (agent, mut host) = start(place, which)?;
        let open = |path: &PathBuf, mode| {
            command("guest-file-open", &format!("\"path\": \"{}\", \"mode\": \"{mode}\"", path.display()))
        };
        let readable = host.number(&open(&read, "r"))?;
        let writable = host.number(&open(&written, "r+"))?;
        let open = open(&read, "r");
        Ok(Self { agent, host, cpus: place.cpus, content, written, readable, writable, open })
    }

    /// Lets client and agent run on one CPU, or on all.
    fn pin(&self, pinned: bool) -> Result<()> {
        let mut cpus = self.cpus;
        // The last one: the first gets most interrupts.
        if let (true, Some(last)) = (pinned, (0..CpuSet::count()).rev().find(|&cpu| cpus.is_set(cpu).unwrap_or(false)))
        {
            cpus = CpuSet::new();
            cpus.set(last)?;
        }
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        self.agent.pin(&cpus)
    }

    /// One turn; a figure for each row.
    fn take(&mut self, scenario: &Scenario, effort: &Effort) -> Result<Vec<f64>> {
        match *scenario {
            Scenario::Latency { command: name, arguments, .. } => {
                self.latency(&command(name, arguments), effort.exchanges)
            }
            Scenario::OpenClose { .. } => self.open_close(effort.time),
            Scenario::Read { size } => self.read(size, effort.time),
            Scenario::Write { size } => self.write(size, effort.time),
        }
    }

    fn latency(&mut self, request: &[u8], exchanges: usize) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(exchanges);
        for _ in 0..exchanges {
            let since = Instant::now();
            let reply = self.host.call(request)?;
            times.push(since.elapsed());
            if !reply.last.starts_with(b"{\"return\": ") {
                return Err(unexpected(request, reply.last));
            }
        }
        times.sort_unstable();
        Ok([50, 99].map(|rank| times[times.len() * rank / 100].as_secs_f64() * 1e6).into())
    }

    fn open_close(&mut self, time: Duration) -> Result<Vec<f64>> {
        let mut done = 0;
        let since = Instant::now();
        while done == 0 || since.elapsed() < time {
            let handle = self.host.number(&self.open)?;
            self.host.expect(&command("guest-file-close", &format!("\"handle\": {handle}")), b"{\"return\": {}}")?;
            done += 1;
        }
        Ok(vec![f64::from(done) / since.elapsed().as_secs_f64()])
    }

    fn read(&mut self, size: usize, time: Duration) -> Result<Vec<f64>> {
        let request = command("guest-file-read", &format!("\"handle\": {}, \"count\": {size}", self.readable));
        self.check_read(&request, size)?;
        let count = format!("\"count\": {size}");
        self.rate(self.readable, &request, size, time, |length, last| {
            length > size.div_ceil(3) * 4
                && (length > last.len() || memchr::memmem::find(last, count.as_bytes()).is_some())
        })
    }

    /// The first bytes read are the file's.
    fn check_read(&mut self, request: &[u8], size: usize) -> Result<()> {
        self.seek(self.readable)?;
        let reply = self.host.call(request)?;
        if reply.length > reply.last.len() {
            return Ok(()); // Came in parts, of which only the last is here.
        }
        let text = memchr::memmem::find(reply.last, b"\"buf-b64\": \"").map(|at| &reply.last[at + 12..]);
        let text = text.and_then(|text| text.split(|&byte| byte == b'"').next()).unwrap_or_default();
        if BASE64_STANDARD.decode(text)? == self.content[..size] {
            Ok(())
        } else {
            Err(unexpected(request, reply.last))
        }
    }

    fn write(&mut self, size: usize, time: Duration) -> Result<Vec<f64>> {
        let text = BASE64_STANDARD.encode(&self.content[..size]);
        let request = command("guest-file-write", &format!("\"handle\": {}, \"buf-b64\": \"{text}\"", self.writable));
        // So that what is there afterwards was written now.
        let file = File::options().read(true).write(true).open(&self.written)?;
        file.write_all_at(&vec![0; size], 0)?;
        let count = format!("\"count\": {size}");
        let rate = self.rate(self.writable, &request, size, time, |_, last| {
            memchr::memmem::find(last, count.as_bytes()).is_some()
        })?;
        let mut there = vec![0; size];
        file.read_exact_at(&mut there, 0)?;
        if there == self.content[..size] { Ok(rate) } else { Err("the file does not hold what was written".into()) }
    }

    /// MB/s of requests that move `size` bytes each, through the file and again
    /// from its start.
    fn rate(
        &mut self,
        handle: i64,
        request: &[u8],
        size: usize,
        time: Duration,
        is_good: impl Fn(usize, &[u8]) -> bool,
    ) -> Result<Vec<f64>> {
        self.seek(handle)?;
        let (mut pass, mut moved) = (0, 0.0);
        let unit = f64::from(u32::try_from(size)?) / 1e6;
        let since = Instant::now();
        while moved == 0.0 || since.elapsed() < time {
            if pass + size > LARGEST {
                self.seek(handle)?;
                pass = 0;
            }
            let reply = self.host.call(request)?;
            if !is_good(reply.length, reply.last) {
                return Err(unexpected(request, reply.last));
            }
            pass += size;
            moved += unit;
        }
        Ok(vec![moved / since.elapsed().as_secs_f64()])
    }

    fn seek(&mut self, handle: i64) -> Result<()> {
        let request = command("guest-file-seek", &format!("\"handle\": {handle}, \"offset\": 0, \"whence\": 0"));
        let reply = self.host.call(&request)?;
        // Members come in any order.
        if memchr::memmem::find(reply.last, b"\"position\": 0").is_some() {
            Ok(())
        } else {
            Err(unexpected(&request, reply.last))
        }
    }
}

/// Bytes without a pattern, the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length.div_ceil(8)).flatten().take(length).collect()
}

/// Measures one thing on both, in turns; medians go into the table.
pub(crate) fn take_turns(
    scenario: &Scenario,
    effort: &Effort,
    sessions: &mut [Session; 2],
    table: &mut Table,
) -> Result<()> {
    let rows = scenario.rows();
    let mut figures = vec![[Vec::new(), Vec::new()]; rows.len()];
    for round in 0..effort.rounds {
        for turn in 0..2 {
            // Who begins changes from round to round.
            let which = (round + turn) % 2;
            sessions[which].pin(scenario.is_pinned())?;
            for (row, figure) in figures.iter_mut().zip(sessions[which].take(scenario, effort)?) {
                row[which].push(figure);
            }
        }
    }
    for ((what, unit, better), figures) in rows.into_iter().zip(figures) {
        table.add(what, unit, better, figures.map(|all| Some(median(all))));
    }
    sessions.iter().try_for_each(|session| session.pin(false))
}

/// From exec to the first reply, without the files of a session.
pub(crate) fn start_up(place: &Place, effort: &Effort, table: &mut Table) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..effort.starts {
        for which in Which::BOTH {
            let since = Instant::now();
            let started = start(place, which)?;
            times[which as usize].push(since.elapsed().as_secs_f64() * 1e3);
            drop(started);
        }
    }
    table.add("start-up, exec to first reply", "ms", Better::Less, times.map(|all| Some(median(all))));
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
