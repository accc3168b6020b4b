//! Starting: each thing that stops a start has its own exit status and says
//! what to do; `postern policy check` says it before.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Output};

use crate::scene::{policy, start_quietly, with};
use crate::support::agent::{BINARY, Home};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("each_failed_start_has_its_status", each_failed_start_has_its_status),
    ("a_policy_is_checked_without_a_start", a_policy_is_checked_without_a_start),
];

/// Starts an agent that cannot start: its exit status and what it said.
fn refused(home: &Home, policy: &str) -> (Option<i32>, String) {
    let _ = fs::remove_file(home.path("stderr"));
    let status = home.command(policy).status().expect("the agent");
    (status.code(), fs::read_to_string(home.path("stderr")).expect("stderr"))
}

fn each_failed_start_has_its_status() {
    type Prepare = fn(&Home) -> String;
    /// What is wrong, the exit status, and what must be said.
    const ROWS: &[(&str, Prepare, i32, &str)] = &[
        ("an unknown key", |_| with("[freeze]\nlimits = \"1s\"\n"), 3, "policy.toml:"),
        ("a policy that others can write", open_policy, 3, "policy.toml"),
        ("a path that is not there", |_| policy().replace("HOME/files", "HOME/missing"), 3, "/missing does not exist"),
        ("a path that the account does not reach", closed_path, 4, "/closed/inner: EACCES: Permission denied"),
        ("an account that is root's", |home| with(&identities(home.worker, 0)), 3, "this number is out of range"),
        ("a socket's directory that is not there", |_| policy(), 5, "can't listen"),
        ("a log's directory of somebody else", strange_log, 6, "audit"),
        ("a log's directory that others can write", open_log, 6, "chmod it to 0700"),
        ("a log that is no file", |home| strange_file(home), 6, "is not a regular file"),
        ("a state directory of somebody else", strange_state, 1, "state directory"),
        ("a state file that is malformed", malformed_state, 1, "malformed"),
    ];
    for (what, prepare, status, said) in ROWS {
        let mut home = Home::new();
        if *status == 5 {
            home.launch = vec!["run".into(), "--channel".into(), "unix-listen:/nowhere/host.sock".into()];
        }
        let policy = prepare(&home);
        let (found, text) = refused(&home, &policy);
        assert_eq!(found, Some(*status), "{what}: {text}");
        assert!(text.contains(said), "{what}: {text}");
        assert!(!home.path("host.sock").exists() || *status == 4 || *status == 6, "{what}: nothing was opened");
        assert_eq!(text.matches("panicked").count(), 0, "{what}: {text}");
    }
    // The control: without any of it, it starts.
    let home = Home::new();
    let (_agent, mut host) = start_quietly(&home, &policy());
    host.ping();
}

fn identities(worker: u32, broker: u32) -> String {
    format!("[identities]\nworker = {worker}\nbroker = {broker}\n")
}

fn open_policy(home: &Home) -> String {
    // Written with this mode's bits kept.
    fs::write(home.path("policy.toml"), "").expect("a file");
    fs::set_permissions(home.path("policy.toml"), Permissions::from_mode(0o666)).expect("its mode");
    policy()
}

fn closed_path(home: &Home) -> String {
    directory(home, "closed", 777, 0o700);
    fs::create_dir(home.path("closed/inner")).expect("a directory");
    policy().replace("HOME/files", "HOME/closed/inner")
}

fn directory(home: &Home, name: &str, owner: u32, mode: u32) {
    fs::create_dir(home.path(name)).expect("a directory");
    chown(home.path(name), Some(owner), Some(owner)).expect("its owner");
    fs::set_permissions(home.path(name), Permissions::from_mode(mode)).expect("its mode");
}

fn strange_log(home: &Home) -> String {
    directory(home, "log", 777, 0o700);
    policy()
}

fn open_log(home: &Home) -> String {
    directory(home, "log", home.broker, 0o777);
    policy()
}

fn strange_file(home: &Home) -> String {
    directory(home, "log", home.broker, 0o700);
    fs::create_dir(home.log()).expect("a directory");
    policy()
}

fn strange_state(home: &Home) -> String {
    directory(home, "state", 777, 0o700);
    policy()
}

fn malformed_state(home: &Home) -> String {
    directory(home, "state", home.broker, 0o700);
    fs::write(home.path("state/frozen"), "something else\n").expect("a file");
    policy()
}

fn check(home: &Home) -> Output {
    let command = Command::new(BINARY).args(["policy", "check", "--policy"]).arg(home.path("policy.toml")).output();
    command.expect("postern policy check")
}

fn a_policy_is_checked_without_a_start() {
    let home = Home::new();
    home.policy(&policy());
    let good = check(&home);
    assert!(good.status.success(), "{good:?}");
    home.policy(&with("[freeze]\nlimits = \"1s\"\n"));
    let bad = check(&home);
    assert!(!bad.status.success(), "{bad:?}");
    let said = String::from_utf8_lossy(&bad.stderr).into_owned() + &String::from_utf8_lossy(&bad.stdout);
    assert!(said.contains("did you mean") || said.contains("limit"), "{said}");
    // The same words as the start's.
    let start = home.command(&with("[freeze]\nlimits = \"1s\"\n")).status().expect("the agent");
    assert_eq!(start.code(), Some(3));
    let started = fs::read_to_string(home.path("stderr")).expect("stderr");
    assert_eq!(started.trim(), said.trim());
    assert!(!home.path("log").exists() && !home.path("state").exists(), "nothing was made");
}
