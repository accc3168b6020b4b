//! A root shell in a guest, over the machine's second serial port; what is on
//! the other end is `tests/vm/control`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::machine::{PATIENCE, eventually};
use crate::support::records;

/// Connects to a socket that QEMU makes at its start, as long as `look` does not
/// panic.
pub(crate) fn dial(socket: &Path, mut look: impl FnMut()) -> BufReader<UnixStream> {
    let stream = eventually(&format!("QEMU makes {}", socket.display()), || {
        look();
        UnixStream::connect(socket).ok()
    });
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    BufReader::new(stream)
}

/// A shell, and the console that is shown when something goes wrong.
pub(crate) struct Shell {
    control: BufReader<UnixStream>,
    console: PathBuf,
}

impl Shell {
    /// Connects to a socket that QEMU makes.
    pub(crate) fn connect(socket: &Path, console: &Path) -> Self {
        Self { control: dial(socket, || ()), console: console.to_owned() }
    }

    /// Waits for the shell of a guest that is starting.
    pub(crate) fn await_ready(&mut self) {
        let mut line = String::new();
        while line.trim() != "ready" {
            line.clear();
            let heard = self.control.read_line(&mut line);
            assert!(heard.is_ok_and(|length| length > 0), "no shell in the guest; its console:\n{}", self.console());
        }
    }

    /// What the guest's console shows.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Runs a script in the guest as root: its status, and what it printed on
    /// both outputs. One at a time: what hangs there hangs here.
    pub(crate) fn try_sh(&mut self, script: &str) -> (i32, String) {
        let line = STANDARD.encode(script) + "\n";
        self.control.get_mut().write_all(line.as_bytes()).expect("the guest's shell listens");
        let mut reply = String::new();
        let heard = self.control.read_line(&mut reply);
        assert!(heard.is_ok_and(|length| length > 0), "no answer to: {script}\nthe console:\n{}", self.console());
        let output = STANDARD.decode(reply.trim()).unwrap_or_else(|why| panic!("{why}: {reply:?}"));
        let output = String::from_utf8_lossy(&output).into_owned();
        let (printed, status) = output.trim_end().rsplit_once("status ").expect("a status");
        (status.parse().expect("a number"), printed.to_owned())
    }

    /// Runs a script that must succeed; what it printed.
    pub(crate) fn sh(&mut self, script: &str) -> String {
        let (status, printed) = self.try_sh(script);
        assert!(status == 0, "{script}: status {status}\n{printed}\nthe console:\n{}", self.console());
        records::check_printed(script, &printed);
        printed
    }

    /// Waits until a script succeeds; what it printed then.
    pub(crate) fn sh_eventually(&mut self, script: &str) -> String {
        let started = Instant::now();
        loop {
            let (status, printed) = self.try_sh(script);
            if status == 0 {
                return printed;
            }
            assert!(started.elapsed() < PATIENCE, "in vain: {script}: {status}\n{printed}");
            sleep(Duration::from_millis(200));
        }
    }
}
