//! What a newcomer types: the demo, `postern call`, the README's commands.
//!
//! As root the demo runs once as root and once as an ordinary user; else as the
//! user that runs the tests. `UPDATE=1 cargo test --test demo` rewrites the
//! README's command table.

use binary::BINARY;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "support/binary.rs"]
mod binary;
#[path = "demo/call.rs"]
mod call;
#[path = "demo/readme.rs"]
mod readme;
#[path = "support/records.rs"]
mod records;
#[path = "demo/story.rs"]
mod story;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// An id for an ordinary user, in no account's use and not among the demo's own.
fn ordinary() -> u32 {
    let all = || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        processes.filter_map(|process| fs::read_to_string(process.path().join("status")).ok())
    };
    let taken = |id: u32| {
        all().any(|status| {
            let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default().to_owned();
            uids.split_ascii_whitespace().any(|uid| uid == id.to_string())
        })
    };
    let begin = 65_200 + std::process::id() % 300;
    (begin..65_530).find(|id| !taken(*id)).expect("a free id")
}

/// A directory that every account can enter, and the executable in it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("postern-test-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        // As it is installed: to be executed by all, read by nobody.
        let copy = directory.path().join("postern");
        fs::copy(BINARY, &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o711)).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The copied executable as an ordinary user.
    fn as_user(&self, uid: u32) -> Command {
        let mut command = Command::new(self.path("postern"));
        if is_root() {
            command.uid(uid).gid(uid);
        }
        command.env_remove("TMPDIR").current_dir("/");
        command
    }
}

fn postern() -> Command {
    Command::new(BINARY)
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
