//! Thousands of opens under strace, with a fault at each step of one: each call
//! of it fails in turn, the disk under the log fills up, fails and turns
//! read-only, and every process is killed at any time.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::load::{Filler, Load, POLICY, Tally, disturb, stage};
use crate::order::{Verdict, judge};
use crate::strace;
use crate::support::agent::{Agent, BINARY, Home, eventually, lives};
use crate::support::disk::{Disk, Mounted};
use crate::support::sabotage;

/// What the tracer watches: every call of an open that another process or the
/// disk could notice.
const WATCHED: &str =
    "trace=execve,execveat,write,fdatasync,sendto,sendmsg,recvmsg,openat,readlinkat,fstat,renameat,renameat2,unlinkat";

/// One agent, its load and its faults.
struct Batch {
    name: &'static str,
    opens: usize,
    /// What the tracer makes fail, as its option `-e` has it.
    inject: Option<&'static str>,
    /// Whether processes are killed.
    kills: bool,
    /// The policy's table `[audit]`, if it has one.
    audit: &'static str,
}

const fn batch(name: &'static str, opens: usize, inject: Option<&'static str>) -> Batch {
    Batch { name, opens, inject, kills: false, audit: "" }
}

const fn killing(name: &'static str, opens: usize, audit: &'static str) -> Batch {
    Batch { name, opens, inject: None, kills: true, audit }
}

const ROTATES: &str = "[audit]\nrotate_bytes = \"64KiB\"\n";
const WAITS: &str = "[audit]\nfsync = \"open\"\n";
const BOTH: &str = "[audit]\nfsync = \"open\"\nrotate_bytes = \"64KiB\"\n";

/// The first calls are an agent's start. A process that a fault ends is replaced,
/// five times in ten seconds, so those come rarely.
const BATCHES: &[Batch] = &[
    batch("names change", 1700, None),
    killing("any process is killed", 1500, ""),
    killing("the same, while the log rotates", 1200, BOTH),
    batch("write: no space", 1200, Some("inject=write:error=ENOSPC:when=150+101")),
    batch("write: input/output error", 1200, Some("inject=write:error=EIO:when=150+67")),
    batch("write: read-only", 1000, Some("inject=write:error=EROFS:when=150+29")),
    batch("write: quota", 800, Some("inject=write:error=EDQUOT:when=151+11")),
    batch("openat: too many files", 700, Some("inject=openat:error=EMFILE:when=300+41")),
    batch("readlinkat: input/output error", 700, Some("inject=readlinkat:error=EIO:when=100+31")),
    batch("fstat: input/output error", 700, Some("inject=fstat:error=EIO:when=200+43")),
    Batch {
        audit: WAITS,
        ..batch("fdatasync: input/output error", 500, Some("inject=fdatasync:error=EIO:when=20+13"))
    },
    Batch { audit: BOTH, ..batch("renameat: no space", 500, Some("inject=renameat,renameat2:error=ENOSPC:when=1+2")) },
    Batch { audit: ROTATES, ..batch("openat in a rotation", 500, Some("inject=openat:error=ENFILE:when=300+17")) },
    batch("sendmsg: broken pipe", 700, Some("inject=sendmsg:error=EPIPE:when=150")),
    batch("sendto: connection reset", 700, Some("inject=sendto:error=ECONNRESET:when=400")),
    batch("recvmsg: no memory", 700, Some("inject=recvmsg:error=ENOMEM:when=400")),
];

/// The agent's command under the tracer.
fn traced(home: &Home, binary: &str, trace: &Path, audit: &str, inject: Option<&str>) -> Command {
    let plain = home.command(&format!("{POLICY}{audit}"));
    let mut command = Command::new("/bin/strace");
    command.args(["-D", "-f", "-y", "--seccomp-bpf", "-s", "300000", "-e", WATCHED]);
    command.args(inject.into_iter().flat_map(|inject| ["-e", inject]));
    command.arg("-o").arg(trace).arg(binary).args(plain.get_args());
    let stderr = File::options().create(true).append(true).open(home.path("stderr")).expect("a file for stderr");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    command
}

