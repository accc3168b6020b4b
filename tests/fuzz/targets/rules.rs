//! File rules and a path → whether it may be opened: what broker and opener ask.
//!
//! Lines: a rule is its rights and types as two digits, then its path, then its
//! exceptions, separated by spaces; the last line is the path that is asked for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use postern_core::policy::rules::{FileRule, Mode, Rights, Types, Verdict, decide, is_canonical};

/// Takes an input.
///
/// # Panics
/// Where the answer is not that of the rules read one by one, or taking something
/// away from the rules gives more.
pub fn run(input: &[u8]) {
    let mut lines: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
    let Some(asked) = lines.pop() else { return };
    let rules: Vec<FileRule> = lines.iter().take(16).filter_map(|line| rule(line)).collect();
    let path = Path::new(OsStr::from_bytes(asked));
    assert_eq!(is_canonical(path), plain(asked));
    for mode in Mode::ALL {
        let (existing, missing) = allowed(&rules, path, mode);
        assert_eq!((existing, missing), model(&rules, asked, mode), "{mode:?}");
        for index in 0..rules.len() {
            let mut fewer = rules.clone();
            let rule = fewer.remove(index);
            // A rule without exceptions only gives.
            if rule.except.is_empty() {
                let (some, others) = allowed(&fewer, path, mode);
                assert!(existing || missing || !(some || others), "{mode:?}: rule {index} takes away");
            }
            let mut more = rules.clone();
            more[index].except.push(PathBuf::from(path));
            let (some, others) = allowed(&more, path, mode);
            assert!(existing >= some && missing >= others, "{mode:?}: an exception gives");
        }
    }
}

fn rule(line: &[u8]) -> Option<FileRule> {
    let mut words = line.split(|&byte| byte == b' ');
    let &[rights, types] = words.next()? else { return None };
    let mut paths = words.map(|word| PathBuf::from(OsStr::from_bytes(word)));
    let path = paths.next().filter(|path| is_canonical(path))?;
    // As the policy's checks demand it.
    let except = paths.take(4).filter(|except| is_canonical(except) && except.starts_with(&path) && *except != path);
    Some(FileRule {
        except: except.collect(),
        path,
        rights: Rights::from_bits(rights & 15)?,
        types: Types::from_bits(types & 15)?,
        optional: false,
    })
}

fn allowed(rules: &[FileRule], path: &Path, mode: Mode) -> (bool, bool) {
    match decide(rules, path, mode) {
        Verdict::Allowed { rule, existing, missing } => {
            assert!(existing || missing);
            assert!(rules[rule].reaches(path));
            (existing, missing)
        }
        Verdict::NotCanonical => {
            assert!(!is_canonical(path));
            (false, false)
        }
        Verdict::Unreached => {
            assert!(!rules.iter().any(|rule| path.starts_with(&rule.path)));
            (false, false)
        }
        Verdict::Excepted { rule } => {
            assert!(rules[rule].except.iter().any(|except| path.starts_with(except)));
            (false, false)
        }
        Verdict::LacksRight { rule } => {
            assert!(rules[rule].reaches(path));
            (false, false)
        }
    }
}

/// Absolute, and no name in it is empty, `.` or `..`; or the root itself.
fn plain(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/") else { return false };
    let mut names = rest.split(|&byte| byte == b'/');
    !path.contains(&0) && (rest.is_empty() || names.all(|name| !matches!(name, b"" | b"." | b"..")))
}

/// Whether `path` is `place` or beneath it, by bytes.
fn beneath(path: &[u8], place: &Path) -> bool {
    match place.as_os_str().as_bytes() {
        b"/" => true,
        place => path.strip_prefix(place).is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
    }
}

/// Of the rules for the longest path that say something, the first that gives
/// the mode, if no exception of a rule for that path or a longer one is in force.
fn model(rules: &[FileRule], path: &[u8], mode: Mode) -> (bool, bool) {
    if !plain(path) {
        return (false, false);
    }
    let mut granting: Option<&FileRule> = None;
    let mut excepting: Option<usize> = None;
    for rule in rules.iter().filter(|rule| beneath(path, &rule.path)) {
        let length = rule.path.as_os_str().len();
        if rule.except.iter().any(|except| beneath(path, except)) {
            excepting = excepting.max(Some(length));
        } else if gives(rule.rights, mode) != (false, false)
            && granting.is_none_or(|best| best.path.as_os_str().len() < length)
        {
            granting = Some(rule);
        }
    }
    match granting {
        Some(rule) if excepting.is_none_or(|length| length < rule.path.as_os_str().len()) => gives(rule.rights, mode),
        _ => (false, false),
    }
}

/// What the rights give for a mode, on an existing file and on a missing one.
fn gives(rights: Rights, mode: Mode) -> (bool, bool) {
    let has = |right| rights.contains(right);
    let (read, write, create, append) =
        (has(Rights::READ), has(Rights::WRITE), has(Rights::CREATE), has(Rights::APPEND));
    match mode {
        Mode::Read => (read, false),
        Mode::Write => (write, create),
        Mode::Append => (write || append, create),
        Mode::ReadPlus => (read && write, false),
        Mode::WritePlus => (read && write, read && create),
        Mode::AppendPlus => (read && (write || append), read && create),
    }
}
