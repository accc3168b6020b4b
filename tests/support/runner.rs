//! A small test runner (`harness = false`): every test is a process of its own
//! in a [`cell`](super::cell), and the same executable plays the other roles that a
//! test needs (`--role NAME …`), with a main thread of their own.
//!
//! `cargo test --test freeze -- NAME` runs the tests whose name contains NAME.
//! Without root the tests are named as not run; with `CI` set that is a failure.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::cell;

/// A test: its name and what it does. It fails by panicking.
pub(crate) type Test = (&'static str, fn());

/// A role: its name and what it does with the arguments.
pub(crate) type Role = (&'static str, fn(&[String]));

/// A test that takes longer hangs, and is killed. Not an assertion about time:
/// far beyond what any of them takes, also where others have most of the machine.
const HANG: Duration = Duration::from_secs(600);

/// [`HANG`], or more for a run by hand: seconds in `POSTERN_TEST_HANG`.
fn hang() -> Duration {
    env::var("POSTERN_TEST_HANG").ok().and_then(|seconds| seconds.parse().ok()).map_or(HANG, Duration::from_secs)
}

/// What `main` of such a test target does.
pub(crate) fn main(tests: &[Test], roles: &[Role], programs: &[&str]) -> ExitCode {
    main_by(processors(), tests, roles, programs)
}

/// As [`main`], with so many tests at a time: more than there are processors where
/// tests mostly wait.
pub(crate) fn main_by(hands: usize, tests: &[Test], roles: &[Role], programs: &[&str]) -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--role") => {
            let name = &arguments[1];
            let (_, role) = roles.iter().find(|(role, _)| role == name).expect("a role of this target");
            role(&arguments[2..]);
            ExitCode::SUCCESS
        }
        Some("--in-cell") => {
            let name = &arguments[1];
            let (_, test) = tests.iter().find(|(test, _)| test == name).expect("a test of this target");
            cell::enter(Path::new(&arguments[2]), programs);
            test();
            ExitCode::SUCCESS
        }
        Some("--list") => {
            for (name, _) in tests {
                println!("{name}: test");
            }
            ExitCode::SUCCESS
        }
        _ => run(tests, &arguments, |chosen| each(chosen, hands, passes)),
    }
}

pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// sync(2) waits for every disk of the machine, also for those that another test
/// has stuck or frozen, and keeps these from being thawed meanwhile.
const ALONE: &[&str] = &["the_kernel_is_asked_where_the_policy_says"];

