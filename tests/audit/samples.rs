//! One record of every kind, and the largest of every kind.

use nix::errno::Errno;
use postern_core::audit::{
    After, Asked, Closing, Confinement, End, Lost, Mounts, Opening, Outcome, Peer, Record, Reloaded, Role, Run, Stands,
    TEXT_MAX, Text, ThawCause, Timestamp,
};
use postern_core::catalogue::Command;
use postern_core::catalogue::facts::Fact;
use postern_core::ipc::Bytes;
use postern_core::messages::{Barrier, Denial, Facts, MAX_PATH, Use};
use postern_core::policy::rules::Mode;
use postern_core::policy::{ShutdownMethod, ShutdownMode};

/// The facts of a run by this process's user.
pub(crate) fn run() -> Run {
    Run {
        version: "0.1.0",
        executable: Some([0xe1; 32]),
        kernel: "6.1.0-32-amd64".to_owned(),
        policy_digest: [0xab; 32],
        policy_in_force: [0xac; 32],
        commands: Command::all().collect(),
        redact: [Command::GetHostName].into_iter().collect(),
        file_rules: 3,
        channel: Text::from("unix-listen:/run/host.sock"),
        privileged: false,
        landlock_abi: 7,
        boot_id: "7f0c2c9e-6f0c-4f6f-8d6f-0d3c8a3f0b11".to_owned(),
        pid: std::process::id(),
        uid: nix::unistd::geteuid().as_raw(),
        confinement: ["broker", "spawner", "opener", "worker"].map(confinement).to_vec(),
    }
}

fn confinement(name: &'static str) -> Confinement {
    Confinement {
        name,
        uid: 990,
        gid: 990,
        groups: vec![4, u32::MAX],
        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
        landlock: "no path",
        filter_rules: 30,
        filter_digest: [0xfd; 32],
    }
}

/// A run as its log says it where the channel's path and little else is known.
fn strange_run(text: &[u8]) -> Run {
    Run { executable: None, channel: Text::new(text), commands: Command::all().take(0).collect(), ..run() }
}

fn stands(missing: Mounts) -> Stands {
    Stands { landlock_abi: 7, filter_rules: 30, filter_digest: [0xfd; 32], missing }
}

fn facts(path: &[u8], rule: u16) -> Facts {
    Facts {
        path: Bytes::new(path).expect("the path fits"),
        device: nix::sys::stat::makedev(253, 1),
        inode: u64::MAX,
        mode: 0o100_640,
        uid: 0,
        gid: u32::MAX,
        size: u64::MAX,
        links: 2,
        created: true,
        rule,
    }
}

