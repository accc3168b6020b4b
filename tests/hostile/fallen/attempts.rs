//! The attempts, one kind after the other.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postern_core::policy::rules::Mode;

use super::attacker::{GUESSES, WITNESS};
use super::host::Attack;
use super::{SECRET, TARGET};

impl Attack<'_> {
    /// Each call of the table, in a confined child of the worker.
    pub(super) fn calls(&mut self) {
        self.say("calls");
        let mut reached = 0;
        loop {
            let said = self.hear();
            let Some(row) = said.strip_prefix("call ") else { break assert_eq!(said, "done") };
            let fields: Vec<&str> = row.split('\t').collect();
            self.found.count(&format!("a call: {}", fields[0]), 1);
            if fields[2] != "SIGSYS" {
                self.found.odd.push(format!("{}: {}", fields[1], fields[2]));
            }
            reached += 1;
        }
        assert!(reached > 90, "{reached} calls");
    }

    /// What the worker finds behind every number is what it has, and that is
    /// what it was born with, the channel and the witness.
    pub(super) fn guess(&mut self) {
        let said = self.tell("guess");
        self.found.count("guesses of a descriptor's number", 3 * usize::try_from(GUESSES).expect("a number"));
        if said != format!("live 0 1 2 3 4 5 {WITNESS}") {
            self.found.odd.push(said);
        }
        for (number, kind) in self.held() {
            let fits = match number {
                0..=2 => kind == "/dev/null",
                3 | 5 => kind.starts_with("socket:"),
                4 => kind.contains("eventpoll"),
                WITNESS => kind.ends_with("audit.jsonl"),
                _ => false,
            };
            if !fits {
                self.found.outside.push(format!("descriptor {number} is {kind}"));
            }
        }
    }

    /// One path, and what it names is another object, or none.
    pub(super) fn misname(&mut self) {
        let kind = "asks for one path and names another";
        let inside = format!("{TARGET}/inside");
        let paths: Vec<Vec<u8>> = [
            SECRET,
            "/tmp/target/../secret/secret",
            "/tmp/target/./inside",
            "/tmp/target//inside",
            "/tmp/target/inside/",
            "/tmp/target/link",
            "/tmp/target/directory/secret",
            "/tmp/target/dangling",
            "/tmp/target/root/tmp/secret/secret",
            "/tmp/target/inside\0/tmp/secret/secret",
            "/tmp/secret/secret\0/tmp/target/inside",
            "\0/tmp/target/inside",
            "/tmp/target",
            "/tmp/targets",
            "/proc/self/fd/3",
            "/proc/self/fd/4",
            "/proc/self/root/tmp/secret/secret",
            "/proc/1/root/tmp/secret/secret",
            "/proc/3/fd/5",
            "/dev/fd/3",
            "/dev/null",
            "inside",
            "",
        ]
        .iter()
        .map(|path| path.as_bytes().to_vec())
        .chain([b"/tmp/target/\xff\xfe".to_vec(), [b"/tmp/target/".to_vec(), vec![b'x'; 4083]].concat()])
        .chain([format!("/proc/{}/fd/5", self.agent.pid()).into_bytes()])
        .collect();
        for mode in Mode::ALL {
            for path in &paths {
                let got = self.ask("ask", kind, mode.fopen(), path);
                // A new name in the policy's directory; whatever else must fail.
                let may = path.starts_with(b"/tmp/target/\xff") && mode.creates();
                if got && !may {
                    self.found.odd.push(format!("{} {}", mode.fopen(), String::from_utf8_lossy(path)));
                }
                let _ = fs::remove_file(Path::new(std::ffi::OsStr::new(TARGET)).join(odd_name()));
            }
        }
        assert!(self.ask("ask", kind, "r", b"/tmp/target/alias"), "the control: a link that stays inside");
        assert!(self.ask("ask", kind, "r", inside.as_bytes()), "the control");
        assert!(!Path::new("/tmp/secret/new").exists(), "made behind a dangling link");
    }

    /// A name that leads inside, and outside, and inside again.
    pub(super) fn swap(&mut self) {
        let stop = AtomicBool::new(false);
        let (mut got, mut tries) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for target in ["/tmp/target/inside", SECRET, "/tmp/target/other"].iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let _ = fs::remove_file("/tmp/swap");
                    symlink(target, "/tmp/swap").expect("a link");
                    fs::rename("/tmp/swap", "/tmp/target/swap").expect("a name");
                }
            });
            // Until some went through and some did not.
            while tries < 400 || (tries < 10_000 && (got == 0 || got == tries)) {
                let mode = ["r", "r+", "a+", "w"][tries % 4];
                got += usize::from(self.ask("ask", "asks for a name that is being swapped", mode, b"/tmp/target/swap"));
                tries += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(got > 0, "none of {tries} went through");
    }

    pub(super) fn honest_but_greedy(&mut self) {
        for round in 0..300 {
            let path = format!("{TARGET}/new-{}", round % 40);
            let mode = Mode::ALL[round % Mode::ALL.len()].fopen();
            self.ask("ask", "asks in type", mode, path.as_bytes());
            // The same bytes again are another open, with another record.
            self.ask("ask", "replays the last ask", mode, path.as_bytes());
        }
        for round in 0..40 {
            let mode = ["r", "w"][round % 2];
            assert!(self.ask("peek", "looks at the answer before taking it", mode, b"/tmp/target/inside"));
        }
        for round in 0..100 {
            let mode = ["r", "w+"][round % 2];
            assert!(self.ask("race", "uses free numbers while the answer is on its way", mode, b"/tmp/target/inside"));
        }
        // Says that it closed what it keeps: what it has stays on record.
        let mut kept = Vec::new();
        for _ in 0..20 {
            let kind = "says that it closed what it keeps";
            let (handle, numbers) = self.ask_and_keep("ask", kind, "r", b"/tmp/target/inside").expect("a descriptor");
            assert_eq!(self.tell(&format!("lie {handle}")), "done");
            kept.push((handle, numbers));
        }
        for (handle, numbers) in &kept {
            self.look_at(*handle, numbers, "kept");
        }
        // Only the numbers: the handles are closed already.
        for (_, numbers) in &kept {
            let (handle, fresh) = self.ask_and_keep("ask", "asks in type", "r", b"/tmp/target/inside").expect("one");
            assert_eq!(self.tell(&format!("drop {handle} {fresh},{numbers}")), "done");
        }
    }

    /// Asks while the log takes no record.
    pub(super) fn without_a_log(&mut self) {
        let kind = "asks while the log takes no record";
        let filler = self.agent.home.path("log/filler");
        let mut file = File::options().create(true).append(true).open(&filler).expect("a filler");
        for size in [4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        // The log's last page has room for a few more.
        let refused = (0..200).any(|_| !self.ask("ask", kind, "r", b"/tmp/target/inside"));
        if !refused {
            self.found.odd.push("a full log stops nobody".to_owned());
        }
        for round in 0..60 {
            let mode = Mode::ALL[round % Mode::ALL.len()].fopen();
            let path = if round % 2 == 0 { format!("{TARGET}/full-{round}") } else { format!("{TARGET}/inside") };
            self.ask("ask", kind, mode, path.as_bytes());
            if Path::new(&format!("{TARGET}/full-{round}")).exists() {
                self.found.unrecorded.push(format!("{path} was made while the log took no record"));
            }
        }
        drop(file);
        fs::remove_file(filler).expect("the filler");
        if !self.ask("ask", "asks in type", "r", b"/tmp/target/inside") {
            self.found.odd.push("the log has room, and no open".to_owned());
        }
        if refused {
            self.agent.await_record("records-lost", |_| true);
        }
    }
}

fn odd_name() -> &'static std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\xfe")
}
