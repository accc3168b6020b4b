//! Things that an account puts into a directory of the policy, to make whoever
//! opens or reads them hang, die, use up memory or end up elsewhere.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, mkfifo};
use serde_json::{Value, json};

use super::account::{ATTACKER, WORKS, as_user, attacker, enter_user_namespace, give, mode, word};
use super::races::home;
use super::raw::{call, words};
use crate::support::agent::{Agent, Home, Host, LIVELY, eventually};
use crate::support::disk::Disk;
use crate::support::process::Peer;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_lease_holds_up_nobody", a_lease_holds_up_nobody),
    ("locks_hold_up_nobody", locks_hold_up_nobody),
    ("a_fifo_of_the_rule_holds_up_nobody", a_fifo_of_the_rule_holds_up_nobody),
    ("a_file_as_large_as_it_gets_takes_no_memory", a_file_as_large_as_it_gets_takes_no_memory),
    ("a_file_cut_while_it_is_read_kills_nobody", a_file_cut_while_it_is_read_kills_nobody),
    ("closed_modes_and_odd_names_are_refused_or_recorded", closed_modes_and_odd_names),
    ("a_path_longer_than_any_is_refused", a_path_longer_than_any_is_refused),
    ("mounts_of_a_namespace_of_its_own_lead_nowhere", mounts_of_a_namespace_of_its_own_lead_nowhere),
    ("a_filesystem_of_its_own_is_closed_to_the_opener", a_filesystem_of_its_own_is_closed_to_the_opener),
    ("a_filesystem_that_never_answers_is_given_up", a_filesystem_that_never_answers_is_given_up),
    ("a_filesystem_over_a_disk_leaves_nothing_frozen", a_filesystem_over_a_disk_leaves_nothing_frozen),
    ("what_needs_root_needs_root", what_needs_root_needs_root),
];

pub(crate) const ROLES: &[Role] =
    &[("object", object), ("opens", opens_it), ("reads", reads_it), ("namespace", namespace), ("server", server)];

const POLICY: &str =
    "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";
const INSIDE: &str = "aW5zaWRl";

/// Does what each line says, as whoever it is, and holds what it opened.
fn object(_: &[String]) {
    // What a lease's holder gets when somebody wants the file: it may let go, and
    // does not.
    let mut breaks = SigSet::empty();
    breaks.add(Signal::SIGIO);
    breaks.thread_block().expect("SIGIO is blocked");
    let mut held: Vec<File> = Vec::new();
    for line in io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let path = Path::new(words[1]);
        let result: io::Result<()> = match words[0] {
            "link" => fs::hard_link(path, words[2]),
            "symlink" => symlink(words[1], words[2]),
            "remove" => fs::remove_file(path),
            "lease" | "lock" | "flock" => OpenOptions::new().read(true).write(true).open(path).and_then(|file| {
                hold(words[0], &file)?;
                held.push(file);
                Ok(())
            }),
            "writer" => OpenOptions::new().read(true).write(true).open(path).map(|file| held.push(file)),
            "device" => mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 3)).map_err(io::Error::from),
            "give" => std::os::unix::fs::chown(path, Some(0), None),
            "immutable" => immutable(path),
            "mount" => mount(Some(path), Path::new(words[2]), None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(io::Error::from),
            "watch" => {
                // FAN_CLASS_CONTENT of fanotify_init(2): events that wait for a yes.
                let made = call(libc::SYS_fanotify_init, &[4, 0]);
                if made < 0 {
                    Err(io::Error::from_raw_os_error(i32::try_from(-made).unwrap_or(libc::EIO)))
                } else {
                    Ok(())
                }
            }
            other => panic!("no such wish: {other}"),
        };
        println!("{}", word(result));
    }
}

