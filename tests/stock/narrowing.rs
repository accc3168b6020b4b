//! Lists of commands, from wherever they come, take away from the policy and
//! never add to it; state and channel go where they are told to.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::pair::{POLICY, STOCK, Stock, here, home};
use crate::support::activation::{self, activated};
use crate::support::agent::{Agent, Home, Host};
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("blocked_commands_are_gone_here_and_there", blocked_commands_are_gone_here_and_there),
    ("every_source_of_a_list_narrows", every_source_of_a_list_narrows),
    ("a_list_cannot_widen_the_policy", a_list_cannot_widen_the_policy),
    ("what_is_blocked_needs_no_capability", what_is_blocked_needs_no_capability),
    ("channel_and_state_go_where_they_are_told_to", channel_and_state_go_where_they_are_told_to),
    ("a_passed_socket_comes_before_the_words", a_passed_socket_comes_before_the_words),
    ("a_state_directory_that_the_host_reaches_is_refused", a_state_directory_that_the_host_reaches_is_refused),
    ("what_has_no_meaning_is_said_once", what_has_no_meaning_is_said_once),
];

pub(crate) const ROLES: &[Role] = &[activation::ROLE];

/// Names of the commands that `guest-info` shows as enabled.
fn enabled(host: &mut Host) -> Vec<String> {
    let info = host.returns("guest-info", &Value::Null);
    let commands = info["supported_commands"].as_array().expect("commands");
    let name = |command: &Value| command["name"].as_str().expect("a name").to_owned();
    commands.iter().filter(|command| command["enabled"] == true).map(name).collect()
}

fn blocked_commands_are_gone_here_and_there() {
    let words = ["-b", "guest-file-open,guest-ping", "--blacklist=guest-fsfreeze-freeze"];
    let home = home(&words);
    let agent = start(&home, home.command(POLICY));
    let stock = Stock::start(&home, &words);
    for (who, mut host) in [("postern", agent.connect()), ("stock", stock.connect())] {
        let enabled = enabled(&mut host);
        for gone in ["guest-file-open", "guest-ping", "guest-fsfreeze-freeze"] {
            assert!(!enabled.iter().any(|name| name == gone), "{who}: {gone}");
            let reply = host.ask(gone, &json!({}));
            assert_eq!(reply["error"]["class"], "CommandNotFound", "{who}: {reply}");
            assert!(reply["error"]["desc"].as_str().is_some_and(|text| text.contains("has been disabled")), "{reply}");
        }
        assert!(enabled.iter().any(|name| name == "guest-fsfreeze-status"), "{who}: the control");
    }
    // Nothing to open: no opener is there to do it.
    assert!(!agent.family().contains_key("opener"), "{:?}", agent.family());
}

/// Starts an agent that need not have an opener.
fn start(home: &Home, mut command: Command) -> Agent<'_> {
    let agent = Agent { home, child: command.spawn().expect("the agent") };
    enabled(&mut agent.connect());
    agent
}

/// The control: all that the policy allows.
fn all(home: &Home) -> Vec<String> {
    enabled(&mut home.start(POLICY).connect())
}

