//! Closing what the broker handed on, on threads of their own: closing a
//! descriptor of a file on FUSE or on a network filesystem waits for its server
//! (`FUSE_FLUSH`, and no signal ends that), and the broker's loop waits for
//! nobody.
//!
//! Trust: takes descriptors that the opener opened; does nothing with them but
//! closing. Called by the broker's loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

/// So many files that do not close keep no other from being closed. The filter
/// lets no thread be made later.
pub(crate) const THREADS: usize = 4;

/// When each thread began to close what it is at.
type Busy = Arc<Mutex<[Option<Instant>; THREADS]>>;

/// The way to the threads.
#[derive(Debug)]
pub(crate) struct Closer {
    way: mpsc::Sender<OwnedFd>,
    busy: Busy,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Closer {
    /// Starts the threads and returns when they run. As `fsfreeze`'s threads:
    /// inside Landlock, before seccomp.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start() -> io::Result<Self> {
        let (way, descriptors) = mpsc::channel::<OwnedFd>();
        let descriptors = Arc::new(Mutex::new(descriptors));
        let (running, runs) = mpsc::channel();
        let busy = Busy::default();
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let started: io::Result<()> = (0..THREADS).try_for_each(|number| {
            let (descriptors, busy, running) = (Arc::clone(&descriptors), Arc::clone(&busy), running.clone());
            let builder = thread::Builder::new().name("closer".to_owned()).stack_size(64 << 10);
            builder.spawn(move || {
                let _ = running.send(());
                // One of them waits for the next descriptor, the others for that one.
                while let Ok(descriptor) = { lock(&descriptors).recv() } {
                    lock(&busy)[number] = Some(Instant::now());
                    drop(descriptor);
                    lock(&busy)[number] = None;
                }
            })?;
            Ok(())
        });
        mask.thread_set_mask()?;
        started?;
        for _ in 0..THREADS {
            let _ = runs.recv();
        }
        Ok(Self { way, busy })
    }

    /// Closes it, soon.
    pub(crate) fn close(&self, descriptor: OwnedFd) {
        // The threads end with the process only.
        let _ = self.way.send(descriptor);
    }

    /// How many have been closing something for longer than this.
    pub(crate) fn hanging(&self, for_longer_than: Duration) -> usize {
        let busy = lock(&self.busy);
        busy.iter().flatten().filter(|since| since.elapsed() > for_longer_than).count()
    }
}
