//! What an account tries on the agent's processes: to read them, to steer them,
//! to end them; from its own user namespace too. And what the agent's own
//! account can still do, if root lets somebody else use it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::pipe;

use super::account::{ATTACKER, WORKS, as_user, attacker, enter_user_namespace, word};
use super::raw::{call, room, words};
use crate::support::agent::{Agent, Home, lives};
use crate::support::process::Peer;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("another_account_reaches_no_process", another_account_reaches_no_process),
    ("nor_does_root_of_a_user_namespace", nor_does_root_of_a_user_namespace),
    ("what_every_account_sees_tells_nothing", what_every_account_sees_tells_nothing),
    ("a_process_of_the_same_account_reads_nothing", a_process_of_the_same_account_reads_nothing),
    ("sockets_of_the_family_cannot_be_joined", sockets_of_the_family_cannot_be_joined),
];

pub(crate) const ROLES: &[Role] = &[("try-process", try_process), ("join", join)];

/// Everything that the agent can be: freezing, shutting down, opening files.
const POLICY: &str = "profile = \"files\"\n[commands]\nallow = [\"guest-shutdown\", \"guest-fsfreeze-status\", \
    \"guest-fsfreeze-freeze\", \"guest-fsfreeze-thaw\"]\n[shutdown]\nmodes = [\"powerdown\"]\n\
    [[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";

/// What an attempt is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// What the process knows or holds.
    Secrets,
    /// Its life and its speed.
    Life,
}

type Act = fn(i32) -> io::Result<()>;

fn answer(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))) } else { Ok(result) }
}

/// A system call with the target's process id for its first argument.
fn of(number: i64, pid: i32, rest: &[u64]) -> io::Result<()> {
    let mut arguments = vec![u64::from(pid.cast_unsigned())];
    arguments.extend_from_slice(rest);
    answer(call(number, &arguments)).map(drop)
}

/// A system call with a pidfd of the target for its first argument.
fn by_pidfd(number: i64, pid: i32, rest: &[u64]) -> io::Result<()> {
    let pidfd = answer(call(libc::SYS_pidfd_open, &[u64::from(pid.cast_unsigned()), 0]))?;
    let mut arguments = vec![pidfd.cast_unsigned()];
    arguments.extend_from_slice(rest);
    answer(call(number, &arguments)).map(drop)
}

fn proc(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn open(pid: i32, name: &str) -> io::Result<()> {
    File::open(proc(pid, name)).map(drop)
}

fn read(pid: i32, name: &str) -> io::Result<()> {
    File::open(proc(pid, name))?.read(&mut [0; 64]).map(drop)
}

fn list(pid: i32, name: &str) -> io::Result<()> {
    // The entries of `fd` are refused only when they are asked for.
    fs::read_dir(proc(pid, name))?.next().map_or(Ok(()), |entry| entry.map(drop))
}

fn link(pid: i32, name: &str) -> io::Result<()> {
    fs::read_link(proc(pid, name)).map(drop)
}

fn write(pid: i32, name: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(proc(pid, name))?.write_all(text.as_bytes())
}

/// Memory of the target at an address that nobody has: what comes back from
/// behind the permission check is that there is none.
fn touch_memory(number: i64, pid: i32) -> io::Result<()> {
    let (local, remote) = (words(&[room(8), 8]), words(&[8, 8]));
    match of(number, pid, &[local, 1, remote, 1, 0]) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        done => done,
    }
}

