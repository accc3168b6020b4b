//! A connection to one of them, and what is done over it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::agents::{Agent, Place, Which};
use super::host::{Host, command, unexpected};
use super::measure::{Effort, Scenario};
use super::{Result, memory, start};

const MIB: usize = 1 << 20;
/// The file's size, and the most that one read returns.
pub(crate) const LARGEST: usize = 48 * MIB;
/// A write of [`LARGEST`] makes a larger message than any agent takes.
pub(crate) const LARGEST_WRITE: usize = LARGEST - 64 * (1 << 10);

/// An agent with a connection and the files of its own.
pub(crate) struct Session {
    pub(crate) agent: Agent,
    which: Which,
    host: Host,
    cpus: CpuSet,
    /// What both files hold at first.
    content: Vec<u8>,
    written: PathBuf,
    readable: i64,
    writable: i64,
    open: Vec<u8>,
}

impl Session {
    /// Starts them all.
    pub(crate) fn all(place: &Place) -> Result<[Self; 3]> {
        let [stock, postern, floor] = Which::ALL.map(|which| Self::new(place, which));
        Ok([stock?, postern?, floor?])
    }

    fn new(place: &Place, which: Which) -> Result<Self> {
        let content = noise(LARGEST);
        let read = place.file(&format!("{which:?}-read"), &content)?;
        let written = place.file(&format!("{which:?}-write"), &content)?;
        let (agent, host) = start(place, which)?;
        let open = |path: &PathBuf, mode| {
            command("guest-file-open", &format!("\"path\": \"{}\", \"mode\": \"{mode}\"", path.display()))
        };
        let (readable, writable) = (open(&read, "r"), open(&written, "r+"));
        let cpus = place.cpus;
        let open = readable.clone();
        let mut session = Self { agent, which, host, cpus, content, written, readable: 0, writable: 0, open };
        session.set_reply("={\"return\": 1000}")?;
        session.readable = session.host.number(&readable)?;
        session.writable = session.host.number(&writable)?;
        Ok(session)
    }

    fn is_agent(&self) -> bool {
        self.which != Which::Floor
    }

    /// Tells the floor program what to answer from now on.
    fn set_reply(&mut self, setting: &str) -> Result<()> {
        if self.is_agent() {
            return Ok(());
        }
        self.host.call(format!("!{setting}\n").as_bytes()).map(|_| ())
    }

    /// Lets client and agent run on one CPU, or on all.
    pub(crate) fn pin(&self, pinned: bool) -> Result<()> {
        let mut cpus = self.cpus;
        // The last one: the first gets most interrupts.
        if let (true, Some(last)) = (pinned, (0..CpuSet::count()).rev().find(|&cpu| cpus.is_set(cpu).unwrap_or(false)))
        {
            cpus = CpuSet::new();
            cpus.set(last)?;
        }
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        self.agent.pin(&cpus)
    }

    /// One turn; a figure for each row.
    pub(crate) fn take(&mut self, scenario: &Scenario, effort: &Effort) -> Result<Vec<f64>> {
        match *scenario {
            Scenario::Latency { command: name, arguments, reply, .. } => {
                self.set_reply(&format!("={reply}"))?;
                self.latency(&command(name, arguments), effort.exchanges)
            }
            Scenario::InFlight { depth, .. } => {
                self.set_reply("={\"return\": {}}")?;
                self.in_flight(depth, effort.time)
            }
            Scenario::OpenClose { .. } => {
                self.set_reply("={\"return\": 1000}")?;
                self.open_close(effort.time)
            }
            Scenario::Read { size } => self.read(size, effort.time),
            Scenario::Write { size } => self.write(size, effort.time),
        }
    }

