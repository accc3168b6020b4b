//! Questions to the broker. Everything that this process can't do itself is
//! asked for here, and nowhere else.
//!
//! Trust: the broker is believed. The loop may be owned by a host.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use postern_core::catalogue::Command;
use postern_core::catalogue::facts::Fact;
use postern_core::confine::filters;
use postern_core::ipc::{Bytes, List, MAX_FRAME, Pipe, ReceiveError, Received};
use postern_core::messages::{
    Answer, Ask, BlockSet, ChannelKind, Count, Denial, FreezeState, MAX_MOUNTPOINTS, Stamp, Standing, SuspendMode,
    Switch, Text, Trimmed, Use, WirePath,
};
use postern_core::policy::ShutdownMode;
use postern_core::policy::parts::WorkerPart;
use postern_core::policy::rules::Mode;
use postern_core::sys::{descriptors, last_words};

/// The broker is gone, or spoke nonsense; either way this worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BrokerLost {
    /// Whether it left in order.
    pub(crate) closed: bool,
}

/// Why a file was not opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// The error that the open failed with.
    Errno(Errno),
    /// The broker's own words for the host.
    Told(String),
}

/// A port that a new worker is sent for.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Its node.
    pub(crate) path: WirePath,
    /// What the kernel must have for its name, if that is not the path's.
    pub(crate) name: Option<Text>,
}

/// What a worker is told first.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Its part of the policy.
    pub(crate) part: WorkerPart,
    /// Whether filesystems are frozen.
    pub(crate) frozen: bool,
    /// The port to open first, if it is sent for one.
    pub(crate) port: Option<Wanted>,
    /// Where gathered facts are read, if the policy has any gathered.
    pub(crate) told: Option<OwnedFd>,
    /// Over which the kernel tells of interfaces, if the policy has it told.
    pub(crate) netlink: Option<OwnedFd>,
}

/// A fact, as it reached this process.
#[derive(Debug)]
pub(crate) enum Told {
    /// A file to be kept and read again.
    Kept(OwnedFd),
    /// So many bytes, where gathered facts are read; and what shows when they are to be
    /// asked for again, if that can be known.
    Gathered(u32, Option<Looks>),
}

/// What shows a change: each object, and its stamp when it was told.
pub(crate) type Looks = [(OwnedFd, Stamp); 2];

/// What the broker tells unasked.
#[derive(Debug)]
pub(crate) enum Note {
    /// A host is there.
    Channel(OwnedFd, ChannelKind),
    /// A freeze has ended.
    FreezeDone(Result<u64, String>),
    /// A thaw has ended.
    ThawDone(Result<u64, String>),
    /// What a trim has come to, or part of it.
    Trimmed(Vec<Trimmed>),
    /// What became of memory blocks.
    BlocksSet(Vec<BlockSet>),
    /// Another act has ended, or a trim with this: what it was done to.
    ActDone(Result<u64, String>),
    /// Only frozen-safe commands, or all again.
    Frozen(bool),
    /// Count, then end.
    End,
    /// The same, once nothing is half read and nothing owed.
    Retire,
}

/// The broker, from the worker's side.
#[derive(Debug)]
pub(crate) struct Broker {
    pipe: Pipe<Ask, Answer>,
    notes: VecDeque<Note>,
}

