//! As much as a worker can send, for a while, of each thing that it may; and
//! workers that read nothing of what they are told. The broker goes on, its memory
//! and its log stay within their bounds.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use postern_broker::log::{BURST_BYTES, BYTES_PER_SECOND};
use postern_core::catalogue::Command;
use postern_core::ipc::{Bytes, List};
use postern_core::messages::{Answer, Ask, Count, Denial, Use, WirePath};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use super::oracle::status;
use super::play::{Found, Play, is_told};
use super::stage::{Ground, State};
use crate::worker::frame;

/// How long each flood goes on.
const LONG: Duration = Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 1000 });

/// How long when run by hand.
fn long() -> Duration {
    if super::is_full() { Duration::from_secs(5) } else { LONG }
}

/// What a flood may add to the log.
#[derive(Clone, Copy, PartialEq)]
enum Log {
    /// The room of what is repeated without effect.
    Bucket,
    /// The policy's `max_bytes`: what is announced before anybody knows what comes
    /// of it.
    Policy,
}

struct Flood {
    name: &'static str,
    log: Log,
    /// Sends some, and takes what is answered; how many asks.
    act: fn(&mut Play<'_>) -> u64,
}

fn open(path: &str, mode: Mode) -> Ask {
    Ask::Open { path: WirePath::cut(path.as_bytes()), mode }
}

/// A hundred asks at once, then their answers.
fn pipelined(play: &mut Play<'_>, ask: &Ask, is: impl Fn(&Answer) -> bool) -> u64 {
    let bytes = frame(ask);
    for _ in 0..100 {
        assert!(play.live().raw(&bytes), "a sound worker is heard");
    }
    for _ in 0..100 {
        let (answer, _) = play.hear(|answer| !is_told(answer)).expect("an answer");
        assert!(is(&answer), "{ask:?}: {answer:?}");
    }
    100
}

/// A thousand notes, which nobody answers.
fn noted(play: &mut Play<'_>, ask: &Ask) -> u64 {
    let bytes = frame(ask);
    for _ in 0..1000 {
        assert!(play.live().raw(&bytes), "a sound worker is heard");
    }
    // Heard when this is.
    let due = status(play.state);
    pipelined(play, &Ask::Status {}, |answer| *answer == due) + 1000
}

fn refused(play: &mut Play<'_>, path: &str, mode: Mode, due: &[Errno]) -> u64 {
    match play.ask(&open(path, mode)) {
        Answer::NotOpened { errno } if due.contains(&Errno::from_raw(errno)) => 1,
        other => panic!("{path}: {other:?}"),
    }
}

const UNUSED: Use = Use { read: 0, written: 0, calls: 0 };

fn denied() -> Ask {
    Ask::Denied { command: Bytes::cut(&[0xff; 64]), why: Denial::Unknown }
}

fn counted() -> Ask {
    let counts = Command::all().map(|command| Count { command, times: u64::MAX }).collect();
    Ask::Counted { commands: List::new(counts).expect("a short list") }
}

fn limited() -> Ask {
    let counts = Command::all().map(|command| Count { command, times: u64::MAX }).collect();
    Ask::Limited { commands: List::new(counts).expect("a short list") }
}

const ANYWHERE: [Flood; 7] = [
    Flood {
        name: "asks for the status",
        log: Log::Bucket,
        act: |play| {
            let due = status(play.state);
            pipelined(play, &Ask::Status {}, |answer| *answer == due)
        },
    },
    Flood { name: "denied commands", log: Log::Bucket, act: |play| noted(play, &denied()) },
    Flood { name: "counts", log: Log::Bucket, act: |play| noted(play, &counted()) },
    Flood { name: "counts of what was limited", log: Log::Bucket, act: |play| noted(play, &limited()) },
    Flood { name: "says that it is there", log: Log::Bucket, act: |play| noted(play, &Ask::Alive {}) },
    Flood {
        name: "opens outside the policy",
        log: Log::Bucket,
        act: |play| {
            let path = format!("/m/no/{}", "f".repeat(3000));
            refused(play, &path, Mode::WritePlus, &[Errno::EACCES, Errno::EBUSY])
        },
    },
    Flood {
        name: "shutdowns that the policy lacks",
        log: Log::Bucket,
        act: |play| {
            pipelined(play, &Ask::Shutdown { mode: ShutdownMode::Halt }, |answer| {
                matches!(answer, Answer::Refused { .. })
            })
        },
    },
];

const THAWED: [Flood; 5] = [
    Flood {
        name: "opens of what is not there",
        log: Log::Bucket,
        act: |play| refused(play, "/m/ro/none", Mode::Read, &[Errno::ENOENT]),
    },
    Flood {
        name: "opens that make nothing",
        log: Log::Bucket,
        act: |play| refused(play, "/m/rw/none/new", Mode::Write, &[Errno::ENOENT, Errno::EAGAIN]),
    },
    Flood {
        name: "opens and closes",
        log: Log::Policy,
        act: |play| {
            let Answer::Opened { handle } = play.ask(&open("/m/ro/f", Mode::Read)) else { panic!("a file") };
            play.live().ask(&Ask::Closed { handle, used: UNUSED });
            2
        },
    },
    Flood {
        name: "freezes of nothing",
        log: Log::Bucket,
        act: |play| {
            let paths = vec![WirePath::cut(&[b'/'; 253]); 256];
            match play.ask(&Ask::Freeze { only: List::new(paths) }) {
                Answer::Begun {} => {
                    let done = play.hear(|answer| matches!(answer, Answer::FreezeDone { .. }));
                    assert!(matches!(done, Some((Answer::FreezeDone { count: 0 }, _))), "{done:?}");
                }
                Answer::Refused { .. } => {}
                other => panic!("{other:?}"),
            }
            1
        },
    },
    Flood {
        name: "thaws of nothing",
        log: Log::Bucket,
        act: |play| {
            assert_eq!(play.ask(&Ask::Thaw {}), Answer::Begun {});
            play.hear(|answer| matches!(answer, Answer::ThawDone { count: 0 })).expect("its end");
            1
        },
    },
];

/// Workers that never read: how many asks were heard before the broker had
/// enough of it.
fn deaf(play: &mut Play<'_>, ask: &Ask) -> u64 {
    let bytes = frame(ask);
    let mut sent = 0;
    while play.live().raw(&bytes) {
        sent += 1;
        if sent % 4096 == 0 {
            play.measure();
        }
        assert!(sent < 10_000_000, "the broker keeps answers for ever");
    }
    play.life = None;
    sent
}

fn log_bytes(play: &Play<'_>) -> u64 {
    fs::metadata(play.agent.home.log()).map(|facts| facts.len()).unwrap_or_default()
}

/// What the bucket lets through at once, and a record more.
const SLACK: u64 = BURST_BYTES + (128 << 10);

fn flood(play: &mut Play<'_>, flood: &Flood) {
    let (before, started) = (log_bytes(play), Instant::now());
    let mut asks = 0;
    while started.elapsed() < long() {
        asks += (flood.act)(play);
        *play.tried.entry("flood").or_default() += 1;
        play.measure();
    }
    let grown = log_bytes(play) - before;
    println!("    {:?}: {asks} {}, {} KiB of records, {} KiB", play.state, flood.name, grown >> 10, play.own);
    let seconds = started.elapsed().as_secs() + 1;
    let room = SLACK + seconds * BYTES_PER_SECOND;
    assert!(flood.log == Log::Policy || grown < room, "{}: {grown} bytes of {room}", flood.name);
    play.look(flood.name.as_bytes());
    *play.tried.entry("flood").or_default() += asks;
}

/// Workers that ask for a file and leave, before an opener that is stuck in one:
/// what is known of opens that nobody waits for is bounded by that opener's
/// socket, and a full one is given up.
fn abandoned() -> Found {
    const WORKERS: u64 = 1000;
    let ground = Ground::new();
    let mut play = Play::begin(&ground, State::Opening);
    play.life = None;
    let (lives, bytes) = (play.spawner.lives, frame(&open(&format!("/m/ro/{}", "f".repeat(2000)), Mode::Read)));
    let (mut openers, mut before) = (0, play.spawner.openers);
    while play.spawner.lives < lives + WORKERS {
        let mut life = play.spawner.confined();
        assert!(life.raw(&bytes));
        assert!(life.hear().is_some(), "it is told what it may");
        drop(life);
        play.measure();
        openers += play.spawner.openers - std::mem::replace(&mut before, play.spawner.openers);
        *play.tried.entry("flood").or_default() += 1;
    }
    println!("    {WORKERS} workers left an open unanswered, {openers} openers were given up, {} KiB", play.own);
    assert!(openers > 0, "an opener that reads nothing is told for ever");
    play.end()
}

pub(super) fn floods_stay_within_bounds() {
    let mut all: Vec<Found> = vec![abandoned()];
    for state in [State::Thawed, State::Frozen] {
        let ground = Ground::new();
        let mut play = Play::begin(&ground, state);
        let more = if state == State::Thawed { &THAWED[..] } else { &[] };
        for one in ANYWHERE.iter().chain(more) {
            flood(&mut play, one);
        }
        for ask in [Ask::Status {}, open("/m/no/f", Mode::Read), Ask::Shutdown { mode: ShutdownMode::Halt }] {
            for _ in 0..20 {
                let heard = deaf(&mut play, &ask);
                *play.tried.entry("flood").or_default() += heard;
                play.measure();
            }
        }
        let lives = play.spawner.lives;
        let started = Instant::now();
        while started.elapsed() < long() {
            play.frame("flood", &[0xff], &[]);
        }
        println!("    {state:?}: {} workers in {:?}", play.spawner.lives - lives, started.elapsed());
        let found = play.end();
        println!("    {state:?}: peak {} KiB, {} of its own", found.resident, found.own);
        all.push(found);
    }
    let odd: Vec<&String> = all.iter().flat_map(|found| &found.odd).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    let frames: u64 = all.iter().map(|found| found.tried.values().sum::<u64>()).sum();
    println!("    {frames} frames of floods");
}
