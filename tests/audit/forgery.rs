//! What somebody does who knows how logs are verified, and that both verifiers
//! fall for none of it: postern's and `audit/verify.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_core::audit::{Hash, MAX_LINE};
use tempfile::TempDir;

use crate::binary::BINARY;
use crate::log::{open, stopped};

/// Another user than the broker's, and more digits than any number has.
const STRANGER: &str = "4711";
const DIGITS: usize = 5000;

struct Forged {
    directory: TempDir,
    lines: Vec<String>,
    broker: String,
}

/// A log of eleven records, by this test's user.
fn real() -> Forged {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("audit.jsonl");
    let mut log = open(&path);
    for number in 1..11 {
        log.record(&stopped(&format!("record {number}"))).expect("written");
    }
    let lines: Vec<String> = fs::read_to_string(&path).expect("readable").lines().map(str::to_owned).collect();
    let (_, user) = lines[0].split_once("\"user\":{\"id\":\"").expect("a user");
    let broker = user.split_once('"').expect("its end").0.to_owned();
    Forged { directory, lines, broker }
}

impl Forged {
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }

    /// What both verifiers say of a log and a journal, with the one exit status.
    fn verdict(&self, log: &str, journal: &str, more: &[&str]) -> (i32, String) {
        let (log, journal) = (self.write("audit.jsonl", log), self.write("journal", journal));
        verdict(&log, &journal, more)
    }

    /// The lines with other numbers, and every hash made to fit.
    fn anew(&self, first: usize, edit: impl Fn(&str) -> String) -> Vec<String> {
        let mut previous = if first == 1 { "0".repeat(64) } else { "1".repeat(64) };
        let renumbered = self.lines.iter().zip(first..).map(|(line, number)| {
            let (start, rest) = line.split_once("\"sequence\":").expect("a number");
            let (_, rest) = rest.split_once(',').expect("its end");
            let rest = &rest[..rest.len() - 64 - 3];
            let line = format!("{start}\"sequence\":{number},{}{previous}\"}}}}", edit(rest));
            previous = hash(&line);
            line
        });
        renumbered.collect()
    }
}

fn verdict(log: &Path, journal: &Path, more: &[&str]) -> (i32, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/audit/verify.py");
    let say = |program: &str, first: &[&str]| {
        let mut command = Command::new(program);
        let output = command.args(first).arg("--anchors").arg(journal).args(more).arg(log).output().expect(program);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().expect("an exit"), String::from_utf8(said).expect("text"))
    };
    let ours = say(BINARY, &["audit", "verify"]);
    let python = say("python3", &[script]);
    assert_eq!(ours.0, python.0, "{} and {}", ours.1, python.1);
    assert!(!python.1.contains("Traceback"), "{}", python.1);
    ours
}

fn hash(line: &str) -> String {
    Hash::of(line.as_bytes()).to_string()
}

fn lines(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// As `journalctl -o json` has a head.
fn head(user: &str, number: impl std::fmt::Display, hash: &str, log: &str) -> String {
    format!(
        "{{\"_UID\":\"{user}\",\"POSTERN_SEQUENCE\":\"{number}\",\"POSTERN_HASH\":\"{hash}\",\"POSTERN_LOG\":\"{log}\"}}\n"
    )
}

#[test]
fn heads_of_records_that_are_not_given_anchor_nothing() {
    let real = real();
    let journal = head(&real.broker, 5, &hash(&real.lines[4]), "/a");
    let (status, said) = real.verdict(&lines(&real.lines), &journal, &[]);
    assert_eq!(status, 0, "{said}");
    // Written anew, as if a million records before it had been rotated away.
    let anew = real.anew(1_000_001, |body| body.replace("record 3", "nothing"));
    let (status, said) = real.verdict(&lines(&anew), &journal, &["--sender", &real.broker]);
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("no head to hold the log against") && said.contains("1 of older records"), "{said}");
}

