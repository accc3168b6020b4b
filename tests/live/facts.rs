//! What records say of the run, and of files when their handles end, held against
//! what this test sees for itself.

use std::fs;
use std::io::Write;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use postern_core::audit::Hash;
use serde_json::{Value, json};

use crate::scene::{count, files_on, frozen_list, open_that_waits, policy, send, status, story, thaw, with};
use crate::support::agent::{Agent, BINARY, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;
use crate::support::server::{FLUSH, NAME, Server};

pub(crate) const TESTS: &[Test] = &[
    ("the_first_record_says_what_runs_and_how", the_first_record_says_what_runs_and_how),
    ("every_narrowing_shows_in_the_first_record", every_narrowing_shows_in_the_first_record),
    ("a_close_says_how_the_file_stands", a_close_says_how_the_file_stands),
    ("a_server_that_is_dead_holds_up_no_record", a_server_that_is_dead_holds_up_no_record),
    ("an_open_that_nobody_awaits_is_on_record", an_open_that_nobody_awaits_is_on_record),
    ("a_freeze_says_what_it_left_out", a_freeze_says_what_it_left_out),
    ("records_name_the_worker", records_name_the_worker),
];

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{path}: {why}")).trim_end().to_owned()
}

/// A line of a process's status.
fn status_of(pid: i32, line: &str) -> Vec<String> {
    let status = text(&format!("/proc/{pid}/status"));
    let found = status.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(':')).expect("the line");
    found.split_whitespace().map(str::to_owned).collect()
}

/// Bits of the capabilities that a record names.
fn bits(names: &Value) -> u64 {
    let names = names.as_array().expect("a list").iter().filter_map(Value::as_str);
    names.map(|name| 1_u64 << name.parse::<caps::Capability>().expect("a capability").index()).sum()
}

fn the_first_record_says_what_runs_and_how() {
    let home = Home::new();
    let agent = home.start(&policy());
    let first = agent.records_of("log-opened").remove(0);
    let executable = Hash::of(&fs::read(BINARY).expect("the executable")).to_string();
    assert_eq!(first["process"]["hash"]["sha256"], executable);
    assert_eq!(first["host"]["os"]["kernel"], text("/proc/sys/kernel/osrelease"));
    assert_eq!(first["host"]["boot"]["id"], text("/proc/sys/kernel/random/boot_id"));
    let files = Hash::of(&fs::read(home.path("policy.toml")).expect("the policy")).to_string();
    assert_eq!(first["postern"]["policy_digest"], files);
    assert_eq!(first["postern"]["channel"], format!("unix-listen:{}", home.path("host.sock").display()));
    assert_eq!(first["postern"]["file_rules"], 1);
    let commands = first["postern"]["commands"].as_array().expect("commands");
    assert!(commands.contains(&json!("guest-shutdown")) && !commands.contains(&json!("guest-exec")), "{commands:?}");

    let plan = &first["postern"]["confinement"];
    let family = agent.family();
    for name in ["broker", "spawner", "opener", "worker"] {
        let (plan, pid) = (&plan[name], family[name]);
        assert_eq!(plan["user"], status_of(pid, "Uid")[0], "{name}");
        assert_eq!(plan["group"], status_of(pid, "Gid")[0], "{name}");
        assert_eq!(plan["groups"], json!(status_of(pid, "Groups")), "{name}");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(format!("{:016x}", bits(&plan["capabilities"])), status_of(pid, set)[0], "{name}: {set}");
        }
    }
    assert!(bits(&plan["broker"]["capabilities"]) != 0, "the control: the broker keeps some");
    let mut started = 0;
    for record in agent.records_of("process-started") {
        let name = record["process"]["name"].as_str().expect("a name");
        assert_eq!(record["postern"]["seccomp"], plan[name]["seccomp"], "{name} put up what was planned");
        assert_eq!(record["user"]["id"], plan[name]["user"], "{name}");
        assert_eq!(record["process"]["pid"], family[name], "{name}");
        started += 1;
    }
    assert_eq!(started, 3);
}

fn first_of(home: &Home, agent: &Agent<'_>) -> Value {
    status(&mut agent.connect());
    let first = agent.records_of("log-opened").pop().expect("a first record")["postern"].clone();
    assert!(home.log().exists());
    first
}

