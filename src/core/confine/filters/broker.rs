//! The broker's filter: what every broker may call, and what a policy adds.
//!
//! Descriptors that have no fixed number are named by the ones that they have
//! when the filter is made.
//!
//! Trust: plain data; numbers and lengths are the broker's own. Callers: the
//! broker at its start, and whoever explains or tests a policy.

use std::os::fd::RawFd;

use super::super::seccomp::{Rule, When, permit};
use super::{CREATE_STATE, OPEN_DIRECTORY, OPEN_LOG, OPEN_OWN, common, flags, int};
use crate::catalogue::facts::Reads;
use crate::catalogue::{Act, Command};
use crate::policy::written::OPEN_SOURCE;
use crate::policy::{Audit, Fsync, Policy};

/// What the broker's acts come down to, under a policy and an init.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerNeeds {
    /// Whether it freezes, thaws.
    pub freeze: bool,
    /// Whether it trims.
    pub trim: bool,
    /// Signals that it may send to PID 1.
    pub signals: Vec<i32>,
    /// Commands that it may give `reboot(2)`.
    pub reboots: Vec<i32>,
    /// Whether it listens for hosts, and on what.
    pub listens: Option<Listens>,
    /// Whom it tells of its log's heads.
    pub reconnects: Vec<Reconnects>,
    /// What its log takes besides appending; a broker has one.
    pub log: Option<LogNeeds>,
    /// Descriptors of the state directory, each the same for the broker's whole
    /// life, in which it replaces and removes state files.
    pub state: Vec<RawFd>,
    /// The directories of its policy, the same for the broker's whole life.
    pub policy: Vec<RawFd>,
}

/// A datagram socket that may be connected anew, to the name that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnects {
    /// The socket, made at the start.
    pub socket: RawFd,
    /// Length in bytes of the address: all that a filter sees of a name.
    pub length: u32,
}

impl Reconnects {
    /// `socket`, to the socket that is named by this absolute path.
    #[must_use]
    pub const fn new(socket: RawFd, path: &'static str) -> Self {
        // sun_family, the path, its NUL: unix(7).
        let length = size_of::<libc::sa_family_t>() + path.len() + 1;
        #[expect(clippy::cast_possible_truncation, reason = "names of sockets are short: at most 110 bytes")]
        Self { socket, length: length as u32 }
    }
}

/// What a log takes besides appending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogNeeds {
    /// Descriptor of its directory, the same for the broker's whole life.
    pub directory: RawFd,
    /// Whether the broker renames the log and removes what it renamed.
    pub rotate: bool,
    /// Whether it waits for the disk.
    pub sync: bool,
}

impl LogNeeds {
    /// What `audit` asks for, with the log's directory open as `directory`.
    #[must_use]
    pub fn new(audit: &Audit, directory: RawFd) -> Self {
        Self { directory, rotate: audit.rotate_bytes.is_some(), sync: audit.fsync != Fsync::Never }
    }
}

/// In words, what the broker's Landlock domain leaves it: whether it lists
/// directories, in order to freeze or trim, whether it rotates its log, and whether it
/// writes state files.
#[must_use]
pub const fn broker_leaves(lists: bool, rotates: bool, remembers: bool) -> &'static str {
    match (lists, rotates, remembers) {
        (true, false, true) => "lists directories; reads its policy; its log and state",
        (true, false, false) => "lists directories; reads its policy; its log",
        (true, true, true) => {
            "lists directories; reads its policy; its log, whose files it renames and removes, and state"
        }
        (true, true, false) => "lists directories; reads its policy; its log, whose files it renames and removes",
        (false, false, true) => "reads its policy; its log and state",
        (false, false, false) => "reads its policy; its log",
        (false, true, true) => "reads its policy; its log, whose files it renames and removes, and state",
        (false, true, false) => "reads its policy; its log, whose files it renames and removes",
    }
}

