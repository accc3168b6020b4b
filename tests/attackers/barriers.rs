//! One barrier alone, before others are put up: what is left when all else fell.
//! A confined process has several, and the first to speak hides the others.

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_core::confine::landlock::{Domain, restrict};

use super::account::{WORKS, attacker, word};
use crate::support::agent::Home;
use crate::support::cell;
use crate::support::process::Peer;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[("an_empty_domain_alone_leaves_nothing", an_empty_domain_alone_leaves_nothing)];

pub(crate) const ROLES: &[Role] = &[("behind", behind)];

/// What to go for.
struct Aims<'a> {
    directory: &'a Path,
    tcp: u16,
    socket: &'a str,
    pid: i32,
}

type Act = fn(&Aims<'_>) -> io::Result<()>;

/// What an empty Landlock domain must refuse, with the version of Landlock that
/// knows it: older kernels leave it to the others.
const ATTEMPTS: &[(&str, u8, Act)] = &[
    ("read a file", 1, |aims| File::open(aims.directory.join("file")).map(drop)),
    ("write a file", 1, |aims| File::options().write(true).open(aims.directory.join("file")).map(drop)),
    ("make a file", 1, |aims| File::create(aims.directory.join("new")).map(drop)),
    // And makes it anew, for the next time.
    ("remove a file", 1, |aims| {
        let spare = aims.directory.join("file");
        fs::remove_file(&spare).and_then(|()| fs::write(&spare, "content"))
    }),
    ("list a directory", 1, |aims| fs::read_dir(aims.directory).map(drop)),
    ("execute a program", 1, |_| Command::new(cell::SELF).arg("--list").output().map(drop)),
    ("empty a file", 3, |aims| nix::unistd::truncate(&aims.directory.join("file"), 0).map_err(io::Error::from)),
    ("connect over TCP", 4, |aims| TcpStream::connect(("127.0.0.1", aims.tcp)).map(drop)),
    ("listen on TCP", 4, |_| TcpListener::bind(("127.0.0.1", 0)).map(drop)),
    ("connect to an abstract socket", 6, |aims| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(aims.socket)?).map(drop)
    }),
    ("signal another process", 6, |aims| kill(Pid::from_raw(aims.pid), Signal::SIGURG).map_err(io::Error::from)),
];

/// Tries everything, enters an empty domain, tries again: two lines, and between
/// them the version of Landlock.
fn behind(arguments: &[String]) {
    let [directory, tcp, socket, pid] = arguments else { panic!("four arguments") };
    let number = "a number";
    let aims = Aims {
        directory: Path::new(directory),
        tcp: tcp.parse().expect(number),
        socket,
        pid: pid.parse().expect(number),
    };
    let all = || ATTEMPTS.iter().map(|(_, _, act)| word(act(&aims))).collect::<Vec<_>>().join(" ");
    println!("{}", all());
    nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
    println!("{}", restrict(Domain::Everything, &[]).expect("a domain"));
    println!("{}", all());
}

fn an_empty_domain_alone_leaves_nothing() {
    let home = Home::new();
    let directory = super::account::own_directory(&home, "theirs");
    fs::write(directory.join("file"), "content").expect("a file");
    super::account::give(&directory.join("file"));
    let tcp = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = tcp.local_addr().expect("its address").port().to_string();
    let name = format!("barriers-{}", directory.display());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("a socket");
    let mut twin = attacker("twin", &[]);
    assert_eq!(twin.hear(), "ready");
    let pid = twin.child.id().to_string();
    let mut peer: Peer = attacker("behind", &[directory.to_str().expect("UTF-8"), &port, &name, &pid]);
    let before = peer.hear();
    let version: u8 = peer.hear().parse().expect("a number");
    let after = peer.hear();
    let mut refused = 0;
    for (((what, since, _), before), after) in ATTEMPTS.iter().zip(before.split(' ')).zip(after.split(' ')) {
        assert_eq!(before, WORKS, "the control: {what}");
        if version < *since {
            println!("    NOT HELD: {what}: Landlock {version} does not know it; seccomp alone does");
            continue;
        }
        assert!(["EACCES", "EPERM"].contains(&after), "{what}: {after}");
        refused += 1;
    }
    println!("    Landlock {version}: {refused} of {} refused by the domain alone", ATTEMPTS.len());
    assert!(refused >= 6, "the control");
}
