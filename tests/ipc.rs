//! The frames between postern's processes: every message survives its way
//! through them, no bytes make a decoder panic or allocate beyond the frame, and
//! what does not belong into a packet is closed, not kept.

#[path = "ipc/values.rs"]
mod values;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;
use peak_alloc::PeakAlloc;
use postern_core::ipc::{Frame, MAX_FRAME, Malformed, Pipe, ReceiveError, Wire};
use postern_core::messages::{Answer, Ask, OpenerOrder, OpenerReport, SpawnerOrder, SpawnerReport};
use proptest::collection::vec;
use proptest::prelude::*;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

fn encoded(value: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.put(&mut bytes);
    bytes
}

/// What went in comes out, from a frame no larger than a packet may be; and a
/// frame that lacks its last byte, or has one more, is none.
fn survives<T: Frame + PartialEq + std::fmt::Debug>(value: &T) {
    let mut bytes = encoded(value);
    assert!(bytes.len() <= MAX_FRAME, "{} bytes", bytes.len());
    assert_eq!(&T::whole(&bytes).expect("a whole frame"), value);
    assert!(T::whole(&bytes[..bytes.len() - 1]).is_err(), "cut: {value:?}");
    bytes.push(0);
    assert_eq!(T::whole(&bytes), Err(Malformed::Long), "{value:?}");
}

/// Bytes are a message, and then the only ones that are this message, or they
/// are refused.
fn total<T: Frame + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(value) = T::whole(bytes) {
        assert_eq!(encoded(&value), bytes, "{value:?}");
    }
}

fn total_for_all(bytes: &[u8]) {
    total::<Ask>(bytes);
    total::<Answer>(bytes);
    total::<OpenerOrder>(bytes);
    total::<OpenerReport>(bytes);
    total::<SpawnerOrder>(bytes);
    total::<SpawnerReport>(bytes);
}

/// A change that an attacker makes to a sound frame.
#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        1 => at().prop_map(Change::Remove),
        1 => at().prop_map(Change::Cut),
        1 => at().prop_map(Change::Repeat),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len().max(1);
        match change {
            Change::Set(at, byte) => {
                if let Some(place) = bytes.get_mut(at.index(length)) {
                    *place = *byte;
                }
            }
            Change::Insert(at, byte) => bytes.insert(at.index(length).min(bytes.len()), *byte),
            Change::Remove(at) if !bytes.is_empty() => drop(bytes.remove(at.index(length))),
            Change::Remove(_) => {}
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Repeat(at) => bytes.extend_from_within(at.index(length).min(bytes.len())..),
        }
    }
    bytes
}

