//! What an account uses up: the disk under the log, its own processes,
//! descriptors, watches.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::account::{attacker, mode};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_full_disk_of_another_account_refuses_opens_and_no_thaw", a_full_disk_of_another_account),
    ("an_account_uses_up_its_own", an_account_uses_up_its_own),
];

pub(crate) const ROLES: &[Role] = &[("fill", fill), ("exhaust", exhaust)];

const POLICY: &str = "profile = \"files\"\n[commands]\nallow = [\"guest-fsfreeze-status\", \"guest-fsfreeze-freeze\", \
    \"guest-fsfreeze-thaw\"]\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\"]\n";

/// Fills the filesystem of a path, says so, and frees it at the next line.
fn fill(arguments: &[String]) {
    let path = Path::new(&arguments[0]);
    let mut file = File::create(path).expect("a file of its own");
    while file.write_all(&[7; 4096]).is_ok() {}
    while file.write_all(b"x").is_ok() {}
    println!("full");
    let _ = io::stdin().lines().next();
    fs::remove_file(path).expect("its own file");
    println!("free");
}

fn is_refused(host: &mut Host, path: &Path) {
    // What is left of the log's last page takes a few.
    let refused = (0..50).find_map(|_| host.open(path, "r").err());
    let why = refused.expect("there is no room for its record");
    assert!(why.ends_with("Input/output error"), "{why}");
}

fn a_full_disk_of_another_account() {
    let disk = Disk::small("ext4", "/disk.img");
    let frozen = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", b"inside");
    let shared = home.path("shared");
    fs::create_dir(&shared).expect("a directory");
    mount(Some("shared"), &shared, Some("tmpfs"), MsFlags::empty(), Some("size=512k,mode=1777")).expect("a tmpfs");
    // As /var with a log beneath it, and /var/tmp.
    for name in ["shared/log", "log"] {
        fs::create_dir(home.path(name)).expect("a directory");
        chown(home.path(name), Some(home.broker), Some(home.broker)).expect("its owner");
        mode(&home.path(name), 0o700);
    }
    let bound = mount(Some(&home.path("shared/log")), &home.path("log"), None::<&str>, MsFlags::MS_BIND, None::<&str>);
    bound.expect("a bind mount");
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    host.open(&path, "r").expect("the control: there is room");
    let count = |host: &mut Host, command: &str| host.returns(command, &serde_json::Value::Null);
    assert_eq!(count(&mut host, "guest-fsfreeze-freeze"), 1);
    let mut filler = attacker("fill", &[shared.join("filler").to_str().expect("UTF-8")]);
    assert_eq!(filler.hear(), "full");
    host.ping();
    assert!(frozen.is_frozen(), "the control");
    assert_eq!(count(&mut host, "guest-fsfreeze-thaw"), 1, "a thaw needs no room");
    assert!(!frozen.is_frozen());
    is_refused(&mut host, &path);
    host.ping();
    assert_eq!(count(&mut host, "guest-fsfreeze-status"), "thawed");
    filler.say("free");
    assert_eq!(filler.hear(), "free");
    let handle = eventually("there is room again", || host.open(&path, "r").ok());
    host.close(handle);
    verify(&agent);
    let done = agent.records_of("guest-fsfreeze-thaw");
    assert!(done.iter().any(|record| record["postern"]["stage"] == "done"), "the thaw's record came later: {done:?}");
}

fn verify(agent: &Agent<'_>) {
    let output = std::process::Command::new(crate::support::agent::BINARY)
        .args(["audit", "verify"])
        .arg(agent.home.log())
        .output()
        .expect("postern audit verify");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Uses up what the kernel gives one account: watches, descriptors, processes.
fn exhaust(_: &[String]) {
    let mut watches = Vec::new();
    let refused = loop {
        match Inotify::init(InitFlags::empty()) {
            Ok(watch) => watches.push(watch),
            Err(errno) => break errno,
        }
        assert!(watches.len() < 100_000, "no end of watches");
    };
    println!("{refused:?}");
    let mut files = Vec::new();
    let refused = loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(why) => break why,
        }
    };
    println!("{:?}", refused.raw_os_error());
    // A process needs descriptors.
    files.truncate(files.len().saturating_sub(200));
    // Of this account alone, and not so many that the machine minds.
    setrlimit(Resource::RLIMIT_NPROC, 40, 40).expect("a limit of its own");
    let mut children = Vec::new();
    let refused = loop {
        match std::process::Command::new(crate::support::cell::SELF)
            .args(["--role", "twin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
        {
            Ok(child) => children.push(child),
            Err(why) => break why,
        }
    };
    println!("{:?}", refused.raw_os_error());
    let _ = io::stdin().lines().next();
    // Their input ends with this process, and they with it.
    drop(children);
}

fn an_account_uses_up_its_own() {
    let mut peer = attacker("exhaust", &[]);
    let said = [peer.hear(), peer.hear(), peer.hear()];
    assert_eq!(said, ["EMFILE", "Some(24)", "Some(11)"], "the control: there is nothing left for it");
    let home = Home::new();
    let path = home.write("file", b"inside");
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    host.open(&path, "r").expect("an open");
    let worker = agent.process("worker", 0);
    agent.signal("worker", Signal::SIGKILL);
    agent.process("worker", worker);
    host.open(&path, "r").expect("an open of the next worker");
}
