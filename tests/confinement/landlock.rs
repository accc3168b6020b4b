//! Landlock alone: every right that the kernel's ABI knows, in the domains of the
//! four processes, with their filters suspended by a tracer; and what no right is
//! about, each with the filter's answer.
//!
//! For each right: without a domain the act works (control), in a domain that
//! denies all but it and what it rests on it works (allowed), in one that denies
//! it alone it does not (denied). The domains of that are made by bare system calls.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::OnceLock;

use nix::libc::{self, c_long};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use postern_core::catalogue::facts::FactSet;
use postern_core::policy::rules::Rights;

use super::ACCOUNT;
use super::attacks::CWD;
use super::needs::{Role, opener, rule};
use super::probe::Prober;
use super::raw::{End, call, room, text, words};
use super::roles::{self, LOG, STATE};

/// A place that the account may do anything in.
const GROUND: &str = "/tmp/ground";
/// Another one.
const ELSEWHERE: &str = "/tmp/elsewhere";
/// An abstract socket's name, of a process outside every domain.
const ABSTRACT: &str = "outside";

/// What a right is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A path; its bit.
    Path(u64),
    /// A TCP port.
    Port(u64),
    /// Processes and sockets beyond the domain.
    Scope(u64),
}

/// One right.
struct Right {
    name: &'static str,
    /// First ABI that knows it.
    abi: u32,
    kind: Kind,
    /// Bits of other rights on paths that the act rests on.
    rests_on: u64,
    /// What needs it, at a place.
    act: fn(&str) -> i64,
    /// What a kernel says that stops for want of it.
    denied: &'static [i32],
}

// Bits of linux/landlock.h.
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_REG: u64 = 1 << 8;
const REFER: u64 = 1 << 13;

const fn int(value: i32) -> u64 {
    value.cast_unsigned() as u64
}

fn at(place: &str, name: &str) -> u64 {
    text(&format!("{place}/{name}"))
}

fn open(path: u64, flags: i32) -> i64 {
    call(libc::SYS_openat, &[CWD, path, int(flags), 0o600])
}

fn make(place: &str, kind: u32, device: u64) -> i64 {
    call(libc::SYS_mknodat, &[CWD, at(place, "new"), u64::from(kind | 0o600), device])
}

/// A descriptor, or the error as it is.
fn then(descriptor: i64, act: impl FnOnce(u64) -> i64) -> i64 {
    u64::try_from(descriptor).map_or(descriptor, act)
}

fn tcp(number: c_long) -> i64 {
    // sockaddr_in of 127.0.0.1, port 1, where nobody listens.
    let address = words(&[u64::from_le_bytes([2, 0, 0, 1, 127, 0, 0, 1]), 0]);
    let socket = call(libc::SYS_socket, &[int(libc::AF_INET), int(libc::SOCK_STREAM), 0]);
    then(socket, |socket| call(number, &[socket, address, 16]))
}

fn connect(name: &[u8]) -> i64 {
    let mut bytes = vec![1_u8, 0];
    bytes.extend_from_slice(name);
    let length = bytes.len() as u64;
    bytes.resize(112, 0);
    let packed: Vec<u64> =
        bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8 bytes"))).collect();
    let socket = call(libc::SYS_socket, &[int(libc::AF_UNIX), int(libc::SOCK_STREAM), 0]);
    then(socket, |socket| call(libc::SYS_connect, &[socket, words(&packed), length]))
}

/// A process of the account outside every domain.
static OUTSIDER: OnceLock<u32> = OnceLock::new();

const ACCES: &[i32] = &[libc::EACCES];
const PERM: &[i32] = &[libc::EPERM];

