//! The attacker owns a directory that the policy lets the host reach, and
//! changes what a name in it leads to while the opener opens it. What it wants
//! is to lead the opener, which may read and write the secret as an account, to
//! the secret.
//!
//! The control of each race is an opener as one would write it at first: look at
//! the path, then open it by name. Under the same race it loses.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::account::{as_user, attacker, give, mode};
use crate::support::agent::{Agent, Home, LIVELY};
use crate::support::process::Peer;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_file_that_becomes_a_link_leads_nowhere", || race("link")),
    ("a_directory_that_becomes_a_link_leads_nowhere", || race("directory")),
    ("a_file_that_becomes_a_fifo_hangs_nobody", || race("fifo")),
    ("a_directory_that_leaves_the_policy_takes_nothing_along", || race("moved")),
    ("a_name_that_changes_its_kind_is_opened_or_refused", || race("kinds")),
    ("a_hard_link_to_a_foreign_file_is_not_to_be_had", a_hard_link_to_a_foreign_file_is_not_to_be_had),
];

pub(crate) const ROLES: &[Role] = &[("racer", racer), ("naive", naive)];

/// `inside` and `hosts` in base64.
const INSIDE: &str = "aW5zaWRl";
const HOSTS: &str = "aG9zdHM=";

/// Opens of each mode, at least; the release run's are as many as its time allows.
const OPENS: u32 = if cfg!(debug_assertions) { 60 } else { 400 };

const POLICY: &str =
    "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";

/// Changes what `files/flip` is, again and again, until it is killed.
fn racer(arguments: &[String]) {
    let [kind, files, home] = arguments else { panic!("three arguments") };
    let (files, home) = (Path::new(files), Path::new(home));
    let (flip, other) = (files.join("flip"), files.join("other"));
    let outside = home.join("outside");
    let swap = || renameat2(AT_FDCWD, &flip, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).expect("a swap");
    let own_directory = |at: &Path| {
        fs::create_dir(at).expect("a directory");
        mode(at, 0o777);
        fs::write(at.join("secret"), "inside").expect("a file");
        mode(&at.join("secret"), 0o666);
    };
    let own_file = |at: &Path| {
        fs::write(at, "inside").expect("a file");
        mode(at, 0o666);
    };
    let everybody = Mode::from_bits_truncate(0o666);
    match kind.as_str() {
        "link" => {
            own_file(&flip);
            symlink(outside.join("secret"), &other).expect("a link");
        }
        "directory" => {
            own_directory(&flip);
            symlink(&outside, &other).expect("a link");
        }
        "fifo" => {
            own_file(&flip);
            mkfifo(&other, everybody).expect("a FIFO");
            mode(&other, 0o666);
        }
        "moved" => own_directory(&flip),
        "kinds" => own_file(&flip),
        _ => panic!("no such race"),
    }
    println!("racing");
    let theirs = home.join("theirs/flip");
    let mut round = 0_u64;
    loop {
        round += 1;
        match kind.as_str() {
            "moved" => {
                fs::rename(&flip, &theirs).expect("away");
                // The name leads somewhere meanwhile: to the secret's.
                symlink(&outside, &flip).expect("a link");
                fs::remove_file(&flip).expect("the link");
                fs::rename(&theirs, &flip).expect("and back");
            }
            "kinds" => {
                let _ = fs::remove_file(&flip);
                let _ = fs::remove_dir(&flip);
                match round % 6 {
                    // Each may come too late: the host creates it too.
                    0 => drop(fs::create_dir(&flip)),
                    1 => drop(UnixListener::bind(&flip)),
                    2 => drop(symlink("flip", &flip)),
                    3 => drop(symlink("/proc/self/fd/3", &flip)),
                    4 => drop(mkfifo(&flip, everybody)),
                    _ => {
                        let _ = fs::write(&flip, "inside");
                        let _ = fs::set_permissions(&flip, fs::Permissions::from_mode(0o666));
                    }
                }
            }
            _ => swap(),
        }
    }
}

