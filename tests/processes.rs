//! The live processes of the real agent, as /proc shows them, and what happens
//! when they die. Needs root. Each test runs in a cell (`support::cell`), so
//! that the accounts are used by nobody else and no signal goes astray.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::agent::{Agent, BINARY, Home, eventually, lives};
use support::runner;

fn main() -> ExitCode {
    runner::main(
        &[
            ("capabilities_are_those_that_the_policy_needs", capabilities_are_those_that_the_policy_needs),
            ("each_process_is_confined_in_every_thread", each_process_is_confined_in_every_thread),
            ("limits_are_those_of_the_policy", limits_are_those_of_the_policy),
            ("descriptors_are_those_documented", descriptors_are_those_documented),
            ("what_the_starter_left_open_is_closed", what_the_starter_left_open_is_closed),
            ("without_root_all_but_the_accounts_holds", without_root_all_but_the_accounts_holds),
            ("an_account_in_use_is_refused", an_account_in_use_is_refused),
            ("a_dead_worker_is_replaced_on_the_same_connection", a_dead_worker_is_replaced_on_the_same_connection),
            ("a_dead_opener_is_replaced", a_dead_opener_is_replaced),
            ("a_dead_spawner_ends_the_rest_in_order", a_dead_spawner_ends_the_rest_in_order),
            ("a_dead_broker_takes_the_rest_along", a_dead_broker_takes_the_rest_along),
            ("sigterm_and_sigint_end_it_in_order", sigterm_and_sigint_end_it_in_order),
            ("a_signal_to_all_ends_it_in_order", a_signal_to_all_ends_it_in_order),
            ("each_process_survives_a_stop", each_process_survives_a_stop),
        ],
        &[],
        &[BINARY, "sleep"],
    )
}

const SPAWNER: &str = "spawner";
const OPENER: &str = "opener";
const WORKER: &str = "worker";
const BROKER: &str = "broker";
const CHILDREN: [&str; 3] = [SPAWNER, OPENER, WORKER];

const FREEZE: &str = r#""guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw""#;
const FILES: &str = "[[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";

/// A policy with the file commands, these others, and this shutdown method.
fn policy(commands: &str, method: &str) -> String {
    let shutdown = format!("[shutdown]\nmodes = [\"powerdown\"]\nmethod = \"{method}\"\n");
    let shutdown = if commands.contains("shutdown") { shutdown.as_str() } else { "" };
    format!("profile = \"files\"\n[commands]\nallow = [{commands}]\n{shutdown}{FILES}")
}

/// As it ships: freezing, and shutting down through init.
fn usual() -> String {
    policy(&format!("{FREEZE}, \"guest-shutdown\""), "init")
}

