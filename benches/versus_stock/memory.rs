//! Memory and sizes, as the kernel and the loader tell them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Result;
use super::agents::Agent;
use super::session::Session;
use super::table::{Figure, Table};

/// Files of the C library itself, which every guest has.
const C_LIBRARY: [&str; 4] = ["libc.so", "libm.so", "ld-linux", "linux-vdso"];

/// Proportional set size of all processes in KiB: what is shared counts once.
pub(crate) fn pss(sessions: &[Session; 3], table: &mut Table) -> [Option<Figure>; 3] {
    let mut sums = [None; 3];
    for (sum, session) in sums.iter_mut().zip(sessions) {
        match all(&session.agent, "smaps_rollup", "Pss:") {
            Ok(kib) => *sum = Some(Figure::one(kib)),
            Err(why) => table.could_not(format!("read PSS of every process ({why}); root can")),
        }
    }
    sums
}

/// The resident sizes of the processes, summed, in KiB; from now on their peak
/// counts anew.
pub(crate) fn resident(agent: &Agent) -> Result<f64> {
    for process in agent.processes()? {
        // 5: forgets the peak (proc_pid_clear_refs(5)).
        fs::write(format!("/proc/{process}/clear_refs"), "5")?;
    }
    all(agent, "status", "VmRSS:")
}

/// The largest resident sizes that the processes had, summed, in KiB.
pub(crate) fn peak(agent: &Agent) -> Result<f64> {
    all(agent, "status", "VmHWM:")
}

/// The time that the processes have run on a CPU.
pub(crate) fn processor_time(agent: &Agent) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for process in agent.processes()? {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += Duration::from_nanos(text.split(' ').next().unwrap_or_default().parse()?);
        }
    }
    Ok(sum)
}

/// The sum over all processes of what a file of theirs has for `name`.
fn all(agent: &Agent, file: &str, name: &str) -> Result<f64> {
    agent.processes()?.into_iter().map(|pid| field(&format!("/proc/{pid}/{file}"), name)).sum()
}

/// The number behind `name` in a file of /proc.
fn field(file: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file).map_err(|why| format!("{file}: {why}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("{file} has no {name}").into())
}

/// A file's size in bytes.
pub(crate) fn file_size(path: &Path) -> Option<f64> {
    let size = fs::metadata(path).ok()?.len();
    u32::try_from(size).ok().map(f64::from)
}

/// A program's size with the shared libraries that the loader maps for it. One
/// that is static has none.
pub(crate) fn with_libraries(program: &Path) -> Option<f64> {
    // The loader lists what it would map, and runs nothing; a static program,
    // which has no loader, prints its version.
    let listed = Command::new(program).arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1").output().ok()?;
    let listed = String::from_utf8(listed.stdout).ok()?;
    let libraries = listed.lines().filter_map(|line| line.split_once(" => ")?.1.split(" (").next());
    let libraries = libraries.map(PathBuf::from).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !C_LIBRARY.iter().any(|one| name.starts_with(one))
    });
    let sizes = libraries.map(|path| file_size(&path));
    std::iter::once(file_size(program)).chain(sizes).sum()
}
