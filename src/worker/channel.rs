//! The host's channel: waiting for it, reading it, writing it back.
//!
//! Bytes are read with `read`, never `recvmsg`, so a client that passes
//! descriptors over a unix socket passes them to nobody. A host that does not
//! read makes the worker wait; nothing is queued.
//!
//! Trust: the other end is the host.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use postern_core::confine::filters;
use postern_core::messages::{ChannelKind, MAX_TEXT};
use postern_core::sys::descriptors;

use super::ask::{Broker, Wanted};
use super::dispatch::Stop;

/// What there is to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Awake {
    /// The broker has a note, or is gone.
    pub(crate) broker: bool,
    /// The channel has bytes, or its state changed.
    pub(crate) channel: bool,
    /// The channel's other end has said that it sends no more.
    pub(crate) hang_up: bool,
    /// The channel is broken for good.
    pub(crate) broken: bool,
}

const BROKER: u64 = 0;
const CHANNEL: u64 = 1;

/// Waits for broker and channel.
#[derive(Debug)]
pub(crate) struct Waiter(Epoll);

impl Waiter {
    /// Made before confinement; a worker makes no other.
    pub(crate) fn new(broker: BorrowedFd<'_>) -> Result<Self, std::io::Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let epoll = Epoll(descriptors::move_to(epoll.0, filters::EPOLL)?);
        epoll.add(broker, EpollEvent::new(EpollFlags::EPOLLIN, BROKER))?;
        Ok(Self(epoll))
    }

    /// Waits without a limit.
    pub(crate) fn wait(&self) -> Result<Awake, Errno> {
        let mut events = [EpollEvent::empty(); 2];
        let mut awake = Awake::default();
        let count = match self.0.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &events[..count] {
            if event.data() == BROKER {
                awake.broker = true;
            } else {
                awake.channel = true;
                awake.broken |= event.events().contains(EpollFlags::EPOLLERR);
                awake.hang_up |= event.events().intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP);
            }
        }
        Ok(awake)
    }
}

/// How long bytes of a host may be here before its coming is known, to tell
/// whose they are; milliseconds.
const UNTIL_KNOWN: u16 = 64;
/// The same, for a reply that would be lost.
const UNTIL_ANSWERED: u16 = 512;

/// How often a port that is back is tried to be opened, [`AGAIN`] apart: udev
/// makes the node and then says whose it is.
const TRIES: u32 = 50;
/// The same for a node that is known by its name only: udev is not done with it,
/// and may be slow to give it to the worker's group. Less than
/// [`BIRTH_LIMIT`](postern_core::messages::BIRTH_LIMIT).
const TRIES_BY_NAME: u32 = 250;
/// See [`TRIES`]; in milliseconds.
const AGAIN: u16 = 20;

/// Opens the port at `path`, for up to a second (five by its name), or until the
/// broker is gone. Before confinement only.
pub(crate) fn open_port(wanted: &Wanted, broker: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    if let Some(name) = &wanted.name
        && name_of(wanted.path.as_path())?.trim_ascii_end() != name.as_slice()
    {
        return Err(Errno::ENOENT);
    }
    let most = if wanted.name.is_some() { TRIES_BY_NAME } else { TRIES };
    let mut tries = 1;
    loop {
        match nix::fcntl::open(wanted.path.as_path(), filters::OPEN_PORT, Mode::empty()) {
            Err(_) if tries < most => tries += 1,
            done => return done,
        }
        if poll(&mut [PollFd::new(broker, PollFlags::empty())], PollTimeout::from(AGAIN))? > 0 {
            return Err(Errno::ECANCELED);
        }
    }
}

/// The name that the kernel has for the port of this node.
fn name_of(node: &Path) -> Result<Vec<u8>, Errno> {
    let path = Path::new("/sys/class/virtio-ports").join(node.file_name().unwrap_or_default()).join("name");
    let file = nix::fcntl::open(&path, filters::OPEN_NAME, Mode::empty())?;
    let mut name = vec![0; MAX_TEXT];
    let length = read(&file, &mut name)?;
    name.truncate(length);
    Ok(name)
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The host left for good.
    End,
    /// The port was unplugged, or the line hung up.
    Unplugged,
}

/// The host has gone; what was to be said to it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostGone;

/// The channel of one host.
#[derive(Debug)]
pub(crate) struct Channel {
    descriptor: OwnedFd,
    kind: ChannelKind,
    /// Its end stands behind the bytes that are there, and no second wake-up
    /// will tell of it.
    hung_up: bool,
    broken: bool,
    /// Nobody came to take a reply, since something last happened.
    given_up: Cell<bool>,
}

