//! Resource limits: what a fallen process can use up.

use nix::sys::resource::{Resource, setrlimit};

use super::{ConfineError, call};
use crate::policy::Limits;

/// Descriptors that a worker has besides the host's files: see the table in
/// `filters`.
const WORKER_DESCRIPTORS: u64 = 8;
/// Descriptors of broker, opener and spawner, with room for a transfer.
const OTHER_DESCRIPTORS: u64 = 64;
/// Address space of a worker besides its message buffers: its code, its
/// libraries, its stack.
const WORKER_SPACE: u64 = 96 << 20;

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

pub(super) fn worker(limits: &Limits) -> Result<(), ConfineError> {
    set(&COMMON)?;
    // A request is buffered once, decoded once more, and its buffer may double
    // while it grows.
    let space = WORKER_SPACE + 4 * u64::from(limits.message);
    set(&[(Resource::RLIMIT_NOFILE, WORKER_DESCRIPTORS + u64::from(limits.handles)), (Resource::RLIMIT_AS, space)])
}

pub(super) fn opener() -> Result<(), ConfineError> {
    set(&COMMON)?;
    // Rules are opened all at once for Landlock.
    set(&[(Resource::RLIMIT_NOFILE, 2048 + OTHER_DESCRIPTORS), (Resource::RLIMIT_FSIZE, 0)])
}

pub(super) fn spawner() -> Result<(), ConfineError> {
    set(&[
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NOFILE, 2048 + OTHER_DESCRIPTORS),
    ])
}

pub(super) fn broker() -> Result<(), ConfineError> {
    set(&[
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_NOFILE, 4096),
    ])
}