/// Whether each of `tests` passes, `hands` at a time; those of [`ALONE`] behind the
/// others.
fn each(tests: &[&Test], hands: usize, passes: impl Fn(&'static str) -> bool + Sync) -> Vec<(&'static str, bool)> {
    let (alone, together): (Vec<&Test>, Vec<&Test>) = tests.iter().partition(|(name, _)| ALONE.contains(name));
    let waiting = Mutex::new(together.iter());
    let results = Mutex::new(Vec::new());
    let next = || waiting.lock().expect("no test panics in here").next();
    thread::scope(|scope| {
        for _ in 0..hands {
            scope.spawn(|| {
                while let Some((name, _)) = next() {
                    let passed = passes(name);
                    results.lock().expect("no test panics in here").push((*name, passed));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no test panics in here");
    results.extend(alone.iter().map(|(name, _)| (*name, passes(name))));
    results
}

/// What `main` of a target does whose tests work on virtual machines: each is a
/// process in mount and PID namespaces of its own, so that nothing it started
/// or mounted outlives it, but with the machine's own root. One more at a
/// time than there are processors, for much of it is waiting; what they print is shown if they fail. `prepare` is
/// called once, before the first: variables for the tests' environment. What tests
/// note ends up in a table with these columns between name and result.
pub(crate) fn main_on_machine(
    tests: &[Test],
    columns: &[&str],
    prepare: impl Fn() -> Vec<(&'static str, PathBuf)>,
) -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--in-namespace") => {
            let (_, test) = tests.iter().find(|(test, _)| *test == arguments[1]).expect("a test of this target");
            test();
            ExitCode::SUCCESS
        }
        Some("--list") => main(tests, &[], &[]),
        _ => run(tests, &arguments, |chosen| {
            let notes = tempfile::tempdir().expect("a temporary directory");
            let environment = if chosen.is_empty() { Vec::new() } else { prepare() };
            let results = each(chosen, processors() + 1, |name| passes_on_machine(name, notes.path(), &environment));
            print_table(chosen, columns, &results, notes.path());
            results
        }),
    }
}

/// Where a test leaves its row of the table.
const NOTE: &str = "POSTERN_TEST_NOTE";

/// Notes what a test found out, for the table behind the results: cells with
/// ` | ` between them.
pub(crate) fn note(cells: &str) {
    if let Some(path) = env::var_os(NOTE) {
        fs::write(path, cells).expect("a note");
    }
}

fn print_table(tests: &[&Test], columns: &[&str], results: &[(&str, bool)], notes: &Path) {
    println!("\n| test | {} | result |\n|---{}|---|", columns.join(" | "), "|---".repeat(columns.len()));
    for (name, _) in tests {
        if let Ok(note) = fs::read_to_string(notes.join(name)) {
            let passed = results.contains(&(*name, true));
            println!("| {name} | {note} | {} |", if passed { "ok" } else { "FAILED" });
        }
    }
}

fn passes_on_machine(name: &str, notes: &Path, environment: &[(&str, PathBuf)]) -> bool {
    let started = Instant::now();
    let output = notes.join(format!("{name}.output"));
    let file = fs::File::create(&output).expect("a file");
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(env::current_exe().expect("the path of this test"))
        .args(["--in-namespace", name])
        .env(NOTE, notes.join(name))
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a second descriptor"))
        .stderr(file)
        .spawn()
        .expect("unshare (util-linux)");
    let passed = loop {
        if let Some(status) = child.try_wait().expect("the child's status") {
            break status.success();
        }
        if started.elapsed() > HANG_ON_MACHINE {
            let _ = child.kill();
            let _ = child.wait();
            break false;
        }
        sleep(Duration::from_millis(20));
    };
    let said = if passed { String::new() } else { fs::read_to_string(&output).unwrap_or_default() };
    let result = if passed { "ok" } else { "FAILED" };
    println!("{said}test {name} ... {result} ({} s)", started.elapsed().as_secs());
    passed
}

/// What a test on virtual machines may take; as [`HANG`].
const HANG_ON_MACHINE: Duration = Duration::from_secs(900);

fn run(tests: &[Test], arguments: &[String], results: impl FnOnce(&[&Test]) -> Vec<(&'static str, bool)>) -> ExitCode {
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen: Vec<&Test> = tests
        .iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    if !nix::unistd::geteuid().is_root() {
        for (name, _) in &chosen {
            println!("test {name} ... NOT RUN: needs root");
        }
        let may_be = env::var_os("CI").is_none();
        sum_up(0, 0, chosen.len());
        return if may_be { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let failed: Vec<&str> = results(&chosen).into_iter().filter(|(_, passed)| !passed).map(|(name, _)| name).collect();
    sum_up(chosen.len() - failed.len(), failed.len(), 0);
    for name in &failed {
        println!("    failed: {name}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The line that cargo's own test harness ends with.
fn sum_up(passed: usize, failed: usize, ignored: usize) {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out\n"
    );
}

fn passes(name: &str) -> bool {
    let root = tempfile::tempdir().expect("a temporary directory");
    // Shown in one piece: another test runs beside it.
    let said = tempfile::NamedTempFile::new().expect("a temporary file");
    // With --kill-child the end of unshare ends everything in the cell.
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"])
        .arg(env::current_exe().expect("the path of this test"))
        .args(["--in-cell", name])
        .arg(root.path())
        .stdout(appending(said.path()))
        .stderr(appending(said.path()))
        .spawn()
        .expect("unshare (util-linux)");
    let started = Instant::now();
    let status: Result<ExitStatus, &str> = loop {
        if let Some(status) = child.try_wait().expect("the child's status") {
            break Ok(status);
        }
        if started.elapsed() > hang() {
            let disks = disks_below(child.id());
            let _ = child.kill();
            rescue(&disks);
            let _ = child.wait();
            break Err("hangs");
        }
        sleep(Duration::from_millis(20));
    };
    let result = match status {
        Ok(status) if status.success() => "ok".to_owned(),
        Ok(status) => format!("FAILED ({status})"),
        Err(why) => format!("FAILED ({why})"),
    };
    let said = String::from_utf8_lossy(&fs::read(said.path()).unwrap_or_default()).into_owned();
    println!("{said}test {name} ... {result} ({:.1} s)", started.elapsed().as_secs_f32());
    matches!(status, Ok(status) if status.success())
}

/// The file at `path`, to write on at its end.
fn appending(path: &Path) -> fs::File {
    fs::OpenOptions::new().append(true).open(path).expect("the file")
}

/// The loop devices that a cell has mounted, in the order of its mount table.
fn disks_below(process: u32) -> Vec<String> {
    let read = |what: &str| fs::read_to_string(format!("/proc/{process}/{what}")).unwrap_or_default();
    let mut disks: Vec<String> = read("mountinfo")
        .lines()
        .filter_map(|line| line.split(' ').find(|word| word.starts_with("/dev/loop")).map(str::to_owned))
        .collect();
    for child in read(&format!("task/{process}/children")).split_whitespace().filter_map(|id| id.parse().ok()) {
        disks.extend(disks_below(child));
    }
    disks
}

/// Thaws and detaches what a hanging test left: a process that waits for a
/// thaw cannot be killed, and a frozen filesystem keeps its loop device even
/// when no mount is left. Mounting the device anew leads to the same filesystem.
fn rescue(disks: &[String]) {
    let mount = tempfile::tempdir().expect("a temporary directory");
    let script = "timeout 5 mount \"$1\" \"$2\" && timeout 5 fsfreeze --unfreeze \"$2\"; true";
    // What a lower filesystem's thaw sets free may need its own.
    for disk in disks.iter().chain(disks) {
        let _ = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", disk])
            .arg(mount.path())
            .stderr(Stdio::null())
            .status();
    }
    for disk in disks {
        let _ = Command::new("losetup").args(["--detach", disk]).stderr(Stdio::null()).status();
    }
}
