//! Attacker code inside each of the four processes, behind the real confinement
//! and before the real kernel: control, allowed, denied. Needs root. Each test
//! runs in a cell (`support::cell`), and each attack in a child of its own.

mod support;

#[path = "confinement/attacks.rs"]
mod attacks;
#[path = "confinement/barriers.rs"]
mod barriers;
#[path = "confinement/ends.rs"]
mod ends;
#[path = "confinement/evaluate.rs"]
mod evaluate;
#[path = "confinement/generated.rs"]
mod generated;
#[path = "confinement/landlock.rs"]
mod landlock;
#[path = "confinement/needs.rs"]
mod needs;
#[path = "confinement/paths.rs"]
mod paths;
#[path = "confinement/probe.rs"]
mod probe;
#[path = "confinement/raw.rs"]
mod raw;
#[path = "confinement/roles.rs"]
mod roles;

use std::process::ExitCode;

use attacks::Control;
use needs::Role;
use nix::errno::Errno;
use nix::libc;
use postern_core::confine::filters;
use postern_core::sys::last_words;
use raw::{End, attempt};
use support::agent::BINARY;
use support::runner;

/// As in the executable.
#[global_allocator]
static ALLOCATOR: last_words::Allocator = last_words::Allocator;

/// The attacker's account.
pub(crate) const ACCOUNT: u32 = 70_100;

fn main() -> ExitCode {
    runner::main(
        &[
            ("without_confinement_the_attacks_work", without_confinement_the_attacks_work),
            ("a_worker_does_its_work_and_nothing_else", a_worker_does_its_work_and_nothing_else),
            ("an_opener_does_its_work_and_nothing_else", an_opener_does_its_work_and_nothing_else),
            ("a_spawner_does_its_work_and_nothing_else", a_spawner_does_its_work_and_nothing_else),
            ("a_broker_does_its_work_and_nothing_else", a_broker_does_its_work_and_nothing_else),
            ("a_broker_without_acts_does_even_less", a_broker_without_acts_does_even_less),
            ("a_broker_that_trims_freezes_nothing", a_broker_that_trims_freezes_nothing),
            ("a_broker_that_rotates_does_little_more", a_broker_that_rotates_does_little_more),
            ("just_outside_each_rule_is_death", generated::just_outside_each_rule_is_death),
            ("inside_each_rule_is_life", generated::inside_each_rule_is_life),
            ("a_call_that_no_rule_names_is_death", generated::a_call_that_no_rule_names_is_death),
            #[cfg(target_arch = "x86_64")]
            ("another_entry_is_death", generated::another_entry_is_death),
            ("every_barrier_stands", barriers::every_barrier_stands),
            ("each_right_is_a_triplet", landlock::each_right_is_a_triplet),
            ("each_domain_leaves_what_it_says", landlock::each_domain_leaves_what_it_says),
            (
                "what_landlock_does_not_control_the_filter_does",
                landlock::what_landlock_does_not_control_the_filter_does,
            ),
            ("a_panic_is_told_and_aborts", ends::a_panic_is_told_and_aborts),
            ("a_lack_of_memory_is_told_and_aborts", ends::a_lack_of_memory_is_told_and_aborts),
            #[cfg(target_arch = "x86_64")]
            (
                "the_shipped_executable_tells_of_a_panic_and_aborts",
                ends::the_shipped_executable_tells_of_a_panic_and_aborts,
            ),
            #[cfg(target_arch = "x86_64")]
            (
                "the_shipped_worker_tells_of_a_lack_of_memory_and_aborts",
                ends::the_shipped_worker_tells_of_a_lack_of_memory_and_aborts,
            ),
            ("an_opener_reaches_what_its_rules_allow", paths::an_opener_reaches_what_its_rules_allow),
            ("an_opener_reaches_nothing_outside_its_rules", paths::an_opener_reaches_nothing_outside_its_rules),
            ("a_read_only_opener_changes_nothing", paths::a_read_only_opener_changes_nothing),
            ("an_appending_opener_overwrites_nothing", paths::an_appending_opener_overwrites_nothing),
            ("a_spawner_executes_its_own_file_only", paths::a_spawner_executes_its_own_file_only),
            ("a_broker_opens_its_own_files_only", paths::a_broker_opens_its_own_files_only),
            ("a_broker_rotates_its_own_log_only", paths::a_broker_rotates_its_own_log_only),
            ("a_broker_signals_process_1_as_its_init_wants", paths::a_broker_signals_process_1_as_its_init_wants),
        ],
        &[],
        &[BINARY, "sh", "sleep"],
    )
}

/// What comes of an attack that a process may make.
#[derive(Clone, Copy, Debug)]
enum Lives {
    /// It works.
    Well,
    /// It comes back with this error.
    With(Errno),
    /// The process ends by this signal, not by the filter.
    Until(i32),
}

