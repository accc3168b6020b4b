//! Seccomp: rules as data, and the program that the kernel runs.
//!
//! A rule is a call, conditions on its arguments, and why it is there; without
//! a why there is no rule. What no rule allows kills the process.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use sha2::{Digest, Sha256};

use super::ConfineError;

/// A condition on one argument's lower 32 bits: everything that we compare is
/// an `int` or a set of low flags to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Argument n has this value.
    Is(u8, u32),
    /// Argument n has none of these bits.
    Lacks(u8, u32),
    /// Argument n has all of these bits.
    Has(u8, u32),
}

/// One allowed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name of the call, for people and tests.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: i64,
    /// What must hold of the arguments, all of it.
    pub when: Vec<When>,
    /// Why it is allowed.
    pub why: &'static str,
}

/// Writes a [`Rule`]: `permit!(call, "why")`, `permit!(call, [conditions], "why")`.
macro_rules! permit {
    ($call:ident, $why:literal) => {
        permit!($call, [], $why)
    };
    ($call:ident, [$($when:expr),*], $why:literal) => {
        $crate::confine::seccomp::Rule {
            name: stringify!($call),
            number: $crate::confine::seccomp::numbers::$call,
            when: vec![$($when),*],
            why: $why,
        }
    };
}

pub(super) use permit;

/// The numbers of the calls that any of our filters names.
#[expect(non_upper_case_globals, reason = "named as the calls are")]
pub(super) mod numbers {
    macro_rules! numbers {
        ($($call:ident = $number:ident),* $(,)?) => { $( pub(crate) const $call: i64 = libc::$number; )* };
    }
    numbers! {
        accept4 = SYS_accept4, brk = SYS_brk, capget = SYS_capget, capset = SYS_capset, clock_gettime = SYS_clock_gettime,
        clone = SYS_clone, close = SYS_close, close_range = SYS_close_range, connect = SYS_connect, dup3 = SYS_dup3, epoll_create1 = SYS_epoll_create1,
        epoll_ctl = SYS_epoll_ctl, epoll_pwait = SYS_epoll_pwait, execveat = SYS_execveat,
        exit_group = SYS_exit_group, faccessat = SYS_faccessat, fcntl = SYS_fcntl, fdatasync = SYS_fdatasync, fstat = SYS_fstat, fstatfs = SYS_fstatfs, ftruncate = SYS_ftruncate, futex = SYS_futex,
        getdents64 = SYS_getdents64, getegid = SYS_getegid, geteuid = SYS_geteuid, getgid = SYS_getgid, getpeername = SYS_getpeername,
        getpid = SYS_getpid, getrandom = SYS_getrandom,
        getresuid = SYS_getresuid, getsockopt = SYS_getsockopt, gettid = SYS_gettid,
        getuid = SYS_getuid, ioctl = SYS_ioctl, kill = SYS_kill, landlock_add_rule = SYS_landlock_add_rule,
        landlock_create_ruleset = SYS_landlock_create_ruleset, landlock_restrict_self = SYS_landlock_restrict_self,
        lseek = SYS_lseek, madvise = SYS_madvise, mmap = SYS_mmap, mprotect = SYS_mprotect, mremap = SYS_mremap,
        munmap = SYS_munmap, newfstatat = SYS_newfstatat, openat = SYS_openat, ppoll = SYS_ppoll, prctl = SYS_prctl,
        pread64 = SYS_pread64, pwrite64 = SYS_pwrite64, prlimit64 = SYS_prlimit64, read = SYS_read, readlinkat = SYS_readlinkat,
        reboot = SYS_reboot, recvfrom = SYS_recvfrom, recvmsg = SYS_recvmsg, restart_syscall = SYS_restart_syscall,
        rseq = SYS_rseq, rt_sigaction = SYS_rt_sigaction, rt_sigprocmask = SYS_rt_sigprocmask,
        sched_getaffinity = SYS_sched_getaffinity, sched_yield = SYS_sched_yield, seccomp = SYS_seccomp,
        sendmsg = SYS_sendmsg, sendto = SYS_sendto, set_robust_list = SYS_set_robust_list,
        set_tid_address = SYS_set_tid_address, setsockopt = SYS_setsockopt, sigaltstack = SYS_sigaltstack,
        socketpair = SYS_socketpair, statx = SYS_statx, sync = SYS_sync, tgkill = SYS_tgkill,
        umask = SYS_umask, uname = SYS_uname, unlinkat = SYS_unlinkat, wait4 = SYS_wait4, write = SYS_write,
        renameat = SYS_renameat, renameat2 = SYS_renameat2,
    }
    #[cfg(target_arch = "x86_64")]
    numbers! {
        access = SYS_access, arch_prctl = SYS_arch_prctl, dup2 = SYS_dup2, epoll_wait = SYS_epoll_wait, poll = SYS_poll,
        readlink = SYS_readlink, getrlimit = SYS_getrlimit,
    }
}

