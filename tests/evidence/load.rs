//! A host that opens everything in every mode as fast as it is answered, and a
//! guest that changes the names meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Home, LIVELY};

/// Requests on their way at once.
const BATCH: usize = 20;
/// A reply that takes longer may be lost with a killed worker: it is asked for
/// again.
const PATIENCE: Duration = Duration::from_millis(300);

/// Policy of such agents. Two rules, so that a name under the narrow one can
/// lead into the wide one.
pub(crate) const POLICY: &str = r#"
profile = "files"
[limits]
handles = 128
[[files]]
path = "HOME/files"
rights = ["read", "write", "create"]
except = ["HOME/files/private"]
[[files]]
path = "HOME/narrow"
rights = ["read", "write"]
"#;

/// Makes what the load opens.
pub(crate) fn stage(home: &Home) {
    let own = |path: PathBuf| chown(path, Some(home.worker), Some(home.worker)).expect("an owner");
    for number in 0..8 {
        home.write(&format!("old-{number}"), b"content that was there");
    }
    for name in ["narrow", "outside", "files/private"] {
        fs::create_dir(home.path(name)).expect("a directory");
        own(home.path(name));
        fs::write(home.path(name).join("file"), "content").expect("a file");
        own(home.path(name).join("file"));
    }
    for (name, to) in [
        ("files/alias", "old-0"),
        ("files/out", "../outside/file"),
        ("files/away", "../outside"),
        ("files/swap", "old-1"),
        ("files/dangling", "../outside/new"),
        ("narrow/wide", "../files"),
    ] {
        symlink(to, home.path(name)).expect("a link");
    }
}

/// Changes names as long as a load runs.
pub(crate) fn disturb(home: &Home, stop: &AtomicBool) {
    let new = home.path("swap-next");
    let mut round = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let to = ["old-1", "../outside/file", "private/file", "nowhere", "old-2"][round % 5];
        symlink(to, &new).expect("a link");
        fs::rename(&new, home.files().join("swap")).expect("a name");
        let _ = fs::remove_file(home.files().join(format!("new-{}", round % 200)));
        round += 1;
        sleep(Duration::from_millis(1));
    }
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// By kind: opens, those that were granted.
    pub(crate) opens: BTreeMap<&'static str, (usize, usize)>,
    /// Handles that the host was given.
    pub(crate) handles: Vec<u64>,
    /// Requests whose reply never came, for a fault.
    pub(crate) unanswered: usize,
    /// Connections that ended, for a fault.
    pub(crate) cut: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        for (kind, (opens, granted)) in other.opens {
            let sum = self.opens.entry(kind).or_default();
            sum.0 += opens;
            sum.1 += granted;
        }
        self.handles.extend(other.handles);
        self.unanswered += other.unanswered;
        self.cut += other.cut;
    }

    pub(crate) fn opens(&self) -> usize {
        self.opens.values().map(|(opens, _)| opens).sum()
    }
}

/// A host.
pub(crate) struct Load<'a> {
    home: &'a Home,
    stream: Option<UnixStream>,
    heard: Vec<u8>,
    /// Ids of requests.
    last: u64,
    kept: Vec<u64>,
    noise: u64,
    pub(crate) tally: Tally,
}

/// A reply, or why there is none.
enum Heard {
    Reply(Value),
    Nothing,
    End,
}

impl<'a> Load<'a> {
    pub(crate) fn new(home: &'a Home, seed: u64) -> Self {
        let tally = Tally::default();
        let noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { home, stream: None, heard: Vec::new(), last: 0, kept: Vec::new(), noise, tally }
    }

