//! How a confined process ends that panics or gets no memory: by `SIGABRT`, and
//! with words that are heard. First in children that confine themselves as each
//! process does, then in the shipped executable, to which its tracer lies about
//! what the kernel said.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{MsgFlags, send};
use postern_core::sys::last_words;

use super::needs::Role;
use super::raw::{End, attempt_heard};

const ABORTED: End = End::Killed(libc::SIGABRT);

/// Where the broker's standard error goes.
const STDERR: &str = "/tmp/stderr";

/// Every process, with a policy that allows everything.
fn four() -> [(&'static str, Role); 4] {
    [("worker", Role::worker()), ("opener", Role::opener()), ("spawner", Role::spawner()), ("broker", Role::broker())]
}

/// Ends in this way in a child of this role, which says its last words as the
/// executable does: how it ended, and what was heard.
fn ends(role: &Role, how: fn()) -> (End, String) {
    let broker = matches!(role, Role::Broker(_));
    File::create(STDERR).expect("a file for stderr");
    let prepare = || {
        if broker {
            let stderr = File::options().append(true).open(STDERR).expect("a file for stderr");
            nix::unistd::dup2_stderr(&stderr).expect("standard error");
            last_words::to_stderr();
        } else {
            let null = File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
            nix::unistd::dup2_stderr(&null).expect("standard error");
            let socket = 3;
            last_words::to(move |text| {
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                let _ = send(socket.as_raw_fd(), format!("last words: {text}").as_bytes(), flags);
            });
        }
        // As `panic = "abort"` does it, which a test is not built with.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            hook(panic);
            std::process::abort();
        }));
        role.prepare();
    };
    let (end, heard) = attempt_heard(prepare, |()| {
        how();
        0
    });
    let heard = if broker { fs::read_to_string(STDERR).expect("stderr") } else { heard };
    (end, heard)
}

pub(crate) fn a_panic_is_told_and_aborts() {
    for (name, role) in four() {
        let (end, heard) = ends(&role, || panic!("on purpose: {}", "π".repeat(20)));
        assert_eq!(end, ABORTED, "{name}: {heard}");
        assert!(heard.contains("panicked at tests/confinement/ends.rs") && heard.contains("on purpose"), "{heard}");
        assert!(!heard.contains("stack backtrace"), "{heard}");
    }
}

pub(crate) fn a_lack_of_memory_is_told_and_aborts() {
    // More than any process can have; less than a collection may ask for.
    const MUCH: usize = 1 << 48;
    for (name, role) in four() {
        let (end, heard) = ends(&role, || drop(Vec::<u8>::with_capacity(MUCH)));
        assert_eq!(end, ABORTED, "{name}: {heard}");
        assert!(heard.contains(&format!("memory allocation of {MUCH} bytes failed")), "{name}: {heard}");
    }
    // Up to a worker's limit: nothing is left then, not even for the words.
    let (end, heard) = ends(&Role::worker(), || {
        let mut all = Vec::new();
        for size in [1 << 20, 1 << 12, 64].into_iter().cycle() {
            all.push(vec![1_u8; size]);
        }
    });
    assert_eq!(end, ABORTED, "{heard}");
    assert!(heard.contains("memory allocation of ") && heard.contains(" bytes failed"), "{heard}");
    // Growing in place, too.
    let (end, heard) = ends(&Role::worker(), || {
        let mut all = vec![1_u8];
        while all.len() < MUCH {
            all.extend_from_within(..);
        }
    });
    assert_eq!(end, ABORTED, "{heard}");
    assert!(heard.contains(" bytes failed"), "{heard}");
}

#[cfg(target_arch = "x86_64")]
pub(crate) use shipped::{
    the_shipped_executable_tells_of_a_panic_and_aborts, the_shipped_worker_tells_of_a_lack_of_memory_and_aborts,
};

#[cfg(target_arch = "x86_64")]
mod shipped {
    use std::os::unix::process::ExitStatusExt;
    use std::sync::mpsc;
    use std::thread;

    use nix::errno::Errno;
    use nix::libc::{self, c_long};
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;
    use serde_json::json;

    use crate::support::agent::{Agent, Home, LIVELY, eventually};

    /// What a register holds at a call's entry: `-ENOSYS`.
    const ENTRY: u64 = (-(libc::ENOSYS as i64)).cast_unsigned();