/// Any signal but the one that resumes.
fn any_signal(send: impl Fn(u64) -> io::Result<()>) -> io::Result<()> {
    // The gentle first: the twin dies of none that it could refuse.
    let mut last = Err(io::Error::from_raw_os_error(libc::ENOSYS));
    let resumes = u64::from(libc::SIGCONT.cast_unsigned());
    for signal in (1..=64).filter(|signal| *signal != resumes) {
        last = send(signal);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Whether a SIGKILL waits for the process to run again, which on a machine with
/// much else to do may be later.
fn is_to_die(pid: i32) -> bool {
    let status = fs::read_to_string(proc(pid, "status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    pending.is_some_and(|mask| mask & 1 << (libc::SIGKILL - 1) != 0)
}

/// Makes the target the owner of a pipe, which then signals it: nothing refuses
/// the wish, so its effect is looked for.
fn through_an_owner(pid: i32) -> io::Result<()> {
    let (read, write) = pipe()?;
    let number = u64::try_from(read.as_raw_fd()).unwrap_or_default();
    let fcntl = |command: i32, value: u64| {
        answer(call(libc::SYS_fcntl, &[number, u64::from(command.cast_unsigned()), value])).map(drop)
    };
    // F_SETOWN and F_SETSIG of fcntl(2), with the numbers of the kernel's ABI.
    fcntl(8, u64::from(pid.cast_unsigned()))?;
    fcntl(10, libc::SIGKILL.cast_unsigned().into())?;
    fcntl(libc::F_SETFL, libc::O_ASYNC.cast_unsigned().into())?;
    nix::unistd::write(&write, b"x")?;
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(300) {
        if fs::read_to_string(proc(pid, "stat")).map_or(true, |stat| stat.contains(") Z ")) || is_to_die(pid) {
            return Ok(());
        }
        sleep(Duration::from_millis(5));
    }
    Err(io::Error::from_raw_os_error(libc::EPERM))
}

fn perf(pid: i32) -> io::Result<()> {
    // A software clock, disabled, of user code only: perf_event_open(2).
    let attributes = words(&[1 | (128 << 32), 0, 0, 0, 0, 0b110_0001, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    answer(call(libc::SYS_perf_event_open, &[attributes, u64::from(pid.cast_unsigned()), u64::MAX, u64::MAX, 0]))
        .map(drop)
}

use After::{Life, Secrets};

/// `PTRACE_ATTACH` of ptrace(2).
const ATTACH: u64 = 16;
const NOFILE: u64 = libc::RLIMIT_NOFILE as u64;

const ATTEMPTS: &[(&str, After, Act)] = &[
    ("ptrace", Secrets, |pid| {
        answer(call(libc::SYS_ptrace, &[ATTACH, u64::from(pid.cast_unsigned()), 0, 0])).map(drop)
    }),
    ("process_vm_readv", Secrets, |pid| touch_memory(libc::SYS_process_vm_readv, pid)),
    ("process_vm_writev", Secrets, |pid| touch_memory(libc::SYS_process_vm_writev, pid)),
    ("pidfd_getfd", Secrets, |pid| by_pidfd(libc::SYS_pidfd_getfd, pid, &[0, 0])),
    ("kcmp", Secrets, |pid| of(libc::SYS_kcmp, pid, &[u64::from(std::process::id()), 1, 0, 0])),
    ("perf_event_open", Secrets, perf),
    ("get_robust_list", Secrets, |pid| of(libc::SYS_get_robust_list, pid, &[room(8), room(8)])),
    ("open mem", Secrets, |pid| open(pid, "mem")),
    ("write mem", Secrets, |pid| OpenOptions::new().write(true).open(proc(pid, "mem")).map(drop)),
    ("open pagemap", Secrets, |pid| open(pid, "pagemap")),
    ("read environ", Secrets, |pid| read(pid, "environ")),
    ("read auxv", Secrets, |pid| read(pid, "auxv")),
    ("read maps", Secrets, |pid| read(pid, "maps")),
    ("read smaps", Secrets, |pid| read(pid, "smaps")),
    ("read smaps_rollup", Secrets, |pid| read(pid, "smaps_rollup")),
    ("read io", Secrets, |pid| read(pid, "io")),
    ("read syscall", Secrets, |pid| read(pid, "syscall")),
    ("read personality", Secrets, |pid| read(pid, "personality")),
    ("list fd", Secrets, |pid| list(pid, "fd")),
    ("list fdinfo", Secrets, |pid| list(pid, "fdinfo")),
    ("list map_files", Secrets, |pid| list(pid, "map_files")),
    ("link cwd", Secrets, |pid| link(pid, "cwd")),
    ("link root", Secrets, |pid| link(pid, "root")),
    ("link exe", Secrets, |pid| link(pid, "exe")),
    ("link ns/mnt", Secrets, |pid| link(pid, "ns/mnt")),
    ("link fd/0", Secrets, |pid| link(pid, "fd/0")),
    ("through root", Secrets, |pid| fs::metadata(proc(pid, "root/tmp")).map(drop)),
    ("write clear_refs", Secrets, |pid| write(pid, "clear_refs", "1")),
    ("write coredump_filter", Secrets, |pid| write(pid, "coredump_filter", "0x33")),
    ("write oom_score_adj", Life, |pid| write(pid, "oom_score_adj", "1000")),
    ("kill", Life, |pid| any_signal(|signal| of(libc::SYS_kill, pid, &[signal]))),
    ("tgkill", Life, |pid| any_signal(|signal| of(libc::SYS_tgkill, pid, &[u64::from(pid.cast_unsigned()), signal]))),
    ("tgkill for good", Life, |pid| of(libc::SYS_tgkill, pid, &[u64::from(pid.cast_unsigned()), 9])),
    ("pidfd_send_signal", Life, |pid| any_signal(|signal| by_pidfd(libc::SYS_pidfd_send_signal, pid, &[signal, 0, 0]))),
    ("rt_sigqueueinfo", Life, |pid| {
        // si_code SI_QUEUE, which a process may send to another.
        let information = words(&[0, 0xffff_ffff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        any_signal(|signal| of(libc::SYS_rt_sigqueueinfo, pid, &[signal, information]))
    }),
    ("signal through a pipe's owner", Life, through_an_owner),
    ("prlimit set", Life, |pid| of(libc::SYS_prlimit64, pid, &[NOFILE, words(&[1, 1]), 0])),
    ("prlimit get", Life, |pid| of(libc::SYS_prlimit64, pid, &[NOFILE, 0, room(16)])),
    ("sched_setaffinity", Life, |pid| of(libc::SYS_sched_setaffinity, pid, &[8, words(&[1])])),
    ("sched_setscheduler", Life, |pid| of(libc::SYS_sched_setscheduler, pid, &[3, room(8)])),
    ("setpriority", Life, |pid| {
        answer(call(libc::SYS_setpriority, &[0, u64::from(pid.cast_unsigned()), 19])).map(drop)
    }),
    // Best effort, lowest: ioprio_set(2).
    ("ioprio_set", Life, |pid| {
        answer(call(libc::SYS_ioprio_set, &[1, u64::from(pid.cast_unsigned()), (2 << 13) | 7])).map(drop)
    }),
];

/// Reads `NUMBER PID` and says how that attempt on that process ended.
fn try_process(arguments: &[String]) {
    if arguments.first().is_some_and(|argument| argument == "namespace") {
        enter_user_namespace();
    }
    for line in io::stdin().lines() {
        let line = line.expect("a line");
        let (number, pid) = line.split_once(' ').expect("two words");
        let (_, _, act) = ATTEMPTS[number.parse::<usize>().expect("a number")];
        println!("{}", word(act(pid.parse().expect("a process id"))));
    }
}

fn try_one(peer: &mut Peer, number: usize, pid: i32) -> String {
    peer.ask(&format!("{number} {pid}"))
}

/// Every attempt works on an unprotected process of the attacker's own.
fn the_control(arguments: &[&str]) {
    for (number, (name, ..)) in ATTEMPTS.iter().enumerate() {
        let mut twin = attacker("twin", &[]);
        assert_eq!(twin.hear(), "ready");
        let pid = twin.child.id().cast_signed();
        let outcome = try_one(&mut attacker("try-process", arguments), number, pid);
        if *name == "perf_event_open" && outcome != WORKS {
            println!("    NOT TRIED: {name}: this kernel lets nobody ({outcome})");
            continue;
        }
        assert_eq!(outcome, WORKS, "the control: {name}");
    }
}

/// Makes every attempt on every process of an agent; what works is wrong.
fn on_agent(agent: &Agent<'_>, arguments: &[&str]) {
    let family = agent.family();
    assert_eq!(family.len(), 4, "{family:?}");
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (name, pid) in &family {
        let mut peer = attacker("try-process", arguments);
        for (number, (attempt, ..)) in ATTEMPTS.iter().enumerate() {
            let outcome = try_one(&mut peer, number, *pid);
            tried += 1;
            if outcome == WORKS {
                wrong.push(format!("{attempt} on {name}"));
            }
        }
    }
    println!("    {tried} attempts on {} processes", family.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(agent.family(), family, "all of them live, none was replaced");
    agent.connect().ping();
    assert!(agent.records_of("process-died").is_empty());
}

fn another_account_reaches_no_process() {
    the_control(&[]);
    let home = Home::new();
    let agent = home.start(POLICY);
    on_agent(&agent, &[]);
}

fn nor_does_root_of_a_user_namespace() {
    let home = Home::new();
    let agent = home.start(POLICY);
    // In there it is root of what it makes, and as good as before outside: the
    // control.
    let mut twin = attacker("twin", &[]);
    assert_eq!(twin.hear(), "ready");
    let pid = twin.child.id().cast_signed();
    let mut peer = attacker("try-process", &["namespace"]);
    for name in ["prlimit get", "setpriority", "kill"] {
        let number = ATTEMPTS.iter().position(|(attempt, ..)| *attempt == name).expect("an attempt");
        assert_eq!(try_one(&mut peer, number, pid), WORKS, "the control: {name}");
    }
    on_agent(&agent, &["namespace"]);
}

/// Files in `/proc` that the kernel shows everybody: no policy, no path, no
/// argument is in them.
fn what_every_account_sees_tells_nothing() {
    let home = Home::new();
    let mut command = home.command(POLICY);
    command.env("SECRET", "canary-of-the-environment");
    let agent = home.start_command(command);
    let place = home.files();
    let place = place.parent().and_then(|path| path.to_str()).expect("UTF-8").to_owned();
    let mut seen = 0;
    for (name, pid) in agent.family() {
        for entry in fs::read_dir(proc(pid, "")).expect("/proc").flatten() {
            // As root, which sees more: what all may read is told by the mode.
            use std::os::unix::fs::PermissionsExt;
            let open = entry.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o004 != 0);
            let file = entry.file_name().into_string().expect("UTF-8");
            // Of the mount namespace and the network, which are everybody's; the
            // kernel asks for more than their mode says.
            if !open || file.starts_with("mount") {
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()).into_owned();
            for secret in [place.as_str(), "canary-of-the-environment", "--policy"] {
                // What only an owner reads in spite of its mode is tried above.
                let guarded = ["environ", "maps", "smaps", "smaps_rollup", "numa_maps"].contains(&file.as_str());
                assert!(guarded || !text.contains(secret), "{name}: {file} shows {secret}: {text}");
            }
            seen += 1;
        }
        let shown = fs::read_to_string(proc(pid, "cmdline")).expect("the command line");
        assert!(shown.starts_with(&format!("postern: {name}")), "{shown:?}");
        if name != "broker" {
            assert_eq!(fs::read(proc(pid, "environ")).expect("root may"), b"", "{name} has an environment");
        }
    }
    assert!(seen > 40, "the control: {seen} files were looked at");
    let own = fs::read_to_string("/proc/self/environ").expect("the control");
    assert!(!own.is_empty());
}

/// Root is told to keep the account to itself, and may not. Then a process of it
/// can end worker, opener and spawner, which is seen and mended, and can read
/// nothing of them; the broker it cannot reach at all.
fn a_process_of_the_same_account_reads_nothing() {
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut wrong = Vec::new();
    for (name, pid) in agent.family() {
        let mut peer = as_user(home.worker, "try-process", &[]);
        for (number, (attempt, after, _)) in ATTEMPTS.iter().enumerate() {
            if (*after == Secrets || name == "broker") && try_one(&mut peer, number, pid) == WORKS {
                wrong.push(format!("{attempt} on {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let worker = agent.process("worker", 0);
    let kill = ATTEMPTS.iter().position(|(attempt, ..)| *attempt == "tgkill for good").expect("an attempt");
    let mut peer = as_user(home.worker, "try-process", &[]);
    // The control, and what is documented: the account is not a barrier to itself.
    let mut host = agent.connect();
    host.ping();
    assert_eq!(try_one(&mut peer, kill, worker), WORKS);
    drop(host);
    agent.process("worker", worker);
    agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    agent.connect().ping();
    assert!(lives(agent.pid()));
}

/// The processes talk over pairs of sockets. Those that ask the kernel who sent
/// something get an abstract name from it (unix(7), autobind); whoever learns it
/// is refused, for they listen to nobody.
fn sockets_of_the_family_cannot_be_joined() {
    let home = Home::new();
    let agent = home.start(POLICY);
    let host = agent.connect();
    let mut inodes = Vec::new();
    for (_, pid) in agent.family() {
        for entry in fs::read_dir(proc(pid, "fd")).expect("root may").flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
            inodes.extend(target.strip_prefix("socket:[").map(|rest| rest.trim_end_matches(']').to_owned()));
        }
    }
    assert!(inodes.len() > 6, "the control: {inodes:?}");
    let table = fs::read_to_string("/proc/net/unix").expect("the table of sockets");
    let mut names: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(6).is_some_and(|inode| inodes.iter().any(|own| own == inode)))
        .filter_map(|fields| fields.get(7).copied())
        .collect();
    names.dedup();
    let socket = home.path("host.sock");
    names.retain(|name| *name != socket.to_str().expect("UTF-8"));
    println!("    {} of {} sockets have a name of the kernel's", names.len(), inodes.len());
    let own = format!("attackers-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&own).expect("a name")).expect("a socket");
    let mut peer = attacker("join", &[]);
    assert_eq!(peer.ask(&own), "works ECONNREFUSED ECONNREFUSED", "the control");
    drop(listener);
    for name in names {
        // By whatever type of socket: none is one that takes it in.
        let name = name.strip_prefix('@').expect("an abstract name");
        let said = peer.ask(name);
        assert!(!said.contains(WORKS), "{name}: {said}");
    }
    drop(host);
    agent.connect().ping();
    assert!(agent.records_of("malformed-frame").is_empty());
}

/// Connects to each line's abstract name: as a stream, as datagrams, as packets.
fn join(_: &[String]) {
    for line in io::stdin().lines() {
        let name = line.expect("a line");
        let address = UnixAddr::new_abstract(name.as_bytes()).expect("a name");
        let tried = [SockType::Stream, SockType::Datagram, SockType::SeqPacket].map(|kind| {
            let socket = socket(AddressFamily::Unix, kind, SockFlag::empty(), None).expect("a socket");
            word(connect(socket.as_raw_fd(), &address).map_err(io::Error::from))
        });
        println!("{}", tried.join(" "));
    }
}

// The attacker is nobody of the agent's: a home's accounts begin at 200 000.
const _: () = assert!(ATTACKER < 200_000);
