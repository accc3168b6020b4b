//! One state of the matrix: frames, one after another, each held against what is
//! due; a worker that is let go of is followed by the next.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use postern_core::ipc::List;
use postern_core::messages::{Answer, Ask, Use, WirePath};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use super::oracle::{Cause, Due, Known, due, status};
use super::stage::{Ground, State, descriptors, ends_well, memory, settle, verify};
use super::standin::{Life, Standin};
use crate::support::agent::{Agent, LIVELY, eventually};

/// How much more memory of its own than at its start the broker may have, in KiB,
/// whatever a worker sends: a ring of records that wait (1 MiB), a frame of 64 KiB
/// in each of three pipes, one decoded and one escaped into a record, and what
/// the allocator keeps. Measured is a sixth of it.
const MOST_GROWN: u64 = 4 << 10;
/// What it may have resident at most, its code and libraries included, in KiB;
/// measured is half of it.
const MOST_RESIDENT: u64 = 24 << 10;

/// An agent in a state, and what was found.
pub(super) struct Play<'a> {
    pub(super) ground: &'a Ground,
    pub(super) agent: Agent<'a>,
    pub(super) spawner: Standin,
    pub(super) state: State,
    pub(super) life: Option<Life>,
    pub(super) known: Known,
    /// Lives that must have ended so.
    ends: Vec<(u32, Cause)>,
    /// How often init was asked.
    asked: usize,
    /// Frames by kind.
    pub(super) tried: BTreeMap<&'static str, u64>,
    /// Whatever went otherwise than it must.
    pub(super) odd: Vec<String>,
    /// Most memory seen, in KiB: resident, and of it its own.
    pub(super) resident: u64,
    pub(super) own: u64,
    held_before: usize,
    own_before: u64,
    by_hand: bool,
}

impl<'a> Play<'a> {
    /// Starts an agent and brings it into the state.
    pub(super) fn begin(ground: &'a Ground, state: State) -> Self {
        let (agent, spawner) = ground.start(state == State::Opening);
        let mut play = Self {
            ground,
            agent,
            spawner,
            state,
            life: None,
            known: Known::default(),
            ends: Vec::new(),
            asked: 0,
            tried: BTreeMap::new(),
            odd: Vec::new(),
            resident: 0,
            own: 0,
            held_before: 0,
            own_before: 0,
            by_hand: false,
        };
        // The first is confined, so that the next that is not costs no more.
        play.live();
        settle(&mut play.spawner);
        match state {
            State::Freezing => play.stick(),
            State::Frozen => play.freeze(),
            State::Error => play.lose_a_frozen_one(),
            State::ShuttingDown => {
                assert_eq!(play.ask(&Ask::Shutdown { mode: ShutdownMode::Powerdown }), Answer::ShuttingDown {});
                play.asked += 1;
            }
            State::Unconfined | State::Thawed | State::Opening => {}
        }
        settle(&mut play.spawner);
        play.held_before = descriptors(play.agent.pid());
        play.own_before = memory(play.agent.pid()).1;
        play
    }

    /// The worker that is there, or the next.
    pub(super) fn live(&mut self) -> &mut Life {
        if self.life.is_none() {
            self.known.handles.clear();
            // Those of lives that have ended; one that is under way has no answer.
            self.spawner.answer_opens();
            self.life = Some(self.spawner.confined());
        }
        self.life.as_mut().expect("it lives")
    }

    /// Asks, and hears the answer beside what is only told.
    pub(super) fn ask(&mut self, ask: &Ask) -> Answer {
        self.live().ask(ask);
        self.hear(|answer| !is_told(answer)).map_or_else(|| panic!("no answer to {ask:?}"), |(answer, _)| answer)
    }

    /// What the worker hears next for which `is` holds.
    pub(super) fn hear(&mut self, is: impl Fn(&Answer) -> bool) -> Option<(Answer, Option<OwnedFd>)> {
        loop {
            match self.live().hear() {
                Some((answer, file)) if is(&answer) => return Some((answer, file)),
                Some(_) => {}
                None => return None,
            }
        }
    }