fn hold(what: &str, file: &File) -> io::Result<()> {
    let done = match what {
        // F_SETLEASE of fcntl(2), by its number in the kernel's ABI.
        "lease" => call(libc::SYS_fcntl, &[descriptor(file), 1024, libc::F_WRLCK.cast_unsigned().into()]),
        "flock" => call(libc::SYS_flock, &[descriptor(file), libc::LOCK_EX.cast_unsigned().into()]),
        _ => {
            let kind = libc::c_short::try_from(libc::F_WRLCK).expect("a small number");
            let lock = libc::flock { l_type: kind, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
            return fcntl(file, FcntlArg::F_SETLK(&lock)).map(drop).map_err(io::Error::from);
        }
    };
    if done < 0 { Err(io::Error::from_raw_os_error(i32::try_from(-done).unwrap_or(libc::EIO))) } else { Ok(()) }
}

fn descriptor(file: &impl AsRawFd) -> u64 {
    u64::try_from(file.as_raw_fd()).expect("an open descriptor")
}

/// `FS_IOC_SETFLAGS` with `FS_IMMUTABLE_FL`, of `ioctl_iflags(2)`.
fn immutable(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let done = call(libc::SYS_ioctl, &[descriptor(&file), 0x4008_6602, words(&[0x10])]);
    if done < 0 { Err(io::Error::from_raw_os_error(i32::try_from(-done).unwrap_or(libc::EIO))) } else { Ok(()) }
}

/// Opens a file as programs do, which may wait, and says what it read.
fn opens_it(arguments: &[String]) {
    println!("opening");
    let text = fs::read_to_string(&arguments[0]).unwrap_or_else(|why| why.to_string());
    println!("{text}");
}

/// Reads what each line names, once, and says what stood there.
fn reads_it(_: &[String]) {
    for line in io::stdin().lines() {
        let text = fs::read_to_string(line.expect("a line")).unwrap_or_else(|why| why.kind().to_string());
        println!("{}", text.trim_end());
    }
}

/// A file in `files` that the attacker owns.
fn own_file(home: &Home, name: &str) -> PathBuf {
    let path = home.files().join(name);
    fs::write(&path, "inside").expect("a file");
    give(&path);
    mode(&path, 0o666);
    path
}

/// Whether a process waits for something but its next line: it sleeps for a
/// while, and does not end.
fn waits(peer: &mut Peer) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", peer.child.id())).unwrap_or_default();
    let started = Instant::now();
    let mut asleep = 0;
    while asleep < 20 && started.elapsed() < LIVELY && !read("stat").contains(") Z ") {
        sleep(Duration::from_millis(10));
        let wchan = read("wchan");
        let waits = !wchan.is_empty() && wchan != "0" && !wchan.contains("pipe");
        asleep = if waits { asleep + 1 } else { 0 };
    }
    asleep == 20
}

/// An agent that still answers, opens and reads; nobody in it died.
fn is_well(agent: &Agent<'_>, host: &mut Host) {
    host.ping();
    let handle = host.open(agent.home.files().join("sound"), "r").expect("the control");
    assert_eq!(host.read(handle), INSIDE);
    host.close(handle);
    assert!(agent.records_of("process-died").is_empty(), "{:?}", agent.records_of("process-died"));
}

fn start(home: &Home) -> Agent<'_> {
    home.write("sound", b"inside");
    home.start(POLICY)
}

