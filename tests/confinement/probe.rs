//! Children that make one call each, as cheaply as children come: what became of
//! it stands in a page that they share with their parent.
#![expect(unsafe_code, reason = "a page that processes share, and fork")]

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use postern_core::sys::process;

use super::raw::End;

/// What a child tells: how far it came, and what the call returned.
struct Page {
    step: AtomicI64,
    result: AtomicI64,
}

/// Seconds that a child may take; all but those that wait take milliseconds.
const PATIENCE: u32 = 120;

const PREPARED: i64 = 1;
const BACK: i64 = 2;
/// From the parent: the filter is suspended.
const GO: i64 = 3;

/// Nothing of the parent's runs in a child, not even by a panic.
struct Stay;

impl Drop for Stay {
    fn drop(&mut self) {
        process::exit_now(99);
    }
}

/// Makes children, one after the other.
pub(crate) struct Prober {
    page: &'static Page,
}

impl Prober {
    pub(crate) fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, zeroed, never unmapped, larger than a Page, whose
        // fields may be changed by other processes at any time, being atomic.
        let page = unsafe {
            let place = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
            assert_ne!(place, libc::MAP_FAILED, "a shared page");
            &*place.cast::<Page>()
        };
        Self { page }
    }

    /// Runs `act` in a child that `prepare` has made ready.
    ///
    /// # Panics
    /// If `prepare` fails.
    pub(crate) fn probe(&self, prepare: impl FnOnce(), act: impl FnOnce() -> i64) -> End {
        self.page.step.store(0, Ordering::SeqCst);
        // SAFETY: the tests of this target have one thread, so the child may go on
        // with everything; it leaves by _exit.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => self.act(prepare, || (), act),
            ForkResult::Parent { child } => self.ended(waitpid(child, None).expect("the child's end")),
        }
    }

    /// As [`Self::probe`], with the child's filter suspended by its tracer once
    /// `prepare` is done: what stops `act` then is another barrier.
    ///
    /// # Panics
    /// If the kernel can't (`CONFIG_CHECKPOINT_RESTORE`), or as `probe`.
    pub(crate) fn without_filter(&self, prepare: impl FnOnce(), act: impl FnOnce() -> i64) -> End {
        let step = &self.page.step;
        step.store(0, Ordering::SeqCst);
        // SAFETY: as in `probe`.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => self.act(prepare, || self.await_word(), act),
            ForkResult::Parent { child } => {
                self.await_child(child);
                // SAFETY: changes nothing of this process.
                let seized =
                    unsafe { libc::ptrace(libc::PTRACE_SEIZE, child.as_raw(), 0, libc::PTRACE_O_SUSPEND_SECCOMP) };
                let why = std::io::Error::last_os_error();
                step.store(GO, Ordering::SeqCst);
                assert_eq!(seized, 0, "a tracer can't suspend the filter: {why}");
                loop {
                    match waitpid(child, None).expect("the child's end") {
                        WaitStatus::Stopped(_, signal) => ptrace::cont(child, signal).expect("it goes on"),
                        WaitStatus::PtraceEvent(..) => ptrace::cont(child, None).expect("it goes on"),
                        ended => return self.ended(ended),
                    }
                }
            }
        }
    }

    /// Shows a child that `prepare` has made ready, and that does nothing.
    ///
    /// # Panics
    /// If `prepare` fails.
    pub(crate) fn look_at(&self, prepare: impl FnOnce(), look: impl FnOnce(i32)) {
        self.page.step.store(0, Ordering::SeqCst);
        // SAFETY: as in `probe`.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => self.act(prepare, || self.await_word(), || 0),
            ForkResult::Parent { child } => {
                self.await_child(child);
                look(child.as_raw());
                self.page.step.store(GO, Ordering::SeqCst);
                assert_eq!(self.ended(waitpid(child, None).expect("the child's end")), End::Back(0));
            }
        }
    }

    /// In the child: waits for its parent, by memory alone.
    fn await_word(&self) {
        while self.page.step.load(Ordering::SeqCst) != GO {
            std::hint::spin_loop();
        }
    }

    /// In the parent: waits until the child is made ready.
    fn await_child(&self, child: Pid) {
        while self.page.step.load(Ordering::SeqCst) != PREPARED {
            let ended = waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("the child's state");
            assert_eq!(ended, WaitStatus::StillAlive, "not made ready");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The child's part.
    fn act(&self, prepare: impl FnOnce(), wait: impl FnOnce(), act: impl FnOnce() -> i64) -> ! {
        let _stay = Stay;
        // What waits for ever is not stopped by anything, and ends by this.
        nix::unistd::alarm::set(PATIENCE);
        prepare();
        self.page.step.store(PREPARED, Ordering::SeqCst);
        wait();
        let result = act();
        self.page.result.store(result, Ordering::SeqCst);
        self.page.step.store(BACK, Ordering::SeqCst);
        process::exit_now(0)
    }

    fn ended(&self, ended: WaitStatus) -> End {
        match (self.page.step.load(Ordering::SeqCst), ended) {
            (BACK, _) => End::Back(self.page.result.load(Ordering::SeqCst)),
            (PREPARED | GO, WaitStatus::Signaled(_, signal, _)) => End::Killed(signal as i32),
            (PREPARED | GO, WaitStatus::Exited(_, status)) => End::Became(status),
            (step, other) => panic!("not made ready: {step}, {other:?}"),
        }
    }
}

/// Does `each` for every number below `count`, one half in a child of its own
/// beside the other, and returns what they found.
///
/// # Panics
/// If the child's half fails.
pub(crate) fn in_halves(count: usize, each: impl Fn(&Prober, usize) -> Option<String>) -> Vec<String> {
    let mut found =
        File::options().read(true).write(true).create(true).truncate(true).open("/tmp/found").expect("a file");
    fs::remove_file("/tmp/found").expect("its name");
    // SAFETY: as in `probe`.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let _stay = Stay;
            let prober = Prober::new();
            let mut half: Vec<String> = (1..count).step_by(2).filter_map(|index| each(&prober, index)).collect();
            half.push("done".to_owned());
            found.write_all(half.join("\n").as_bytes()).expect("what was found");
            process::exit_now(0)
        }
        ForkResult::Parent { child } => {
            let prober = Prober::new();
            let mut all: Vec<String> = (0..count).step_by(2).filter_map(|index| each(&prober, index)).collect();
            let ended = waitpid(child, None).expect("the other half's end");
            let mut text = String::new();
            found.rewind().expect("what was found");
            found.read_to_string(&mut text).expect("what was found");
            let half = text.strip_suffix("done").unwrap_or_else(|| panic!("the other half failed: {ended:?}"));
            all.extend(half.lines().map(str::to_owned));
            all
        }
    }
}
