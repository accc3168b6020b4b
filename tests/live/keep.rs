//! Living with the log under a working agent: two who rotate at once, room that
//! is spent, waiting for the disk as the policy says, and disks that fail.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scene::{freeze, own_directory, story, thaw, verify, with};
use crate::service::Manager;
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("logrotate_and_the_broker_rotate_at_once_and_lose_nothing", logrotate_and_the_broker_rotate_at_once),
    ("room_that_is_spent_refuses_opens_and_nothing_else", room_that_is_spent_refuses_opens),
    ("a_flood_of_refusals_is_counted", a_flood_of_refusals_is_counted),
    ("a_flood_of_facts_is_counted", a_flood_of_facts_is_counted),
    ("a_descriptor_leaves_behind_the_disk_where_the_policy_says_so", a_descriptor_leaves_behind_the_disk),
    ("a_disk_that_does_not_take_the_record_refuses_the_open", a_disk_that_does_not_take_the_record),
    ("nothing_waits_for_the_disk_while_frozen", nothing_waits_for_the_disk_while_frozen),
    ("a_disk_that_fails_refuses_opens", a_disk_that_fails_refuses_opens),
    ("a_log_that_cannot_be_had_is_no_start", a_log_that_cannot_be_had_is_no_start),
    ("a_log_that_is_exchanged_is_left_alone", a_log_that_is_exchanged_is_left_alone),
];

/// The policy of the tests with lines in `[audit]`.
fn audit(lines: &str) -> String {
    with(&format!("[audit]\nheads = []\n{lines}"))
}

// ---- rotation ------------------------------------------------------------------------

/// Opens and closes a file until told to stop: the handles that it was given.
fn load(mut host: Host, path: &Path, stop: &AtomicBool) -> Vec<i64> {
    let mut handles = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let handle = host.open(path, "r").expect("a handle");
        host.close(handle);
        handles.push(handle);
    }
    handles
}

/// Every file of the home's log, uncompressed, oldest first.
fn files(home: &Home) -> Vec<PathBuf> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(home.path("log")).expect("the log's directory") {
        let mut path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "gz") {
            let output = Command::new("/bin/gzip").arg("-dc").arg(&path).output().expect("gzip");
            assert!(output.status.success(), "{}", path.display());
            let name = path.file_stem().expect("a name").to_owned();
            fs::create_dir_all(home.path("plain")).expect("a directory");
            path = home.path("plain").join(name);
            fs::write(&path, output.stdout).expect("a file");
        }
        let text = fs::read_to_string(&path).expect("a log");
        let Some(line) = text.lines().next() else { continue };
        let first: Value = serde_json::from_str(line).expect("JSON");
        found.push((first["event"]["sequence"].as_u64().expect("a number"), path));
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn records(files: &[PathBuf]) -> Vec<Value> {
    let texts = files.iter().map(|file| fs::read_to_string(file).expect("a log"));
    texts
        .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<_>>())
        .collect()
}

/// How many files the broker has set aside.
fn set_aside(home: &Home) -> usize {
    let names = fs::read_dir(home.path("log")).expect("the log's directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"));
    names.filter(|name| name.strip_prefix("audit.jsonl.").is_some_and(|number| number.len() == 12)).count()
}

fn logrotate_and_the_broker_rotate_at_once() {
    const ROTATIONS: usize = 12;
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&audit("rotate_bytes = 65536\n"));
    // As the package sets it up, but for place, owner and whom to tell.
    let rules = include_str!("../../audit/postern.logrotate").split_once("{\n").expect("the first block").1;
    let settings = rules.lines().take_while(|line| !line.contains("postrotate"));
    let settings: Vec<&str> = settings.filter(|line| !line.trim().starts_with("su ")).collect();
    assert!(settings.iter().any(|line| line.contains("delaycompress")), "{settings:?}");
    let (log, settings) = (home.log(), settings.join("\n"));
    let text = format!("{} {{\n{settings}\npostrotate\nkill -HUP {}\nendscript\n}}\n", log.display(), agent.pid());
    fs::write("/rotate.conf", text).expect("a configuration");
    let host = agent.connect();
    let stop = AtomicBool::new(false);
    let handles = thread::scope(|scope| {
        let load = scope.spawn(|| load(host, &path, &stop));
        for round in 0..ROTATIONS {
            // Right behind the broker's rotation, and shortly before one.
            let before = set_aside(&home);
            eventually("the broker rotates, or is about to", || {
                let large = fs::metadata(home.log()).is_ok_and(|log| log.len() > 60_000);
                (set_aside(&home) > before || (large && round % 2 == 1)).then_some(())
            });
            let output = Command::new("/bin/logrotate")
                .args(["--force", "--state", "/rotate.state", "/rotate.conf"])
                .output()
                .expect("logrotate");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
        }
        stop.store(true, Ordering::Relaxed);
        load.join().expect("the load")
    });
    agent.await_record("guest-file-close", |record| record["postern"]["handle"] == *handles.last().expect("one"));
    let names: Vec<PathBuf> =
        fs::read_dir(home.path("log")).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    let ours = set_aside(&home);
    let compressed = names.iter().filter(|name| name.extension().is_some_and(|extension| extension == "gz")).count();
    assert!(ours >= ROTATIONS / 2 && compressed > 3, "{names:#?}");
    let files = files(&home);
    verify(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    let granted: Vec<i64> = records(&files)
        .iter()
        .filter(|record| record["postern"]["stage"] == "granted")
        .map(|record| record["postern"]["handle"].as_i64().expect("a handle"))
        .collect();
    assert_eq!(granted, handles, "each once, in the order of being given");
    println!("    {} opens over {} files, {ours} by the broker, {compressed} compressed", handles.len(), files.len());
}

