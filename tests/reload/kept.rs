//! Policies that are not taken: the old one stays, all of it.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::runner::Test;
use crate::{FILES, elsewhere, last, outcome, outcomes, refusal, reload, why};

pub(crate) const TESTS: &[Test] = &[
    ("a_bad_policy_changes_nothing", a_bad_policy_changes_nothing),
    ("what_takes_a_new_start_is_said_by_key", what_takes_a_new_start_is_said_by_key),
    ("a_directory_that_was_exchanged_is_not_followed", a_directory_that_was_exchanged_is_not_followed),
    ("a_candidate_that_dies_is_rolled_back", a_candidate_that_dies_is_rolled_back),
    ("a_bad_policy_does_not_keep_the_log_from_moving", a_bad_policy_does_not_keep_the_log_from_moving),
    ("what_a_start_took_away_stays_away", what_a_start_took_away_stays_away),
];

/// What is said of a policy, and what is done to it.
type Harm<'a> = (&'static str, Box<dyn Fn() + 'a>);

/// The worker is the same, and so is all that it holds.
fn goes_on(agent: &Agent<'_>, host: &mut Host, handle: i64, worker: i32) {
    host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": 0 }));
    assert_eq!(host.read(handle), "aGVyZQ==");
    assert_eq!(agent.process("worker", 0), worker);
}

fn a_bad_policy_changes_nothing() {
    let home = Home::new();
    let path = home.write("file", b"here");
    fs::create_dir(home.path("policy.d")).expect("a directory");
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let worker = agent.process("worker", 0);
    let good = fs::read(home.path("policy.toml")).expect("the policy");
    let policy = home.path("policy.toml");
    let rewritten = |text: &str| fs::write(&policy, text).expect("a policy");
    let text = String::from_utf8(good.clone()).expect("text");
    let harms: Vec<Harm<'_>> = vec![
        ("this is not TOML", Box::new(|| rewritten("version = 1\nprofile = \"files\n"))),
        ("there is no key 'profle'", Box::new(|| rewritten(&text.replace("profile", "profle")))),
        ("'version' is missing", Box::new(|| rewritten(""))),
        // Half of it: a write in progress.
        ("", Box::new(|| rewritten(&text[..text.len() / 2 + 3]))),
        ("larger than 1 MiB", Box::new(|| rewritten(&"#".repeat((1 << 20) + 1)))),
        ("this is not UTF-8", Box::new(|| fs::write(&policy, b"version = 1 # \xff").expect("a policy"))),
        ("there is no policy", Box::new(|| fs::remove_file(&policy).expect("it goes"))),
        (
            "Permission denied",
            Box::new(|| fs::set_permissions(&policy, Permissions::from_mode(0o600)).expect("its mode")),
        ),
        (
            "can be written by others",
            Box::new(|| fs::set_permissions(&policy, Permissions::from_mode(0o664)).expect("its mode")),
        ),
        ("belongs to user", Box::new(|| chown(&policy, Some(home.broker), None).expect("its owner"))),
        (
            "is a symbolic link",
            Box::new(|| {
                fs::rename(&policy, home.path("real.toml")).expect("it moves");
                symlink("real.toml", &policy).expect("a link");
            }),
        ),
        ("cannot", Box::new(|| rewritten(&text.replace("HOME", "").replace("/files\"", "/nowhere\"")))),
    ];
    for (says, harm) in &harms {
        harm();
        let record = outcome(&agent);
        let reason = why(&record);
        println!("{reason}");
        let says = if *says == "cannot" { "create it, write `optional = true`" } else { says };
        assert!(reason.contains(says), "{says}: {reason}");
        goes_on(&agent, &mut host, handle, worker);
        let _ = fs::remove_file(&policy);
        fs::write(&policy, &good).expect("the good policy");
    }
    // A drop-in counts as the main file does.
    fs::write(home.path("policy.d/10.toml"), "version = 2\n").expect("a drop-in");
    assert!(why(&outcome(&agent)).contains("10.toml"));
    fs::remove_file(home.path("policy.d/10.toml")).expect("it goes");
    goes_on(&agent, &mut host, handle, worker);
    // The control: nothing is wrong any more, and nothing has changed.
    let before = last(&agent);
    agent.signal("broker", Signal::SIGHUP);
    eventually("it says so", || agent.said().contains("the policy has not changed").then_some(()));
    assert!(outcomes(&agent, before).is_empty());
    goes_on(&agent, &mut host, handle, worker);
    assert_eq!(agent.records_of("policy-kept").len(), harms.len() + 1);
}