fn without_confinement_the_attacks_work() {
    let mut wrong = Vec::new();
    for attack in attacks::all() {
        if attack.control == Control::Untried {
            println!("    control not tried: {}", attack.name);
            continue;
        }
        let end = attempt(|| Role::None.prepare(), |()| (attack.act)());
        match (attack.control, &end) {
            (Control::Works, End::Back(0..)) | (Control::Reaches, End::Back(_)) => {}
            // Where a kernel runs no 32-bit code its entry is a fault.
            (_, End::Killed(libc::SIGSEGV)) if attack.name == "int 0x80" => {}
            _ => wrong.push(format!("{}: {end:?}, not {:?}", attack.name, attack.control)),
        }
    }
    assert!(wrong.is_empty(), "\n    {}", wrong.join("\n    "));
}

/// Makes every attack in this role: what is not in `may` must be death.
fn attack_all(role: &Role, may: &[(&str, Lives)]) {
    let attacks = attacks::all();
    for (name, _) in may {
        assert!(attacks.iter().any(|attack| attack.name == *name), "no attack is called {name}");
    }
    let mut wrong = Vec::new();
    for attack in &attacks {
        let end = attempt(|| role.prepare(), |()| (attack.act)());
        let due = may.iter().find(|(name, _)| *name == attack.name).map(|(_, lives)| *lives);
        let right = match (due, &end) {
            (Some(Well), End::Back(0..)) | (None, End::Killed(libc::SIGSYS)) => true,
            (Some(With(errno)), End::Back(back)) => *back == -(errno as i64),
            (Some(Until(signal)), End::Killed(by)) => signal == *by,
            _ => false,
        };
        if !right {
            wrong.push(format!("{}: {end:?}, not {due:?}", attack.name));
        }
    }
    assert!(wrong.is_empty(), "{role:?}:\n    {}", wrong.join("\n    "));
}

use Lives::{Until, Well, With};

/// What every confined process may do.
const COMMON: &[(&str, Lives)] = &[
    ("close", Well),
    ("brk", Well),
    ("mmap memory", Well),
    ("mmap shared memory", Well),
    ("munmap", Well),
    ("mremap", With(Errno::EINVAL)),
    ("madvise", Well),
    ("restart_syscall", With(Errno::EINTR)),
    ("rt_sigprocmask", Well),
    ("gettid", Well),
    ("getpid", Well),
    ("tgkill itself with SIGABRT", Until(libc::SIGABRT)),
    ("fcntl F_GETFD", Well),
    ("recvmsg from the broker", With(Errno::EAGAIN)),
    ("sendto the broker", Well),
];

