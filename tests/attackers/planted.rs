//! What an account has put in place before the start: policies, directories,
//! sockets, processes. Each of them keeps the agent from starting, or is not
//! touched; the same thing of root's making is taken.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::account::{as_user, attacker, give, mode, own_directory};
use crate::support::activation;
use crate::support::agent::{Agent, Home, LIVELY};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("what_an_account_planted_is_not_taken", what_an_account_planted_is_not_taken),
    ("a_drop_in_of_another_account_allows_nothing", a_drop_in_of_another_account_allows_nothing),
    ("an_account_that_others_use_is_refused", an_account_that_others_use_is_refused),
    ("a_passed_socket_that_all_may_connect_to_is_refused", a_passed_socket_that_all_may_connect_to_is_refused),
    ("a_hostile_environment_does_not_reach_the_children", a_hostile_environment_does_not_reach_the_children),
    ("nothing_is_made_where_others_could_swap_it", nothing_is_made_where_others_could_swap_it),
];

const POLICY: &str = "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\"]\n";

/// Starts an agent that must not start: its exit status and what it said.
fn refused(home: &Home, command: &mut Command) -> (Option<i32>, String) {
    // The command's own stderr: emptied, not another one.
    fs::write(home.path("stderr"), "").expect("a file");
    let mut child = command.spawn().expect("the agent");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("its status") {
            break status;
        }
        if started.elapsed() > LIVELY {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it started: {}", fs::read_to_string(home.path("stderr")).expect("stderr"));
        }
        sleep(Duration::from_millis(5));
    };
    (status.code(), fs::read_to_string(home.path("stderr")).expect("stderr"))
}

type Plant = fn(&Home);

/// One thing that is planted, and what the start says to it.
struct Row {
    what: &'static str,
    /// Plants it as the attacker would have; with `false` as root would.
    plant: fn(&Home, bool),
    status: i32,
    said: &'static str,
}

fn whose(path: &Path, attackers: bool) {
    if attackers {
        give(path);
    }
}

const ROWS: &[Row] = &[
    Row {
        what: "a policy of its own",
        plant: |home, attackers| {
            home.policy(POLICY);
            whose(&home.path("policy.toml"), attackers);
        },
        status: 3,
        said: "belongs to user 70200",
    },
    Row {
        what: "a drop-in of its own in root's directory",
        plant: |home, attackers| {
            fs::create_dir(home.path("policy.d")).expect("a directory");
            fs::write(home.path("policy.d/50.toml"), "version = 1\n").expect("a drop-in");
            whose(&home.path("policy.d/50.toml"), attackers);
        },
        status: 3,
        said: "belongs to user 70200",
    },
    Row {
        what: "a directory of drop-ins",
        plant: |home, attackers| {
            fs::create_dir(home.path("policy.d")).expect("a directory");
            whose(&home.path("policy.d"), attackers);
        },
        status: 3,
        said: "belongs to user 70200",
    },
    Row {
        what: "a directory of drop-ins that all may write",
        plant: |home, attackers| {
            fs::create_dir(home.path("policy.d")).expect("a directory");
            mode(&home.path("policy.d"), if attackers { 0o1777 } else { 0o755 });
        },
        status: 3,
        said: "can be written by others",
    },
    Row {
        what: "the state directory",
        plant: |home, attackers| {
            fs::create_dir(home.path("state")).expect("a directory");
            std::os::unix::fs::chown(home.path("state"), Some(home.broker), Some(home.broker)).expect("its owner");
            whose(&home.path("state"), attackers);
        },
        status: 1,
        said: "state directory",
    },
    Row {
        what: "a link for the state directory",
        plant: |home, attackers| {
            if attackers {
                own_directory(home, "theirs");
                symlink(home.path("theirs"), home.path("state")).expect("a link");
            }
        },
        status: 1,
        said: "state directory",
    },
    Row {
        what: "the log's directory",
        plant: |home, attackers| {
            fs::create_dir(home.path("log")).expect("a directory");
            std::os::unix::fs::chown(home.path("log"), Some(home.broker), Some(home.broker)).expect("its owner");
            whose(&home.path("log"), attackers);
        },
        status: 6,
        said: "belongs to uid 70200",
    },
    Row {
        what: "a link for the log's directory",
        plant: |home, attackers| {
            if attackers {
                own_directory(home, "theirs");
                symlink(home.path("theirs"), home.path("log")).expect("a link");
            }
        },
        status: 6,
        said: "symbolic link",
    },
    Row {
        what: "a socket that it listens on",
        plant: |home, attackers| {
            let listener = UnixListener::bind(home.path("host.sock")).expect("a socket");
            whose(&home.path("host.sock"), attackers);
            if attackers {
                std::mem::forget(listener);
            }
        },
        status: 5,
        said: "another process listens",
    },
    Row {
        what: "a link at the socket's path",
        plant: |home, attackers| {
            if attackers {
                symlink(home.path("policy.toml"), home.path("host.sock")).expect("a link");
            }
        },
        status: 5,
        said: "in the way",
    },
    Row {
        what: "a file at the socket's path",
        plant: |home, attackers| {
            if attackers {
                fs::write(home.path("host.sock"), "").expect("a file");
                give(&home.path("host.sock"));
            }
        },
        status: 5,
        said: "in the way",
    },
];

