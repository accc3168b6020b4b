//! Other processes of a test: this executable in another role, spoken to line by
//! line, killed when it goes out of scope.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::cell;

/// A process that takes and gives lines.
pub(crate) struct Peer {
    pub(crate) child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts a role of this target.
    pub(crate) fn role(name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(cell::SELF);
        Self::start(command.args(["--role", name]).args(arguments))
    }

    /// Starts a command.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("{command:?}: {why}"));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, input, output }
    }

    /// Says a line.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("its input"), "{line}").expect("it listens");
    }

    /// Waits for a line; without the newline.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).expect("it speaks");
        assert!(length > 0, "it ended without a word: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    /// Says a line and waits for one.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("its end");
    }

    /// Waits until it sleeps in the kernel where no signal wakes it (state D of
    /// `proc_pid_stat(5)`), by its main thread. Panics if it ends instead.
    pub(crate) fn wait_until_blocked(&mut self) {
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                panic!("it was not blocked but ended: {status}");
            }
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
            if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D')) {
                return;
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits until one of its threads sleeps inside an `ioctl` with this request
    /// on a descriptor of `path`.
    pub(crate) fn wait_until_inside_ioctl(&mut self, request: u32, path: &Path) {
        while !is_inside_ioctl(self.child.id(), request, path) {
            assert!(self.child.try_wait().expect("its status").is_none(), "it ended");
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end; whether it succeeded.
    pub(crate) fn succeeds(&mut self) -> bool {
        self.input = None;
        self.child.wait().expect("its end").success()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // One that is stuck in the kernel would be waited for in vain; the
        // cell's end takes it.
        let _ = self.child.try_wait();
    }
}

/// Whether a thread of this process sleeps inside an `ioctl` with this request
/// on a descriptor of `path`: `proc_pid_syscall(5)`. Unlike trying it, looking
/// does not get in the way.
pub(crate) fn is_inside_ioctl(process: u32, request: u32, path: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{process}"));
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
        let arguments: Vec<u64> = call
            .split(' ')
            .skip(1)
            .filter_map(|word| u64::from_str_radix(word.trim().trim_start_matches("0x"), 16).ok())
            .collect();
        arguments.get(1) == Some(&u64::from(request))
            && fs::read_link(process.join(format!("fd/{}", arguments[0]))).is_ok_and(|link| link == path)
    })
}