/// Reads a trace once all of its processes have ended.
fn judged(home: &Home, trace: &Path, audit: &str) -> Verdict {
    let mut last = Err("no trace".to_owned());
    for _ in 0..6000 {
        let text = fs::read_to_string(trace).expect("a trace");
        if text.ends_with("+++\n") {
            last = strace::read(&text);
            if last.as_ref().is_ok_and(|trace| trace.alive.is_empty()) {
                break;
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    let trace = last.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(trace.alive, [0; 0], "the tracer has not seen these end");
    judge(&trace, &home.log(), audit.contains("fsync")).unwrap_or_else(|why| panic!("{why}"))
}

/// Ends an agent in order.
fn end(mut agent: Agent<'_>) {
    kill(Pid::from_raw(agent.pid()), Signal::SIGTERM).expect("SIGTERM");
    agent.ended();
}

/// Kills a process of an agent's; a broker is started again.
struct Killer<'a> {
    home: &'a Home,
    audit: &'static str,
    agent: Option<Agent<'a>>,
    traces: Vec<PathBuf>,
    kills: [usize; 3],
    round: usize,
}

impl Killer<'_> {
    fn start(&mut self) {
        let trace = self.home.path(&format!("trace-{}", self.traces.len()));
        self.agent = Some(self.home.start_command(traced(self.home, BINARY, &trace, self.audit, None)));
        self.traces.push(trace);
    }

    fn kill(&mut self, load: &mut Load<'_>) {
        self.round += 1;
        if !self.round.is_multiple_of(3) {
            return;
        }
        // Somewhere in the batch that was sent just now.
        thread::sleep(Duration::from_micros(u64::try_from(self.round % 17).expect("a number") * 700));
        let agent = self.agent.as_ref().expect("an agent");
        // Two births for a start, and three more in ten seconds.
        let (which, name) = [(0, "worker"), (1, "opener"), (0, "worker"), (2, "broker")][self.round / 3 % 4];
        self.kills[which] += 1;
        if name != "broker" {
            if let Some(pid) = agent.family().get(name) {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if name == "worker" {
                load.forget();
            }
            return;
        }
        let mut agent = self.agent.take().expect("an agent");
        let family = agent.family();
        agent.child.kill().expect("SIGKILL");
        agent.child.wait().expect("its end");
        eventually("its family is gone", || family.values().all(|pid| !lives(*pid)).then_some(()));
        load.forget();
        self.start();
    }
}

/// Ends a disturbance, whatever happens.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One batch: what the host saw, what the tracer saw, how many were killed.
fn run(batch: &Batch, seed: u64) -> (Tally, Vec<Verdict>, [usize; 3]) {
    let home = Home::new();
    stage(&home);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| disturb(&home, &stop));
        let _stop = Stop(&stop);
        let mut load = Load::new(&home, seed);
        let (traces, kills) = if batch.kills {
            let mut killer =
                Killer { home: &home, audit: batch.audit, agent: None, traces: Vec::new(), kills: [0; 3], round: 0 };
            killer.start();
            load.run(batch.opens, |load| killer.kill(load));
            end(killer.agent.take().expect("an agent"));
            (killer.traces, killer.kills)
        } else {
            let trace = home.path("trace");
            let agent = home.start_command(traced(&home, BINARY, &trace, batch.audit, batch.inject));
            load.run(batch.opens, |_| ());
            end(agent);
            (vec![trace], [0; 3])
        };
        let verdicts: Vec<Verdict> = traces.iter().map(|trace| judged(&home, trace, batch.audit)).collect();
        let tally = load.tally;
        check(batch.name, &home, &tally, &verdicts, kills[2]);
        (tally, verdicts, kills)
    })
}

