//! Shutting down through the agent, before a fake process 1: first process of a
//! PID namespace inside the cell, in which `reboot(2)` ends just that namespace.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::scene::{start_quietly, story, verify};
use crate::support::agent::Home;
use crate::support::cell;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("systemd_gets_its_signals", systemd_gets_its_signals),
    ("busybox_gets_its_signals", busybox_gets_its_signals),
    ("sysvinit_gets_its_requests", sysvinit_gets_its_requests),
    ("what_the_policy_lacks_is_refused", what_the_policy_lacks_is_refused),
    ("an_unknown_init_is_not_asked", an_unknown_init_is_not_asked),
    ("the_kernel_is_asked_where_the_policy_says", the_kernel_is_asked_where_the_policy_says),
    ("init_that_cannot_be_asked_is_an_error", init_that_cannot_be_asked_is_an_error),
];

pub(crate) const ROLES: &[Role] = &[("init", init)];

/// Every mode, as a policy lists them.
const ALL: &str = "\"powerdown\", \"halt\", \"reboot\"";
/// Where the fake init's agents live.
const HOMES: &str = "/run/homes";

/// A fake process 1: starts an agent, is its host too, and tells what reached
/// it, one fact per line. Arguments: method, modes of the policy, wanted mode
/// (or `none`), and `deaf` for an init that stops reading its FIFO.
fn init(arguments: &[String]) {
    not_the_machine();
    // Blocked signals reach even process 1, which ignores what it has no handler
    // for.
    let every = SigSet::all();
    every.thread_block().expect("blocking signals");
    let inbox = SignalFd::with_flags(&every, SfdFlags::SFD_NONBLOCK).expect("a signalfd");
    let fifo = Path::new("/run/initctl");
    let mut fifo = fifo.exists().then(|| open_fifo(fifo));
    let [method, modes, wanted, rest @ ..] = arguments else { panic!("four arguments") };
    let home = Home::new();
    let policy = format!(
        "profile = \"minimal\"\n[commands]\nallow = [\"guest-shutdown\"]\n\
         [shutdown]\nmodes = [{modes}]\nmethod = \"{method}\"\n"
    );
    let (agent, mut host) = start_quietly(&home, &policy);
    if rest.contains(&"deaf".to_owned()) {
        fifo = None;
    }
    let arguments = if wanted == "none" { json!({}) } else { json!({ "mode": wanted }) };
    let request = json!({ "execute": "guest-shutdown", "arguments": arguments, "id": "shutdown" });
    host.send(request.to_string().as_bytes());
    // A shutdown that goes well has no reply: the next one is the ping's.
    host.send(b"{\"execute\": \"guest-ping\", \"id\": \"ping\"}");
    let mut replies = vec![host.hear()];
    if replies[0]["id"] == "shutdown" {
        replies.push(host.hear());
    }
    assert_eq!(replies.pop().expect("a reply")["id"], "ping");
    let refused = !replies.is_empty();
    for reply in replies {
        println!("{}: {}", reply["error"]["class"].as_str().expect("an error"), reply["error"]["desc"]);
    }
    // Where init is known only `kernel` means the kernel.
    let systemd = Path::new("/run/systemd/system").exists();
    let due = method == "kernel" || (method == "auto" && !systemd);
    wait_for_reboot(due && !refused);
    while let Some(info) = inbox.read_signal().expect("the signalfd") {
        if info.ssi_signo.cast_signed() != libc::SIGCHLD {
            println!("signal {} from uid {}", info.ssi_signo, if info.ssi_uid == home.broker { "broker" } else { "?" });
        }
    }
    if let Some(fifo) = &mut fifo {
        let mut bytes = [0; 4096];
        let length = fifo.read(&mut bytes).unwrap_or(0);
        bytes[..length].chunks(384).for_each(|request| println!("{}", shown(request)));
    }
    let capabilities = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the broker's status");
    let effective = capabilities.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("CapEff");
    println!("CapEff {effective}");
    let story = story(&agent);
    story.iter().filter(|line| line.starts_with("guest-shutdown")).for_each(|line| println!("{line}"));
    if let Some(last) = agent.records_of("guest-shutdown").pop() {
        println!("{}", last["postern"]["shutdown"]);
    }
}

/// The kernel's answer to `reboot(2)` ends this namespace and us with it, at any
/// moment; where none is due it is waited for a little.
fn wait_for_reboot(due: bool) {
    let nothing = open_fifo_pair();
    let mut never = [PollFd::new(nothing.as_fd(), PollFlags::POLLIN)];
    // A liveness bound: before it comes sync(2), for which the whole machine's
    // disks count.
    let limit = if due { Duration::from_secs(120) } else { Duration::from_millis(500) };
    let _ = poll(&mut never, PollTimeout::try_from(limit).expect("a limit"));
}

