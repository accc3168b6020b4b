//! The two agents side by side: the same words for both.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::agent::{BINARY, Home, Host, eventually};

/// Where the cell has the real one.
pub(crate) const STOCK: &str = "/bin/qemu-ga";

/// The policy of these tests: every command of 0.15 but shutdown.
pub(crate) const POLICY: &str = "profile = \"files\"\n[commands]\nallow = [\"guest-fsfreeze-status\", \
    \"guest-fsfreeze-freeze\", \"guest-fsfreeze-freeze-list\", \"guest-fsfreeze-thaw\"]\n\
    [[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";

/// A home whose postern is started as `qemu-ga`, with these words in front of
/// the test's own `-vv --policy`.
pub(crate) fn home(words: &[&str]) -> Home {
    let mut home = Home::new();
    home.binary = home.path("qemu-ga");
    symlink(BINARY, &home.binary).expect("a link");
    home.launch = here(&home, words);
    home
}

/// The words with `HOME` replaced.
pub(crate) fn here(home: &Home, words: &[&str]) -> Vec<String> {
    let place = home.path("").display().to_string();
    words.iter().map(|word| word.replace("HOME", place.trim_end_matches('/'))).collect()
}

/// A program with nothing in its environment but what the test gives it, and a
/// configuration file that is not there.
pub(crate) fn bare(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear().env("QGA_CONF", "/nowhere").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// postern as `qemu-ga`, without a policy of the test's.
pub(crate) fn postern() -> Command {
    let name = PathBuf::from("/tmp/qemu-ga");
    if !name.exists() {
        symlink(BINARY, &name).expect("a link");
    }
    bare(name)
}

/// Runs to the end, which comes by itself.
pub(crate) fn ended(mut command: Command) -> Output {
    let mut child = command.spawn().expect("an agent");
    // An agent that serves instead would hold up the test for ever.
    eventually(&format!("{command:?} ends"), || child.try_wait().expect("its status").map(drop));
    child.wait_with_output().expect("its output")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A running stock agent on HOME/stock.sock.
pub(crate) struct Stock {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Stock {
    pub(crate) fn start(home: &Home, words: &[&str]) -> Self {
        let socket = home.path("stock.sock");
        let state = home.path("stock-state");
        fs::create_dir_all(&state).expect("a directory");
        let mut command = bare(STOCK);
        command.args(["-m", "unix-listen", "-p"]).arg(&socket).arg("-t").arg(&state).args(here(home, words));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().expect("stock, of the package qemu-guest-agent"), socket }
    }

    pub(crate) fn connect(&self) -> Host {
        Host::connect(&self.socket)
    }
}

/// Sends SIGTERM to a stock agent once it sleeps in its main loop. Its signal
/// handler takes the lock that the loop holds while it is awake: a signal that
/// comes then leaves stock waiting for itself for ever.
pub(crate) fn terminate_stock(pid: i32) {
    eventually("stock sleeps", || {
        let place = fs::read_to_string(format!("/proc/{pid}/wchan")).expect("its place in the kernel");
        place.starts_with("poll_schedule_timeout").then_some(())
    });
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("SIGTERM");
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