/// Records with `text` wherever a string may come from outside.
#[expect(clippy::too_many_lines, reason = "one table: every record")]
pub(crate) fn all(text: &[u8]) -> Vec<Record> {
    let path = &text[..text.len().min(MAX_PATH)];
    let own = || Text::new(text);
    let mounts = || Mounts::from_iter([own(), Text::from("/"), Text::from("/srv")]);
    let too_many = || (0..5000).map(|_| own()).collect::<Mounts>();
    let peer = Some(Peer { pid: 4242, uid: 1000, gid: 1000 });
    let (freeze, list) = (Command::FsfreezeFreeze, Command::FsfreezeFreezeList);
    let mut records = vec![
        Record::LogOpened { run: run(), why: Opening::Started },
        Record::LogOpened { run: run(), why: Opening::Rotated },
        Record::LogOpened { run: strange_run(text), why: Opening::Removed },
        Record::Stopped { reason: own() },
        Record::HostConnected { peer },
        Record::HostConnected { peer: None },
        Record::HostRefused { cid: 1, times: u64::MAX },
        Record::HostDisconnected { peer },
        Record::HostDisconnected { peer: None },
        Record::OpenRefused {
            child: 1,
            requested: own(),
            mode: Mode::Read,
            by: Barrier::Broker,
            reason: own(),
            rule: None,
            errno: None,
            resolved: None,
        },
        Record::FileClosed {
            child: 1,
            handle: 1000,
            why: Closing::Host,
            path: own(),
            after: Some(After { size: u64::MAX, mtime: Timestamp::MAX, changed: true }),
            used: Some(Use { read: 1, written: 2, calls: 3 }),
        },
        Record::FileClosed {
            child: 1,
            handle: u64::MAX,
            why: Closing::WorkerDied,
            path: own(),
            after: Some(After { size: 0, mtime: Timestamp::MIN, changed: false }),
            used: None,
        },
        Record::FileClosed { child: 1, handle: 1001, why: Closing::Stopping, path: own(), after: None, used: None },
        Record::FreezeAsked { child: 1, command: freeze, mounts: Mounts::default() },
        Record::FreezeAsked { child: 1, command: list, mounts: mounts() },
        Record::FreezeDone { command: list, count: 3, mounts: mounts(), left_out: Vec::new() },
        Record::FreezeFailed { command: freeze, mount: own(), reason: own(), errno: Some(Errno::EIO), left: mounts() },
        Record::FreezeFailed { command: freeze, mount: own(), reason: own(), errno: None, left: Mounts::default() },
        Record::FreezeFailed { command: freeze, mount: own(), reason: own(), errno: None, left: too_many() },
        Record::FreezeDone { command: freeze, count: 1, mounts: mounts(), left_out: vec![(own(), "covered")] },
        Record::FreezeDone {
            command: freeze,
            count: 5000,
            mounts: too_many(),
            left_out: (0..5000).map(|_| (own(), "frozen-by-others")).collect(),
        },
        Record::FoundFrozen { since: Timestamp::UNIX_EPOCH, count: 5000, mounts: too_many() },
        Record::Thawed { cause: ThawCause::Host, child: Some(1), count: 3, mounts: mounts(), failed: mounts() },
        Record::Thawed { cause: ThawCause::Host, child: None, count: 5000, mounts: too_many(), failed: too_many() },
        Record::ShutdownRefused { child: 1, mode: own(), reason: own() },
        Record::ActAsked { child: 1, command: Command::Fstrim, asked: Asked::Trim { minimum: u64::MAX } },
        Record::ActAsked { child: 1, command: Command::SuspendRam, asked: Asked::Suspend },
        Record::ActAsked { child: 1, command: Command::SuspendDisk, asked: Asked::Suspend },
        Record::ActAsked { child: 1, command: Command::SuspendHybrid, asked: Asked::Suspend },
        Record::ActAsked {
            child: 1,
            command: Command::SetVcpus,
            asked: Asked::Switch { on: Text::ranges([3, 1, 2, 8, u64::MAX]), off: Text::default() },
        },
        Record::ActAsked {
            child: 1,
            command: Command::SetMemoryBlocks,
            asked: Asked::Switch { on: Text::default(), off: Text::ranges((0..4096).map(|number| 2 * number)) },
        },
        Record::ActRefused { child: 1, command: Command::SuspendDisk, reason: own() },
        Record::ActDone { child: 1, command: Command::Fstrim, outcome: outcome(mounts(), mounts()) },
        Record::ActDone { child: 1, command: Command::Fstrim, outcome: outcome(too_many(), too_many()) },
        Record::ActDone {
            child: 1,
            command: Command::SetVcpus,
            outcome: Outcome { count: 2, trimmed: None, ..outcome(Mounts::default(), Mounts::default()) },
        },
        Record::ActDone {
            child: 1,
            command: Command::SetMemoryBlocks,
            outcome: outcome(Mounts::default(), Mounts::default()),
        },
        Record::ActFailed { child: 1, command: Command::SetVcpus, reason: own(), errno: Some(Errno::EBUSY) },
        Record::ActFailed { child: 1, command: Command::SuspendHybrid, reason: own(), errno: None },
        Record::ActFailed { child: 1, command: Command::SuspendRam, reason: own(), errno: None },
        Record::ActFailed { child: 1, command: Command::SuspendDisk, reason: own(), errno: None },
        Record::ProcessStarted { role: Role::Worker, child: 1, pid: Some(77), uid: 990, stands: stands(too_many()) },
        Record::ProcessStarted { role: Role::Opener, child: 2, pid: Some(7), uid: 990, stands: stands(mounts()) },
        Record::ProcessStarted {
            role: Role::Spawner,
            child: 0,
            pid: None,
            uid: 990,
            stands: stands(Mounts::default()),
        },
        Record::ProcessDied { role: Role::Worker, child: 1, end: End::Signalled(31), reason: None },
        Record::ProcessDied { role: Role::Opener, child: 2, end: End::Exited(101), reason: Some(own()) },
        Record::ProcessDied { role: Role::Spawner, child: 0, end: End::Unknown, reason: None },
        Record::MalformedFrame { role: Role::Worker, child: 1, reason: own() },
        Record::Counted { child: 1, counts: Command::all().map(|command| (command, u64::MAX)).collect() },
        Record::Repeated {
            counts: Command::all().map(|command| (command.name(), u64::MAX)).chain([("host-connected", 1)]).collect(),
            since: Timestamp::UNIX_EPOCH,
            until: Timestamp::MAX,
        },
        Record::FactTold { child: 1, fact: Fact::Load, errno: None },
        Record::FactTold { child: 1, fact: Fact::Load, errno: Some(Errno::ENOENT) },
        Record::Limited { child: 2, counts: vec![(Command::FileOpen, 17), (Command::FsfreezeFreezeList, 1)] },
        Record::FileClosed { child: 1, handle: 1002, why: Closing::Reloaded, path: own(), after: None, used: None },
        Record::PolicyReloaded(Box::new(reloaded())),
        Record::PolicyReloaded(Box::new(Reloaded {
            tightened: vec!["commands.allow", "audit.max_bytes"],
            widened: vec!["files.path"],
            surplus: vec!["freezing", "waiting for the log's disk"],
            ..reloaded()
        })),
        Record::PolicyKept { reason: own(), refused: None, restart: Vec::new() },
        Record::PolicyKept { reason: own(), refused: Some([9; 32]), restart: vec!["state.directory"] },
        Record::LogRemoved { name: "audit.jsonl.000000000001.gz".to_owned() },
        Record::RecordsLost(Lost { ring: 7, unwritten: 0, errno: None }),
        Record::RecordsLost(Lost { ring: 0, unwritten: 1, errno: Some(Errno::ENOSPC) }),
    ];
    for mode in Mode::ALL {
        records.push(Record::OpenAsked { child: 1, requested: own(), mode, rule: 0 });
        let file = mode.creates().then(|| facts(path, 1));
        records.push(Record::OpenUnanswered { child: 1, requested: own(), mode, rule: 1, file });
        let (file, mtime) = (facts(path, u16::MAX), Timestamp::UNIX_EPOCH);
        records.push(Record::OpenGranted { child: 1, requested: own(), mode, handle: 1000, file, mtime });
    }
    for &by in Barrier::ALL {
        let (rule, errno, resolved) = (Some(3), Some(Errno::EACCES), Some(own()));
        records.push(Record::OpenRefused {
            child: 1,
            requested: own(),
            mode: Mode::Write,
            by,
            reason: own(),
            rule,
            errno,
            resolved,
        });
    }
    for because in [Denial::Policy, Denial::WhileFrozen, Denial::NotOffered, Denial::Unknown] {
        records.push(Record::CommandRefused { child: 1, command: own(), because });
        records.push(Record::CommandRefused { child: 1, command: Text::from("guest-exec"), because });
    }
    for cause in [ThawCause::TimeLimit, ThawCause::Stopping] {
        records.push(Record::Thawed {
            cause,
            child: None,
            count: 0,
            mounts: Mounts::default(),
            failed: Mounts::default(),
        });
    }
    for (mode, method) in
        ShutdownMode::ALL.into_iter().zip([ShutdownMethod::Init, ShutdownMethod::Kernel, ShutdownMethod::Auto])
    {
        records.push(Record::ShutdownAsked { child: 1, mode, method });
        records.push(Record::ShutdownFailed { mode, method, errno: Errno::EPERM });
    }
    records
}

