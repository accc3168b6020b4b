//! What the broker makes of a worker's ask: a pure question, with every answer
//! listed here and enumerated in the tests.
//!
//! Trust: the ask is a hostile worker's. State and policy are ours. Nothing
//! here touches the system; `act` does what it is told.

use nix::errno::Errno;
use postern_core::catalogue::facts::Fact;
use postern_core::catalogue::{Act, Command};
use postern_core::messages::{Ask, Barrier, WirePath};
use postern_core::policy::rules::{self, Mode, Verdict};
use postern_core::policy::{Policy, ShutdownMode};

use crate::fsfreeze::Status;

/// What the decision depends on besides policy and ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Whether the worker has said that it is confined.
    pub(crate) ready: bool,
    /// Whether the worker was sent for the port and has not brought it yet.
    pub(crate) fetching: bool,
    /// What filesystems are.
    pub(crate) freeze: Status,
    /// Whether a thaw that the host asked for is under way.
    pub(crate) thawing: bool,
    /// Files that the worker holds, as far as the broker knows.
    pub(crate) files: usize,
    /// Whether an open of this worker is under way.
    pub(crate) opening: bool,
    /// Whether postern was started with what acts take (as root).
    pub(crate) privileged: bool,
    /// Whether an act that takes long is under way: a trim, a sleep ...
    pub(crate) acting: bool,
    /// Whether postern is ending: it has thawed, and nobody would thaw again.
    pub(crate) stopping: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Decision {
    /// Have the opener open it, under this rule; `changes` says that the open
    /// itself may create or truncate, so that a record comes first.
    Open {
        /// Index of the rule.
        rule: usize,
        /// Whether the open itself has an effect.
        changes: bool,
    },
    /// Answer with this error.
    RefuseOpen(Refusal),
    /// Freeze; the command is for the record.
    Freeze(Command),
    /// Thaw.
    Thaw,
    /// Tell the status.
    Status,
    /// Have a fact told.
    Fact(Fact),
    /// Answer that a fact cannot be told, with this error.
    RefuseFact(Errno),
    /// Shut down.
    Shutdown(ShutdownMode),
    /// Begin this command's act.
    Act(Command),
    /// Answer with this refusal.
    Refuse(&'static str),
    /// Take note; no answer is due.
    Note,
    /// No sound worker asks this now: replace it.
    Hostile(&'static str),
}

/// An open that is not done, or came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// For the host.
    pub(crate) errno: Errno,
    /// Who refuses, for the record.
    pub(crate) by: Barrier,
    /// Why, for the record.
    pub(crate) why: &'static str,
    /// The rule that decided, if one did.
    pub(crate) rule: Option<usize>,
    /// What the kernel resolved the path to, if it got so far.
    pub(crate) resolved: Option<WirePath>,
}

/// For a host that asks what only a postern started as root can do.
const UNPRIVILEGED: &str = "not possible: postern was started without root";
/// For a host that asks twice.
const BUSY: &str = "a freeze or thaw is under way";
/// For a host that asks for two acts at once.
const ACTING: &str = "a trim, a suspend, or a change of processors or memory blocks is under way";
/// For a host that asks for an act meanwhile.
const FROZEN: &str = "filesystems are frozen";
/// For a host that asks while postern ends.
const STOPPING: &str = "postern is stopping";

/// Decides. `ask` is what the worker sent, in type.
pub(crate) fn decide(state: State, ask: &Ask, policy: &Policy) -> Decision {
    match ask {
        Ask::Ready { .. } | Ask::Unconfined { .. } if state.ready => Decision::Hostile("it introduced itself twice"),
        Ask::Port {} | Ask::NoPort { .. } if state.ready || !state.fetching => {
            Decision::Hostile("it brought a port that it was not sent for")
        }
        Ask::Ready { standing } if standing.landlock_abi == 0 || standing.filter_rules == 0 => {
            Decision::Hostile("it says that a barrier does not stand")
        }
        Ask::Ready { .. } if state.fetching => Decision::Hostile("it came without the port that it was sent for"),
        Ask::Ready { .. } | Ask::Unconfined { .. } | Ask::Panicked { .. } | Ask::Port {} | Ask::NoPort { .. } => {
            Decision::Note
        }
        _ if !state.ready => Decision::Hostile("it asked before it was confined"),
        Ask::Closed { .. }
        | Ask::HostGone {}
        | Ask::PortGone {}
        | Ask::Denied { .. }
        | Ask::Counted { .. }
        | Ask::Limited { .. }
        | Ask::Alive {} => Decision::Note,
        _ if state.opening => Decision::Hostile("it asked again before it was answered"),
        Ask::Open { path, mode } => {
            if !policy.commands.contains(Command::FileOpen) {
                return Decision::Hostile("it asked to open, which the policy withholds");
            }
            open(state, path.as_path(), *mode, policy)
        }
        Ask::Freeze { only } => {
            let command = if only.is_some() { Command::FsfreezeFreezeList } else { Command::FsfreezeFreeze };
            // A list with nothing else than a plain freeze may come as either
            // command; a list of mountpoints only as the one.
            let allowed = policy.commands.contains(Command::FsfreezeFreezeList)
                || (only.is_none() && policy.commands.contains(Command::FsfreezeFreeze));
            if !allowed {
                Decision::Hostile("it asked to freeze, which the policy withholds")
            } else if !state.privileged {
                Decision::Refuse(UNPRIVILEGED)
            } else if state.stopping {
                Decision::Refuse(STOPPING)
            } else if state.acting {
                Decision::Refuse(ACTING)
            } else if state.freeze == Status::Thawed && !state.thawing {
                Decision::Freeze(command)
            } else {
                Decision::Refuse(BUSY)
            }
        }
        Ask::Thaw {} if !policy.needs(Act::Thaw) => Decision::Hostile("it asked to thaw, which the policy withholds"),
        Ask::Thaw {} if !state.privileged => Decision::Refuse(UNPRIVILEGED),
        Ask::Thaw {} if state.thawing => Decision::Refuse(BUSY),
        Ask::Thaw {} => Decision::Thaw,
        Ask::Status {} if !policy.commands.contains(Command::FsfreezeStatus) => {
            Decision::Hostile("it asked for the status, which the policy withholds")
        }
        Ask::Status {} => Decision::Status,
        Ask::Fact { fact } if !policy.facts().contains(*fact) => {
            Decision::Hostile("it asked for a fact that the policy withholds")
        }
        Ask::Fact { fact } if fact.is_handed() => Decision::Hostile("it asked for what it was handed at its birth"),
        // No fact is told while filesystems are frozen: what is read may lie on one.
        Ask::Fact { .. } if state.freeze != Status::Thawed => Decision::RefuseFact(Errno::EBUSY),
        Ask::Fact { fact } => Decision::Fact(*fact),
        Ask::Shutdown { .. } if !policy.commands.contains(Command::Shutdown) => {
            Decision::Hostile("it asked to shut down, which the policy withholds")
        }
        Ask::Shutdown { .. } if !state.privileged => Decision::Refuse(UNPRIVILEGED),
        Ask::Shutdown { .. } if state.freeze != Status::Thawed => Decision::Refuse(FROZEN),
        Ask::Shutdown { mode } if !policy.shutdown.modes.contains(mode) => {
            Decision::Refuse("the guest's policy does not allow this mode")
        }
        Ask::Shutdown { mode } => Decision::Shutdown(*mode),
        Ask::Trim { .. } => act(state, Command::Fstrim, policy),
        Ask::Suspend { mode } => act(state, mode.command(), policy),
        Ask::SetVcpus { .. } => act(state, Command::SetVcpus, policy),
        Ask::SetMemoryBlocks { .. } => act(state, Command::SetMemoryBlocks, policy),
    }
}

/// An act that may take long: nothing that a freeze would hold, and one at a time.
fn act(state: State, command: Command, policy: &Policy) -> Decision {
    if !policy.commands.contains(command) {
        Decision::Hostile("it asked for an act that the policy withholds")
    } else if !state.privileged {
        Decision::Refuse(UNPRIVILEGED)
    } else if state.stopping {
        Decision::Refuse(STOPPING)
    } else if state.freeze != Status::Thawed || state.thawing {
        Decision::Refuse(FROZEN)
    } else if state.acting {
        Decision::Refuse(ACTING)
    } else {
        Decision::Act(command)
    }
}

fn open(state: State, path: &std::path::Path, mode: Mode, policy: &Policy) -> Decision {
    let refuse =
        |errno, why, rule| Decision::RefuseOpen(Refusal { errno, by: Barrier::Broker, why, rule, resolved: None });
    if state.freeze != Status::Thawed {
        return refuse(Errno::EBUSY, "filesystems are frozen", None);
    }
    if state.files >= policy.limits.handles as usize {
        return refuse(Errno::EMFILE, "as many files are open as the policy allows", None);
    }
    match rules::decide(&policy.files, path, mode) {
        Verdict::Allowed { rule, .. } => {
            // A link may lead to where another rule lets the open make a file.
            let may_create = policy.files.iter().any(|rule| mode.allowed_on_missing(rule.rights));
            Decision::Open { rule, changes: may_create || mode.truncates() }
        }
        // Seen only by a test build that takes this check away.
        _ if cfg!(feature = "sabotage") => Decision::Open { rule: 0, changes: true },
        Verdict::NotCanonical => refuse(Errno::EACCES, "the path is not absolute and plain", None),
        Verdict::Unreached => refuse(Errno::EACCES, "no rule reaches the path", None),
        Verdict::Excepted { rule } => refuse(Errno::EACCES, "a rule excepts the path", Some(rule)),
        Verdict::LacksRight { rule } => refuse(Errno::EACCES, "no rule grants this mode here", Some(rule)),
    }
}

#[cfg(all(test, not(feature = "sabotage")))]
mod tests;
