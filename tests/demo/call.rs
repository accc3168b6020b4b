//! `postern call` against a running agent, and against others that answer
//! badly or not at all.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Place, err, is_root, ordinary, out, postern, records};

/// An agent of an ordinary user; it needs no root for what is asked here.
struct Agent {
    child: Child,
    place: Place,
}

impl Agent {
    fn start() -> Self {
        let place = Place::new();
        let uid = ordinary();
        let home = place.path("home");
        for directory in ["", "log", "state"] {
            let path = home.join(directory);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            if is_root() {
                chown(&path, Some(uid), Some(uid)).unwrap();
            }
        }
        let policy = place.path("policy.toml");
        let own = home.display();
        let text = format!(
            "version = 1\nprofile = \"files\"\n[audit]\nlog = \"{own}/log/audit.jsonl\"\nheads = []\n\
             [state]\ndirectory = \"{own}/state\"\n"
        );
        fs::write(&policy, text).unwrap();
        let said = fs::File::create(place.path("said")).unwrap();
        let channel = format!("unix-listen:{}", home.join("host.sock").display());
        let child = place
            .as_user(uid)
            .args(["run", "--policy"])
            .arg(&policy)
            .args(["--channel", &channel])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut agent = Self { child, place };
        while UnixStream::connect(agent.socket()).is_err() {
            if let Some(status) = agent.child.try_wait().unwrap() {
                panic!("the agent did not start ({status}): {}", fs::read_to_string(agent.place.path("said")).unwrap());
            }
            thread::yield_now();
        }
        agent
    }

    fn socket(&self) -> PathBuf {
        self.place.path("home/host.sock")
    }

    fn call(&self, arguments: &[&str]) -> Output {
        call(&self.socket(), arguments).output().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = self.child.id().try_into().unwrap();
        _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        _ = self.child.wait();
        if !thread::panicking() {
            records::check_home(&self.place.path("home/log"), &self.place.path("home/stderr"));
        }
    }
}

fn call(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = postern();
    command.args(["call", "--socket"]).arg(socket).args(arguments);
    command
}

fn is(output: &Output, status: i32, stdout: &str, stderr: &str) {
    assert_eq!(output.status.code(), Some(status), "{}{}", out(output), err(output));
    assert_eq!(out(output), stdout);
    assert!(err(output).contains(stderr) && err(output).is_empty() == stderr.is_empty(), "{}", err(output));
}

