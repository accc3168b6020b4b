//! Logs to tamper with, by the running agent: boots with ids of their own, several
//! rotations each, an orderly end, a killed broker, a torn write; and the heads
//! that a journald got of them.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::journal::{JOURNAL, bind, exported};

/// Lines with their newlines, by file, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files(pub(crate) Vec<Vec<Vec<u8>>>);

impl Files {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// A line by its place among all.
    pub(crate) fn line(&mut self, at: usize) -> &mut Vec<u8> {
        self.0.iter_mut().flatten().nth(at).expect("a line")
    }

    pub(crate) fn lines(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// File and line of a place among all; the end of the last file for one
    /// behind all.
    pub(crate) fn place(&self, at: usize) -> (usize, usize) {
        let mut left = at;
        for (file, lines) in self.0.iter().enumerate() {
            if left < lines.len() {
                return (file, left);
            }
            left -= lines.len();
        }
        (self.len() - 1, self.0[self.len() - 1].len())
    }
}

/// A log and what is known of it.
pub(crate) struct Real {
    pub(crate) files: Files,
    /// Index of the first line of each boot.
    pub(crate) boots: Vec<usize>,
    /// The same file in older states: its index, its lines then.
    pub(crate) older: Vec<(usize, Vec<Vec<u8>>)>,
    /// Lines of a log of another machine.
    pub(crate) foreign: Vec<Vec<u8>>,
    /// Heads as `journalctl -o json` prints them.
    pub(crate) journal: String,
    /// The broker's user.
    pub(crate) broker: u32,
    /// The log's path on its machine.
    pub(crate) log: String,
}

const POLICY: &str = "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\n\
     rights = [\"read\", \"write\", \"create\"]\n[audit]\nheads = [\"journal\"]\nhead_records = 15\n";
const BOOTS: usize = 3;
const ROTATIONS: usize = 2;

fn split(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).expect("a log");
    bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Opens, writes and is refused, in turns.
fn work(host: &mut Host, home: &Home, rounds: usize) {
    for round in 0..rounds {
        let path = home.files().join(format!("file {}", round % 5));
        let handle = host.open(&path, if round % 2 == 0 { "w" } else { "a+" }).expect("a handle");
        host.write(handle, "cG9zdGVybg==");
        host.close(handle);
        host.open("/etc/shadow", "r").expect_err("outside");
        host.fails("guest-exec", &Value::Null);
    }
    // What was said before is on record when this is answered.
    host.open("/etc/shadow", "r").expect_err("outside");
}

fn start(home: &Home, boot: usize) -> Agent<'_> {
    let id = format!("{boot:08x}-1111-4222-8333-444444444444\n");
    fs::write("/run/boot_id", id).expect("a boot id");
    home.start(POLICY)
}

impl Real {
    pub(crate) fn make() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        let none: Option<&str> = None;
        // In a mount namespace of this test.
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a tmpfs");
        fs::write("/run/boot_id", "").expect("a file");
        let boot_id = "/proc/sys/kernel/random/boot_id";
        mount(Some("/run/boot_id"), boot_id, none, MsFlags::MS_BIND, none).expect("a boot id");
        let journal = bind(JOURNAL);

        let home = Home::new();
        let mut older = Vec::new();
        let mut heads = String::new();
        for boot in 0..BOOTS {
            let number = |age: usize| home.path(&format!("log/audit.jsonl.{age}"));
            let mut agent = start(&home, boot);
            let mut host = agent.connect();
            for rotation in 0..ROTATIONS {
                work(&mut host, &home, 3);
                older.push((boot * ROTATIONS + rotation, split(&home.log())));
                // A queue of datagrams is short.
                heads += &exported(&journal);
                work(&mut host, &home, 6);
                heads += &exported(&journal);
                for age in (1..=boot * ROTATIONS + rotation).rev() {
                    fs::rename(number(age), number(age + 1)).expect("rotated");
                }
                fs::rename(home.log(), number(1)).expect("rotated");
                agent.signal("broker", Signal::SIGHUP);
                eventually("a new file", || fs::metadata(home.log()).ok().filter(|facts| facts.len() > 0));
            }
            work(&mut host, &home, 5);
            heads += &exported(&journal);
            if boot == 1 {
                agent.child.kill().expect("SIGKILL");
                agent.ended();
                // As a crash of the machine leaves a log.
                let mut log = fs::File::options().append(true).open(home.log()).expect("the log");
                log.write_all(b"{\"@timestamp\":\"2026-").expect("written");
            } else {
                agent.signal("broker", Signal::SIGTERM);
                assert!(agent.ended().success());
            }
            heads += &exported(&journal);
        }
        let ages = (1..=BOOTS * ROTATIONS).rev().map(|age| home.path(&format!("log/audit.jsonl.{age}")));
        let files = Files(ages.chain([home.log()]).map(|path| split(&path)).collect());
        let started = |line: &Vec<u8>| {
            let record: Value = serde_json::from_slice(line).unwrap_or_default();
            record["event"]["action"] == "log-opened" && record["event"]["type"][0] == "start"
        };
        let all = files.0.iter().flatten();
        let boots: Vec<usize> = all.enumerate().filter(|(_, line)| started(line)).map(|(at, _)| at).collect();
        assert_eq!(boots.len(), BOOTS);
        Self {
            foreign: foreign(&journal),
            files,
            boots,
            older,
            journal: heads,
            broker: home.broker,
            log: home.log().display().to_string(),
        }
    }

    /// How many lines are records: all but the torn one.
    pub(crate) fn records(&self) -> u64 {
        self.files.lines() as u64 - 1
    }

    pub(crate) fn heads(&self) -> u64 {
        self.journal.lines().count() as u64
    }
}

/// The log of another machine, at work for as long.
fn foreign(journal: &UnixDatagram) -> Vec<Vec<u8>> {
    let home = Home::new();
    let mut agent = start(&home, 77);
    work(&mut agent.connect(), &home, 30);
    agent.signal("broker", Signal::SIGTERM);
    assert!(agent.ended().success());
    drop(exported(journal));
    split(&home.log())
}
