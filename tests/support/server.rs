//! A filesystem whose server can die: one file in memory, served by a thread of the test
//! over `/dev/fuse`, as a network filesystem is served by a machine elsewhere.
//! Numbers are those of `linux/fuse.h`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const ROOT: u64 = 1;
const FILE: u64 = 2;
/// The file's name.
pub(crate) const NAME: &str = "file";

#[derive(Debug, Default)]
struct Shared {
    dead: AtomicBool,
    /// The kernel's first request was read, and answered by a server that lives.
    greeted: AtomicBool,
    /// Operation that it does not answer; 0 is none.
    ignored: AtomicU32,
    quit: AtomicBool,
    /// Operation of the last request.
    last: AtomicU32,
    content: Mutex<Vec<u8>>,
}

/// No test lets it be dead for longer; below what its runner waits.
const GIVEN_UP: Duration = Duration::from_secs(240);

/// The server; gone, and what waited for it released, when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    at: String,
    thread: Option<JoinHandle<()>>,
}

/// `FUSE_INIT`: until it is answered whoever asks waits where a signal ends it, and
/// behind that, for what was read, where none does.
const INIT: u32 = 26;
/// `FUSE_FLUSH`, which a close(2) waits for.
pub(crate) const FLUSH: u32 = 25;

impl Server {
    /// Mounts it.
    pub(crate) fn mount(at: &str) -> Self {
        std::fs::create_dir(at).expect("a mountpoint");
        Self::mount_as("fuse", Path::new("server"), at)
    }

    /// Mounts it on a directory that is there, of this type: `fuse`, or `fuseblk` of
    /// a block device.
    pub(crate) fn mount_as(kind: &str, source: &Path, at: &str) -> Self {
        Self::start(kind, source, at, false)
    }

    /// As [`Self::mount_as`], one that never answered anything.
    pub(crate) fn dead_as(kind: &str, source: &Path, at: &str) -> Self {
        Self::start(kind, source, at, true)
    }

    fn start(kind: &str, source: &Path, at: &str, dead: bool) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some(source), at, Some(kind), MsFlags::empty(), Some(options.as_str())).expect("a mount");
        let shared = Arc::new(Shared { dead: dead.into(), ..Shared::default() });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(device, &shared)
        });
        while !shared.greeted.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Self { shared, at: at.to_owned(), thread: Some(thread) }
    }

    /// From now on it reads requests and answers none.
    pub(crate) fn die(&self) {
        self.shared.dead.store(true, Ordering::SeqCst);
    }

    /// From now on it answers no request of this operation.
    pub(crate) fn ignore(&self, operation: u32) {
        self.shared.ignored.store(operation, Ordering::SeqCst);
    }

    /// Has the kernel end every request with an error, as `umount -f` does, and with
    /// them the mount.
    pub(crate) fn abort(&self) {
        self.shared.quit.store(true, Ordering::SeqCst);
    }

    /// Operation of the last request that it read.
    pub(crate) fn last(&self) -> u32 {
        self.shared.last.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        // With its descriptor the kernel ends all requests.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = umount2(Path::new(&self.at), MntFlags::MNT_DETACH);
    }
}

fn serve(mut device: File, shared: &Shared) {
    let mut request = vec![0; 1 << 20];
    // A test that hangs with its server dead can't be killed: it is let go first.
    let mut since = Instant::now();
    while !shared.quit.load(Ordering::SeqCst) && since.elapsed() < GIVEN_UP {
        if !shared.dead.load(Ordering::SeqCst) {
            since = Instant::now();
        }
        let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::from(20_u8)), Ok(1..)) {
            continue;
        }
        let Ok(length) = device.read(&mut request) else { continue };
        let request = &request[..length];
        let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("eight bytes"));
        let operation = u32::from_le_bytes(request[4..8].try_into().expect("four bytes"));
        shared.last.store(operation, Ordering::SeqCst);
        if shared.dead.load(Ordering::SeqCst) || shared.ignored.load(Ordering::SeqCst) == operation {
            shared.greeted.store(true, Ordering::SeqCst);
            continue;
        }
        let answer = answer(operation, number(16), &request[40..], shared);
        let Some(answer) = answer else { continue };
        let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let total = u32::try_from(16 + body.len()).expect("a small answer");
        let mut out = [total.to_le_bytes(), error.to_le_bytes()].concat();
        out.extend_from_slice(&request[8..16]);
        out.extend_from_slice(&body);
        // What was interrupted takes no answer.
        let _ = device.write(&out);
        shared.greeted.store(true, Ordering::SeqCst);
    }
}

/// The answer to a request, or its error; `None` where none is due.
fn answer(operation: u32, node: u64, body: &[u8], shared: &Shared) -> Option<Result<Vec<u8>, i32>> {
    let zeros = |count: usize| vec![0_u8; count];
    let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
    let short = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("four bytes")) as usize;
    let place = |at: u64| usize::try_from(at).expect("a small file");
    let mut content = shared.content.lock().expect("no server panics");
    let size = content.len() as u64;
    Some(Ok(match operation {
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => return None,
        // LOOKUP: node, no time that the answer holds for, attributes.
        1 if body.starts_with(NAME.as_bytes()) => {
            [FILE.to_le_bytes().to_vec(), zeros(32), attributes(FILE, size)].concat()
        }
        1 => return Some(Err(libc::ENOENT)),
        // GETATTR, SETATTR
        3 => [zeros(16), attributes(node, size)].concat(),
        4 => {
            // Which of them, and the size.
            if short(0) & 8 != 0 {
                content.resize(place(long(16)), 0);
            }
            [zeros(16), attributes(node, content.len() as u64)].concat()
        }
        // OPEN, OPENDIR: no page cache, so that each write is a request.
        14 | 27 => [1_u64.to_le_bytes().to_vec(), 1_u32.to_le_bytes().to_vec(), zeros(4)].concat(),
        // WRITE and READ: offset and size.
        16 => {
            let (from, written) = (place(long(8)), short(16));
            let end = content.len().max(from + written);
            content.resize(end, 0);
            content[from..from + written].copy_from_slice(&body[40..40 + written]);
            [short(16).to_le_bytes()[..4].to_vec(), zeros(4)].concat()
        }
        15 => {
            let from = place(long(8)).min(content.len());
            content[from..(from + short(16)).min(content.len())].to_vec()
        }
        // RELEASE, RELEASEDIR, FSYNC, FLUSH
        18 | 29 | 20 | FLUSH => Vec::new(),
        // INIT: version 7.31, and nothing special.
        INIT => [7_u32, 31, 65536, 0].iter().flat_map(|word| word.to_le_bytes()).chain(init_rest()).collect(),
        _ => return Some(Err(libc::ENOSYS)),
    }))
}

/// Behind its first four words: background, congestion, largest write, times in
/// nanoseconds, the rest zero.
fn init_rest() -> Vec<u8> {
    let mut rest = vec![0; 48];
    rest[4..8].copy_from_slice(&65536_u32.to_le_bytes());
    rest[8..12].copy_from_slice(&1_u32.to_le_bytes());
    rest
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    let (mode, links) = if node == ROOT { (0o040_777_u32, 2_u32) } else { (0o100_666, 1) };
    let long = [node, if node == ROOT { 0 } else { size }, 0, 1_000_000, 1_000_000, 1_000_000];
    let short = [0, 0, 0, mode, links, 0, 0, 0, 4096, 0];
    long.iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(short.iter().flat_map(|word: &u32| word.to_le_bytes()))
        .collect()
}
