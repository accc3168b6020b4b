//! A build that is broken on purpose (cargo feature `sabotage`): broker and opener
//! ask no rule, and the broker hands over before it records. For controls: what
//! such a build does, a test must see.

use std::process::Command;

/// A target directory of its own, for tests of every profile.
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/sabotage");

/// Where cargo puts that build.
pub(crate) fn binary() -> String {
    format!("{TARGET}/debug/postern")
}

/// Builds it, from the crates that this test was built from.
///
/// # Panics
/// If cargo fails.
pub(crate) fn build() {
    println!("building postern with the feature 'sabotage'");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--offline", "--features", "sabotage", "--target-dir", TARGET])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "building with the feature 'sabotage' failed");
}