fn what_an_account_planted_is_not_taken() {
    for Row { what, plant, status, said } in ROWS {
        let home = Home::new();
        let mut command = home.command(POLICY);
        plant(&home, true);
        let (found, text) = refused(&home, &mut command);
        assert_eq!(found, Some(*status), "{what}: {text}");
        assert!(text.contains(said), "{what}: {text}");
        // The control: of root's making it is taken.
        let home = Home::new();
        let command = home.command(POLICY);
        plant(&home, false);
        let agent: Agent<'_> = home.start_command(command);
        agent.connect().ping();
    }
    println!("    {} things planted", ROWS.len());
}

fn a_drop_in_of_another_account_allows_nothing() {
    let widening = "version = 1\n[commands]\nallow = [\"guest-fsfreeze-status\"]\n";
    // The control: root's drop-in does allow.
    let home = Home::new();
    let command = home.command(POLICY);
    fs::create_dir(home.path("policy.d")).expect("a directory");
    fs::write(home.path("policy.d/widen.toml"), widening).expect("a drop-in");
    let agent = home.start_command(command);
    agent.connect().returns("guest-fsfreeze-status", &serde_json::Value::Null);
    drop(agent);
    // With names that are not read, and by every kind of object.
    let home = Home::new();
    let mut command = home.command(POLICY);
    fs::create_dir(home.path("policy.d")).expect("a directory");
    let theirs = own_directory(&home, "theirs");
    fs::write(theirs.join("widen.toml"), widening).expect("a file");
    give(&theirs.join("widen.toml"));
    let plant: [(&str, Plant); 3] = [
        ("a link", |home| {
            symlink(home.path("theirs/widen.toml"), home.path("policy.d/widen.toml")).expect("a link");
        }),
        ("a hard link", |home| {
            fs::hard_link(home.path("theirs/widen.toml"), home.path("policy.d/widen.toml")).expect("a hard link");
        }),
        ("a FIFO", |home| {
            nix::unistd::mkfifo(&home.path("policy.d/widen.toml"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
            give(&home.path("policy.d/widen.toml"));
        }),
    ];
    for (what, plant) in plant {
        plant(&home);
        let (status, text) = refused(&home, &mut command);
        assert_eq!(status, Some(3), "{what}: {text}");
        fs::remove_file(home.path("policy.d/widen.toml")).expect("it is taken away");
    }
    let agent = home.start_command(command);
    let refused = agent.connect().fails("guest-fsfreeze-status", &serde_json::Value::Null);
    assert!(refused.contains("disabled"), "{refused}");
}

fn an_account_that_others_use_is_refused() {
    let home = Home::new();
    for account in [home.worker, home.broker] {
        let mut squatter = as_user(account, "twin", &[]);
        assert_eq!(squatter.hear(), "ready");
        let (status, text) = refused(&home, &mut home.command(POLICY));
        assert_eq!(status, Some(4), "{text}");
        assert!(text.contains(&format!("is in use by process {}", squatter.child.id())), "{text}");
        squatter.kill();
    }
    // The control: another's process is nothing to it.
    let mut other = attacker("twin", &[]);
    assert_eq!(other.hear(), "ready");
    home.start(POLICY).connect().ping();
}

/// systemd gives a socket mode 0666 unless its unit says otherwise.
fn a_passed_socket_that_all_may_connect_to_is_refused() {
    let home = Home::new();
    let socket = home.path("activated.sock");
    for (umask, taken) in [("000", false), ("111", false), ("077", true), ("117", true)] {
        let _ = fs::remove_file(&socket);
        let plain = home.command(POLICY);
        let mut command = activation::activated(&plain, &socket, "1");
        let stderr = fs::File::options().append(true).create(true).open(home.path("stderr")).expect("a file");
        command.stderr(stderr);
        let mask = nix::sys::stat::Mode::from_bits_truncate(u32::from_str_radix(umask, 8).expect("octal"));
        let before = nix::sys::stat::umask(mask);
        if taken {
            let agent = home.start_command(command);
            nix::sys::stat::umask(before);
            crate::support::agent::Host::connect(&socket).ping();
            drop(agent);
        } else {
            let (status, text) = refused(&home, &mut command);
            nix::sys::stat::umask(before);
            assert_eq!(status, Some(5), "{umask}: {text}");
            assert!(text.contains("SocketMode=0600"), "{umask}: {text}");
        }
    }
}

/// Who starts postern is believed, and may still have an environment that
/// others have written: nothing of it is what the confined processes start with.
fn a_hostile_environment_does_not_reach_the_children() {
    let home = Home::new();
    let theirs = own_directory(&home, "theirs");
    let place = theirs.to_str().expect("UTF-8").to_owned();
    let mut command = home.command(POLICY);
    let names = [
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "GLIBC_TUNABLES",
        "TMPDIR",
        "HOME",
        "LOCPATH",
        "GCONV_PATH",
        "NLSPATH",
        "MALLOC_TRACE",
        "RUST_BACKTRACE",
        "RUST_LOG",
        "SSL_CERT_FILE",
        "TZ",
        "TZDIR",
        "PATH",
    ];
    for name in names {
        command.env(name, &place);
    }
    command.env("TZ", format!("{place}/zone"));
    let agent = home.start_command(command);
    for (name, pid) in agent.family() {
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("root may");
        let holds = !environment.is_empty();
        assert_eq!(holds, name == "broker", "{name}: {}", String::from_utf8_lossy(&environment));
    }
    agent.connect().ping();
    // Nothing was made in what it named, nothing of it was opened for good.
    assert_eq!(fs::read_dir(&theirs).expect("the directory").count(), 0);
    for pid in agent.family().values() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("root may").flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            assert!(!target.starts_with(&theirs), "{}", target.display());
        }
    }
}

