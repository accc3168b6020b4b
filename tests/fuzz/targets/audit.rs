//! The auditor's reading of log files: verify, head, show, report, anchors.
//!
//! The first byte's bits: 1, the lines are numbered and chained anew; 2, 4 and 8,
//! which records are shown; where the upper two are none, there are reports, which
//! take the most time. The files stand behind each other, with a line that is
//! `=` between them; the last of several is one of heads that left the machine.

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use postern_core::audit::{Hash, Seal};
use postern_tools::audit::{Against, Doubt, Filter, Outcome, Problem, head, report, table_for, verify, verify_against};

use super::text::assert_harmless;

/// Takes an input.
///
/// # Panics
/// Where the readers contradict each other, or what is shown could do something
/// to a terminal or a browser.
pub fn run(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let mut files = parts(bytes, 3);
    let heads = if files.len() > 1 { files.pop() } else { None };
    if how & 1 != 0 {
        files = resealed(&files);
    }
    let held: Vec<(PathBuf, OwnedFd)> = files.iter().map(|bytes| file(bytes)).collect();
    let paths: Vec<&PathBuf> = held.iter().map(|(path, _)| path).collect();

    let verdict = verify(&paths);
    let last = head(&paths);
    match &verdict {
        Ok(verified) => {
            assert_eq!(last.expect("readable"), Some((verified.last, verified.head)));
            assert_eq!(verified.last - verified.first + 1, verified.records);
            assert_harmless(&verified.to_string());
        }
        Err(Problem::Broken(broken)) => {
            let lines = files.iter().zip(&paths).find(|(_, path)| ***path == broken.place.file);
            let lines = lines.map(|(bytes, _)| bytes.split(|&byte| byte == b'\n').count() as u64);
            // A line is told by its number; of an empty log the first.
            assert!(lines.is_some_and(|lines| broken.place.line <= lines), "{broken}");
            last.expect("readable");
        }
        Err(Problem::Unreadable { .. }) => assert!(last.is_err() || files.len() > 1),
    }
    for as_html in [false, true].into_iter().filter(|_| how >> 6 == 0) {
        let mut out = Vec::new();
        let owned: Vec<PathBuf> = paths.iter().map(|path| (*path).clone()).collect();
        if report(&owned, as_html, usize::from(how) % 7, &mut out).is_ok() {
            let text = String::from_utf8(out).expect("a report is text");
            assert_harmless(&text);
            if as_html {
                balanced(&text);
            }
        }
    }
    shown(&files.concat(), how);
    if let Some(heads) = heads {
        let (anchors, _held) = file(&heads);
        let against = Against { anchors: vec![anchors], sender: None, log: None };
        match verify_against(&paths, &against) {
            Ok((verified, anchored)) => {
                assert_eq!(Some(&verified), verdict.as_ref().ok());
                assert!(anchored.agree > 0);
                assert_harmless(&anchored.to_string());
            }
            Err(doubt) => {
                assert!(!matches!(doubt, Doubt::Problem(Problem::Broken(_))) || verdict.is_err(), "{doubt}");
                assert_harmless(&doubt.to_string());
            }
        }
    }
}

fn shown(log: &[u8], how: u8) {
    let filter = match how >> 1 & 3 {
        0 => Filter::default(),
        1 => Filter { path: vec!["/srv*".to_owned()], ..Filter::default() },
        2 => Filter { result: vec![Outcome::Granted], number: Some((2, 9)), ..Filter::default() },
        _ => Filter { since: "2025-01-02T03:04:05Z".parse().ok(), denied: how & 8 != 0, ..Filter::default() },
    };
    let whole = table_for(log, &filter, None).expect("memory reads");
    assert_harmless(&whole);
    let cut = table_for(log, &filter, Some(40)).expect("memory reads");
    assert_eq!(cut.lines().count(), whole.lines().count());
    assert!(cut.lines().all(|line| line.chars().count() <= 40));
    let all = table_for(log, &Filter::default(), None).expect("memory reads");
    assert!(whole.lines().count() <= all.lines().count());
}

/// A file that is nowhere but in memory, and its name.
fn file(bytes: &[u8]) -> (PathBuf, OwnedFd) {
    let file = memfd_create(c"log", MFdFlags::MFD_CLOEXEC).expect("memory");
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).expect("room");
    let file = OwnedFd::from(file);
    (PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), file)
}

/// The input cut into at most so many files.
#[must_use]
pub fn parts(bytes: &[u8], most: usize) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if line == b"=\n" && parts.len() < most {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.extend_from_slice(line);
        }
    }
    parts
}

/// Files whose records are numbered and chained as the broker would have, whatever
/// they say: no fuzzer finds a SHA-256.
#[must_use]
pub fn resealed(files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut next, mut previous) = (None, Hash::NONE);
    let mut resealed = Vec::new();
    for bytes in files {
        let mut file = Vec::new();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let Some(seal) = Seal::of(line.strip_suffix(b"\n").unwrap_or(line)) else {
                file.extend_from_slice(line);
                continue;
            };
            let number = next.unwrap_or(seal.sequence);
            let mut record =
                [&line[..44], b"\"event\":{\"sequence\":", number.to_string().as_bytes(), b",", seal.body].concat();
            if let Some((bytes, hash)) = seal.torn {
                record.extend(format!("\"torn\":{{\"bytes\":{bytes},\"sha256\":\"{hash}\"}},").bytes());
            }
            record.extend(format!("\"previous\":\"{previous}\"}}}}").bytes());
            (next, previous) = (number.checked_add(1), Hash::of(&record));
            file.extend(record);
            if line.ends_with(b"\n") {
                file.push(b'\n');
            }
        }
        resealed.push(file);
    }
    resealed
}

/// Every tag of a page is one of ours and closed.
fn balanced(page: &str) {
    const ALONE: [&str; 3] = ["!doctype", "meta", "br"];
    let (before, behind) = page.split_once("<style>").expect("a page has a style");
    let (_, behind) = behind.split_once("</style>").expect("a page has a style");
    let page = [before, behind].concat();
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("a tag does not end: {tag}"));
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or_default();
        assert!(!name.is_empty() && !["script", "img", "a", "iframe", "link"].contains(&name), "{tag}");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') && !ALONE.contains(&name.to_lowercase().as_str()) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}