fn outcome(mounts: Mounts, failed: Mounts) -> Outcome {
    Outcome { count: u64::MAX, mounts, trimmed: Some(u64::MAX), failed, left: 1 }
}

fn reloaded() -> Reloaded {
    Reloaded {
        digest: [7; 32],
        in_force: [8; 32],
        commands: Command::all().collect(),
        redact: [Command::GetHostName].into_iter().collect(),
        file_rules: 3,
        tightened: Vec::new(),
        widened: Vec::new(),
        surplus: Vec::new(),
    }
}

/// Texts that try something.
pub(crate) fn texts() -> Vec<Vec<u8>> {
    vec![
        b"/srv/data/a file".to_vec(),
        "/srv/d\u{e4}ten/\u{1f600}".as_bytes().to_vec(),
        b"\"},\"event\":{\"sequence\":1,\n\x1b[2J\\".to_vec(),
        b"/srv/\xff\xfe/latin-1 \xe4".to_vec(),
        "/srv/\u{202e}gpj.exe\u{85}".as_bytes().to_vec(),
        Vec::new(),
        // As many bytes as fit, each as long as a byte gets.
        vec![0x01; TEXT_MAX],
        vec![0xff; TEXT_MAX + 1],
        [vec![0x01; TEXT_MAX - 1], vec![0xff; 2]].concat(),
    ]
}