impl Rule {
    /// The rule without its conditions.
    pub(super) fn unconditional(mut self) -> Self {
        self.when.clear();
        self
    }
}

impl When {
    /// Which argument it is about, from 0.
    #[must_use]
    pub const fn argument(self) -> u8 {
        match self {
            Self::Is(argument, _) | Self::Lacks(argument, _) | Self::Has(argument, _) => argument,
        }
    }

    fn compile(self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let (argument, operator, value) = match self {
            Self::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
            Self::Lacks(argument, bits) => (argument, SeccompCmpOp::MaskedEq(u64::from(bits)), 0),
            Self::Has(argument, bits) => (argument, SeccompCmpOp::MaskedEq(u64::from(bits)), bits),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, u64::from(value))
    }
}

/// The program for `rules`: several rules for one call are alternatives. A call
/// that has a rule with conditions is never allowed without: where a table holds
/// both, a mistake that the tests look for, the conditions stand.
///
/// # Errors
/// If the rules can't be a program; a mistake in a table.
pub fn compile(rules: &[Rule]) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut map: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules {
        // An empty list means "whatever the arguments".
        let entry = map.entry(rule.number).or_default();
        if !rule.when.is_empty() {
            let conditions = rule.when.iter().map(|when| when.compile()).collect::<Result<_, _>>()?;
            entry.push(SeccompRule::new(conditions)?);
        }
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(map, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?;
    filter.try_into()
}

/// Number and SHA-256 of `rules`, by which a record names a filter: the rules in
/// their order, as `NAME NUMBER CONDITION...` and a newline each, where a
/// condition is `ARGUMENT=VALUE`, `ARGUMENT!VALUE` (lacks these bits) or
/// `ARGUMENT&VALUE` (has these bits), in decimal. The process's own id, which
/// is another in every run, stands as `self`.
#[must_use]
pub fn digest(rules: &[Rule]) -> (u16, [u8; 32]) {
    let mut text = String::new();
    for rule in rules {
        // Writing to a String cannot fail.
        _ = write!(text, "{} {}", rule.name, rule.number);
        for when in &rule.when {
            _ = match *when {
                When::Is(0, _) if rule.number == numbers::tgkill => write!(text, " 0=self"),
                When::Is(argument, value) => write!(text, " {argument}={value}"),
                When::Lacks(argument, bits) => write!(text, " {argument}!{bits}"),
                When::Has(argument, bits) => write!(text, " {argument}&{bits}"),
            };
        }
        text.push('\n');
    }
    (u16::try_from(rules.len()).unwrap_or(u16::MAX), Sha256::digest(text).into())
}

/// Puts this thread, or all threads, under `rules`, for good.
///
/// # Errors
/// [`ConfineError::Seccomp`].
pub(super) fn install(rules: &[Rule], all_threads: bool) -> Result<(), ConfineError> {
    let program = compile(rules).map_err(seccompiler::Error::from)?;
    if all_threads {
        seccompiler::apply_filter_all_threads(&program)?;
    } else {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}
