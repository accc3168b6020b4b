//! The socketpairs between postern's processes: one frame, one packet.
//!
//! A [`Pipe`] is one typed end of a `SOCK_SEQPACKET` pair: what it can send and
//! what it can receive are types, and the two ends face each other. A frame is
//! decoded in full or refused: exact length, every number in range, a
//! descriptor exactly where the message carries one.
//!
//! Trust: the peer may be hostile. Whatever it sends costs at most one buffer
//! of [`MAX_FRAME`] bytes and a refusal.

pub mod bundle;
mod codec;

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, recvmsg, send,
    sendmsg, setsockopt, socketpair, sockopt,
};

pub(crate) use codec::frames;
pub use codec::{Bytes, List, Malformed, Reader, Wire};

use crate::sys::descriptors::received;

/// Largest frame in bytes: a freeze list of the largest size fits.
pub const MAX_FRAME: usize = 64 * 1024;

/// Most descriptors in one message, from the kernel's `net/scm.h`.
const SCM_MAX_FD: usize = 253;

/// A message that is a whole frame.
pub trait Frame: Wire {
    /// How many descriptors this message carries: none, one or two.
    fn descriptors(&self) -> usize;
}

/// What the kernel says of a message's sender, in the receiver's PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Process id.
    pub pid: i32,
    /// User id.
    pub uid: u32,
}

/// A message with what came beside it.
#[derive(Debug)]
pub struct Received<In> {
    /// The message.
    pub message: In,
    /// The descriptor, if the message carries one.
    pub descriptor: Option<OwnedFd>,
    /// The second descriptor, if the message carries two.
    pub second: Option<OwnedFd>,
    /// The sender, on an end made with [`Pipe::pair`].
    pub sender: Option<Sender>,
}

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other end is closed.
    #[error("the other end is closed")]
    Closed,
    /// Nothing is there, on a receive that does not wait.
    #[error("nothing to receive")]
    Empty,
    /// What came is not a message. The sender is hostile or another version.
    #[error("malformed frame: {0}")]
    Malformed(#[from] Malformed),
    /// The socket failed.
    #[error("receive failed: {0}")]
    Socket(#[source] Errno),
}

/// One end of a socketpair that sends `Out` and receives `In`.
#[derive(Debug)]
pub struct Pipe<Out, In> {
    socket: Arc<OwnedFd>,
    /// `MSG_DONTWAIT` on the parent's end, which must never hang for a child
    /// that does not read.
    sending: MsgFlags,
    /// Where frames arrive; kept, for clearing it costs more than the call.
    buffer: Vec<u8>,
    types: PhantomData<fn(Out) -> In>,
}

impl<Out: Frame, In: Frame> Pipe<Out, In> {
    /// A pair: this end, and the one to hand to a child. This end learns each
    /// sender's process id from the kernel.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&ours, sockopt::PassCred, &true)?;
        let mut ours = Self::new(ours);
        ours.sending |= MsgFlags::MSG_DONTWAIT;
        Ok((ours, theirs))
    }

    /// The end that a child was handed.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
            sending: MsgFlags::MSG_NOSIGNAL,
            buffer: vec![0; MAX_FRAME],
            types: PhantomData,
        }
    }

    /// Sends one message. The parent's end does not wait for room.
    ///
    /// # Errors
    /// `EAGAIN` if the child's side is full, `EPIPE` if it is closed, `EINVAL`
    /// if the descriptor is not what the message carries.
    pub fn send(&self, message: &Out, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        match descriptor {
            Some(descriptor) => self.send_with(message, &[descriptor.as_raw_fd()]),
            None => self.send_with(message, &[]),
        }
    }

    /// Sends one message that carries two descriptors.
    ///
    /// # Errors
    /// As [`Pipe::send`].
    pub fn send_two(&self, message: &Out, first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> Result<(), Errno> {
        self.send_with(message, &[first.as_raw_fd(), second.as_raw_fd()])
    }

    fn send_with(&self, message: &Out, rights: &[RawFd]) -> Result<(), Errno> {
        if rights.len() != message.descriptors() {
            return Err(Errno::EINVAL);
        }
        let mut frame = Vec::with_capacity(512);
        message.put(&mut frame);
        if rights.is_empty() {
            return send(self.socket.as_raw_fd(), &frame, self.sending).map(drop);
        }
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&frame)],
            &[ControlMessage::ScmRights(rights)],
            self.sending,
            None,
        )
        .map(drop)
    }

    /// A way to send one message on this end from where the pipe itself is not
    /// at hand: a panic hook.
    pub fn last_words(&self) -> impl Fn(&Out) + Send + Sync + 'static
    where
        Out: 'static,
    {
        let socket = Arc::clone(&self.socket);
        move |message| {
            let mut frame = Vec::with_capacity(512);
            message.put(&mut frame);
            let _ = send(socket.as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
        }
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn receive(&mut self) -> Result<Received<In>, ReceiveError> {
        self.receive_with(MsgFlags::empty())
    }

    /// One message if one is there.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn try_receive(&mut self) -> Result<Received<In>, ReceiveError> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with(&mut self, flags: MsgFlags) -> Result<Received<In>, ReceiveError> {
        // Room for as many as the kernel passes at once: what found none would
        // stay open here under a number that nobody is told.
        let mut control = nix::cmsg_space!([RawFd; SCM_MAX_FD], UnixCredentials);
        let mut descriptors = Vec::new();
        let mut sender = None;
        let length = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                // Reset: it left without reading all that it was told. The kernel
                // says so once, and before what it said last.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Err(ReceiveError::Empty),
                Err(errno) => return Err(ReceiveError::Socket(errno)),
                Ok(packet) => {
                    // Take what was passed first, so that it is closed even if
                    // the frame is refused.
                    for message in packet.cmsgs().map_err(ReceiveError::Socket)? {
                        match message {
                            ControlMessageOwned::ScmRights(numbers) => {
                                descriptors.extend(numbers.into_iter().map(received));
                            }
                            ControlMessageOwned::ScmCredentials(from) => {
                                sender = Some(Sender { pid: from.pid(), uid: from.uid() });
                            }
                            _ => {}
                        }
                    }
                    if packet.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
                        return Err(Malformed::TooLong.into());
                    }
                    break packet.bytes;
                }
            }
        };
        if length == 0 {
            // Our frames are never empty: the peer is gone, or sends what no
            // honest one does; either way there is nothing more to hear.
            return Err(ReceiveError::Closed);
        }
        let message = In::whole(&self.buffer[..length])?;
        if descriptors.len() != message.descriptors() {
            return Err(Malformed::Descriptor.into());
        }
        let mut descriptors = descriptors.into_iter();
        Ok(Received { message, descriptor: descriptors.next(), second: descriptors.next(), sender })
    }
}