fn what_takes_a_new_start_is_said_by_key() {
    let home = Home::new();
    let path = home.write("file", b"here");
    elsewhere(&home);
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    let worker = agent.process("worker", 0);
    let identities = format!("[identities]\nworker = {}\nbroker = {}\n", home.worker, home.broker + 7);
    let named = "[identities]\nworker = \"who-was-not-there\"\nbroker = \"nor-who\"\n".to_owned();
    // What a start without it has no means for.
    let freeze =
        "[commands]\nallow = [\"guest-fsfreeze-freeze\", \"guest-fsfreeze-thaw\", \"guest-fsfreeze-status\"]\n";
    let shutdown = "[commands]\nallow = [\"guest-shutdown\"]\n[shutdown]\nmodes = [\"powerdown\"]\n";
    let cases = [
        ("identities.broker", identities.as_str()),
        ("identities.worker", named.as_str()),
        ("commands.allow", freeze),
        ("commands.allow", shutdown),
        ("audit.fsync", "[audit]\nheads = []\nfsync = \"record\"\n"),
        ("audit.rotate_bytes", "[audit]\nheads = []\nrotate_bytes = \"1MiB\"\n"),
        ("audit.heads", "[audit]\nheads = [\"syslog\"]\n"),
    ];
    for (key, tables) in cases {
        // With a change that could be taken: all or nothing.
        let text = format!("{}{tables}", FILES.replace("HOME/files", "HOME/elsewhere"));
        home.policy(&text);
        let record = outcome(&agent);
        let reason = why(&record);
        assert!(reason.contains(key) && reason.contains("systemctl restart postern"), "{key}: {reason}");
        let keys = record["postern"]["restart"].as_array().expect("keys");
        assert!(keys.contains(&json!(key)) && !keys.contains(&json!("files.path")), "{record}");
        assert!(record["postern"]["policy_refused"].is_string());
        goes_on(&agent, &mut host, handle, worker);
    }
    for (key, from, to) in [
        ("audit.log", "log/audit.jsonl", "log/other.jsonl"),
        ("state.directory", "/state\"", "/other-state\""),
        ("channel.method", "/host.sock", "/other.sock"),
    ] {
        home.policy(FILES);
        let text = fs::read_to_string(home.path("policy.toml")).expect("the policy");
        assert!(text.contains(from));
        fs::write(home.path("policy.toml"), text.replace(from, to)).expect("a policy");
        let record = outcome(&agent);
        assert!(record["postern"]["restart"].as_array().expect("keys").contains(&json!(key)), "{record}");
        goes_on(&agent, &mut host, handle, worker);
    }
}

fn a_directory_that_was_exchanged_is_not_followed() {
    let home = Home::new();
    let nest = home.path("nest");
    fs::create_dir(&nest).expect("a directory");
    let mut command = home.command(FILES);
    let policy = nest.join("policy.toml");
    fs::copy(home.path("policy.toml"), &policy).expect("a policy");
    command.args(["--policy"]);
    let binary = command.get_program().to_owned();
    let mut command = std::process::Command::new(binary);
    let stderr = File::options().append(true).open(home.path("stderr")).expect("stderr");
    command.args(["run", "-vv", "--policy"]).arg(&policy).stderr(stderr);
    let agent = home.start_command(command);
    // A drop-in directory that is made later is none that it holds.
    fs::create_dir(nest.join("policy.d")).expect("a directory");
    let reason = why(&outcome(&agent));
    assert!(reason.contains("systemctl restart postern"), "{reason}");
    fs::remove_dir(nest.join("policy.d")).expect("it goes");
    fs::rename(&nest, home.path("old")).expect("it moves");
    fs::create_dir(&nest).expect("another directory");
    let mut file = File::create(&policy).expect("a policy");
    file.write_all(b"version = 1\nprofile = \"minimal\"\n").expect("a policy");
    let reason = why(&outcome(&agent));
    assert!(reason.contains("another directory than when postern started"), "{reason}");
    // On the way to it: who can write there could exchange it.
    fs::remove_dir_all(&nest).expect("it goes");
    fs::rename(home.path("old"), &nest).expect("back");
    fs::set_permissions(home.path(""), Permissions::from_mode(0o775)).expect("its mode");
    let reason = why(&outcome(&agent));
    assert!(reason.contains("can be written by others"), "{reason}");
    fs::set_permissions(home.path(""), Permissions::from_mode(0o755)).expect("its mode");
    let text = fs::read_to_string(&policy).expect("the policy").replace(", \"write\"", "");
    fs::write(&policy, text).expect("a policy");
    assert_eq!(outcome(&agent)["event"]["action"], "policy-reloaded", "the control");
}

