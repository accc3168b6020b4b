//! The broker killed at each step of a freeze, a thaw and an end, by all of its
//! threads' calls: the next one finds what is frozen, and it is thawed by the
//! host or, without one, by the policy's limit.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::scene::{start_quietly, status, thaw, with};
use crate::support::agent::{Agent, Home, LIVELY, eventually, lives};
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;
use crate::table::Times;
use crate::worker::Line;

pub(crate) const TESTS: &[Test] = &[
    ("a_broker_killed_anywhere_in_a_freeze_leaves_nothing_frozen", || matrix(During::Freeze)),
    ("a_broker_killed_anywhere_in_a_thaw_leaves_nothing_frozen", || matrix(During::Thaw)),
    ("a_broker_killed_anywhere_in_its_end_leaves_nothing_frozen", || matrix(During::End)),
];

/// Strikes in each, spread over all stops.
const STRIKES: usize = if cfg!(debug_assertions) { 2 } else { 10 };
/// How long filesystems may stay frozen; by itself the next broker thaws within
/// this much more.
const LIMIT: Duration = Duration::from_secs(1);
const POLICY: &str = "[freeze]\nlimit = \"1s\"\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    Freeze,
    Thaw,
    /// SIGTERM while frozen.
    End,
}

/// Every thread of the broker under trace.
struct Threads {
    leader: Pid,
    all: Vec<Pid>,
}

impl Threads {
    fn attach(leader: i32) -> Self {
        let entries = fs::read_dir(format!("/proc/{leader}/task")).expect("its threads").flatten();
        let all: Vec<Pid> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect();
        for thread in &all {
            ptrace::attach(*thread).expect("attach");
            waitpid(*thread, Some(WaitPidFlag::__WALL)).expect("it stops");
            ptrace::setoptions(*thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("options");
            ptrace::syscall(*thread, None).expect("it goes on");
        }
        Self { leader: Pid::from_raw(leader), all }
    }

    /// Lets them go on from stop to stop until `enough` of them, counted over all
    /// threads, or until `over` says that what was watched is over. How many.
    fn run(&self, enough: usize, mut over: impl FnMut() -> bool) -> usize {
        let (mut stops, started) = (0, Instant::now());
        while stops < enough && !over() {
            assert!(started.elapsed() < LIVELY, "it hangs at stop {stops}");
            let mut quiet = true;
            for thread in &self.all {
                match waitpid(*thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::PtraceSyscall(_)) => {
                        (stops, quiet) = (stops + 1, false);
                        if stops >= enough {
                            // It stays where it is, to be killed there.
                            return stops;
                        }
                        let _ = ptrace::syscall(*thread, None);
                    }
                    Ok(WaitStatus::Stopped(_, signal)) => {
                        let _ = ptrace::syscall(*thread, Some(signal).filter(|signal| *signal != Signal::SIGSTOP));
                    }
                    _ => {}
                }
            }
            if quiet {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        stops
    }

    /// Kills the process, wherever its threads are.
    fn kill(self) {
        kill(self.leader, Signal::SIGKILL).expect("SIGKILL");
        // A thread that is traced is gone only when its tracer has heard of it.
        for thread in self.all.iter().filter(|thread| **thread != self.leader) {
            loop {
                match waitpid(*thread, Some(WaitPidFlag::__WALL)) {
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => break,
                    _ => {}
                }
            }
        }
    }
}

struct Stage<'a> {
    home: &'a Home,
    mounts: &'a [Mounted; 2],
}

impl Stage<'_> {
    fn is_frozen(&self) -> bool {
        self.mounts.iter().any(Mounted::is_frozen)
    }

    /// One run, killed at this stop if it gets so far. How many stops there were,
    /// and how long until the next broker answered and until all was thawed.
    fn run(&self, during: During, stop: usize, by_host: bool) -> (usize, Duration, Duration) {
        let mut agent = self.home.start(&with(if by_host { "" } else { POLICY }));
        let mut line = Line::to(self.home);
        line.ping();
        if during != During::Freeze {
            assert_eq!(line.ask("guest-fsfreeze-freeze", &json!({}))["return"], 2);
        }
        let frozen = Instant::now();
        let family = agent.family();
        let threads = Threads::attach(agent.pid());
        let command = if during == During::Freeze { "guest-fsfreeze-freeze" } else { "guest-fsfreeze-thaw" };
        if during == During::End {
            kill(threads.leader, Signal::SIGTERM).expect("SIGTERM");
        } else {
            line.send(json!({ "execute": command, "id": "it" }).to_string().as_bytes());
        }
        let mut ended = false;
        let stops = threads.run(stop, || {
            ended = if during == During::End { !lives(family["worker"]) } else { line.has_reply("it") };
            ended
        });
        let killed = Instant::now();
        threads.kill();
        agent.ended();
        eventually("its family is gone", || family.values().all(|pid| !lives(*pid)).then_some(()));
        drop(agent);
        let (back, thawed) = self.recovers(by_host, killed, frozen);
        (stops, back, thawed)
    }

    /// The next broker: how long until it answers, and until nothing is frozen.
    fn recovers(&self, by_host: bool, killed: Instant, frozen: Instant) -> (Duration, Duration) {
        let (agent, mut host) = start_quietly(self.home, &with(if by_host { "" } else { POLICY }));
        let back = killed.elapsed();
        if by_host {
            // As a host does that lost its agent in the midst of something.
            thaw(&mut host);
        }
        eventually("it says that nothing is frozen", || (status(&mut host) == "thawed").then_some(()));
        let thawed = killed.elapsed();
        assert!(!self.is_frozen(), "and nothing is");
        if !by_host {
            assert!(frozen.elapsed() < LIMIT + LIVELY);
        }
        assert!(!self.home.path("state/frozen").exists());
        drop(host);
        stop(agent);
        (back, thawed)
    }
}

fn stop(mut agent: Agent<'_>) {
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.said());
}

fn matrix(during: During) {
    let disks = [Disk::small("ext4", "/a.img"), Disk::small("ext4", "/b.img")];
    let mounts = [disks[0].mount("/a"), disks[1].mount("/b")];
    let home = Home::new();
    let stage = Stage { home: &home, mounts: &mounts };
    // All of it once, and killed behind it.
    let (all, ..) = stage.run(during, usize::MAX, true);
    let strikes = crate::worker::strikes(STRIKES).min(all);
    let (mut back, mut by_host, mut by_limit) = (Times::default(), Times::default(), Times::default());
    for number in 0..strikes {
        // Every other time nobody asks for a thaw.
        let asks = number % 2 == 0;
        let (_, answered, free) = stage.run(during, 1 + number * all / strikes, asks);
        back.push(answered);
        if asks { &mut by_host } else { &mut by_limit }.push(free);
    }
    let name = match during {
        During::Freeze => "a freeze",
        During::Thaw => "a thaw",
        During::End => "an end while frozen",
    };
    let points = format!("{strikes} of {all} stops of {name}");
    back.row("broker, SIGKILL", &points, true, "time until the next start answers, on a new connection");
    by_host.row("broker, SIGKILL", &points, true, "time until nothing is frozen: the host thaws");
    by_limit.row("broker, SIGKILL", &points, true, "time until nothing is frozen: the limit of 1 s thaws");
}
