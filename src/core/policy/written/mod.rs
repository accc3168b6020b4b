//! The policy as written: TOML files → checked [`Policy`], or every mistake.
//!
//! [`keys`] is the one table of what can be written; the reader, the JSON
//! Schema and the reference are all made from it. [`source`] finds the files
//! and checks who could have changed them; [`read`] and [`value`] turn TOML
//! into settings; [`check`] and [`paths`] look at the whole.
//!
//! Trust: a file's content is trusted once its owner, mode and directories
//! were checked; before that nothing of it is read. The host has no hand in any
//! of this. Called at start and by `postern policy`; [`kept`] alone also by a
//! confined broker.

mod check;
mod kept;
pub mod keys;
mod mistake;
mod names;
mod paths;
pub mod profiles;
mod read;
mod source;
mod tables;
mod value;
mod world;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Policy;
pub use check::{Reason, Ruling, Where, Why};
pub use kept::{Kept, Origin};
pub use mistake::{Kind, Mistake, PolicyError};
pub use source::{DEFAULT_PATH, DROP_IN_DIRECTORIES, MAX_SOURCE, OPEN_SOURCE, Places};
pub use world::{Look, World};

/// One policy file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it stands, absolute; for an embedded text the name it was given.
    pub path: PathBuf,
    /// What stands in it.
    pub text: String,
}

/// A policy that may be used.
#[derive(Debug)]
pub struct Loaded {
    /// The checked policy.
    pub policy: Policy,
    /// What is allowed but deserves a second look, in the order of the files.
    pub warnings: Vec<Mistake>,
    /// The files, in the order in which they were merged: the main file first.
    pub sources: Vec<Source>,
    /// Where each part of the policy was written.
    pub why: Why,
}

/// Reads and checks the policy: `path` and the drop-ins beside it (`X.d` for
/// `X.toml`), or without `path` the installed policy and its drop-ins.
///
/// # Errors
/// Every mistake of every file, at once.
pub fn load(path: Option<&Path>, world: &World) -> Result<Loaded, PolicyError> {
    let mut report = mistake::Report::new();
    let own = match Places::of(path) {
        Ok(places) => {
            source::find(&places, &source::Walk, world, &mut report);
            places.own()
        }
        Err(error) => {
            let file = path.map_or_else(PathBuf::new, Path::to_path_buf);
            report.outside(Kind::Unreadable, false, file, error.to_string(), "start from a directory that exists");
            Vec::new()
        }
    };
    finish(report, world, &own)
}

/// Checks a policy that stands in memory: the demo's, or a test's.
///
/// # Errors
/// As [`load`], with `name` as the file.
pub fn load_embedded(name: &str, text: &str, world: &World) -> Result<Loaded, PolicyError> {
    let mut report = mistake::Report::new();
    report.sources.push(Source { path: PathBuf::from(name), text: text.to_owned() });
    finish(report, world, &[])
}

/// Reads every source of `report`, checks the whole. `own` are the policy's
/// own places, which no rule may reach.
fn finish(mut report: mistake::Report, world: &World, own: &[PathBuf]) -> Result<Loaded, PolicyError> {
    let mut written = read::Written::default();
    for index in 0..report.sources.len() {
        read::source(index, &mut written, &mut report);
    }
    let (mut policy, why) = check::check(&written, &mut report, world, own);
    let (errors, warnings) = report.sorted();
    let mut digest = Sha256::new();
    // The defaults are no file. For one file this is what `sha256sum` prints.
    report.sources.remove(0);
    for source in &report.sources {
        digest.update(&source.text);
    }
    policy.digest = digest.finalize().into();
    if errors.is_empty() {
        Ok(Loaded { policy, warnings, sources: report.sources, why })
    } else {
        Err(PolicyError { mistakes: errors, warnings, more: report.more })
    }
}
