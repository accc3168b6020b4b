//! Shutting down through the agent, before a fake process 1: see `support::init`.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread::sleep;
use std::time::Duration;

use nix::libc;
use serde_json::{Value, json};

use crate::scene::{start_quietly, story, verify};
use crate::support::agent::{Home, eventually};
use crate::support::init::{self as inits, Inbox, Kind, halt_is, runlevel};
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
    let mut inbox = Inbox::open();
    let [method, modes, wanted, rest @ ..] = arguments else { panic!("four arguments") };
    let home = Home::new();
    let policy = format!(
        "profile = \"minimal\"\n[commands]\nallow = [\"guest-shutdown\"]\n\
         [shutdown]\nmodes = [{modes}]\nmethod = \"{method}\"\n"
    );
    let (agent, mut host) = start_quietly(&home, &policy);
    if rest.contains(&"deaf".to_owned()) {
        inbox.turn_deaf();
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
    let (mut signals, mut requests) = (Vec::new(), Vec::new());
    let mut heard = || {
        signals.extend(inbox.signals());
        requests.extend(inbox.requests());
        // What it is told first is what its halt is to be.
        !signals.is_empty() || requests.last().is_some_and(|request| !request.contains("INIT_HALT"))
    };
    if !refused && !due {
        eventually("init is asked", || heard().then_some(()));
    }
    wait_for_reboot(due && !refused);
    heard();
    for info in signals {
        println!("signal {} from uid {}", info.ssi_signo, if info.ssi_uid == home.broker { "broker" } else { "?" });
    }
    for request in requests {
        println!("{request}");
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
/// moment; where none is due it is waited for a little, as for what else should not
/// come.
fn wait_for_reboot(due: bool) {
    // A liveness bound: before it comes sync(2), for which the whole machine's
    // disks count.
    sleep(if due { Duration::from_secs(120) } else { Duration::from_millis(500) });
}

/// What reached an init of this kind, and how it ended.
fn stage(kind: Kind, arguments: &[&str]) -> (Vec<String>, ExitStatus) {
    let _ = fs::remove_dir_all(HOMES);
    fs::create_dir(HOMES).expect("a directory");
    inits::stage(kind, HOMES, arguments)
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
    let wanted = [
        ("powerdown", vec![halt_is("POWEROFF"), runlevel(0)]),
        ("halt", vec![halt_is("HALT"), runlevel(0)]),
        ("reboot", vec![runlevel(6)]),
    ];
    for (mode, requests) in wanted {
        let facts = heard(Kind::Sysvinit, &["init", ALL, mode]);
        assert_eq!(facts[..requests.len()], requests);
        assert_eq!(facts[requests.len()], "CapEff 0000000000000000", "its FIFO is open, and no signal is sent");
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
