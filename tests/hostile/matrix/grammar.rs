//! What a worker's frames are, told a second time and by other means than the
//! code under test: as a table. And the frames that are tried.

use postern_core::catalogue::Command;
use postern_core::catalogue::facts::Fact;
use postern_core::ipc::{Bytes, List, MAX_FRAME};
use postern_core::messages::{Ask, Count, Denial, Standing, SuspendMode, Switch, Text, Use, WirePath};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use crate::worker::frame;

/// A field of a frame.
#[derive(Clone, Copy)]
enum Field {
    /// So many bytes of any value.
    Any(usize),
    /// One byte below this.
    Below(u8),
    /// The number of a command.
    Command,
    /// The number of a fact.
    Fact,
    /// A length of two bytes, at most this, and so many bytes.
    Text(u16),
    /// A count of two bytes, at most this, and so many of these.
    List(u16, &'static [Self]),
    /// One byte, 0 or 1; behind a 1 these.
    Maybe(&'static [Self]),
}

use Field::{Any, Below, List as ListOf, Maybe, Text as TextOf};

/// Every frame: its number, its fields, its descriptors.
const FRAMES: [(u8, &[Field], usize); 22] = [
    (1, &[Any(1), Any(2), Any(32), ListOf(1024, &[Any(2)])], 0),
    (2, &[TextOf(1024)], 0),
    (3, &[TextOf(4095), Below(6)], 0),
    (4, &[Any(8), Any(8), Any(8), Any(8)], 0),
    (5, &[Maybe(&[ListOf(256, &[TextOf(4095)])])], 0),
    (6, &[], 0),
    (7, &[], 0),
    (8, &[Below(3)], 0),
    (9, &[], 0),
    (10, &[TextOf(64), Below(4)], 0),
    (11, &[ListOf(64, &[Field::Command, Any(8)])], 0),
    (12, &[TextOf(1024)], 0),
    (13, &[], 0),
    (14, &[], 1),
    (15, &[Any(4)], 0),
    (16, &[], 0),
    (17, &[ListOf(64, &[Field::Command, Any(8)])], 0),
    (18, &[Field::Fact], 0),
    (30, &[Any(8)], 0),
    (31, &[Below(3)], 0),
    (32, &[ListOf(4096, &[Any(8), Below(2)])], 0),
    (33, &[ListOf(4096, &[Any(8), Below(2)])], 0),
];

/// What stands for each way of being none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// No byte at all: the end of what its sender says.
    Empty,
    /// Longer than any, ends early, goes on, or a value that stands for nothing.
    Malformed,
    /// Descriptors beside it that are not its own.
    Descriptors,
}

/// Whether these bytes with so many descriptors are a frame.
pub(super) fn judge(bytes: &[u8], descriptors: usize) -> Result<(), Flaw> {
    let Some((number, mut rest)) = bytes.split_first() else { return Err(Flaw::Empty) };
    let row = FRAMES.iter().find(|(one, ..)| one == number);
    let Some((_, fields, own)) = row.filter(|_| bytes.len() <= 65_536) else { return Err(Flaw::Malformed) };
    take_all(&mut rest, fields).filter(|()| rest.is_empty()).ok_or(Flaw::Malformed)?;
    if descriptors == *own { Ok(()) } else { Err(Flaw::Descriptors) }
}

fn take_all(rest: &mut &[u8], fields: &[Field]) -> Option<()> {
    fields.iter().try_for_each(|field| match *field {
        Any(count) => rest.split_off(..count).map(drop),
        Below(end) => rest.split_off_first().filter(|&&byte| byte < end).map(drop),
        Field::Command => rest.split_off_first().filter(|&&byte| Command::all().any(|one| one as u8 == byte)).map(drop),
        Field::Fact => rest.split_off_first().filter(|&&byte| Fact::all().any(|one| one as u8 == byte)).map(drop),
        TextOf(most) => {
            let length = take_count(rest, most)?;
            rest.split_off(..length).map(drop)
        }
        ListOf(most, each) => {
            let count = take_count(rest, most)?;
            (0..count).try_for_each(|_| take_all(rest, each))
        }
        Maybe(then) => match rest.split_off_first()? {
            0 => Some(()),
            1 => take_all(rest, then),
            _ => None,
        },
    })
}

fn take_count(rest: &mut &[u8], most: u16) -> Option<usize> {
    let bytes = rest.split_off(..2)?;
    let count = u16::from_le_bytes([bytes[0], bytes[1]]);
    (count <= most).then_some(usize::from(count))
}

/// Valid frames of each type; each short, but for what its type needs.
pub(super) fn valid(handle: u64) -> Vec<Vec<u8>> {
    let text = |bytes: &[u8]| Text::cut(bytes);
    let open = |path: &str, mode| Ask::Open { path: WirePath::cut(path.as_bytes()), mode };
    let list = |paths: &[&str]| List::new(paths.iter().map(|path| WirePath::cut(path.as_bytes())).collect());
    let freeze = |paths: &[&str]| Ask::Freeze { only: Some(list(paths).expect("a short list")) };
    let missing = List::new(vec![0, 700]).expect("a short list");
    let standing = Standing { landlock_abi: 7, filter_rules: 9, filter_digest: [3; 32], missing };
    let counts = vec![Count { command: Command::Ping, times: 3 }, Count { command: Command::Sync, times: u64::MAX }];
    let mut asks = vec![
        Ask::Ready { standing },
        Ask::Unconfined { why: text(b"no") },
        open("/m/ro/f", Mode::Read),
        open("/m/rw/f", Mode::ReadPlus),
        open("/m/rw/f", Mode::Append),
        open("/m/rw/n", Mode::Write),
        open("/m/no/f", Mode::WritePlus),
        open("", Mode::AppendPlus),
        Ask::Closed { handle, used: Use { read: 1, written: 2, calls: 3 } },
        Ask::Freeze { only: None },
        freeze(&[]),
        freeze(&["/a", "/m"]),
        Ask::Thaw {},
        Ask::Status {},
        Ask::HostGone {},
        Ask::Denied { command: Bytes::cut(b"guest-x"), why: Denial::NotOffered },
        Ask::Counted { commands: List::new(counts.clone()).expect("a short list") },
        Ask::Panicked { message: text(b"last") },
        Ask::PortGone {},
        Ask::Port {},
        Ask::NoPort { errno: 13 },
        Ask::Alive {},
        Ask::Limited { commands: List::new(counts).expect("a short list") },
    ];
    asks.extend(Fact::all().map(|fact| Ask::Fact { fact }));
    asks.extend(ShutdownMode::ALL.map(|mode| Ask::Shutdown { mode }));
    asks.extend(SuspendMode::ALL.iter().map(|&mode| Ask::Suspend { mode }));
    // Numbers of none that there is, should the broker ever take one.
    let switches = || List::new(vec![Switch { number: u64::MAX, online: true }]).expect("a short list");
    asks.extend([
        Ask::Trim { minimum: u64::MAX },
        Ask::SetVcpus { vcpus: switches() },
        Ask::SetMemoryBlocks { blocks: switches() },
    ]);
    asks.iter().map(frame).collect()
}

/// The changes of one byte: each bit, all bits out, all bits in.
pub(super) fn flips(frame: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let changes = (0..8_u8).map(|bit| Some(1 << bit)).chain([None, None]).enumerate();
    (0..frame.len()).flat_map(move |at| {
        changes.clone().filter_map(move |(number, change)| {
            let byte = match change {
                Some(bit) => frame[at] ^ bit,
                None if number == 8 => 0,
                None => 0xff,
            };
            let mut changed = frame.to_vec();
            changed[at] = byte;
            (byte != frame[at]).then_some(changed)
        })
    })
}

/// How the rest of a frame of a given type and length is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Zeros,
    Ones,
    /// As a valid frame of the type begins, then zeros.
    Valid,
}

