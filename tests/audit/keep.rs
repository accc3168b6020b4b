//! Living with the log: rotation by the broker and by others at once, what is
//! kept and what goes, the room that opens find spent, floods, the disk.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use postern_broker::log::{BURST_BYTES, BYTES_PER_SECOND, KINDS, Log, LogError, OWN_PART, Receipt, SPARE_BYTES};
use postern_core::audit::{Body, Chain, Mounts, Record, Text, ThawCause, Timestamp, sequence_of};
use postern_core::messages::{Barrier, Denial};
use postern_core::policy::rules::Mode;
use postern_core::policy::{Audit, Fsync};
use serde_json::Value;

use crate::log::{Place, actions, place, records, stopped, thawed, whole};
use crate::samples;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A log that rotates at so many bytes, and keeps everything.
fn rotating(place: &Place, bytes: u64) -> Audit {
    Audit { rotate_bytes: Some(bytes), ..Audit::at(place.path.clone()) }
}

fn start(audit: &Audit) -> Log {
    Log::start(audit, samples::run()).expect("the log opens")
}

fn asked() -> Record {
    Record::OpenAsked { child: 1, requested: Text::from("/srv/a"), mode: Mode::Write, rule: 0 }
}

fn refused() -> Record {
    Record::OpenRefused {
        child: 1,
        requested: Text::from("/srv/a"),
        mode: Mode::Write,
        by: Barrier::Audit,
        reason: Text::from("the audit log does not take its record"),
        rule: Some(0),
        errno: None,
        resolved: None,
    }
}

fn denied() -> Record {
    Record::CommandRefused { child: 1, command: Text::from("guest-exec"), because: Denial::Policy }
}

/// Every file of the log, oldest first: by the number of its first record.
fn files(place: &Place) -> Vec<PathBuf> {
    let mut files: Vec<(u64, PathBuf)> = fs::read_dir(place.path.parent().expect("one"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter_map(|path| Some((sequence_of(fs::read(&path).ok()?.split(|&byte| byte == b'\n').next()?)?, path)))
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

/// The files that the broker set aside, oldest first.
fn aside(place: &Place) -> Vec<PathBuf> {
    let digits = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        extension.len() == 12 && extension.bytes().all(|byte| byte.is_ascii_digit())
    };
    files(place).into_iter().filter(digits).collect()
}

fn paths(files: &[PathBuf]) -> Vec<&Path> {
    files.iter().map(PathBuf::as_path).collect()
}

// ---- rotation ------------------------------------------------------------------------

/// What logrotate does, without the signal: each file gets the next number, over
/// whatever stands there, then the log becomes number 1. Whether there was one.
fn logrotate(log: &Path) -> bool {
    let numbered = |number: u32| log.with_file_name(format!("audit.log.{number}"));
    let last = (1..10_000).find(|&number| !numbered(number).exists()).expect("a free number");
    for number in (1..last).rev() {
        fs::rename(numbered(number), numbered(number + 1)).expect("renamed");
    }
    match fs::rename(log, numbered(1)) {
        Ok(()) => true,
        // Between the broker's rename and its next file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn two_who_rotate_at_once_lose_nothing_and_double_nothing() {
    const RECORDS: u64 = 110_000;
    let place = place();
    let mut log = start(&rotating(&place, 200 << 10));
    let (signal, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let rotations = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut rotations = 0;
            // Just before the broker would, and in the middle.
            for size in [190, 60, 120, 195].into_iter().cycle() {
                let large = || fs::metadata(&place.path).is_ok_and(|log| log.len() >= size << 10);
                // One signal for each, as logrotate sends it.
                while signal.load(Ordering::Acquire) || !large() || !logrotate(&place.path) {
                    if done.load(Ordering::Acquire) {
                        return rotations;
                    }
                    thread::yield_now();
                }
                rotations += 1;
                signal.store(true, Ordering::Release);
            }
            rotations
        });
        for number in 0..RECORDS {
            log.record(&stopped(&format!("number {number}"))).expect("written");
            // The signal comes when it comes: some records later.
            if number % 97 == 0 && signal.load(Ordering::Acquire) {
                log.reopen().expect("reopened");
                signal.store(false, Ordering::Release);
            }
        }
        done.store(true, Ordering::Release);
        other.join().expect("the other")
    });
    assert!(log.trouble().is_none());
    drop(log);
    let (all, ours) = (files(&place), aside(&place).len());
    assert!(rotations > 10 && ours > 10, "{rotations} by logrotate, {ours} by the broker");
    let verified = whole(&paths(&all));
    assert_eq!((verified.first, verified.records), (1, verified.last), "each record once");
    let mut numbers = Vec::new();
    let mut opened = 0;
    for file in &all {
        for record in records(file) {
            match record["event"]["reason"].as_str().and_then(|reason| reason.strip_prefix("number ")) {
                Some(number) => numbers.push(number.parse::<u64>().expect("a number")),
                None => opened += u64::from(record["event"]["action"] == "log-opened"),
            }
        }
    }
    assert!(numbers.iter().copied().eq(0..RECORDS), "{} numbers", numbers.len());
    assert_eq!(verified.records, RECORDS + opened, "and nothing else");
    println!(
        "{} records in {} files, {rotations} of them by rename, {ours} by the broker",
        verified.records,
        all.len()
    );
}

