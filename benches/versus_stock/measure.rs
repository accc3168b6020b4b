//! What is measured, and how turns are taken.

use std::time::{Duration, Instant};

use super::agents::{Place, Which};
use super::session::{LARGEST, LARGEST_WRITE, Session};
use super::table::{Better, Figure, Table};
use super::{Result, start};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

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
    /// `reply` is what the floor program says.
    Latency {
        command: &'static str,
        arguments: &'static str,
        reply: &'static str,
        pinned: bool,
    },
    InFlight {
        depth: u32,
        pinned: bool,
    },
    OpenClose {
        pinned: bool,
    },
    Read {
        size: usize,
    },
    Write {
        size: usize,
    },
}

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for pinned in [true, false] {
            all.push(Self::Latency { command: "guest-ping", arguments: "", reply: "{\"return\": {}}", pinned });
            all.push(Self::Latency { command: "guest-sync", arguments: "\"id\": 7", reply: "{\"return\": 7}", pinned });
            all.extend([16, 256].map(|depth| Self::InFlight { depth, pinned }));
            all.push(Self::OpenClose { pinned });
        }
        all.extend([4 * KIB, 64 * KIB, MIB, LARGEST].map(|size| Self::Read { size }));
        all.extend([4 * KIB, 64 * KIB, MIB, LARGEST_WRITE].map(|size| Self::Write { size }));
        all
    }

    pub(crate) fn title(&self) -> String {
        let (what, pinned) = match self {
            Self::Latency { command, pinned, .. } => ((*command).to_owned(), *pinned),
            Self::InFlight { depth, pinned } => (format!("guest-ping, {depth} in flight"), *pinned),
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
            Self::InFlight { .. } | Self::OpenClose { .. } => vec![(self.title(), "per s", Better::More)],
            Self::Read { .. } | Self::Write { .. } => vec![
                (self.title(), "MB/s", Better::More),
                (format!("{}, CPU time", self.title()), "ms per MB", Better::Less),
            ],
        }
    }

    const fn is_pinned(self) -> bool {
        matches!(
            self,
            Self::Latency { pinned: true, .. } | Self::InFlight { pinned: true, .. } | Self::OpenClose { pinned: true }
        )
    }
}

fn bytes(count: usize) -> String {
    match count {
        LARGEST_WRITE => "48 MiB less 64 KiB".to_owned(),
        _ if count < MIB => format!("{} KiB", count / KIB),
        _ => format!("{} MiB", count / MIB),
    }
}

/// Measures one thing on all, in turns; medians go into the table.
pub(crate) fn take_turns(
    scenario: &Scenario,
    effort: &Effort,
    sessions: &mut [Session; 3],
    table: &mut Table,
) -> Result<()> {
    let rows = scenario.rows();
    let mut figures = vec![[const { Vec::new() }; 3]; rows.len()];
    for round in 0..effort.rounds {
        for turn in 0..sessions.len() {
            // Who begins changes from round to round.
            let which = (round + turn) % sessions.len();
            sessions[which].pin(scenario.is_pinned())?;
            for (row, figure) in figures.iter_mut().zip(sessions[which].take(scenario, effort)?) {
                row[which].push(figure);
            }
        }
    }
    for ((what, unit, better), figures) in rows.into_iter().zip(figures) {
        table.add(what, unit, better, figures.map(Figure::of));
    }
    sessions.iter().try_for_each(|session| session.pin(false))
}

/// From exec to the first reply, without the files of a session.
pub(crate) fn start_up(place: &Place, effort: &Effort, table: &mut Table) -> Result<()> {
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..effort.starts {
        for which in Which::ALL {
            let since = Instant::now();
            let started = start(place, which)?;
            times[which as usize].push(since.elapsed().as_secs_f64() * 1e3);
            drop(started);
        }
    }
    table.add("start-up, exec to first reply", "ms", Better::Less, times.map(Figure::of));
    Ok(())
}

/// How far memory rises above rest for what is large.
pub(crate) fn rises(sessions: &mut [Session; 3], table: &mut Table) -> Result<()> {
    let [stock, postern, _] = sessions;
    let (stock, postern) = (stock.rise()?, postern.rise()?);
    for (at, what) in ["read", "written"].iter().enumerate() {
        let figures = [Some(Figure::one(stock[at])), Some(Figure::one(postern[at])), None];
        table.add(format!("resident memory above rest while 48 MiB are {what}"), "KiB", Better::Less, figures);
    }
    Ok(())
}
