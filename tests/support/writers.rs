//! Processes that write to filesystems while these are frozen: each must stand
//! still in the kernel until the thaw, and lose nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use super::disk::Mounted;
use super::process::Peer;
use super::runner::Role;

/// To be among the roles of a target that has writers.
pub(crate) const ROLE: Role = ("write", write);

/// Opens a file, says so, and at the next line writes to it and syncs.
fn write(arguments: &[String]) {
    let mut file = OpenOptions::new().create(true).append(true).open(&arguments[0]).expect("the file");
    file.sync_all().expect("the first sync");
    println!("open");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the word to go on");
    file.write_all(b"written").expect("a write");
    file.sync_all().expect("a sync");
}

/// One for each of some mounts.
pub(crate) struct Writers(Vec<(Peer, PathBuf)>);

impl Writers {
    /// Each has a file open, and has not written yet.
    pub(crate) fn on(mounts: &[Mounted]) -> Self {
        let writers = mounts.iter().map(|mount| {
            let path = mount.path("file");
            let mut writer = Peer::role(ROLE.0, &[path.to_str().expect("a plain path")]);
            assert_eq!(writer.hear(), "open");
            (writer, path)
        });
        Self(writers.collect())
    }

    /// They write, and every one is held up by a freeze.
    pub(crate) fn are_held_up(&mut self) {
        for (writer, path) in &mut self.0 {
            writer.say("go");
            writer.wait_until_blocked();
            assert_eq!(fs::metadata(&path).expect("the file").len(), 0);
        }
    }

    /// They go on, and end well.
    pub(crate) fn finish(&mut self) {
        for (writer, path) in &mut self.0 {
            assert!(writer.succeeds());
            assert_eq!(fs::read_to_string(&path).expect("the file"), "written");
        }
    }
}
