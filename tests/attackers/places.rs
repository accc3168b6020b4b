//! What an account tries on the agent's own files: its log, its state, its
//! policy, its socket, its executable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{mkdir, truncate};
use serde_json::Value;

use super::account::{WORKS, attacker, give, mode, word};
use super::raw::{call, text};
use crate::support::agent::{BINARY, Home};
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[
    ("another_account_changes_no_file_of_the_agents", another_account_changes_no_file_of_the_agents),
    ("nor_does_root_of_a_user_namespace_there", nor_does_root_of_a_user_namespace_there),
    ("another_account_cannot_be_the_host", another_account_cannot_be_the_host),
];

pub(crate) const ROLES: &[Role] = &[("try-place", try_place)];

const POLICY: &str =
    "profile = \"files\"\n[[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";

type Act = fn(&Path) -> io::Result<()>;

fn is(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))) } else { Ok(()) }
}

fn descriptor(file: &File) -> u64 {
    u64::try_from(file.as_raw_fd()).expect("an open descriptor")
}

fn beside(path: &Path) -> PathBuf {
    path.with_file_name("planted")
}

/// What is tried on a file, in an order in which each still works on the twin
/// after the one before.
const ON_FILES: &[(&str, Act)] = &[
    ("read", |path| File::open(path).map(drop)),
    ("write", |path| OpenOptions::new().write(true).open(path).map(drop)),
    ("append", |path| OpenOptions::new().append(true).open(path).map(drop)),
    ("truncate", |path| truncate(path, 0).map_err(io::Error::from)),
    ("lock (flock)", |path| {
        is(call(libc::SYS_flock, &[descriptor(&File::open(path)?), libc::LOCK_EX.cast_unsigned().into()]))
    }),
    // F_SETLEASE of fcntl(2), by its number in the kernel's ABI.
    ("lease", |path| {
        let file = File::open(path)?;
        is(call(libc::SYS_fcntl, &[descriptor(&file), 1024, libc::F_RDLCK.cast_unsigned().into()]))
    }),
    ("watch", |path| {
        let inotify = Inotify::init(InitFlags::empty())?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY).map(drop).map_err(io::Error::from)
    }),
    ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o666))),
    ("set times", |path| {
        let now = TimeSpec::new(1, 0);
        utimensat(nix::fcntl::AT_FDCWD, path, &now, &now, UtimensatFlags::FollowSymlink).map_err(io::Error::from)
    }),
    ("set an attribute", |path| {
        is(call(libc::SYS_setxattr, &[text(path.to_str().expect("UTF-8")), text("user.x"), text("y"), 1, 0]))
    }),
    ("rename another over it", |path| {
        fs::write(beside(path), "planted")?;
        fs::rename(beside(path), path)
    }),
    ("rename it away", |path| fs::rename(path, beside(path)).and_then(|()| fs::rename(beside(path), path))),
    ("remove", |path| fs::remove_file(path)),
    ("make it anew", |path| fs::write(path, "planted")),
    ("make a link of it", |path| fs::remove_file(path).and_then(|()| symlink("/dev/null", path))),
];

/// What is tried on a directory.
const ON_DIRECTORIES: &[(&str, Act)] = &[
    ("list", |path| fs::read_dir(path).map(drop)),
    ("enter", |path| fs::metadata(path.join(".")).map(drop)),
    ("watch", |path| {
        let inotify = Inotify::init(InitFlags::empty())?;
        inotify.add_watch(path, AddWatchFlags::IN_CREATE).map(drop).map_err(io::Error::from)
    }),
    ("make a file in it", |path| fs::write(path.join("planted"), "planted")),
    ("make a directory in it", |path| mkdir(&path.join("policy.d"), Mode::S_IRWXU).map_err(io::Error::from)),
    ("make a nameless file in it", |path| {
        // O_TMPFILE of openat(2).
        let flags = (libc::O_TMPFILE | libc::O_RDWR).cast_unsigned().into();
        is(call(
            libc::SYS_openat,
            &[i64::from(libc::AT_FDCWD).cast_unsigned(), text(path.to_str().expect("UTF-8")), flags, 0o600],
        ))
    }),
    ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o777))),
    ("rename it away", |path| fs::rename(path, beside(path)).and_then(|()| fs::rename(beside(path), path))),
];

/// What is tried on a socket.
const ON_SOCKETS: &[(&str, Act)] = &[
    ("connect", |path| UnixStream::connect(path).map(drop)),
    ("send a datagram", |path| {
        // A stream socket would say EPROTOTYPE to one that may connect.
        match UnixDatagram::unbound()?.connect(path) {
            Err(why) if why.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(()),
            done => done,
        }
    }),
    ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o666))),
    ("rename it away", |path| fs::rename(path, beside(path)).and_then(|()| fs::rename(beside(path), path))),
    ("remove", |path| fs::remove_file(path)),
    ("listen in its place", |path| UnixListener::bind(path).map(drop)),
];

fn table(kind: &str) -> &'static [(&'static str, Act)] {
    match kind {
        "file" => ON_FILES,
        "directory" => ON_DIRECTORIES,
        "socket" => ON_SOCKETS,
        other => panic!("no such kind: {other}"),
    }
}