/// The fields of a status file of proc(5).
fn status(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn proc_of(pid: i32, name: &str) -> std::path::PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// The status of each thread of a process.
fn threads(pid: i32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(proc_of(pid, "task")).expect("its threads").flatten();
    tasks.map(|task| status(&task.path().join("status"))).collect()
}

/// The whole family, once all four are there.
fn family(agent: &Agent<'_>) -> BTreeMap<String, i32> {
    eventually("all four processes", || Some(agent.family()).filter(|family| family.len() == 4))
}

/// Bits of `linux/capability.h`.
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_BOOT: u64 = 1 << 22;

const SETS: [&str; 5] = ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"];

fn assert_sets(who: &str, status: &BTreeMap<String, String>, held: u64) {
    for set in SETS {
        let found = u64::from_str_radix(&status[set], 16).expect("a mask");
        let due = if matches!(set, "CapInh" | "CapAmb") { 0 } else { held };
        assert_eq!(found, due, "{set} of the {who}: {found:#x}, not {due:#x}");
    }
}

fn capabilities_are_those_that_the_policy_needs() {
    let with = |more: &str| format!("{FREEZE}, {more}");
    // In a cell the init is the test, which postern does not know, and does not
    // signal; tests/live/shutdowns.rs has those that take signals.
    let rows = [
        ("freeze and init", usual(), SYS_ADMIN | DAC_READ_SEARCH),
        ("kernel", policy(&with("\"guest-shutdown\""), "kernel"), SYS_ADMIN | DAC_READ_SEARCH | SYS_BOOT),
        ("auto, init unknown", policy(&with("\"guest-shutdown\""), "auto"), SYS_ADMIN | DAC_READ_SEARCH | SYS_BOOT),
        ("no shutdown", policy(FREEZE, "init"), SYS_ADMIN | DAC_READ_SEARCH),
        ("no freeze", policy("\"guest-shutdown\"", "init"), 0),
        ("no freeze, kernel", policy("\"guest-shutdown\"", "kernel"), SYS_BOOT),
        ("only a thaw", policy("\"guest-fsfreeze-thaw\"", "init"), SYS_ADMIN | DAC_READ_SEARCH),
        ("only the status", policy("\"guest-fsfreeze-status\"", "init"), 0),
        ("files", policy("", "init"), 0),
        ("nothing", "profile = \"minimal\"".to_owned(), 0),
    ];
    for (name, policy, held) in rows {
        let home = Home::new();
        let agent = home.start(&policy);
        for (who, pid) in agent.family() {
            for thread in threads(pid) {
                assert_sets(&format!("{who} ({name})"), &thread, if who == BROKER { held } else { 0 });
            }
        }
    }
}

fn each_process_is_confined_in_every_thread() {
    let home = Home::new();
    let text =
        usual() + &format!("[identities]\nworker = {}\nbroker = {}\ngroups = [4242]\n", home.worker, home.broker);
    let mut command = home.command(&text);
    command.env("SECRET", "in the environment");
    let agent = home.start_command(command);
    let family = family(&agent);
    assert_eq!(threads(family[BROKER]).len(), 7, "loop, freezer, thawer, four that close");
    for (who, &pid) in &family {
        let (uid, groups) = if who == BROKER { (home.broker, "") } else { (home.worker, "4242") };
        let ids = [uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()].join(" ");
        for thread in threads(pid) {
            assert_eq!(thread["Uid"], ids, "uids of the {who}");
            assert_eq!(thread["Gid"], ids, "gids of the {who}");
            assert_eq!(thread["Groups"], groups, "groups of the {who}");
            assert_eq!(thread["NoNewPrivs"], "1", "NoNewPrivs of the {who}");
            assert_eq!(thread["Seccomp"], "2", "Seccomp of the {who}");
        }
        // What is not dumpable shows its secrets to root only.
        let environment = fs::metadata(proc_of(pid, "environ")).expect("environ");
        assert_eq!((environment.uid(), environment.gid()), (0, 0), "the {who} is dumpable");
        let line = fs::read(proc_of(pid, "cmdline")).expect("cmdline");
        let shown = String::from_utf8(line).expect("a name");
        assert_eq!(shown.trim_end_matches(['\0', ' ']), format!("postern: {who}"));
        assert_eq!(status(&proc_of(pid, "status"))["Name"], format!("postern-{who}"));
        let namespace = fs::read_link(proc_of(pid, "ns/pid")).expect("its PID namespace");
        let brokers = fs::read_link(proc_of(family[BROKER], "ns/pid")).expect("its PID namespace");
        assert_eq!(namespace == brokers, who == BROKER, "PID namespace of the {who}");
    }
    for who in CHILDREN {
        let pid = family[who];
        assert_eq!(fs::read(proc_of(pid, "environ")).expect("environ"), b"", "environment of the {who}");
        assert_eq!(fs::read(proc_of(pid, "cmdline")).expect("cmdline"), format!("postern: {who}\0").as_bytes());
        let inner = status(&proc_of(pid, "status"))["NSpid"].split(' ').next_back().map(str::to_owned);
        assert_eq!(inner.as_deref() == Some("1"), who == SPAWNER, "process 1 of the namespace is the spawner");
        let filters = if who == SPAWNER { "1" } else { "2" };
        assert_eq!(status(&proc_of(pid, "status"))["Seccomp_filters"], filters, "filters of the {who}");
    }
}

/// Soft and hard limit of a process, as limits of proc(5) writes them.
fn limit(pid: i32, name: &str) -> (String, String) {
    let text = fs::read_to_string(proc_of(pid, "limits")).expect("limits");
    let line = text.lines().find(|line| line.starts_with(name)).expect("a limit of that name");
    let mut values = line[name.len()..].split_whitespace().map(str::to_owned);
    (values.next().expect("soft"), values.next().expect("hard"))
}

fn limits_are_those_of_the_policy() {
    let home = Home::new();
    let agent = home.start(&(usual() + "[limits]\nmessage = \"1MiB\"\nhandles = 16\n"));
    let family = family(&agent);
    let rows: &[(&str, &str, u64)] = &[
        (WORKER, "Max core file size", 0),
        (WORKER, "Max processes", 0),
        (WORKER, "Max locked memory", 0),
        (WORKER, "Max msgqueue size", 0),
        (WORKER, "Max open files", 8 + 16),
        // Buffers, two messages of 1 MiB, and 80 bytes for each token of one.
        (WORKER, "Max data size", (16 << 20) + (2 << 20) + 80 * (1 << 20)),
        (WORKER, "Max address space", (80 << 20) + (16 << 20) + (2 << 20) + 80 * (1 << 20)),
        (OPENER, "Max core file size", 0),
        (OPENER, "Max processes", 0),
        (OPENER, "Max file size", 0),
        (OPENER, "Max data size", 32 << 20),
        (OPENER, "Max open files", 2048 + 64),
        (SPAWNER, "Max core file size", 0),
        (SPAWNER, "Max open files", 2048 + 64),
        (BROKER, "Max core file size", 0),
        (BROKER, "Max open files", 4096),
        (BROKER, "Max data size", 256 << 20),
    ];
    for (who, name, value) in rows {
        let due = (value.to_string(), value.to_string());
        assert_eq!(limit(family[*who], name), due, "{name} of the {who}");
    }
}

/// What a process has open: the object by number, sockets and the like by kind.
fn open_in(pid: i32) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(proc_of(pid, "fd")).expect("its descriptors").flatten();
    let number = |entry: &fs::DirEntry| entry.file_name().to_str().and_then(|name| name.parse().ok());
    let kind = |target: &Path| {
        let text = target.to_string_lossy().into_owned();
        if text.starts_with("socket:") { "socket".to_owned() } else { text }
    };
    entries.filter_map(|entry| Some((number(&entry)?, kind(&fs::read_link(entry.path()).ok()?)))).collect()
}