    /// Attaches to a process and, from then on, has these calls return this,
    /// whatever they did: once, or until it ends. Runs `meanwhile` beside it.
    fn lie<T>(process: i32, calls: &'static [c_long], answer: i64, once: bool, meanwhile: impl FnOnce() -> T) -> T {
        let process = Pid::from_raw(process);
        let (attached, waits) = mpsc::channel();
        let liar = thread::spawn(move || {
            ptrace::attach(process).expect("attach");
            waitpid(process, Some(WaitPidFlag::__WALL)).expect("it stops");
            ptrace::setoptions(process, Options::PTRACE_O_TRACESYSGOOD).expect("options");
            ptrace::syscall(process, None).expect("it goes on");
            attached.send(()).expect("somebody waits");
            loop {
                match waitpid(process, Some(WaitPidFlag::__WALL)) {
                    Ok(WaitStatus::PtraceSyscall(_)) => {
                        let mut registers = ptrace::getregs(process).expect("registers");
                        let lies = registers.rax != ENTRY
                            && calls.iter().any(|call| call.cast_unsigned() == registers.orig_rax);
                        if lies {
                            registers.rax = answer.cast_unsigned();
                            ptrace::setregs(process, registers).expect("registers");
                        }
                        if lies && once {
                            ptrace::detach(process, None).expect("detach");
                            return;
                        }
                        // Gone in between: that is what we are here for.
                        let _ = ptrace::syscall(process, None);
                    }
                    Ok(WaitStatus::Stopped(_, signal)) => {
                        let _ = ptrace::syscall(process, signal);
                    }
                    Ok(_) | Err(_) => return,
                }
            }
        });
        waits.recv_timeout(LIVELY).expect("the liar attaches");
        let done = meanwhile();
        liar.join().expect("the liar");
        done
    }

    fn policy() -> &'static str {
        "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\"]\n"
    }

    /// Has a process believe that it received more than it has room for.
    fn deceive<T>(agent: &Agent<'_>, name: &str, meanwhile: impl FnOnce() -> T) -> T {
        lie(agent.process(name, 0), &[libc::SYS_recvmsg], 1 << 20, true, meanwhile)
    }

    /// The broker lets go of a process that said its last words, and may be the
    /// faster one.
    fn aborted(record: &serde_json::Value) -> bool {
        [libc::SIGABRT, libc::SIGKILL].iter().any(|signal| record["postern"]["signal"] == *signal)
    }

    fn open() -> serde_json::Value {
        json!({ "execute": "guest-file-open", "arguments": { "path": "/nothing" } })
    }

    pub(crate) fn the_shipped_executable_tells_of_a_panic_and_aborts() {
        const WORDS: &str = "out of range for slice";
        let home = Home::new();
        home.write("file", b"content");
        let mut command = home.command(policy());
        // What opens files for a backtrace dies of it.
        command.env("RUST_BACKTRACE", "1");
        let mut agent = home.start_command(command);
        let died = |name: &'static str| {
            agent.await_record("process-died", |record| {
                let reason = record["event"]["reason"].as_str().unwrap_or_default();
                record["process"]["name"] == name && aborted(record) && reason.contains(WORDS)
            });
        };
        let asks = |request: &serde_json::Value| {
            let _ = agent.connect().try_ask(request);
        };
        let file = json!({ "execute": "guest-file-open", "arguments": { "path": home.files().join("file") } });
        // The opener hears of an open; the worker of its answer.
        deceive(&agent, "opener", || asks(&file));
        died("opener");
        agent.process("opener", 0);
        deceive(&agent, "worker", || asks(&file));
        died("worker");
        // The spawner hears of a worker to be born.
        let worker = agent.process("worker", 0);
        deceive(&agent, "spawner", || kill(Pid::from_raw(worker), Signal::SIGKILL).expect("SIGKILL"));
        assert_ne!(agent.ended().code(), Some(0));
        let said = agent.said();
        assert!(said.contains("spawner: panicked at") && said.matches(WORDS).count() == 3, "{said}");
        drop(agent);
        // The broker hears of an ask.
        let mut command = home.command(policy());
        command.env("RUST_BACKTRACE", "1");
        let mut agent = home.start_command(command);
        let mut host = agent.connect();
        host.ping();
        deceive(&agent, "broker", || host.send(open().to_string().as_bytes()));
        assert_eq!(agent.ended().signal(), Some(libc::SIGABRT));
        let said = agent.said();
        assert!(said.contains("postern: panicked at") && said.matches(WORDS).count() == 4, "{said}");
        assert!(!said.contains("stack backtrace"), "{said}");
    }

    pub(crate) fn the_shipped_worker_tells_of_a_lack_of_memory_and_aborts() {
        const MEMORY: &[c_long] = &[libc::SYS_brk, libc::SYS_mmap, libc::SYS_mremap];
        let home = Home::new();
        let agent = home.start(policy());
        let mut host = agent.connect();
        host.ping();
        let worker = agent.process("worker", 0);
        let long =
            json!({ "execute": "guest-file-write", "arguments": { "handle": 1, "buf-b64": "A".repeat(4 << 20) } });
        lie(worker, MEMORY, -i64::from(Errno::ENOMEM as i32), false, || {
            let mut stream = host.split().0;
            // Cut off when the worker is gone.
            let _ = std::io::Write::write_all(&mut stream, long.to_string().as_bytes());
        });
        agent.await_record("process-died", |record| {
            let reason = record["event"]["reason"].as_str().unwrap_or_default();
            aborted(record) && reason.starts_with("memory allocation of ") && reason.ends_with(" bytes failed")
        });
        eventually("another worker serves", || agent.family().get("worker").copied().filter(|pid| *pid != worker));
        agent.connect().ping();
    }
}
