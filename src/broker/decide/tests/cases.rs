//! Every case that a decision can meet: policies, states, asks.
//!
//! Trust: plain data, for the tests beside it.

use std::path::PathBuf;
use std::time::Duration;

use postern_core::catalogue::CommandSet;
use postern_core::catalogue::facts::Fact;
use postern_core::ipc::{Bytes, List};
use postern_core::messages::{Count, Denial, Standing, SuspendMode, Switch, Text, Use, WirePath};
use postern_core::policy::rules::{FileRule, Rights, Types};
use postern_core::policy::telling::Telling;
use postern_core::policy::{Audit, Channel, Freeze, Identities, Limits, Shutdown, ShutdownMethod};

use super::super::*;
pub(super) const HANDLES: u32 = 2;

pub(super) fn rule(path: &str, rights: Rights, except: &[&str]) -> FileRule {
    let except = except.iter().map(PathBuf::from).collect();
    FileRule { path: path.into(), rights, except, optional: false, types: Types::REGULAR }
}

pub(super) fn policy(commands: &[Command], modes: &[ShutdownMode]) -> Policy {
    Policy {
        digest: [0; 32],
        commands: commands.iter().copied().collect(),
        redact: CommandSet::EMPTY,
        facts: Telling::default(),
        files: vec![
            rule("/read", Rights::READ, &["/read/except"]),
            rule("/write", Rights::READ.with(Rights::WRITE), &[]),
            rule("/create", Rights::CREATE, &[]),
            rule("/append", Rights::APPEND, &[]),
        ],
        create_mode: 0o600,
        freeze: Freeze { limit: Duration::from_secs(60) },
        hang: Duration::from_secs(30),
        shutdown: Shutdown { modes: modes.to_vec(), method: ShutdownMethod::Init },
        limits: Limits { handles: HANDLES, ..Limits::default() },
        audit: Audit::at("/log/audit.jsonl".into()),
        identities: Identities { worker: None, broker: None, groups: Vec::new() },
        channel: Channel::UnixListen("/run/socket".into()),
        state: "/run/state".into(),
    }
}

pub(super) fn everything() -> Policy {
    policy(&Command::all().collect::<Vec<_>>(), &ShutdownMode::ALL)
}

/// One policy per command that is withheld, besides all and none.
pub(super) fn policies() -> Vec<Policy> {
    let all: CommandSet = Command::all().collect();
    let without = |command: Command| {
        let mut some = all;
        some.remove(command);
        policy(&some.iter().collect::<Vec<_>>(), &[ShutdownMode::Halt])
    };
    Command::all().map(without).chain([everything(), policy(&[], &[])]).collect()
}

pub(super) fn states() -> Vec<State> {
    let mut states = Vec::new();
    for freeze in [Status::Thawed, Status::Freezing, Status::Frozen, Status::Error] {
        for files in [0, HANDLES as usize] {
            for bits in 0..128_u8 {
                let bit = |number: u8| bits & (1 << number) != 0;
                let (ready, thawing, opening, privileged, stopping) = (bit(0), bit(1), bit(2), bit(3), bit(4));
                let (fetching, acting) = (bit(5), bit(6));
                states.push(State { ready, fetching, freeze, thawing, files, opening, privileged, acting, stopping });
            }
        }
    }
    states
}

pub(super) const USUAL: State = State {
    ready: true,
    fetching: false,
    freeze: Status::Thawed,
    thawing: false,
    files: 0,
    opening: false,
    privileged: true,
    acting: false,
    stopping: false,
};

pub(super) fn open(path: &str, mode: Mode) -> Ask {
    Ask::Open { path: WirePath::new(path.as_bytes()).expect("a path"), mode }
}

pub(super) fn standing() -> Standing {
    Standing { landlock_abi: 7, filter_rules: 30, filter_digest: [0; 32], missing: List::default() }
}

/// Every kind of ask, and of those with choices each.
pub(super) fn asks() -> Vec<Ask> {
    let text = || Text::cut(b"text");
    let list = |paths: &[&str]| {
        List::new(paths.iter().map(|path| WirePath::cut(path.as_bytes())).collect()).expect("a short list")
    };
    let mut asks = vec![
        Ask::Ready { standing: standing() },
        Ask::Unconfined { why: text() },
        Ask::Panicked { message: text() },
        Ask::Closed { handle: 1000, used: Use { read: 0, written: 0, calls: 0 } },
        Ask::HostGone {},
        Ask::PortGone {},
        Ask::Port {},
        Ask::NoPort { errno: 2 },
        Ask::Denied { command: Bytes::cut(b"guest-exec"), why: Denial::NotOffered },
        Ask::Counted { commands: List::new(vec![Count { command: Command::Ping, times: 1 }]).expect("a short list") },
        Ask::Limited { commands: List::new(vec![Count { command: Command::Info, times: 1 }]).expect("a short list") },
        Ask::Alive {},
        Ask::Freeze { only: None },
        Ask::Freeze { only: Some(list(&[])) },
        Ask::Freeze { only: Some(list(&["/mnt"])) },
        Ask::Thaw {},
        Ask::Status {},
        Ask::Fact { fact: Fact::Load },
    ];
    asks.extend(ShutdownMode::ALL.map(|mode| Ask::Shutdown { mode }));
    asks.extend(acts().map(|(ask, _)| ask));
    for path in [
        "/read/a",
        "/read/except/a",
        "/write/a",
        "/create/a",
        "/append/a",
        "/etc/passwd",
        "relative",
        "/read/../etc",
        "",
    ] {
        asks.extend(Mode::ALL.map(|mode| open(path, mode)));
    }
    asks
}

/// Every ask for an act that takes long, with its command.
pub(super) fn acts() -> [(Ask, Command); 6] {
    let list = || List::new(vec![Switch { number: 1, online: false }]).expect("a short list");
    [
        (Ask::Trim { minimum: 0 }, Command::Fstrim),
        (Ask::Suspend { mode: SuspendMode::Disk }, Command::SuspendDisk),
        (Ask::Suspend { mode: SuspendMode::Ram }, Command::SuspendRam),
        (Ask::Suspend { mode: SuspendMode::Hybrid }, Command::SuspendHybrid),
        (Ask::SetVcpus { vcpus: list() }, Command::SetVcpus),
        (Ask::SetMemoryBlocks { blocks: list() }, Command::SetMemoryBlocks),
    ]
}

/// The command of such an ask.
pub(super) fn act_of(ask: &Ask) -> Option<Command> {
    acts().into_iter().find(|(one, _)| one == ask).map(|(_, command)| command)
}

/// Calls `check` with every case.
pub(super) fn each_case(mut check: impl FnMut(State, &Ask, &Policy, Decision)) {
    for policy in policies() {
        for state in states() {
            for ask in asks() {
                check(state, &ask, &policy, decide(state, &ask, &policy));
            }
        }
    }
}
