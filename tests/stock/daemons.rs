//! The background, pidfile and logfile, beside stock's.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use serde_json::Value;

use crate::pair::{POLICY, STOCK, Stock, bare, here, home, terminate_stock, text};
use crate::support::agent::{Home, Host, eventually, lives};
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_daemon_stands_when_its_starter_ends", a_daemon_stands_when_its_starter_ends),
    ("a_pidfile_is_held_by_one_agent_of_either_kind", a_pidfile_is_held_by_one_agent_of_either_kind),
    ("a_pidfile_that_is_left_over_is_taken_over", a_pidfile_that_is_left_over_is_taken_over),
    ("a_daemon_that_fails_says_so_where_it_was_started", a_daemon_that_fails_says_so_where_it_was_started),
    ("the_operators_log_goes_to_its_file", the_operators_log_goes_to_its_file),
    ("a_start_on_frozen_disks_opens_no_logfile", a_start_on_frozen_disks_opens_no_logfile),
    ("links_are_not_followed", links_are_not_followed),
    ("sigterm_ends_both_with_0", sigterm_ends_both_with_0),
];

/// A daemon, killed when dropped.
struct Daemon(i32);

impl Daemon {
    /// The one whose pidfile this is.
    fn of(pidfile: &Path) -> Self {
        let text = fs::read_to_string(pidfile).expect("a pidfile");
        let pid = text.strip_suffix('\n').and_then(|pid| pid.parse().ok());
        Self(pid.unwrap_or_else(|| panic!("a process id and a newline: {text:?}")))
    }

    fn end(&self) {
        kill(Pid::from_raw(self.0), Signal::SIGTERM).expect("SIGTERM");
        self.ends();
    }

    fn ends(&self) {
        eventually("the daemon ends", || (!lives(self.0)).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

/// Runs a starter to its end: its status and what it said. The daemon has
/// neither of its ends, or this would never return.
fn start(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("the starter")
}

fn a_daemon_stands_when_its_starter_ends() {
    let home = home(&["-d", "-f", "HOME/pid", "-F/some/hook"]);
    let output = start(home.command(POLICY));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stderr).contains("/some/hook is not run"), "the starter passes it on: {output:?}");
    // At the first try: it serves already.
    let mut host = Host::over(std::os::unix::net::UnixStream::connect(home.path("host.sock")).expect("the socket"));
    host.ping();
    let daemon = Daemon::of(&home.path("pid"));
    let stocks = home.path("stock.pid");
    let stock = Stock::start(&home, &["-d", "-f", "HOME/stock.pid"]);
    stock.connect().ping();
    let stock = Daemon::of(&stocks);
    for (who, daemon, pidfile) in [("postern", &daemon, home.path("pid")), ("stock", &stock, stocks)] {
        let at = |name: &str| fs::read_link(format!("/proc/{}/{name}", daemon.0)).expect("a link of proc");
        assert_eq!(getsid(Some(Pid::from_raw(daemon.0))), Ok(Pid::from_raw(daemon.0)), "{who} leads a session");
        assert_eq!(at("cwd"), Path::new("/"), "{who}");
        for number in 0..3 {
            assert_eq!(at(&format!("fd/{number}")), Path::new("/dev/null"), "{who}");
        }
        assert_eq!(fs::metadata(&pidfile).expect("the pidfile").mode() & 0o7777, 0o600, "{who}");
    }
    daemon.end();
    terminate_stock(stock.0);
    stock.ends();
    // Stock removes its own; a confined broker cannot, and nobody holds it.
    assert!(!home.path("stock.pid").exists() && home.path("pid").exists());
}

/// Another home's agent with the first one's pidfile.
fn second(pidfile: &Path) -> (Home, Output) {
    let home = home(&["-d", "-f", pidfile.to_str().expect("UTF-8")]);
    let output = start(home.command(POLICY));
    (home, output)
}

fn a_pidfile_is_held_by_one_agent_of_either_kind() {
    // Ours holds it.
    let first = home(&["-d", "-f", "HOME/pid"]);
    let output = start(first.command(POLICY));
    assert!(output.status.success(), "{output:?}");
    let pidfile = first.path("pid");
    let daemon = Daemon::of(&pidfile);
    let (other, output) = second(&pidfile);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("process {} holds this pidfile", daemon.0);
    assert!(text(&output.stderr).contains(&expected), "{output:?}");
    assert!(!other.path("host.sock").exists());
    let mut command = bare(STOCK);
    command.args(["-d", "-m", "unix-listen", "-p"]).arg(first.path("late.sock")).arg("-f").arg(&pidfile);
    let output = command.output().expect("stock");
    assert!(text(&output.stderr).contains("Cannot lock pid file"), "{output:?}");
    assert_eq!(Daemon::of(&pidfile).0, daemon.0);
    daemon.end();
    // Stock holds it.
    let stock = Stock::start(&first, &["-d", "-f", "HOME/pid"]);
    stock.connect().ping();
    let daemon = Daemon::of(&pidfile);
    let (_, output) = second(&pidfile);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("process {} holds this pidfile", daemon.0);
    assert!(text(&output.stderr).contains(&expected), "{output:?}");
}

fn a_pidfile_that_is_left_over_is_taken_over() {
    let home = home(&["-d", "-f", "HOME/pid"]);
    fs::write(home.path("pid"), "99999999 and more\n").expect("a file");
    for _ in 0..2 {
        let output = start(home.command(POLICY));
        assert!(output.status.success(), "{output:?}");
        let daemon = Daemon::of(&home.path("pid"));
        assert!(lives(daemon.0));
        Host::connect(&home.path("host.sock")).ping();
        daemon.end();
    }
}

fn a_daemon_that_fails_says_so_where_it_was_started() {
    /// What is wrong, words, the policy's change, what is said.
    const ROWS: &[(&str, &[&str], [&str; 2], &str)] = &[
        ("pidfile", &["-f", "/nowhere/pid"], ["", ""], "/nowhere/pid: No such file or directory"),
        ("logfile", &["-f", "HOME/pid", "-l", "/nowhere/log"], ["", ""], "/nowhere/log: No such file or directory"),
        ("channel", &["-f", "HOME/pid", "-m", "unix-listen", "-p", "/nowhere/x"], ["", ""], "can't listen"),
        // Found out by the opener only, after all else stands.
        ("path", &["-f", "HOME/pid"], ["HOME/files", "HOME/closed/inner"], "/closed/inner: EACCES"),
    ];
    for (what, words, [from, to], said) in ROWS {
        let home = home(&[&["-d"], *words].concat());
        fs::create_dir_all(home.path("closed/inner")).expect("a directory");
        fs::set_permissions(home.path("closed"), fs::Permissions::from_mode(0o700)).expect("its mode");
        let policy = if from.is_empty() { POLICY.to_owned() } else { POLICY.replace(from, to) };
        let output = start(home.command(&policy));
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        assert!(text(&output.stderr).contains(said), "{what}: {output:?}");
    }
}

fn the_operators_log_goes_to_its_file() {
    for words in [&["-l", "HOME/operator.log"][..], &["-d", "-f", "HOME/pid", "-l", "HOME/operator.log"]] {
        let home = home(words);
        let log = home.path("operator.log");
        File::create(&log).expect("a file");
        fs::write(&log, "before\n").expect("a line");
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).expect("its mode");
        let mut command = home.command(POLICY);
        // A service manager's word for a stream that the log is not.
        command.env("JOURNAL_STREAM", "1:1");
        let daemon = words.contains(&"-d");
        if daemon {
            let output = start(command);
            assert!(output.status.success(), "{output:?}");
            Daemon::of(&home.path("pid")).end();
        } else {
            let mut agent = home.start_command(command);
            agent.signal("broker", Signal::SIGTERM);
            assert_eq!(agent.ended().code(), Some(0));
            assert_eq!(agent.said(), "", "nothing goes to stderr");
        }
        let text = fs::read_to_string(&log).expect("the log");
        assert!(text.starts_with("before\n") && text.contains("\npostern: ready\n"), "{text}");
        assert!(!text.contains('<'), "no journal's prefix: {text}");
    }
    // One that is made is its owner's.
    let home = home(&["-l", "HOME/operator.log"]);
    let agent = home.start(POLICY);
    assert_eq!(fs::metadata(home.path("operator.log")).expect("the log").mode() & 0o7777, 0o600);
    assert_eq!(agent.connect().returns("guest-ping", &Value::Null), serde_json::json!({}));
}

