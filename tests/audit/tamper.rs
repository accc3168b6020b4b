//! What somebody does to a log afterwards, and whether it is found.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use postern_tools::audit::{Broken, Filter, Kind, Problem, table_for, verify};
use tempfile::TempDir;

use crate::log::{open, stopped};

/// Two files of one log, six records each, and their lines.
struct Rotated {
    _directory: TempDir,
    files: [PathBuf; 2],
    lines: [Vec<String>; 2],
}

fn rotated() -> Rotated {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let files = ["audit.log.1", "audit.log"].map(|name| directory.path().join(name));
    let mut log = open(&files[1]);
    let write = |log: &mut postern_broker::log::Log| {
        for number in 1..6 {
            log.record(&stopped(&format!("record {number}"))).expect("written");
        }
    };
    write(&mut log);
    fs::rename(&files[1], &files[0]).expect("rotated");
    log.reopen().expect("reopened");
    write(&mut log);
    let lines = files
        .each_ref()
        .map(|file| fs::read_to_string(file).expect("readable").lines().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(lines.each_ref().map(Vec::len), [6, 6]);
    Rotated { _directory: directory, files, lines }
}

impl Rotated {
    fn verdict(&self, lines: &[Vec<String>; 2]) -> Result<(), (usize, u64, Kind)> {
        for (file, lines) in self.files.iter().zip(lines) {
            fs::write(file, [lines.join("\n"), "\n".to_owned()].concat()).expect("written");
        }
        match verify(&self.files) {
            Ok(_) => Ok(()),
            Err(Problem::Broken(Broken { place, kind })) => {
                let file = self.files.iter().position(|file| *file == place.file).expect("one of ours");
                Err((file, place.line, kind))
            }
            Err(problem) => panic!("{problem}"),
        }
    }
}

/// Something done to the lines of both files.
type Act = fn(&mut [Vec<String>; 2]);

#[test]
fn every_act_is_found_where_it_was_done() {
    let log = rotated();
    assert_eq!(log.verdict(&log.lines), Ok(()));
    // Number of record n: file 0 holds 1 to 6, file 1 holds 7 to 12.
    let acts: [(&str, Act, (usize, u64, Kind)); 18] = [
        ("edit", |l| l[0][2] = l[0][2].replace("record 2", "record 9"), (0, 3, Kind::Edited)),
        ("edit the first", |l| l[0][0] = l[0][0].replace("0.1.0", "0.1.1"), (0, 1, Kind::Edited)),
        ("edit across the rotation", |l| l[0][5] = l[0][5].replace("record 5", "record 9"), (0, 6, Kind::Edited)),
        ("edit behind the rotation", |l| l[1][0] = l[1][0].replace("rotated", "started"), (1, 1, Kind::Edited)),
        ("edit a number", |l| l[0][2] = l[0][2].replace("\"sequence\":3", "\"sequence\":4"), (0, 3, Kind::Edited)),
        ("edit a hash", |l| l[0][3] = edit_hash(&l[0][3]), (0, 4, Kind::Edited)),
        ("edit a time", |l| l[0][1] = l[0][1].replacen("Z\"", " \"", 1), (0, 2, Kind::Cut)),
        ("edit to no JSON", |l| l[0][1] = l[0][1].replacen(":[", ":(", 1), (0, 2, Kind::Edited)),
        ("remove", |l| _ = l[0].remove(2), (0, 3, Kind::Removed { from: 3, to: 3 })),
        ("remove the end of the first file", |l| l[0].truncate(3), (1, 1, Kind::Removed { from: 4, to: 6 })),
        ("remove the start of the second", |l| _ = l[1].drain(..2), (1, 1, Kind::Removed { from: 7, to: 8 })),
        ("empty the first file's middle", |l| _ = l[0].drain(1..5), (0, 2, Kind::Removed { from: 2, to: 5 })),
        ("swap", |l| l[0].swap(2, 3), (0, 3, Kind::Swapped)),
        ("swap across the rotation", swap_across, (0, 6, Kind::Swapped)),
        ("repeat", |l| l[1].insert(3, l[1][2].clone()), (1, 4, Kind::Swapped)),
        ("cut a line", |l| l[0][2].truncate(80), (0, 3, Kind::Cut)),
        ("cut in the middle of the file", cut_middle, (0, 3, Kind::Edited)),
        ("another log", |l| l[1] = rotated().lines[0].clone(), (1, 1, Kind::Restarted)),
    ];
    for (name, act, expected) in acts {
        let mut lines = log.lines.clone();
        act(&mut lines);
        assert_ne!(lines, log.lines, "{name} does nothing");
        assert_eq!(log.verdict(&lines), Err(expected), "{name}");
    }
    // Files in the wrong order.
    assert_eq!(log.verdict(&log.lines), Ok(()));
    let Err(Problem::Broken(broken)) = verify(&[&log.files[1], &log.files[0]]) else { panic!("the order is wrong") };
    assert!(broken.to_string().contains("oldest first"), "{broken}");
}

fn edit_hash(line: &str) -> String {
    let (start, hash) = line.split_at(line.len() - 3);
    let last = start.chars().last().expect("a digit");
    format!("{}{}{hash}", &start[..start.len() - 1], if last == '0' { '1' } else { '0' })
}

fn swap_across(lines: &mut [Vec<String>; 2]) {
    let [first, second] = lines;
    std::mem::swap(first.last_mut().expect("one"), &mut second[0]);
}

/// From the middle of one record to the middle of a later one.
fn cut_middle(lines: &mut [Vec<String>; 2]) {
    let merged = format!("{}{}", &lines[0][2][..100], &lines[0][4][60..]);
    lines[0].splice(2..5, [merged]);
}

#[test]
fn no_changed_bit_before_the_last_record_goes_unseen() {
    let log = rotated();
    let bytes = fs::read(&log.files[0]).expect("readable");
    let mut random = 1_u64;
    for position in 0..bytes.len() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut changed = bytes.clone();
        changed[position] ^= 1 << (random >> 61);
        // The newline of the last record before the rotation is its own.
        fs::write(&log.files[0], &changed).expect("written");
        assert!(verify(&log.files).is_err(), "byte {position}: {:?}", changed[position] as char);
    }
}

