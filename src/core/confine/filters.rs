//! Which calls each process may make, with the reason for each: data, computed
//! from the policy's parts.
//!
//! Descriptors have fixed numbers, so that rules can name them:
//!
//! | process | 0, 1, 2 | 3 | 4 | others |
//! |---|---|---|---|---|
//! | spawner | `/dev/null` | broker | its own file | `SIGCHLD` on 5; a child's socket, in passing |
//! | opener | `/dev/null` | broker | `/proc/self/fd` | memory for what it gathers on 5; the object being opened |
//! | worker | `/dev/null` | broker | epoll | a netlink socket on 5; that memory, to read, on 6; the channel, the host's files |
//!
//! The broker was started by a person or an init and keeps their 0, 1, 2. It
//! has its signals, mountinfo, the directories of log and state, the log, the
//! freezer's eventfd, the listener or the port with `/proc/devices` and a watch
//! on `/dev`, the host, the service manager's, journald's and syslog's sockets,
//! and a socket to each child.

mod broker;

use std::os::fd::RawFd;

use nix::fcntl::OFlag;
use nix::sys::socket::MsgFlags;

use super::seccomp::{Rule, When, permit};
use crate::catalogue::facts::{Fact, FactSet};
use crate::catalogue::{Call, Command, CommandSet};
use crate::policy::Limits;
use crate::policy::parts::{OpenerPart, WorkerPart};
use crate::policy::rules::{FileRule, Mode, Rights, Types};
use crate::policy::telling::Telling;
pub use broker::{BrokerNeeds, Listens, LogNeeds, Reconnects, broker, broker_leaves, broker_opens};

/// The broker's end, in every child.
pub const BROKER: RawFd = 3;
/// The spawner's own file.
pub const EXECUTABLE: RawFd = 4;
/// The opener's `/proc/self/fd`, for asking what a descriptor is and for
/// opening it anew.
pub const PROC_SELF_FD: RawFd = 4;
/// The worker's epoll instance.
pub const EPOLL: RawFd = 4;

/// Where the opener puts what it gathers of the guest, if the policy has it gather.
pub const GATHERED: RawFd = 5;
/// The opener's mount table, if the policy has it measure filesystems.
pub const MOUNTINFO: RawFd = 6;
/// The socket over which the kernel tells the worker of the network, if the policy
/// has it told.
pub const NETLINK: RawFd = 5;
/// Where the worker reads what was gathered.
pub const TOLD: RawFd = 6;

/// The dynamic loader, which the kernel executes beside a binary that is not
/// static. From the ABI documents of each architecture.
pub const LOADER: Option<&str> = if cfg!(target_feature = "crt-static") {
    None
} else if cfg!(target_arch = "aarch64") {
    Some("/lib/ld-linux-aarch64.so.1")
} else {
    Some("/lib64/ld-linux-x86-64.so.2")
};

/// How the opener looks at an object before it opens it.
pub const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// How the opener looks at a name of the guest's files: at the link, if it is one.
pub const LOOK_AT_NAME: OFlag = LOOK.union(OFlag::O_NOFOLLOW);

/// How the opener opens an existing object in a mode.
#[must_use]
pub const fn reopen_flags(mode: Mode) -> OFlag {
    let access = match (mode.reads(), mode.writes()) {
        (true, true) => OFlag::O_RDWR,
        (false, _) => OFlag::O_WRONLY,
        (true, false) => OFlag::O_RDONLY,
    };
    let common = OFlag::O_CLOEXEC.union(OFlag::O_NOCTTY).union(OFlag::O_NONBLOCK);
    let append = if mode.appends() { OFlag::O_APPEND } else { OFlag::empty() };
    let truncate = if mode.truncates() { OFlag::O_TRUNC } else { OFlag::empty() };
    access.union(common).union(append).union(truncate)
}

/// How the opener makes a new file in a mode.
#[must_use]
pub const fn create_flags(mode: Mode) -> OFlag {
    reopen_flags(mode).difference(OFlag::O_TRUNC).union(OFlag::O_CREAT).union(OFlag::O_EXCL).union(OFlag::O_NOFOLLOW)
}

/// How the opener opens a file or directory of the guest's, to tell of it.
pub const OPEN_FACT: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// How the worker asks the kernel on its netlink socket.
pub const ASKING: MsgFlags = MsgFlags::MSG_DONTWAIT;
/// How it takes the answers: with the length that each has, if that is longer than
/// the room for it.
pub const ANSWERED: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_TRUNC);