    /// xorshift of Marsaglia, 2003; any noise does.
    fn random(&mut self, below: u64) -> u64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        self.noise % below
    }

    /// What to open next: its kind, path and mode.
    fn next(&mut self) -> (&'static str, String, &'static str) {
        let number = self.random(200);
        let old = number % 8;
        let pick = |modes: &[&'static str]| modes[usize::try_from(number).unwrap_or(0) % modes.len()];
        let (kind, name, mode) = match self.random(12) {
            0 | 1 => ("read", format!("files/old-{old}"), "r"),
            2 => ("write", format!("files/old-{old}"), "r+"),
            3 => ("truncate", format!("files/old-{old}"), pick(&["w", "w+"])),
            4 | 5 => ("create", format!("files/new-{number}"), pick(&["w", "w+", "a", "a+"])),
            6 => ("append", format!("files/old-{old}"), pick(&["a", "a+"])),
            7 => ("denied", pick(&["outside/file", "files/private/file", "log/audit.jsonl"]).to_owned(), pick(ALL)),
            8 => ("missing", format!("files/none-{number}"), pick(&["r", "r+"])),
            9 => {
                ("link that leads out", pick(&["files/out", "files/away/file", "files/dangling"]).to_owned(), pick(ALL))
            }
            10 => ("link that is swapped", pick(&["files/alias", "files/swap"]).to_owned(), pick(ALL)),
            _ => ("link to a wider rule", format!("narrow/wide/new-{number}"), pick(ALL)),
        };
        (kind, self.home.path(&name).display().to_string(), mode)
    }

    /// So many opens; `between` is called after each batch was sent.
    pub(crate) fn run(&mut self, opens: usize, mut between: impl FnMut(&mut Self)) {
        let mut left = opens;
        while left > 0 {
            let batch = left.min(BATCH);
            left -= batch;
            let mut asked = BTreeMap::new();
            let mut text = String::new();
            for _ in 0..batch {
                let (kind, path, mode) = self.next();
                self.last += 1;
                asked.insert(self.last, kind);
                self.tally.opens.entry(kind).or_default().0 += 1;
                text += &request("guest-file-open", &json!({ "path": path, "mode": mode }), self.last);
            }
            self.send(&text);
            between(self);
            self.answers(&asked);
            self.close_some();
        }
    }

    /// Collects the answers to these opens, and those that never come.
    fn answers(&mut self, asked: &BTreeMap<u64, &'static str>) {
        let mut open: BTreeMap<u64, &'static str> = asked.clone();
        self.until_answered(|load, reply| {
            let Some(kind) = reply["id"].as_u64().and_then(|id| open.remove(&id)) else { return };
            if let Some(handle) = reply["return"].as_u64() {
                load.tally.opens.entry(kind).or_default().1 += 1;
                load.tally.handles.push(handle);
                load.kept.push(handle);
            }
        });
        self.tally.unanswered += open.len();
    }

    /// Asks for an answer and takes all that come before it. A killed worker may
    /// take the question with it.
    fn until_answered(&mut self, mut take: impl FnMut(&mut Self, Value)) {
        let started = Instant::now();
        let connections = self.tally.cut;
        loop {
            assert!(started.elapsed() < LIVELY && self.tally.cut < connections + 100, "nobody answers");
            self.last += 1;
            let question = self.last;
            self.send(&request("guest-ping", &Value::Null, question));
            loop {
                match self.hear() {
                    Heard::Reply(reply) if reply["id"] == question => return,
                    Heard::Reply(reply) => take(self, reply),
                    Heard::Nothing => break,
                    Heard::End => {
                        self.stream = None;
                        break;
                    }
                }
            }
        }
    }

    fn close_some(&mut self) {
        while self.kept.len() > 40 || (!self.kept.is_empty() && self.random(8) > 0) {
            let at = usize::try_from(self.random(self.kept.len() as u64)).expect("a number");
            let handle = self.kept.swap_remove(at);
            self.last += 1;
            let text = request("guest-file-close", &json!({ "handle": handle }), self.last);
            self.send(&text);
        }
        self.until_answered(|_, _| ());
    }

    /// All handles are gone with their worker or broker.
    pub(crate) fn forget(&mut self) {
        self.kept.clear();
    }

    /// Ends with every handle closed.
    pub(crate) fn finish(mut self) -> Tally {
        while let Some(handle) = self.kept.pop() {
            let text = request("guest-file-close", &json!({ "handle": handle }), 0);
            self.send(&text);
        }
        self.until_answered(|_, _| ());
        self.tally
    }

    /// Sends, on a new connection if there is none. A broker that is gone is for
    /// the caller to start.
    fn send(&mut self, text: &str) {
        if self.stream.is_none() {
            self.heard.clear();
            let started = Instant::now();
            let stream = loop {
                match UnixStream::connect(self.home.path("host.sock")) {
                    Ok(stream) => break stream,
                    Err(_) if started.elapsed() < LIVELY => sleep(Duration::from_millis(5)),
                    Err(why) => panic!("nobody listens: {why}"),
                }
            };
            stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
            stream.set_write_timeout(Some(LIVELY)).expect("a time limit");
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut().expect("a connection");
        if stream.write_all(text.as_bytes()).is_err() {
            self.end();
        }
    }

    fn end(&mut self) {
        self.stream = None;
        self.tally.cut += 1;
    }

    fn hear(&mut self) -> Heard {
        loop {
            if let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                // A line that a dying worker began ends in the next one's first.
                match serde_json::from_slice(&line) {
                    Ok(reply) => return Heard::Reply(reply),
                    Err(_) => continue,
                }
            }
            let Some(stream) = &mut self.stream else { return Heard::End };
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(count @ 1..) => self.heard.extend_from_slice(&bytes[..count]),
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Heard::Nothing,
                Ok(0) | Err(_) => {
                    self.end();
                    return Heard::End;
                }
            }
        }
    }
}

const ALL: &[&str] = &["r", "w", "a", "r+", "w+", "a+"];

fn request(command: &str, arguments: &Value, id: u64) -> String {
    let mut request = json!({ "execute": command, "id": id });
    if !arguments.is_null() {
        request["arguments"] = arguments.clone();
    }
    request.to_string()
}

/// Fills the filesystem that a directory is on, to the last byte; dropping this
/// makes room.
pub(crate) struct Filler(PathBuf);

impl Filler {
    pub(crate) fn fill(path: PathBuf) -> Self {
        let mut file = File::options().create(true).append(true).open(&path).expect("a filler");
        for size in [1 << 16, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
