//! The kept corpus of the fuzz targets, and every past finding, through the same
//! code: on any toolchain, in every run of the tests. What makes new inputs is
//! `tests/fuzz/run`.

#[path = "fuzz/targets/mod.rs"]
pub mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use targets::TARGETS;

/// Inputs of a target, by their folder.
fn inputs(folder: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(folder).join(target);
    let entries = fs::read_dir(&folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Some of them measure the memory of the whole process: one at a time.
fn all_of(name: &str) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let (corpus, findings) = (inputs("corpus", name), inputs("findings", name));
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for path in corpus.iter().chain(&findings) {
        let input = fs::read(path).expect("readable");
        // What panics tells of its own place, not of the input.
        let done = std::panic::catch_unwind(|| (target.run)(&input));
        assert!(done.is_ok(), "{} does not hold any more", path.display());
    }
    println!("{name}: {} inputs of the corpus, {} past findings", corpus.len(), findings.len());
}

macro_rules! each {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            all_of(stringify!($name));
        })*

        #[test]
        fn every_target_is_here() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            for name in names {
                let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
                for (folder, ending) in [("fuzz_targets", "rs"), ("dictionaries", "dict")] {
                    assert!(fuzz.join(folder).join(name).with_extension(ending).is_file(), "{folder}: {name}");
                }
                let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).expect("a manifest");
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

each!(audit, base64, facts, frames, framing, keyfile, log_end, mounts, network, policy, request, rules, state);