// ---- room ----------------------------------------------------------------------------

fn room_that_is_spent_refuses_opens() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", b"content");
    let new = home.files().join("new");
    fs::create_dir(home.path("log")).expect("the log's directory");
    fs::set_permissions(home.path("log"), Permissions::from_mode(0o700)).expect("its mode");
    let old = home.path("log/audit.jsonl.7.gz");
    fs::write(&old, vec![0; 4 << 20]).expect("an old file");
    for name in ["log", "log/audit.jsonl.7.gz"] {
        chown(home.path(name), Some(home.broker), Some(home.broker)).expect("its owner");
    }
    let manager = Manager::new(&home);
    let agent = home.start_command(manager.command(&home, &audit("max_bytes = \"4MiB\"\n")));
    let mut host = agent.connect();
    host.ping();
    let refusing = "STATUS=serving, but refusing opens: audit.max_bytes is spent, move old logs away";
    eventually("the status says what to do", || (manager.told() == refusing).then_some(()));
    for _ in 0..10 {
        for (path, mode) in [(&path, "r"), (&path, "w"), (&new, "w")] {
            let why = host.open(path, mode).expect_err("no open");
            assert!(why.ends_with("Input/output error"), "{why}");
        }
    }
    assert!(!new.exists() && fs::read(&path).expect("the file") == b"content", "no effect either");
    assert_eq!(freeze(&mut host), 1);
    assert_eq!(thaw(&mut host), 1, "never a thaw");
    let told = agent.records_of("guest-file-open");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!((&told[0]["postern"]["refused_by"], &told[0]["event"]["outcome"]), (&json!("audit"), &json!("failure")));
    let said = agent.said();
    assert_eq!(said.matches("audit.max_bytes is spent").count(), 1, "{said}");
    assert!(said.contains("move old ones away, then reload postern") && said.contains("opens are refused"), "{said}");

    fs::rename(&old, home.path("elsewhere.gz")).expect("moved away");
    agent.signal("broker", Signal::SIGHUP);
    eventually("the status is well again", || (manager.told() == "STATUS=serving").then_some(()));
    let handle = host.open(&path, "r").expect("a handle");
    host.close(handle);
    let repeated = agent.await_record("repeated", |_| true);
    assert_eq!(repeated["postern"]["counts"], json!({"guest-file-open": 29, "host-connected": 1}));
    story(&agent);
}

/// More of them than are written one by one.
const FLOOD: u64 = 4000;

fn a_flood_of_refusals_is_counted() {
    let home = Home::new();
    let agent = home.start(&audit(""));
    let mut host = agent.connect();
    for _ in 0..FLOOD {
        host.fails("guest-exec", &json!({}));
    }
    is_counted(&home, agent, "guest-exec");
}

fn a_flood_of_facts_is_counted() {
    let home = Home::new();
    // What is gathered anew each time, and costs least.
    let agent = home.start("profile = \"minimal\"\n[commands]\nredact = [\"guest-get-fsinfo\"]\n");
    let mut host = agent.connect();
    for _ in 0..FLOOD {
        host.returns("guest-get-fsinfo", &json!({}));
    }
    is_counted(&home, agent, "fact-told");
}

/// Ends the agent; what was asked for [`FLOOD`] times is in the log, listed or counted.
fn is_counted(home: &Home, mut agent: Agent<'_>, action: &str) {
    kill(Pid::from_raw(agent.pid()), Signal::SIGTERM).expect("SIGTERM");
    assert!(agent.ended().success());
    let all = agent.records();
    let listed = all.iter().filter(|record| record["event"]["action"] == action).count() as u64;
    let counted: u64 =
        agent.records_of("repeated").iter().filter_map(|record| record["postern"]["counts"][action].as_u64()).sum();
    assert_eq!(listed + counted, FLOOD, "{listed} listed");
    assert!(listed > 300 && listed < FLOOD / 2, "{listed} listed");
    verify(&[&home.log()]);
}

