//! The end of a log that is already there: where the broker goes on, and whether
//! an auditor agrees.
//!
//! The first byte's bits: 1, the lines are numbered and chained anew; 2, where the
//! upper four are none, they stand behind more than the broker reads; 4, the first of two parts is the file
//! that a rotation left.

use std::fs;
use std::path::Path;

use postern_broker::log::{Log, LogError, tail_bytes_max};
use postern_core::audit::{Chain, Record, Run, Text};
use postern_core::catalogue::{Command, CommandSet};
use postern_core::messages::Denial;
use postern_core::policy::Audit;
use postern_tools::audit::{Kind, Problem, Verified, head, verify};
use tempfile::TempDir;

use super::audit::{parts, resealed};

/// A new directory that goes with what is returned, in memory where there is such
/// a filesystem.
///
/// # Panics
/// Where there is no room for one.
#[must_use]
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a directory")
}

/// Takes an input.
///
/// # Panics
/// Where the broker changes a byte that is there, or continues a log so that an
/// auditor finds the break where the broker went on.
pub fn run(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let mut files = if how & 4 == 0 { vec![bytes.to_vec()] } else { parts(bytes, 2) };
    if how & 1 != 0 {
        files = resealed(&files);
    }
    if how & 0xf2 == 2 {
        let mut filled = vec![b'x'; tail_bytes_max() - 100];
        filled.append(&mut files[0]);
        files[0] = filled;
    }
    // What begins as gzip does the auditor's tools refuse, and say how to read it.
    if files.iter().any(|file| file.starts_with(&[0x1f, 0x8b])) {
        return;
    }
    let directory = scratch();
    let log = directory.path().join("audit.jsonl");
    let old = files.pop().unwrap_or_default();
    fs::write(&log, &old).expect("a file");
    let mut paths = vec![log.clone()];
    if let Some(rotated) = files.pop() {
        paths.insert(0, directory.path().join("audit.jsonl.1"));
        fs::write(&paths[0], rotated).expect("a file");
    }
    let before = verify(&paths);
    // The same without what is torn at its end; that, or nothing at all, is what
    // the broker must account for.
    let trimmed = directory.path().join("trimmed");
    fs::write(&trimmed, &old[..end_of_records(&old)]).expect("a file");
    let sound = match verify(&[&paths[..paths.len() - 1], &[trimmed]].concat()) {
        Ok(_) => true,
        Err(Problem::Broken(broken)) => broken.kind == Kind::Empty,
        Err(Problem::Unreadable { .. }) => false,
    };
    let last = head(&paths).expect("readable");
    match Log::start(&Audit::at(log.clone()), facts()) {
        Ok(mut opened) => {
            let refused =
                Record::CommandRefused { child: 1, command: Text::from("guest-exec"), because: Denial::Policy };
            opened.note(&refused).expect("a record");
            let now = fs::read(&log).expect("the log");
            assert!(now.starts_with(&old), "what was there stands as it was");
            assert_eq!(head(&paths).expect("readable"), opened.head(), "the auditor's head is the broker's");
            continued(&paths, &old, before, last.map(|(number, _)| number));
            assert!(!sound || verify(&paths).is_ok(), "what was torn is not accounted for");
        }
        Err(LogError::NoRecord(_)) => assert!(old.len() > tail_bytes_max(), "it was all read"),
        // Numbers are used up.
        Err(other) => panic!("{other}"),
    }
}

/// Where the last record of a file ends, with its newline.
fn end_of_records(file: &[u8]) -> usize {
    let (mut at, mut end) = (0, 0);
    for line in file.split_inclusive(|&byte| byte == b'\n') {
        at += line.len();
        if Chain::after(line.strip_suffix(b"\n").unwrap_or(line)).is_some() {
            end = at;
        }
    }
    end
}

/// What an auditor says of a log that was `before` and has two records more.
fn continued(paths: &[impl AsRef<Path>], old: &[u8], before: Result<Verified, Problem>, last: Option<u64>) {
    let lines = old.split(|&byte| byte == b'\n').count() as u64;
    let after = verify(paths);
    match (before, after) {
        (Ok(before), Ok(after)) => {
            assert_eq!((after.records, after.last), (before.records + 2, before.last + 2));
        }
        // What was torn at the end, or all there was, is accounted for now.
        (Err(Problem::Broken(_)), Ok(after)) => {
            assert!(after.records >= 2 && after.last == last.map_or(2, |last| last + 2), "{last:?}");
        }
        (Ok(_), Err(why)) => panic!("the broker broke a log that was whole: {why}"),
        (Err(Problem::Broken(before)), Err(Problem::Broken(after))) => {
            let new = after.place.file == paths[paths.len() - 1].as_ref() && after.place.line > lines;
            assert!(!new, "{after} and not {before}");
        }
        (before, after) => panic!("{before:?} {after:?}"),
    }
}

fn facts() -> Run {
    Run {
        version: "0.1.0",
        executable: None,
        kernel: "6.1.0".to_owned(),
        policy_digest: [1; 32],
        policy_in_force: [2; 32],
        commands: Command::all().collect(),
        redact: CommandSet::EMPTY,
        file_rules: 0,
        channel: Text::from("unix-listen:/run/host.sock"),
        privileged: false,
        landlock_abi: 7,
        boot_id: "7f0c2c9e-6f0c-4f6f-8d6f-0d3c8a3f0b11".to_owned(),
        pid: 1,
        uid: nix::unistd::geteuid().as_raw(),
        confinement: Vec::new(),
    }
}