/// How the broker opens directories: mountpoints, log and state directory.
pub const OPEN_DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);
/// How the broker opens a file of its own to read it.
pub const OPEN_OWN: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK);
/// How the broker opens its log: at its end, for good.
pub const OPEN_LOG: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_APPEND)
    .union(OFlag::O_CREAT)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK);
/// How the broker makes a state file. `O_APPEND` so that no writable
/// descriptor of the broker can overwrite its log.
pub const CREATE_STATE: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_APPEND)
    .union(OFlag::O_CREAT)
    .union(OFlag::O_EXCL)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW);

/// How a port is opened, by the broker at its start and by a new worker when it
/// is back.
pub const OPEN_PORT: OFlag = OFlag::O_RDWR.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// How a new worker reads a port's name.
pub const OPEN_NAME: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC);

/// An `int` argument as the kernel compares it.
const fn int(value: i32) -> u32 {
    value.cast_unsigned()
}

const fn flags(value: OFlag) -> u32 {
    int(value.bits())
}

/// What every process needs to live and to die well.
fn common() -> Vec<Rule> {
    let pid = std::process::id();
    vec![
        permit!(close, "closing what it holds"),
        permit!(brk, "memory"),
        permit!(
            mmap,
            [When::Lacks(2, int(libc::PROT_EXEC)), When::Has(3, int(libc::MAP_ANONYMOUS))],
            "memory, never code, never a file"
        ),
        permit!(munmap, "memory"),
        permit!(mremap, "growing a buffer"),
        permit!(madvise, "giving memory back"),
        permit!(restart_syscall, "going on after SIGSTOP and SIGCONT"),
        permit!(rt_sigprocmask, "abort() after a panic"),
        permit!(gettid, "abort() after a panic"),
        permit!(getpid, "abort() after a panic"),
        permit!(tgkill, [When::Is(0, pid), When::Is(2, int(libc::SIGABRT))], "abort() after a panic"),
        permit!(exit_group, "ending"),
        permit!(fcntl, [When::Is(1, int(libc::F_GETFD))], "the standard library's own checks in debug builds"),
    ]
}

/// A worker's filter.
#[must_use]
pub fn worker(part: &WorkerPart) -> Vec<Rule> {
    let mut rules = common();
    rules.extend([
        permit!(read, "reading the channel and the host's files"),
        permit!(write, "writing the channel and the host's files"),
        permit!(recvmsg, [When::Is(0, int(BROKER))], "the broker's answers; no one else may pass descriptors"),
        permit!(sendto, [When::Is(0, int(BROKER)), When::Is(5, 0)], "asking the broker, without descriptors"),
        permit!(epoll_ctl, [When::Is(0, int(EPOLL))], "watching the channel"),
        permit!(epoll_pwait, [When::Is(0, int(EPOLL))], "waiting for channel and broker"),
        permit!(ppoll, "waiting for room in the channel"),
        permit!(clock_gettime, "counting a second's requests, under a clock that is read by system call"),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        permit!(epoll_wait, [When::Is(0, int(EPOLL))], "waiting for channel and broker"),
        permit!(poll, "waiting for room in the channel"),
    ]);
    if part.commands.needs_call(Call::Seek) || part.commands.contains(Command::FileOpen) {
        rules.push(permit!(lseek, "seeking in a file; the place of a file opened to append"));
    }
    let facts = part.facts();
    if facts.iter().any(|fact| !fact.is_handed()) {
        rules.push(permit!(pread64, "reading again what tells of the guest"));
    }
    if facts.lasts() {
        rules.push(permit!(fstat, "whether what was told of the guest is another now"));
    }
    if facts.contains(Fact::Interfaces) {
        rules.extend([
            permit!(
                sendto,
                [When::Is(0, int(NETLINK)), When::Is(3, ASKING.bits().cast_unsigned()), When::Is(5, 0)],
                "asking the kernel for interfaces and addresses; changing them takes CAP_NET_ADMIN"
            ),
            permit!(
                recvfrom,
                [When::Is(0, int(NETLINK)), When::Is(3, ANSWERED.bits().cast_unsigned())],
                "the kernel's answers, which are there at once"
            ),
        ]);
    }
    if part.calling().needs_call(Call::Uname) {
        rules.push(permit!(uname, "the host's name, the kernel's release"));
    }
    rules
}

