//! What the tests of the whole agent have in common: policies, scratch disks, a
//! start that does not look at the log, verdicts on logs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::support::agent::{Agent, BINARY, Home, Host, eventually};
use crate::support::disk::Mounted;

/// Files of HOME/files, every freeze command, all shutdowns through init.
pub(crate) fn policy() -> String {
    with("")
}

/// [`policy`] with more tables.
pub(crate) fn with(tables: &str) -> String {
    format!(
        "profile = \"files\"\n[commands]\nallow = [\"guest-shutdown\", \"guest-fsfreeze-status\", \
         \"guest-fsfreeze-freeze\", \"guest-fsfreeze-freeze-list\", \"guest-fsfreeze-thaw\"]\n\
         [[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n\
         [shutdown]\nmodes = [\"powerdown\", \"reboot\"]\n{tables}"
    )
}

/// Starts an agent and waits for its answer instead of its records, which a
/// frozen log does not show.
pub(crate) fn start_quietly<'a>(home: &'a Home, policy: &str) -> (Agent<'a>, Host) {
    start_quietly_by(home, home.command(policy))
}

/// As [`start_quietly`], by a command of the home.
pub(crate) fn start_quietly_by(home: &Home, mut command: Command) -> (Agent<'_>, Host) {
    let child = command.spawn().expect("the agent");
    let mut agent = Agent { home, child };
    let socket = home.path("host.sock");
    eventually("the agent listens", || {
        if let Some(status) = agent.child.try_wait().expect("the agent's status") {
            panic!("the agent ended ({status}): {}", agent.said());
        }
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    let mut host = agent.connect();
    host.ping();
    (agent, host)
}

/// Kills the broker with SIGKILL; all of its family is gone then.
pub(crate) fn kill_broker(mut agent: Agent<'_>) {
    let family = agent.family();
    agent.child.kill().expect("SIGKILL");
    agent.child.wait().expect("its end");
    eventually("its family is gone", || family.values().all(|pid| !crate::support::agent::lives(*pid)).then_some(()));
}

/// Makes a directory on a disk the home's `name`, for the broker alone.
pub(crate) fn own_directory(home: &Home, on: &Mounted, name: &str) -> Mounted {
    let directory = on.path(name);
    fs::create_dir(&directory).expect("a directory");
    chown(&directory, Some(home.broker), Some(home.broker)).expect("its owner");
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).expect("its mode");
    Mounted::bind(&directory, &home.path(name))
}

/// Has the host's files lie on a disk of the worker's account.
pub(crate) fn files_on(home: &Home, disk: &Mounted) -> Mounted {
    let files = own_directory(home, disk, "files");
    chown(&files.at, Some(home.worker), Some(home.worker)).expect("the files' owner");
    files
}

/// Has a host ask for a new file where somebody else has frozen; the opener that
/// waits there for the thaw.
pub(crate) fn open_that_waits(agent: &Agent<'_>, host: &mut Host) -> i32 {
    let new = agent.home.files().join("new");
    send(host, "guest-file-open", &json!({ "path": new, "mode": "w" }), "open");
    let opener = agent.process("opener", 0);
    eventually("the opener waits for the thaw", || {
        fs::read_to_string(format!("/proc/{opener}/stat")).is_ok_and(|stat| stat.contains(") D ")).then_some(())
    });
    opener
}

/// A small tmpfs for the broker alone, as the home's `name`.
pub(crate) fn small_tmpfs(home: &Home, name: &str, kibibytes: u32) {
    let at = home.path(name);
    fs::create_dir(&at).expect("a directory");
    let options = format!("size={kibibytes}k,mode=700,uid={},gid={}", home.broker, home.broker);
    mount(Some("small"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).expect("a tmpfs");
}

/// Has `postern audit verify` look at these files; they must be whole.
pub(crate) fn verify(files: &[&Path]) -> String {
    let output = Command::new(BINARY).args(["audit", "verify"]).args(files).output().expect("postern audit verify");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

/// The log of a home, which must be whole: what happened, as
/// `action`, `action stage` or `action (reason)`.
pub(crate) fn story(agent: &Agent<'_>) -> Vec<String> {
    verify(&[&agent.home.log()]);
    agent.records().iter().map(told).collect()
}

/// [`story`] of the freeze and thaw commands only.
pub(crate) fn story_of_freezes(agent: &Agent<'_>) -> Vec<String> {
    story(agent).into_iter().filter(|line| line.starts_with("guest-fsfreeze")).collect()
}

fn told(record: &Value) -> String {
    let action = record["event"]["action"].as_str().expect("an action");
    let stage = record["postern"]["stage"].as_str().map(|stage| format!(" {stage}")).unwrap_or_default();
    let mounts = record["postern"]["mounts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mounts: String = mounts.flat_map(|mount| [" ", mount]).collect();
    let reason = record["event"]["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{action}{stage}{mounts}{reason}")
}

/// Sends a request without waiting for its reply.
pub(crate) fn send(host: &mut Host, command: &str, arguments: &Value, id: &str) {
    let arguments = if arguments.is_null() { serde_json::json!({}) } else { arguments.clone() };
    let request = serde_json::json!({ "execute": command, "arguments": arguments, "id": id });
    host.send(request.to_string().as_bytes());
}

/// The next reply, which must be to the request with this id: an error's text or
/// what it returns.
pub(crate) fn reply_to(host: &mut Host, id: &str) -> Result<Value, String> {
    let reply = host.hear();
    assert_eq!(reply["id"], id, "a reply to something else: {reply}");
    match reply["error"]["desc"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok(reply["return"].clone()),
    }
}

pub(crate) fn status(host: &mut Host) -> String {
    let status = host.returns("guest-fsfreeze-status", &Value::Null);
    status.as_str().expect("a status").to_owned()
}

/// Asks for a freeze or thaw; how many filesystems.
pub(crate) fn count(host: &mut Host, command: &str) -> i64 {
    host.returns(command, &Value::Null).as_i64().expect("a number")
}

pub(crate) fn freeze(host: &mut Host) -> i64 {
    count(host, "guest-fsfreeze-freeze")
}

pub(crate) fn thaw(host: &mut Host) -> i64 {
    count(host, "guest-fsfreeze-thaw")
}

pub(crate) fn frozen_list(host: &mut Host, mountpoints: &[&str]) -> Result<i64, String> {
    let reply = host.ask("guest-fsfreeze-freeze-list", &serde_json::json!({ "mountpoints": mountpoints }));
    match reply["error"]["desc"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok(reply["return"].as_i64().expect("a number")),
    }
}

/// The error of a command that is not safe while frozen.
pub(crate) fn disabled(command: &str) -> String {
    format!("Command {command} has been disabled: the command is not allowed")
}