/// Every right, by the bits of linux/landlock.h.
#[rustfmt::skip]
const RIGHTS: &[Right] = &[
    // ENOEXEC is what comes behind Landlock: it is no program.
    Right { name: "execute", abi: 1, kind: Kind::Path(EXECUTE), rests_on: READ_FILE, denied: ACCES, act: |place| {
        call(libc::SYS_execve, &[at(place, "program"), words(&[at(place, "program"), 0]), words(&[0])])
    } },
    Right { name: "write_file", abi: 1, kind: Kind::Path(WRITE_FILE), rests_on: 0, denied: ACCES, act: |place| open(at(place, "old"), libc::O_WRONLY) },
    Right { name: "read_file", abi: 1, kind: Kind::Path(READ_FILE), rests_on: 0, denied: ACCES, act: |place| open(at(place, "old"), libc::O_RDONLY) },
    Right { name: "read_dir", abi: 1, kind: Kind::Path(READ_DIR), rests_on: 0, denied: ACCES, act: |place| open(at(place, "empty"), libc::O_RDONLY | libc::O_DIRECTORY) },
    Right { name: "remove_dir", abi: 1, kind: Kind::Path(1 << 4), rests_on: 0, denied: ACCES, act: |place| call(libc::SYS_unlinkat, &[CWD, at(place, "empty"), int(libc::AT_REMOVEDIR)]) },
    Right { name: "remove_file", abi: 1, kind: Kind::Path(REMOVE_FILE), rests_on: 0, denied: ACCES, act: |place| call(libc::SYS_unlinkat, &[CWD, at(place, "old"), 0]) },
    // Device 0:0 is the one that needs no capability.
    Right { name: "make_char", abi: 1, kind: Kind::Path(1 << 6), rests_on: 0, denied: ACCES, act: |place| make(place, libc::S_IFCHR, 0) },
    Right { name: "make_dir", abi: 1, kind: Kind::Path(1 << 7), rests_on: 0, denied: ACCES, act: |place| call(libc::SYS_mkdirat, &[CWD, at(place, "new"), 0o700]) },
    Right { name: "make_reg", abi: 1, kind: Kind::Path(MAKE_REG), rests_on: 0, denied: ACCES, act: |place| make(place, libc::S_IFREG, 0) },
    Right { name: "make_sock", abi: 1, kind: Kind::Path(1 << 9), rests_on: 0, denied: ACCES, act: |place| make(place, libc::S_IFSOCK, 0) },
    Right { name: "make_fifo", abi: 1, kind: Kind::Path(1 << 10), rests_on: 0, denied: ACCES, act: |place| make(place, libc::S_IFIFO, 0) },
    // EPERM, for want of CAP_MKNOD, is what comes behind Landlock.
    Right { name: "make_block", abi: 1, kind: Kind::Path(1 << 11), rests_on: 0, denied: ACCES, act: |place| make(place, libc::S_IFBLK, 0) },
    Right { name: "make_sym", abi: 1, kind: Kind::Path(1 << 12), rests_on: 0, denied: ACCES, act: |place| call(libc::SYS_symlinkat, &[text("old"), CWD, at(place, "new")]) },
    Right { name: "refer", abi: 2, kind: Kind::Path(REFER), rests_on: REMOVE_FILE | MAKE_REG, denied: &[libc::EACCES, libc::EXDEV], act: |place| {
        call(libc::SYS_renameat2, &[CWD, at(place, "old"), CWD, at(place, "empty/new"), 0])
    } },
    Right { name: "truncate", abi: 3, kind: Kind::Path(1 << 14), rests_on: 0, denied: ACCES, act: |place| call(libc::SYS_truncate, &[at(place, "old"), 0]) },
    // ENOTTY is what comes behind Landlock.
    Right { name: "ioctl_dev", abi: 5, kind: Kind::Path(1 << 15), rests_on: READ_FILE, denied: ACCES, act: |place| {
        then(open(at(place, "null"), libc::O_RDONLY), |file| call(libc::SYS_ioctl, &[file, libc::TCGETS, room(64)]))
    } },
    // ECONNREFUSED is what comes behind Landlock.
    Right { name: "resolve_unix", abi: 9, kind: Kind::Path(1 << 16), rests_on: 0, denied: ACCES, act: |place| connect(format!("{place}/socket").as_bytes()) },
    Right { name: "bind_tcp", abi: 4, kind: Kind::Port(1), rests_on: 0, denied: ACCES, act: |_| tcp(libc::SYS_bind) },
    Right { name: "connect_tcp", abi: 4, kind: Kind::Port(2), rests_on: 0, denied: ACCES, act: |_| tcp(libc::SYS_connect) },
    Right { name: "abstract_unix_socket", abi: 6, kind: Kind::Scope(1), rests_on: 0, denied: PERM, act: |_| connect(format!("\0{ABSTRACT}").as_bytes()) },
    Right { name: "signal", abi: 6, kind: Kind::Scope(2), rests_on: 0, denied: PERM, act: |_| call(libc::SYS_kill, &[u64::from(OUTSIDER.get().copied().unwrap_or(0)), 0]) },
];

