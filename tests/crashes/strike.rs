//! Stopping a process between two steps by `ptrace(2)` and ending it there, in
//! one of the ways in which processes end.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Killed from outside.
    Kill,
    /// It jumps to where nothing is.
    Segv,
    /// It makes a call that its filter has not.
    Sys,
    /// It is given no more memory, and asks for some.
    Memory,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Kill, Self::Segv, Self::Sys, Self::Memory];

    /// The signal that its death is recorded with.
    pub(crate) const fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::SIGKILL,
            Self::Segv => Signal::SIGSEGV,
            Self::Sys => Signal::SIGSYS,
            // What Rust makes of an allocation that fails.
            Self::Memory => Signal::SIGABRT,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Segv => "SIGSEGV (jump to 8)",
            Self::Sys => "SIGSYS (getppid)",
            Self::Memory => "SIGABRT (RLIMIT_AS)",
        }
    }
}

/// A process under trace, running from call to call. The caller's thread is its
/// tracer.
pub(crate) struct Traced {
    pub(crate) pid: Pid,
    /// Stops so far, two to a call.
    pub(crate) stops: usize,
    ended: bool,
}

impl Traced {
    /// Attaches, and has it go on to its next call.
    pub(crate) fn attach(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        ptrace::attach(pid).expect("attach");
        waitpid(pid, Some(WaitPidFlag::__WALL)).expect("it stops");
        // Else a stop for a call and one by a signal look the same.
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("options");
        ptrace::syscall(pid, None).expect("it goes on");
        Self { pid, stops: 0, ended: false }
    }

    /// Waits for its next stop at a call; `false` if it ended, or if nothing
    /// happens before `until`, when it still runs.
    pub(crate) fn next_stop(&mut self, until: Instant) -> bool {
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).expect("a stop") {
                WaitStatus::StillAlive if Instant::now() < until => std::thread::sleep(Duration::from_micros(50)),
                WaitStatus::StillAlive => return false,
                WaitStatus::PtraceSyscall(_) => {
                    self.stops += 1;
                    return true;
                }
                WaitStatus::Stopped(_, signal) => ptrace::syscall(self.pid, signal).expect("it goes on"),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    self.ended = true;
                    return false;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn go_on(&self) {
        let _ = ptrace::syscall(self.pid, None);
    }

    /// Ends it where it is stopped. With [`Kind::Memory`] it ends only if it asks
    /// for memory behind this point. When it was struck.
    pub(crate) fn strike(&mut self, kind: Kind) -> Instant {
        let now = Instant::now();
        let forced = match kind {
            Kind::Kill => {
                kill(self.pid, Signal::SIGKILL).expect("SIGKILL");
                None
            }
            Kind::Segv => jump_nowhere(self.pid),
            Kind::Sys => call_the_forbidden(self.pid),
            Kind::Memory => {
                limit(self.pid.as_raw(), "as", Some(1 << 20));
                None
            }
        };
        let _ = ptrace::cont(self.pid, forced);
        now
    }

    /// Waits until it has ended, for so long; whether it has.
    pub(crate) fn ends_within(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while !self.ended && Instant::now() < until {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(50)),
                Ok(WaitStatus::Stopped(_, signal)) => {
                    let _ = ptrace::cont(self.pid, (signal != Signal::SIGTRAP).then_some(signal));
                }
                Ok(WaitStatus::PtraceSyscall(_)) => {
                    let _ = ptrace::cont(self.pid, None);
                }
                _ => self.ended = true,
            }
        }
        self.ended
    }

    /// Lets it go on untraced, from wherever it is.
    pub(crate) fn let_go(mut self) {
        // Only what is stopped can be let go of.
        kill(self.pid, Signal::SIGSTOP).expect("SIGSTOP");
        while !self.ended {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)).expect("a stop") {
                WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                    ptrace::detach(self.pid, None).expect("detach");
                    self.ended = true;
                }
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => self.ended = true,
                _ => self.go_on(),
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, Some(WaitPidFlag::__WALL));
        }
    }
}

/// The call that it is stopped at.
#[cfg(target_arch = "x86_64")]
pub(crate) fn call_of(pid: Pid) -> &'static str {
    let Ok(registers) = ptrace::getregs(pid) else { return "?" };
    let number = i64::try_from(registers.orig_rax).unwrap_or(-1);
    let names = [
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_recvmsg, "recvmsg"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_epoll_pwait, "epoll_pwait"),
        (libc::SYS_epoll_ctl, "epoll_ctl"),
        (libc::SYS_poll, "poll"),
        (libc::SYS_close, "close"),
        (libc::SYS_lseek, "lseek"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_mremap, "mremap"),
        (libc::SYS_brk, "brk"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_readlinkat, "readlinkat"),
    ];
    names.into_iter().find(|(known, _)| *known == number).map_or("?", |(_, name)| name)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn call_of(_: Pid) -> &'static str {
    "?"
}

/// Has it go on at an address where nothing is; elsewhere the signal itself.
#[cfg(target_arch = "x86_64")]
fn jump_nowhere(pid: Pid) -> Option<Signal> {
    let mut registers = ptrace::getregs(pid).expect("its registers");
    registers.rip = 8;
    ptrace::setregs(pid, registers).expect("its registers");
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn jump_nowhere(_: Pid) -> Option<Signal> {
    Some(Signal::SIGSEGV)
}

/// Has the call that it is entering be one that no filter has; elsewhere the
/// signal itself.
#[cfg(target_arch = "x86_64")]
fn call_the_forbidden(pid: Pid) -> Option<Signal> {
    let mut registers = ptrace::getregs(pid).expect("its registers");
    registers.orig_rax = u64::try_from(libc::SYS_getppid).expect("a number");
    ptrace::setregs(pid, registers).expect("its registers");
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn call_the_forbidden(_: Pid) -> Option<Signal> {
    Some(Signal::SIGSYS)
}

/// Sets the soft limit of another process, by the name that `prlimit(1)` has for
/// it; without a number, to its hard one.
pub(crate) fn limit(pid: i32, what: &str, most: Option<u64>) {
    // As who it is: a root without CAP_SYS_RESOURCE may not set another's.
    let owner = Path::new("/proc").join(pid.to_string()).join("task").join(pid.to_string()).join("status");
    let status = fs::read_to_string(owner).expect("its status");
    let id = |name: &str| -> u32 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().next().and_then(|id| id.parse().ok()).expect("a number")
    };
    let prlimit = |argument: String| {
        let mut command = Command::new("/bin/prlimit");
        command.uid(id("Uid:")).gid(id("Gid:")).args(["--pid", &pid.to_string()]).arg(argument);
        let output = command.output();
        let output = output.expect("prlimit (util-linux)");
        assert!(output.status.success(), "prlimit: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let most = most.map_or_else(
        || {
            let table = prlimit(format!("--{what}"));
            let line = table.lines().nth(1).expect("a line").split_whitespace();
            // Name, words that say what it is, soft, hard, perhaps a unit.
            let numbers: Vec<&str> = line.filter(|word| *word == "unlimited" || word.parse::<u64>().is_ok()).collect();
            numbers[1].to_owned()
        },
        |most| most.to_string(),
    );
    prlimit(format!("--{what}={most}:"));
}