/// What must hold after every batch; `killed` brokers may have written a record
/// that the tracer did not see end.
fn check(name: &str, home: &Home, tally: &Tally, verdicts: &[Verdict], killed: usize) {
    verify(home);
    let records = records(home);
    let late: Vec<&String> = verdicts.iter().flat_map(|verdict| &verdict.late).collect();
    assert!(late.is_empty(), "{name}: {late:#?}");
    let granted: BTreeSet<u64> = records
        .iter()
        .filter(|record| record["postern"]["stage"] == "granted")
        .filter_map(|record| record["postern"]["handle"].as_u64())
        .collect();
    let unknown: Vec<&u64> = tally.handles.iter().filter(|handle| !granted.contains(handle)).collect();
    assert!(unknown.is_empty(), "{name}: handles without a record: {unknown:?}");
    // The tracer saw each record being written, and each that it saw is there.
    let written: BTreeSet<u64> = verdicts.iter().flat_map(|verdict| verdict.written.iter().copied()).collect();
    let there: BTreeSet<u64> = records.iter().filter_map(|record| record["event"]["sequence"].as_u64()).collect();
    assert!(written.is_subset(&there), "{name}: {:?} are gone", written.difference(&there).collect::<Vec<_>>());
    let unseen = there.difference(&written).count();
    assert!(unseen <= killed, "{name}: {unseen} records that the tracer did not see");
    let failed: usize = verdicts.iter().map(|verdict| verdict.failed).sum();
    let lost = records.iter().filter(|record| record["event"]["action"] == "records-lost").count();
    if failed > 20 {
        assert!(lost > 0, "{name}: {failed} writes to the log failed, and no record tells of it");
    }
    if verdicts.iter().all(|verdict| verdict.failed == 0 && verdict.injected.is_empty()) {
        assert_eq!(lost, 0, "{name}: none failed");
    }
    for file in ["outside/file", "files/private/file"] {
        assert_eq!(fs::read(home.path(file)).expect("a file"), b"content", "{name}: {file}");
    }
    assert!(!home.path("outside/new").exists(), "{name}: made outside");
}

/// The log and what it was rotated to, oldest first.
fn logs(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.path("log")).expect("the log's directory").flatten();
    let mut logs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| *path != home.log()).collect();
    // A file's name is the number of its first record.
    logs.sort();
    logs.push(home.log());
    logs
}

