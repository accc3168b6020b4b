//! The worker: the process that meets the host's bytes.
//!
//! It parses JSON and reads, writes and seeks descriptors that it was handed.
//! It reaches nothing by name, holds no capability, and asks the broker for
//! everything else. One thread; its compromise is assumed.
//!
//! Trust: the broker on descriptor 3. Everything from the channel is hostile.
#![forbid(unsafe_code)]

mod ask;
mod channel;
mod dispatch;
pub mod facts;
mod files;
pub mod qga;

use std::os::fd::AsFd;

use postern_core::confine::{self, ConfineError, Confined, filters};
use postern_core::policy::parts::WorkerPart;
use postern_core::sys::{descriptors, process};

use ask::{Broker, BrokerLost, Note, Setup, Wanted};
use channel::{Awake, Channel, Got, HostGone, Waiter};
use dispatch::{Session, Stop};
use facts::Facts;
use qga::Decoder;

/// Why a worker ended; the number is its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The broker said so, or closed the pipe: the ordinary end.
    Ordinary = 0,
    /// The broker spoke nonsense, or a descriptor failed.
    Broken = 1,
    /// A barrier could not be put up; the broker was told.
    Unconfined = 4,
}

impl From<BrokerLost> for End {
    fn from(lost: BrokerLost) -> Self {
        if lost.closed { Self::Ordinary } else { Self::Broken }
    }
}

/// Runs a worker on the descriptors that it was born with; see [`filters`] for
/// their numbers.
#[must_use]
pub fn run() -> End {
    // What `ps` shows without arguments; what it shows with them stands since
    // birth.
    let _ = process::name_self(c"postern-worker");
    let Ok(socket) = descriptors::inherited(filters::BROKER) else { return End::Broken };
    serve(Broker::new(socket)).err().unwrap_or(End::Broken)
}

/// Serves until there is a reason to end, which is the error.
fn serve(mut broker: Broker) -> Result<std::convert::Infallible, End> {
    let Setup { part, frozen, port, told, netlink } = broker.setup()?;
    broker.report_last_words();
    if let Some(port) = port {
        bring(&broker, &port)?;
    }
    let (waiter, confined) = match prepare(&broker, &part) {
        Ok(prepared) => prepared,
        Err(why) => {
            broker.unconfined(&why.to_string())?;
            return Err(End::Unconfined);
        }
    };
    broker.ready(confined.standing.clone())?;
    let decoder = Decoder::new(part.limits.clone());
    let session = Session::new(broker, part, frozen, Facts::new(told, netlink));
    let mut worker = Worker { session, decoder, channel: None, waiter, retiring: false };
    worker.serve(&confined)
}

/// Opens the port that was unplugged and is back, for the broker, which may
/// open no device itself. It comes back by the broker's hand as any channel.
fn bring(broker: &Broker, wanted: &Wanted) -> Result<(), End> {
    match channel::open_port(wanted, broker.as_fd()) {
        Ok(port) => Ok(broker.port(port.as_fd())?),
        Err(why) => {
            broker.no_port(why)?;
            Err(End::Ordinary)
        }
    }
}

fn prepare(broker: &Broker, part: &WorkerPart) -> Result<(Waiter, Confined), ConfineError> {
    let failed = |why| ConfineError::Call { what: "making an epoll instance", why };
    let waiter = Waiter::new(broker.as_fd()).map_err(failed)?;
    Ok((waiter, confine::worker(part)?))
}

struct Worker {
    session: Session,
    decoder: Decoder,
    channel: Option<Channel>,
    waiter: Waiter,
    /// Another worker takes the host over, at the next end of a message.
    retiring: bool,
}

