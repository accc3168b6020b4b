//! A thousand random tamperings of a real log: each is found, by postern and by
//! `audit/verify.py`, and what is found only with heads is just what
//! `audit/RECORDS.md` says.
//!
//! Needs root, for a `/run` and a boot id of the test's own, and Python 3.

#[path = "tampering/acts.rs"]
mod acts;
#[path = "tampering/python.rs"]
mod python;
#[path = "tampering/real.rs"]
mod real;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use postern_tools::audit::{Against, Contradiction, Doubt, Problem, verify, verify_against};
use support::agent::BINARY;
use support::runner::{self, Test};

use acts::{ACTS, Random};
use python::Python;
use real::{Files, Real};

const TESTS: &[Test] = &[
    ("a_thousand_tamperings_are_found", a_thousand_tamperings_are_found),
    ("heads_that_do_not_count_are_told", heads_that_do_not_count_are_told),
];

/// How many in all.
const TAMPERINGS: usize = 1000;
/// Printed, so that a failure can be had again.
const SEED: u64 = 0x706f_7374_6572_6e34;

fn main() -> ExitCode {
    runner::main_on_machine(TESTS, &["found"], Vec::new)
}

/// What a verifier says of files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// With number of records, last number, head, and heads that agree.
    Whole(u64, u64, String, u64),
    Broken,
    /// With the number of the head's record.
    Cut(u64),
    Rewritten(u64),
    Other(&'static str),
}

fn rust(files: &[PathBuf], against: &Against) -> Verdict {
    let found = if against.anchors.is_empty() {
        verify(files).map(|verified| (verified, 0)).map_err(Doubt::Problem)
    } else {
        verify_against(files, against).map(|(verified, anchored)| (verified, anchored.agree))
    };
    match found {
        Ok((verified, agree)) => Verdict::Whole(verified.records, verified.last, verified.head.to_string(), agree),
        Err(Doubt::Problem(Problem::Broken(_))) => Verdict::Broken,
        Err(Doubt::Contradicted { number, what: Contradiction::Cut { .. }, .. }) => Verdict::Cut(number),
        Err(Doubt::Contradicted { number, what: Contradiction::Rewritten { .. }, .. }) => Verdict::Rewritten(number),
        Err(Doubt::NoHead(_)) => Verdict::Other("no head"),
        Err(Doubt::SeveralLogs(_)) => Verdict::Other("several logs"),
        Err(Doubt::Strangers(_)) => Verdict::Other("strangers"),
        Err(other) => panic!("{other}"),
    }
}

/// Both verifiers' verdict, which must be one.
fn both(python: &mut Python, files: &[PathBuf], against: &Against, what: &str) -> Verdict {
    let ours = rust(files, against);
    assert_eq!(ours, python.verify(files, against), "postern and Python of: {what}");
    ours
}

fn a_thousand_tamperings_are_found() {
    let real = Real::make();
    let place = tempfile::tempdir().expect("a directory");
    let anchors = place.path().join("journal.json");
    std::fs::write(&anchors, &real.journal).expect("written");
    let with = Against { anchors: vec![anchors.clone()], ..Against::default() };
    let without = Against::default();
    let mut python = Python::start();
    println!("seed {SEED:#x}; {} records in {} files, {} heads", real.records(), real.files.len(), real.heads());

    let paths = real.files.write(place.path());
    let Verdict::Whole(records, last, ..) = both(&mut python, &paths, &without, "nothing") else { panic!("whole") };
    assert_eq!((records, last), (real.records(), real.records()));
    let Verdict::Whole(.., agree) = both(&mut python, &paths, &with, "nothing") else { panic!("whole") };
    assert_eq!(agree, real.heads());
    // The newest files alone: what heads say of the others cannot be held
    // against them.
    let newest = both(&mut python, &paths[3..], &with, "nothing");
    assert!(matches!(newest, Verdict::Whole(_, last, _, agree) if last == real.records() && agree < real.heads()));
    status(0, &paths, None);
    status(0, &paths, Some(&anchors));

    let mut found: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut random = Random(SEED);
    for number in 0..TAMPERINGS {
        let act = &ACTS[number % ACTS.len()];
        let mut files = real.files.clone();
        while files == real.files {
            (act.does)(&mut random, &real, &mut files);
        }
        let what = format!("tampering {number}, {}", act.name);
        let paths = files.write(place.path());
        let alone = both(&mut python, &paths, &without, &what);
        let anchored = both(&mut python, &paths, &with, &what);
        let [all, broken, contradicted] = found.entry(act.name).or_default();
        *all += 1;
        if act.hides {
            assert!(matches!(alone, Verdict::Whole(..)), "{what}: {alone:?}");
            assert!(matches!(anchored, Verdict::Cut(_) | Verdict::Rewritten(_)), "{what}: {anchored:?}");
            *contradicted += 1;
        } else {
            assert_eq!((&alone, &anchored), (&Verdict::Broken, &Verdict::Broken), "{what}");
            *broken += 1;
        }
        // The commands themselves, once of each kind.
        if number < ACTS.len() {
            status(i32::from(!act.hides), &paths, None);
            status(if act.hides { 3 } else { 1 }, &paths, Some(&anchors));
        }
    }
    println!("| tampering | tried | found by the chain | found with heads |\n|---|---|---|---|");
    for (name, [all, broken, contradicted]) in &found {
        println!("| {name} | {all} | {broken} | {} |", broken + contradicted);
        assert_eq!(*all, broken + contradicted, "{name}");
    }
    let [all, broken, with] = found.values().fold([0; 3], |sum, row| std::array::from_fn(|at| sum[at] + row[at]));
    runner::note(&format!("{} of {all}: {broken} by the chain, {with} more with heads; Python agrees", broken + with));
}