/// Makes every attempt of a kind's table on each line's path: one line of
/// outcomes for each.
fn try_place(arguments: &[String]) {
    if arguments.get(1).is_some_and(|argument| argument == "namespace") {
        super::account::enter_user_namespace();
    }
    for line in io::stdin().lines() {
        let path = PathBuf::from(line.expect("a line"));
        let outcomes: Vec<String> = table(&arguments[0]).iter().map(|(_, act)| word(act(&path))).collect();
        println!("{}", outcomes.join(" "));
    }
}

/// Outcomes of every attempt on this place, by name.
fn tried(kind: &str, path: &Path, arguments: &[&str]) -> Vec<(&'static str, String)> {
    let all: Vec<&str> = std::iter::once(kind).chain(arguments.iter().copied()).collect();
    let said = attacker("try-place", &all).ask(path.to_str().expect("UTF-8"));
    let outcomes: Vec<String> = said.split(' ').map(str::to_owned).collect();
    assert_eq!(outcomes.len(), table(kind).len(), "{said}");
    table(kind).iter().map(|(name, _)| *name).zip(outcomes).collect()
}

/// Every attempt works on a thing of the attacker's own.
fn the_control(home: &Home) {
    let theirs = super::account::own_directory(home, "twins");
    let file = theirs.join("file");
    fs::write(&file, "").expect("a file");
    let directory = theirs.join("directory");
    fs::create_dir(&directory).expect("a directory");
    let socket = theirs.join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    for (kind, path) in [("file", &file), ("directory", &directory), ("socket", &socket)] {
        give(path);
        for (name, outcome) in tried(kind, path, &[]) {
            // tmpfs has had such attributes since Linux 6.6.
            let may_lack = name == "set an attribute" && outcome == "EOPNOTSUPP";
            assert!(outcome == WORKS || may_lack, "the control: {name} on a {kind}: {outcome}");
        }
    }
}

fn try_all(arguments: &[&str]) {
    let home = Home::new();
    the_control(&home);
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let handle = host.open(home.files().join("new"), "w").expect("something on record, and in the state");
    host.close(handle);
    let state: Vec<PathBuf> =
        fs::read_dir(home.path("state")).expect("root may").flatten().map(|entry| entry.path()).collect();
    assert!(!state.is_empty(), "the control: there is a state");
    let mut places: Vec<(&str, PathBuf)> = state.into_iter().map(|path| ("file", path)).collect();
    places.extend([
        ("file", home.log()),
        ("file", home.path("policy.toml")),
        ("file", PathBuf::from(BINARY)),
        ("directory", home.path("log")),
        ("directory", home.path("state")),
        ("directory", home.files().parent().expect("the home").to_owned()),
        ("socket", home.path("host.sock")),
    ]);
    let before = fs::read(home.path("policy.toml")).expect("the policy");
    let records = agent.records().len();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (kind, path) in &places {
        for (name, outcome) in tried(kind, path, arguments) {
            count += 1;
            // What is installed for all to read: the policy, the executable in this
            // build, and the directories on the way there.
            let open =
                path.ends_with("policy.toml") || path == Path::new(BINARY) || path == home.files().parent().expect("");
            let reads = ["read", "watch", "lock (flock)", "list", "enter"].contains(&name);
            if outcome == WORKS && !(open && reads) {
                wrong.push(format!("{name}: {}", path.display()));
            }
        }
    }
    println!("    {count} attempts on {} places", places.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(fs::read(home.path("policy.toml")).expect("the policy"), before);
    assert!(fs::metadata(home.path("host.sock")).expect("the socket").file_type().is_socket());
    host.ping();
    let new: Vec<Value> = agent.records().split_off(records);
    let seen = |record: &Value| record["event"]["action"] != "guest-file-close";
    assert!(!new.iter().any(seen), "the agent took notice: {new:?}");
}

fn another_account_changes_no_file_of_the_agents() {
    try_all(&[]);
}

fn nor_does_root_of_a_user_namespace_there() {
    try_all(&["namespace"]);
}

/// The socket is its owner's: the account is not heard, takes no host's place in
/// the queue, and leaves no record to flood the log with.
fn another_account_cannot_be_the_host() {
    let home = Home::new();
    let agent = home.start(POLICY);
    let socket = home.path("host.sock");
    let mut connecting = attacker("try-place", &["socket"]);
    let path = socket.to_str().expect("UTF-8");
    for _ in 0..50 {
        assert!(connecting.ask(path).starts_with("EACCES"));
    }
    assert!(agent.records_of("host-connected").is_empty());
    agent.connect().ping();
    agent.await_record("host-connected", |_| true);
    // The control: it is the mode that closes it.
    mode(&socket, 0o666);
    assert!(connecting.ask(path).starts_with(WORKS), "the control");
    let who = super::account::ATTACKER.to_string();
    // Who it was is on record.
    agent.await_record("host-connected", |record| record["user"]["id"] == who.as_str());
}
