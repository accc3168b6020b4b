//! From request to reply: does what a command means, with the host's files or
//! by asking the broker.
//!
//! Replies leave in the order of requests, but for one thing: while a freeze
//! or thaw runs in the kernel, commands that are safe then are answered at
//! once. Others are refused during a freeze, and wait for the end of a thaw. A
//! host that gave up waiting and synchronised anew never sees the late reply, for
//! it would take it for the answer to something else; nor is anything done late
//! that it asked for behind a thaw.
//!
//! Trust: requests are in type, not in range; see [`super::qga`].

mod acts;
mod tell;
mod transfer;
mod waiting;

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use postern_core::catalogue::{Audit, Command, CommandSet, Rate, lookup};
use postern_core::messages::{Denial, FreezeState, MAX_PATH, WirePath};
use postern_core::policy::parts::WorkerPart;
use postern_core::rate::{Rates, too_many};

use acts::Acting;

use super::ask::{Broker, BrokerLost, NotOpened, Note};
use super::channel::{Channel, HostGone};
use super::facts::Facts;
use super::files::Files;
use super::qga::reply::{self, Empty, Info, Sought, Written};
use super::qga::request::while_frozen;
use super::qga::{Id, Incoming, QgaError, Request};

/// A buffer that grew beyond this for one large request is given back.
const KEEP: usize = 2 << 20;
/// Replies to requests that came at once leave at once, up to so many bytes.
const TOGETHER: usize = 16 << 10;
/// Counted commands are reported at least this often.
const REPORT_AFTER: u64 = 65_536;

/// Why a request was not answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    Host(HostGone),
    Broker(BrokerLost),
}

impl From<HostGone> for Stop {
    fn from(gone: HostGone) -> Self {
        Self::Host(gone)
    }
}

impl From<BrokerLost> for Stop {
    fn from(lost: BrokerLost) -> Self {
        Self::Broker(lost)
    }
}

/// A freeze or thaw that runs, and how its end is to be told.
#[derive(Debug)]
enum Running {
    /// To this request.
    Owed(Id),
    /// To nobody: the host has synchronised since, or is another one.
    Forgotten,
}

/// What one worker knows.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) broker: Broker,
    part: WorkerPart,
    files: Files,
    facts: Facts,
    frozen: bool,
    freeze: Option<Running>,
    thaw: Option<Running>,
    acting: Option<Acting>,
    /// Requests that wait for the end of a thaw, or of another act.
    waiting: VecDeque<Vec<u8>>,
    counts: [u64; 64],
    counted: u64,
    rates: Rates,
    /// Replies that are to leave, the last one perhaps under construction.
    out: Vec<u8>,
    /// File contents on their way.
    data: Vec<u8>,
}

