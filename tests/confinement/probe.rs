//! Children that make one call each, as cheaply as children come: what became of
//! it stands in a page that they share with their parent.
#![expect(unsafe_code, reason = "a page that processes share, and fork")]

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::sync::atomic::{AtomicI64, Ordering};

use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use postern_core::sys::process;

use super::raw::End;

/// What a child tells: how far it came, and what the call returned.
struct Page {
    step: AtomicI64,
    result: AtomicI64,
}

const PREPARED: i64 = 1;
const BACK: i64 = 2;

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
    fn new() -> Self {
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
        let page = self.page;
        page.step.store(0, Ordering::SeqCst);
        // SAFETY: the tests of this target have one thread, so the child may go on
        // with everything; it leaves by _exit.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                let _stay = Stay;
                prepare();
                page.step.store(PREPARED, Ordering::SeqCst);
                let result = act();
                page.result.store(result, Ordering::SeqCst);
                page.step.store(BACK, Ordering::SeqCst);
                process::exit_now(0)
            }
            ForkResult::Parent { child } => {
                let ended = waitpid(child, None).expect("the child's end");
                match (page.step.load(Ordering::SeqCst), ended) {
                    (BACK, _) => End::Back(page.result.load(Ordering::SeqCst)),
                    (PREPARED, WaitStatus::Signaled(_, signal, _)) => End::Killed(signal as i32),
                    (PREPARED, WaitStatus::Exited(_, status)) => End::Became(status),
                    (step, other) => panic!("not made ready: {step}, {other:?}"),
                }
            }
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