impl Worker {
    fn serve(&mut self, _confined: &Confined) -> Result<std::convert::Infallible, End> {
        loop {
            // Notes that came while an answer was awaited: no poll tells of
            // those.
            while self.session.broker.has_notes() {
                self.hear_note()?;
            }
            if self.is_to_leave() {
                self.session.count_up()?;
                return Err(End::Ordinary);
            }
            let awake: Awake = self.waiter.wait().map_err(|_| End::Broken)?;
            if awake.broker {
                self.hear_note()?;
            }
            if let Some(channel) = self.channel.as_mut().filter(|_| awake.hang_up) {
                channel.hang_up();
                // The host of a port left: what it asked for still counts, and
                // whoever comes next is owed nothing of it.
                if channel.stays() {
                    self.session.new_host()?;
                }
            }
            if let Some(channel) = self.channel.as_mut().filter(|_| awake.broken) {
                channel.break_off();
            }
            if awake.channel {
                if let Some(channel) = &self.channel {
                    channel.stir();
                }
                self.hear_host()?;
            }
        }
    }

    /// Nothing of the host's is in here alone: what it sent and nobody read yet
    /// is in the channel still, for the next worker.
    fn is_to_leave(&self) -> bool {
        self.retiring && !self.decoder.is_midway() && !self.session.owes()
    }

    fn hear_note(&mut self) -> Result<(), End> {
        let Some(note) = self.session.broker.next_note()? else { return Ok(()) };
        match note {
            Note::Channel(descriptor, kind) => {
                self.decoder.reset();
                self.session.new_host()?;
                self.channel = Some(Channel::new(descriptor, kind, &self.waiter).map_err(|_| End::Broken)?);
                // Only changes wake this process, and there may be bytes already.
                self.hear_host()
            }
            Note::End => {
                self.session.count_up()?;
                Err(End::Ordinary)
            }
            Note::Retire => {
                self.retiring = true;
                Ok(())
            }
            other => {
                let outcome = self.session.note(other, self.channel.as_ref());
                self.settle(outcome)?;
                self.flush()
            }
        }
    }

    /// Reads until there is nothing, for no second wake-up tells of what was
    /// left.
    fn hear_host(&mut self) -> Result<(), End> {
        let mut heard = false;
        while let Some(channel) = self.channel.as_ref().filter(|_| !self.is_to_leave()) {
            let room = self.decoder.space();
            let size = room.len();
            match channel.read(room) {
                Got::Bytes(count) => {
                    let drained = channel.drained_by(count, size);
                    self.decoder.advance(count);
                    heard = true;
                    self.answer_all()?;
                    if drained {
                        return Ok(());
                    }
                }
                Got::Nothing => {
                    self.forget_left_host(heard);
                    return Ok(());
                }
                Got::End => return self.settle(Err(Stop::Host(HostGone))),
                Got::Unplugged => {
                    self.channel = None;
                    self.session.new_host()?;
                    self.session.count_up()?;
                    return Ok(self.session.broker.port_gone()?);
                }
            }
        }
        Ok(())
    }

    /// All that a port's host sent before it left is read: what is left of it
    /// is no beginning of the next one's first message.
    fn forget_left_host(&mut self, heard: bool) {
        let midway = self.decoder.is_midway();
        if self.channel.as_mut().is_some_and(|channel| channel.has_been_left(heard && midway)) {
            self.decoder.reset();
        }
    }

    /// Answers every whole message that is there.
    fn answer_all(&mut self) -> Result<(), End> {
        while let Some(channel) = &self.channel {
            let Some(message) = self.decoder.next_message() else { break };
            let outcome = self.session.answer(message, channel);
            self.settle(outcome)?;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), End> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let outcome = self.session.flush(channel);
        self.settle(outcome)
    }

    /// A host that left is let go of; a broker that left ends the worker.
    fn settle(&mut self, outcome: Result<(), Stop>) -> Result<(), End> {
        match outcome {
            Ok(()) => Ok(()),
            Err(Stop::Broker(lost)) => Err(lost.into()),
            Err(Stop::Host(HostGone)) => {
                self.decoder.reset();
                // A port stays, and its host may come back; a socket does not.
                if self.channel.as_ref().is_some_and(|channel| !channel.stays()) {
                    self.channel = None;
                    self.session.new_host()?;
                    self.session.count_up()?;
                    self.session.broker.host_gone()?;
                }
                Ok(())
            }
        }
    }
}