#[test]
fn a_log_that_names_another_user_does_not_choose_who_is_believed() {
    let real = real();
    let true_head = head(&real.broker, 5, &hash(&real.lines[4]), "/a");
    let user = format!("\"user\":{{\"id\":\"{}\"", real.broker);
    let anew = real.anew(1, |body| body.replace("record 3", "nothing").replace(&user, "\"user\":{\"id\":\"4711\""));
    for path in ["/a", "/elsewhere"] {
        let journal = true_head.clone() + &head(STRANGER, 11, &hash(&anew[10]), path);
        let (status, said) = real.verdict(&lines(&anew), &journal, &[]);
        assert_eq!(status, 2, "{path}: {said}");
        assert!(said.contains("--sender"), "{path}: {said}");
        let (status, said) = real.verdict(&lines(&anew), &journal, &["--sender", &real.broker]);
        assert_eq!(status, 3, "{path}: {said}");
        // Of the true log it is only said that a stranger sent heads.
        let (status, said) = real.verdict(&lines(&real.lines), &journal, &["--sender", &real.broker]);
        assert_eq!(status, 0, "{path}: {said}");
    }
}

#[test]
fn a_last_record_that_only_some_readers_take_is_none() {
    let real = real();
    let journal = head(&real.broker, 5, &hash(&real.lines[4]), "/a");
    for (value, status) in [("\"\\ud83d\\ude00\"", 0), ("\"\\ud800\"", 1), ("NaN", 1), ("1e999", 1), ("[1,]", 1)] {
        let mut edited = real.lines.clone();
        edited[10] = edited[10].replace("\"outcome\":", &format!("\"new\":{value},\"outcome\":"));
        assert_ne!(edited, real.lines);
        assert_eq!(real.verdict(&lines(&edited), &journal, &[]).0, status, "{value}");
    }
}

#[test]
fn what_stands_in_a_line_too_long_is_no_line() {
    let real = real();
    let journal = head(&real.broker, 5, &hash(&real.lines[4]), "/a");
    // In a log: a record that only a reader in pieces sees.
    let mut hidden = real.lines.clone();
    hidden[10].insert_str(0, &"x".repeat(MAX_LINE + 1));
    let (status, said) = real.verdict(&lines(&hidden), &journal, &[]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("audit.jsonl:11: cut"), "{said}");
    // A record that is longer than any by one byte.
    let mut long = real.lines.clone();
    let filler = "y".repeat(MAX_LINE + 1 - long[10].len());
    long[10] = long[10].replace("record 10", &format!("record 10{filler}"));
    assert_eq!(long[10].len(), MAX_LINE + 1);
    let (status, said) = real.verdict(&lines(&long), &journal, &[]);
    assert_eq!(status, 1, "{said}");
    long[10] = long[10].replacen('y', "", 1);
    let (status, said) = real.verdict(&lines(&long), &journal, &[]);
    assert_eq!(status, 0, "{said}");
    // In a journal: a message of any user's with what looks like a line of a
    // syslog file where a reader in pieces begins anew.
    let text = format!("postern[1]: audit head: record 5, sha256 {}, boot x, missed 0, log /a", "0".repeat(64));
    let message = format!("{{\"_UID\":\"{STRANGER}\",\"MESSAGE\":\"");
    let filler = "z".repeat(MAX_LINE + 1 - message.len());
    let (status, said) = real.verdict(&lines(&real.lines), &format!("{message}{filler}{text}\n{journal}"), &[]);
    assert_eq!(status, 0, "{said}");
}

#[test]
fn heads_of_any_user_reach_no_terminal_and_end_no_verifier() {
    let real = real();
    let good = hash(&real.lines[4]);
    let text = |number: &str, log: &str| {
        format!(
            "Nov 22 18:00:00 guest postern[77]: audit head: record {number}, sha256 {good}, boot x, missed 0, log {log}\n"
        )
    };
    let many = "9".repeat(DIGITS);
    let huge = [text(&many, "/a"), head(STRANGER, &many, &good, "/a"), head(&many, 5, &good, "/a"), text("5", "/a")];
    let (status, said) = real.verdict(&lines(&real.lines), &huge.concat(), &[]);
    assert_eq!(status, 0, "{said}");
    let (status, said) = real.verdict(&lines(&real.lines), &(text("5", "/a\u{1b}[2J") + &text("5", "/b")), &[]);
    assert_eq!(status, 2, "{said}");
    assert!(!said.contains('\u{1b}') && said.contains("\\u{1b}[2J"), "{said}");
    // The log itself, with such a number.
    let mut edited = real.lines.clone();
    edited[10] = edited[10].replacen("\"sequence\":11", &format!("\"sequence\":{many}"), 1);
    assert_eq!(real.verdict(&lines(&edited), &text("5", "/a"), &[]).0, 1);
}