/// Who opens a leased file waits for its holder, 45 s unless root says
/// otherwise; the opener does not.
fn a_lease_holds_up_nobody() {
    let home = home();
    let path = own_file(&home, "leased");
    let agent = start(&home);
    let mut host = agent.connect();
    let mut holder = attacker("object", &[]);
    assert_eq!(holder.ask(&format!("lease {}", path.display())), WORKS);
    let mut naive = as_user(home.worker, "opens", &[path.to_str().expect("UTF-8")]);
    assert_eq!(naive.hear(), "opening");
    assert!(waits(&mut naive), "the control: an ordinary open waits");
    let asked = Instant::now();
    for mode in ["r", "r+", "a", "w"] {
        let why = host.open(&path, mode).expect_err("it is leased");
        assert!(why.ends_with("Resource temporarily unavailable"), "{why}");
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    is_well(&agent, &mut host);
    holder.kill();
    host.open(&path, "r").expect("the lease has ended");
}

fn locks_hold_up_nobody() {
    let home = home();
    let agent = start(&home);
    let mut host = agent.connect();
    for kind in ["lock", "flock"] {
        let path = own_file(&home, kind);
        let mut holder = attacker("object", &[]);
        assert_eq!(holder.ask(&format!("{kind} {}", path.display())), WORKS);
        // The control: it is held against those who ask for it.
        let mut second = attacker("object", &[]);
        if kind == "lock" {
            assert_ne!(second.ask(&format!("{kind} {}", path.display())), WORKS);
        } else {
            second.say(&format!("{kind} {}", path.display()));
            assert!(waits(&mut second), "the control: another waits");
        }
        for mode in ["r+", "a", "w"] {
            let handle = host.open(&path, mode).expect(mode);
            assert_eq!(host.write(handle, INSIDE)["return"]["count"], 6);
            host.close(handle);
        }
    }
    is_well(&agent, &mut host);
}

/// A rule may name FIFOs. Whoever holds the other end and does nothing holds up
/// neither the opener nor the worker.
fn a_fifo_of_the_rule_holds_up_nobody() {
    let home = home();
    let path = home.files().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
    give(&path);
    mode(&path, 0o666);
    home.write("sound", b"inside");
    let agent = home.start(&format!("{POLICY}types = [\"regular\", \"fifo\"]\n"));
    let mut host = agent.connect();
    let mut naive = as_user(home.worker, "opens", &[path.to_str().expect("UTF-8")]);
    assert_eq!(naive.hear(), "opening");
    assert!(waits(&mut naive), "the control: an ordinary open waits for a writer");
    naive.kill();
    // Nobody there; then a holder that neither reads nor writes.
    let asked = Instant::now();
    for held in [false, true] {
        let mut holder = attacker("object", &[]);
        if held {
            assert_eq!(holder.ask(&format!("writer {}", path.display())), WORKS);
        }
        let handle = host.open(&path, "r").expect("a FIFO of the rule");
        // Nothing there: an end, or that there is nothing now.
        let reply = host.ask("guest-file-read", &json!({ "handle": handle }));
        let text = reply.to_string();
        assert!(text.contains("\"count\":0") || text.contains("Resource temporarily unavailable"), "{text}");
        host.close(handle);
        if held {
            let handle = host.open(&path, "w").expect("there is a reader");
            // More than a FIFO takes.
            for _ in 0..40 {
                host.write(handle, &"A".repeat(16 << 10));
            }
            host.close(handle);
        } else {
            // The broker closes what it handed on in its own time; until then there
            // is a reader.
            let why = eventually("nobody reads", || host.open(&path, "w").map(|handle| host.close(handle)).err());
            assert!(why.ends_with("No such device or address"), "{why}");
        }
        is_well(&agent, &mut host);
        holder.kill();
    }
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
}

/// The largest resident memory that a process had, in KiB.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn a_file_as_large_as_it_gets_takes_no_memory() {
    let home = home();
    let path = own_file(&home, "huge");
    let agent = start(&home);
    let mut host = agent.connect();
    is_well(&agent, &mut host);
    let before: Vec<u64> = agent.family().values().map(|pid| peak(*pid)).collect();
    // Sparse, as large as this filesystem has it.
    let largest = (30..63)
        .rev()
        .map(|bits| 1_u64 << bits)
        .find(|size| OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(*size)).is_ok());
    let largest = largest.expect("a large file");
    let handle = host.open(&path, "r").expect("a file");
    let reply = host.returns("guest-file-read", &json!({ "handle": handle, "count": 16 << 20 }));
    assert_eq!(reply["count"], 16 << 20);
    for count in [-1, (48 << 20) + 1, i64::from(u32::MAX), i64::MAX] {
        let why = host.fails("guest-file-read", &json!({ "handle": handle, "count": count }));
        assert_eq!(why, format!("value '{count}' is invalid for argument count"));
    }
    let end = i64::try_from(largest).expect("below 2^63");
    let sought = host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": "end" }));
    assert_eq!(sought["position"], end);
    assert_eq!(host.read(handle), "");
    host.close(handle);
    let granted = agent
        .records_of("guest-file-open")
        .into_iter()
        .rev()
        .find(|record| record["file"]["path"] == path.to_str().expect("UTF-8"));
    assert_eq!(granted.expect("its record")["file"]["size"], end);
    let after: Vec<u64> = agent.family().values().map(|pid| peak(*pid)).collect();
    println!("    2^{} bytes; peaks {before:?} KiB, then {after:?} KiB", largest.ilog2());
    for (before, after) in before.iter().zip(&after) {
        assert!(after - before < 8 << 10, "{before} KiB, then {after} KiB");
    }
    is_well(&agent, &mut host);
}

