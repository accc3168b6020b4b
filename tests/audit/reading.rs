//! `postern audit show`: which records, in which form, when.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use postern_tools::audit::{Filter, Outcome, table, table_for};

use crate::binary::BINARY;
use crate::log::{open, place, records, stopped, whole};
use crate::samples;
use crate::story::{Shapes, Story, days};

/// Far beyond what anything here takes: who waits longer hangs.
const HANG: Duration = Duration::from_secs(120);

pub(crate) fn postern(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("audit").args(arguments);
    command
}

pub(crate) fn run(arguments: &[&str], files: &[&Path]) -> Output {
    postern(arguments).args(files).output().expect("it runs")
}

/// A process that is gone at the end.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn shown(path: &Path, filter: &Filter) -> Vec<String> {
    let file = fs::read(path).expect("readable");
    let table = table_for(Cursor::new(file), filter, None).expect("shown");
    table.lines().skip(1).map(|line| line.split_whitespace().nth(3).expect("an event").to_owned()).collect()
}

#[test]
fn show_filters_by_what_a_record_says() {
    let place = place();
    let mut log = open(&place.path);
    let samples = samples::all(b"/srv/data/file");
    for record in &samples {
        log.record(record).expect("written");
    }
    let all = records(&place.path);
    let shown = |filter: &Filter| shown(&place.path, filter);
    // Facts that were told are many and say little.
    let facts = Filter { facts: true, ..Filter::default() };
    assert_eq!(shown(&facts).len(), samples.len() + 1);
    let told = Filter { event: vec!["fact-told".into()], ..Filter::default() };
    assert_eq!(shown(&told), ["fact-told"; 2]);
    assert_eq!(shown(&Filter::default()).len(), samples.len() + 1 - 2);
    let count = |fits: &dyn Fn(&serde_json::Value) -> bool| all.iter().filter(|record| fits(record)).count();

    let opens = Filter { event: vec!["guest-file-open".into()], ..Filter::default() };
    assert_eq!(shown(&opens).len(), count(&|record| record["event"]["action"] == "guest-file-open"));
    let two = Filter { event: vec!["guest-file-open".into(), "stopped".into()], ..Filter::default() };
    assert_eq!(shown(&two).len(), shown(&opens).len() + 1);
    let refused = Filter { path: vec!["/srv/data".into()], result: vec![Outcome::Failure], ..Filter::default() };
    assert_eq!(shown(&refused), ["guest-file-open"; 6 + 5]);
    let denied = shown(&Filter { denied: true, ..Filter::default() });
    assert_eq!(denied.len(), count(&|record| record["postern"]["stage"] == "refused"));
    assert_eq!(denied, shown(&Filter { result: vec![Outcome::Refused], ..Filter::default() }));
    let prefix = |path: &str| shown(&Filter { path: vec![path.into()], ..Filter::default() });
    assert_eq!(prefix("/srv/dat"), Vec::<String>::new(), "a prefix ends at a slash");
    assert_eq!(prefix("/srv/dat*"), prefix("/srv/data"));
    assert_eq!(prefix("*/file"), prefix("/srv"));
    let handle = shown(&Filter { handle: vec![1001], ..Filter::default() });
    assert_eq!(handle.len(), count(&|record| record["postern"]["handle"] == 1001));
    let worker = shown(&Filter { worker: vec![1], ..Filter::default() });
    assert!(worker.contains(&"process-started".to_owned()) && worker.contains(&"malformed-frame".to_owned()));
    assert!(worker.len() < samples.len());
    assert_eq!(shown(&Filter { number: Some((2, 4)), ..Filter::default() }).len(), 3);

    let now = postern_core::audit::Timestamp::now();
    assert_eq!(shown(&Filter { facts: true, until: Some(now), ..Filter::default() }).len(), all.len());
    assert_eq!(shown(&Filter { since: Some(now), ..Filter::default() }), Vec::<String>::new());
    let middle: postern_core::audit::Timestamp =
        all[all.len() / 2]["@timestamp"].as_str().expect("a time").parse().expect("a time");
    let since = shown(&Filter { facts: true, since: Some(middle), ..Filter::default() }).len();
    let until = shown(&Filter { facts: true, until: Some(middle), ..Filter::default() }).len();
    assert_eq!(since + until, all.len());
    assert!(since > 0 && until > 0);
}