impl<Out, In> AsFd for Pipe<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::messages::{Answer, Ask, OpenerOrder, OpenerReport};

    #[test]
    fn descriptors_that_do_not_belong_are_closed() {
        let (mut ours, theirs) = Pipe::<OpenerOrder, OpenerReport>::pair().expect("a pair");
        let mut frame = Vec::new();
        OpenerReport::Unconfined { why: Bytes::cut(b"") }.put(&mut frame);
        for count in [1, 2, 3, 100, SCM_MAX_FD] {
            let (mut watched, passed) = std::os::unix::net::UnixStream::pair().expect("a stream");
            let rights = vec![passed.as_raw_fd(); count];
            let control = [ControlMessage::ScmRights(&rights)];
            sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(&frame)], &control, MsgFlags::empty(), None)
                .expect("sent");
            let refused = ours.try_receive();
            assert!(matches!(refused, Err(ReceiveError::Malformed(Malformed::Descriptor))), "{count}: {refused:?}");
            drop(passed);
            watched.set_nonblocking(true).expect("non-blocking");
            // The end shows only when no descriptor of the other side is open.
            assert!(matches!(watched.read(&mut [0]), Ok(0)), "{count} were sent and not all closed");
        }
    }

    #[test]
    fn last_words_arrive_of_one_that_did_not_read() {
        let (mut ours, theirs) = Pipe::<Answer, Ask>::pair().expect("a pair");
        let theirs = Pipe::<Ask, Answer>::new(theirs);
        ours.send(&Answer::Begun {}, None).expect("sent, and never read");
        theirs.send(&Ask::Status {}, None).expect("sent");
        theirs.send(&Ask::Thaw {}, None).expect("sent");
        drop(theirs);
        for last in [Ask::Status {}, Ask::Thaw {}] {
            assert_eq!(ours.try_receive().expect("its last words").message, last);
        }
        assert!(matches!(ours.try_receive(), Err(ReceiveError::Closed)));
        assert!(matches!(ours.receive(), Err(ReceiveError::Closed)), "and never waits");
    }

    #[test]
    fn one_descriptor_arrives_and_two_do_not() {
        let (ours, theirs) = Pipe::<Answer, Ask>::pair().expect("a pair");
        let mut theirs = Pipe::<Ask, Answer>::new(theirs);
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        ours.send(&Answer::Opened { handle: 7 }, Some(file.as_fd())).expect("sent");
        let received = theirs.receive().expect("received");
        assert_eq!((received.message, received.descriptor.is_some()), (Answer::Opened { handle: 7 }, true));
        let mut frame = Vec::new();
        Answer::Opened { handle: 8 }.put(&mut frame);
        let rights = [file.as_raw_fd(); 2];
        let control = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(ours.as_fd().as_raw_fd(), &[IoSlice::new(&frame)], &control, MsgFlags::empty(), None)
            .expect("sent");
        assert!(matches!(theirs.receive(), Err(ReceiveError::Malformed(Malformed::Descriptor))));
    }
}
