//! A state directory that cannot be written, or has no room: nothing is frozen that
//! nobody would know of, and a thaw is never refused.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::scene::{freeze, policy, small_tmpfs, start_quietly, status, thaw};
use crate::support::agent::Home;
use crate::support::disk::Disk;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("what_cannot_be_remembered_is_not_frozen", what_cannot_be_remembered_is_not_frozen),
    ("a_state_directory_that_turns_read_only_keeps_nothing_frozen", one_that_turns_read_only_keeps_nothing_frozen),
];

fn remount(at: &Path, flags: MsFlags) {
    let none: Option<&str> = None;
    mount(none, at, none, MsFlags::MS_REMOUNT | flags, none).expect("remounted");
}

fn what_cannot_be_remembered_is_not_frozen() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", b"content");
    small_tmpfs(&home, "state", 64);
    let state = home.path("state");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let refused = |host: &mut crate::support::agent::Host, why: &str| {
        let said = host.fails("guest-fsfreeze-freeze", &Value::Null);
        assert_eq!(said, format!("failed to write the state directory: {why}"));
        assert!(!mounted.is_frozen());
        assert_eq!(status(host), "thawed");
    };
    // No handle was given yet, so that none is reserved.
    remount(&state, MsFlags::MS_RDONLY);
    refused(&mut host, "Read-only file system");
    assert!(host.open(&path, "r").expect_err("no handle to be had").contains("Input/output error"));
    remount(&state, MsFlags::empty());
    host.open(&path, "r").expect("a handle");
    fs::write(state.join("filler"), vec![0; 1 << 20]).expect_err("it is full");
    refused(&mut host, "No space left on device");
    host.open(&path, "r").expect("handles were reserved");
    fs::remove_file(state.join("filler")).expect("the filler");
    assert_eq!(freeze(&mut host), 1);
    assert_eq!(thaw(&mut host), 1);
    println!(
        "    state read-only or full: a freeze is refused, an open without a reserved handle is EIO, all else serves"
    );
}

fn one_that_turns_read_only_keeps_nothing_frozen() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    small_tmpfs(&home, "state", 64);
    let state = home.path("state");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    remount(&state, MsFlags::MS_RDONLY);
    // All is thawed; what it could not forget, the host is told.
    let said = host.fails("guest-fsfreeze-thaw", &Value::Null);
    assert_eq!(said, "failed to remove a file from the state directory: Read-only file system");
    assert!(!mounted.is_frozen());
    assert_eq!(status(&mut host), "thawed");
    drop(host);
    drop(agent);
    // The next one believes that something is frozen, until its first thaw.
    remount(&state, MsFlags::empty());
    let (_agent, mut host) = start_quietly(&home, &policy());
    assert_eq!(status(&mut host), "frozen");
    assert_eq!(thaw(&mut host), 0, "nothing was");
    assert_eq!(status(&mut host), "thawed");
    assert_eq!(freeze(&mut host), 1);
    assert_eq!(thaw(&mut host), 1);
    println!("    state read-only while frozen: thawed, the host is told; the next start's first thaw finds nothing");
}