fn open_fifo_pair() -> File {
    let path = Path::new("/run/nothing");
    let _ = mkfifo(path, Mode::S_IRWXU);
    open_fifo(path)
}

/// Both ends, as sysvinit opens it, so that it never reads as ended.
fn open_fifo(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).expect("the FIFO")
}

/// Panics unless process 1 of this PID namespace is the fake one: then neither
/// kill(1) nor `reboot(2)` can mean the machine.
fn not_the_machine() {
    assert_eq!(std::process::id(), 1, "a fake process 1");
    let first = fs::read_to_string("/proc/1/cmdline").expect("who is process 1");
    assert!(first.contains("\0--role\0init\0"), "process 1 is {first:?}, not the test's");
}

/// One `struct init_request` in words.
fn shown(request: &[u8]) -> String {
    let number = |at: usize| i32::from_ne_bytes(request[at..at + 4].try_into().expect("an int"));
    let data = &request[16..];
    let text = data.split(|&byte| byte == 0).next().unwrap_or_default();
    format!(
        "request of {} bytes: magic {:#010x} cmd {} runlevel {} data '{}'",
        request.len(),
        number(0),
        number(4),
        char::from(u8::try_from(number(8)).expect("a character")).escape_default(),
        String::from_utf8_lossy(text)
    )
}

/// Which init is faked, by the marks that real ones have.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Systemd,
    Busybox,
    Sysvinit,
    Unknown,
}

/// What reached an init of this kind, and how it ended.
fn stage(kind: Kind, arguments: &[&str]) -> (Vec<String>, ExitStatus) {
    for leftover in ["/run/systemd", HOMES] {
        let _ = fs::remove_dir_all(leftover);
    }
    let _ = fs::remove_file("/run/initctl");
    fs::create_dir(HOMES).expect("a directory");
    let mut program = cell::SELF;
    match kind {
        Kind::Systemd => {
            fs::create_dir_all("/run/systemd/system").expect("systemd's mark");
            // As on a real guest; it must not be mistaken for sysvinit's.
            mkfifo("/run/initctl", Mode::S_IRWXU).expect("a FIFO");
        }
        Kind::Busybox => {
            program = "/bin/busybox";
            fs::copy(cell::SELF, program).expect("busybox's mark");
        }
        Kind::Sysvinit => mkfifo("/run/initctl", Mode::S_IRWXU).expect("sysvinit's mark"),
        Kind::Unknown => {}
    }
    let output = Command::new("/bin/unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--", program, "--role", "init"])
        .args(arguments)
        .env("TMPDIR", HOMES)
        .stderr(Stdio::inherit())
        .output()
        .expect("unshare");
    let heard = String::from_utf8(output.stdout).expect("text");
    (heard.lines().map(str::to_owned).collect(), output.status)
}

/// As [`stage`], for an init that lives on.
fn heard(kind: Kind, arguments: &[&str]) -> Vec<String> {
    let (heard, status) = stage(kind, arguments);
    assert!(status.success(), "{status}: {heard:?}");
    heard
}

/// `CAP_KILL` alone.
const KILL: &str = "CapEff 0000000000000020";

fn systemd_gets_its_signals() {
    // systemd(1): SIGRTMIN+4 powers off, +3 halts, +5 reboots; SIGRTMIN is 34.
    for (mode, signal) in [("powerdown", 38), ("halt", 37), ("reboot", 39)] {
        let facts = heard(Kind::Systemd, &["init", ALL, mode]);
        let record = format!("{{\"method\":\"init\",\"mode\":\"{mode}\"}}");
        assert_eq!(facts, [&format!("signal {signal} from uid broker"), KILL, "guest-shutdown asked", &record]);
    }
    // Without a mode: powerdown.
    assert_eq!(heard(Kind::Systemd, &["init", ALL, "none"])[0], "signal 38 from uid broker");
    // The kernel is the second choice.
    let (facts, status) = stage(Kind::Systemd, &["auto", ALL, "reboot"]);
    assert!(status.success(), "{status}");
    assert_eq!(facts[0], "signal 39 from uid broker");
}

