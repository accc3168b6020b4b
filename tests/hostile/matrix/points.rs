//! A worker that ends, in one of four ways, at each point of an exchange: it is
//! replaced, and what was begun is done. One that goes on while postern stops. One
//! that lies about who it is.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, UnixCredentials, sendmsg, shutdown};
use postern_core::ipc::{Bytes, List, MAX_FRAME};
use postern_core::messages::{Answer, Ask, Denial, Text, WirePath};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use super::grammar::valid;
use super::oracle::{Due, due, status};
use super::play::Play;
use super::stage::{Ground, State, settle};
use crate::support::agent::{Host, eventually};
use crate::support::cell;
use crate::worker::{frame, ready};

/// How a worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Leaves,
    /// It says no more, and would hear.
    StopsSaying,
    /// It hears no more, and asks.
    StopsHearing,
    StopsBoth,
}

const ENDS: [End; 4] = [End::Leaves, End::StopsSaying, End::StopsHearing, End::StopsBoth];

/// A point of an exchange.
struct Point {
    name: &'static str,
    /// The state before it.
    from: State,
    act: fn(&mut Play<'_>),
    /// The state behind it, whatever became of the worker.
    to: State,
    /// How often init is asked.
    asked: usize,
}

const fn point(name: &'static str, from: State, act: fn(&mut Play<'_>), to: State, asked: usize) -> Point {
    Point { name, from, act, to, asked }
}

use State::{Frozen, Thawed};

const POINTS: [Point; 15] = [
    point("before its first word", Thawed, be_born, Thawed, 0),
    point("behind its first word", Thawed, |_| (), Thawed, 0),
    point("an open is asked for", Thawed, |play| send(play, &open("/m/ro/f", Mode::Read)), Thawed, 0),
    point("a file is there, unread", Thawed, |play| send_and_wait(play, &open("/m/ro/f", Mode::Read)), Thawed, 0),
    point("it holds a file", Thawed, |play| drop(play.ask(&open("/m/ro/f", Mode::Read))), Thawed, 0),
    point("a file is to be made", Thawed, |play| send(play, &open("/m/rw/new", Mode::Write)), Thawed, 0),
    point("a freeze is asked for", Thawed, |play| send(play, &freeze()), Frozen, 0),
    point("a freeze has begun", Thawed, |play| drop(play.ask(&freeze())), Frozen, 0),
    point("a freeze is done", Thawed, frozen, Frozen, 0),
    point("a thaw is asked for", Frozen, |play| send(play, &Ask::Thaw {}), Thawed, 0),
    point("a thaw has begun", Frozen, |play| drop(play.ask(&Ask::Thaw {})), Thawed, 0),
    point("frozen, a refusal is there", Frozen, |play| send_and_wait(play, &freeze()), Frozen, 0),
    point("a shutdown is asked for", Thawed, |play| send(play, &power_off()), Thawed, 1),
    point("a shutdown is answered", Thawed, |play| drop(play.ask(&power_off())), Thawed, 1),
    point("a frame that is none", Thawed, |play| assert!(play.live().raw(&[0xff; 100])), Thawed, 0),
];

fn open(path: &str, mode: Mode) -> Ask {
    Ask::Open { path: WirePath::cut(path.as_bytes()), mode }
}

fn freeze() -> Ask {
    Ask::Freeze { only: List::new(vec![WirePath::cut(b"/third")]) }
}

const fn power_off() -> Ask {
    Ask::Shutdown { mode: ShutdownMode::Powerdown }
}

fn frozen(play: &mut Play<'_>) {
    play.freeze();
}

fn be_born(play: &mut Play<'_>) {
    play.life = None;
    play.life = Some(play.spawner.newborn());
}

fn send(play: &mut Play<'_>, ask: &Ask) {
    play.live().ask(ask);
}

