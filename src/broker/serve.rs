//! The broker's loop: hears worker, opener, spawner, freezer, hosts that
//! connect, signals and its own clocks, one at a time, and never waits for any
//! of them.
//!
//! Every ask goes through [`crate::decide`]; every effect and every descriptor
//! has a record before it.
//!
//! Trust: see each `hear_…`. Texts and paths of worker and host are bounded by
//! their frames and escaped by the log.

mod acts;
mod asks;
mod candidate;
mod children;
mod clocks;
mod facts;
mod freezes;
mod manager;
mod opens;
mod rates;
mod reload;
mod watch;

use std::collections::BTreeMap;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use postern_core::audit::{self, Mounts, Record};
use postern_core::catalogue::Command;
use postern_core::confine::Confined;
use postern_core::messages::{Answer, Role, WirePath};
use postern_core::policy::Policy;
use postern_core::policy::compare::Held;
use postern_core::policy::rules::Mode;
use postern_core::policy::written::Kept;
use postern_core::rate::Rates;

use crate::acts::Acts;
use crate::closer::Closer;
use crate::family::{Family, Opener, Worker};
use crate::fsfreeze::{Engine, Filesystem, Handles, Status, Why};
use crate::heads::Heads;
use crate::host::{Host, HostError};
use crate::launch::Fatal;
use crate::log::{Log, LogError, Receipt};
use crate::notify::Notify;
use crate::say::{Level, Voice};
use crate::shutdown::Shutdown;
use crate::sources::Sources;
use acts::Acting;
use candidate::Reload;
use clocks::FAREWELL;
use facts::Telling;
use manager::Standing;
use opens::Open;
use watch::Watch;

/// What the launch put together.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) policy: Policy,
    /// Where it can be read again.
    pub(crate) kept: Option<Kept>,
    /// What the start left that a policy can make use of.
    pub(crate) held: Held,
    pub(crate) voice: Voice,
    pub(crate) notify: Notify,
    pub(crate) heads: Heads,
    pub(crate) log: Log,
    pub(crate) engine: Option<Engine>,
    pub(crate) acts: Option<Acts>,
    pub(crate) shutdown: Shutdown,
    pub(crate) handles: Handles,
    /// Where facts come from.
    pub(crate) sources: Sources,
    pub(crate) host: Host,
    pub(crate) family: Family,
    pub(crate) signals: SignalFd,
    pub(crate) privileged: bool,
}

/// An open under way.
#[derive(Debug)]
struct Opening {
    id: u64,
    handle: u64,
    path: WirePath,
    mode: Mode,
    rule: usize,
    /// Whether the open itself may have an effect, so that it was announced.
    changes: bool,
    /// Whether the opener was told; one that is being replaced is told later.
    sent: bool,
    /// Whether a fresh opener has had its try.
    again: bool,
    /// When it was told, or else asked for.
    since: Instant,
}

/// A child that is being let go of, until the spawner tells how it ended.
#[derive(Debug)]
struct Gone {
    id: u32,
    role: Role,
    pid: i32,
    /// Whether it ever was confined.
    ready: bool,
    /// Its last words, or why it was let go of.
    why: Option<audit::Text>,
    /// It did no wrong: its port went.
    blameless: bool,
    /// It was confined, and nobody wanted it to end.
    is_crash: bool,
    /// When it was let go of.
    since: Instant,
}