// ---- the disk ------------------------------------------------------------------------

/// A strace of an agent's broker.
struct Traced {
    strace: Child,
    out: PathBuf,
}

impl Traced {
    fn new(agent: &Agent<'_>, arguments: &[&str]) -> Self {
        let out = agent.home.path("trace");
        let mut strace = Command::new("/bin/strace")
            .args(["-y", "-s", "0", "-o"])
            .arg(&out)
            .args(arguments)
            .args(["-p", &agent.pid().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace");
        let mut said = BufReader::new(strace.stderr.take().expect("its stderr")).lines();
        let first = said.next().expect("a word").expect("text");
        assert!(first.contains("attached"), "{first}");
        Self { strace, out }
    }

    /// What it saw, once it is let go.
    fn lines(&mut self) -> Vec<String> {
        kill(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGINT).expect("SIGINT");
        self.strace.wait().expect("its end");
        fs::read_to_string(&self.out).expect("a trace").lines().map(str::to_owned).collect()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

const CALLS: &[&str] = &["-e", "trace=write,fdatasync,sendmsg,sendto,unlinkat,renameat2"];

/// The trace as letters: a record, a wait for the disk, a descriptor that leaves.
fn told(lines: &[String]) -> String {
    let letter = |line: &String| match line {
        line if line.starts_with("write(") && line.contains("audit.jsonl") => Some('r'),
        line if line.starts_with("fdatasync(") && line.contains("audit.jsonl") => Some('s'),
        line if line.starts_with("fdatasync(") => Some('d'),
        line if line.starts_with("sendmsg(") && line.contains("SCM_RIGHTS") => Some('F'),
        _ => None,
    };
    lines.iter().filter_map(letter).collect()
}

fn a_descriptor_leaves_behind_the_disk() {
    // An open to read, one that truncates, and two closes.
    let wanted = [("never", "rFrrrFr"), ("open", "rsFrrsrsFr"), ("record", "rsFrsrsrsFrs")];
    for (fsync, calls) in wanted {
        let home = Home::new();
        let path = home.write("file", b"content");
        let agent = home.start(&audit(&format!("fsync = \"{fsync}\"\n")));
        let mut host = agent.connect();
        // The directory waits with the first.
        let handle = host.open(&path, "r").expect("a handle");
        host.close(handle);
        host.ping();
        let mut traced = Traced::new(&agent, CALLS);
        for mode in ["r", "w"] {
            let handle = host.open(&path, mode).expect("a handle");
            host.close(handle);
        }
        host.returns("guest-fsfreeze-status", &Value::Null);
        let lines = traced.lines();
        assert_eq!(told(&lines), calls, "{fsync}: {lines:#?}");
    }
}

fn a_disk_that_does_not_take_the_record() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let new = home.files().join("new");
    let agent = home.start(&audit("fsync = \"open\"\n"));
    let mut host = agent.connect();
    // In place of the call one that the filter knows.
    let traced = Traced::new(&agent, &["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:syscall=getpid"]);
    for (path, mode) in [(&path, "r"), (&path, "w"), (&new, "w")] {
        let why = host.open(path, mode).expect_err("no open");
        assert!(why.ends_with("Input/output error"), "{why}");
    }
    assert!(!new.exists() && fs::read(&path).expect("the file") == b"content");
    drop(traced);
    let handle = host.open(&path, "r").expect("the disk is well again");
    host.close(handle);
    let refused = |record: &Value| record["postern"]["refused_by"] == "audit";
    agent.await_record("guest-file-close", |_| true);
    let opens = agent.records_of("guest-file-open");
    assert_eq!(opens.iter().filter(|record| refused(record)).count(), 3, "{opens:#?}");
    assert!(agent.said().contains("cannot bring"), "{}", agent.said());
    story(&agent);
}

fn nothing_waits_for_the_disk_while_frozen() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let _log = own_directory(&home, &mounted, "log");
    let path = home.write("file", b"content");
    let agent = home.start(&audit("fsync = \"record\"\nrotate_bytes = 65536\n"));
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    let mut traced = Traced::new(&agent, CALLS);
    for _ in 0..100 {
        host.open(&path, "r").expect_err("not while frozen");
        host.fails("guest-exec", &json!({}));
    }
    agent.signal("broker", Signal::SIGHUP);
    host.ping();
    let lines = traced.lines();
    assert_eq!(told(&lines), "", "{lines:#?}");
    assert_eq!(thaw(&mut host), 1);
    host.open(&path, "r").expect("a handle");
    let files = files(&home);
    assert!(files.len() > 1, "what waited was more than a file's worth: {files:?}");
    verify(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>());
}

fn a_disk_that_fails_refuses_opens() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let _log = own_directory(&home, &mounted, "log");
    let path = home.write("file", b"content");
    let new = home.files().join("new");
    let agent = home.start(&audit(""));
    let mut host = agent.connect();
    let handle = host.open(&path, "r").expect("a handle");
    // The filesystem ends, as on a disk that is gone.
    let output = Command::new("/bin/xfs_io").args(["-x", "-c", "shutdown", "/disk"]).output().expect("xfs_io");
    assert!(output.status.success(), "{output:?}");
    for (path, mode) in [(&path, "r"), (&path, "w"), (&new, "w")] {
        let why = host.open(path, mode).expect_err("no open");
        assert!(why.ends_with("Input/output error"), "{why}");
    }
    assert!(!new.exists() && fs::read(&path).expect("the file") == b"content");
    assert_eq!(host.fails("guest-fsfreeze-freeze", &Value::Null), "the audit log takes no records");
    assert_eq!(thaw(&mut host), 0, "never a thaw");
    host.close(handle);
    host.ping();
    let said = agent.said();
    assert_eq!(said.matches("cannot write").count(), 1, "{said}");
    assert!(said.contains("I/O error"), "{said}");
}

/// Puts something where the log should be.
type Make = fn(&Path);

fn a_log_that_cannot_be_had_is_no_start() {
    let start = |home: &Home| {
        let mut command = home.command(&audit("rotate_bytes = 65536\n"));
        let mut agent = Agent { home, child: command.spawn().expect("the agent") };
        let status = agent.ended();
        (status.code(), agent.said())
    };
    // A read-only disk, a FIFO, a directory, a link, another's file.
    let disk = Disk::small("ext4", "/disk.img");
    {
        let home = Home::new();
        let mounted = disk.mount("/disk");
        let _log = own_directory(&home, &mounted, "log");
        let none: Option<&str> = None;
        mount(none, &mounted.at, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).expect("read-only");
        let (status, said) = start(&home);
        assert_eq!(status, Some(6), "{said}");
        assert!(said.contains("Read-only file system"), "{said}");
    }
    let makes: [(&str, Make); 4] = [
        ("is not a regular file", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::all()).expect("a FIFO")),
        ("is not a regular file", |path| fs::create_dir(path).expect("a directory")),
        ("is a symbolic link", |path| std::os::unix::fs::symlink("/tmp/elsewhere", path).expect("a link")),
        ("belongs to uid 4711", |path| {
            fs::write(path, "").expect("a file");
            chown(path, Some(4711), Some(4711)).expect("its owner");
        }),
    ];
    for (why, make) in makes {
        let home = Home::new();
        fs::create_dir(home.path("log")).expect("the log's directory");
        fs::set_permissions(home.path("log"), Permissions::from_mode(0o700)).expect("its mode");
        chown(home.path("log"), Some(home.broker), Some(home.broker)).expect("its owner");
        make(&home.log());
        if !home.log().is_symlink() {
            fs::set_permissions(home.log(), Permissions::from_mode(0o666)).expect("its mode");
        }
        let (status, said) = start(&home);
        assert_eq!(status, Some(6), "{said}");
        assert!(said.contains(why), "{why}: {said}");
        assert!(!Path::new("/tmp/elsewhere").exists());
    }
}