#[test]
fn an_empty_or_missing_log_is_not_whole() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("audit.log");
    assert!(matches!(verify(&[&path]), Err(Problem::Unreadable { .. })));
    assert!(matches!(verify(&[directory.path()]), Err(Problem::Unreadable { .. })));
    fs::write(&path, "").expect("written");
    assert!(matches!(verify(&[&path]), Err(Problem::Broken(Broken { kind: Kind::Empty, .. }))));
}

#[test]
fn noise_makes_neither_verify_nor_show_panic() {
    let log = rotated();
    let real: Vec<u8> = log.files.iter().flat_map(|file| fs::read(file).expect("readable")).collect();
    let path = log.files[0].with_extension("noise");
    let mut random = 7_u64;
    let byte = |number: usize| u8::try_from(number).expect("below 256");
    let mut next = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).expect("31 bits") % below
    };
    for round in 0..2000 {
        let mut bytes = if round % 4 == 0 { (0..400).map(|_| byte(next(256))).collect() } else { real.clone() };
        for _ in 0..next(8) {
            let (at, length) = (next(bytes.len()), next(200));
            match next(4) {
                0 => bytes[at] = byte(next(256)),
                1 => _ = bytes.drain(at..(at + length).min(bytes.len())),
                2 => bytes.truncate(at + 1),
                _ => {
                    let copy: Vec<u8> = bytes.iter().skip(next(bytes.len())).take(length).copied().collect();
                    bytes.splice(at..at, copy);
                }
            }
            bytes.push(b'\n');
        }
        fs::write(&path, &bytes).expect("written");
        // A verdict of whole may only be given to what begins as the log does.
        if let Ok(verified) = verify(&[&path]) {
            assert!(verified.records <= 12 && bytes.windows(64).any(|part| real.windows(64).any(|own| own == part)));
        }
        for width in [None, Some(0), Some(40)] {
            let text = table_for(Cursor::new(&bytes), &Filter::default(), width).expect("shown");
            assert!(!text.chars().any(|character| character != '\n' && character.is_control()));
            assert!(width.is_none_or(|width| text.lines().all(|line| line.chars().count() <= width.max(1))));
        }
    }
}

#[test]
fn a_line_longer_than_any_record_costs_no_more_than_one() {
    let log = rotated();
    let mut bytes = fs::read(&log.files[0]).expect("readable");
    bytes.extend(vec![b'x'; 3 * postern_core::audit::MAX_LINE]);
    fs::write(&log.files[0], bytes).expect("written");
    let Err(Problem::Broken(broken)) = verify(&log.files) else { panic!("found") };
    assert_eq!((broken.place.line, broken.kind), (7, Kind::Cut));
}