    fn freeze_list(paths: &[&str]) -> Ask {
        let paths = paths.iter().map(|path| WirePath::cut(path.as_bytes())).collect();
        Ask::Freeze { only: List::new(paths) }
    }

    pub(super) fn freeze(&mut self) {
        assert_eq!(self.ask(&Self::freeze_list(&["/third"])), Answer::Begun {});
        let done = self.hear(|answer| matches!(answer, Answer::FreezeDone { .. } | Answer::FreezeFailed { .. }));
        assert!(matches!(done, Some((Answer::FreezeDone { count: 1 }, None))), "{done:?}");
    }

    fn stick(&mut self) {
        self.ground.block();
        assert_eq!(self.ask(&Self::freeze_list(&["/upper", "/third"])), Answer::Begun {});
        eventually("the freeze is stuck", || self.ground.is_stuck(&self.agent).then_some(()));
    }

    /// Freezes, dies, and comes back to a filesystem that no path leads to.
    fn lose_a_frozen_one(&mut self) {
        self.freeze();
        self.agent.child.kill().expect("SIGKILL");
        self.agent.child.wait().expect("its end");
        self.ground.hide();
        self.life = None;
        (self.agent, self.spawner) = self.ground.start(false);
        assert_eq!(self.ask(&Ask::Thaw {}), Answer::Begun {});
        let done = self.hear(|answer| matches!(answer, Answer::ThawDone { .. } | Answer::ThawFailed { .. }));
        assert!(matches!(done, Some((Answer::ThawFailed { .. }, None))), "{done:?}");
    }

    fn note(&mut self, bytes: &[u8], what: &str) {
        let shown: Vec<u8> = bytes.iter().copied().take(48).collect();
        self.odd.push(format!("{:?}: {} bytes {shown:02x?}: {what}", self.state, bytes.len()));
        assert!(self.odd.len() < 20, "{:#?}", self.odd);
    }

    /// Sends one frame with so many descriptors and holds what comes against what
    /// is due.
    pub(super) fn frame(&mut self, kind: &'static str, bytes: &[u8], numbers: &[i32]) {
        *self.tried.entry(kind).or_default() += 1;
        let due = due(self.state, bytes, numbers.len(), &self.known);
        match self.state {
            State::Unconfined => {
                self.life = None;
                self.life = Some(self.spawner.newborn());
            }
            State::Opening => {
                // One that was not let go of awaits its answer already.
                let life = self.live();
                let open = Ask::Open { path: WirePath::cut(b"/m/ro/f"), mode: Mode::Read };
                if !life.asked {
                    life.ask(&open);
                    life.asked = true;
                }
            }
            _ => {}
        }
        let life = self.live();
        if numbers.is_empty() {
            life.raw(bytes);
        } else {
            life.with(bytes, numbers);
        }
        match due {
            Due::Replaced(cause) => {
                let id = life.id;
                match self.hear(|answer| !is_told(answer)) {
                    None => self.life = None,
                    Some((answer, _)) => self.note(bytes, &format!("answered {answer:?}, {cause:?} is due")),
                }
                self.ends.push((id, cause));
            }
            Due::Silence => self.stays(bytes),
            due => self.answered(bytes, due),
        }
        if self.tried.values().sum::<u64>().is_multiple_of(256) {
            self.measure();
        }
    }

    /// The worker is still heard, and was told nothing.
    fn stays(&mut self, bytes: &[u8]) {
        if let Ok(Ask::Closed { handle, .. }) = postern_core::ipc::Wire::whole(bytes) {
            self.known.handles.remove(&handle);
        }
        if self.state == State::Opening {
            // Whether it stayed shows in the log: a next ask would be one too many.
            return;
        }
        self.live().ask(&Ask::Status {});
        let heard = self.hear(|answer| !is_told(answer)).map(|(answer, _)| answer);
        if heard != Some(status(self.state)) {
            self.note(bytes, &format!("then {heard:?}"));
        }
    }