/// The descriptors of a process that are of this object.
fn numbers_of(pid: i32, of: &str) -> Vec<i32> {
    open_in(pid).into_iter().filter(|(_, target)| target == of).map(|(number, _)| number).collect()
}

/// How a descriptor was opened.
fn flags_of(pid: i32, number: i32) -> i32 {
    let text = fs::read_to_string(proc_of(pid, &format!("fdinfo/{number}"))).expect("its flags");
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags");
    i32::from_str_radix(flags.trim(), 8).expect("an octal number")
}

fn descriptors_are_those_documented() {
    let home = Home::new();
    let path = home.write("a", b"content");
    let agent = home.start(&usual());
    let family = family(&agent);
    let null = |number: i32| (number, "/dev/null".to_owned());
    let of = |more: &[(i32, &str)]| -> BTreeMap<i32, String> {
        let more = more.iter().map(|(number, target)| (*number, (*target).to_owned()));
        [null(0), null(1), null(2)].into_iter().chain(more).collect()
    };
    let events = "anon_inode:[signalfd]";
    let epoll = "anon_inode:[eventpoll]";
    let itself = format!("/proc/{}/fd", family[OPENER]);
    let directory = |name: &str| home.path(name).display().to_string();
    let mut brokers = vec![
        "/dev/null".to_owned(),
        "/dev/null".to_owned(),
        directory("stderr"),
        directory("log"),
        directory("log/audit.jsonl"),
        directory("state"),
        directory("state"),
        // Of the policy's file, to read it again.
        home.path("policy.toml").parent().expect("a directory").display().to_string(),
        format!("/proc/{}/mountinfo", family[BROKER]),
        events.to_owned(),
        "anon_inode:[eventfd]".to_owned(),
    ];
    // The listener, and one socket to each child.
    brokers.extend(std::iter::repeat_n("socket".to_owned(), 4));
    let name = path.display().to_string();
    let check = |when: &str, connected: &[(i32, &str)], more_of_broker: usize, looks: usize| {
        assert_eq!(open_in(family[SPAWNER]), of(&[(3, "socket"), (4, BINARY), (5, events)]), "spawner, {when}");
        assert_eq!(open_in(family[OPENER]), of(&[(3, "socket"), (4, &itself)]), "opener, {when}");
        let worker = [&[(3, "socket"), (4, epoll)], connected].concat();
        assert_eq!(open_in(family[WORKER]), of(&worker), "worker, {when}");
        let mut due = brokers.clone();
        due.extend(std::iter::repeat_n("socket".to_owned(), more_of_broker));
        due.extend(std::iter::repeat_n(name.clone(), looks));
        due.sort();
        // What it handed on it lets go of a moment later.
        eventually(&format!("broker, {when}: {due:?}"), || {
            let mut found: Vec<String> = open_in(family[BROKER]).into_values().collect();
            found.sort();
            (found == due).then_some(())
        });
        for number in numbers_of(family[BROKER], &name) {
            let flags = flags_of(family[BROKER], number);
            assert_eq!(flags & !libc::O_CLOEXEC, libc::O_PATH, "{number}: the broker can look at the file, no more");
        }
    };
    check("before a host is there", &[], 0, 0);
    let mut host = agent.connect();
    host.ping();
    check("with a host", &[(5, "socket")], 1, 0);
    let handles = [host.open(&path, "r").expect("a handle"), host.open(&path, "r+").expect("a handle")];
    check("with open files", &[(5, "socket"), (6, &name), (7, &name)], 1, 2);
    for handle in handles {
        host.close(handle);
    }
    host.open(home.files().join("missing"), "r").expect_err("no such file");
    host.open("/etc/passwd", "r").expect_err("not in the policy");
    check("with files closed again", &[(5, "socket")], 1, 0);
    drop(host);
    agent.await_record("host-disconnected", |_| true);
    check("after the host left", &[], 0, 0);
}