fn a_log_that_is_exchanged_is_left_alone() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&audit("rotate_bytes = 65536\n"));
    let mut host = agent.connect();
    let old = home.path("log/old");
    fs::rename(home.log(), &old).expect("moved away");
    std::os::unix::fs::symlink("/tmp/elsewhere", home.log()).expect("a link");
    agent.signal("broker", Signal::SIGHUP);
    eventually("the operator hears of the link", || agent.said().contains("is a symbolic link").then_some(()));
    // Records go on in the file that was the log, whatever its size now.
    let mut granted = 0;
    while fs::metadata(&old).expect("the old file").len() < 200_000 {
        let handle = host.open(&path, "r").expect("a handle");
        host.close(handle);
        granted += 1;
    }
    assert!(!Path::new("/tmp/elsewhere").exists());
    let found = records(std::slice::from_ref(&old));
    assert!(found.iter().filter(|record| record["postern"]["stage"] == "granted").count() >= granted - 1);
    // The whole directory goes: no record can be written anywhere, and the
    // operator learns what to do.
    fs::remove_file(home.log()).expect("removed");
    fs::remove_file(&old).expect("removed");
    fs::remove_dir(home.path("log")).expect("removed");
    let why = host.open(&path, "r").expect_err("no open");
    assert!(why.ends_with("Input/output error"), "{why}");
    assert!(agent.said().contains("install -d -m 0700"), "{}", agent.said());
    host.ping();
    let _ = File::create("/tmp/elsewhere");
}
