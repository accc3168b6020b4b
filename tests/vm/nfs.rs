//! A server of NFS version 3 that answers what it takes to mount a directory with one
//! directory in it, until it dies: then it takes requests and answers none.
//!
//! Trusts its client, the kernel of a test's guest. RFC 5531 (calls), RFC 1813.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

const PROGRAM_NFS: u32 = 100_003;
const PROGRAM_MOUNT: u32 = 100_005;
/// The only version of both.
const VERSION: u32 = 3;

const DIRECTORY: u32 = 2;
/// The longest call that is read, in bytes.
const CALL_MAX: u32 = 1 << 20;

#[derive(Debug, Default)]
struct State {
    dead: AtomicBool,
    calls: AtomicUsize,
}

/// Serves on a port of this machine's loopback for as long as the process lives.
pub(crate) struct Server {
    pub(crate) port: u16,
    state: Arc<State>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { port, state }
    }

    /// It stays connected, and says no word.
    pub(crate) fn die(&self) {
        self.state.dead.store(true, Ordering::SeqCst);
    }

    /// How often it was called.
    pub(crate) fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }
}

/// Answers calls, each one record, until the client goes.
fn serve(mut stream: TcpStream, state: &State) -> Option<()> {
    loop {
        let mut mark = [0; 4];
        stream.read_exact(&mut mark).ok()?;
        let length = u32::from_be_bytes(mark) & !(1 << 31);
        assert!(length <= CALL_MAX, "{length}");
        let mut call = vec![0; length as usize];
        stream.read_exact(&mut call).ok()?;
        state.calls.fetch_add(1, Ordering::SeqCst);
        if state.dead.load(Ordering::SeqCst) {
            continue;
        }
        let reply = answer(&mut Words(&call)).expect("a whole call").0;
        let mark = u32::try_from(reply.len()).expect("a short reply") | 1 << 31;
        stream.write_all(&[&mark.to_be_bytes()[..], &reply].concat()).ok()?;
    }
}

/// What is left of a call.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*word))
    }

    /// Bytes behind their length.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.next()? as usize;
        let (bytes, rest) = (self.0.get(..length)?, self.0.get(length.next_multiple_of(4)..)?);
        self.0 = rest;
        Some(bytes)
    }
}

/// A reply as it grows.
struct Reply(Vec<u8>);

impl Reply {
    fn words(mut self, words: &[u32]) -> Self {
        self.0.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        self
    }

    /// The handle of a directory, by its number.
    fn handle(self, number: u32) -> Self {
        self.words(&[4, number])
    }

    fn attributes(self, number: u32) -> Self {
        let [mode, links, owner, group] = [0o755, 3, 0, 0];
        let [size, used, device, filesystem] = [[0, 4096], [0, 4096], [0, 0], [0, 1]];
        let time = [1_700_000_000, 0];
        let reply = self.words(&[DIRECTORY, mode, links, owner, group]);
        let reply = [size, used, device, filesystem, [0, number]].iter().fold(reply, |reply, words| reply.words(words));
        reply.words(&time).words(&time).words(&time)
    }
}

fn answer(call: &mut Words<'_>) -> Option<Reply> {
    let transaction = call.next()?;
    let (_kind, _version) = (call.next()?, call.next()?);
    let (program, version, procedure) = (call.next()?, call.next()?, call.next()?);
    for _ in ["credentials", "verifier"] {
        call.next()?;
        call.bytes()?;
    }
    // A reply to a call that is accepted, without a verifier.
    let accepted = |status: u32| Reply(Vec::new()).words(&[transaction, 1, 0, 0, 0, status]);
    let done = || accepted(0);
    // Of a call of NFS: well, and no attributes where they may be missing.
    let (well, bare) = (|| done().words(&[0]), || done().words(&[0, 0]));
    let own = |call: &mut Words<'_>| Words(call.bytes()?).next();
    Some(match (program, version, procedure) {
        (PROGRAM_NFS | PROGRAM_MOUNT, VERSION, 0) | (PROGRAM_MOUNT, VERSION, 3) => done(),
        // The directory, and that calls say who calls.
        (PROGRAM_MOUNT, VERSION, 1) => well().handle(1).words(&[1, 1]),
        (PROGRAM_NFS, VERSION, 1) => well().attributes(own(call)?),
        (PROGRAM_NFS, VERSION, 3) => {
            own(call)?;
            // No such file, but one directory.
            if call.bytes()? == b"below" {
                well().handle(2).words(&[1]).attributes(2).words(&[0])
            } else {
                done().words(&[2, 0])
            }
        }
        // Everything is allowed.
        (PROGRAM_NFS, VERSION, 4) => bare().words(&[0x1f]),
        // How full it is: sizes in bytes, numbers of files.
        (PROGRAM_NFS, VERSION, 18) => bare().words(&[0, 1 << 30, 0, 1 << 29, 0, 1 << 29, 0, 9, 0, 9, 0, 9, 0]),
        // Sizes of reads and writes and of files, the clock's steps, no properties.
        (PROGRAM_NFS, VERSION, 19) => bare().words(&[4096, 4096, 4096, 4096, 4096, 4096, 4096, 0, 1 << 30, 0, 1, 0]),
        (PROGRAM_NFS, VERSION, 20) => bare().words(&[8, 255, 1, 1, 0, 1]),
        // It does not have this procedure.
        _ => accepted(3),
    })
}
