//! One record of every kind, and the largest of every kind.

use nix::errno::Errno;
use postern_core::audit::{
    Closing, End, Lost, Mounts, Opening, Peer, Record, Role, Run, TEXT_MAX, Text, ThawCause, Timestamp,
};
use postern_core::catalogue::Command;
use postern_core::ipc::Bytes;
use postern_core::messages::{Barrier, Denial, Facts, MAX_PATH, Use};
use postern_core::policy::rules::Mode;
use postern_core::policy::{ShutdownMethod, ShutdownMode};

/// The facts of a run by this process's user.
pub(crate) fn run() -> Run {
    Run {
        version: "0.1.0",
        policy_digest: [0xab; 32],
        privileged: false,
        landlock_abi: 7,
        boot_id: "7f0c2c9e-6f0c-4f6f-8d6f-0d3c8a3f0b11".to_owned(),
        pid: std::process::id(),
        uid: nix::unistd::geteuid().as_raw(),
    }
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
        Record::LogOpened { run: run(), why: Opening::Removed },
        Record::Stopped { reason: own() },
        Record::HostConnected { peer },
        Record::HostConnected { peer: None },
        Record::HostRefused { cid: 1, times: u64::MAX },
        Record::HostDisconnected { peer },
        Record::HostDisconnected { peer: None },
        Record::OpenRefused {
            requested: own(),
            mode: Mode::Read,
            by: Barrier::Broker,
            reason: own(),
            rule: None,
            errno: None,
            resolved: None,
        },
        Record::FileClosed {
            handle: 1000,
            why: Closing::Host,
            path: own(),
            used: Some(Use { read: 1, written: 2, calls: 3 }),
        },
        Record::FileClosed { handle: u64::MAX, why: Closing::WorkerDied, path: own(), used: None },
        Record::FileClosed { handle: 1001, why: Closing::Stopping, path: own(), used: None },
        Record::FreezeAsked { command: freeze, mounts: Mounts::default() },
        Record::FreezeAsked { command: list, mounts: mounts() },
        Record::FreezeDone { command: list, count: 3, mounts: mounts() },
        Record::FreezeFailed { command: freeze, mount: own(), reason: own(), errno: Some(Errno::EIO) },
        Record::FreezeFailed { command: freeze, mount: own(), reason: own(), errno: None },
        Record::FreezeDone { command: freeze, count: 1, mounts: mounts() },
        Record::Thawed { cause: ThawCause::Host, count: 3, mounts: mounts(), failed: mounts() },
        Record::Thawed { cause: ThawCause::Host, count: 5000, mounts: too_many(), failed: too_many() },
        Record::ShutdownRefused { mode: own(), reason: own() },
        Record::ProcessStarted { role: Role::Worker, child: 1, pid: Some(77), uid: 990 },
        Record::ProcessStarted { role: Role::Spawner, child: 0, pid: None, uid: 990 },
        Record::ProcessDied { role: Role::Worker, child: 1, end: End::Signalled(31), reason: None },
        Record::ProcessDied { role: Role::Opener, child: 2, end: End::Exited(101), reason: Some(own()) },
        Record::ProcessDied { role: Role::Spawner, child: 0, end: End::Unknown, reason: None },
        Record::MalformedFrame { role: Role::Worker, child: 1, reason: own() },
        Record::Counted { counts: Command::all().map(|command| (command, u64::MAX)).collect() },
        Record::Repeated {
            counts: Command::all().map(|command| (command.name(), u64::MAX)).chain([("host-connected", 1)]).collect(),
            since: Timestamp::UNIX_EPOCH,
            until: Timestamp::MAX,
        },
        Record::LogRemoved { name: "audit.jsonl.000000000001.gz".to_owned() },
        Record::RecordsLost(Lost { ring: 7, unwritten: 0, errno: None }),
        Record::RecordsLost(Lost { ring: 0, unwritten: 1, errno: Some(Errno::ENOSPC) }),
    ];
    for mode in Mode::ALL {
        records.push(Record::OpenAsked { requested: own(), mode, rule: 0 });
        records.push(Record::OpenGranted { requested: own(), mode, handle: 1000, file: facts(path, u16::MAX) });
    }
    for &by in Barrier::ALL {
        let (rule, errno, resolved) = (Some(3), Some(Errno::EACCES), Some(own()));
        records.push(Record::OpenRefused {
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
        records.push(Record::CommandRefused { command: own(), because });
        records.push(Record::CommandRefused { command: Text::from("guest-exec"), because });
    }
    for cause in [ThawCause::TimeLimit, ThawCause::Stopping, ThawCause::FreezeFailed, ThawCause::Remembered] {
        records.push(Record::Thawed { cause, count: 0, mounts: Mounts::default(), failed: Mounts::default() });
    }
    for (mode, method) in
        ShutdownMode::ALL.into_iter().zip([ShutdownMethod::Init, ShutdownMethod::Kernel, ShutdownMethod::Auto])
    {
        records.push(Record::ShutdownAsked { mode, method });
        records.push(Record::ShutdownFailed { mode, method, errno: Errno::EPERM });
    }
    records
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