fn every_narrowing_shows_in_the_first_record() {
    let mut home = Home::new();
    home.write("file", b"content");
    let whole = first_of(&home, &home.start(&policy()));
    assert_eq!(first_of(&home, &home.start(&policy()))["policy_in_force"], whole["policy_in_force"], "the control");

    // A drop-in.
    fs::create_dir(home.path("policy.d")).expect("a directory");
    let drop_in = home.path("policy.d/50-less.toml");
    fs::write(&drop_in, "version = 1\n[commands]\ndeny = [\"guest-shutdown\"]\n").expect("a drop-in");
    let less = first_of(&home, &home.start(&policy()));
    assert_ne!(less["policy_digest"], whole["policy_digest"]);
    assert_ne!(less["policy_in_force"], whole["policy_in_force"]);
    let names = |first: &Value| first["commands"].as_array().expect("commands").len();
    assert_eq!(names(&less), names(&whole) - 1);

    // A comment: other files, the same policy.
    fs::write(&drop_in, "version = 1\n# nothing\n").expect("a drop-in");
    let same = first_of(&home, &home.start(&policy()));
    assert_ne!(same["policy_digest"], whole["policy_digest"]);
    assert_eq!(same["policy_in_force"], whole["policy_in_force"]);
    fs::remove_file(&drop_in).expect("the drop-in");

    // Stock's lists: the same files, another policy.
    home.launch = ["qemu-ga", "-b", "guest-file-open,guest-shutdown"].map(str::to_owned).to_vec();
    let command = home.command(&policy());
    let agent = Agent { home: &home, child: { command }.spawn().expect("the agent") };
    let narrow = first_of(&home, &agent);
    assert_eq!(narrow["policy_digest"], whole["policy_digest"]);
    assert_ne!(narrow["policy_in_force"], whole["policy_in_force"]);
    assert_eq!((names(&narrow), &narrow["file_rules"]), (names(&whole) - 2, &json!(0)));
    assert!(narrow["confinement"].get("opener").is_none(), "there is none");
}

/// The record of a handle's end.
fn closed(agent: &Agent<'_>, handle: i64) -> Value {
    agent.await_record("guest-file-close", |record| record["postern"]["handle"] == handle)
}

/// Waits until the broker holds so many descriptors of a file; what it handed on it
/// lets go of a moment later.
fn await_held(agent: &Agent<'_>, path: &Path, count: usize) {
    eventually(&format!("the broker holds {count} of {}", path.display()), || {
        (held(agent, path) == count).then_some(())
    });
}

fn held(agent: &Agent<'_>, path: &Path) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("descriptors").flatten();
    descriptors.filter(|one| fs::read_link(one.path()).is_ok_and(|of| of == path)).count()
}

fn a_close_says_how_the_file_stands() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let granted = |handle: i64| {
        agent.await_record("guest-file-open", |record| record["postern"]["handle"] == handle)["file"]["mtime"].clone()
    };

    // Read only: nothing changed.
    let handle = host.open(&path, "r").expect("a handle");
    host.read(handle);
    await_held(&agent, &path, 1);
    host.close(handle);
    let after = closed(&agent, handle)["postern"]["after"].clone();
    assert_eq!((&after["size"], &after["changed"]), (&json!(7), &json!(false)));
    assert_eq!(after["mtime"], granted(handle));
    await_held(&agent, &path, 0);

    // Written: the kernel's word beside the worker's.
    let handle = host.open(&path, "r+").expect("a handle");
    host.write(handle, "bW9yZSB0aGFuIGNvbnRlbnQ=");
    host.close(handle);
    let record = closed(&agent, handle);
    assert_eq!(record["postern"]["after"]["size"], 17);
    assert_eq!(record["postern"]["after"]["changed"], true);
    assert_eq!(record["postern"]["self_reported"]["bytes_written"], 17);

    // By somebody else: it is of the file, not of the handle.
    let handle = host.open(&path, "r").expect("a handle");
    fs::File::options().append(true).open(&path).expect("the file").write_all(b"!").expect("a byte");
    host.close(handle);
    let record = closed(&agent, handle);
    assert_eq!(
        record["postern"]["after"],
        json!({ "size": 18, "mtime": record["postern"]["after"]["mtime"], "changed": true })
    );
    assert_eq!(record["postern"]["self_reported"]["bytes_written"], 0);

    // Of one that was made, whose name is gone and whose worker died unheard.
    let new = home.files().join("new");
    let handle = host.open(&new, "w").expect("a handle");
    host.write(handle, "bW9yZQ==");
    fs::remove_file(&new).expect("the new file");
    agent.signal("worker", Signal::SIGKILL);
    let record = closed(&agent, handle);
    assert_eq!(record["event"]["reason"], "the worker died");
    assert_eq!(
        (&record["postern"]["after"]["size"], &record["postern"]["after"]["changed"]),
        (&json!(4), &json!(true))
    );
    assert!(record["postern"].get("self_reported").is_none(), "it could say nothing");
}

fn a_server_that_is_dead_holds_up_no_record() {
    let server = Server::mount("/net");
    let home = Home::new();
    let files = "profile = \"files\"\n[[files]]\npath = \"/net\"\nrights = [\"read\", \"write\"]\n";
    let mut agent = home.start(files);
    let mut host = agent.connect();
    let path = Path::new("/net").join(NAME);
    // The control: it serves.
    let handle = host.open(&path, "r+").expect("a handle");
    host.write(handle, "bW9yZSB0aGFuIGNvbnRlbnQ=");
    host.close(handle);
    assert_eq!(closed(&agent, handle)["postern"]["after"]["size"], 17);

    let handle = host.open(&path, "r+").expect("a handle");
    host.write(handle, "bW9yZSB0aGFuIGNvbnRlbnQgYWdhaW4=");
    server.die();
    // The worker hangs in its close(2), which not even SIGKILL ends.
    send(&mut host, "guest-file-close", &json!({ "handle": handle }), "close");
    eventually("the worker waits for the server", || (server.last() == FLUSH).then_some(()));
    agent.signal("broker", Signal::SIGTERM);
    let record = closed(&agent, handle);
    assert_eq!(record["event"]["reason"], "postern is stopping");
    assert_eq!(
        (&record["postern"]["after"]["size"], &record["postern"]["after"]["changed"]),
        (&json!(23), &json!(true))
    );
    agent.await_record("stopped", |record| record["event"]["reason"] == "SIGTERM");
    drop(server);
    assert!(agent.ended().success());
}

