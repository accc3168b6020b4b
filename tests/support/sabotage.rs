//! A build that is broken on purpose (cargo feature `sabotage`): broker and opener
//! ask no rule, and the broker hands over before it records. For controls: what
//! such a build does, a test must see.

use std::path::Path;
use std::process::Command;

use super::agent::BINARY;

/// Where cargo puts that build: in a target directory of its own.
pub(crate) fn binary() -> String {
    let target = Path::new(BINARY).parent().expect("a target directory");
    target.join("sabotage/debug/postern").display().to_string()
}

/// Builds it, from the crates that this test was built from.
///
/// # Panics
/// If cargo fails.
pub(crate) fn build() {
    println!("building postern with the feature 'sabotage'");
    let target = Path::new(BINARY).parent().expect("a target directory").join("sabotage");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--offline", "--features", "sabotage", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "building with the feature 'sabotage' failed");
}