/// The exit status of both commands.
fn status(expected: i32, files: &[PathBuf], anchors: Option<&PathBuf>) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/audit/verify.py");
    let commands: [(&str, &[&str]); 2] = [(BINARY, &["audit", "verify"]), ("python3", &[script])];
    for (program, arguments) in commands {
        let mut command = Command::new(program);
        command.args(arguments).args(anchors.iter().flat_map(|file| ["--anchors".into(), (*file).clone()])).args(files);
        let output = command.output().expect(program);
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{command:?}: {said}");
        let word = ["whole: ", "broken: ", "no head", if said.contains("cut: ") { "cut: " } else { "rewritten: " }];
        assert!(said.contains(word[usize::try_from(expected).expect("a status")]), "{said}");
    }
}

fn heads_that_do_not_count_are_told() {
    let real = Real::make();
    let place = tempfile::tempdir().expect("a directory");
    let paths = real.files.write(place.path());
    let mut python = Python::start();
    let mut said = |journal: &str, against: Against| {
        let anchors = place.path().join("journal.json");
        std::fs::write(&anchors, journal).expect("written");
        let against = Against { anchors: vec![anchors], ..against };
        let verdict = both(&mut python, &paths, &against, journal.get(..200).unwrap_or_default());
        let told = match verify_against(&paths, &against) {
            Ok((_, anchored)) => anchored.to_string(),
            Err(doubt) => doubt.to_string(),
        };
        (matches!(verdict, Verdict::Whole(..)), told)
    };
    let all = real.heads();
    let broker = format!("\"_UID\":\"{}\"", real.broker);
    assert_eq!(real.journal.matches(&broker).count() as u64, all, "the kernel says who sent them");

    // Another user writes a false head: ignored, and told, where it was said who
    // the broker is.
    let line = real.journal.lines().next_back().expect("a head");
    let false_head = |user: &str| {
        let hash = line.split_once("\"POSTERN_HASH\":\"").expect("a hash").1;
        line.replace(&hash[..64], &"0".repeat(64)).replace(&broker, user) + "\n"
    };
    let both_heads = format!("{}{}", real.journal, false_head("\"_UID\":\"1000\""));
    let (whole, told) = said(&both_heads, Against::default());
    assert!(!whole && told.contains("(1000)") && told.contains("say with --sender"), "{told}");
    let (whole, told) = said(&both_heads, Against { sender: Some(real.broker), ..Against::default() });
    let ignored = "; ignored: 1 head by other users (1000), 1 of which contradict the log";
    assert!(whole && told.contains(&format!("{all} heads agree")) && told.ends_with(ignored), "{told}");
    // The broker's user is not 1000, whatever the journal says.
    let (whole, told) = said(&false_head("\"_UID\":\"1000\""), Against::default());
    assert!(!whole && told.starts_with("no head to hold the log against"), "{told}");
    let (whole, told) = said(&false_head("\"_UID\":\"1000\""), Against { sender: Some(1000), ..Against::default() });
    assert!(!whole && told.starts_with("rewritten: "), "{told}");
    let (whole, told) = said(&real.journal, Against { sender: Some(1000), ..Against::default() });
    assert!(!whole && told.contains("by other users") && told.starts_with("no head"), "{told}");
    assert_eq!(said("", Against::default()).1, "no head to hold the log against: there is none in the anchors");

    // As a syslog file has them: nobody vouches for these.
    let text = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        format!("Nov 22 18:00:00 guest postern[77]: {}\n", entry["MESSAGE"].as_str().expect("text"))
    };
    let lines: String = real.journal.lines().map(text).collect();
    let (whole, told) = said(&lines, Against::default());
    assert!(whole && told.contains(&format!("{all} of a syslog file, to which any user")), "{told}");
    let (whole, told) = said(&(lines + &text(&false_head(&broker))), Against::default());
    assert!(!whole && told.starts_with("rewritten: "), "{told}");

    // Heads of two logs.
    let other = real.journal.replace("/log/audit.jsonl", "/other.jsonl");
    let (whole, told) = said(&format!("{}{other}", real.journal), Against::default());
    assert!(!whole && told.starts_with("the anchors are of several logs"), "{told}");
    let log = Some(real.log.clone());
    let (whole, told) = said(&format!("{}{other}", real.journal), Against { log, ..Against::default() });
    assert!(whole && told.ends_with(&format!("; ignored: {all} of other logs")), "{told}");
}

/// A log's files are written anew for each tampering.
impl Files {
    fn write(&self, place: &std::path::Path) -> Vec<PathBuf> {
        let paths: Vec<PathBuf> = (0..self.len()).rev().map(|age| place.join(format!("audit.jsonl.{age}"))).collect();
        for (path, lines) in paths.iter().zip(&self.0) {
            std::fs::write(path, lines.concat()).expect("written");
        }
        paths
    }
}