/// The broker.
#[derive(Debug)]
pub(crate) struct Broker {
    parts: Parts,
    closer: Closer,
    opener: Option<Opener>,
    worker: Option<Worker>,
    /// Whether the worker, while it holds files, still says that it is there.
    watch: Watch,
    gone: Vec<Gone>,
    /// Whether an opener has been confined: every path that must be there was.
    paths_stood: bool,
    /// Whether a worker has been confined.
    worker_stood: bool,
    /// The worker that is being born was sent for the port, which is back.
    fetching: bool,
    /// Why the channel is lost for good; only a new start can find it again.
    lost: Option<HostError>,
    /// How many children in a row died before they were confined.
    stillborn: u32,
    /// What is known of why the next child is let go of.
    last_words: Option<audit::Text>,
    /// The worker's open files.
    files: BTreeMap<u64, Open>,
    opening: Option<Opening>,
    /// A fact that is being told.
    telling: Option<Telling>,
    /// When an opener was replaced for what facts are read from.
    renewed: Option<Instant>,
    /// How often opens and acts are asked for.
    rates: Rates,
    /// Opens whose worker ended while the opener was at them, and that worker.
    unanswered: Vec<(u32, Opening)>,
    opens: u64,
    /// Which freeze command runs; for the record of its end.
    freezing: Option<Command>,
    /// The record that announced it.
    announced: Option<Record>,
    /// The act that runs beside all this, if one does.
    acting: Option<Acting>,
    /// The worker awaits the end of a thaw.
    owes_thaw: bool,
    /// When to try next to thaw what is frozen past the policy's limit.
    next_limit: Option<Instant>,
    /// Postern stops; the worker may take until then.
    stopping: Option<Instant>,
    stop_reason: &'static str,
    /// Postern stops, and something did not thaw.
    gave_up: bool,
    landlock_abi: u8,
    reload: Reload,
    /// What the service manager was told last.
    told: Standing,
    /// Records that a build for tests, broken on purpose, writes behind their
    /// acts; see the feature `sabotage`.
    #[cfg(feature = "sabotage")]
    late: Vec<Record>,
}

fn text(bytes: &[u8]) -> audit::Text {
    audit::Text::new(bytes)
}

fn mounts(filesystems: &[Filesystem]) -> Mounts {
    filesystems.iter().map(|one| path_text(&one.mountpoint)).collect()
}

fn path_text(path: &std::path::Path) -> audit::Text {
    text(path.as_os_str().as_encoded_bytes())
}

impl Broker {
    pub(crate) fn new(parts: Parts, closer: Closer, landlock_abi: u8) -> Self {
        let frozen = parts.engine.as_ref().is_some_and(|engine| engine.status() != Status::Thawed);
        Self {
            parts,
            closer,
            opener: None,
            worker: None,
            watch: Watch::default(),
            gone: Vec::new(),
            paths_stood: false,
            worker_stood: false,
            fetching: false,
            lost: None,
            stillborn: 0,
            last_words: None,
            files: BTreeMap::new(),
            opening: None,
            telling: None,
            renewed: None,
            rates: Rates::default(),
            unanswered: Vec::new(),
            opens: 0,
            freezing: None,
            announced: None,
            acting: None,
            owes_thaw: false,
            next_limit: frozen.then(Instant::now),
            stopping: None,
            stop_reason: "",
            gave_up: false,
            landlock_abi,
            reload: Reload::default(),
            told: Standing::default(),
            #[cfg(feature = "sabotage")]
            late: Vec::new(),
        }
    }

    /// Serves until postern is told to stop, and has thawed.
    pub(crate) fn serve(&mut self, _confined: &Confined) -> Result<(), Fatal> {
        let served = self.run();
        if let Err(fatal) = &served {
            self.parts.notify.stopping();
            self.parts.notify.status(&fatal.to_string());
            self.last_thaw();
            self.note(&Record::Stopped { reason: text(fatal.to_string().as_bytes()) });
        }
        self.parts.heads.end(&self.parts.log, &self.parts.voice);
        served
    }

