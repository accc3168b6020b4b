//! Other processes of a test: this executable in another role, spoken to line by
//! line, killed when it goes out of scope.

use std::fs;
use std::io::{BufRead, BufReader, Write};
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
