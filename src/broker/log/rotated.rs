//! The log's other files: which they are, what they take together, and which
//! of them are too many.
//!
//! What the broker sets aside gets the number of its first record, in twelve
//! digits: `audit.jsonl.000000004711`. Such a name is never given twice and no
//! file is renamed again, so that nothing can be lost to a logrotate that
//! renames beside it (`audit.jsonl.1` and so on, over whatever stands there),
//! whoever compresses a file keeps its name in front, and names sort as the
//! records do.
//!
//! Trust: names come from the directory, which only root and the broker's
//! account can write. Nothing here touches the disk. Caller: the log.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime};

/// Digits of a number in a name: enough for a thousand records a second in
/// thirty years. A larger number takes more.
const DIGITS: usize = 12;

/// One of the log's files, the log itself too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: CString,
    /// Number of its first record, if the broker set it aside.
    pub(super) first: Option<u64>,
    /// In bytes.
    pub(super) size: u64,
    /// When it was last written.
    pub(super) written: SystemTime,
}

/// The name under which the log is set aside.
pub(super) fn name(log: &OsStr, first: u64) -> CString {
    let mut name = log.as_bytes().to_vec();
    name.extend_from_slice(format!(".{first:0DIGITS$}").as_bytes());
    // A path of the policy holds no NUL.
    CString::new(name).unwrap_or_default()
}

/// Whether `name` is one of the log's files: the log, or a name that begins as
/// it does. Rotated, compressed, dated: all of them take room.
pub(super) fn is_member(log: &OsStr, name: &[u8]) -> bool {
    name.strip_prefix(log.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'.' | b'-')))
}

/// The number in a name that [`name`] made, even if a compressor has appended
/// to it since.
pub(super) fn first_of(log: &OsStr, name: &[u8]) -> Option<u64> {
    let rest = name.strip_prefix(log.as_bytes())?.strip_prefix(b".")?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(digits);
    let is_suffix = suffix.is_empty() || (suffix[0] == b'.' && suffix.iter().all(u8::is_ascii_graphic));
    // Twelve, or more without a zero in front.
    let is_ours = digits == DIGITS || (digits > DIGITS && number[0] != b'0');
    std::str::from_utf8(number).ok()?.parse().ok().filter(|_| is_ours && is_suffix)
}

/// The files to remove, oldest first: those that the broker set aside beyond
/// the `keep` youngest, and only where they were last written `keep_time` ago.
pub(super) fn surplus(mut members: Vec<Member>, keep: usize, keep_time: Duration, now: SystemTime) -> Vec<Member> {
    members.retain(|member| member.first.is_some());
    members.sort_by_key(|member| member.first);
    members.truncate(members.len().saturating_sub(keep));
    members.retain(|member| now.duration_since(member.written).is_ok_and(|age| age >= keep_time));
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn log() -> &'static OsStr {
        OsStr::new("audit.jsonl")
    }

    #[test]
    fn a_name_says_the_first_record_and_sorts_as_records_do() {
        let numbers = [1, 9, 10, 4711, 999_999_999_999, 1_000_000_000_000, u64::MAX];
        for number in numbers {
            let name = name(log(), number);
            assert_eq!(first_of(log(), name.to_bytes()), Some(number));
            for suffix in [".gz", ".zst", ".tar.xz"] {
                assert_eq!(first_of(log(), &[name.to_bytes(), suffix.as_bytes()].concat()), Some(number));
            }
        }
        assert!(numbers[..5].windows(2).all(|pair| name(log(), pair[0]) < name(log(), pair[1])));
        // logrotate's, and others'.
        for other in [
            "audit.jsonl",
            "audit.jsonl.1",
            "audit.jsonl.52.gz",
            "audit.jsonl-20250102",
            "audit.jsonl.20250102",
            "audit.jsonl.00000000001",
            "audit.jsonl.0000000000001",
            "audit.jsonl.000000000001~",
            "audit.jsonl.000000000001.\n",
            "audit.jsonl.99999999999999999999",
            "audit.json.000000000001",
            "other.audit.jsonl.000000000001",
        ] {
            assert_eq!(first_of(log(), other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn every_file_of_the_log_takes_room_and_no_other() {
        for name in
            ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2.gz", "audit.jsonl-20250102", "audit.jsonl.000000000001"]
        {
            assert!(is_member(log(), name.as_bytes()), "{name}");
        }
        for name in ["audit.json", "audit.jsonlines", "agent.log", "xaudit.jsonl", ""] {
            assert!(!is_member(log(), name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_what_is_too_many_and_too_old_is_removed_oldest_first() {
        let now = SystemTime::UNIX_EPOCH + 1000 * DAY;
        let member = |first: Option<u64>, days: u32| Member {
            name: name(log(), first.unwrap_or(0)),
            first,
            size: 1,
            written: now - days * DAY,
        };
        let removed = |members: &[Member], keep, days: u32| -> Vec<u64> {
            let surplus = surplus(members.to_vec(), keep, days * DAY, now);
            surplus.into_iter().filter_map(|member| member.first).collect()
        };
        // The log, logrotate's files, and five of ours in no order.
        let all = [
            member(None, 0),
            member(Some(500), 10),
            member(Some(100), 50),
            member(None, 900),
            member(Some(400), 20),
            member(Some(300), 30),
            member(Some(200), 40),
        ];
        assert_eq!(removed(&all, 2, 30), [100, 200, 300]);
        assert_eq!(removed(&all, 2, 31), [100, 200]);
        assert_eq!(removed(&all, 4, 0), [100]);
        assert_eq!(removed(&all, 5, 0), [0; 0]);
        assert_eq!(removed(&all, 1, 60), [0; 0]);
        // One that was written in what is now the future is not old.
        let mut early = member(Some(1), 0);
        early.written = now + DAY;
        assert_eq!(removed(&[early, member(Some(2), 0)], 1, 0), [0; 0]);
    }
}