    fn run(&mut self) -> Result<(), Fatal> {
        loop {
            self.keep_reload();
            self.keep_family()?;
            self.keep_time();
            self.tell_manager();
            self.parts.heads.keep(&self.parts.log, &self.parts.voice, Instant::now());
            if self.is_done() {
                if self.gave_up {
                    return Err(Fatal::StillFrozen);
                }
                if let Some(lost) = self.lost.take() {
                    return Err(Fatal::Host(lost));
                }
                self.forget_unanswered();
                self.forget_act();
                self.tell_refused();
                self.note(&Record::Stopped { reason: text(self.stop_reason.as_bytes()) });
                return Ok(());
            }
            let awake = self.wait()?;
            if awake.signals {
                self.hear_signals();
            }
            if awake.spawner {
                self.hear_spawner()?;
            }
            if awake.engine {
                self.hear_engine();
            }
            if awake.acts {
                self.hear_acts();
            }
            if awake.opener {
                self.hear_opener()?;
            }
            if awake.worker {
                self.hear_worker()?;
            }
            if awake.tried_opener {
                self.hear_tried_opener();
            }
            if awake.tried_worker {
                self.hear_tried_worker();
            }
            if awake.manager {
                self.parts.notify.tell_on();
            }
            if awake.heads {
                self.parts.heads.tell_on(&self.parts.log, &self.parts.voice);
            }
            #[cfg(feature = "sabotage")]
            for record in std::mem::take(&mut self.late) {
                self.note(&record);
            }
            if awake.host {
                self.meet_host();
            }
            if let Some(port) = self.parts.host.port_mut().filter(|_| awake.news) {
                port.hear();
            }
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.parts.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGHUP) => {
                    self.ask_reload();
                    // Whatever becomes of the policy: a rotated log waits for nothing.
                    if let Err(why) = self.parts.log.reopen() {
                        self.log_failed(&why);
                    }
                }
                Ok(Signal::SIGTERM) => self.stop("SIGTERM"),
                Ok(Signal::SIGINT) => self.stop("SIGINT"),
                // Children are the spawner's; its own end shows on its pipe.
                _ => {}
            }
        }
    }

    /// Begins the orderly end: thaw, let the worker count, record, close.
    fn stop(&mut self, reason: &'static str) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now() + FAREWELL);
        self.stop_reason = reason;
        if let Some(engine) = self.parts.engine.as_ref().filter(|engine| engine.status() != Status::Thawed) {
            engine.thaw(Why::Ending);
        }
        match self.worker.as_ref().map(|worker| worker.ready) {
            Some(true) => self.answer(&Answer::End {}, None),
            _ => self.lose_worker(),
        }
    }

    fn is_done(&self) -> bool {
        // The thread that thaws may be done before its event is heard; the held
        // log waits for that.
        let thawed = !self.is_frozen() && !self.parts.log.is_held();
        self.stopping.is_some() && self.worker.is_none() && (thawed || self.gave_up)
    }

    /// Records what happened, whether or not the log can take it now.
    fn note(&mut self, record: &Record) {
        self.is_noted(record);
    }

    /// The same; whether it stands in the log. One of a flood is only counted.
    fn is_noted(&mut self, record: &Record) -> bool {
        let receipt = self.parts.log.note(record);
        if let Err(why) = &receipt {
            self.log_failed(why);
        }
        self.tell_trouble();
        matches!(receipt, Ok(Receipt::Written(_)))
    }

    /// Writes the record that an act must have before it; whether the act may
    /// follow. A record that waits in memory is none.
    #[cfg(not(feature = "sabotage"))]
    fn record_first(&mut self, record: &Record) -> bool {
        let receipt = self.parts.log.record(record);
        self.tell_trouble();
        match receipt {
            Ok(Receipt::Written(_)) => true,
            Ok(Receipt::Waiting | Receipt::Counted) => false,
            Err(why) => {
                self.log_failed(&why);
                false
            }
        }
    }

    /// In a build for tests: the act may follow, and the record comes behind it.
    #[cfg(feature = "sabotage")]
    fn record_first(&mut self, record: &Record) -> bool {
        self.late.push(record.clone());
        true
    }

    fn log_failed(&self, why: &LogError) {
        if self.parts.log.failures() <= 1 {
            let refused = match why {
                LogError::Spent { .. } => "opens are refused until then",
                _ => "opens, freezes, shutdowns and other acts are refused until it works",
            };
            self.say(Level::Error, &format!("audit log: {why}; {refused}"));
        }
    }

    /// Tells of what no record waits for: a rotation that failed.
    fn tell_trouble(&mut self) {
        if let Some(why) = self.parts.log.trouble() {
            self.say(Level::Warning, &format!("audit log: {why}; records are still written"));
        }
    }

    fn say(&self, level: Level, text: &str) {
        self.parts.voice.say(level, text);
    }
}