fn what_the_starter_left_open_is_closed() {
    let home = Home::new();
    let leaked: OwnedFd = fs::File::open("/proc/self/status").expect("a file").into();
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("no close-on-exec");
    let agent = home.start(&usual());
    for (who, pid) in family(&agent) {
        let open = open_in(pid);
        assert!(!open.values().any(|target| target.ends_with("/status")), "{who} has {}: {open:?}", leaked.as_raw_fd());
    }
}

fn without_root_all_but_the_accounts_holds() {
    let home = Home::unprivileged();
    let path = home.write("a", b"content");
    let agent = home.start(&usual());
    let family = family(&agent);
    for (who, &pid) in &family {
        for thread in threads(pid) {
            assert_eq!(thread["Uid"].split(' ').next(), Some(home.worker.to_string().as_str()), "uid of the {who}");
            assert_eq!(thread["NoNewPrivs"], "1", "NoNewPrivs of the {who}");
            assert_eq!(thread["Seccomp"], "2", "Seccomp of the {who}");
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
                assert_eq!(thread[set], "0000000000000000", "{set} of the {who}");
            }
        }
        let environment = fs::metadata(proc_of(pid, "environ")).expect("environ");
        assert_eq!(environment.uid(), 0, "the {who} is dumpable");
    }
    assert_eq!(agent.records()[0]["postern"]["privileged"], json!(false));
    assert!(agent.said().contains("started without root"), "{}", agent.said());
    let mut host = agent.connect();
    host.open(&path, "r").expect("a file of the policy");
    host.open("/etc/passwd", "r").expect_err("a file outside of it");
    let why = host.fails("guest-fsfreeze-freeze", &Value::Null);
    assert!(why.contains("started without root"), "{why}");
    let why = host.fails("guest-shutdown", &json!({ "mode": "powerdown" }));
    assert!(why.contains("started without root"), "{why}");
}