fn an_open_that_nobody_awaits_is_on_record() {
    let home = Home::new();
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let _files = files_on(&home, &mounted);
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let new = home.files().join("new");
    mounted.freeze();
    open_that_waits(&agent, &mut host);
    agent.signal("worker", Signal::SIGKILL);
    agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    assert!(mounted.thaw());
    let record = agent.await_record("guest-file-open", |record| record["postern"]["stage"] == "failed");
    assert_eq!(record["event"]["reason"], "the worker ended before it was answered");
    assert_eq!((&record["file"]["path"], &record["postern"]["created"]), (&json!(new), &json!(true)));
    assert_eq!(record["postern"]["requested"], json!(new));
    let asked = agent.await_record("guest-file-open", |record| record["postern"]["stage"] == "asked");
    assert_eq!(record["postern"]["child"], asked["postern"]["child"]);
    await_held(&agent, &new, 0);
    // The next worker is served.
    host.open(&new, "r").expect("a handle");
}

fn a_freeze_says_what_it_left_out() {
    let (covered, busy, disk) =
        (Disk::small("ext4", "/a.img"), Disk::small("ext4", "/b.img"), Disk::small("ext4", "/c.img"));
    let _covered = covered.mount("/covered");
    let none: Option<&str> = None;
    mount(Some("cover"), "/covered", Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
    let busy = busy.mount("/busy");
    let _disk = disk.mount("/disk");
    busy.freeze();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(count(&mut host, "guest-fsfreeze-freeze"), 1);
    assert_eq!(thaw(&mut host), 1);
    status(&mut host);
    let done = agent.await_record("guest-fsfreeze-freeze", |record| record["postern"]["stage"] == "done");
    assert_eq!(done["postern"]["mounts"], json!(["/disk"]));
    let (out, because) = (&done["postern"]["left_out"], &done["postern"]["left_out_because"]);
    let mut why: Vec<_> = out.as_array().expect("mounts").iter().zip(because.as_array().expect("reasons")).collect();
    why.sort_by_key(|(mount, _)| mount.to_string());
    assert_eq!(why, [(&json!("/busy"), &json!("frozen-by-others")), (&json!("/covered"), &json!("covered"))]);
    assert!(busy.thaw());
    // Nothing to leave out, nothing said.
    assert_eq!(frozen_list(&mut host, &["/disk"]), Ok(1));
    assert_eq!(thaw(&mut host), 1);
    status(&mut host);
    let done = agent.await_record("guest-fsfreeze-freeze-list", |record| record["postern"]["stage"] == "done");
    assert!(done["postern"].get("left_out").is_none(), "{done}");
}

/// The numbers of workers in the records of one action.
fn workers(agent: &Agent<'_>, action: &str) -> Vec<u64> {
    let records = agent.records_of(action);
    records.iter().map(|record| record["postern"]["child"].as_u64().unwrap_or_else(|| panic!("{record}"))).collect()
}

fn records_name_the_worker() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&with(""));
    let everything = |host: &mut Host| {
        let handle = host.open(&path, "a").expect("a handle");
        host.open("/etc/shadow", "r").expect_err("outside");
        host.fails("guest-exec", &Value::Null);
        host.fails("guest-shutdown", &json!({ "mode": "halt" }));
        count(host, "guest-fsfreeze-freeze");
        thaw(host);
        host.close(handle);
        status(host);
    };
    let number = |agent: &Agent<'_>| {
        let started = agent.records_of("process-started");
        let last = started.iter().rfind(|record| record["process"]["name"] == "worker").expect("a worker");
        last["postern"]["child"].as_u64().expect("a number")
    };
    everything(&mut agent.connect());
    let first = number(&agent);
    agent.signal("worker", Signal::SIGKILL);
    everything(&mut agent.connect());
    let second = number(&agent);
    assert!(second > first);
    for (action, times) in [
        ("guest-file-open", 3),
        ("guest-file-close", 1),
        ("guest-exec", 1),
        ("guest-shutdown", 1),
        ("guest-fsfreeze-thaw", 1),
    ] {
        let wanted = [vec![first; times], vec![second; times]].concat();
        assert_eq!(workers(&agent, action), wanted, "{action}");
    }
    let asked = agent.records_of("guest-fsfreeze-freeze");
    let asked: Vec<_> = asked.iter().filter(|record| record["postern"]["stage"] == "asked").collect();
    assert_eq!(
        asked.iter().map(|record| record["postern"]["child"].as_u64()).collect::<Vec<_>>(),
        [Some(first), Some(second)]
    );
    story(&agent);
}