/// What a mapping would die of.
fn a_file_cut_while_it_is_read_kills_nobody() {
    let home = home();
    let path = own_file(&home, "cut");
    let agent = start(&home);
    let mut host = agent.connect();
    let file = OpenOptions::new().write(true).open(&path).expect("the attacker's file");
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut short = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                file.set_len(0).expect("cut");
                file.set_len(2 << 20).expect("and back");
            }
        });
        let done = (0..60).map(|_| {
            let handle = host.open(&path, "r")?;
            let reply = host.ask("guest-file-read", &json!({ "handle": handle, "count": 2 << 20 }));
            host.close(handle);
            Ok(reply["return"]["count"].as_i64())
        });
        let done: Result<Vec<Option<i64>>, String> = done.collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let counts = done.expect("it is opened each time");
        short = counts.iter().filter(|count| **count != Some(2 << 20)).count();
        assert!(counts.iter().all(Option::is_some), "an answer each time: {counts:?}");
    });
    println!("    {short} of 60 reads came short");
    is_well(&agent, &mut host);
}

fn closed_modes_and_odd_names() {
    let home = home();
    let agent = start(&home);
    let mut host = agent.connect();
    let closed = own_file(&home, "closed");
    mode(&closed, 0o000);
    let directory = home.files().join("shut");
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("file"), "inside").expect("a file");
    give(&directory);
    mode(&directory, 0o000);
    for path in [closed, directory.join("file")] {
        let why = host.open(&path, "r").expect_err("closed");
        assert!(why.ends_with("Permission denied"), "{why}");
    }
    // Names that would break a line, a terminal, a path: recorded as what they
    // are (each record is held against the schema when the home goes).
    for name in ["line\nbreak", "bell\u{7}\u{1b}[2Jred", "gone (deleted)", "\u{202e}gpj.exe", "\"}{\"", " ", "~", "-rf"]
    {
        let path = own_file(&home, name);
        let handle = host.open(&path, "r").unwrap_or_else(|why| panic!("{name:?}: {why}"));
        assert_eq!(host.read(handle), INSIDE, "{name:?}");
        host.close(handle);
    }
    let text = fs::read_to_string(home.log()).expect("the log");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "a control character in the log");
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "a line that is no record");
    is_well(&agent, &mut host);
}

/// A chain of directories deeper than a path can say: what the kernel can't name
/// is not opened.
fn a_path_longer_than_any_is_refused() {
    let home = home();
    let long = "d".repeat(250);
    let files = home.files();
    let mut here = files.clone();
    // Links, so that the host's path stays short: each hop ten levels deep.
    chdir(&files).expect("files");
    for hop in 0..3 {
        let deep = [long.as_str(); 8].join("/");
        for _ in 0..8 {
            fs::create_dir(&long).expect("a directory");
            mode(Path::new(&long), 0o777);
            chdir(long.as_str()).expect("down");
        }
        here = here.join("hop");
        // Made from where the hop begins: by its relative path.
        let up = "../".repeat(8);
        symlink(&deep, format!("{up}hop")).expect("a link");
        fs::write(format!("file-{hop}"), "inside").expect("a file");
    }
    chdir("/").expect("/");
    let agent = start(&home);
    let mut host = agent.connect();
    let near = host.open(files.join("hop/file-0"), "r").expect("the control: one hop is near enough");
    assert_eq!(host.read(near), INSIDE);
    let far = files.join("hop/hop/hop/file-2");
    assert_eq!(fs::read(&far).expect("the control: others reach it"), b"inside");
    for mode in ["r", "w"] {
        let why = host.open(&far, mode).expect_err("no name");
        assert!(why.ends_with("File name too long"), "{why}");
    }
    host.open(files.join("hop/hop/hop/new"), "w").expect_err("no name");
    is_well(&agent, &mut host);
}