impl Right {
    /// Whether the kernel let the act past Landlock.
    fn passes(&self, end: &End) -> bool {
        match end {
            End::Back(back) => self.denied.iter().all(|errno| *back != -i64::from(*errno)),
            End::Became(_) | End::Killed(_) => false,
        }
    }
}

fn abi() -> u32 {
    postern_core::confine::landlock::version().expect("Landlock")
}

/// The rights that this kernel knows; the others are named.
fn known() -> Vec<&'static Right> {
    let abi = abi();
    for right in RIGHTS.iter().filter(|right| right.abi > abi) {
        println!("    not tried: {}: ABI {}, and this kernel has {abi}", right.name, right.abi);
    }
    RIGHTS.iter().filter(|right| right.abi <= abi).collect()
}

/// All bits of a kind that this kernel knows.
fn all(bit: fn(Kind) -> Option<u64>) -> u64 {
    let abi = abi();
    RIGHTS.iter().filter(|right| right.abi <= abi).filter_map(|right| bit(right.kind)).fold(0, |all, bit| all | bit)
}

const fn path(kind: Kind) -> Option<u64> {
    if let Kind::Path(bit) = kind { Some(bit) } else { None }
}

const fn port(kind: Kind) -> Option<u64> {
    if let Kind::Port(bit) = kind { Some(bit) } else { None }
}

const fn scope(kind: Kind) -> Option<u64> {
    if let Kind::Scope(bit) = kind { Some(bit) } else { None }
}