    fn latency(&mut self, request: &[u8], exchanges: usize) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(exchanges);
        for _ in 0..exchanges {
            let since = Instant::now();
            let reply = self.host.call(request)?;
            times.push(since.elapsed());
            if !reply.last.starts_with(b"{\"return\": ") {
                return Err(unexpected(request, reply.last));
            }
        }
        times.sort_unstable();
        Ok([50, 99].map(|rank| times[times.len() * rank / 100].as_secs_f64() * 1e6).into())
    }

    /// Requests per second, so many of them sent at once.
    fn in_flight(&mut self, depth: u32, time: Duration) -> Result<Vec<f64>> {
        let requests = command("guest-ping", "").repeat(depth as usize);
        let mut done = 0;
        let since = Instant::now();
        while done == 0 || since.elapsed() < time {
            self.host.call_all(&requests, depth as usize)?;
            done += depth;
        }
        Ok(vec![f64::from(done) / since.elapsed().as_secs_f64()])
    }

    fn open_close(&mut self, time: Duration) -> Result<Vec<f64>> {
        let mut done = 0;
        let since = Instant::now();
        while done == 0 || since.elapsed() < time {
            let handle = self.host.number(&self.open)?;
            let close = command("guest-file-close", &format!("\"handle\": {handle}"));
            if self.which == Which::Floor {
                self.host.call(&close)?;
            } else {
                self.host.expect(&close, b"{\"return\": {}}")?;
            }
            done += 1;
        }
        Ok(vec![f64::from(done) / since.elapsed().as_secs_f64()])
    }

    fn read(&mut self, size: usize, time: Duration) -> Result<Vec<f64>> {
        let request = command("guest-file-read", &format!("\"handle\": {}, \"count\": {size}", self.readable));
        let around = format!("{{\"return\": {{\"count\": {size}, \"buf-b64\": \"\", \"eof\": false}}}}\n").len();
        self.set_reply(&(around + size.div_ceil(3) * 4).to_string())?;
        self.check_read(&request, size)?;
        let count = format!("\"count\": {size}");
        self.rate(self.readable, &request, size, time, |length, last| {
            length > size.div_ceil(3) * 4
                && (length > last.len() || memchr::memmem::find(last, count.as_bytes()).is_some())
        })
    }

    /// The first bytes read are the file's.
    fn check_read(&mut self, request: &[u8], size: usize) -> Result<()> {
        self.seek(self.readable)?;
        let reply = self.host.call(request)?;
        if reply.length > reply.last.len() || self.which == Which::Floor {
            return Ok(()); // Came in parts, of which only the last is here.
        }
        let text = memchr::memmem::find(reply.last, b"\"buf-b64\": \"").map(|at| &reply.last[at + 12..]);
        let text = text.and_then(|text| text.split(|&byte| byte == b'"').next()).unwrap_or_default();
        if BASE64_STANDARD.decode(text)? == self.content[..size] {
            Ok(())
        } else {
            Err(unexpected(request, reply.last))
        }
    }

    fn write(&mut self, size: usize, time: Duration) -> Result<Vec<f64>> {
        let text = BASE64_STANDARD.encode(&self.content[..size]);
        let request = command("guest-file-write", &format!("\"handle\": {}, \"buf-b64\": \"{text}\"", self.writable));
        let count = format!("\"count\": {size}");
        self.set_reply(&format!("={{\"return\": {{{count}, \"eof\": false}}}}"))?;
        // So that what is there afterwards was written now.
        let file = File::options().read(true).write(true).open(&self.written)?;
        file.write_all_at(&vec![0; size], 0)?;
        let rate = self.rate(self.writable, &request, size, time, |_, last| {
            memchr::memmem::find(last, count.as_bytes()).is_some()
        })?;
        let mut there = vec![0; size];
        file.read_exact_at(&mut there, 0)?;
        if there == self.content[..size] || self.which == Which::Floor {
            Ok(rate)
        } else {
            Err("the file does not hold what was written".into())
        }
    }

    /// MB/s of requests that move `size` bytes each, through the file and again
    /// from its start; and the agent's CPU time for each MB, in ms.
    fn rate(
        &mut self,
        handle: i64,
        request: &[u8],
        size: usize,
        time: Duration,
        is_good: impl Fn(usize, &[u8]) -> bool,
    ) -> Result<Vec<f64>> {
        self.seek(handle)?;
        let (mut pass, mut moved) = (0, 0.0);
        let unit = f64::from(u32::try_from(size)?) / 1e6;
        let before = memory::processor_time(&self.agent)?;
        let since = Instant::now();
        while moved == 0.0 || since.elapsed() < time {
            if pass + size > LARGEST {
                self.seek(handle)?;
                pass = 0;
            }
            let reply = self.host.call(request)?;
            if self.which != Which::Floor && !is_good(reply.length, reply.last) {
                return Err(unexpected(request, reply.last));
            }
            pass += size;
            moved += unit;
        }
        let rate = moved / since.elapsed().as_secs_f64();
        let spent = memory::processor_time(&self.agent)?.saturating_sub(before);
        Ok(vec![rate, spent.as_secs_f64() * 1e3 / moved])
    }

    fn seek(&mut self, handle: i64) -> Result<()> {
        let request = command("guest-file-seek", &format!("\"handle\": {handle}, \"offset\": 0, \"whence\": 0"));
        let reply = self.host.call(&request)?;
        // Members come in any order.
        if memchr::memmem::find(reply.last, b"\"position\": 0").is_some() || self.which == Which::Floor {
            Ok(())
        } else {
            Err(unexpected(&request, reply.last))
        }
    }

    /// How far the resident memory of all processes rises above what it is now, in
    /// KiB, while 48 MiB are read and then while they are written.
    pub(crate) fn rise(&mut self) -> Result<[f64; 2]> {
        let text = BASE64_STANDARD.encode(&self.content[..LARGEST_WRITE]);
        let write = command("guest-file-write", &format!("\"handle\": {}, \"buf-b64\": \"{text}\"", self.writable));
        let read = command("guest-file-read", &format!("\"handle\": {}, \"count\": {LARGEST}", self.readable));
        let mut risen = [0.0; 2];
        for (risen, (handle, request)) in risen.iter_mut().zip([(self.readable, read), (self.writable, write)]) {
            self.seek(handle)?;
            let idle = memory::resident(&self.agent)?;
            self.host.call(&request)?;
            *risen = memory::peak(&self.agent)? - idle;
        }
        Ok(risen)
    }
}

/// Bytes without a pattern, the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length.div_ceil(8)).flatten().take(length).collect()
}