impl Broker {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { pipe: Pipe::new(socket), notes: VecDeque::new() }
    }

    /// The broker's first words: what this worker is and has.
    pub(crate) fn setup(&mut self) -> Result<Setup, BrokerLost> {
        let broken = BrokerLost { closed: false };
        let (mut port, mut told, mut netlink) = (None, None, None);
        loop {
            let received = self.receive()?;
            match received.message {
                Answer::OpenPort { path, name } if port.is_none() => port = Some(Wanted { path, name }),
                Answer::Memory {} if told.is_none() => {
                    let memory = received.descriptor.ok_or(broken)?;
                    told = Some(descriptors::move_to(memory, filters::TOLD).map_err(|_| broken)?);
                }
                Answer::Network {} if netlink.is_none() => {
                    let socket = received.descriptor.ok_or(broken)?;
                    netlink = Some(descriptors::move_to(socket, filters::NETLINK).map_err(|_| broken)?);
                }
                Answer::Setup { part, frozen } => return Ok(Setup { part, frozen, port, told, netlink }),
                _ => return Err(broken),
            }
        }
    }

    /// Hands the port over that this worker was sent for. Only before it is
    /// confined: its filter passes no descriptors.
    pub(crate) fn port(&self, port: BorrowedFd<'_>) -> Result<(), BrokerLost> {
        self.pipe.send(&Ask::Port {}, Some(port)).map_err(|_| BrokerLost { closed: true })
    }

    pub(crate) fn no_port(&self, why: Errno) -> Result<(), BrokerLost> {
        self.tell(&Ask::NoPort { errno: why as i32 })
    }

    /// From now on last words go to the broker.
    pub(crate) fn report_last_words(&self) {
        let say = self.pipe.last_words();
        last_words::to(move |text| say(&Ask::Panicked { message: Text::cut(text.as_bytes()) }));
    }

    pub(crate) fn ready(&self, standing: Standing) -> Result<(), BrokerLost> {
        self.tell(&Ask::Ready { standing })
    }

    pub(crate) fn unconfined(&self, why: &str) -> Result<(), BrokerLost> {
        self.tell(&Ask::Unconfined { why: Text::cut(why.as_bytes()) })
    }

    /// Opens a file: a new handle and its descriptor, or why not.
    pub(crate) fn open(&mut self, path: &Path, mode: Mode) -> Result<Result<(u64, OwnedFd), NotOpened>, BrokerLost> {
        let errno = |errno| Ok(Err(NotOpened::Errno(errno)));
        let Some(path) = WirePath::from_path(path) else { return errno(Errno::ENAMETOOLONG) };
        let answer = self.ask(&Ask::Open { path, mode })?;
        match (answer.message, answer.descriptor) {
            (Answer::Opened { handle }, Some(file)) => Ok(Ok((handle, file))),
            (Answer::NotOpened { errno: why }, None) => errno(Errno::from_raw(why)),
            (Answer::Refused { why }, None) => Ok(Err(NotOpened::Told(why.to_text()))),
            _ => Err(BrokerLost { closed: false }),
        }
    }

    pub(crate) fn closed(&self, handle: u64, used: Use) -> Result<(), BrokerLost> {
        self.tell(&Ask::Closed { handle, used })
    }

    /// Begins a freeze; [`Note::FreezeDone`] follows if it is not refused.
    pub(crate) fn freeze(&mut self, only: Option<Vec<WirePath>>) -> Result<Result<(), String>, BrokerLost> {
        let only = match only.map(mountpoints) {
            None => None,
            Some(Some(only)) => Some(only),
            Some(None) => return Ok(Err("too many mountpoints in one list".to_owned())),
        };
        self.begin(&Ask::Freeze { only })
    }

    /// Begins a thaw; [`Note::ThawDone`] follows if it is not refused.
    pub(crate) fn thaw(&mut self) -> Result<Result<(), String>, BrokerLost> {
        self.begin(&Ask::Thaw {})
    }

    /// Begins a trim. This and the next three: [`Note::ActDone`] follows if it is
    /// not refused.
    pub(crate) fn trim(&mut self, minimum: u64) -> Result<Result<(), String>, BrokerLost> {
        self.begin(&Ask::Trim { minimum })
    }

    pub(crate) fn suspend(&mut self, mode: SuspendMode) -> Result<Result<(), String>, BrokerLost> {
        self.begin(&Ask::Suspend { mode })
    }

    pub(crate) fn set_vcpus(&mut self, vcpus: Vec<Switch>) -> Result<Result<(), String>, BrokerLost> {
        match List::new(vcpus) {
            Some(vcpus) => self.begin(&Ask::SetVcpus { vcpus }),
            None => Ok(Err("too many processors in one list".to_owned())),
        }
    }

    pub(crate) fn set_memory_blocks(&mut self, blocks: Vec<Switch>) -> Result<Result<(), String>, BrokerLost> {
        match List::new(blocks) {
            Some(blocks) => self.begin(&Ask::SetMemoryBlocks { blocks }),
            None => Ok(Err("too many memory blocks in one list".to_owned())),
        }
    }

    pub(crate) fn status(&mut self) -> Result<FreezeState, BrokerLost> {
        match self.ask(&Ask::Status {})?.message {
            Answer::Status { state } => Ok(state),
            _ => Err(BrokerLost { closed: false }),
        }
    }

    /// Shuts down, or says why not.
    pub(crate) fn shut_down(&mut self, mode: ShutdownMode) -> Result<Result<(), String>, BrokerLost> {
        match self.ask(&Ask::Shutdown { mode })?.message {
            Answer::ShuttingDown {} => Ok(Ok(())),
            Answer::Refused { why } => Ok(Err(why.to_text())),
            _ => Err(BrokerLost { closed: false }),
        }
    }

    /// Has a fact told; an error number if it cannot be.
    pub(crate) fn fact(&mut self, fact: Fact) -> Result<Result<Told, Errno>, BrokerLost> {
        let answer = self.ask(&Ask::Fact { fact })?;
        match (answer.message, answer.descriptor) {
            (Answer::Kept {}, Some(file)) => Ok(Ok(Told::Kept(file))),
            (Answer::Gathered { length }, None) => Ok(Ok(Told::Gathered(length, None))),
            (Answer::Lasting { length, name, object }, Some(looked)) => {
                let looks = answer.second.map(|second| [(looked, name), (second, object)]);
                Ok(Ok(Told::Gathered(length, looks)))
            }
            (Answer::NotTold { errno }, None) => Ok(Err(Errno::from_raw(errno))),
            _ => Err(BrokerLost { closed: false }),
        }
    }

    pub(crate) fn host_gone(&self) -> Result<(), BrokerLost> {
        self.tell(&Ask::HostGone {})
    }

    pub(crate) fn port_gone(&self) -> Result<(), BrokerLost> {
        self.tell(&Ask::PortGone {})
    }

    pub(crate) fn denied(&self, command: &str, why: Denial) -> Result<(), BrokerLost> {
        self.tell(&Ask::Denied { command: Bytes::cut(command.as_bytes()), why })
    }

    pub(crate) fn counted(&self, counts: &[(Command, u64)]) -> Result<(), BrokerLost> {
        list(counts).map_or(Ok(()), |commands| self.tell(&Ask::Counted { commands }))
    }

    pub(crate) fn limited(&self, counts: &[(Command, u64)]) -> Result<(), BrokerLost> {
        list(counts).map_or(Ok(()), |commands| self.tell(&Ask::Limited { commands }))
    }

    /// The next note, if one is there; after [`AsFd`] has polled readable.
    pub(crate) fn next_note(&mut self) -> Result<Option<Note>, BrokerLost> {
        if let Some(note) = self.notes.pop_front() {
            return Ok(Some(note));
        }
        Ok(match self.hear()? {
            Some(received) => Some(note(received).map_err(|_| BrokerLost { closed: false })?),
            None => None,
        })
    }

    /// Says that this worker is there if it is asked, in the midst of something
    /// else; what else the broker says is kept for later.
    pub(crate) fn attend(&mut self) -> Result<(), BrokerLost> {
        while let Some(received) = self.hear()? {
            self.notes.push_back(note(received).map_err(|_| BrokerLost { closed: false })?);
        }
        Ok(())
    }

    /// Whether notes wait that no poll will tell of.
    pub(crate) fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    fn begin(&mut self, ask: &Ask) -> Result<Result<(), String>, BrokerLost> {
        match self.ask(ask)?.message {
            Answer::Begun {} => Ok(Ok(())),
            Answer::Refused { why } => Ok(Err(why.to_text())),
            _ => Err(BrokerLost { closed: false }),
        }
    }

    fn tell(&self, ask: &Ask) -> Result<(), BrokerLost> {
        self.pipe.send(ask, None).map_err(|_| BrokerLost { closed: true })
    }

    /// Asks, and waits for the answer; notes that come before it are kept.
    fn ask(&mut self, ask: &Ask) -> Result<Received<Answer>, BrokerLost> {
        self.tell(ask)?;
        loop {
            match note(self.receive()?) {
                Ok(note) => self.notes.push_back(note),
                Err(answer) => return Ok(*answer),
            }
        }
    }

    fn receive(&mut self) -> Result<Received<Answer>, BrokerLost> {
        loop {
            let received = self.pipe.receive().map_err(|why| lost(&why))?;
            if let Some(received) = self.but_questions(received)? {
                return Ok(received);
            }
        }
    }

    /// What is there, if something is.
    fn hear(&mut self) -> Result<Option<Received<Answer>>, BrokerLost> {
        loop {
            let received = match self.pipe.try_receive() {
                Ok(received) => received,
                Err(ReceiveError::Empty) => return Ok(None),
                Err(why) => return Err(lost(&why)),
            };
            if let Some(received) = self.but_questions(received)? {
                return Ok(Some(received));
            }
        }
    }

    /// Answers the question whether this worker is there, wherever it comes.
    fn but_questions(&self, received: Received<Answer>) -> Result<Option<Received<Answer>>, BrokerLost> {
        if received.message == (Answer::Alive {}) {
            self.tell(&Ask::Alive {})?;
            return Ok(None);
        }
        Ok(Some(received))
    }
}