/// Root makes directories, a log and a socket at the start. In a directory of the
/// attacker's it makes none: the name could lead to something of root's before
/// it gets its owner or its mode.
fn nothing_is_made_where_others_could_swap_it() {
    for (place, status) in [("state", 1), ("log", 6), ("host.sock", 5)] {
        for deep in [false, true] {
            for attackers in [true, false] {
                let home = Home::new();
                let mut command = home.command(POLICY);
                let theirs = home.path("theirs");
                fs::create_dir(&theirs).expect("a directory");
                let inner = theirs.join("inner");
                if deep {
                    fs::create_dir(&inner).expect("a directory");
                }
                whose(&theirs, attackers);
                let text = fs::read_to_string(home.path("policy.toml")).expect("the policy");
                let under = if deep { "theirs/inner" } else { "theirs" };
                let at = home.files().parent().expect("the home").display().to_string();
                let moved = text.replace(&format!("{at}/{place}"), &format!("{at}/{under}/{place}"));
                assert_ne!(text, moved, "the control");
                fs::write(home.path("policy.toml"), moved).expect("the policy");
                let made = home.path(&format!("{under}/{place}"));
                if attackers {
                    let (found, said) = refused(&home, &mut command);
                    assert_eq!(found, Some(status), "{place}: {said}");
                    assert!(said.contains("another user can change"), "{place}: {said}");
                    assert!(!made.exists(), "{place} was made");
                } else {
                    let mut child = command.spawn().expect("the agent");
                    crate::support::agent::eventually("it starts", || {
                        fs::metadata(&made).ok().filter(|facts| facts.uid() != 1)
                    });
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}
