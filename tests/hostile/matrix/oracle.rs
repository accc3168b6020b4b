//! What the documentation says becomes of a worker's frame in each state: a
//! second, plainer telling of the broker's `decide` and `act`.

use std::collections::BTreeSet;
use std::path::Path;

use nix::errno::Errno;
use postern_core::ipc::Wire;
use postern_core::messages::{Answer, Ask, FreezeState};
use postern_core::policy::ShutdownMode;
use postern_core::policy::rules::Mode;

use super::grammar::{Flaw, judge};
use super::stage::State;

/// Why a worker is let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its frame is none.
    Malformed,
    /// It asked what no sound one asks then; words of the record.
    Hostile(&'static str),
    /// It left, or said that it ends.
    Left,
}

impl Cause {
    /// Whether a record with this reason tells of it.
    pub(super) fn is_told_by(self, reason: &str) -> bool {
        const MALFORMED: [&str; 5] = [
            "it ends early",
            "it goes on behind its end",
            "it is too long",
            "a value is out of range",
            "a descriptor is missing or too many",
        ];
        match self {
            Self::Malformed => MALFORMED.contains(&reason),
            Self::Hostile(words) => reason.contains(words),
            Self::Left => false,
        }
    }
}

/// What must come of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The worker is let go of, without a word.
    Replaced(Cause),
    /// No answer; the worker stays.
    Silence,
    /// This answer.
    Answer(Answer),
    /// A refusal in words.
    Refusal,
    /// This mode of this path: a file of the policy, or an error.
    Open(Mode),
    /// No file, by this error.
    NoFile(Errno),
    /// A freeze begins, and its end is told of.
    Freeze,
    /// A thaw begins, and its end is told of.
    Thaw,
    /// Init is asked.
    Shutdown,
}

/// What is known of the worker besides the state.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Handles that the broker has for it.
    pub(super) handles: BTreeSet<u64>,
    /// postern was told to stop.
    pub(super) stopping: bool,
}

pub(super) fn due(state: State, bytes: &[u8], descriptors: usize, known: &Known) -> Due {
    match judge(bytes, descriptors) {
        Err(Flaw::Empty) => Due::Replaced(Cause::Left),
        Err(_) => Due::Replaced(Cause::Malformed),
        Ok(()) => due_to(state, &Ask::whole(bytes).expect("both tellings agree"), known),
    }
}

fn due_to(state: State, ask: &Ask, known: &Known) -> Due {
    let hostile = |why| Due::Replaced(Cause::Hostile(why));
    match ask {
        Ask::Panicked { .. } => Due::Replaced(Cause::Left),
        Ask::Port {} | Ask::NoPort { .. } => hostile("a port that it was not sent for"),
        Ask::Ready { standing } if state == State::Unconfined => {
            let stands = standing.landlock_abi > 0 && standing.filter_rules > 0;
            if stands { Due::Silence } else { hostile("a barrier does not stand") }
        }
        // A barrier was possible before: the guest is short of something.
        Ask::Unconfined { .. } if state == State::Unconfined => Due::Replaced(Cause::Left),
        Ask::Ready { .. } | Ask::Unconfined { .. } => hostile("introduced itself twice"),
        _ if state == State::Unconfined => hostile("before it was confined"),
        Ask::Closed { handle, .. } if known.handles.contains(handle) => Due::Silence,
        Ask::Closed { .. } => hostile("a handle that it did not have"),
        // No host is connected.
        Ask::HostGone {} => hostile("a host that cannot have left"),
        Ask::PortGone {} => hostile("a channel that is there"),
        Ask::Denied { .. } | Ask::Counted { .. } | Ask::Limited { .. } | Ask::Alive {} => Due::Silence,
        _ if state == State::Opening => hostile("before it was answered"),
        Ask::Open { .. } if state.is_frozen() => Due::NoFile(Errno::EBUSY),
        Ask::Open { path, mode } if may(path.as_path(), *mode) => Due::Open(*mode),
        Ask::Open { .. } => Due::NoFile(Errno::EACCES),
        Ask::Freeze { .. } if state.is_frozen() || known.stopping => Due::Refusal,
        Ask::Freeze { .. } => Due::Freeze,
        Ask::Thaw {} => Due::Thaw,
        // The policy has no command that tells one.
        Ask::Fact { .. } => hostile("a fact that the policy withholds"),
        Ask::Status {} => Due::Answer(status(state)),
        Ask::Shutdown { mode: ShutdownMode::Powerdown } if !state.is_frozen() => Due::Shutdown,
        Ask::Shutdown { .. } => Due::Refusal,
        Ask::Trim { .. } | Ask::Suspend { .. } | Ask::SetVcpus { .. } | Ask::SetMemoryBlocks { .. } => {
            hostile("an act that the policy withholds")
        }
    }
}

/// What a status ask is answered in a state.
pub(super) fn status(state: State) -> Answer {
    let state = match state {
        State::Frozen => FreezeState::Frozen,
        State::Error => FreezeState::Error,
        // Only frozen says that a snapshot may be taken.
        _ => FreezeState::Thawed,
    };
    Answer::Status { state }
}

/// Whether the policy's rules let this be tried; see [`super::stage::POLICY`].
fn may(path: &Path, mode: Mode) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    let beneath = |directory: &str| {
        let rest = bytes.strip_prefix(directory.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    let plain = bytes.split(|&byte| byte == b'/').skip(1).all(|part| !matches!(part, b"" | b"." | b".."));
    plain && (beneath("/m/rw") || (beneath("/m/ro") && mode == Mode::Read))
}