/// An opener's filter.
#[must_use]
pub fn opener(part: &OpenerPart) -> Vec<Rule> {
    let mut rules = common();
    rules.extend([
        permit!(recvmsg, [When::Is(0, int(BROKER))], "the broker's orders"),
        permit!(sendto, [When::Is(0, int(BROKER)), When::Is(5, 0)], "reporting to the broker"),
        permit!(sendmsg, [When::Is(0, int(BROKER))], "handing a descriptor to the broker"),
        permit!(
            openat,
            [When::Is(0, int(libc::AT_FDCWD)), When::Is(2, flags(LOOK))],
            "looking at what a path names, without opening it"
        ),
        permit!(fstat, "the facts of an object, by descriptor"),
        permit!(readlinkat, [When::Is(0, int(PROC_SELF_FD))], "the path that the kernel resolved"),
    ]);
    let makes = |mode: Mode| part.rules.iter().any(|rule| mode.allowed_on_missing(rule.rights));
    if Mode::ALL.into_iter().any(makes) {
        rules.push(permit!(
            openat,
            [When::Is(0, int(PROC_SELF_FD)), When::Is(2, flags(LOOK))],
            "a look at the file that it has just made, for the broker to keep"
        ));
    }
    let mut seen = Vec::new();
    for mode in Mode::ALL {
        let on_existing = part.rules.iter().any(|rule| mode.allowed_on_existing(rule.rights));
        let reopen = flags(reopen_flags(mode));
        if on_existing && !seen.contains(&reopen) {
            seen.push(reopen);
            rules.push(permit!(
                openat,
                [When::Is(0, int(PROC_SELF_FD)), When::Is(2, reopen)],
                "opening the object that was looked at, as a rule's rights allow"
            ));
        }
        let create = flags(create_flags(mode));
        if makes(mode) && !seen.contains(&create) {
            seen.push(create);
            rules.push(permit!(
                openat,
                [When::Is(2, create), When::Is(3, part.create_mode)],
                "making a new file in a directory that was looked at, with the policy's mode"
            ));
        }
    }
    rules.extend(telling(part.facts));
    once(rules)
}

/// What an opener may call to tell of the guest.
fn telling(facts: FactSet) -> Vec<Rule> {
    let mut rules = Vec::new();
    if facts.gathers() {
        rules.extend([
            permit!(
                openat,
                [When::Is(2, flags(OPEN_FACT))],
                "opening what tells of the guest, as a fact's row has it, also from its directory"
            ),
            permit!(read, "gathering what stands in such files"),
            permit!(getdents64, "gathering the names in such directories"),
            permit!(readlinkat, "gathering where such links lead"),
            permit!(pwrite64, [When::Is(0, int(GATHERED))], "putting it where the worker reads it"),
            permit!(ftruncate, [When::Is(0, int(GATHERED))], "forgetting what was gathered before"),
        ]);
    }
    if facts.lasts() {
        rules.push(permit!(
            openat,
            [When::Is(0, int(libc::AT_FDCWD)), When::Is(2, flags(LOOK_AT_NAME))],
            "looking at a name, which shows when it leads elsewhere"
        ));
    }
    if facts.measures() {
        rules.extend([
            permit!(pread64, [When::Is(0, int(MOUNTINFO))], "the mount table as it is now"),
            permit!(
                statx,
                [When::Is(2, int(libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC)), When::Is(3, libc::STATX_MNT_ID)],
                "which mount a mountpoint is on, as this kernel knows without asking"
            ),
            permit!(fstatfs, "how full a filesystem is"),
        ]);
    }
    rules
}