/// In a user namespace an account may mount what it likes, where nobody else
/// sees it. Its links through `/proc` into there are closed to the opener.
fn mounts_of_a_namespace_of_its_own_lead_nowhere() {
    let home = home();
    let victim = own_file(&home, "victim");
    let agent = start(&home);
    let mut host = agent.connect();
    let files = home.files();
    let mut peer = attacker("namespace", &[files.to_str().expect("UTF-8")]);
    assert_eq!(peer.hear(), "planted", "the control: it sees its own mount there");
    let pid = peer.child.id();
    for (name, target) in [
        ("by-root", format!("/proc/{pid}/root{}/victim", files.display())),
        ("by-cwd", format!("/proc/{pid}/cwd/victim")),
        ("by-fd", format!("/proc/{pid}/fd/9")),
    ] {
        let link = files.join(name);
        symlink(&target, &link).expect("a link");
        let mut control = attacker("reads", &[]);
        assert_eq!(control.ask(link.to_str().expect("UTF-8")), "planted", "the control: {name}");
        for mode in ["r", "w", "a"] {
            let why = host.open(&link, mode).expect_err(name);
            assert!(why.ends_with("Permission denied"), "{name}: {why}");
        }
    }
    let handle = host.open(&victim, "r").expect("the file");
    assert_eq!(host.read(handle), INSIDE, "the mount is its own affair");
    is_well(&agent, &mut host);
}

