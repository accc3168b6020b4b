//! The way of heads: a journald and an rsyslogd of the test's own take them from
//! the broker, and a journal's upload takes them off the machine.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use postern_core::audit::Hash;
use serde_json::Value;

use crate::certificates::certificates;
use crate::copies::{rewrite, verify};
use crate::rsyslog::put;
use crate::support::agent::{Agent, Home, eventually};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("heads_leave_the_machine_with_the_journal", heads_leave_the_machine_with_the_journal),
    ("rsyslog_takes_heads_from_syslog", rsyslog_takes_heads_from_syslog),
];

pub(crate) const JOURNALD: &str = "/lib/systemd/systemd-journald";
pub(crate) const UPLOAD: &str = "/lib/systemd/systemd-journal-upload";
pub(crate) const REMOTE: &str = "/lib/systemd/systemd-journal-remote";

const UPLOAD_CONFIGURATION: &str = include_str!("../../audit/collectors/journal-upload.conf");
const REMOTE_CONFIGURATION: &str = include_str!("../../audit/collectors/journal-remote.conf");

/// A process that ends with the test.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|why| panic!("{command:?}: {why}")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// /dev of a cell is the machine's: one of our own, with what programs need.
fn own_dev() {
    mount(Some("dev"), "/dev", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a tmpfs");
    for (name, minor) in [("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)] {
        let path = Path::new("/dev").join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, minor)).expect("a device");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("its mode");
    }
}

/// An agent that tells a head of every second record or so.
fn policy(way: &str) -> String {
    format!("profile = \"minimal\"\n[audit]\nheads = [\"{way}\"]\nhead_records = 2\nhead_interval = \"1h\"\n")
}

fn refusals(agent: &Agent<'_>) {
    let mut host = agent.connect();
    for _ in 0..20 {
        host.fails("guest-exec", &Value::Null);
    }
}

/// Numbers and hashes of heads, held against the log; how many.
fn hold(home: &Home, heads: &[(u64, String)]) {
    let log = fs::read_to_string(home.log()).expect("the log");
    let lines: Vec<&str> = log.lines().collect();
    for (number, hash) in heads {
        let line = lines[usize::try_from(*number).expect("a number") - 1];
        assert_eq!(*hash, Hash::of(line.as_bytes()).to_string(), "head of record {number}");
    }
}

/// Has `postern audit verify` hold the log against heads; then makes the log another, as root of the guest
/// could, which has to show.
fn hold_by_verify(home: &Home, heads: &Path) {
    let arguments = [Path::new("--anchors"), heads, &home.log()];
    let said = verify(&arguments).expect("the log agrees with its heads");
    assert!(said.contains("heads agree"), "{said}");
    rewrite(&home.log(), "guest-exec", "guest-ping");
    verify(&[&home.log()]).expect("the chain fits");
    let said = verify(&arguments).expect_err("the heads contradict");
    println!("    {}", said.lines().next().unwrap_or_default());
}

/// The heads in a journal as `journalctl -o json` shows them.
fn export(journal: &Path) -> String {
    let output = Command::new("/bin/journalctl")
        .arg("--directory")
        .arg(journal)
        .args(["-o", "json", "--no-pager", "MESSAGE_ID=f65ad1f760e644e4a4fcec55bd2d21eb"])
        .output()
        .expect("journalctl");
    String::from_utf8(output.stdout).expect("text")
}