fn verify(home: &Home) {
    let verified = Command::new(BINARY).args(["audit", "verify"]).args(logs(home)).output();
    let verified = verified.expect("postern audit verify");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// Every whole record; what a failed write tore is none.
fn records(home: &Home) -> Vec<Value> {
    let texts = logs(home).into_iter().map(|log| fs::read_to_string(log).expect("a log"));
    texts.flat_map(|text| text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()).collect()
}

pub(crate) fn each_record_stands_before_its_effect() {
    let waiting = Mutex::new((1..).zip(BATCHES));
    let next = || waiting.lock().expect("no panic in here").next();
    let mut all = Tally::default();
    let (mut asks, mut handed, mut effects, mut written) = (0, 0, 0, 0);
    let results = thread::scope(|scope| {
        let run_all = || {
            let mut results = Vec::new();
            while let Some((seed, batch)) = next() {
                results.push((batch, run(batch, seed)));
            }
            results
        };
        let threads = [scope.spawn(run_all), scope.spawn(run_all)];
        threads.map(|thread| thread.join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
    });
    for (batch, (tally, verdicts, kills)) in results.into_iter().flatten() {
        let sum = |of: fn(&Verdict) -> usize| verdicts.iter().map(of).sum::<usize>();
        let injected = sum(|verdict| verdict.injected.values().sum());
        let failed = sum(|verdict| verdict.failed);
        println!(
            "    {:32} {:5} opens, {:5} asked for, {:4} granted, {injected:4} calls failed, {failed:4} of them records, \
             {} workers, {} openers, {} brokers killed; {} unanswered, {} connections cut",
            batch.name,
            tally.opens(),
            sum(|verdict| verdict.asks),
            tally.handles.len(),
            kills[0],
            kills[1],
            kills[2],
            tally.unanswered,
            tally.cut,
        );
        assert!(batch.inject.is_none() || injected > 0, "{}: nothing was made fail", batch.name);
        asks += sum(|verdict| verdict.asks);
        handed += sum(|verdict| verdict.handed);
        effects += sum(|verdict| verdict.effects);
        written += sum(|verdict| verdict.written.len());
        all.add(tally);
    }
    for (kind, (opens, granted)) in &all.opens {
        println!("    {opens:5} opens, {granted:4} granted: {kind}");
    }
    println!(
        "    {asks} opens asked for: {handed} descriptors handed over, {effects} calls that create or truncate, \
         {written} records; each record before its effect"
    );
    assert!(asks >= 10_000 && handed > 2000 && effects > 800, "{asks} {handed} {effects}");
}

pub(crate) fn a_failing_disk_refuses_opens() {
    let home = Home::new();
    stage(&home);
    let disk = Disk::small("ext4", "/log.img");
    let mounted = disk.mount_with("/disk", Some("errors=remount-ro"));
    let log = own_directory(&home, &mounted);
    let trace = home.path("trace-0");
    let agent = home.start_command(traced(&home, BINARY, &trace, "", None));
    let mut load = Load::new(&home, 77);
    let mut filler = None;
    let mut round = 0;
    load.run(600, |_| {
        round += 1;
        filler = (round % 3 == 0).then(|| Filler::fill(mounted.path("filler")));
    });
    drop(filler);
    load.run(20, |_| ());
    let granted = load.tally.handles.len();
    // As a bad sector under it does. What the kernel has not written by then would
    // be lost as in a power cut.
    nix::unistd::syncfs(File::open(mounted.path("log")).expect("a directory")).expect("syncfs");
    let device = disk.device.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
    fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").expect("an error of the filesystem");
    for number in 0..200 {
        let _ = fs::remove_file(home.files().join(format!("new-{number}")));
    }
    load.run(300, |_| ());
    assert_eq!(load.tally.handles.len(), granted, "granted without a record");
    let made = (0..200).filter(|number| home.files().join(format!("new-{number}")).exists()).count();
    assert_eq!(made, 0, "made without a record");
    let mut tally = load.tally;
    end(agent);
    let first = judged(&home, &trace, "");
    assert!(agent_said(&home).contains("Read-only file system"), "{}", agent_said(&home));
    // As an operator would mend it.
    drop((log, mounted));
    let status = Command::new("/bin/e2fsck")
        .args(["-f", "-y"])
        .arg(&disk.device)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("e2fsck").code().is_some_and(|code| code <= 1));
    let mounted = disk.mount("/disk");
    let _log = Mounted::bind(&mounted.path("log"), &home.path("log"));
    let trace = home.path("trace-1");
    let agent = home.start_command(traced(&home, BINARY, &trace, "", None));
    let mut load = Load::new(&home, 78);
    load.run(100, |_| ());
    tally.add(load.tally);
    end(agent);
    let second = judged(&home, &trace, "");
    println!(
        "    {} opens, {} granted, {} writes to the log failed for want of room or of a right",
        tally.opens(),
        tally.handles.len(),
        first.failed
    );
    assert!(first.failed > 40, "{}", first.failed);
    check("a failing disk", &home, &tally, &[first, second], 0);
}

fn agent_said(home: &Home) -> String {
    fs::read_to_string(home.path("stderr")).unwrap_or_default()
}

/// The log's directory, on a disk of its own.
fn own_directory(home: &Home, on: &Mounted) -> Mounted {
    let directory = on.path("log");
    fs::create_dir(&directory).expect("a directory");
    chown(&directory, Some(home.broker), Some(home.broker)).expect("its owner");
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).expect("its mode");
    Mounted::bind(&directory, &home.path("log"))
}

/// The control: a broker that is broken on purpose.
pub(crate) fn a_late_record_is_seen() {
    let home = Home::new();
    stage(&home);
    let trace = home.path("trace");
    let agent = home.start_command(traced(&home, &sabotage::binary(), &trace, "", None));
    let mut load = Load::new(&home, 5);
    load.run(60, |_| ());
    let tally = load.finish();
    end(agent);
    let verdict = judged(&home, &trace, "");
    let handed = verdict.late.iter().filter(|late| late.contains("handed over")).count();
    let opened = verdict.late.iter().filter(|late| late.contains("is opened with")).count();
    println!("    {} opens: {handed} descriptors and {opened} effects before their record", tally.opens());
    assert_eq!(handed, verdict.handed, "each comes before its record");
    // One that comes too late may stand before the next open of the same name.
    assert!(handed > 5 && opened > 5 && 2 * opened > verdict.effects, "{opened} of {}", verdict.effects);
}