#[test]
fn a_running_agent_is_asked() {
    let agent = Agent::start();
    is(&agent.call(&["guest-ping"]), 0, "{}\n", "");
    is(&agent.call(&["guest-ping", "--raw"]), 0, "{\"return\": {}}\n", "");
    // Beyond what a floating-point number holds.
    is(&agent.call(&["guest-sync", "{\"id\": 9007199254740993}"]), 0, "9007199254740993\n", "");

    let info = agent.call(&["guest-info"]);
    assert!(out(&info).contains("\n  \"supported_commands\": [\n"), "not pretty: {}", out(&info));

    is(&agent.call(&["guest-file-close", "{\"handle\": 7}"]), 1, "", "GenericError: handle '7' has not been found\n");
    let raw = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"handle '7' has not been found\"}}\n";
    is(&agent.call(&["guest-file-close", "{\"handle\": 7}", "--raw"]), 1, "", raw);
    is(&agent.call(&["guest-nope"]), 1, "", "CommandNotFound: The command guest-nope has not been found\n");
    is(&agent.call(&["guest-shutdown"]), 1, "", "CommandNotFound: Command guest-shutdown has been disabled");

    let mut child = call(&agent.socket(), &["guest-sync", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"id\":\n 5}").unwrap();
    is(&child.wait_with_output().unwrap(), 0, "5\n", "");
}

#[test]
fn wrong_usage_is_told_before_anything_is_sent() {
    let nowhere = Path::new("/nonexistent/host.sock");
    for arguments in [
        &["guest-sync", "{\"id\": }"][..],
        &["guest-sync", "[1]"],
        &["guest-sync", "{\"id\": 1} x"],
        &[],
        &["guest-ping", "--timeout", "0"],
    ] {
        let output = call(nowhere, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", err(&output));
    }
    is(&call(nowhere, &["guest-ping"]).output().unwrap(), 3, "", "cannot connect to /nonexistent/host.sock");
}

/// An agent of another kind: what it does with one connection.
struct Fake {
    place: Place,
}

impl Fake {
    fn start(act: impl FnOnce(BufReader<UnixStream>) + Send + 'static) -> Self {
        let place = Place::new();
        let listener = UnixListener::bind(place.path("fake.sock")).unwrap();
        thread::spawn(move || act(BufReader::new(listener.accept().unwrap().0)));
        Self { place }
    }

    fn call(&self, arguments: &[&str]) -> Output {
        call(&self.place.path("fake.sock"), arguments).output().unwrap()
    }
}

/// Answers the sync, with `before` in front, and hears the command.
fn synced(host: &mut BufReader<UnixStream>, before: &[u8]) {
    let mut line = Vec::new();
    host.read_until(b'\n', &mut line).unwrap();
    assert_eq!(line.first(), Some(&0xFF), "half a request of an earlier host is to be dropped");
    let request: serde_json::Value = serde_json::from_slice(&line[1..]).unwrap();
    assert_eq!(request["execute"], "guest-sync-delimited");
    let mut answer = before.to_vec();
    answer.extend(format!("\u{0}{{\"return\": {}}}\n", request["arguments"]["id"]).into_bytes());
    let mark = before.len();
    answer[mark] = 0xFF;
    host.get_mut().write_all(&answer).unwrap();
    line.clear();
    host.read_until(b'\n', &mut line).unwrap();
}

/// Holds the connection until the client leaves.
fn until_it_leaves(mut host: BufReader<UnixStream>) {
    _ = host.read_to_end(&mut Vec::new());
}

#[test]
fn what_an_earlier_host_left_is_skipped() {
    let fake = Fake::start(|mut host| {
        synced(&mut host, b"{\"return\": {}}\n\xFF{\"return\": 1}\n{\"ret");
        host.get_mut().write_all(b"{\"return\": \"ours\"}\n").unwrap();
        until_it_leaves(host);
    });
    is(&fake.call(&["guest-ping"]), 0, "\"ours\"\n", "");
}

#[test]
fn success_without_a_reply_is_success() {
    let closed = Fake::start(|mut host| synced(&mut host, b""));
    is(&closed.call(&["guest-shutdown"]), 0, "", "");
    let quiet = Fake::start(|mut host| {
        synced(&mut host, b"");
        until_it_leaves(host);
    });
    is(&quiet.call(&["guest-shutdown"]), 0, "", "");
}

#[test]
fn no_proper_answer_is_told_apart() {
    let mute = Fake::start(until_it_leaves);
    is(&mute.call(&["guest-ping", "--timeout", "1"]), 4, "", "no answer to guest-sync-delimited in time");
    let deaf = Fake::start(|mut host| {
        synced(&mut host, b"");
        until_it_leaves(host);
    });
    is(&deaf.call(&["guest-ping", "--timeout", "1"]), 4, "", "no answer to guest-ping in time");
    let leaves = Fake::start(|mut host| synced(&mut host, b""));
    is(&leaves.call(&["guest-ping"]), 4, "", "closed before the answer to guest-ping");
    let other = Fake::start(|mut host| {
        synced(&mut host, b"");
        host.get_mut().write_all(b"HTTP/1.1 400 Bad Request\n").unwrap();
        until_it_leaves(host);
    });
    is(&other.call(&["guest-ping"]), 4, "", "is no QGA reply");
}

#[test]
fn nothing_of_an_answer_moves_the_cursor() {
    let fake = Fake::start(|mut host| {
        synced(&mut host, b"");
        host.get_mut().write_all("{\"return\": \"a\u{9b}2J\u{202e}b\"}\n".as_bytes()).unwrap();
        until_it_leaves(host);
    });
    is(&fake.call(&["guest-ping"]), 0, "\"a\\u009b2J\\u202eb\"\n", "");
    let fake = Fake::start(|mut host| {
        synced(&mut host, b"");
        host.get_mut().write_all(b"{\"error\": {\"class\": \"C\", \"desc\": \"a\\u001b[2J\\nb\"}}\n").unwrap();
        until_it_leaves(host);
    });
    is(&fake.call(&["guest-ping"]), 1, "", "C: a\\u001b[2J\\nb\n");
}