/// Asks, and leaves the answer where it is.
fn send_and_wait(play: &mut Play<'_>, ask: &Ask) {
    // What it is told at first is taken.
    assert_eq!(play.ask(&Ask::Status {}), status(play.state));
    let life = play.live();
    life.ask(ask);
    let _ = poll(&mut [PollFd::new(life.pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10_000_u16));
}

/// Time on a processor that a process has had, in clock ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    // utime and stime of proc_pid_stat(5), the 14th and 15th.
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Ends the worker and sees that the broker asks for the next.
fn end(play: &mut Play<'_>, how: End) {
    let Some(life) = play.life.take() else { return };
    let number = life.pipe.as_fd().as_raw_fd();
    let lives = play.spawner.lives;
    match how {
        End::Leaves => drop(life),
        End::StopsSaying => {
            let _ = shutdown(number, Shutdown::Write);
            play.life = Some(life);
        }
        End::StopsBoth => {
            let _ = shutdown(number, Shutdown::Both);
            play.life = Some(life);
        }
        End::StopsHearing => {
            let _ = shutdown(number, Shutdown::Read);
            // The first answer that nobody can hear is the last.
            life.ask(&Ask::Status {});
            life.ask(&Ask::Status {});
            play.life = Some(life);
        }
    }
    eventually(&format!("another worker after one that {how:?}"), || {
        play.spawner.pump(Duration::from_millis(5));
        (play.spawner.lives > lives).then_some(())
    });
    play.life = None;
}

pub(super) fn an_end_at_every_point() {
    let ground = Ground::new();
    let mut play = Play::begin(&ground, Thawed);
    for point in &POINTS {
        for how in ENDS {
            match (play.state, point.from) {
                (Thawed, Frozen) => play.freeze(),
                (Frozen, Thawed) => drop(play.ask(&Ask::Thaw {})),
                _ => {}
            }
            play.state = point.from;
            eventually("the state before", || play.ground.is(play.state, &play.agent).then_some(()));
            (point.act)(&mut play);
            end(&mut play, how);
            play.state = point.to;
            eventually(&format!("{}, {how:?}: then the answer to a status", point.name), || {
                (play.ask(&Ask::Status {}) == status(play.state)).then_some(())
            });
            play.look(point.name.as_bytes());
            assert_eq!(play.ground.asked_to_power_off(), point.asked, "{}, {how:?}", point.name);
            *play.tried.entry("end").or_default() += 1;
        }
    }
    if play.state == Frozen {
        drop(play.ask(&Ask::Thaw {}));
        play.state = Thawed;
    }
    // Half a socket costs no time while nobody asks.
    let life = play.live();
    let _ = shutdown(life.pipe.as_fd().as_raw_fd(), Shutdown::Read);
    settle(&mut play.spawner);
    let before = ticks(play.agent.pid());
    sleep(Duration::from_millis(500));
    let used = ticks(play.agent.pid()) - before;
    assert!(used < 20, "{used} ticks of 50 while half a socket is open: the loop spins");
    end(&mut play, End::StopsHearing);

    // A host is there: a worker that has its channel ends, or lets go of it.
    let host = Host::connect(&play.agent.home.path("host.sock"));
    for how in ENDS {
        let channel = play.hear(|answer| matches!(answer, Answer::Channel { .. }));
        assert!(channel.is_some_and(|(_, file)| file.is_some()), "the channel comes to each");
        end(&mut play, how);
    }
    let channel = play.hear(|answer| matches!(answer, Answer::Channel { .. })).expect("the channel");
    play.live().ask(&Ask::HostGone {});
    assert_eq!(play.ask(&Ask::Status {}), status(Thawed), "it may say so once");
    drop(channel);
    let (mut stream, host) = host.split();
    assert_eq!(stream.read(&mut [0]).ok(), Some(0), "the broker keeps no channel that the worker let go of");
    play.live().ask(&Ask::HostGone {});
    eventually("who says it twice is let go of", || play.live().hear().is_none().then_some(()));
    play.life = None;
    drop((stream, host));
    let tried = play.tried.values().sum::<u64>();
    println!("    {tried} ends, each followed by another worker; filesystems as they were asked to be");
    play.expects_hostile();
    let found = play.end();
    assert_eq!(found.odd, Vec::<String>::new());
}

/// What ends the worker, and with it the agent that waits for it.
fn last_frames() -> Vec<Vec<u8>> {
    let long = vec![3; MAX_FRAME + 1];
    let panicked = frame(&Ask::Panicked { message: Text::cut(b"last words") });
    let mut last = vec![vec![0xff], frame(&ready()), Vec::new()];
    if !cfg!(debug_assertions) {
        last.extend([vec![0], long, vec![3, 200, 0, b'/'], panicked, frame(&Ask::NoPort { errno: 13 })]);
    }
    last
}

pub(super) fn frames_while_postern_stops() {
    let mut tried = 0;
    for state in [Thawed, Frozen] {
        for last in last_frames() {
            let ground = Ground::new();
            let mut play = Play::begin(&ground, state);
            play.live();
            play.agent.signal("broker", Signal::SIGTERM);
            play.hear(|answer| matches!(answer, Answer::End {})).expect("the word to end");
            play.state = Thawed;
            play.known.stopping = true;
            eventually("all is thawed", || ground.is(Thawed, &play.agent).then_some(()));
            for bytes in valid(1) {
                // What ends it comes last.
                if !matches!(due(Thawed, &bytes, 0, &play.known), Due::Replaced(_)) {
                    play.frame("stopping", &bytes, &[]);
                }
            }
            play.frame("stopping", &last, &[]);
            tried += play.tried.values().sum::<u64>();
            let odd = play.has_stopped();
            assert_eq!(odd, Vec::<String>::new());
        }
    }
    println!("    {tried} frames while postern stopped; all was thawed, nothing frozen again");
}

/// A guest that is short of memory for a while keeps its agent. Of workers the
/// matrix tells, in the state in which they say their first word.
pub(super) fn a_barrier_that_fails_later() {
    let ground = Ground::new();
    let mut play = Play::begin(&ground, State::Opening);
    play.spawner.failing_openers = 2;
    play.spawner.opener = None;
    eventually("an opener that is confined, after two that were not", || {
        play.spawner.pump(Duration::from_millis(5));
        play.spawner.opener.is_some().then_some(())
    });
    assert_eq!(play.spawner.failing_openers, 0);
    assert!(play.agent.said().contains("opener: could not be confined: no memory; trying again"));
    play.frame("first word", &frame(&Ask::Denied { command: Bytes::cut(b"x"), why: Denial::Unknown }), &[]);
    let found = play.end();
    assert_eq!(found.odd, Vec::<String>::new());
}

// ---- who sends ---------------------------------------------------------------

/// The role of a worker that lies about its numbers, on descriptor 0: the kernel's
/// answers, and whether the truth was sent.
pub(crate) fn liar(_: &[String]) {
    let truth = UnixCredentials::new();
    let bytes = frame(&Ask::Denied { command: Bytes::cut(b"guest-lie"), why: Denial::Unknown });
    let say = |bytes: &[u8], pid, uid, gid| {
        let from = UnixCredentials::from(libc::ucred { pid, uid, gid });
        let control = [ControlMessage::ScmCredentials(&from)];
        sendmsg::<()>(0, &[std::io::IoSlice::new(bytes)], &control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
    };
    let (pid, uid, gid) = (truth.pid(), truth.uid(), truth.gid());
    for (pid, uid, gid) in [(1, uid, gid), (pid, 0, gid), (pid, uid, 0), (1, 0, 0)] {
        println!("{:?}", say(&bytes, pid, uid, gid));
    }
    println!("{:?}", say(&frame(&ready()), pid, uid, gid));
}

pub(super) fn a_lie_about_the_sender() {
    let ground = Ground::new();
    let mut play = Play::begin(&ground, Thawed);
    play.life = None;
    let life = play.spawner.newborn();
    let socket = life.pipe.as_fd().try_clone_to_owned().expect("a duplicate");
    let worker = play.agent.home.worker;
    let liar = Command::new(cell::SELF)
        .args(["--role", "liar"])
        .stdin(socket)
        .stdout(Stdio::piped())
        .uid(worker)
        .gid(worker)
        .spawn()
        .expect("the liar");
    let pid = liar.id();
    let said = liar.wait_with_output().expect("what it found");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let refused = format!("{:?}", Err::<(), _>(Errno::EPERM));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, [refused.as_str(), &refused, &refused, &refused, "Ok(())"]);
    let (id, started) = (life.id, "process-started");
    play.life = Some(life);
    let record = play.agent.await_record(started, |record| record["postern"]["child"] == id);
    assert_eq!(record["process"]["pid"], pid, "{record}");
    assert_eq!(record["user"]["id"], worker.to_string(), "{record}");
    let found = play.end();
    assert_eq!(found.odd, Vec::<String>::new());
}