impl Channel {
    /// Takes a channel from the broker and watches it for changes.
    ///
    /// Changes only: a port without a host polls as hung up for as long as
    /// there is none, and a host that talks on while a thaw is awaited is not
    /// heard; neither may wake this process again and again.
    pub(crate) fn new(descriptor: OwnedFd, kind: ChannelKind, waiter: &Waiter) -> Result<Self, Errno> {
        let changes = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        waiter.0.add(&descriptor, EpollEvent::new(changes, CHANNEL))?;
        Ok(Self { descriptor, kind, hung_up: false, broken: false, given_up: Cell::new(false) })
    }

    /// The other end sends no more: from now on read until the end is met.
    pub(crate) fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// Something happened on it.
    pub(crate) fn stir(&self) {
        self.given_up.set(false);
    }

    /// It is broken: a terminal in the place of a port says so, where a port's
    /// read fails.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
    }

    /// Whether the host of a port has left since this was last asked; asked
    /// when there is nothing more to read, and `read` says whether there was
    /// something. One that leaves and is back before this process runs is not
    /// noticed: the kernel does not tell.
    pub(crate) fn has_been_left(&mut self, read: bool) -> bool {
        // What was read as the port hung up is the last of a host that left, or
        // the first of one whose coming is not known yet.
        self.stays() && std::mem::take(&mut self.hung_up) && !(read && self.host_comes(UNTIL_KNOWN))
    }

    /// Waits for the kernel to know of a host: the bytes of one that has just
    /// come may be here before its coming is, for they take different queues.
    /// In milliseconds, about; whether there is one.
    fn host_comes(&self, longest: u16) -> bool {
        let mut wait = 1;
        loop {
            let mut state = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut state, PollTimeout::ZERO).is_err() {
                return false;
            }
            let events = state[0].revents().unwrap_or(PollFlags::empty());
            if !events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                return true;
            }
            // Unplugged, or broken: nobody comes.
            if wait > longest || self.broken {
                return false;
            }
            let _ = poll(&mut [], PollTimeout::from(wait));
            wait *= 2;
        }
    }

    /// Whether a channel that has no more says so by a read that is not filled.
    /// A port gives what one buffer of the host held, and may have more.
    pub(crate) fn drained_by(&self, read: usize, room: usize) -> bool {
        self.kind == ChannelKind::Stream && read < room && !self.hung_up
    }

    /// Whether its host may leave and come back.
    pub(crate) fn stays(&self) -> bool {
        self.kind != ChannelKind::Stream
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Got {
        loop {
            return match read(&self.descriptor, buffer) {
                Ok(0) if self.kind == ChannelKind::Port && !self.broken => Got::Nothing,
                Ok(0) if self.stays() => Got::Unplugged,
                Ok(0) => Got::End,
                Ok(count) => Got::Bytes(count),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Got::Nothing,
                Err(_) if self.stays() => Got::Unplugged,
                Err(_) => Got::End,
            };
        }
    }

    /// Writes all of `bytes`, waiting for the host to take them; the broker is
    /// heard meanwhile.
    pub(crate) fn write_all(&self, mut bytes: &[u8], broker: &mut Broker) -> Result<(), Stop> {
        while !bytes.is_empty() {
            match write(&self.descriptor, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    if self.wait_for_room(broker)? {
                        broker.attend()?;
                    }
                }
                Err(_) => return Err(HostGone.into()),
            }
        }
        Ok(())
    }

    /// Whether the broker has something to say, which may come before there is
    /// room.
    fn wait_for_room(&self, broker: &Broker) -> Result<bool, HostGone> {
        let mut room =
            [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLOUT), PollFd::new(broker.as_fd(), PollFlags::POLLIN)];
        match poll(&mut room, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Err(HostGone),
        }
        let [events, broker] = room.map(|one| one.revents().unwrap_or(PollFlags::empty()));
        let asked = !broker.is_empty();
        if events.is_empty() {
            return Ok(asked);
        }
        // A port whose host left has no room and says so at once, for ever.
        if !events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) || events.contains(PollFlags::POLLOUT) {
            return Ok(asked);
        }
        // Once for all replies that such a host is owed.
        if self.kind == ChannelKind::Port && !self.given_up.get() {
            if self.host_comes(UNTIL_ANSWERED) {
                return Ok(asked);
            }
            self.given_up.set(true);
        }
        Err(HostGone)
    }
}
