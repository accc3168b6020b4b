//! Agents under strace, for a run that wants to know which rules of the filters
//! are ever used: with [`TRACE`] set, every agent that a test starts leaves the
//! calls of all its processes in that directory; see `tests/confinement/used`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Names that directory, which must be on a tmpfs: cells show it, and whatever
/// they show may be frozen.
const TRACE: &str = "POSTERN_TEST_TRACE";

/// The directory, if agents are to be traced.
pub(crate) fn directory() -> Option<OsString> {
    env::var_os(TRACE)
}

/// Where a cell has it.
pub(crate) const IN_CELL: &str = "/trace";

/// What starts `binary`: itself, or a tracer of it and all that it starts, which
/// is no parent of it.
pub(crate) fn command(binary: &Path) -> Command {
    let Some(directory) = directory() else { return Command::new(binary) };
    let directory = Some(PathBuf::from(IN_CELL)).filter(|path| path.exists()).unwrap_or_else(|| directory.into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut command = Command::new("strace");
    // Arguments as the filter sees them, but the names that processes give themselves.
    command.args(["-D", "-f", "-qq", "-s", "20", "-e", "signal=none", "-e", "raw=!prctl", "-o"]);
    command.arg(directory.join(format!("{now}.trace"))).arg(binary);
    command
}