#[test]
fn a_full_file_is_set_aside_under_the_number_of_its_first_record() {
    let place = place();
    let audit = rotating(&place, 4096);
    let mut log = start(&audit);
    for number in 0..100 {
        log.record(&stopped(&format!("number {number}"))).expect("written");
    }
    let set_aside = aside(&place);
    assert!(set_aside.len() > 5, "{}", set_aside.len());
    for file in &set_aside {
        let size = fs::metadata(file).expect("there").len();
        assert!((4096..4096 + 1024).contains(&size), "{size}");
        let first = records(file)[0]["event"]["sequence"].as_u64().expect("a number");
        assert_eq!(file.extension().and_then(OsStr::to_str), Some(format!("{first:012}").as_str()));
    }
    // A restart goes on where it was, and with the same file's number.
    drop(log);
    let before = files(&place).len();
    let mut log = start(&audit);
    assert_eq!(files(&place).len(), before);
    for number in 0..30 {
        log.record(&stopped(&format!("again {number}"))).expect("written");
    }
    for file in aside(&place) {
        let first = records(&file)[0]["event"]["sequence"].as_u64().expect("a number");
        assert_eq!(file.extension().and_then(OsStr::to_str), Some(format!("{first:012}").as_str()));
    }
    whole(&paths(&files(&place)));
    // A crash between the rename and the next file: the chain goes on from the
    // youngest, not from what logrotate once left.
    drop(log);
    fs::copy(aside(&place).first().expect("one"), place.path.with_extension("log.1")).expect("copied");
    let last = files(&place).last().expect("one").clone();
    assert_eq!(last, place.path);
    let next = records(&last)[0]["event"]["sequence"].as_u64().expect("a number");
    fs::rename(&last, place.path.with_extension(format!("log.{next:012}"))).expect("renamed");
    drop(start(&audit));
    fs::remove_file(place.path.with_extension("log.1")).expect("removed");
    whole(&paths(&files(&place)));
}

#[test]
fn a_rotation_never_happens_while_held_and_never_over_another_file() {
    let place = place();
    let audit = rotating(&place, 4096);
    let mut log = start(&audit);
    log.hold();
    for number in 0..50 {
        log.record(&stopped(&format!("number {number}"))).expect("waits");
    }
    assert_eq!(files(&place).len(), 1);
    // Somebody else has that name, and the next that would do.
    let taken = place.path.with_extension("log.000000000001");
    fs::write(&taken, "somebody's").expect("written");
    log.release().expect("written");
    assert_eq!(fs::read_to_string(&taken).expect("there"), "somebody's");
    assert!(aside(&place).len() > 2);
    whole(&paths(&files(&place)));
}

#[test]
fn a_log_that_cannot_be_set_aside_goes_on_and_says_so() {
    let place = place();
    let mut log = start(&rotating(&place, 4096));
    for number in 0..5 {
        log.record(&stopped(&format!("number {number}"))).expect("written");
    }
    // The next file cannot be the log: somebody put a directory there.
    let old = place.path.with_extension("old");
    fs::rename(&place.path, &old).expect("renamed");
    fs::create_dir(&place.path).expect("made");
    for number in 5..30 {
        log.record(&stopped(&format!("number {number}"))).expect("written");
    }
    assert!(matches!(log.trouble(), Some(LogError::Unsafe { .. })));
    assert!(log.trouble().is_none(), "said once");
    assert_eq!(whole(&[&old]).records, 31);
    fs::remove_dir(&place.path).expect("removed");
    for number in 30..60 {
        log.record(&stopped(&format!("number {number}"))).expect("written");
    }
    assert!(log.trouble().is_none());
    let all = files(&place);
    assert!(all.len() > 2);
    whole(&paths(&all));
}

// ---- keeping -------------------------------------------------------------------------