fn an_account_in_use_is_refused() {
    for which in ["worker", "broker"] {
        let home = Home::new();
        let uid = if which == "worker" { home.worker } else { home.broker };
        let mut sleeper = std::process::Command::new("/bin/sleep");
        let mut sleeper = std::os::unix::process::CommandExt::uid(sleeper.arg("60"), uid).spawn().expect("sleep");
        let status = home.command(&usual()).status().expect("the agent");
        assert_eq!(status.code(), Some(4), "exit status of a refused start");
        let said = fs::read_to_string(home.path("stderr")).expect("stderr");
        assert!(said.contains(&format!("is in use by process {}", sleeper.id())), "{said}");
        sleeper.kill().expect("the sleeper's end");
        sleeper.wait().expect("the sleeper's end");
    }
}

/// A record of a dead child, by its role and signal.
fn died(role: &str, signal: i32) -> impl Fn(&Value) -> bool {
    move |record| record["process"]["name"] == role && record.to_string().contains(&format!("{signal}"))
}

fn a_dead_worker_is_replaced_on_the_same_connection() {
    let home = Home::new();
    let path = home.write("a", b"content");
    let agent = home.start(&usual());
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let first = agent.process(WORKER, 0);
    agent.signal(WORKER, Signal::SIGKILL);
    host.ping();
    let second = agent.process(WORKER, first);
    assert!(!lives(first), "the first worker still lives");
    let why = host.fails("guest-file-read", &json!({ "handle": handle }));
    assert_eq!(why, format!("handle '{handle}' has not been found"));
    let again = host.open(&path, "r").expect("a handle");
    assert!(again > handle, "handle {again} after {handle}");
    agent.await_record("process-died", died(WORKER, 9));
    let closed = agent.await_record("guest-file-close", |record| record["postern"]["handle"] == handle);
    assert!(closed.to_string().contains("worker"), "{closed}");
    assert_eq!(agent.process(WORKER, first), second, "one replacement");
    assert!(open_in(second).values().any(|target| target.ends_with("/files/a")), "the new worker has the new file");
    host.open("/etc/passwd", "r").expect_err("not in the policy");
    // What it handed on it lets go of a moment later.
    eventually("a look at the new worker's file, none at the dead one's", || {
        (numbers_of(agent.pid(), &path.display().to_string()).len() == 1).then_some(())
    });
}

fn a_dead_opener_is_replaced() {
    let home = Home::new();
    let path = home.write("a", b"content");
    let agent = home.start(&usual());
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let first = agent.process(OPENER, 0);
    agent.signal(OPENER, Signal::SIGKILL);
    agent.await_record("process-died", died(OPENER, 9));
    host.open(&path, "r").expect("a handle from the new opener");
    assert_eq!(host.read(handle), "Y29udGVudA==", "a file opened before stays open");
    agent.process(OPENER, first);
    // An open that is under way when its opener dies fails; nothing hangs.
    let second = agent.process(OPENER, first);
    agent.signal(OPENER, Signal::SIGSTOP);
    let request = json!({ "execute": "guest-file-open", "arguments": { "path": path.to_str(), "mode": "w" } });
    host.send(request.to_string().as_bytes());
    // The record comes before the opener is told.
    agent.await_record("guest-file-open", |record| record["postern"]["stage"] == "asked");
    agent.signal(OPENER, Signal::SIGKILL);
    let reply = host.hear();
    assert!(reply["error"]["desc"].as_str().is_some_and(|why| why.contains("Input/output error")), "{reply}");
    agent.process(OPENER, second);
    host.open(&path, "r").expect("a handle from the newest opener");
}

/// None of these processes lives.
fn await_end(family: &BTreeMap<String, i32>) {
    eventually("no process is left", || family.values().all(|pid| !lives(*pid)).then_some(()));
}