impl Fill {
    pub(super) const ALL: [Self; 3] = [Self::Valid, Self::Zeros, Self::Ones];

    pub(super) fn frame(self, number: u8, length: usize, valid: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![if self == Self::Ones { 0xff } else { 0 }; length];
        if let Some(known) = valid.iter().find(|known| known[0] == number).filter(|_| self == Self::Valid) {
            let common = known.len().min(length);
            bytes[..common].copy_from_slice(&known[..common]);
        }
        if let Some(first) = bytes.first_mut() {
            *first = number;
        }
        bytes
    }
}

/// Lengths that a type is tried with: all short ones, those around a valid
/// frame's, around each power of two, and around the largest.
pub(super) fn lengths(number: u8, valid: &[Vec<u8>], all_types_alike: bool) -> Vec<usize> {
    let known = valid.iter().any(|frame| frame[0] == number);
    let mut lengths: Vec<usize> = if known || all_types_alike {
        let powers = (7..=16).map(|power| 1_usize << power);
        let around = valid.iter().filter(|frame| frame[0] == number).map(Vec::len).chain(powers);
        (0..=64).chain(around.flat_map(|length| [length - 1, length, length + 1])).collect()
    } else {
        vec![1, 2, 64, 4096]
    };
    lengths.extend([MAX_FRAME - 1, MAX_FRAME, MAX_FRAME + 1]);
    lengths.sort_unstable();
    lengths.dedup();
    // In debug, where a worker's life costs milliseconds, every fourth of a type
    // that is known and every 32nd other type.
    let dense = all_types_alike || !cfg!(debug_assertions);
    lengths.retain(|length| {
        dense || (if known { length % 4 == usize::from(number % 4) } else { number.is_multiple_of(32) })
    });
    lengths
}
