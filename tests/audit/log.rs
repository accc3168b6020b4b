//! The writer: what it opens and refuses, that it continues a chain, holds and
//! releases.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use postern_broker::log::{Log, LogError, RING_RECORDS, Receipt, prepare_directory};
use postern_core::audit::{Hash, Mounts, Record, Text, ThawCause};
use postern_core::messages::Denial;
use postern_core::policy::Audit;
use postern_tools::audit::{Verified, verify};
use serde_json::Value;
use tempfile::TempDir;

use crate::samples;

pub(crate) struct Place {
    _directory: TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn place() -> Place {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("audit.log");
    Place { _directory: directory, path }
}

pub(crate) fn open(path: &Path) -> Log {
    Log::start(&Audit::at(path.to_owned()), samples::run()).expect("the log opens")
}

pub(crate) fn stopped(reason: &str) -> Record {
    Record::Stopped { reason: Text::from(reason) }
}

pub(crate) fn thawed() -> Record {
    Record::Thawed {
        cause: ThawCause::Host,
        child: None,
        count: 1,
        mounts: Mounts::default(),
        failed: Mounts::default(),
    }
}

pub(crate) fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the log is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

pub(crate) fn actions(path: &Path) -> Vec<String> {
    records(path).iter().map(|record| record["event"]["action"].as_str().expect("an action").to_owned()).collect()
}

pub(crate) fn whole(files: &[&Path]) -> Verified {
    verify(files).unwrap_or_else(|problem| panic!("{problem}"))
}

#[test]
fn a_record_is_in_the_file_when_it_returns() {
    let place = place();
    let mut log = open(&place.path);
    let all = samples::all(b"/srv/\x1b\xff");
    for (index, record) in all.iter().enumerate() {
        let receipt = log.record(record).expect("written");
        assert_eq!(receipt, Receipt::Written(index as u64 + 2));
        let text = fs::read(&place.path).expect("readable");
        assert_eq!(text.split_inclusive(|&byte| byte == b'\n').count(), index + 2);
        assert_eq!(text.last(), Some(&b'\n'));
        let line = text.split(|&byte| byte == b'\n').nth(index + 1).expect("the line");
        assert_eq!(log.head(), Some((index as u64 + 2, Hash::of(line))));
    }
    let verified = whole(&[&place.path]);
    assert_eq!((verified.first, verified.last), (1, all.len() as u64 + 1));
    assert_eq!(fs::metadata(&place.path).expect("there").permissions().mode() & 0o7777, 0o600);
}

#[test]
fn a_restart_continues_the_chain() {
    let place = place();
    for run in 1..=3 {
        let mut log = open(&place.path);
        log.record(&stopped("restart")).expect("written");
        assert_eq!(whole(&[&place.path]).records, 2 * run);
    }
    assert_eq!(actions(&place.path), ["log-opened", "stopped", "log-opened", "stopped", "log-opened", "stopped"],);
    let first = &records(&place.path)[0]["postern"];
    assert_eq!(first["policy_digest"], "ab".repeat(32));
    assert_eq!((&first["version"], &first["privileged"]), (&"0.1.0".into(), &false.into()));
    assert_eq!((&first["landlock_abi"], &first["previous"]), (&7.into(), &"0".repeat(64).into()));
}

#[test]
fn a_rotation_continues_the_chain_whether_postern_runs_or_not() {
    let place = place();
    let [one, two] = [1, 2].map(|number| place.path.with_file_name(format!("audit.log.{number}")));
    let mut log = open(&place.path);
    // Nothing was rotated: nothing happens.
    log.reopen().expect("still there");
    assert_eq!(actions(&place.path), ["log-opened"]);

    fs::rename(&place.path, &two).expect("rotated");
    log.record(&stopped("still to the old file")).expect("written");
    log.reopen().expect("reopened");
    log.record(&stopped("new file")).expect("written");
    assert_eq!(actions(&two), ["log-opened", "stopped"]);
    assert_eq!(actions(&place.path), ["log-opened", "stopped"]);
    assert_eq!(records(&place.path)[0]["event"]["reason"], "rotated");
    drop(log);

    // Rotated while nobody ran.
    fs::rename(&place.path, &one).expect("rotated");
    drop(open(&place.path));
    assert_eq!(whole(&[&two, &one, &place.path]).last, 5);

    // An older file may be gone, a newer one not.
    assert_eq!(whole(&[&one, &place.path]).first, 3);
    assert!(verify(&[&two, &place.path]).is_err());
}

#[test]
fn a_rotation_to_a_file_that_is_not_empty_is_refused() {
    let place = place();
    let mut log = open(&place.path);
    let old = place.path.with_extension("old");
    fs::rename(&place.path, &old).expect("rotated");
    fs::write(&place.path, "not mine\n").expect("written");
    fs::set_permissions(&place.path, Permissions::from_mode(0o600)).expect("mode");
    assert!(matches!(log.reopen(), Err(LogError::NotEmpty(_))));
    log.record(&stopped("to the old file")).expect("written");
    assert_eq!(whole(&[&old]).records, 2);
}

#[test]
fn a_log_that_was_unlinked_is_made_anew() {
    let place = place();
    let mut log = open(&place.path);
    fs::remove_file(&place.path).expect("removed");
    log.record(&stopped("after the removal")).expect("written");
    let records = records(&place.path);
    assert_eq!(records[0]["event"]["reason"], "the file was removed");
    assert_eq!(records[0]["event"]["sequence"], 2);
    assert_eq!(whole(&[&place.path]).records, 2);
}

#[test]
fn what_happens_while_held_keeps_its_order_and_time() {
    let place = place();
    let mut log = open(&place.path);
    log.record(&stopped("before")).expect("written");
    log.hold();
    let before = fs::read(&place.path).expect("readable");
    assert_eq!(log.record(&stopped("first")).expect("waits"), Receipt::Waiting);
    assert_eq!(log.note(&thawed()).expect("waits"), Receipt::Waiting);
    // A rotation during a freeze waits too.
    fs::rename(&place.path, place.path.with_extension("old")).expect("rotated");
    log.reopen().expect("later");
    assert!(!place.path.exists(), "no file is made while held");
    let between = postern_core::audit::Timestamp::now();
    log.release().expect("written");
    log.record(&stopped("after")).expect("written");

    assert_eq!(fs::read(place.path.with_extension("old")).expect("readable"), before);
    let records = records(&place.path);
    let reasons: Vec<_> = records.iter().map(|record| record["event"]["reason"].as_str().expect("one")).collect();
    assert_eq!(reasons, ["rotated", "first", "asked by the host", "after"]);
    let time = |record: &Value| {
        record["@timestamp"].as_str().expect("a time").parse::<postern_core::audit::Timestamp>().expect("RFC 3339")
    };
    assert!(time(&records[1]) < between && time(&records[2]) < between, "the time of the event, not of the writing");
    assert_eq!(whole(&[&place.path.with_extension("old"), &place.path]).last, 6);
}

#[test]
fn a_deferred_log_touches_nothing_before_its_release() {
    let place = place();
    let mut log = Log::start_held(&Audit::at(place.path.clone()), samples::run());
    log.record(&stopped("waits")).expect("waits");
    assert_eq!(log.head(), None);
    assert!(!place.path.exists());
    log.release().expect("written");
    assert_eq!(actions(&place.path), ["log-opened", "stopped"]);

    // A directory that is not there shows at the release, and goes on showing.
    let missing = place.path.with_file_name("missing").join("audit.log");
    let mut log = Log::start_held(&Audit::at(missing.clone()), samples::run());
    log.note(&thawed()).expect("waits");
    assert!(matches!(log.release(), Err(LogError::NoDirectory { .. })));
    assert!(matches!(log.record(&stopped("refused")), Err(LogError::NoDirectory { .. })));
    assert_eq!(log.failures(), 2);
    fs::create_dir(missing.parent().expect("one")).expect("made");
    log.record(&stopped("now")).expect("written");
    assert_eq!(log.failures(), 0);
    assert_eq!(actions(&missing), ["log-opened", "guest-fsfreeze-thaw", "records-lost", "stopped"]);
}

#[test]
fn a_full_ring_counts_what_it_loses_and_keeps_a_place_for_the_thaw() {
    let place = place();
    let mut log = open(&place.path);
    log.hold();
    let mut refused = 0;
    for _ in 0..2 * RING_RECORDS {
        refused += u64::from(matches!(log.record(&stopped("flood")), Err(LogError::Full)));
    }
    assert!(refused > RING_RECORDS as u64);
    assert_eq!(log.note(&thawed()).expect("has a place"), Receipt::Waiting);
    log.release().expect("written");
    let last = records(&place.path).pop().expect("one");
    assert_eq!((&last["event"]["action"], &last["postern"]["lost"]), (&"records-lost".into(), &refused.into()));
    assert_eq!(whole(&[&place.path]).lost, refused);

    // Large records fill it by size.
    log.hold();
    let large = stopped(&"\u{1}".repeat(4096));
    let kept = (0..RING_RECORDS).filter(|_| log.record(&large).is_ok()).count();
    assert!(kept > 10 && kept < 100, "{kept}");
    log.note(&thawed()).expect("has a place");
    log.release().expect("written");
    whole(&[&place.path]);

    // A command that is refused while frozen is noted, not recorded; and what
    // is listed of a flood of them leaves most of the ring to others.
    log.hold();
    let denied = Record::CommandRefused { child: 1, command: Text::from("flood"), because: Denial::WhileFrozen };
    let receipts: Vec<Receipt> = (0..2 * RING_RECORDS).map(|_| log.note(&denied).expect("taken in")).collect();
    let kept = receipts.iter().filter(|&&receipt| receipt == Receipt::Waiting).count();
    assert!(kept > RING_RECORDS / 4 && kept < RING_RECORDS, "{kept}");
    log.note(&thawed()).expect("has a place");
    log.release().expect("written");
    log.note(&stopped("the end")).expect("written");
    let found = records(&place.path);
    assert_eq!(found.iter().filter(|record| record["postern"]["command"] == "flood").count(), kept);
    let repeated = found.iter().find(|record| record["event"]["action"] == "repeated").expect("a record of the rest");
    assert_eq!(repeated["postern"]["counts"]["unknown-command"], 2 * RING_RECORDS as u64 - kept as u64);
    whole(&[&place.path]);
}

fn refused(path: &Path) -> String {
    match Log::start(&Audit::at(path.to_owned()), samples::run()) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn records_that_a_power_cut_left_zeros_in_are_torn_and_not_continued() {
    let place = place();
    let mut log = open(&place.path);
    for number in 0..5 {
        log.record(&stopped(&format!("record {number}"))).expect("written");
    }
    drop(log);
    // From the middle of record 5 to the middle of record 6, the last.
    let mut bytes = fs::read(&place.path).expect("readable");
    let starts: Vec<usize> =
        bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    bytes[starts[3] + 200..starts[4] + 200].fill(0);
    fs::write(&place.path, bytes).expect("written");
    drop(open(&place.path));
    let verified = whole(&[&place.path]);
    assert_eq!((verified.torn, verified.last), (1, 5));
}

#[test]
fn a_file_that_others_lead_or_write_is_refused() {
    let place = place();
    let target = place.path.with_extension("target");
    fs::write(&target, "").expect("written");
    fs::set_permissions(&target, Permissions::from_mode(0o600)).expect("mode");

    symlink(&target, &place.path).expect("linked");
    assert!(refused(&place.path).contains("symbolic link"));
    fs::remove_file(&place.path).expect("removed");

    fs::hard_link(&target, &place.path).expect("linked");
    assert!(refused(&place.path).contains("has 2 names"));
    fs::remove_file(&target).expect("removed");
    drop(open(&place.path));

    for mode in [0o620, 0o602] {
        fs::set_permissions(&place.path, Permissions::from_mode(mode)).expect("mode");
        assert!(refused(&place.path).contains("chmod it to 0600"));
    }
    fs::set_permissions(&place.path, Permissions::from_mode(0o640)).expect("mode");
    drop(open(&place.path));

    let directory = place.path.parent().expect("one");
    for mode in [0o770, 0o707] {
        fs::set_permissions(directory, Permissions::from_mode(mode)).expect("mode");
        assert!(refused(&place.path).contains("chmod it to 0700"));
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700)).expect("mode");

    nix::unistd::mkfifo(&directory.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    fs::create_dir(directory.join("directory")).expect("made");
    assert!(refused(&directory.join("fifo")).contains("not a regular file"));
    assert!(refused(&directory.join("directory")).contains("not a regular file"));
    assert!(refused(Path::new("audit.log")).contains("absolute"));
    assert!(refused(&directory.join("none/audit.log")).contains("install -d -m 0700"));
}

#[test]
fn a_file_without_records_near_its_end_is_refused() {
    let place = place();
    let noise = vec![b'x'; postern_broker::log::tail_bytes_max() + 1];
    fs::write(&place.path, noise).expect("written");
    fs::set_permissions(&place.path, Permissions::from_mode(0o600)).expect("mode");
    assert!(refused(&place.path).contains("move it away"));
}

#[test]
fn a_torn_line_is_explained_by_the_next_start() {
    let full = {
        let place = place();
        drop(open(&place.path));
        fs::read(&place.path).expect("readable")
    };
    // Torn anywhere: in the first record, in the second, at its very end.
    for keep in [1, 20, full.len() - 2, full.len() - 1, full.len() + 1, 2 * full.len() - 30] {
        let place = place();
        let mut log = open(&place.path);
        log.record(&stopped(&"long".repeat(1000))).expect("written");
        drop(log);
        let bytes = fs::read(&place.path).expect("readable");
        let file = OpenOptions::new().write(true).open(&place.path).expect("opens");
        file.set_len(keep as u64).expect("torn");
        // What stands there without its newline may be a whole record.
        let whole_before = verify(&[&place.path]).is_ok();
        assert_eq!(whole_before, keep == full.len() - 1, "{keep}");
        let mut log = open(&place.path);
        log.record(&stopped("after")).expect("written");
        let verified = whole(&[&place.path]);
        assert_eq!(verified.torn, u64::from(!whole_before), "{keep}");
        drop(log);

        // The explanation holds for these bytes only.
        if verified.torn == 1 && keep > 1 {
            let mut changed = fs::read(&place.path).expect("readable");
            changed[keep - 1] ^= 1;
            fs::write(&place.path, changed).expect("written");
            assert!(verify(&[&place.path]).is_err(), "{keep}");
        }
        assert!(bytes.len() > 2 * full.len() - 30);
    }
}

#[test]
fn a_torn_line_at_the_end_of_a_rotated_file_is_explained_in_the_next() {
    let place = place();
    drop(open(&place.path));
    let old = place.path.with_file_name("audit.log.1");
    fs::rename(&place.path, &old).expect("rotated");
    let mut file = OpenOptions::new().append(true).open(&old).expect("opens");
    file.write_all(b"{\"@timestamp\":\"20").expect("written");
    drop(open(&place.path));
    assert_eq!(whole(&[&old, &place.path]).torn, 1);
}

#[test]
fn the_directory_is_prepared_only_where_nobody_else_could_have_been() {
    let place = place();
    let top = place.path.parent().expect("one");
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let log = top.join("postern/audit.log");
    for _ in 0..2 {
        prepare_directory(&log, uid, gid).expect("made, then found");
    }
    assert_eq!(fs::metadata(top.join("postern")).expect("there").permissions().mode() & 0o7777, 0o700);
    drop(open(&log));

    let error = |path: &Path, uid| prepare_directory(path, uid, gid).expect_err("refused").to_string();
    assert!(error(&log, uid + 1).contains("chown it"));
    symlink(top.join("postern"), top.join("link")).expect("linked");
    assert!(error(&top.join("link/audit.log"), uid).contains("symbolic link"));
    fs::write(top.join("file"), "").expect("written");
    assert!(error(&top.join("file/audit.log"), uid).contains("symbolic link or no directory"));
    fs::set_permissions(top.join("postern"), Permissions::from_mode(0o777)).expect("mode");
    assert!(error(&log, uid).contains("chmod it to 0700"));
    assert!(error(&top.join("missing/postern/audit.log"), uid).contains("cannot open"));
    assert!(!top.join("missing").exists(), "only the last component is made");
}
