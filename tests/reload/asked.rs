//! Who asks: `postern reload`, and what the service manager is told.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::scene::policy;
use crate::support::agent::{Agent, BINARY, Home, LIVELY, eventually};
use crate::support::runner::Test;
use crate::{FILES, elsewhere, last, outcomes};

pub(crate) const TESTS: &[Test] = &[
    ("postern_reload_says_what_came_of_it", postern_reload_says_what_came_of_it),
    ("the_manager_is_told", the_manager_is_told),
];

fn postern_reload(agent: &Agent<'_>, pid: i32, more: &[&str]) -> (Option<i32>, String) {
    let policy = agent.home.path("policy.toml");
    let mut command = Command::new(BINARY);
    command.args(["reload", "--pid", &pid.to_string(), "--policy"]).arg(policy).args(more);
    let Output { status, stdout, stderr } = command.output().expect("postern reload");
    let said = String::from_utf8(stdout).expect("text") + &String::from_utf8(stderr).expect("text");
    println!("{status}: {said}");
    (status.code(), said)
}

fn postern_reload_says_what_came_of_it() {
    let home = Home::new();
    let there = elsewhere(&home);
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let (code, said) = postern_reload(&agent, agent.pid(), &[]);
    assert_eq!((code, said.contains("has not changed")), (Some(0), true), "{said}");
    home.policy(&FILES.replace("HOME/files", "HOME/elsewhere"));
    let (code, said) = postern_reload(&agent, agent.pid(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the policy is in force; widened: files.path"), "{said}");
    host.open(&there, "r").expect("the new rule");
    // Refused by the broker.
    let identities = format!("[identities]\nworker = {}\nbroker = {}\n", home.worker, home.broker + 7);
    home.policy(&format!("{FILES}{identities}"));
    let (code, said) = postern_reload(&agent, agent.pid(), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("identities.broker") && said.contains("systemctl restart postern"), "{said}");
    // Not sent at all.
    home.policy("profile = \"flies\"\n");
    let before = last(&agent);
    let (code, said) = postern_reload(&agent, agent.pid(), &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("write \"files\""), "{said}");
    host.ping();
    assert!(outcomes(&agent, before).is_empty());
    // Somebody else's number.
    home.policy(FILES);
    let (code, said) = postern_reload(&agent, std::process::id().cast_signed(), &[]);
    assert_eq!(code, Some(5), "{said}");
    assert!(agent.child.id().cast_signed() == agent.pid() && outcomes(&agent, before).is_empty());
    // One that does not get on.
    agent.signal("broker", Signal::SIGSTOP);
    let (code, said) = postern_reload(&agent, agent.pid(), &["--wait", "1"]);
    agent.signal("broker", Signal::SIGCONT);
    assert_eq!(code, Some(4), "{said}");
    eventually("it is done all the same", || outcomes(&agent, before).pop());
}

fn the_manager_is_told() {
    let home = Home::new();
    let socket = home.path("notify");
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(LIVELY)).expect("a time limit");
    let next = || {
        let mut note = [0; 2048];
        let length = manager.recv(&mut note).expect("a note in time");
        String::from_utf8(note[..length].to_vec()).expect("text")
    };
    let mut command = home.command(&policy());
    command.env("NOTIFY_SOCKET", &socket);
    let agent = home.start_command(command);
    assert_eq!([next(), next()], ["READY=1", "STATUS=serving"]);
    home.policy("nonsense = 1\n");
    agent.signal("broker", Signal::SIGHUP);
    assert!(next().starts_with("RELOADING=1"));
    assert_eq!(next(), "READY=1");
    let status = next();
    assert!(status.starts_with("STATUS=serving; the new policy was refused: "), "{status}");
    assert!(status.contains("nonsense"), "{status}");
    std::thread::sleep(Duration::from_millis(1100));
    home.policy(FILES);
    agent.signal("broker", Signal::SIGHUP);
    assert!(next().starts_with("RELOADING=1"));
    // Ready again once it is in force, not before.
    let mut notes = vec![next(), next()];
    notes.sort();
    assert_eq!(notes, ["READY=1", "STATUS=serving"]);
    assert_eq!(agent.records_of("policy-reloaded").len(), 1);
    let _ = fs::remove_file(socket);
}