fn busybox_gets_its_signals() {
    for (mode, signal) in [("powerdown", libc::SIGUSR2), ("halt", libc::SIGUSR1), ("reboot", libc::SIGTERM)] {
        let facts = heard(Kind::Busybox, &["init", ALL, mode]);
        assert_eq!(facts[..3], [&format!("signal {signal} from uid broker"), KILL, "guest-shutdown asked"]);
    }
}

fn sysvinit_gets_its_requests() {
    let runlevel = |level| format!("request of 384 bytes: magic 0x03091969 cmd 1 runlevel {level} data ''");
    let variable =
        |value| format!("request of 384 bytes: magic 0x03091969 cmd 6 runlevel \\u{{0}} data 'INIT_HALT={value}'");
    let wanted = [
        ("powerdown", vec![variable("POWEROFF"), runlevel(0)]),
        ("halt", vec![variable("HALT"), runlevel(0)]),
        ("reboot", vec![runlevel(6)]),
    ];
    for (mode, requests) in wanted {
        let facts = heard(Kind::Sysvinit, &["init", ALL, mode]);
        assert_eq!(facts[..requests.len()], requests);
        assert_eq!(facts[requests.len() + 1], "guest-shutdown asked");
    }
}

fn what_the_policy_lacks_is_refused() {
    let why = "the guest's policy does not allow this mode";
    for kind in [Kind::Systemd, Kind::Busybox, Kind::Sysvinit] {
        let facts = heard(kind, &["init", "\"powerdown\", \"halt\"", "reboot"]);
        assert_eq!(facts[0], format!("GenericError: \"{why}\""));
        assert!(facts.contains(&format!("guest-shutdown refused ({why})")), "{facts:?}");
        assert!(facts.contains(&"{\"mode\":\"reboot\"}".to_owned()), "{facts:?}");
        assert!(!facts.iter().any(|fact| fact.starts_with("signal") || fact.starts_with("request")), "{facts:?}");
    }
    // By the kernel too.
    let facts = heard(Kind::Unknown, &["kernel", "\"powerdown\", \"halt\"", "reboot"]);
    assert_eq!(facts[0], format!("GenericError: \"{why}\""));
    // What is no mode at all is an error of the protocol.
    let facts = heard(Kind::Systemd, &["init", ALL, "sleep"]);
    assert_eq!(facts, ["GenericError: \"mode is invalid (valid values are: halt|powerdown|reboot\"", KILL]);
}

fn an_unknown_init_is_not_asked() {
    let facts = heard(Kind::Unknown, &["init", ALL, "powerdown"]);
    assert_eq!(facts[0], "GenericError: \"the guest's init is not one that can be asked\"");
    let refused = facts.iter().find(|fact| fact.starts_with("guest-shutdown refused")).expect("a record");
    assert!(refused.contains("init is none of systemd, sysvinit and busybox"), "{refused}");
}

fn init_that_cannot_be_asked_is_an_error() {
    // It was there when the agent started, and reads its FIFO no more.
    let facts = heard(Kind::Sysvinit, &["init", ALL, "powerdown", "deaf"]);
    assert!(facts[0].starts_with("GenericError: \"asking init failed: "), "{facts:?}");
    assert_eq!(facts[2..4], ["guest-shutdown asked", "guest-shutdown failed"], "{facts:?}");
}

/// The log of the only home there is, which its namespace's end left behind.
fn log_left_behind() -> PathBuf {
    let homes: Vec<PathBuf> = fs::read_dir(HOMES).expect("homes").flatten().map(|entry| entry.path()).collect();
    assert_eq!(homes.len(), 1, "{homes:?}");
    homes[0].join("log/audit.jsonl")
}

fn the_kernel_is_asked_where_the_policy_says() {
    // `reboot(2)` in a PID namespace ends its process 1 by SIGHUP (restart) or
    // SIGINT (halt, power off): `reboot_pid_ns` in the kernel.
    for (kind, method) in [(Kind::Systemd, "kernel"), (Kind::Unknown, "auto")] {
        for (mode, signal) in [("reboot", libc::SIGHUP), ("powerdown", libc::SIGINT), ("halt", libc::SIGINT)] {
            let (facts, status) = stage(kind, &[method, ALL, mode]);
            assert_eq!(status.signal(), Some(signal), "{method} {mode}: {facts:?}");
            let log = log_left_behind();
            verify(&[&log]);
            let text = fs::read_to_string(&log).expect("the log");
            let mut records = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            let last = records.rfind(|record| record["event"]["action"] == "guest-shutdown").expect("a record");
            assert_eq!(last["postern"]["stage"], "asked");
            assert_eq!(last["postern"]["shutdown"], json!({ "mode": mode, "method": method }));
        }
    }
}