fn a_candidate_that_dies_is_rolled_back() {
    let home = Home::new();
    let path = home.write("file", b"here");
    elsewhere(&home);
    let agent = home.start(FILES);
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    // A request that is half here holds the reload up, so that there is time.
    host.send(b"{\"execute\":");
    home.policy(&FILES.replace("HOME/files", "HOME/elsewhere"));
    let (worker, opener) = (agent.process("worker", 0), agent.process("opener", 0));
    let before = last(&agent);
    agent.signal("broker", Signal::SIGHUP);
    let spawner = agent.process("spawner", 0);
    let young = eventually("an opener under the new policy", || {
        let children = fs::read_to_string(format!("/proc/{spawner}/task/{spawner}/children")).unwrap_or_default();
        let pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        pids.filter(|pid| *pid != opener).find(|pid| name(*pid).contains("opener"))
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(young), Signal::SIGKILL).expect("its end");
    let record = eventually("an outcome", || outcomes(&agent, before).pop());
    assert!(why(&record).contains("ended"), "{record}");
    host.send(b"\"guest-ping\"}");
    assert!(host.hear()["return"].is_object());
    assert_eq!(agent.process("opener", 0), opener);
    // The old worker may have been asked to leave already, or not.
    let seek = json!({ "handle": handle, "offset": 0, "whence": 0 });
    let reply = host.ask("guest-file-seek", &seek);
    if reply.get("return").is_none() {
        assert!(reply.to_string().contains(&format!("handle '{handle}' has not been found")), "{reply}");
        assert_ne!(agent.process("worker", worker), worker);
        host.open(&path, "r").expect("the old rule");
    }
}

fn a_bad_policy_does_not_keep_the_log_from_moving() {
    let home = Home::new();
    let agent = home.start(FILES);
    agent.connect().ping();
    fs::rename(home.log(), home.path("log/audit.jsonl.1")).expect("a rotation");
    let reason = refusal(&agent, "nonsense = true\n");
    assert!(reason.contains("nonsense"), "{reason}");
    let first = &agent.records()[0];
    assert_eq!(first["event"]["action"], "log-opened");
    assert_eq!(first["event"]["reason"], "rotated");
    agent.connect().ping();
}

fn what_a_start_took_away_stays_away() {
    let mut home = Home::new();
    home.launch = ["qemu-ga", "-b", "guest-file-write,guest-shutdown"].map(str::to_owned).to_vec();
    let path = home.write("file", b"here");
    let agent = home.start("profile = \"minimal\"\n[commands]\nallow = [\"guest-file-open\"]\n");
    let mut host = agent.connect();
    let shutdown = "[commands]\nallow = [\"guest-shutdown\"]\n[shutdown]\nmodes = [\"powerdown\"]\n";
    let record = reload(&agent, &format!("{FILES}{shutdown}"));
    let commands = record["postern"]["commands"].as_array().expect("commands").clone();
    assert!(commands.contains(&json!("guest-file-read")), "{record}");
    for blocked in ["guest-file-write", "guest-shutdown"] {
        assert!(!commands.contains(&json!(blocked)), "{record}");
    }
    let handle = host.open(&path, "r+").expect("a handle");
    assert!(host.write(handle, "aGVyZQ==")["error"].is_object());
}
