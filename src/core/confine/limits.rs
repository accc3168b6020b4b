//! Resource limits: what a fallen process can use up.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{ConfineError, call};
use crate::catalogue::facts::FactSet;
use crate::ipc::bundle::BUNDLE_MAX;
use crate::policy::parts::WorkerPart;
use crate::policy::{Limits, TOKENS_MAX};

/// Descriptors that a worker has besides the host's files and those of facts: see the
/// table in `filters`.
const WORKER_DESCRIPTORS: u64 = 8;
/// Descriptors of broker, opener and spawner, with room for a transfer.
const OTHER_DESCRIPTORS: u64 = 64;
/// Private memory of a worker besides what a request takes: buffers of a fixed
/// size, the allocator's reserve.
const WORKER_DATA: u64 = 16 << 20;
/// Private memory of a worker to tell of the guest: what was gathered, in a buffer
/// that doubles, an index of it, and the reply.
const FACTS_DATA: u64 = 4 * BUNDLE_MAX as u64;
/// Most that a token of a request takes once it is parsed: half a nested array,
/// whose list has room for four values; rounded up from 72 bytes.
const TOKEN_BYTES: u64 = 80;
/// Address space of a process besides its private memory: its code, its
/// libraries, its stack.
const CODE_SPACE: u64 = 80 << 20;
/// Private memory of an opener: some rules' paths, and frames.
const OPENER_DATA: u64 = 32 << 20;
/// Private memory of a broker: records that wait, the files that a host has open,
/// a mount table of a hundred thousand lines. Generous, for the broker is who thaws.
const BROKER_DATA: u64 = 256 << 20;

/// Private memory of a worker under these limits, in bytes.
#[must_use]
pub fn worker_data(limits: &Limits) -> u64 {
    let message = u64::from(limits.message);
    // A request is received once, and may be kept once more until a thaw ends;
    // its longest string may have to be unescaped and then freed of its newlines,
    // or all of it consists of small values.
    let parsed = TOKEN_BYTES * message.min(TOKENS_MAX.into());
    WORKER_DATA + 2 * message + parsed.max(2 * message)
}

fn set(limits: &[(Resource, u64)]) -> Result<(), ConfineError> {
    limits.iter().try_for_each(|&(resource, most)| setrlimit(resource, most, most)).map_err(call("setrlimit"))
}

/// No core file, no process, no message queue, no locked memory.
const COMMON: [(Resource, u64); 4] = [
    (Resource::RLIMIT_CORE, 0),
    (Resource::RLIMIT_NPROC, 0),
    (Resource::RLIMIT_MSGQUEUE, 0),
    (Resource::RLIMIT_MEMLOCK, 0),
];

pub(super) fn worker(part: &WorkerPart) -> Result<(), ConfineError> {
    set(&COMMON)?;
    let limits = &part.limits;
    let data = worker_data(limits) + if part.facts().gathers() { FACTS_DATA } else { 0 };
    set(&[
        (Resource::RLIMIT_NOFILE, WORKER_DESCRIPTORS + part.facts().kept() as u64 + u64::from(limits.handles)),
        (Resource::RLIMIT_DATA, data),
        (Resource::RLIMIT_AS, CODE_SPACE + data),
    ])
}

pub(super) fn opener(facts: FactSet) -> Result<(), ConfineError> {
    set(&COMMON)?;
    // To no file of the guest's: its filter leaves it the memory for that.
    let gathers = if facts.gathers() { BUNDLE_MAX as u64 } else { 0 };
    // Rules are opened all at once for Landlock.
    set(&[
        (Resource::RLIMIT_NOFILE, 2048 + OTHER_DESCRIPTORS),
        (Resource::RLIMIT_FSIZE, gathers),
        (Resource::RLIMIT_DATA, OPENER_DATA),
    ])
}

/// No limit of memory: children inherit it, and need more than it does.
pub(super) fn spawner() -> Result<(), ConfineError> {
    set(&[
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NOFILE, 2048 + OTHER_DESCRIPTORS),
    ])
}

/// Descriptors of a broker: so many files of a host as the policy can allow, so many
/// files of sysfs as it ever opens for an act, and its own.
pub const BROKER_DESCRIPTORS: u64 = 4096;

/// Lets this process, which will be the broker, open as many descriptors as the
/// broker may have; a service manager leaves it fewer at first.
///
/// # Errors
/// As setrlimit(2).
pub fn make_room() -> Result<(), ConfineError> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(call("getrlimit"))?;
    let room = most.min(BROKER_DESCRIPTORS).max(now);
    setrlimit(Resource::RLIMIT_NOFILE, room, most).map_err(call("setrlimit"))
}

pub(super) fn broker() -> Result<(), ConfineError> {
    set(&[
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NOFILE, BROKER_DESCRIPTORS),
        (Resource::RLIMIT_DATA, BROKER_DATA),
    ])
}