/// Mounts a tmpfs over the directory in a namespace of its own and waits.
fn namespace(arguments: &[String]) {
    let files = Path::new(&arguments[0]);
    enter_user_namespace();
    mount(Some("own"), files, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a mount of its own");
    fs::write(files.join("victim"), "planted").expect("a file");
    mode(&files.join("victim"), 0o666);
    chdir(files).expect("there");
    let file = File::open("victim").expect("the file");
    assert_eq!(call(libc::SYS_dup3, &[descriptor(&file), 9, 0]), 9, "descriptor 9");
    println!("{}", fs::read_to_string(files.join("victim")).expect("its own"));
    let _ = io::stdin().lines().next();
}

/// What `fusermount` does for an account: mounts a filesystem that a process of
/// its own serves.
fn fuse(at: &Path, more: &str) -> Peer {
    let device = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_CLOEXEC.bits()).open("/dev/fuse");
    let device: OwnedFd = device.expect("/dev/fuse").into();
    let options = format!("fd={},rootmode=40000,user_id={ATTACKER},group_id={ATTACKER}{more}", device.as_raw_fd());
    mount(Some("attacker"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("a FUSE mount");
    // The process that holds the device is the server: it never answers.
    let number = device.as_raw_fd();
    fcntl(&device, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("no close-on-exec");
    let mut peer = attacker("server", &[&number.to_string()]);
    assert_eq!(peer.hear(), "serving");
    peer
}

fn server(_: &[String]) {
    println!("serving");
    let _ = io::stdin().lines().next();
}

fn mountpoint(home: &Home) -> PathBuf {
    let at = home.files().join("own");
    fs::create_dir(&at).expect("a directory");
    give(&at);
    at
}

fn a_filesystem_of_its_own_is_closed_to_the_opener() {
    let home = home();
    let at = mountpoint(&home);
    let agent = start(&home);
    let mut host = agent.connect();
    let server = fuse(&at, "");
    let mut naive = attacker("opens", &[at.join("file").to_str().expect("UTF-8")]);
    assert_eq!(naive.hear(), "opening");
    assert!(waits(&mut naive), "the control: its owner waits for an answer");
    let asked = Instant::now();
    for mode in ["r", "w", "a"] {
        let why = host.open(at.join("file"), mode).expect_err("another's filesystem");
        assert!(why.ends_with("Permission denied"), "{why}");
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    is_well(&agent, &mut host);
    drop(server);
}

/// Where root lets accounts open their filesystems to others
/// (`user_allow_other`), the opener waits for one that never answers. The agent
/// answers meanwhile, and gives the open up.
fn a_filesystem_that_never_answers_is_given_up() {
    let home = home();
    let at = mountpoint(&home);
    let agent = start(&home);
    let mut host = agent.connect();
    let mut server = fuse(&at, ",allow_other");
    let opener = agent.process("opener", 0);
    let arguments = json!({ "path": at.join("file"), "mode": "r" });
    host.send(json!({ "execute": "guest-file-open", "arguments": arguments }).to_string().as_bytes());
    eventually("the opener waits", || {
        let call = fs::read_to_string(format!("/proc/{opener}/wchan")).unwrap_or_default();
        call.contains("fuse").then_some(())
    });
    // A server that goes takes what waits along.
    server.kill();
    let reply = host.hear();
    let why = reply["error"]["desc"].as_str().expect("an error");
    println!("    {why}");
    assert!(why.contains("failed to open file"), "{why}");
    host.ping();
    let handle = host.open(home.files().join("sound"), "r").expect("the next open");
    assert_eq!(host.read(handle), INSIDE);
}

/// A disk is mounted in a directory of the attacker's, who mounts a filesystem of
/// its own over that directory: nobody reaches the disk by name any more.
fn a_filesystem_over_a_disk_leaves_nothing_frozen() {
    let home = home();
    let disks = [Disk::small("ext4", "/one.img"), Disk::small("ext4", "/two.img")];
    let at = home.path("theirs/disk");
    let mounts = [disks[0].mount("/one"), disks[1].mount(&at)];
    home.write("sound", b"inside");
    let freezing =
        "[commands]\nallow = [\"guest-fsfreeze-status\", \"guest-fsfreeze-freeze\", \"guest-fsfreeze-thaw\"]\n";
    let agent = home.start(&POLICY.replacen("[[files]]", &format!("{freezing}[[files]]"), 1));
    let mut host = agent.connect();
    assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), 2, "the control");
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 2);
    for more in ["", ",allow_other"] {
        let server = fuse(&home.path("theirs"), more);
        let mut naive = attacker("opens", &[at.join("file").to_str().expect("UTF-8")]);
        assert_eq!(naive.hear(), "opening");
        assert!(waits(&mut naive), "the control: the way there leads to the server");
        let freeze = json!({ "execute": "guest-fsfreeze-freeze" }).to_string();
        host.send(freeze.as_bytes());
        if more.is_empty() {
            let why = host.hear()["error"]["desc"].as_str().expect("an error").to_owned();
            assert!(why.contains(at.to_str().expect("UTF-8")) && why.contains("Permission denied"), "{why}");
        } else {
            // The freeze waits as its user made it: the agent answers meanwhile.
            host.ping();
            assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "thawed");
        }
        drop((server, naive));
        if !more.is_empty() {
            let why = host.hear()["error"]["desc"].as_str().expect("an error").to_owned();
            println!("    {why}");
        }
        umount2(&home.path("theirs"), MntFlags::MNT_DETACH).expect("unmounted");
        assert!(mounts.iter().all(|mount| !mount.is_frozen()), "something stayed frozen");
    }
    assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), 2, "as before");
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 2);
    is_well(&agent, &mut host);
}

/// What an account could do only as root: not here.
fn what_needs_root_needs_root() {
    let home = home();
    let own = own_file(&home, "own");
    let new = home.files().join("new");
    let wishes = [
        format!("device {}", new.display()),
        format!("give {}", own.display()),
        format!("immutable {}", own.display()),
        format!("mount {} {}", home.path("outside").display(), home.path("theirs").display()),
        format!("watch {}", own.display()),
    ];
    let mut peer = attacker("object", &[]);
    for wish in &wishes {
        let refused = peer.ask(wish);
        // Where a filesystem has no such flag there is nothing to be refused.
        assert!(["EPERM", "EACCES", "EOPNOTSUPP", "ENOTTY"].contains(&refused.as_str()), "{wish}: {refused}");
    }
    let mut root = as_user(0, "object", &[]);
    for wish in wishes.iter().filter(|wish| wish.starts_with("device") || wish.starts_with("watch")) {
        assert_eq!(root.ask(wish), WORKS, "the control: {wish}");
    }
}
