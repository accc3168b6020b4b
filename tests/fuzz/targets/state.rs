//! Files in the state directory: what an earlier run left frozen, and which
//! handles it gave out.
//!
//! The first byte says which file it is.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use postern_broker::fsfreeze::{Error, HANDLES_FILE, Handles, remember};

use super::log_end::scratch;

/// Takes an input.
///
/// # Panics
/// Where what was read is something else when it is written again, a mistake has
/// no line, or a handle is given out that may have been given before.
pub fn run(input: &[u8]) {
    match input.split_first() {
        Some((0, content)) => handles(content),
        Some((_, content)) => frozen(content),
        None => {}
    }
}

fn frozen(content: &[u8]) {
    match remember::parse(content) {
        Ok((boot, remembered)) => {
            let written = remember::format(&boot, &remembered);
            assert_eq!(remember::parse(written.as_bytes()), Ok((boot, remembered)));
            // A file that was cut is none; a long one is tried at some places.
            for end in (0..content.len()).rev().step_by(1 + content.len() / 200) {
                assert!(remember::parse(&content[..end]).is_err(), "{end}");
            }
        }
        Err(line) => {
            let lines = content.split(|&byte| byte == b'\n').count();
            assert!((1..=lines + 1).contains(&line), "line {line} of {lines}");
        }
    }
}

fn handles(content: &[u8]) {
    let directory = scratch();
    fs::write(directory.path().join(HANDLES_FILE), content).expect("a file");
    let open = || Handles::new(OwnedFd::from(File::open(directory.path()).expect("a directory")));
    let text = std::str::from_utf8(content).ok().and_then(|text| text.strip_suffix('\n'));
    match open() {
        Ok(mut handles) => {
            let reserved: i64 = text.expect("a line").parse().expect("a number");
            let Ok(first) = handles.give() else { return assert!(reserved > i64::MAX - 1_000_000) };
            assert_eq!(first, reserved, "none that an earlier run may have given");
            let next = open().expect("our own file").give().ok();
            assert!(next.is_none_or(|next| next > first + 1000), "{next:?}");
        }
        Err(Error::Malformed { line, .. }) => assert_eq!(line, 1),
        Err(other) => panic!("{other}"),
    }
}