#[test]
fn a_table_reads_so() {
    let line = "{\"@timestamp\":\"2025-01-02T03:04:05.678901Z\",\"event\":{\"sequence\":7,\
        \"action\":\"guest-file-open\",\"outcome\":\"success\"},\"file\":{\"path\":\"/srv/b\\u001b\",\"inode\":\"12\"},\
        \"postern\":{\"stage\":\"granted\",\"requested\":\"/srv/a\",\"handle\":1000}}\n\x1b[2Jnoise\n";
    assert_eq!(
        table(Cursor::new(line)).expect("shown").replace(' ', "·"),
        "TIME·(UTC)··············NUMBER·EVENT······················RESULT···DETAILS\n\
         2025-01-02·03:04:05.678······7·guest-file-open············granted··/srv/a,·→·/srv/b\\u{1b},·handle·1000,·inode·12\n\
         ·······························(no·record)·························\\u{1b}[2Jnoise\n"
    );
}

#[test]
fn lines_are_shown_byte_for_byte() {
    let place = place();
    let mut bytes = Vec::new();
    days(&mut bytes);
    let half = bytes[..bytes.len() / 2].iter().rposition(|byte| *byte == b'\n').expect("a line") + 1;
    let (older, newer) = (place.path.with_extension("log.1"), place.path.clone());
    fs::write(&older, &bytes[..half]).expect("written");
    // As a crash leaves it.
    fs::write(&newer, [&bytes[half..], b"\x1b[2J\xff noise"].concat()).expect("written");
    // In whatever order a shell names them.
    for files in [[&*older, &*newer], [&*newer, &*older]] {
        let all = run(&["show", "--json"], &files);
        assert!(all.status.success());
        assert!(all.stdout == [&bytes[..], b"\x1b[2J\xff noise"].concat());
    }
    let denied = run(&["show", "--json", "--denied"], &[&older, &newer]);
    let lines: Vec<_> = denied.stdout.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(
        lines.len() > 60 && lines.iter().all(|line| bytes.split_inclusive(|byte| *byte == b'\n').any(|l| l == *line))
    );

    // What is shown can be verified.
    fs::write(&newer, &bytes[half..]).expect("written");
    let mut verify =
        Running(postern(&["verify", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs"));
    let all = run(&["show", "--json"], &[&older, &newer]);
    verify.0.stdin.take().expect("a pipe").write_all(&all.stdout).expect("written");
    assert!(verify.0.wait().expect("it ends").success());
    // The table has as many rows, and a heading.
    let table = run(&["show"], &[&newer, &older]);
    let lines = |bytes: &[u8]| bytes.split(|byte| *byte == b'\n').count();
    assert_eq!(lines(&table.stdout), lines(&bytes) + 1);
}

#[test]
fn what_is_compressed_is_named_with_the_command_that_reads_it() {
    let place = place();
    fs::write(&place.path, b"\x1f\x8b\x08\0\0\0\0\0\0\x03").expect("written");
    for what in ["show", "report", "verify"] {
        let output = run(&[what], &[&place.path]);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("zcat"), "{error}");
    }
}

/// Lines of a process's output as they come.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let stdout = child.stdout.take().expect("a pipe");
    let (sender, lines) = channel();
    thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

fn spawned(arguments: &[&str], file: &Path) -> Running {
    let stdin = if file == Path::new("-") { Stdio::piped() } else { Stdio::null() };
    Running(postern(arguments).arg(file).stdin(stdin).stdout(Stdio::piped()).spawn().expect("it runs"))
}

#[test]
fn the_first_records_of_a_pipe_are_shown_while_it_is_open() {
    let mut child = spawned(&["show", "--event", "stopped"], Path::new("-"));
    let lines = lines_of(&mut child.0);
    let place = place();
    open(&place.path).record(&stopped("at once")).expect("written");
    let mut stdin = child.0.stdin.take().expect("a pipe");
    stdin.write_all(&fs::read(&place.path).expect("readable")).expect("written");
    assert!(lines.recv_timeout(HANG).expect("a heading").starts_with("TIME"));
    assert!(lines.recv_timeout(HANG).expect("a row").contains("at once"));
    drop(stdin);
    assert!(child.0.wait().expect("it ends").success());
}

#[test]
fn following_goes_on_over_rotations() {
    let place = place();
    let mut log = open(&place.path);
    let mut child = spawned(&["show", "--follow", "--json"], &place.path);
    let lines = lines_of(&mut child.0);
    // It has begun: what comes now must be there, whatever becomes of the file.
    let first = lines.recv_timeout(HANG).expect("a record");
    let (mut files, mut followed) = (Vec::new(), vec![first]);
    for round in 0..6 {
        for number in 0..40 {
            log.record(&stopped(&format!("{round} {number}"))).expect("written");
        }
        let old = place.path.with_extension(format!("log.{round}"));
        fs::rename(&place.path, &old).expect("rotated");
        files.push(old);
        // Still to the renamed file, then to the new one.
        log.record(&stopped("late")).expect("written");
        log.reopen().expect("reopened");
        // Now and then it is far behind, now and then it waits.
        for _ in 0..if round == 2 { 3 * 42 } else { 0 } {
            followed.push(lines.recv_timeout(HANG).expect("a record"));
        }
    }
    files.push(place.path.clone());
    let text = |file: &PathBuf| fs::read_to_string(file).expect("UTF-8");
    let written: Vec<String> =
        files.iter().flat_map(|file| text(file).lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    followed.extend((followed.len()..written.len()).map(|_| lines.recv_timeout(HANG).expect("a record")));
    assert!(followed == written, "{} records followed, {} written", followed.len(), written.len());
    // A line that comes in pieces is shown when it is whole.
    let mut file = OpenOptions::new().append(true).open(&place.path).expect("open");
    let mut story = Story::new(Vec::new());
    story.number = 10_000;
    story.tell(0, Shapes::with(b"in pieces").find("stopped", &[])).expect("told");
    let (one, other) = story.out.split_at(90);
    file.write_all(one).expect("written");
    assert!(lines.try_recv().is_err());
    file.write_all(other).expect("written");
    assert_eq!(lines.recv_timeout(HANG).expect("a record").into_bytes(), other_line(&story.out));
    let paths: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    assert!(whole(&paths[..6]).records > 240, "the control: records were followed");
}

fn other_line(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").expect("a line")
}

#[test]
fn following_says_what_it_missed_and_ends_with_its_reader() {
    let place = place();
    drop(open(&place.path));
    let mut command = postern(&["show", "--follow"]);
    let mut child =
        Running(command.arg(&place.path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs"));
    let mut out = BufReader::new(child.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    for _ in 0..2 {
        out.read_line(&mut line).expect("a row");
    }
    // Another file of the same log takes its place, and some are missing.
    let next = place.path.with_extension("next");
    let mut story = Story::new(File::create(&next).expect("created"));
    story.number = 41;
    story.tell(0, Shapes::with(b"another").find("stopped", &[])).expect("told");
    fs::rename(&next, &place.path).expect("renamed");
    out.read_line(&mut line).expect("a row");
    assert!(line.contains("42 stopped"), "{line}");
    let mut errors = BufReader::new(child.0.stderr.take().expect("a pipe"));
    let mut said = String::new();
    errors.read_line(&mut said).expect("a line");
    assert!(said.starts_with("records 2 to 41 are not shown"), "{said}");
    drop(out);
    assert!(child.0.wait().expect("it ends").success());
}