impl Session {
    pub(crate) fn new(broker: Broker, part: WorkerPart, frozen: bool, facts: Facts) -> Self {
        Self {
            broker,
            part,
            files: Files::default(),
            facts,
            frozen,
            freeze: None,
            thaw: None,
            acting: None,
            waiting: VecDeque::new(),
            counts: [0; 64],
            counted: 0,
            rates: Rates::default(),
            out: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Another host is there: it is owed nothing that the last one asked for.
    pub(crate) fn new_host(&mut self) -> Result<(), BrokerLost> {
        self.out.clear();
        self.forget()
    }

    /// Whether a host is owed an answer that is still to come.
    pub(crate) fn owes(&self) -> bool {
        !self.waiting.is_empty()
            || matches!(self.freeze, Some(Running::Owed(_)))
            || matches!(self.thaw, Some(Running::Owed(_)))
            || matches!(self.acting, Some(Acting { running: Running::Owed(_), .. }))
    }

    /// Sends the replies that are there. Called when no whole request is left, and
    /// before anything that can wait.
    pub(crate) fn flush(&mut self, channel: &Channel) -> Result<(), Stop> {
        let sent = channel.write_all(&self.out, &mut self.broker);
        self.out.clear();
        if self.out.capacity() > KEEP {
            self.out = Vec::new();
        }
        sent
    }

    /// Nobody waits any more for what was asked for.
    fn forget(&mut self) -> Result<(), BrokerLost> {
        let act = self.acting.as_mut().map(|acting| &mut acting.running);
        for running in [self.freeze.as_mut(), self.thaw.as_mut(), act].into_iter().flatten() {
            *running = Running::Forgotten;
        }
        for message in std::mem::take(&mut self.waiting) {
            if let Err(error) = Incoming::read(&message, self.offered()).request {
                self.tell_denied(&error)?;
            }
        }
        Ok(())
    }

    /// Tells the broker how often the commands that are only counted came, and
    /// what was refused for its number.
    pub(crate) fn count_up(&mut self) -> Result<(), BrokerLost> {
        self.counted = 0;
        if let Some(refused) = self.rates.rest(Instant::now()) {
            self.broker.limited(&refused)?;
        }
        let all = std::mem::replace(&mut self.counts, [0; 64]);
        let counts: Vec<_> =
            Command::all().map(|command| (command, all[command as usize])).filter(|(_, times)| *times > 0).collect();
        if counts.is_empty() { Ok(()) } else { self.broker.counted(&counts) }
    }

    /// Takes in what the broker tells unasked.
    pub(crate) fn note(&mut self, note: Note, channel: Option<&Channel>) -> Result<(), Stop> {
        match note {
            Note::Frozen(frozen) => {
                self.frozen = frozen;
                Ok(())
            }
            Note::FreezeDone(outcome) => {
                self.frozen = outcome.as_ref().is_ok_and(|count| *count > 0);
                let running = self.freeze.take();
                self.tell_end(running, outcome, channel)
            }
            Note::ThawDone(outcome) => {
                self.frozen = outcome.is_err();
                let running = self.thaw.take();
                self.tell_end(running, outcome, channel)?;
                self.answer_waiting(channel)
            }
            Note::Trimmed(more) => {
                self.trimmed(more);
                Ok(())
            }
            Note::BlocksSet(more) => {
                self.blocks_set(more);
                Ok(())
            }
            Note::ActDone(outcome) => self.act_done(outcome, channel),
            Note::Channel(..) | Note::End | Note::Retire => Ok(()),
        }
    }

    fn tell_end(
        &mut self,
        running: Option<Running>,
        outcome: Result<u64, String>,
        channel: Option<&Channel>,
    ) -> Result<(), Stop> {
        let (Some(Running::Owed(id)), Some(channel)) = (running, channel) else { return Ok(()) };
        match outcome {
            Ok(count) => self.succeed(channel, &count, &id),
            Err(why) => self.fail(channel, &QgaError::Told(why), &id),
        }
    }

    /// Answers one message, or the error that it is.
    pub(crate) fn answer(&mut self, message: Result<&[u8], QgaError>, channel: &Channel) -> Result<(), Stop> {
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.fail(channel, &error, &Id::NONE),
        };
        let incoming = Incoming::read(message, self.offered());
        if self.must_wait(&incoming.request) && self.has_room_for(message) {
            self.waiting.push_back(message.to_vec());
            return Ok(());
        }
        let error = match incoming.request {
            Ok(request) => {
                if let Some(command) = incoming.command {
                    if let Some(error) = self.limit(command)? {
                        return self.fail(channel, &error, &incoming.id);
                    }
                    self.count(command)?;
                }
                return self.act(request, incoming.id, channel);
            }
            Err(error) => error,
        };
        self.tell_denied(&error)?;
        self.fail(channel, &error, &incoming.id)
    }

    fn tell_denied(&self, error: &QgaError) -> Result<(), BrokerLost> {
        match error {
            QgaError::CommandDisabled(name) => self.broker.denied(name, self.why_disabled(name)),
            QgaError::CommandNotFound(name) => self.broker.denied(name, Denial::Unknown),
            _ => Ok(()),
        }
    }

    fn is_frozen(&self) -> bool {
        self.frozen || self.freeze.is_some() || self.thaw.is_some()
    }

    fn offered(&self) -> CommandSet {
        if self.is_frozen() { while_frozen(self.part.commands) } else { self.part.commands }
    }

    fn why_disabled(&self, name: &str) -> Denial {
        match lookup(name).and_then(|entry| entry.command) {
            None => Denial::NotOffered,
            Some(command) if self.part.commands.contains(command) => Denial::WhileFrozen,
            Some(_) => Denial::Policy,
        }
    }

    /// The error for a request that is one too many. Those that the broker acts on
    /// it limits itself.
    fn limit(&mut self, command: Command) -> Result<Option<QgaError>, BrokerLost> {
        let rate = command.entry().rate;
        let Some(limit) = rate.limit(&self.part.limits).filter(|_| rate == Rate::Requests) else { return Ok(None) };
        let now = Instant::now();
        if self.rates.admits(command, limit.1, now) {
            return Ok(None);
        }
        if let Some(refused) = self.rates.due(now) {
            self.broker.limited(&refused)?;
        }
        Ok(Some(QgaError::Told(too_many(command, limit))))
    }

    fn count(&mut self, command: Command) -> Result<(), BrokerLost> {
        if command.entry().audit == Audit::Counted {
            self.counts[command as usize] += 1;
            self.counted += 1;
            if self.counted >= REPORT_AFTER {
                return self.count_up();
            }
        }
        Ok(())
    }

    fn act(&mut self, request: Request<'_>, id: Id, channel: &Channel) -> Result<(), Stop> {
        if !request.is_instant() {
            self.flush(channel)?;
        }
        match request {
            Request::Ping => self.succeed(channel, &Empty {}, &id),
            Request::Tell(command) => self.tell(command, &id, channel),
            Request::Sync { id: echo } => {
                self.forget()?;
                self.succeed(channel, &echo, &id)
            }
            Request::SyncDelimited { id: echo } => {
                self.forget()?;
                reply::delimited(&mut self.out, echo, &id);
                self.send(channel)
            }
            Request::Info => self.succeed(channel, &Info::of(self.offered()), &id),
            Request::FsfreezeStatus => {
                let state = match self.broker.status()? {
                    FreezeState::Thawed => "thawed",
                    FreezeState::Frozen => "frozen",
                    FreezeState::Error => "error",
                };
                self.succeed(channel, &state, &id)
            }
            Request::FsfreezeFreeze | Request::FsfreezeFreezeList { mountpoints: None } => {
                self.freeze(None, id, channel)
            }
            Request::FsfreezeFreezeList { mountpoints: Some(list) } => {
                // A longer path than the kernel takes is mounted nowhere, and
                // mountpoints that are not there are left out.
                let list = list.iter().filter(|path| path.len() <= MAX_PATH);
                let list = list.filter_map(|path| WirePath::new(path.as_bytes())).collect();
                self.freeze(Some(list), id, channel)
            }
            // One that a host gave up runs on; now it is owed again.
            Request::FsfreezeThaw if self.thaw.is_some() => {
                self.thaw = Some(Running::Owed(id));
                Ok(())
            }
            Request::FsfreezeThaw => match self.broker.thaw()? {
                Ok(()) => {
                    self.thaw = Some(Running::Owed(id));
                    Ok(())
                }
                Err(why) => self.fail(channel, &QgaError::Told(why), &id),
            },
            Request::Fstrim { minimum } => self.trim(minimum, id, channel),
            Request::Suspend { mode } => self.suspend(mode, id, channel),
            Request::SetVcpus { vcpus } => self.set_vcpus(vcpus, id, channel),
            Request::SetMemoryBlocks { blocks } => self.set_memory_blocks(blocks, id, channel),
            Request::Shutdown { mode } => match self.broker.shut_down(mode)? {
                Ok(()) => Ok(()),
                Err(why) => self.fail(channel, &QgaError::Told(why), &id),
            },
            Request::FileOpen { path, mode, written } => match self.broker.open(Path::new(path.as_ref()), mode)? {
                Ok((handle, file)) => {
                    let handle = i64::try_from(handle).unwrap_or(i64::MAX);
                    self.files.insert(handle, file, mode);
                    self.succeed(channel, &handle, &id)
                }
                Err(NotOpened::Errno(Errno::EMFILE)) if self.files.count() >= self.part.limits.handles as usize => {
                    let most = self.part.limits.handles;
                    self.fail(channel, &QgaError::too_many_files(&path, &written, most), &id)
                }
                Err(NotOpened::Errno(errno)) => self.fail(channel, &QgaError::open(&path, &written, errno), &id),
                Err(NotOpened::Told(why)) => self.fail(channel, &QgaError::Told(why), &id),
            },
            Request::FileClose { handle } => match self.files.remove(handle) {
                Some(used) => {
                    self.broker.closed(handle.cast_unsigned(), used)?;
                    self.succeed(channel, &Empty {}, &id)
                }
                None => self.fail(channel, &QgaError::Handle(handle), &id),
            },
            Request::FileRead { handle, count } => self.read(handle, count, &id, channel),
            Request::FileWrite { handle, data, count } => match self.write(handle, &data, count) {
                Ok(count) => self.succeed(channel, &Written { count: count as u64, eof: false }, &id),
                Err(error) => self.fail(channel, &error, &id),
            },
            Request::FileSeek { handle, offset, whence } => match self.seek(handle, offset, whence) {
                Ok(position) => self.succeed(channel, &Sought { position: position.cast_unsigned(), eof: false }, &id),
                Err(error) => self.fail(channel, &error, &id),
            },
            // Nothing is buffered here, so there is nothing to do; as in stock,
            // what the kernel buffers stays its business.
            Request::FileFlush { handle } => match self.files.get(handle) {
                Some(file) => {
                    file.count_call();
                    self.succeed(channel, &Empty {}, &id)
                }
                None => self.fail(channel, &QgaError::Handle(handle), &id),
            },
        }
    }

    fn freeze(&mut self, only: Option<Vec<WirePath>>, id: Id, channel: &Channel) -> Result<(), Stop> {
        match self.broker.freeze(only)? {
            Ok(()) => {
                self.freeze = Some(Running::Owed(id));
                Ok(())
            }
            Err(why) => self.fail(channel, &QgaError::Told(why), &id),
        }
    }

    fn succeed(&mut self, channel: &Channel, value: &impl serde::Serialize, id: &Id) -> Result<(), Stop> {
        reply::success(&mut self.out, value, id);
        self.send(channel)
    }

    fn fail(&mut self, channel: &Channel, error: &QgaError, id: &Id) -> Result<(), Stop> {
        reply::error(&mut self.out, error, id);
        self.send(channel)
    }

    /// Sends what is there if it is much; what is little waits for the end of what
    /// the host sent at once.
    fn send(&mut self, channel: &Channel) -> Result<(), Stop> {
        if self.out.len() < TOGETHER { Ok(()) } else { self.flush(channel) }
    }
}
