//! The list of where postern's replies differ from stock's: what a test shows of it.

/// `tests/transcripts/DIFFERENCES.md`.
const LIST: &str = include_str!("../transcripts/DIFFERENCES.md");

/// The name of a difference, which must be in the list.
pub(crate) fn listed(name: &'static str) -> &'static str {
    assert!(LIST.contains(&format!("\n* `{name}`: ")), "DIFFERENCES.md has no `{name}`");
    name
}