/// A domain by bare system calls: what it handles, and what it grants at the
/// ground and for the port of [`tcp`].
fn enter(paths: u64, ports: u64, scopes: u64, granted_path: u64, granted_port: u64) {
    let size = match abi() {
        0..=3 => 8,
        4..=5 => 16,
        _ => 24,
    };
    let ruleset = call(libc::SYS_landlock_create_ruleset, &[words(&[paths, ports, scopes]), size, 0]);
    let ruleset = u64::try_from(ruleset).expect("a ruleset");
    if granted_path != 0 {
        let ground = u64::try_from(open(text(GROUND), libc::O_PATH)).expect("the ground");
        let rule = words(&[granted_path, ground]);
        assert_eq!(call(libc::SYS_landlock_add_rule, &[ruleset, 1, rule, 0]), 0, "a rule for a path");
    }
    if granted_port != 0 {
        let rule = words(&[granted_port, 1]);
        assert_eq!(call(libc::SYS_landlock_add_rule, &[ruleset, 2, rule, 0]), 0, "a rule for a port");
    }
    assert_eq!(call(libc::SYS_prctl, &[int(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0]), 0);
    assert_eq!(call(libc::SYS_landlock_restrict_self, &[ruleset, 0]), 0, "the domain");
}

/// Everything that an act needs, at a place, as it was before the last act.
fn set(place: &str) {
    let _ = fs::remove_dir_all(place);
    fs::create_dir_all(place).expect("a place");
    let at = |name: &str| Path::new(place).join(name);
    fs::create_dir(at("empty")).expect("a directory");
    fs::write(at("old"), "content").expect("a file");
    fs::write(at("program"), "no program").expect("a file");
    fs::set_permissions(at("program"), Permissions::from_mode(0o755)).expect("its mode");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&at("null"), nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 3))
        .expect("a device");
    fs::set_permissions(at("null"), Permissions::from_mode(0o666)).expect("its mode");
    drop(std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket"));
    for name in ["", "empty", "old", "program", "socket"] {
        chown(at(name), Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
    }
    fs::set_permissions(place, Permissions::from_mode(0o755)).expect("its mode");
}

/// Somebody of the account outside, with a socket; ended when it goes out of
/// scope.
struct Outsider {
    process: std::process::Child,
    _socket: std::os::fd::OwnedFd,
}

impl Outsider {
    fn new() -> Self {
        use std::os::fd::AsRawFd;
        use std::os::unix::process::CommandExt;
        let process = std::process::Command::new("/bin/sleep").arg("600").uid(ACCOUNT).gid(ACCOUNT).spawn();
        let process = process.expect("sleep");
        OUTSIDER.set(process.id()).expect("the first");
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(ABSTRACT.as_bytes()).expect("a name")).expect("its name");
        listen(&socket, Backlog::new(100).expect("a number")).expect("it listens");
        Self { process, _socket: socket }
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A network whose ports are nobody else's, and low ones everybody's: what stops a
/// bind is Landlock alone.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").expect("the first port for everybody");
}

pub(crate) fn each_right_is_a_triplet() {
    let prober = Prober::new();
    own_network();
    let _outsider = Outsider::new();
    let (paths, ports, scopes) = (all(path), all(port), all(scope));
    let mut wrong = Vec::new();
    let rights = known();
    for right in &rights {
        let try_in = |confine: &dyn Fn()| {
            set(GROUND);
            prober.probe(
                || {
                    Role::None.confine();
                    confine();
                },
                || (right.act)(GROUND),
            )
        };
        let (own_path, own_port, own_scope) =
            (path(right.kind).unwrap_or(0), port(right.kind).unwrap_or(0), scope(right.kind).unwrap_or(0));
        let control = try_in(&|| {});
        let allowed = try_in(&|| enter(paths, ports, scopes & !own_scope, own_path | right.rests_on, own_port));
        let denied = try_in(&|| enter(paths, ports, scopes, paths & !own_path, ports & !own_port));
        let alone = try_in(&|| enter(own_path, own_port, own_scope, 0, 0));
        let rightly =
            right.passes(&control) && right.passes(&allowed) && !right.passes(&denied) && !right.passes(&alone);
        if !rightly {
            let name = right.name;
            wrong.push(format!("{name}: control {control:?}, allowed {allowed:?}, denied {denied:?}, alone {alone:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n    {}", wrong.join("\n    "));
    println!("    ABI {}: {} rights, each by control, allowed, denied", abi(), rights.len());
}

/// A process's domain at a place: the rights that it leaves there.
struct Leaves {
    what: &'static str,
    role: Role,
    place: &'static str,
    rights: &'static [&'static str],
}

/// All but executing: what only the filter and the account hold.
const NOT_THE_SPAWNERS: &[&str] = &[
    "write_file",
    "read_file",
    "read_dir",
    "remove_dir",
    "remove_file",
    "make_char",
    "make_dir",
    "make_reg",
    "make_sock",
    "make_fifo",
    "make_block",
    "make_sym",
    "truncate",
    "ioctl_dev",
    "resolve_unix",
];

fn domains() -> Vec<Leaves> {
    let file = |rights| opener(vec![rule(GROUND, rights)]);
    let every = Rights::READ.with(Rights::WRITE).with(Rights::CREATE).with(Rights::APPEND);
    let one = |what, role, place, rights| Leaves { what, role, place, rights };
    vec![
        one("a worker", Role::worker(), GROUND, &[]),
        one("an opener, outside its rules", Role::opener(), GROUND, &[]),
        one("an opener that may read", file(Rights::READ), GROUND, &["read_file"]),
        one("an opener that may read, elsewhere", file(Rights::READ), ELSEWHERE, &[]),
        one("an opener that may append", file(Rights::APPEND), GROUND, &["write_file"]),
        one("an opener that may create", file(Rights::CREATE), GROUND, &["write_file", "make_reg"]),
        one("an opener that may write", file(Rights::WRITE), GROUND, &["write_file", "truncate"]),
        one(
            "an opener that may do everything",
            file(every),
            GROUND,
            &["write_file", "read_file", "make_reg", "truncate"],
        ),
        one("a spawner", Role::spawner(), GROUND, NOT_THE_SPAWNERS),
        one("a broker that freezes and asks init", Role::broker(), GROUND, &["read_dir", "signal"]),
        one("its log's directory", Role::broker(), LOG, &["write_file", "read_file", "read_dir", "make_reg", "signal"]),
        one(
            "its state directory",
            Role::broker(),
            STATE,
            &["write_file", "read_file", "read_dir", "make_reg", "remove_file", "signal"],
        ),
        one("a broker without acts", Role::idle_broker(), GROUND, &[]),
        one("a broker that rotates", Role::rotating_broker(), GROUND, &[]),
        one(
            "its log's directory, rotating",
            Role::rotating_broker(),
            LOG,
            &["write_file", "read_file", "read_dir", "make_reg", "remove_file"],
        ),
        one("a broker that reboots", Role::rebooting_broker(), GROUND, &[]),
    ]
}

pub(crate) fn each_domain_leaves_what_it_says() {
    let prober = Prober::new();
    own_network();
    let _outsider = Outsider::new();
    let rights = known();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for Leaves { what, role, place, rights: left } in domains() {
        for right in &rights {
            set(GROUND);
            set(place);
            roles::set_ground();
            let end = prober.without_filter(|| role.confine(), || (right.act)(place));
            let due = left.contains(&right.name);
            tried += 1;
            if right.passes(&end) != due {
                wrong.push(format!("{what}: {}: {end:?}, not {}", right.name, if due { "allowed" } else { "denied" }));
            }
        }
    }
    assert!(wrong.is_empty(), "\n    {}", wrong.join("\n    "));
    println!("    {} domains: {tried} acts without a filter", domains().len());
}

/// Which processes' filters let a call of this kind through, and why.
type Through = &'static [(&'static str, &'static str)];

/// What no right of Landlock is about: the call, and where the filter lets it
/// through all the same. Wherever it does not, the process dies of it.
#[rustfmt::skip]
fn uncontrolled() -> Vec<(&'static str, c_long, Vec<u64>, Through)> {
    const BIRTH: &str = "a child of the spawner at its start; its own filter has no such rule";
    const GATHERED: &str = "an opener's, of the memory that it gathers into; the spawner holds no such file";
    const MEASURED: &str = "an opener's, of the mountpoint that it holds";
    let old = || at(GROUND, "old");
    let link = || at(GROUND, "link");
    let name = || text("user.test");
    let lock = || words(&[1, 0, 0, 0]);
    vec![
        ("stat", libc::SYS_newfstatat, vec![CWD, old(), room(256), 0], &[("spawner", BIRTH)]),
        ("statx", libc::SYS_statx, vec![CWD, old(), 0, 0xfff, room(256)], &[("broker", "an unplugged port: is it back"), ("spawner", MEASURED)]),
        ("statfs", libc::SYS_statfs, vec![old(), room(256)], &[]),
        ("access", libc::SYS_faccessat, vec![CWD, old(), 0], if postern_core::confine::filters::LOADER.is_some() { &[("spawner", BIRTH)] } else { &[] }),
        ("access with flags", libc::SYS_faccessat2, vec![CWD, old(), 0, 0], &[]),
        ("chmod", libc::SYS_fchmodat, vec![CWD, old(), 0o600], &[]),
        ("chown", libc::SYS_fchownat, vec![CWD, old(), u64::MAX, u64::MAX, 0], &[]),
        ("utimes", libc::SYS_utimensat, vec![CWD, old(), 0, 0], &[]),
        ("setxattr", libc::SYS_setxattr, vec![old(), name(), text("x"), 1, 0], &[]),
        ("getxattr", libc::SYS_getxattr, vec![old(), name(), room(8), 8], &[]),
        ("listxattr", libc::SYS_listxattr, vec![old(), room(64), 64], &[]),
        ("removexattr", libc::SYS_removexattr, vec![old(), name()], &[]),
        ("readlink", libc::SYS_readlinkat, vec![CWD, link(), room(64), 64], &[("spawner", BIRTH)]),
        ("O_PATH", libc::SYS_openat, vec![CWD, old(), int(libc::O_PATH | libc::O_CLOEXEC), 0],
            &[("spawner", BIRTH), ("opener", "looking at what a path names; opening it is asked for again")]),
        ("O_PATH, kept over exec", libc::SYS_openat, vec![CWD, old(), int(libc::O_PATH), 0], &[("spawner", BIRTH)]),
        ("chdir", libc::SYS_chdir, vec![text(GROUND)], &[]),
        ("flock", libc::SYS_flock, vec![FILE, int(libc::LOCK_EX | libc::LOCK_NB)], &[]),
        ("fcntl lock", libc::SYS_fcntl, vec![FILE, int(libc::F_SETLK), lock()], &[("spawner", BIRTH)]),
        ("fcntl open file description lock", libc::SYS_fcntl, vec![FILE, int(libc::F_OFD_SETLK), lock()], &[("spawner", BIRTH)]),
        ("fchmod", libc::SYS_fchmod, vec![FILE, 0o600], &[]),
        ("fchown", libc::SYS_fchown, vec![FILE, u64::MAX, u64::MAX], &[]),
        ("futimens", libc::SYS_utimensat, vec![FILE, 0, 0, 0], &[]),
        ("ftruncate of what was open before", libc::SYS_ftruncate, vec![FILE, 0], &[("spawner", GATHERED)]),
        ("inotify", libc::SYS_inotify_init1, vec![0], &[]),
        ("name_to_handle_at", libc::SYS_name_to_handle_at, vec![CWD, old(), words(&[128, 0]), room(8), 0], &[]),
        ("a socket", libc::SYS_socket, vec![int(libc::AF_UNIX), int(libc::SOCK_STREAM), 0], &[]),
        ("UDP", libc::SYS_socket, vec![int(libc::AF_INET), int(libc::SOCK_DGRAM), 0], &[]),
        ("memory with code", libc::SYS_mmap, vec![0, 4096, 5, 0x22, u64::MAX, 0], if postern_core::confine::filters::LOADER.is_some() { &[("spawner", BIRTH)] } else { &[] }),
        ("memfd", libc::SYS_memfd_create, vec![text("x"), 0], &[]),
    ]
}

/// A descriptor that was open before.
const FILE: u64 = 20;

pub(crate) fn what_landlock_does_not_control_the_filter_does() {
    let prober = Prober::new();
    let four = [
        ("worker", Role::worker()),
        ("opener", Role::opener()),
        ("spawner", Role::spawner()),
        ("broker", Role::broker()),
    ];
    let ready = || {
        set(GROUND);
        std::os::unix::fs::symlink("old", format!("{GROUND}/link")).expect("a link");
        roles::set_ground();
    };
    let prepare = |role: &Role| {
        let file = fs::File::options().read(true).write(true).open(format!("{GROUND}/old")).expect("a file");
        roles::keep(file.into(), FILE);
        role.confine();
    };
    let mut wrong = Vec::new();
    let rows = uncontrolled();
    for (what, number, arguments, through) in &rows {
        for (name, role) in &four {
            ready();
            let bare = prober.without_filter(|| prepare(role), || call(*number, arguments));
            // ENODATA: there is no such attribute.
            if !matches!(bare, End::Back(0..)) && bare != End::Back(-i64::from(libc::ENODATA)) {
                wrong.push(format!("{what} in a {name} without its filter: {bare:?}: is there a right for it now?"));
            }
            ready();
            let end = prober.probe(|| prepare(role), || call(*number, arguments));
            let due = through.iter().any(|(other, _)| other == name);
            let right = if due { matches!(end, End::Back(0..)) } else { end == End::Killed(libc::SIGSYS) };
            if !right {
                wrong.push(format!("{what} in a {name}: {end:?}, not {}", if due { "through" } else { "death" }));
            }
        }
    }
    assert!(wrong.is_empty(), "\n    {}", wrong.join("\n    "));
    // Below ABI 3 no right is about truncating: the flags of an open are then
    // the filter's, which an opener has of its own rights alone.
    let truncating = |rights| {
        let part = postern_core::policy::parts::OpenerPart {
            rules: vec![rule(GROUND, rights)],
            create_mode: 0o600,
            facts: FactSet::EMPTY,
            telling: postern_core::policy::telling::Telling::default(),
        };
        let table = postern_core::confine::filters::opener(&part);
        let truncates = |when: &postern_core::confine::seccomp::When| matches!(when, postern_core::confine::seccomp::When::Is(2, flags) if flags & libc::O_TRUNC.cast_unsigned() != 0);
        table.iter().filter(|rule| rule.number == libc::SYS_openat && rule.when.iter().any(truncates)).count()
    };
    assert_eq!(truncating(Rights::READ.with(Rights::APPEND).with(Rights::CREATE)), 0);
    assert!(truncating(Rights::WRITE) > 0, "the control");
    println!("    {} calls that Landlock does not control, in four processes", rows.len());
}
