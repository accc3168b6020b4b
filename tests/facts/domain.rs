//! What an opener's domain leaves open of the guest, for each command alone: what the
//! command's row names, and nothing else of /proc, /sys, /etc, /run and /var.
//!
//! Everything there that an account without privileges can open is tried, in one
//! confined child for each command, with the flags that its filter lets pass. The
//! control is the same account without confinement.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::Mode;
use postern_core::catalogue::facts::{Allows, Fact, FactSet};
use postern_core::catalogue::{Command, CommandSet};
use postern_core::confine::filters::{self, OPEN_FACT};
use postern_core::confine::{self, identity};
use postern_core::ipc::List;
use postern_core::messages::Identity;
use postern_core::policy::parts::OpenerPart;
use postern_core::policy::telling::Telling;
use postern_core::sys::descriptors;

use crate::raw::{End, attempt_heard};
use crate::scene;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] =
    &[("an_opener_reaches_what_a_commands_row_names", an_opener_reaches_what_a_commands_row_names)];

const ACCOUNT: u32 = 70_500;

/// Where the guest's facts are.
const TREES: &[&str] = &["/proc", "/sys", "/etc", "/run", "/var", "/usr"];

/// Every name beneath the trees; links are not followed.
fn names() -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut directories: Vec<PathBuf> = TREES.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("its type");
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                names.push(entry.path());
            }
        }
        names.push(directory);
    }
    names
}

/// Which of these paths open in a child that `confine` has confined: their numbers.
fn opened(paths: &[PathBuf], confine: impl FnOnce()) -> BTreeSet<usize> {
    let prepare = || {
        let proc_self_fd = nix::fcntl::open("/proc/self/fd", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        let moved = descriptors::move_to(proc_self_fd.expect("/proc/self/fd"), filters::PROC_SELF_FD);
        let account = Identity { uid: ACCOUNT, gid: ACCOUNT, groups: List::default() };
        identity::become_account(&account).expect("the account");
        // As a new program is: who confines itself has to undo it.
        nix::sys::prctl::set_dumpable(true).expect("dumpable");
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::clear(None, set).expect("no capability");
        }
        nix::sys::stat::umask(Mode::empty());
        confine();
        moved
    };
    let (end, heard) = attempt_heard(prepare, |_| {
        let mut found = String::new();
        for (number, path) in paths.iter().enumerate() {
            if openat(AT_FDCWD, path, OPEN_FACT, Mode::empty()).is_ok() {
                let _ = write!(found, "{number} ");
            }
            if found.len() > 2000 || (number + 1 == paths.len() && !found.is_empty()) {
                // Eight bytes would be a result.
                let _ = send(filters::BROKER, format!("{found:9}").as_bytes(), MsgFlags::MSG_NOSIGNAL);
                found.clear();
            }
        }
        0
    });
    assert_eq!(end, End::Back(0), "the filter lets an opener do this");
    heard.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// A path as the kernel resolves it, and what opening it takes.
fn resolved(path: &Path) -> (PathBuf, Allows) {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let allows = if path.is_dir() { Allows::List } else { Allows::Read };
    (path, allows)
}

/// What tells an object from another that has its name later; none if it is gone.
fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|facts| facts.ino())
}

fn an_opener_reaches_what_a_commands_row_names() {
    let _scene = scene::set_up();
    let mut paths = names();
    // As they stand in the rows, where that is not as the kernel resolves them.
    let all = |facts: FactSet| facts.iter().flat_map(Fact::grants);
    let every: CommandSet = Command::all().collect();
    let walked = paths.len();
    let known: BTreeSet<PathBuf> = paths.iter().cloned().collect();
    let rows: BTreeSet<PathBuf> = all(every.facts()).map(|(path, _)| PathBuf::from(path)).collect();
    paths.extend(rows.difference(&known).filter(|path| path.exists()).cloned());
    let control = opened(&paths, || ());
    println!("    {walked} names, of which an ordinary account opens {}", control.len());
    assert!(control.len() > 1000, "the control: there is something to keep closed");
    let paths: Vec<PathBuf> = control.into_iter().map(|number| paths[number].clone()).collect();
    let objects: Vec<(PathBuf, Allows)> = paths.iter().map(|path| resolved(path)).collect();
    let inodes: Vec<Option<u64>> = paths.iter().map(|path| inode(path)).collect();

    let mut commands: Vec<(String, FactSet)> = vec![("none".to_owned(), FactSet::EMPTY)];
    commands.extend(Command::all().map(|command| {
        let alone: CommandSet = std::iter::once(command).collect();
        (command.name().to_owned(), alone.facts().gathered())
    }));
    commands.push(("all".to_owned(), every.facts().gathered()));
    for (name, facts) in commands {
        let part = OpenerPart { rules: Vec::new(), create_mode: 0, facts, telling: Telling::default() };
        let grants: Vec<(PathBuf, Allows)> =
            all(facts).filter_map(|(path, allows)| Some((fs::canonicalize(path).ok()?, allows))).collect();
        if facts.is_empty() && name.starts_with("guest-") {
            continue; // As "none".
        }
        let found = if facts.is_empty() {
            // Its filter lets no file be opened by name: only the domain is asked.
            opened(&paths, || drop(confine::landlock::restrict(confine::landlock::Domain::Everything, &[])))
        } else {
            opened(&paths, || drop(confine::opener(&part).expect("an opener's confinement")))
        };
        let covered = |number: &usize| {
            let (path, takes) = &objects[*number];
            grants.iter().any(|(grant, allows)| allows == takes && path.starts_with(grant))
        };
        let spare: Vec<&PathBuf> = found.iter().filter(|number| !covered(number)).map(|n| &paths[*n]).collect();
        assert!(spare.is_empty(), "{name}: open, and in no row: {spare:#?}");
        let lacking = (0..paths.len()).filter(|number| covered(number) && !found.contains(number));
        // What went meanwhile is nobody's, nor is what came back under its name, as loop
        // devices of other tests do.
        let lacking: Vec<&PathBuf> =
            lacking.filter(|n| inodes[*n].is_some() && inode(&paths[*n]) == inodes[*n]).map(|n| &paths[n]).collect();
        assert!(lacking.is_empty(), "{name}: in a row, and closed: {lacking:#?}");
        let there = grants.len();
        assert!(there == 0 || !found.is_empty(), "{name}: {there} grants, nothing open");
        println!("    {name}: {there} grants, {} names open", found.len());
    }
}