    fn answered(&mut self, bytes: &[u8], due: Due) {
        let Some((answer, file)) = self.hear(|answer| !is_told(answer)) else {
            let id = self.life.take().map(|life| life.id);
            return self.note(bytes, &format!("worker {id:?} was let go of; {due:?} is due"));
        };
        match (due, answer) {
            (Due::Answer(due), answer) if due == answer => {}
            (Due::Refusal, Answer::Refused { .. }) | (Due::Open(_), Answer::NotOpened { .. }) => {}
            (Due::NoFile(errno), Answer::NotOpened { errno: told }) if errno as i32 == told => {}
            (Due::Open(mode), Answer::Opened { handle }) => {
                if let Some(why) = file.as_ref().map_or(Some("no file came".to_owned()), |file| outside(file, mode)) {
                    self.note(bytes, &format!("OUTSIDE THE POLICY: {why}"));
                }
                self.live().ask(&Ask::Closed { handle, used: Use { read: 0, written: 0, calls: 0 } });
            }
            (Due::Shutdown, Answer::ShuttingDown {}) => self.asked += 1,
            (Due::Freeze, Answer::Begun {}) => {
                self.hear(|answer| matches!(answer, Answer::FreezeDone { .. } | Answer::FreezeFailed { .. }));
                assert_eq!(self.ask(&Ask::Thaw {}), Answer::Begun {});
                self.hear(|answer| matches!(answer, Answer::ThawDone { .. }));
                self.look(bytes);
            }
            (Due::Thaw, Answer::Begun {}) => self.thaw_was_asked(bytes),
            (due, answer) => self.note(bytes, &format!("answered {answer:?}, {due:?} is due")),
        }
        self.stays(&[]);
    }

    /// A thaw that the host asked for is done; then back to the state.
    fn thaw_was_asked(&mut self, bytes: &[u8]) {
        if self.state == State::Freezing {
            self.ground.unblock();
        }
        let done = self.hear(|answer| matches!(answer, Answer::ThawDone { .. } | Answer::ThawFailed { .. }));
        let failed = matches!(done, Some((Answer::ThawFailed { .. }, _)));
        if failed != (self.state == State::Error) {
            self.note(bytes, &format!("the thaw ended in {done:?}"));
        }
        match self.state {
            State::Freezing => self.stick(),
            State::Frozen => self.freeze(),
            _ => {}
        }
        self.look(bytes);
    }

    /// Whether filesystems are what they must be.
    pub(super) fn look(&mut self, bytes: &[u8]) {
        if !self.ground.is(self.state, &self.agent) {
            self.note(bytes, "FILESYSTEMS: not what the host asked for last");
        }
    }

    pub(super) fn measure(&mut self) {
        let (resident, own) = memory(self.agent.pid());
        self.resident = self.resident.max(resident);
        self.own = self.own.max(own);
        let grown = own.saturating_sub(self.own_before);
        assert!(grown < MOST_GROWN, "{:?}: {grown} KiB more of its own than at its start", self.state);
        assert!(resident < MOST_RESIDENT, "{:?}: {resident} KiB resident", self.state);
    }

    /// Lives that ended by frames that this play did not send by [`Self::frame`]
    /// have no due end: what records tell of them is right.
    pub(super) const fn expects_hostile(&mut self) {
        self.by_hand = true;
    }

    /// Waits for the end of an agent that was told to stop.
    pub(super) fn has_stopped(mut self) -> Vec<String> {
        assert_eq!(self.agent.ended().code(), Some(0), "{}", self.agent.said());
        self.look(b"at the end");
        let asked = self.ground.asked_to_power_off();
        if asked != self.asked {
            self.odd.push(format!("{:?}: init was asked {asked} times, {} were due", self.state, self.asked));
        }
        self.odd.extend(self.ground.changed());
        self.hold_records_against();
        self.odd
    }

