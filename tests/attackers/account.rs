//! The attacker's account, and the processes that it has: this executable in
//! other roles, as that user, spoken to line by line.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::support::agent::Home;
use crate::support::cell;
use crate::support::process::Peer;
use crate::support::runner::Role;

/// User and group of the attacker: nobody else's.
pub(crate) const ATTACKER: u32 = 70_200;

pub(crate) const ROLES: &[Role] = &[("twin", twin)];

/// A process of the attacker in a role of this target.
pub(crate) fn attacker(role: &str, arguments: &[&str]) -> Peer {
    as_user(ATTACKER, role, arguments)
}

/// A process of another account in a role of this target.
pub(crate) fn as_user(user: u32, role: &str, arguments: &[&str]) -> Peer {
    let mut command = Command::new(cell::SELF);
    // Without the groups of root, as the standard library does it here.
    command.uid(user).gid(user).args(["--role", role]).args(arguments);
    Peer::start(&mut command)
}

/// A process that is there to be attacked: it answers each line, and is as open
/// as a process of its user is.
fn twin(_: &[String]) {
    // One that was root's is not dumpable until it says so.
    nix::sys::prctl::set_dumpable(true).expect("PR_SET_DUMPABLE");
    println!("ready");
    for line in io::stdin().lines() {
        println!("{}", line.expect("a line"));
    }
}

/// Becomes root of a user namespace of its own, with a mount namespace.
pub(crate) fn enter_user_namespace() {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    nix::sys::prctl::set_dumpable(true).expect("PR_SET_DUMPABLE");
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).expect("a user namespace of its own");
    fs::write("/proc/self/setgroups", "deny").expect("setgroups");
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("a map of users");
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("a map of groups");
}

/// A directory of the attacker's in a home.
pub(crate) fn own_directory(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    fs::create_dir(&path).expect("a directory");
    give(&path);
    path
}

/// Gives what is at a path to the attacker.
pub(crate) fn give(path: &Path) {
    chown(path, Some(ATTACKER), Some(ATTACKER)).expect("its owner");
}

/// Sets the permission bits of what is at a path.
pub(crate) fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode");
}

/// How an attempt ended, as one word of a line.
pub(crate) fn word(result: io::Result<()>) -> String {
    match result {
        Ok(()) => "works".to_owned(),
        Err(error) => {
            error.raw_os_error().map_or_else(|| error.kind().to_string(), |code| format!("{:?}", Errno::from_raw(code)))
        }
    }
}

/// What [`word`] says of an attempt that did what it was to do.
pub(crate) const WORKS: &str = "works";