/// Sets back when a file was last written.
fn age(file: &Path, age: Duration) {
    let file = File::options().append(true).open(file).expect("opens");
    file.set_modified(SystemTime::now() - age).expect("set back");
}

fn write_files(log: &mut Log, place: &Place, files: usize) {
    for number in 0..100 * files {
        if aside(place).len() >= files {
            return;
        }
        log.record(&stopped(&format!("number {number}"))).expect("written");
    }
    panic!("{} of {files} files are there", aside(place).len());
}

#[test]
fn what_is_young_is_kept_however_much_there_is() {
    let place = place();
    let audit = Audit { keep: 3, keep_time: 30 * DAY, ..rotating(&place, 8192) };
    let mut log = start(&audit);
    write_files(&mut log, &place, 20);
    assert_eq!(aside(&place).len(), 20);
    whole(&paths(&files(&place)));
    // Four became old. Three of them are too many; a fifth is not old enough.
    let old = aside(&place);
    for file in &old[..4] {
        age(file, 31 * DAY);
    }
    age(&old[4], 29 * DAY);
    // logrotate's and anybody's files are not the broker's to remove.
    let others = ["log.1", "log.9.gz", "log-20200101", "log.000000000001.d"].map(|end| place.path.with_extension(end));
    fs::create_dir(&others[3]).expect("made");
    for other in &others[..3] {
        fs::write(other, "old").expect("written");
        age(other, 1000 * DAY);
    }
    // One of them was compressed meanwhile.
    let compressed = old[1].with_extension(format!("{}.gz", old[1].extension().and_then(OsStr::to_str).expect("one")));
    fs::rename(&old[1], &compressed).expect("renamed");
    log.reopen().expect("counted");
    let left = aside(&place);
    assert_eq!(left, old[4..]);
    assert!(!compressed.exists());
    assert!(others.iter().all(|other| other.exists()));
    // Each is named before it goes.
    let names = |files: &[PathBuf]| -> Vec<String> {
        let names = files.iter().map(|file| file.file_name().and_then(OsStr::to_str).expect("a name").to_owned());
        names.collect()
    };
    let mut gone = names(&old[..4]);
    gone[1].push_str(".gz");
    let all = files(&place);
    let told: Vec<Value> = all.iter().flat_map(|file| records(file)).collect();
    let told: Vec<&str> = told
        .iter()
        .filter(|record| record["event"]["action"] == "log-removed")
        .map(|record| record["postern"]["removed"].as_str().expect("a name"))
        .collect();
    assert_eq!(told, gone);
    let verified = whole(&paths(&all));
    assert_eq!(verified.first, records(&old[4])[0]["event"]["sequence"].as_u64().expect("a number"));
    // Where all are old, as many stay as the policy keeps.
    for file in &aside(&place) {
        age(file, 31 * DAY);
    }
    log.reopen().expect("counted");
    let left = aside(&place);
    assert_eq!(left.len(), 3);
    // What says so may have filled one more.
    assert!(left[0] >= old[17], "{left:?}");
}

#[test]
fn a_log_that_does_not_rotate_removes_nothing() {
    let place = place();
    let mut log = start(&Audit { keep: 1, keep_time: Duration::ZERO, ..rotating(&place, 4096) });
    log.hold();
    drop(log);
    let mut log = start(&Audit { keep: 100, ..rotating(&place, 4096) });
    write_files(&mut log, &place, 5);
    drop(log);
    for file in &aside(&place) {
        age(file, 1000 * DAY);
    }
    let mut log = start(&Audit { keep: 1, keep_time: Duration::ZERO, ..Audit::at(place.path.clone()) });
    log.reopen().expect("counted");
    for _ in 0..100 {
        log.record(&stopped("more")).expect("written");
    }
    assert_eq!(aside(&place).len(), 5);
}

// ---- room ----------------------------------------------------------------------------