    /// Ends the agent in order, by a real worker and a host, and looks at what is
    /// left.
    pub(super) fn end(mut self) -> Found {
        self.measure();
        self.look(b"at the end");
        let mut shown = None;
        let (said, thawed) = match self.state {
            State::Freezing => {
                self.ground.unblock();
                eventually("the freeze is done", || (self.ask(&Ask::Status {}) == status(State::Frozen)).then_some(()));
                ("frozen", 2)
            }
            State::Frozen => ("frozen", 1),
            State::Error => {
                shown = Some(self.ground.show());
                ("error", 1)
            }
            _ => ("thawed", 0),
        };
        self.life = None;
        self.known.handles.clear();
        let life = self.spawner.confined();
        // What was handed over and did not belong is closed, in the broker's own time.
        let since = Instant::now();
        let held = loop {
            settle(&mut self.spawner);
            let held = descriptors(self.agent.pid());
            if held <= self.held_before || since.elapsed() > LIVELY {
                break held;
            }
        };
        if held > self.held_before {
            self.odd.push(format!("{:?}: {held} descriptors, {} at the start", self.state, self.held_before));
        }
        ends_well(&mut self.agent, &mut self.spawner, Some(life), said, thawed);
        drop(shown);
        let asked = self.ground.asked_to_power_off();
        if asked != self.asked {
            self.odd.push(format!("{:?}: init was asked {asked} times, {} were due", self.state, self.asked));
        }
        self.odd.extend(self.ground.changed());
        self.hold_records_against();
        let lives = self.spawner.lives;
        Found { state: self.state, tried: self.tried, lives, resident: self.resident, own: self.own, odd: self.odd }
    }

    /// Each end of a life has the record that it must have; where many waited in
    /// memory some were lost, and those that are there must be right.
    fn hold_records_against(&mut self) {
        verify(self.agent.home);
        let mut told: BTreeMap<u32, String> = BTreeMap::new();
        let mut lost = false;
        for record in self.agent.records() {
            let action = record["event"]["action"].as_str().unwrap_or_default();
            if action == "malformed-frame" {
                let child = record["postern"]["child"].as_u64().and_then(|child| u32::try_from(child).ok());
                let reason = record["event"]["reason"].as_str().unwrap_or_default().to_owned();
                told.insert(child.expect("a child's number"), reason);
            }
            lost |= action == "records-lost";
        }
        for (id, cause) in &self.ends {
            let right = match told.remove(id) {
                Some(reason) => cause.is_told_by(&reason),
                None => *cause == Cause::Left || lost,
            };
            if !right {
                self.odd.push(format!("{:?}: worker {id} ended by {cause:?}, which no record tells", self.state));
            }
        }
        for (id, reason) in told.into_iter().filter(|_| !self.by_hand) {
            self.odd.push(format!("{:?}: worker {id} was let go of: {reason}; nothing was due", self.state));
        }
    }
}

/// What was found in one state.
pub(super) struct Found {
    pub(super) state: State,
    pub(super) tried: BTreeMap<&'static str, u64>,
    pub(super) lives: u64,
    pub(super) resident: u64,
    pub(super) own: u64,
    pub(super) odd: Vec<String>,
}

/// What the worker is told without having asked, or later.
pub(super) const fn is_told(answer: &Answer) -> bool {
    matches!(
        answer,
        Answer::Setup { .. }
            | Answer::Channel { .. }
            | Answer::FreezeDone { .. }
            | Answer::FreezeFailed { .. }
            | Answer::ThawDone { .. }
            | Answer::ThawFailed { .. }
            | Answer::Frozen { .. }
            | Answer::End {}
    )
}

/// Why this descriptor is not what the policy gives for this mode.
pub(super) fn outside(file: &OwnedFd, mode: Mode) -> Option<String> {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    let flags = fcntl(file, FcntlArg::F_GETFL).map_or(OFlag::O_RDWR, OFlag::from_bits_truncate);
    let writes = flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR);
    let allowed = path.starts_with("/m/rw") || (path.starts_with("/m/ro") && !writes);
    let as_asked = writes == (mode != Mode::Read);
    (!allowed || !as_asked || path == Path::new("/m/rw")).then(|| format!("{} with {flags:?}", path.display()))
}