/// In words, what of the kernel's files a broker opened at its start, as root, for what
/// `policy` allows: it keeps the descriptors, and neither Landlock nor a filter takes
/// part in what it writes there, or hands to a worker to be read.
#[must_use]
pub fn broker_opens(policy: &Policy) -> Vec<String> {
    let sleeps = |command| policy.commands.contains(command);
    let hybrid = sleeps(Command::SuspendHybrid);
    let acts = [
        ("/sys/power/state to write", policy.needs(Act::Suspend)),
        ("/sys/power/disk to write", hybrid),
        ("/sys/power/disk to read", sleeps(Command::SuspendDisk) && !hybrid),
        ("the switch of each processor in /sys/devices/system/cpu, of 512 at most", policy.needs(Act::SetVcpus)),
        (
            "the switch of each memory block in /sys/devices/system/memory, of the last 2048 at most",
            policy.needs(Act::SetMemoryBlocks),
        ),
    ];
    let acts = acts.into_iter().filter(|(_, is)| *is).map(|(what, _)| what.to_owned());
    let facts = policy.facts();
    let told = facts.iter().filter_map(|fact| match fact.row().reads {
        Reads::Kept(paths) => Some(format!("{} for workers to read", paths.join(", or else "))),
        Reads::Network(name) => Some(format!("/proc/net/{name} for workers to read")),
        Reads::Gathered(_) | Reads::Lasting(..) | Reads::Netlink => None,
    });
    acts.chain(told).collect()
}

/// What a broker listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listens {
    /// A unix socket.
    Unix,
    /// A vsock port.
    Vsock,
}

/// The broker's filter, for all its threads.
#[must_use]
pub fn broker(needs: &BrokerNeeds) -> Vec<Rule> {
    let mut rules = common();
    rules.extend(always());
    rules.extend(meeting(needs));
    rules.extend(needs.log.into_iter().flat_map(logging));
    rules.extend(needs.state.iter().copied().flat_map(remembering));
    rules.extend(needs.policy.iter().copied().flat_map(rereading));
    rules.extend(acting(needs));
    rules
}

/// What it takes to serve a worker, whatever the policy.
fn always() -> Vec<Rule> {
    vec![
        permit!(read, "signals, the engine's notes, news of /dev, the policy"),
        permit!(
            write,
            "the log, at its end by how it was opened; stderr; waking the loop; what the start opened in sysfs for an act"
        ),
        permit!(
            pread64,
            "mountinfo, the log's last record, state files, the kernel's list of drivers, sysfs where an act needs it"
        ),
        permit!(recvmsg, "asks and reports"),
        permit!(
            sendto,
            "answers and orders; notes to the service manager and heads of the log, on sockets of the start"
        ),
        permit!(sendmsg, "handing descriptors on"),
        permit!(ppoll, "waiting"),
        permit!(
            socketpair,
            [When::Is(0, int(libc::AF_UNIX)), When::Is(1, int(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC))],
            "a new child's socket"
        ),
        permit!(
            setsockopt,
            [When::Is(1, int(libc::SOL_SOCKET)), When::Is(2, int(libc::SO_PASSCRED))],
            "learning a new child's process id"
        ),
        permit!(futex, "between its threads"),
        permit!(mprotect, [When::Lacks(2, int(libc::PROT_EXEC))], "memory: the C library grows a thread's heap so"),
        permit!(sched_yield, "between its threads"),
        permit!(clock_gettime, "the time, where the vDSO does not tell it"),
        permit!(getrandom, "seeds of the standard library's tables"),
        permit!(
            openat,
            [When::Is(2, flags(OPEN_DIRECTORY))],
            "mountpoints, the log's directory: Landlock lets it list, no more"
        ),
        permit!(openat, [When::Is(2, flags(OPEN_OWN))], "its log's last record: Landlock lets it read no other file"),
        permit!(
            openat,
            [When::Is(2, flags(OPEN_LOG)), When::Is(3, 0o600)],
            "its log after a rotation, only ever at its end"
        ),
        permit!(fstat, "whose a file is"),
        permit!(statx, "which mount a descriptor is on; whether an unplugged port is back; whose the policy is"),
        #[cfg(target_arch = "x86_64")]
        permit!(poll, "waiting"),
    ]
}