/// Six decoders meet each input: 120,000 meetings, and as many of sound frames
/// with changes.
const CASES: u32 = 20_000;

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_message_or_refused(number in 0_u8..20, rest in vec(any::<u8>(), 0..200)) {
        total_for_all(&[&[number], &rest[..]].concat());
    }

    #[test]
    fn changed_frames_are_a_message_or_refused(frame in values::any_frame(), changes in vec(change(), 1..4)) {
        total_for_all(&changed(frame, &changes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_survives(
        ask in values::ask(),
        answer in values::answer(),
        order in values::opener_order(),
        report in values::opener_report(),
        spawn in values::spawner_order(),
        spawned in values::spawner_report(),
    ) {
        survives(&ask);
        survives(&answer);
        survives(&order);
        survives(&report);
        survives(&spawn);
        survives(&spawned);
    }
}

/// Frames that promise more than they hold, of the largest size.
fn liars() -> Vec<Vec<u8>> {
    let of = |head: &[u8], fill: u8| [head, &vec![fill; MAX_FRAME - head.len()]].concat();
    vec![
        // A freeze list, its count as high as it may be and higher.
        of(&[5, 1, 0, 1], 0),
        of(&[5, 1, 0xff, 0xff], 0),
        of(&[5, 1, 0, 1, 0xff, 0x0f], b'/'),
        // A first word with many missing rules.
        of(&[1, 7, 0, 4], 0),
        of(&[1, 7, 0xff, 0xff], 0xff),
        // Counts of commands.
        of(&[11, 64, 0], 0),
        // A path that is none, and one beyond any.
        of(&[3, 0xff, 0xff], b'/'),
        of(&[2, 0, 4], b'x'),
        vec![5, 1, 0, 1],
        vec![5, 1, 0, 1, 0xff, 0x0f],
        vec![1, 7, 0, 4],
    ]
}

#[test]
fn decoding_is_bounded_in_time_and_memory() {
    let started = Instant::now();
    for bytes in liars() {
        let before = ALLOCATED.current_usage();
        ALLOCATED.reset_peak_usage();
        for _ in 0..100 {
            total_for_all(&bytes);
        }
        let most = ALLOCATED.peak_usage().saturating_sub(before);
        // A list of empty paths takes two bytes of the frame and 24 of memory
        // for each, and its vector grows by doubling; other tests of this
        // process allocate a little meanwhile.
        assert!(most < 64 * MAX_FRAME, "{} bytes took {most} of memory", bytes.len());
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

// ---- packets -----------------------------------------------------------------

/// A pipe whose reading end tells whether any writing end is still open.
fn tell_tale() -> (OwnedFd, OwnedFd) {
    pipe2(OFlag::O_CLOEXEC).expect("a pipe")
}

/// Whether every writing end is closed.
fn is_hung_up(reader: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::ZERO).expect("poll");
    ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

fn send_with(socket: &OwnedFd, bytes: &[u8], descriptor: &OwnedFd, count: usize) {
    let numbers = vec![descriptor.as_raw_fd(); count];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let parts = [std::io::IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).expect("a packet");
}

#[test]
fn descriptors_that_do_not_belong_are_closed() {
    let plain = encoded(&Ask::HostGone {});
    let large = vec![1; MAX_FRAME + 10];
    for count in [1, 2, 3, 10, 100, 253] {
        for bytes in [&plain[..], &[0xff; 10], &large] {
            let (mut ours, theirs) = Pipe::<Answer, Ask>::pair().expect("a socketpair");
            let (reader, writer) = tell_tale();
            send_with(&theirs, bytes, &writer, count);
            drop(writer);
            assert!(!is_hung_up(&reader), "the control: the packet holds it");
            let refused = ours.try_receive();
            assert!(is_hung_up(&reader), "{count} descriptors with {} bytes leak", bytes.len());
            assert!(matches!(refused, Err(ReceiveError::Malformed(_))), "{count}: {refused:?}");
        }
    }
}

#[test]
fn who_left_without_hearing_all_is_heard_to_the_end() {
    let (mut ours, theirs) = Pipe::<Answer, Ask>::pair().expect("a socketpair");
    let child = Pipe::<Ask, Answer>::new(theirs);
    ours.send(&Answer::Begun {}, None).expect("it listens");
    child.send(&Ask::HostGone {}, None).expect("it listens");
    child.send(&Ask::Thaw {}, None).expect("it listens");
    drop(child);
    assert_eq!(ours.try_receive().expect("its words").message, Ask::HostGone {});
    assert_eq!(ours.try_receive().expect("its last words").message, Ask::Thaw {});
    assert!(matches!(ours.try_receive(), Err(ReceiveError::Closed)));
}

#[test]
fn one_descriptor_where_one_belongs() {
    let file = encoded(&Answer::Opened { handle: 1000 });
    let (reader, writer) = tell_tale();
    for (count, right) in [(1, true), (2, false), (253, false)] {
        // A child's end, as it has no credentials to make room for.
        let (ours, theirs) = Pipe::<Ask, Answer>::pair().expect("a socketpair");
        let mut child = Pipe::<Ask, Answer>::new(theirs);
        send_with(&ours.as_fd().try_clone_to_owned().expect("a duplicate"), &file, &writer, count);
        match child.try_receive() {
            Ok(received) => assert!(right && received.descriptor.is_some(), "{count}: {received:?}"),
            Err(why) => assert!(!right && matches!(why, ReceiveError::Malformed(_)), "{count}: {why:?}"),
        }
    }
    drop(writer);
    assert!(is_hung_up(&reader));
    // And none where one is due.
    let (ours, theirs) = Pipe::<Ask, Answer>::pair().expect("a socketpair");
    nix::sys::socket::send(ours.as_fd().as_raw_fd(), &file, MsgFlags::empty()).expect("a packet");
    let why = Pipe::<Ask, Answer>::new(theirs).try_receive().expect_err("no descriptor");
    assert!(matches!(why, ReceiveError::Malformed(Malformed::Descriptor)), "{why:?}");
}

#[test]
fn an_end_sends_only_what_the_message_carries() {
    let (ours, _theirs) = Pipe::<Answer, Ask>::pair().expect("a socketpair");
    let (reader, _writer) = tell_tale();
    assert_eq!(ours.send(&Answer::End {}, Some(reader.as_fd())), Err(nix::errno::Errno::EINVAL));
    assert_eq!(ours.send(&Answer::Opened { handle: 1 }, None), Err(nix::errno::Errno::EINVAL));
    assert_eq!(ours.send(&Answer::Opened { handle: 1 }, Some(reader.as_fd())), Ok(()));
}

#[test]
fn a_parent_never_waits_for_a_child_that_does_not_listen() {
    let (ours, _theirs) = Pipe::<Answer, Ask>::pair().expect("a socketpair");
    let full = (0..1_000_000).find_map(|_| ours.send(&Answer::Begun {}, None).err());
    assert_eq!(full, Some(nix::errno::Errno::EAGAIN));
}
