//! A fake process 1 for tests of shutting down: the marks by which postern knows
//! each init, and what reaches one. It is the first process of a PID namespace
//! inside the cell; `reboot(2)` in there ends just that namespace: its process 1
//! dies of SIGHUP (restart) or SIGINT (halt, power off), see `reboot_pid_ns` in
//! the kernel. The machine's init and kernel are never reached: see
//! [`not_the_machine`].

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::cell;

/// Where sysvinit reads its requests.
const FIFO: &str = "/run/initctl";

/// Which init is faked.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Systemd,
    Busybox,
    Sysvinit,
    Unknown,
}

/// Runs the target's role `init` as such a process 1: what it printed, by line,
/// and how it ended. Its temporary directory is `directory`.
pub(crate) fn stage(kind: Kind, directory: &str, arguments: &[&str]) -> (Vec<String>, ExitStatus) {
    let _ = fs::remove_dir_all("/run/systemd");
    let _ = fs::remove_file(FIFO);
    let mut program = cell::SELF;
    match kind {
        Kind::Systemd => {
            fs::create_dir_all("/run/systemd/system").expect("systemd's mark");
            // As on a real guest; it must not be mistaken for sysvinit's.
            mkfifo(FIFO, Mode::S_IRWXU).expect("a FIFO");
        }
        Kind::Busybox => {
            program = "/bin/busybox";
            fs::copy(cell::SELF, program).expect("busybox's mark");
        }
        Kind::Sysvinit => mkfifo(FIFO, Mode::S_IRWXU).expect("sysvinit's mark"),
        Kind::Unknown => {}
    }
    let output = Command::new("/bin/unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--", program, "--role", "init"])
        .args(arguments)
        .env("TMPDIR", directory)
        .stderr(Stdio::inherit())
        .output()
        .expect("unshare");
    let printed = String::from_utf8(output.stdout).expect("text");
    (printed.lines().map(str::to_owned).collect(), output.status)
}

/// Panics unless process 1 of this PID namespace is the fake one: then neither
/// kill(1) nor `reboot(2)` can mean the machine.
pub(crate) fn not_the_machine() {
    let first = fs::read_to_string("/proc/1/cmdline").expect("who is process 1");
    assert!(first.contains("\0--role\0init\0"), "process 1 is {first:?}, not the test's");
}

/// What reaches the fake process 1.
pub(crate) struct Inbox {
    signals: SignalFd,
    fifo: Option<File>,
}

impl Inbox {
    /// To be called by process 1 before anybody asks it anything.
    pub(crate) fn open() -> Self {
        not_the_machine();
        Self::of_process_1()
    }

    fn of_process_1() -> Self {
        assert_eq!(std::process::id(), 1, "a fake process 1");
        // Blocked signals reach even process 1, which ignores what it has no handler
        // for.
        let every = SigSet::all();
        every.thread_block().expect("blocking signals");
        let signals = SignalFd::with_flags(&every, SfdFlags::SFD_NONBLOCK).expect("a signalfd");
        // Both ends, as sysvinit opens it, so that it never reads as ended.
        let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(FIFO);
        Self { signals, fifo: Path::new(FIFO).exists().then(|| open().expect("the FIFO")) }
    }

    /// As [`Self::open`], where a cell's test itself is process 1 and nothing else
    /// needs signals: it must have been started by the runner, into a cell.
    pub(crate) fn of_cell() -> Self {
        let first = fs::read_to_string("/proc/1/cmdline").expect("who is process 1");
        assert!(first.contains("\0--in-cell\0"), "process 1 is {first:?}, not the test");
        Self::of_process_1()
    }

    /// Stops reading requests.
    pub(crate) fn turn_deaf(&mut self) {
        self.fifo = None;
    }

    /// The signals that came, but for those of its own children's ends.
    pub(crate) fn signals(&self) -> Vec<siginfo> {
        let came = std::iter::from_fn(|| self.signals.read_signal().expect("the signalfd"));
        came.filter(|info| info.ssi_signo.cast_signed() != libc::SIGCHLD).collect()
    }

    /// The requests that came, in words.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        let Some(fifo) = &mut self.fifo else { return Vec::new() };
        let mut bytes = [0; 4096];
        let length = fifo.read(&mut bytes).unwrap_or(0);
        bytes[..length].chunks(384).map(shown).collect()
    }
}

/// One `struct init_request` in words.
fn shown(request: &[u8]) -> String {
    let number = |at: usize| i32::from_ne_bytes(request[at..at + 4].try_into().expect("an int"));
    let data = &request[16..];
    let text = data.split(|&byte| byte == 0).next().unwrap_or_default();
    let rest = &data[text.len()..];
    assert!(rest.iter().all(|&byte| byte == 0), "nothing behind the text");
    format!(
        "request of {} bytes: magic {:#010x} cmd {} runlevel {} data '{}'",
        request.len(),
        number(0),
        number(4),
        char::from(u8::try_from(number(8)).expect("a character")).escape_default(),
        String::from_utf8_lossy(text)
    )
}

/// What sysvinit must be sent: for a runlevel.
pub(crate) fn runlevel(level: u8) -> String {
    format!("request of 384 bytes: magic 0x03091969 cmd 1 runlevel {level} data ''")
}

/// What sysvinit must be sent first: what its halt is to be.
pub(crate) fn halt_is(value: &str) -> String {
    format!("request of 384 bytes: magic 0x03091969 cmd 6 runlevel \\u{{0}} data 'INIT_HALT={value}'")
}