fn a_start_on_frozen_disks_opens_no_logfile() {
    let disk = Disk::small("ext4", "/disk.img");
    let mount = disk.mount("/disk");
    let mut home = home(&[]);
    let mut first = home.start(POLICY);
    assert_eq!(first.connect().returns("guest-fsfreeze-freeze", &Value::Null), 1);
    first.child.kill().expect("SIGKILL");
    first.child.wait().expect("its end");
    assert!(mount.is_frozen());
    let words = ["-d", "-f", "HOME/pid", "-l", "/disk/operator.log"];
    drop(first);
    home.launch = here(&home, &words);
    let output = start(home.command(POLICY));
    assert!(output.status.success(), "{output:?}");
    // The pidfile lies in memory, which nothing freezes.
    let daemon = Daemon::of(&home.path("pid"));
    let mut host = Host::connect(&home.path("host.sock"));
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "frozen");
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 1);
    assert!(!mount.is_frozen() && !mount.path("operator.log").exists());
    daemon.end();
    // The control: without a freeze it is opened.
    assert!(start(home.command(POLICY)).status.success());
    let daemon = Daemon::of(&home.path("pid"));
    assert!(mount.path("operator.log").exists());
    daemon.end();
}

fn links_are_not_followed() {
    for words in [&["-d", "-f", "HOME/link"][..], &["-l", "HOME/link"], &["-d", "-f", "HOME/pid", "-l", "HOME/link"]] {
        let home = home(words);
        fs::write(home.path("target"), "kept").expect("a file");
        symlink(home.path("target"), home.path("link")).expect("a link");
        let output = start(home.command(POLICY));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains("a symbolic link"), "{output:?}");
        assert_eq!(fs::read_to_string(home.path("target")).expect("the target"), "kept");
    }
}

fn sigterm_ends_both_with_0() {
    let home = home(&[]);
    let mut agent = home.start(POLICY);
    let mut stock = Stock::start(&home, &[]);
    stock.connect().ping();
    agent.signal("broker", Signal::SIGTERM);
    terminate_stock(stock.child.id().cast_signed());
    assert_eq!(agent.ended().code(), Some(0));
    assert_eq!(stock.child.wait().expect("its end").code(), Some(0));
}
