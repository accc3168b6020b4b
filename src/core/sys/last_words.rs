//! Last words: a confined process that panics, or gets no more memory, says so
//! to whoever is told, and ends by `SIGABRT`.
//!
//! The standard library says both on standard error, which is `/dev/null` in
//! every process but the broker, and which an opener may not even write to; and
//! with `RUST_BACKTRACE` it opens files for a backtrace, which no filter allows.
//!
//! Trust: called once by each process before its filter stands. The words are
//! postern's own and may quote a host's bytes; who hears them escapes them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::io::{self, Write};
use std::panic;
use std::process;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

type Say = Box<dyn Fn(&str) + Send + Sync>;

/// Who hears of it that there is no more memory.
static HEARS: OnceLock<Say> = OnceLock::new();

/// From now on a panic's text, and that memory ran out, goes to `say`, in an
/// executable that allocates by [`Allocator`]. The first caller's word stands.
pub fn to(say: impl Fn(&str) + Send + Sync + 'static) {
    let _ = HEARS.set(Box::new(say));
    panic::set_hook(Box::new(|panic| {
        if let Some(say) = HEARS.get() {
            say(&panic.to_string());
        }
    }));
}

/// As [`to`], for a process that has a standard error: to that, and nothing else.
pub fn to_stderr() {
    to(|text| {
        // Nobody to tell where that fails.
        let _ = writeln!(io::stderr(), "postern: {text}");
    });
}

/// The system's allocator, with a reserve to say last words from: what no memory
/// is had for ends the process then, and no caller learns of it.
#[derive(Debug)]
pub struct Allocator;

/// Bytes of the reserve: a text, the frame it goes in, and their growing. A page
/// that nobody touches costs nothing.
const RESERVE: usize = 64 << 10;

#[repr(align(64))]
struct Reserve(UnsafeCell<[u8; RESERVE]>);

// SAFETY: every byte is given out once at most, by the counter `TAKEN`.
unsafe impl Sync for Reserve {}

static ROOM: Reserve = Reserve(UnsafeCell::new([0; RESERVE]));
/// Bytes given out of it.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Whether last words are being said.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

impl Reserve {
    /// Zeroed memory, or null if the reserve is used up too.
    fn take(layout: Layout) -> *mut u8 {
        let room = ROOM.0.get().cast::<u8>();
        // What the alignment may cost is taken with it.
        let size = layout.size().saturating_add(layout.align());
        let start = TAKEN.fetch_add(size.min(RESERVE + 1), Ordering::Relaxed);
        if start.saturating_add(size) > RESERVE {
            return ptr::null_mut();
        }
        let start = room.wrapping_add(start);
        start.wrapping_add(start.align_offset(layout.align()))
    }

    fn holds(place: *const u8) -> bool {
        let start = ROOM.0.get() as usize;
        (start..start + RESERVE).contains(&(place as usize))
    }
}

/// There is no memory for this. Says so and ends; returns memory only to what
/// is said, and null where nobody is told.
#[cold]
fn exhausted(layout: Layout) -> *mut u8 {
    let Some(say) = HEARS.get() else { return ptr::null_mut() };
    if EXHAUSTED.swap(true, Ordering::Relaxed) {
        return Reserve::take(layout);
    }
    say(&format!("memory allocation of {} bytes failed", layout.size()));
    process::abort()
}

// SAFETY: memory is the system allocator's, or that of `ROOM`, each byte of which
// is given out once and never again; which of both a place is of is told by its
// address. Nothing in here panics.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that System asks for.
        let place = unsafe { System.alloc(layout) };
        if place.is_null() { exhausted(layout) } else { place }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`; the reserve is zeroed and given out once.
        let place = unsafe { System.alloc_zeroed(layout) };
        if place.is_null() { exhausted(layout) } else { place }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !Reserve::holds(place) {
            // SAFETY: `place` is System's, and the rest is the caller's promise.
            let grown = unsafe { System.realloc(place, layout, size) };
            if !grown.is_null() {
                return grown;
            }
        }
        // SAFETY: `realloc`'s caller promises that this is a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let moved = exhausted(wanted);
        if !moved.is_null() {
            // SAFETY: both are of at least this length, and the new one is
            // nobody's yet.
            unsafe { ptr::copy_nonoverlapping(place, moved, layout.size().min(size)) };
        }
        moved
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if !Reserve::holds(place) {
            // SAFETY: `place` is System's, by the caller's promise.
            unsafe { System.dealloc(place, layout) };
        }
    }
}