fn every_source_of_a_list_narrows() {
    type Row = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static [&'static str]);
    // Words, variables, what is gone.
    const ROWS: &[Row] = &[
        (&[], &[("QGA_CONF", "HOME/qga.conf")], &["guest-file-seek"]),
        (&["-c", "HOME/qga.conf"], &[], &["guest-file-seek"]),
        (&["-b", "guest-sync"], &[("QGA_CONF", "HOME/qga.conf")], &["guest-file-seek", "guest-sync"]),
        (&[], &[("BLACKLIST_RPC", "guest-sync,guest-exec")], &["guest-sync"]),
        (&[], &[("BLOCK_RPCS", "guest-sync")], &["guest-sync"]),
        (
            &["--blacklist="],
            &[("FILTER_RPC_ARGS", "--block-rpcs=guest-sync,guest-ping")],
            &["guest-sync", "guest-ping"],
        ),
        (&["--block-rpcs=guest-ping"], &[("BLOCK_RPCS", "guest-sync")], &["guest-sync", "guest-ping"]),
        (&[], &[("BLACKLIST_RPC", "")], &[]),
        // As RHEL's unit does it: each variable is an option too.
        (
            &["--blacklist=guest-sync", "-F/etc/qemu-ga/fsfreeze-hook"],
            &[("BLACKLIST_RPC", "guest-sync"), ("FSFREEZE_HOOK_PATHNAME", "/etc/qemu-ga/fsfreeze-hook")],
            &["guest-sync"],
        ),
    ];
    let everything = all(&home(&[]));
    assert_eq!(everything.len(), 14, "{everything:?}");
    let without = |gone: &[&str]| -> Vec<String> {
        everything.iter().filter(|name| !gone.contains(&name.as_str())).cloned().collect()
    };
    for (words, variables, gone) in ROWS {
        let home = home(words);
        fs::write(home.path("qga.conf"), "[general]\nblock-rpcs=guest-file-seek\n").expect("a file");
        let mut command = home.command(POLICY);
        for (name, value) in *variables {
            command.env(name, &here(&home, &[value])[0]);
        }
        let agent = start(&home, command);
        assert_eq!(enabled(&mut agent.connect()), without(gone), "{words:?} {variables:?}");
    }
    let some = ["-a", "guest-info,guest-ping", "--allow-rpcs=guest-sync", "-b", "guest-ping"];
    let home = home(&some);
    let left = enabled(&mut start(&home, home.command(POLICY)).connect());
    assert_eq!(left, ["guest-sync", "guest-info"]);
}

fn said(agent: &Agent<'_>, text: &str) -> usize {
    agent.said().lines().filter(|line| line.contains(text)).count()
}

fn a_list_cannot_widen_the_policy() {
    let home = home(&["-a", "guest-info,guest-ping,guest-file-open,guest-exec,guest-shutdown"]);
    let path = home.write("file", b"content");
    let agent = home.start("profile = \"minimal\"\n");
    let mut host = agent.connect();
    assert_eq!(enabled(&mut host), ["guest-ping", "guest-info"]);
    let reply = host.ask("guest-file-open", &json!({ "path": path }));
    assert_eq!(reply["error"]["class"], "CommandNotFound", "{reply}");
    assert_eq!(said(&agent, "does not allow guest-shutdown, guest-file-open, guest-exec"), 1, "{}", agent.said());
}

/// The broker's effective capabilities.
fn capabilities(agent: &Agent<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("its capabilities");
    u64::from_str_radix(line, 16).expect("a number")
}

fn what_is_blocked_needs_no_capability() {
    let home_all = home(&[]);
    assert_ne!(capabilities(&home_all.start(POLICY)), 0, "the control: freezing needs some");
    let home = home(&["-b", "guest-fsfreeze-thaw"]);
    let agent = home.start(POLICY);
    assert_eq!(capabilities(&agent), 0);
    // Freezing goes along: filesystems would stay frozen.
    let enabled = enabled(&mut agent.connect());
    assert!(!enabled.iter().any(|name| name.starts_with("guest-fsfreeze-freeze")), "{enabled:?}");
    assert_eq!(said(&agent, "these go too: guest-fsfreeze-freeze, guest-fsfreeze-freeze-list"), 1, "{}", agent.said());
}

fn channel_and_state_go_where_they_are_told_to() {
    let home = home(&["-m", "unix-listen", "-p", "HOME/other.sock", "-t", "HOME/var"]);
    let mut agent = home.start(POLICY);
    Host::connect(&home.path("other.sock")).ping();
    assert!(!home.path("host.sock").exists() && !home.path("state").exists(), "the policy's own");
    assert!(home.path("var/postern").is_dir());
    agent.signal("broker", nix::sys::signal::Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
}

fn a_passed_socket_comes_before_the_words() {
    let words = ["-m", "unix-listen", "-p", "HOME/other.sock"];
    let home = home(&words);
    let mut stock = Command::new(STOCK);
    stock.arg("-t").arg(home.path("")).args(here(&home, &words));
    for (who, plain) in [("stock", stock), ("postern", home.command(POLICY))] {
        let socket = home.path(who);
        let mut child = activated(&plain, &socket, "1").spawn().expect("an agent");
        Host::connect(&socket).ping();
        assert!(!home.path("other.sock").exists(), "{who}");
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
    }
}

fn a_state_directory_that_the_host_reaches_is_refused() {
    for place in ["HOME/files", "HOME/files/deep", "relative"] {
        let home = home(&["-t", place]);
        let mut child = home.command(POLICY).spawn().expect("the agent");
        assert_eq!(child.wait().expect("its end").code(), Some(1), "{place}");
        let said = fs::read_to_string(home.path("stderr")).expect("stderr");
        assert!(said.contains("the state directory"), "{said}");
    }
}

fn what_has_no_meaning_is_said_once() {
    let home = home(&["-F/some/hook", "operand", "-f", "/pid", "-b", "nope"]);
    fs::write(home.path("qga.conf"), "[general]\nnope=1\nnope=2\n[other]\nx=1\n").expect("a file");
    let mut command = home.command(POLICY);
    command.env("QGA_CONF", home.path("qga.conf"));
    let agent = home.start_command(command);
    agent.connect().ping();
    for text in
        ["/some/hook is not run", "'operand'", "a daemon only", "what is no command: nope", "key 'nope'", "[other]"]
    {
        assert_eq!(said(&agent, text), 1, "{text}: {}", agent.said());
    }
    assert!(!fs::exists("/pid").expect("/"), "no daemon, no pidfile");
}