/// The spawner's filter. Filters stack and children inherit this one, so it
/// holds what it does itself, what a child does from birth to its own filter,
/// and whatever any child's own filter may hold: for the commands that take
/// nothing of their own, so that a policy may be reloaded, and for `commands`.
#[must_use]
pub fn spawner(commands: CommandSet) -> Vec<Rule> {
    let commands: CommandSet =
        Command::all().filter(|&command| command.is_plain() || commands.contains(command)).collect();
    let any_worker =
        WorkerPart { commands, redact: CommandSet::EMPTY, telling: Telling::default(), limits: Limits::default() };
    let rights = Rights::NAMED.iter().fold(Rights::NONE, |all, (right, _)| all.with(*right));
    let any_rule = FileRule { path: "/".into(), rights, except: Vec::new(), optional: false, types: Types::REGULAR };
    let facts = commands.facts().gathered();
    let any_opener = OpenerPart { rules: vec![any_rule], create_mode: 0, facts, telling: Telling::default() };
    let mut served: Vec<Rule> = worker(&any_worker).into_iter().chain(opener(&any_opener)).collect();
    for rule in &mut served {
        // Process ids, descriptors and file modes are the child's to restrict;
        // what holds for memory holds for all.
        if !matches!(rule.name, "mmap") {
            *rule = rule.clone().unconditional();
        }
    }
    let mut rules = birth();
    rules.extend(served);
    rules.extend([
        permit!(clone, [When::Is(0, int(libc::SIGCHLD))], "a child: fork, no thread, no namespace"),
        permit!(
            execveat,
            [When::Is(0, int(EXECUTABLE)), When::Is(4, int(libc::AT_EMPTY_PATH))],
            "a child executes its own file; Landlock has no other"
        ),
        permit!(wait4, "how a child ended"),
        permit!(kill, [When::Is(1, int(libc::SIGKILL))], "ending a child at the broker's word"),
        permit!(dup3, "a child's descriptors"),
        permit!(close_range, "a child has no other descriptors"),
        permit!(fcntl, "a child's descriptors"),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.push(permit!(dup2, "a child's descriptors"));
    once(rules)
}

/// The same calls, each named once if any of its rules has no condition: beside
/// that one the others say nothing.
fn once(rules: Vec<Rule>) -> Vec<Rule> {
    let mut kept: Vec<Rule> = Vec::new();
    for rule in rules.iter().filter(|rule| rule.when.is_empty()) {
        if kept.iter().all(|other| other.number != rule.number) {
            kept.push(rule.clone());
        }
    }
    for rule in rules.into_iter().filter(|rule| !rule.when.is_empty()) {
        if kept.iter().all(|other| other.number != rule.number || !(other.when.is_empty() || other.when == rule.when)) {
            kept.push(rule);
        }
    }
    kept
}

/// From exec to a child's own filter: the C library, the standard library, and
/// confining itself.
fn birth() -> Vec<Rule> {
    let mut rules = vec![
        permit!(set_tid_address, "C library start"),
        permit!(set_robust_list, "C library start"),
        permit!(rseq, "C library start"),
        permit!(prlimit64, "C library start; the child's limits"),
        permit!(getrandom, "C library start; seeds of tables"),
        permit!(mprotect, [When::Lacks(2, int(libc::PROT_EXEC))], "C library start; a guard page"),
        permit!(newfstatat, "C library start"),
        permit!(rt_sigaction, "standard library start"),
        permit!(sigaltstack, "standard library start"),
        permit!(sched_getaffinity, "standard library start: the stack's bounds"),
        permit!(getuid, "C library start"),
        permit!(geteuid, "the child's own checks"),
        permit!(getgid, "C library start"),
        permit!(getegid, "C library start"),
        permit!(getresuid, "the child's own checks"),
        permit!(futex, "standard library start"),
        permit!(prctl, "the child's name, not dumpable, no new privileges, end with the parent"),
        permit!(capget, "the child's capabilities"),
        permit!(capset, "the child's capabilities"),
        permit!(landlock_create_ruleset, "the child's own domain"),
        permit!(landlock_add_rule, "the child's own domain"),
        permit!(landlock_restrict_self, "the child's own domain"),
        permit!(seccomp, "the child's own filter"),
        permit!(epoll_create1, "a worker's epoll"),
        permit!(
            openat,
            [When::Is(0, int(libc::AT_FDCWD)), When::Is(2, flags(OPEN_PORT))],
            "a new worker opens the port that is back, before it confines itself"
        ),
        permit!(
            openat,
            [When::Is(0, int(libc::AT_FDCWD)), When::Is(2, flags(OPEN_NAME))],
            "a new worker reads that port's name, where udev could not name it"
        ),
        permit!(sendmsg, [When::Is(0, int(BROKER))], "handing that port to the broker"),
        permit!(umask, "an opener's creation mode is the policy's"),
    ];
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        permit!(arch_prctl, "C library start"),
        permit!(readlink, "C library start"),
        permit!(getrlimit, "C library start"),
    ]);
    if LOADER.is_some() {
        rules.extend([
            permit!(mmap, "the dynamic loader maps libraries; a static build needs none of this"),
            permit!(mprotect, "the dynamic loader maps libraries"),
            permit!(pread64, "the dynamic loader reads libraries"),
            permit!(faccessat, "the dynamic loader looks for a preload list"),
        ]);
        #[cfg(target_arch = "x86_64")]
        rules.push(permit!(access, "the dynamic loader looks for a preload list"));
    }
    rules
}