/// The same, parsed.
fn heads(journal: &Path) -> Vec<Value> {
    export(journal).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn numbers(heads: &[Value]) -> Vec<(u64, String)> {
    let text = |head: &Value, field: &str| head[field].as_str().expect(field).to_owned();
    heads
        .iter()
        .map(|head| (text(head, "POSTERN_SEQUENCE").parse().expect("a number"), text(head, "POSTERN_HASH")))
        .collect()
}

fn heads_leave_the_machine_with_the_journal() {
    own_dev();
    let tls = tempfile::tempdir().expect("a temporary directory");
    certificates(tls.path());
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
    for directory in ["/etc/systemd", "/run/systemd/journal", "/run/log/journal", "/var/remote", "/var/lib"] {
        fs::create_dir_all(directory).expect("a directory");
    }
    fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n").expect("the machine's id");
    fs::write("/etc/systemd/journald.conf", "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n").expect("a file");
    let shown = tls.path().display().to_string();
    let upload = put(UPLOAD_CONFIGURATION, "/etc/postern-logs", &shown);
    let upload = put(&upload, ":19532", &format!(":{port}"));
    fs::write("/etc/hosts", "127.0.0.1 logs.example.net\n").expect("a file");
    fs::write("/etc/systemd/journal-upload.conf", upload).expect("a file");
    let remote = put(REMOTE_CONFIGURATION, "/etc/postern-logs", &shown);
    fs::write("/etc/systemd/journal-remote.conf", remote).expect("a file");

    // journald looks which unit a sender is of.
    mount(Some("cgroup"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::MS_RDONLY, None::<&str>).expect("the cgroups");
    let _journald = Daemon::start(&mut Command::new(JOURNALD));
    eventually("journald listens", || Path::new("/run/systemd/journal/socket").exists().then_some(()));
    let home = Home::new();
    let agent = home.start(&policy("journal"));
    refusals(&agent);
    let found = eventually("heads in the journal", || {
        let found = heads(Path::new("/run/log/journal"));
        (found.len() > 5).then_some(found)
    });
    hold(&home, &numbers(&found));
    for head in &found {
        // By the kernel's word, not the sender's.
        assert_eq!(head["_UID"], home.broker.to_string());
        assert_eq!(head["_PID"], agent.pid().to_string());
    }

    let _remote = Daemon::start(Command::new(REMOTE).args([
        "--listen-https",
        &format!("127.0.0.1:{port}"),
        "--output",
        "/var/remote",
    ]));
    eventually("the log server listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    let _upload = Daemon::start(Command::new(UPLOAD).arg("--save-state=/var/lib/upload"));
    let arrived = eventually("the heads on the log server", || {
        let arrived = heads(Path::new("/var/remote"));
        (arrived.len() >= found.len()).then_some(arrived)
    });
    assert_eq!(numbers(&arrived)[..found.len()], numbers(&found));
    // What comes later goes there too.
    refusals(&agent);
    let more = eventually("more heads on the log server", || {
        let more = heads(Path::new("/var/remote"));
        (more.len() > arrived.len() + 5).then_some(more)
    });
    hold(&home, &numbers(&more));
    drop(agent);
    fs::write("/run/heads.json", export(Path::new("/var/remote"))).expect("a file");
    hold_by_verify(&home, Path::new("/run/heads.json"));
}

fn rsyslog_takes_heads_from_syslog() {
    own_dev();
    // As Debian's rsyslog.conf does.
    let configuration = "module(load=\"imuxsock\")\nauth,authpriv.* /run/auth.log\n";
    fs::write("/run/rsyslog.conf", configuration).expect("a file");
    let _rsyslog =
        Daemon::start(Command::new("/bin/rsyslogd").args(["-n", "-f", "/run/rsyslog.conf", "-i", "/run/rsyslog.pid"]));
    eventually("rsyslog listens", || Path::new("/dev/log").exists().then_some(()));
    let home = Home::new();
    let agent = home.start(&policy("syslog"));
    refusals(&agent);
    let lines = eventually("heads in the file", || {
        let text = fs::read_to_string("/run/auth.log").ok()?;
        (text.lines().count() > 5).then_some(text)
    });
    let heads: Vec<(u64, String)> = lines
        .lines()
        .map(|line| {
            let (_, head) =
                line.split_once(&format!(" postern[{}]: audit head: record ", agent.pid())).expect("a head");
            let (number, rest) = head.split_once(", sha256 ").expect("a hash");
            (number.parse().expect("a number"), rest.split(',').next().expect("a hash").to_owned())
        })
        .collect();
    hold(&home, &heads);
    drop(agent);
    hold_by_verify(&home, Path::new("/run/auth.log"));
}
