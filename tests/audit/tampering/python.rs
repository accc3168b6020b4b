//! `audit/verify.py`, one process for many logs.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use postern_tools::audit::Against;
use serde_json::{Value, json};

use super::Verdict;

pub(crate) struct Python {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Python {
    pub(crate) fn start() -> Self {
        let mut child = Command::new("python3")
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/audit/verify.py"), "--batch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let asks = child.stdin.take().expect("its standard input");
        let answers = BufReader::new(child.stdout.take().expect("its standard output"));
        Self { child, asks, answers }
    }

    pub(crate) fn verify(&mut self, files: &[PathBuf], against: &Against) -> Verdict {
        let Against { anchors, sender, log } = against;
        let ask = json!({ "files": files, "anchors": anchors, "sender": sender, "log": log });
        writeln!(self.asks, "{ask}").expect("it reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line:?}"));
        let number = |name: &str| answer[name].as_u64().unwrap_or(0);
        match answer["verdict"].as_str() {
            Some("whole") => {
                let head = answer["head"].as_str().expect("a hash").to_owned();
                Verdict::Whole(number("records"), number("last"), head, number("agree"))
            }
            Some("broken") => Verdict::Broken,
            Some("cut") => Verdict::Cut(number("record")),
            Some("rewritten") => Verdict::Rewritten(number("record")),
            Some("no-head") => Verdict::Other("no head"),
            Some("several-logs") => Verdict::Other("several logs"),
            Some("strangers") => Verdict::Other("strangers"),
            _ => panic!("{answer}"),
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