/// What it takes to meet hosts, and to stay connected with who hears of heads.
fn meeting(needs: &BrokerNeeds) -> Vec<Rule> {
    let mut rules = Vec::new();
    if needs.listens.is_some() {
        rules.push(permit!(accept4, "the next host"));
    }
    match needs.listens {
        Some(Listens::Unix) => rules.push(permit!(
            getsockopt,
            [When::Is(1, int(libc::SOL_SOCKET)), When::Is(2, int(libc::SO_PEERCRED))],
            "who the host is"
        )),
        Some(Listens::Vsock) => rules.push(permit!(getpeername, "the host's context id")),
        None => {}
    }
    for Reconnects { socket, length } in &needs.reconnects {
        rules.push(permit!(
            connect,
            [When::Is(0, int(*socket)), When::Is(2, *length)],
            "journald or syslog, which was restarted under a new socket"
        ));
    }
    rules
}

/// What freezing, trimming and shutting down take. Suspending and switching
/// processors and memory take nothing more: they are a write to a descriptor that
/// the start opened.
fn acting(needs: &BrokerNeeds) -> Vec<Rule> {
    let mut rules = Vec::new();
    if needs.freeze {
        rules.push(permit!(ioctl, [When::Is(1, crate::sys::fs::FIFREEZE)], "freezing a filesystem"));
        rules.push(permit!(ioctl, [When::Is(1, crate::sys::fs::FITHAW)], "thawing a filesystem"));
    }
    if needs.trim {
        rules.push(permit!(
            ioctl,
            [When::Is(1, crate::sys::fs::FITRIM)],
            "telling a disk what its filesystem does not use"
        ));
    }
    for &signal in &needs.signals {
        rules.push(permit!(kill, [When::Is(0, 1), When::Is(1, int(signal))], "asking init to shut down"));
    }
    if !needs.reboots.is_empty() {
        rules.push(permit!(sync, "before the kernel shuts down"));
    }
    for &command in &needs.reboots {
        rules.push(permit!(
            reboot,
            [When::Is(0, int(libc::LINUX_REBOOT_MAGIC1)), When::Is(2, int(command))],
            "shutting down as the policy chose"
        ));
    }
    rules
}

/// What state files take, in the directory that has this number.
fn remembering(directory: RawFd) -> Vec<Rule> {
    let directory = int(directory);
    vec![
        permit!(
            openat,
            [When::Is(0, directory), When::Is(2, flags(CREATE_STATE)), When::Is(3, 0o600)],
            "its state files, only ever new"
        ),
        permit!(renameat, [When::Is(0, directory), When::Is(2, directory)], "replacing a state file"),
        permit!(
            unlinkat,
            [When::Is(0, directory), When::Is(2, 0)],
            "removing a state file that is no longer true, or that a killed run left unfinished"
        ),
    ]
}

/// What it takes to read the policy again, from one directory of its sources.
fn rereading(directory: RawFd) -> [Rule; 3] {
    let directory = int(directory);
    [
        permit!(
            openat,
            [When::Is(0, directory), When::Is(2, flags(OPEN_SOURCE))],
            "the policy's files, on a reload: Landlock lets it read no others there"
        ),
        permit!(getdents64, [When::Is(0, directory)], "the policy's drop-ins, on a reload"),
        permit!(
            lseek,
            [When::Is(0, directory), When::Is(1, 0), When::Is(2, int(libc::SEEK_SET))],
            "listing the policy's drop-ins anew"
        ),
    ]
}

/// What a log takes besides appending. Its directory has a number, so that the
/// broker's own mistakes reach no other; what holds a fallen broker, which can
/// put another directory under that number, is Landlock. So it is with the state
/// directory's.
fn logging(needs: LogNeeds) -> Vec<Rule> {
    let directory = int(needs.directory);
    let mut rules = vec![
        permit!(getdents64, [When::Is(0, directory)], "how much the log's files take together"),
        permit!(
            lseek,
            [When::Is(0, directory), When::Is(1, 0), When::Is(2, int(libc::SEEK_SET))],
            "listing the log's directory anew"
        ),
    ];
    if needs.rotate {
        rules.extend([
            permit!(
                renameat2,
                [When::Is(0, directory), When::Is(2, directory), When::Is(4, libc::RENAME_NOREPLACE)],
                "setting a full log aside under a new name, over no other file"
            ),
            permit!(
                unlinkat,
                [When::Is(0, directory), When::Is(2, 0)],
                "removing rotated logs that are older than the policy keeps"
            ),
        ]);
    }
    if needs.sync {
        rules.push(permit!(fdatasync, "bringing records to the disk"));
    }
    rules
}