#[test]
fn opens_are_refused_once_the_room_is_spent_and_nothing_else_is() {
    let place = place();
    let max = 1 << 20;
    let mut log = start(&Audit { max_bytes: max, ..rotating(&place, 100 << 10) });
    // A compressed and a dated file take room too; others do not.
    fs::write(place.path.with_extension("log.7.gz"), vec![0; 20 << 10]).expect("written");
    fs::write(place.path.with_extension("log-20200101"), vec![0; 10 << 10]).expect("written");
    fs::write(place.path.with_extension("other"), vec![0; 2 << 20]).expect("written");
    log.reopen().expect("counted");
    assert!(log.takes_opens().is_ok() && !log.is_spent());
    let taken = |place: &Place| -> u64 {
        files(place).iter().map(|file| fs::metadata(file).expect("there").len()).sum::<u64>() + (30 << 10)
    };
    let opens = (0..20_000).find(|_| log.record(&asked()).is_err()).expect("some time");
    assert!(opens > 100, "{opens}");
    assert!(log.is_spent());
    assert!(taken(&place) <= max && taken(&place) > max - 2048, "{}", taken(&place));
    let why = log.takes_opens().expect_err("refused before anything is done");
    assert!(matches!(why, LogError::Spent { .. }));
    assert!(why.to_string().contains("move old ones away, then reload postern"), "{why}");
    assert_eq!(log.failures(), 2);
    // The first refusal is listed, so that the log says so; the rest is counted.
    assert!(matches!(log.note(&refused()), Ok(Receipt::Written(_))));
    for _ in 0..5000 {
        assert!(log.record(&asked()).is_err());
        assert_eq!(log.note(&refused()).expect("counted"), Receipt::Counted);
        assert_eq!(log.note(&denied()).expect("counted"), Receipt::Counted);
    }
    assert!(taken(&place) <= max + 1024);
    // Other acts have some more room, and what cannot be refused has its own,
    // whatever a host did: all of it bounded.
    let acts = (0..20_000).take_while(|_| log.record(&stopped("a freeze")).is_ok()).count();
    assert!(acts > 500, "{acts}");
    let spare = (0..20_000).take_while(|_| log.note(&thawed()).is_ok()).count();
    assert!(spare > 500, "{spare}");
    assert!(taken(&place) <= max + SPARE_BYTES);
    // Beyond it notes wait, and then are lost; nothing is written.
    let full = taken(&place);
    for _ in 0..3000 {
        assert!(log.note(&thawed()).is_err());
        assert!(log.record(&stopped("a freeze")).is_err());
    }
    assert_eq!(taken(&place), full);

    // The operator moves files away and reloads postern.
    let kept: Vec<PathBuf> = aside(&place);
    let elsewhere = tempfile::tempdir().expect("a directory");
    let moved: Vec<PathBuf> = kept
        .iter()
        .map(|file| {
            let to = elsewhere.path().join(file.file_name().expect("a name"));
            fs::copy(file, &to).expect("copied");
            fs::remove_file(file).expect("removed");
            to
        })
        .collect();
    log.reopen().expect("counted");
    assert!(!log.is_spent() && log.takes_opens().is_ok());
    assert!(matches!(log.record(&asked()), Ok(Receipt::Written(_))));
    assert_eq!((log.failures(), log.waiting()), (0, 0));
    let mut all = moved;
    all.extend(files(&place));
    let verified = whole(&paths(&all));
    assert_eq!(verified.first, 1);
    let told: Vec<Value> = all.iter().flat_map(|file| records(file)).collect();
    let last = |action: &str| told.iter().rfind(|record| record["event"]["action"] == action).expect(action);
    assert_eq!(last("repeated")["postern"]["counts"], serde_json::json!({"guest-exec": 5000, "guest-file-open": 5000}));
    assert!(last("records-lost")["postern"]["lost"].as_u64().expect("a count") > 1900);
    assert_eq!(last("records-lost")["postern"]["unwritten"], 3000, "what was to be announced and was not done");
}

#[test]
fn a_start_finds_the_room_spent_as_it_was() {
    let place = place();
    let audit = Audit { max_bytes: 64 << 10, ..Audit::at(place.path.clone()) };
    fs::write(place.path.with_extension("log.1.gz"), vec![0; 64 << 10]).expect("written");
    let mut log = start(&audit);
    assert!(log.is_spent());
    assert!(log.takes_opens().is_err() && log.record(&asked()).is_err());
    assert!(log.note(&thawed()).is_ok());
    // Beyond the spare room not even that postern started can be recorded.
    fs::write(place.path.with_extension("log.2.gz"), vec![0; 1 << 20]).expect("written");
    drop(log);
    let error = Log::start(&audit, samples::run()).expect_err("refused").to_string();
    assert!(error.contains("audit.max_bytes is spent"), "{error}");
    // But one that has to thaw first starts, and keeps what happens.
    let mut log = Log::start_held(&audit, samples::run());
    log.note(&thawed()).expect("waits");
    assert!(log.release().is_err());
    fs::remove_file(place.path.with_extension("log.2.gz")).expect("removed");
    log.reopen().expect("counted");
    assert_eq!(actions(&place.path), ["log-opened", "guest-fsfreeze-thaw", "log-opened", "guest-fsfreeze-thaw"]);
}