fn a_dead_spawner_ends_the_rest_in_order() {
    let home = Home::new();
    let mut agent = home.start(&usual());
    let family = family(&agent);
    let mut host = agent.connect();
    host.ping();
    agent.signal(SPAWNER, Signal::SIGKILL);
    assert_eq!(agent.ended().code(), Some(1));
    await_end(&family);
    let last = agent.records().pop().expect("a record");
    assert_eq!(last["event"]["action"], "stopped", "{last}");
    assert!(last["event"]["reason"].as_str().is_some_and(|why| why.contains("spawner")), "{last}");
    assert!(agent.said().contains("the spawner ended"), "{}", agent.said());
}

fn a_dead_broker_takes_the_rest_along() {
    let home = Home::new();
    let mut agent = home.start(&usual());
    let family = family(&agent);
    agent.signal(BROKER, Signal::SIGKILL);
    assert_eq!(agent.ended().signal(), Some(9));
    await_end(&family);
    // The socket that it left behind is in nobody's way, and the log goes on.
    let before = agent.records().len();
    drop(agent);
    let agent = home.start(&usual());
    agent.connect().ping();
    assert!(agent.records().len() > before);
}

fn sigterm_and_sigint_end_it_in_order() {
    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT")] {
        let home = Home::new();
        let path = home.write("a", b"content");
        let mut agent = home.start(&usual());
        let family = family(&agent);
        let mut host = agent.connect();
        let handle = host.open(&path, "r").expect("a handle");
        agent.signal(BROKER, signal);
        assert_eq!(agent.ended().code(), Some(0), "{}", agent.said());
        await_end(&family);
        let records = agent.records();
        let last = records.last().expect("a record");
        assert_eq!(last["event"]["action"], "stopped", "{last}");
        assert_eq!(last["event"]["reason"], name, "{last}");
        let closed = records.iter().find(|record| record["event"]["action"] == "guest-file-close");
        assert_eq!(closed.expect("a record of the close")["postern"]["handle"], handle);
    }
}

/// `systemctl mask --now` and killall5 signal every process, the broker last at worst.
fn a_signal_to_all_ends_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let home = Home::new();
        let path = home.write("a", b"content");
        let mut agent = home.start(&usual());
        let family = family(&agent);
        let mut host = agent.connect();
        let handle = host.open(&path, "r").expect("a handle");
        for who in CHILDREN {
            agent.signal(who, signal);
        }
        // Whoever died of it would be missed by now.
        assert_eq!(host.read(handle), "Y29udGVudA==");
        assert_eq!(agent.family(), family);
        agent.signal(BROKER, Signal::SIGTERM);
        assert_eq!(agent.ended().code(), Some(0), "{}", agent.said());
        await_end(&family);
        let died = agent.records().into_iter().find(|record| record["event"]["action"] == "process-died");
        assert_eq!(died, None, "{signal}");
    }
}

fn each_process_survives_a_stop() {
    let home = Home::new();
    let path = home.write("a", b"content");
    let agent = home.start(&usual());
    let before = family(&agent);
    let mut host = agent.connect();
    host.ping();
    for who in [WORKER, OPENER, SPAWNER, BROKER] {
        agent.signal(who, Signal::SIGSTOP);
        eventually("it is stopped", || {
            threads(before[who]).iter().all(|thread| thread["State"].starts_with('T')).then_some(())
        });
        agent.signal(who, Signal::SIGCONT);
        host.ping();
        let handle = host.open(&path, "r").expect("a handle");
        assert_eq!(host.read(handle), "Y29udGVudA==");
        host.close(handle);
    }
    // All again, but with a request that waits meanwhile.
    for who in [WORKER, BROKER] {
        agent.signal(who, Signal::SIGSTOP);
        let request = json!({ "execute": "guest-file-open", "arguments": { "path": path.to_str() } });
        host.send(request.to_string().as_bytes());
        std::thread::sleep(Duration::from_millis(50));
        agent.signal(who, Signal::SIGCONT);
        let reply = host.hear();
        host.close(reply["return"].as_i64().unwrap_or_else(|| panic!("{reply}")));
    }
    assert_eq!(family(&agent), before, "nobody was replaced");
}