impl AsFd for Broker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A freeze list that fits a frame, if it does: the broker takes a worker that
/// sends a longer frame for one that has fallen.
fn mountpoints(only: Vec<WirePath>) -> Option<List<WirePath, MAX_MOUNTPOINTS>> {
    // Before each path stands its length, before all of them the ask's number,
    // whether there is a list, and how many there are.
    let bytes: usize = only.iter().map(|path| 2 + path.as_slice().len()).sum();
    List::new(only).filter(|_| bytes + 4 <= MAX_FRAME)
}

fn list(counts: &[(Command, u64)]) -> Option<List<Count, 64>> {
    List::new(counts.iter().map(|&(command, times)| Count { command, times }).collect())
}

const fn lost(why: &ReceiveError) -> BrokerLost {
    BrokerLost { closed: matches!(why, ReceiveError::Closed) }
}

/// Sorts notes from answers.
fn note(received: Received<Answer>) -> Result<Note, Box<Received<Answer>>> {
    Ok(match (received.message, received.descriptor) {
        (Answer::Channel { kind }, Some(channel)) => Note::Channel(channel, kind),
        (Answer::FreezeDone { count }, None) => Note::FreezeDone(Ok(count)),
        (Answer::FreezeFailed { why }, None) => Note::FreezeDone(Err(why.to_text())),
        (Answer::ThawDone { count }, None) => Note::ThawDone(Ok(count)),
        (Answer::ThawFailed { why }, None) => Note::ThawDone(Err(why.to_text())),
        (Answer::Trimmed { filesystems }, None) => Note::Trimmed(filesystems.as_slice().to_vec()),
        (Answer::BlocksSet { blocks }, None) => Note::BlocksSet(blocks.as_slice().to_vec()),
        (Answer::ActDone { count }, None) => Note::ActDone(Ok(count)),
        (Answer::ActFailed { why }, None) => Note::ActDone(Err(why.to_text())),
        (Answer::Frozen { frozen }, None) => Note::Frozen(frozen),
        (Answer::End {}, None) => Note::End,
        (Answer::Retire {}, None) => Note::Retire,
        (message, descriptor) => {
            return Err(Box::new(Received { message, descriptor, second: received.second, sender: received.sender }));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_core::ipc::Wire;

    #[test]
    fn a_freeze_list_fits_a_frame_or_is_refused() {
        let list = |count: usize, length: usize| mountpoints(vec![WirePath::cut(&vec![b'x'; length]); count]);
        for (count, length) in [(0, 0), (1, 4095), (256, 1), (256, 253), (16, 4093)] {
            let mut frame = Vec::new();
            Ask::Freeze { only: Some(list(count, length).expect("it fits")) }.put(&mut frame);
            assert!(frame.len() <= MAX_FRAME, "{count} of {length}: {}", frame.len());
        }
        for (count, length) in [(257, 1), (256, 254), (16, 4094), (256, 4095)] {
            assert!(list(count, length).is_none(), "{count} of {length}");
        }
    }
}