/// The opener as one would write it at first. Says `led outside` when it had the
/// secret, or had made a file beside it.
fn naive(arguments: &[String]) {
    let [path, files, what] = arguments else { panic!("three arguments") };
    let (path, files) = (Path::new(path), Path::new(files));
    println!("opening");
    loop {
        let subject = if what == "create" { path.parent().expect("a directory") } else { path };
        let Ok(found) = fs::canonicalize(subject) else { continue };
        if !found.starts_with(files) || (what == "read" && !found.is_file()) {
            continue;
        }
        let mut text = String::new();
        if what == "create" {
            let _ = File::create(path);
            if fs::canonicalize(path).is_ok_and(|found| !found.starts_with(files)) {
                break;
            }
        } else if File::open(path).and_then(|mut file| file.read_to_string(&mut text)).is_ok() && text == "secret" {
            break;
        }
    }
    println!("led outside");
}

/// A home whose `files` everybody may change, with a secret beside it that the
/// opener's account may read and write, and the attacker not.
pub(crate) fn home() -> Home {
    let home = Home::new();
    mode(&home.files(), 0o777);
    let outside = home.path("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("secret"), "secret").expect("a file");
    for path in [&outside, &outside.join("secret")] {
        std::os::unix::fs::chown(path, Some(home.worker), Some(home.worker)).expect("its owner");
    }
    mode(&outside.join("secret"), 0o600);
    let theirs = home.path("theirs");
    fs::create_dir(&theirs).expect("a directory");
    give(&theirs);
    home
}

fn start_race(kind: &str, home: &Home) -> Peer {
    let files = home.files();
    let arguments = [kind, files.to_str().expect("UTF-8"), files.parent().and_then(Path::to_str).expect("UTF-8")];
    let mut racer = attacker("racer", &arguments);
    assert_eq!(racer.hear(), "racing");
    racer
}

/// The naive opener loses this race: it comes out with the secret, or waits for
/// the other end of a FIFO for ever.
fn the_control(kind: &str) {
    let home = home();
    let mut racer = start_race(kind, &home);
    let in_it = matches!(kind, "directory" | "moved");
    let path = if in_it { home.files().join("flip/secret") } else { home.files().join("flip") };
    let new = home.files().join("flip/new");
    let rounds: &[(&Path, &str)] = match kind {
        "directory" => &[(&path, "read"), (&new, "create")],
        _ => &[(&path, "read")],
    };
    for (path, what) in rounds {
        let files = home.files();
        let arguments = [path.to_str().expect("UTF-8"), files.to_str().expect("UTF-8"), what];
        let mut naive = as_user(home.worker, "naive", &arguments);
        assert_eq!(naive.hear(), "opening");
        if kind == "fifo" {
            let started = Instant::now();
            while !hangs(naive.child.id()) {
                assert!(started.elapsed() < LIVELY, "the control: the naive opener never hung");
            }
        } else {
            assert_eq!(naive.hear(), "led outside", "the control");
        }
        if *what == "create" {
            assert!(home.path("outside/new").exists(), "the control");
        }
    }
    racer.kill();
}

/// Whether a process sleeps in one and the same open, for a while.
fn hangs(pid: u32) -> bool {
    (0..30).all(|_| {
        sleep(Duration::from_millis(10));
        let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        wchan.contains("wait_for_partner") || call.starts_with(&format!("{} ", libc::SYS_openat))
    })
}

fn race(kind: &str) {
    if !matches!(kind, "kinds" | "moved") {
        the_control(kind);
    }
    let home = home();
    let agent = home.start(POLICY);
    let mut racer = start_race(kind, &home);
    let in_it = matches!(kind, "directory" | "moved");
    let path = if in_it { home.files().join("flip/secret") } else { home.files().join("flip") };
    let mut told = Vec::new();
    for mode in ["r", "r+", "a", "w"] {
        let (opened, refused) = opens(&agent, &path, mode);
        told.push(format!("{mode}: {opened} opened, {refused} refused"));
        if in_it && matches!(mode, "a" | "w") {
            opens(&agent, &home.files().join(format!("flip/new-{mode}")), mode);
        }
    }
    println!("    {kind}: {}", told.join("; "));
    racer.kill();
    let granted: Vec<String> = agent
        .records_of("guest-file-open")
        .iter()
        .filter(|record| record["postern"]["stage"] == "granted")
        .map(|record| record["file"]["path"].as_str().expect("a path").to_owned())
        .collect();
    assert!(!granted.is_empty(), "the control");
    let files = home.files();
    // What was made while its directory was taken away is recorded where it is.
    let theirs = home.path("theirs");
    for path in &granted {
        assert!(Path::new(path).starts_with(&files) || Path::new(path).starts_with(&theirs), "{path} was granted");
        assert!(kind == "moved" || Path::new(path).starts_with(&files), "{path} was granted");
    }
    assert_eq!(fs::read(home.path("outside/secret")).expect("the secret"), b"secret", "it was written");
    let beside: Vec<_> = fs::read_dir(home.path("outside")).expect("the directory").collect();
    assert_eq!(beside.len(), 1, "something was made beside the secret: {beside:?}");
    assert!(agent.records_of("process-died").is_empty(), "nobody died of it");
    agent.connect().ping();
}

/// Opens `path` until it was opened and refused, and often enough.
fn opens(agent: &Agent<'_>, path: &Path, mode: &str) -> (u32, u32) {
    const KNOWN: [&str; 8] = [
        "Permission denied",
        "No such file or directory",
        "Too many levels of symbolic links",
        "Is a directory",
        "Not a directory",
        "No such device or address",
        "File exists",
        // So many opens that might have made a file and did not, in a moment.
        "Resource temporarily unavailable",
    ];
    let (mut opened, mut refused) = (0, 0);
    let mut host = agent.connect();
    let started = Instant::now();
    for open in 0.. {
        if open >= OPENS && opened > 0 && refused > 0 {
            break;
        }
        // A name that is made and never refused has met no obstacle; that is
        // what the control is for.
        assert!(started.elapsed() < LIVELY * 3, "{} {mode}: {opened} opened, {refused} refused", path.display());
        match host.open(path, mode) {
            Ok(handle) => {
                opened += 1;
                if mode.starts_with('r') {
                    let content = host.read(handle);
                    // Emptied by the host itself, or written by it.
                    assert!(["", INSIDE, HOSTS].iter().any(|due| content.starts_with(due)), "{content} came back");
                    assert!(!content.starts_with("c2VjcmV0"), "the secret came back");
                }
                if mode != "r" {
                    host.write(handle, HOSTS);
                }
                host.close(handle);
            }
            // More than the policy takes in a second: no obstacle of the race.
            Err(why) if why.contains("limits.opens") => sleep(Duration::from_millis(20)),
            Err(why) => {
                assert!(KNOWN.iter().any(|known| why.ends_with(known)), "{why}");
                refused += 1;
            }
        }
    }
    (opened, refused)
}

/// Hard links to what one can neither read nor own the kernel refuses, unless
/// root has turned `fs.protected_hardlinks` off; a link count above one is on
/// record either way.
fn a_hard_link_to_a_foreign_file_is_not_to_be_had() {
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").expect("the setting").trim() == "1";
    let home = home();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let mut peer = attacker("object", &[]);
    let (from, to) = (home.path("outside/secret"), home.files().join("linked"));
    let linked = peer.ask(&format!("link {} {}", from.display(), to.display()));
    if protected {
        assert_eq!(linked, "EPERM");
        host.open(&to, "r").expect_err("there is none");
    } else {
        println!("    fs.protected_hardlinks is off: the link is made, read and recorded");
        assert_eq!(linked, "works");
        host.open(&to, "r").expect("as documented");
    }
    // One's own file may have two names: that is what the record shows.
    let own = home.path("theirs/own");
    fs::write(&own, "inside").expect("a file");
    give(&own);
    mode(&own, 0o644);
    let to = home.files().join("own");
    assert_eq!(peer.ask(&format!("link {} {}", own.display(), to.display())), "works", "the control");
    let handle = host.open(&to, "r").expect("the attacker's own file");
    assert_eq!(host.read(handle), INSIDE);
    let granted = agent.await_record("guest-file-open", |record| record["file"]["path"] == to.to_str().expect("UTF-8"));
    assert_eq!(granted["postern"]["links"], 2, "{granted}");
    assert_eq!(granted["file"]["uid"], super::account::ATTACKER.to_string(), "{granted}");
}
