//! `guest-fstrim`: FITRIM on every local filesystem, each once, as a freeze
//! chooses them.
//!
//! Trust: as [`super`]. Of the host only a number, which the kernel takes as it is.

use std::os::fd::AsFd;

use nix::errno::Errno;
use postern_core::messages::{Text, Trimmed, TrimmedBytes, WirePath};
use postern_core::sys::fs;

use super::{Failure, Outcome};
use crate::fsfreeze::mounts::plan;
use crate::fsfreeze::open::reach;
use crate::fsfreeze::{self, MountTable, Stacking};

/// Trims one after the other.
pub(super) fn trim(table: &MountTable, minimum: u64) -> Result<Outcome, Failure> {
    let mounts = table.read_or_fail().map_err(Failure::Table)?;
    // Which one lies in a file of which does not matter here. As in stock, what was
    // mounted last comes first.
    let targets = plan(&mounts, None, &Stacking::default());
    let mut trimmed = Vec::new();
    for target in targets {
        let (mountpoint, result) = match reach(target.device, &target.candidates) {
            Ok(Some(reached)) => {
                let result = fs::trim(reached.dir.as_fd(), minimum).map_err(not_trimmed);
                (reached.filesystem.mountpoint, result)
            }
            // Covered by other mounts, or unmounted since.
            Ok(None) => continue,
            Err(failure) => {
                let why = failure.errno().map(fsfreeze::text).unwrap_or_default();
                (target.name().to_owned(), Err(format!("failed to open: {why}")))
            }
        };
        // The kernel's paths are not longer than a frame takes.
        let Some(path) = WirePath::from_path(&mountpoint) else { continue };
        trimmed.push(match result {
            Ok((trimmed, minimum)) => {
                Trimmed { path, done: Some(TrimmedBytes { trimmed, minimum }), error: Text::cut(b"") }
            }
            Err(why) => Trimmed { path, done: None, error: Text::cut(why.as_bytes()) },
        });
    }
    Ok(Outcome::Trimmed(trimmed))
}

/// Stock's texts.
fn not_trimmed(errno: Errno) -> String {
    match errno {
        Errno::ENOTTY | Errno::EOPNOTSUPP => "trim not supported".to_owned(),
        other => format!("failed to trim: {}", fsfreeze::text(other)),
    }
}