// ---- floods --------------------------------------------------------------------------

#[test]
fn a_flood_of_what_has_no_effect_is_bounded_and_counted() {
    let place = place();
    let mut log = start(&Audit::at(place.path.clone()));
    let empty_thaw = Record::Thawed {
        cause: ThawCause::Host,
        child: Some(1),
        count: 0,
        mounts: Mounts::default(),
        failed: Mounts::default(),
    };
    let unknown = Record::CommandRefused { child: 1, command: Text::new(&[1; 5000]), because: Denial::Unknown };
    let flood = [denied(), refused(), empty_thaw, Record::HostConnected { peer: None }, unknown];
    let rounds = 5000;
    for _ in 0..rounds {
        for record in &flood {
            log.note(record).expect("taken in");
        }
    }
    // What is not the host's to repeat is not touched by it.
    log.note(&thawed()).expect("written");
    log.note(&stopped("the end")).expect("written");
    let text = fs::read_to_string(&place.path).expect("UTF-8");
    let all = records(&place.path);
    let is_flood =
        |record: &Value| !["log-opened", "stopped"].contains(&record["event"]["action"].as_str().expect("an action"));
    let bytes: usize =
        text.lines().zip(&all).filter(|(_, record)| is_flood(record)).map(|(line, _)| line.len() + 1).sum();
    // The time that the records themselves say: the bound is a rate.
    let time =
        |record: &Value| record["@timestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok()).expect("a time");
    let milliseconds = time(all.last().expect("one")).duration_since(time(&all[0])).as_millis();
    let milliseconds = u64::try_from(milliseconds).expect("later");
    // What all kinds share and what each has for itself, and of each bucket one
    // record more than fits.
    let part = |whole: u64| whole + KINDS * whole / OWN_PART;
    let overdrawn = (KINDS + 1) * 2 * Body::of(&flood[4]).len() as u64;
    let most = part(BURST_BYTES) + part(BYTES_PER_SECOND) * (milliseconds + 1000) / 1000 + overdrawn;
    assert!(bytes as u64 <= most, "{bytes} of {most} bytes in {milliseconds} ms");
    let count = |action: &str| {
        let listed = all.iter().filter(|record| record["event"]["action"] == action).count() as u64;
        let counted = all.iter().filter(|record| record["event"]["action"] == "repeated");
        listed + counted.filter_map(|record| record["postern"]["counts"][action].as_u64()).sum::<u64>()
    };
    for action in ["guest-exec", "guest-file-open", "host-connected", "unknown-command"] {
        assert_eq!(count(action), rounds, "{action}");
    }
    assert_eq!(count("guest-fsfreeze-thaw"), rounds + 1, "and the one that did something");
    let repeated = all.iter().rfind(|record| record["event"]["action"] == "repeated").expect("one");
    assert!(repeated["event"]["start"].as_str() <= repeated["event"]["end"].as_str());
    assert!(repeated["event"]["end"].as_str() <= repeated["@timestamp"].as_str());
    whole(&[&place.path]);
    println!("{} refusals took {bytes} bytes in {milliseconds} ms", rounds * 5);
}

#[test]
fn what_the_chain_adds_to_a_body_is_what_a_flood_is_charged() {
    let chain = Chain { next: u64::MAX, ..Chain::START };
    for record in samples::all(b"/srv/a") {
        let body = Body::of(&record);
        let line = chain.seal(Timestamp::now(), &body, None).len() + 1;
        assert_eq!(line - body.len(), 165, "{}", record.action());
    }
}

// ---- the disk ------------------------------------------------------------------------

#[test]
fn a_log_that_waits_for_the_disk_writes_the_same() {
    let shapes: BTreeSet<Vec<String>> = [Fsync::Never, Fsync::Open, Fsync::Record]
        .into_iter()
        .map(|fsync| {
            let place = place();
            let audit = Audit { fsync, ..rotating(&place, 4096) };
            let mut log = start(&audit);
            assert_eq!(log.needs().map(|needs| (needs.sync, needs.rotate)), Some((fsync != Fsync::Never, true)));
            for _ in 0..20 {
                log.record(&asked()).expect("written");
                log.note(&stopped("something")).expect("written");
            }
            log.hold();
            log.note(&thawed()).expect("waits");
            log.release().expect("written");
            let files = files(&place);
            whole(&paths(&files));
            files.iter().flat_map(|file| actions(file)).collect()
        })
        .collect();
    assert_eq!(shapes.len(), 1, "{shapes:#?}");
}