fn with(more: &[(&'static str, Lives)]) -> Vec<(&'static str, Lives)> {
    [COMMON, more].concat()
}

fn a_worker_does_its_work_and_nothing_else() {
    attack_all(
        &Role::worker(),
        &with(&[
            ("read", Well),
            ("write", Well),
            ("write to an append descriptor", Well),
            ("lseek", Well),
            ("pread64", Well),
            ("fstat", Well),
            ("uname", Well),
            ("ppoll", Well),
            ("clock_gettime", Well),
            #[cfg(target_arch = "x86_64")]
            ("poll", Well),
        ]),
    );
}

fn an_opener_does_its_work_and_nothing_else() {
    attack_all(
        &Role::opener(),
        &with(&[
            ("sendmsg the broker", Well),
            ("sendmsg the broker a descriptor", Well),
            ("fstat", Well),
            // Names nothing that the kernel would not tell any process of this
            // account; opening it is another question.
            ("openat O_PATH", Well),
        ]),
    );
}

/// What openers and workers need at birth, a spawner may too: filters stack.
/// What it opens so is what its account may open, and leads nowhere: it shares
/// no descriptor with a worker and can execute nothing.
const SPAWNER: &[(&str, Lives)] = &[
    ("uname", Well),
    ("read", Well),
    ("write", Well),
    ("write to an append descriptor", Well),
    ("pwrite64 to an append descriptor", Well),
    ("lseek", Well),
    ("ftruncate", Well),
    ("getdents64", Well),
    ("statx", Well),
    ("fstatfs", Well),
    ("openat", Well),
    ("openat to write", Well),
    ("openat and truncate", Well),
    ("openat and create", Well),
    ("openat beneath a directory", Well),
    ("openat O_TMPFILE", Well),
    ("openat O_PATH", Well),
    ("openat O_PATH without close-on-exec", Well),
    ("newfstatat", Well),
    ("fstat", Well),
    ("readlinkat", Well),
    ("fcntl F_SETFL without O_APPEND", Well),
    ("fcntl F_SETFL O_ASYNC", Well),
    ("fcntl F_GETFL", Well),
    ("fcntl F_SETOWN", Well),
    ("fcntl F_SETSIG", Well),
    ("fcntl F_DUPFD", Well),
    ("fcntl F_SETLEASE", With(Errno::EAGAIN)),
    ("fcntl F_NOTIFY", Well),
    ("fcntl F_SETPIPE_SZ", With(Errno::EBADF)),
    ("fcntl F_ADD_SEALS", With(Errno::EPERM)),
    ("dup3", Well),
    ("close_range", Well),
    ("epoll_create1", Well),
    ("epoll_ctl on another", Well),
    ("epoll_pwait on another", Well),
    ("ppoll", Well),
    ("sendto the broker with an address", Well),
    ("sendto another", Well),
    ("sendmsg the broker", Well),
    ("sendmsg the broker a descriptor", Well),
    ("sendmsg another a descriptor", Well),
    ("recvmsg from another", Well),
    ("recvfrom another", Well),
    ("clone", Well),
    // Outside its namespace it has no process to signal; process 1 of a cell
    // is root's.
    ("kill process 1 with SIGKILL", With(Errno::EPERM)),
    ("tgkill another", With(Errno::EPERM)),
    ("tgkill itself with nothing", Well),
    ("wait4", With(Errno::ECHILD)),
    ("getuid", Well),
    ("capget", With(Errno::EFAULT)),
    ("capset", With(Errno::EFAULT)),
    ("prctl PR_GET_DUMPABLE", Well),
    ("prctl PR_SET_DUMPABLE", Well),
    ("prctl PR_SET_NAME", Well),
    ("seccomp", Well),
    ("prlimit64 its own", Well),
    ("prlimit64 another's", With(Errno::EPERM)),
    ("umask", Well),
    ("set_tid_address", Well),
    ("set_robust_list", Well),
    ("futex", Well),
    ("landlock_create_ruleset", Well),
    ("landlock_restrict_self", With(Errno::EBADFD)),
    ("landlock_add_rule", With(Errno::EBADFD)),
    ("mprotect to read", Well),
    ("rseq", With(Errno::EINVAL)),
    ("getrandom", Well),
    ("clock_gettime", Well),
    ("rt_sigaction", Well),
    ("sigaltstack", Well),
    #[cfg(target_arch = "x86_64")]
    ("arch_prctl", Well),
    #[cfg(target_arch = "x86_64")]
    ("dup2", Well),
    #[cfg(target_arch = "x86_64")]
    ("poll", Well),
    #[cfg(target_arch = "x86_64")]
    ("readlink", Well),
];

/// What the dynamic loader takes besides; a static build has none of it.
const LOADED: &[(&str, Lives)] = &[
    ("mmap code", Well),
    ("mmap a file", Well),
    ("mmap a file shared", Well),
    ("mmap a file's code", Well),
    ("mprotect to code", Well),
    ("pread64", Well),
    ("faccessat", Well),
    #[cfg(target_arch = "x86_64")]
    ("access", Well),
];

fn a_spawner_does_its_work_and_nothing_else() {
    let loaded = if filters::LOADER.is_some() { LOADED } else { &[] };
    attack_all(&Role::spawner(), &[COMMON, SPAWNER, loaded].concat());
}

/// What every broker may do.
const BROKER: &[(&str, Lives)] = &[
    ("read", Well),
    ("write", Well),
    ("write to an append descriptor", Well),
    ("pread64", Well),
    ("fstat", Well),
    ("statx", Well),
    ("mprotect to read", Well),
    ("ppoll", Well),
    ("socketpair as the broker's", Well),
    ("setsockopt SO_PASSCRED", Well),
    ("sendto the broker with an address", Well),
    ("sendto another", Well),
    ("sendmsg the broker", Well),
    ("sendmsg the broker a descriptor", Well),
    ("sendmsg another a descriptor", Well),
    ("recvmsg from another", Well),
    ("futex", Well),
    ("sched_yield", Well),
    ("clock_gettime", Well),
    ("getrandom", Well),
    #[cfg(target_arch = "x86_64")]
    ("poll", Well),
];

fn a_broker_does_its_work_and_nothing_else() {
    // The stage is on a tmpfs, which cannot be frozen.
    let acts = [
        ("ioctl FIFREEZE", With(Errno::EOPNOTSUPP)),
        ("ioctl FITHAW", With(Errno::EINVAL)),
        ("accept4", With(Errno::EINVAL)),
        ("getsockopt SO_PEERCRED", Well),
    ];
    attack_all(&Role::broker(), &[COMMON, BROKER, &acts].concat());
}

fn a_broker_without_acts_does_even_less() {
    attack_all(&Role::idle_broker(), &[COMMON, BROKER].concat());
}

fn a_broker_that_trims_freezes_nothing() {
    // A tmpfs lies on no disk.
    let trims = [("ioctl FITRIM", With(Errno::ENOTTY))];
    attack_all(&Role::trimming_broker(), &[COMMON, BROKER, &trims].concat());
}

fn a_broker_that_rotates_does_little_more() {
    attack_all(&Role::rotating_broker(), &[COMMON, BROKER, &[("fdatasync", Well)]].concat());
}
