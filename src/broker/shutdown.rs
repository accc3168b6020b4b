//! Stopping the guest: by asking init in its own way, or, where the policy
//! says so, the kernel.
//!
//! [`plan`] is pure and decides; [`Shutdown::act`] does it. What can ever be
//! needed follows from policy and init and is there as data ([`signals`],
//! [`reboot_commands`]) for the filter and the capability set.
//!
//! Trust: policy and the recognised init; of the host only one of three modes.
//! Called by the broker alone. Process 1 is the only one that is ever signalled.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::sync;
use postern_core::confine::caps::Asked;
use postern_core::policy::{self, ShutdownMethod, ShutdownMode};
use postern_core::sys::init::{self, SIGRTMIN};
use postern_core::sys::process;

/// Which init runs as process 1, as far as it can be asked to stop the guest.
#[derive(Debug)]
pub enum Init {
    /// systemd, which takes real-time signals: systemd(1), "Signals".
    Systemd,
    /// busybox init, which takes classic signals: `init/init.c` of busybox.
    Busybox,
    /// System V init, which takes requests through a FIFO, held open here.
    Sysvinit(File),
    /// Another one, or none that we may look at.
    Unknown,
}

impl Init {
    /// Looks which init runs. As root, before confinement. `proc` is `/proc`,
    /// `run` is `/run`, `dev` is `/dev`.
    #[must_use]
    pub fn recognise(proc: &Path, run: &Path, dev: &Path) -> Self {
        let comm = fs::read(proc.join("1/comm")).unwrap_or_default();
        // sd_booted(3) looks for the directory too. systemd also offers
        // sysvinit's FIFO, so it is looked for first.
        if run.join("systemd/system").is_dir() || comm.trim_ascii() == b"systemd" {
            return Self::Systemd;
        }
        let program = fs::read_link(proc.join("1/exe")).unwrap_or_default();
        if program.file_name().is_some_and(|name| name == "busybox") || comm.trim_ascii() == b"busybox" {
            return Self::Busybox;
        }
        [run, dev].iter().find_map(|dir| open_fifo(&dir.join("initctl"))).map_or(Self::Unknown, Self::Sysvinit)
    }

    /// Its name for log, record and `explain`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Busybox => "busybox",
            Self::Sysvinit(_) => "sysvinit",
            Self::Unknown => "unknown",
        }
    }

    /// How it takes a wish to shut down.
    #[must_use]
    pub const fn asked(&self) -> Asked {
        match self {
            Self::Systemd | Self::Busybox => Asked::BySignal,
            Self::Sysvinit(_) => Asked::ByFifo,
            Self::Unknown => Asked::InNoWay,
        }
    }

    /// The signal that asks for a mode, if this init takes signals.
    const fn signal(&self, mode: ShutdownMode) -> Option<i32> {
        match (self, mode) {
            (Self::Systemd, ShutdownMode::Halt) => Some(SIGRTMIN + 3),
            (Self::Systemd, ShutdownMode::Powerdown) => Some(SIGRTMIN + 4),
            (Self::Systemd, ShutdownMode::Reboot) => Some(SIGRTMIN + 5),
            (Self::Busybox, ShutdownMode::Halt) => Some(Signal::SIGUSR1 as i32),
            (Self::Busybox, ShutdownMode::Powerdown) => Some(Signal::SIGUSR2 as i32),
            (Self::Busybox, ShutdownMode::Reboot) => Some(Signal::SIGTERM as i32),
            (Self::Sysvinit(_) | Self::Unknown, _) => None,
        }
    }
}

/// Opens a FIFO that somebody reads; without a reader it is a leftover.
fn open_fifo(path: &Path) -> Option<File> {
    let file = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).ok()?;
    file.metadata().ok()?.file_type().is_fifo().then_some(file)
}

/// What is done to stop the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Send process 1 this signal.
    Signal(i32),
    /// Write [`requests`] of this mode into sysvinit's FIFO.
    Fifo(ShutdownMode),
    /// `sync(2)`, then `reboot(2)`.
    Kernel(ShutdownMode),
}

/// Why a shutdown is not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The policy does not list the mode.
    #[error("the policy does not allow the mode '{}'; list it in [shutdown] modes", .0.name())]
    Mode(ShutdownMode),
    /// The policy wants init asked, and it is none that we know.
    #[error("init is none of systemd, sysvinit and busybox; set [shutdown] method = \"kernel\" or \"auto\"")]
    UnknownInit,
}

/// Decides how a mode is done, if at all.
pub fn plan(mode: ShutdownMode, policy: &policy::Shutdown, init: &Init) -> Result<Act, Refusal> {
    if !policy.modes.contains(&mode) {
        return Err(Refusal::Mode(mode));
    }
    match (policy.method, init) {
        (ShutdownMethod::Kernel, _) | (ShutdownMethod::Auto, Init::Unknown) => Ok(Act::Kernel(mode)),
        (ShutdownMethod::Init, Init::Unknown) => Err(Refusal::UnknownInit),
        (ShutdownMethod::Init | ShutdownMethod::Auto, Init::Sysvinit(_)) => Ok(Act::Fifo(mode)),
        (ShutdownMethod::Init | ShutdownMethod::Auto, Init::Systemd | Init::Busybox) => {
            init.signal(mode).map(Act::Signal).ok_or(Refusal::UnknownInit)
        }
    }
}

fn acts<'a>(policy: &'a policy::Shutdown, init: &'a Init) -> impl Iterator<Item = Act> + 'a {
    ShutdownMode::ALL.into_iter().filter_map(move |mode| plan(mode, policy, init).ok())
}

/// Every signal that may go to process 1. Empty: no `CAP_KILL`, no `kill`.
#[must_use]
pub fn signals(policy: &policy::Shutdown, init: &Init) -> Vec<i32> {
    acts(policy, init).filter_map(|act| if let Act::Signal(signal) = act { Some(signal) } else { None }).collect()
}

/// Every command that may go to `reboot(2)`, as its third argument. Empty: no
/// `CAP_SYS_BOOT`, no `reboot`, no `sync`.
#[must_use]
pub fn reboot_commands(policy: &policy::Shutdown, init: &Init) -> Vec<i32> {
    acts(policy, init)
        .filter_map(|act| if let Act::Kernel(mode) = act { Some(reboot_command(mode)) } else { None })
        .collect()
}

/// The descriptor that shutting down may write to: sysvinit's FIFO, unless the
/// policy never asks init.
#[must_use]
pub fn fifo<'a>(policy: &policy::Shutdown, init: &'a Init) -> Option<BorrowedFd<'a>> {
    match init {
        Init::Sysvinit(fifo) if acts(policy, init).any(|act| matches!(act, Act::Fifo(_))) => Some(fifo.as_fd()),
        _ => None,
    }
}

/// `LINUX_REBOOT_CMD_*` of linux/reboot.h.
const fn reboot_command(mode: ShutdownMode) -> i32 {
    let command: u32 = match mode {
        ShutdownMode::Halt => 0xCDEF_0123,
        ShutdownMode::Powerdown => 0x4321_FEDC,
        ShutdownMode::Reboot => 0x0123_4567,
    };
    command.cast_signed()
}

/// Size of sysvinit's `struct init_request`, in bytes: four ints and 368 bytes
/// of data. This and the numbers below: sysvinit's `initreq.h`.
pub const REQUEST: usize = 384;

const MAGIC: i32 = 0x0309_1969;
const CMD_RUNLVL: i32 = 1;
const CMD_SETENV: i32 = 6;
/// Seconds between SIGTERM and SIGKILL, `telinit`'s classic default.
const SLEEPTIME: i32 = 5;

/// What is written into sysvinit's FIFO, one request after another: a change
/// to runlevel 6 or 0. For 0 the halt script learns from init's
/// variable `INIT_HALT` whether to switch off, as `shutdown -P` and `-H` set it.
#[must_use]
pub fn requests(mode: ShutdownMode) -> Vec<u8> {
    let (halt, runlevel) = match mode {
        ShutdownMode::Halt => (Some("INIT_HALT=HALT"), b'0'),
        ShutdownMode::Powerdown => (Some("INIT_HALT=POWEROFF"), b'0'),
        ShutdownMode::Reboot => (None, b'6'),
    };
    let mut bytes = Vec::with_capacity(2 * REQUEST);
    if let Some(variable) = halt {
        bytes.extend(request(CMD_SETENV, 0, 0, variable));
    }
    bytes.extend(request(CMD_RUNLVL, i32::from(runlevel), SLEEPTIME, ""));
    bytes
}

fn request(command: i32, runlevel: i32, sleeptime: i32, data: &str) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    for (at, number) in [MAGIC, command, runlevel, sleeptime].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes[16..16 + data.len()].copy_from_slice(data.as_bytes());
    bytes
}

/// Init, and the thread that asks the kernel where that may be.
#[derive(Debug)]
pub struct Shutdown {
    policy: policy::Shutdown,
    init: Init,
    kernel: Option<mpsc::Sender<ShutdownMode>>,
    /// Signals and commands that the filter was made for.
    means: (Vec<i32>, Vec<i32>),
}

impl Shutdown {
    /// Starts the helper thread if `reboot(2)` may ever be needed. When to call
    /// this: as [`crate::fsfreeze::Engine::start`].
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(policy: policy::Shutdown, init: Init) -> io::Result<Self> {
        let means = (signals(&policy, &init), reboot_commands(&policy, &init));
        let kernel = if means.1.is_empty() { None } else { Some(start_kernel()?) };
        Ok(Self { policy, init, kernel, means })
    }

    /// Whether `policy` takes nothing of this process that the one of the start
    /// did not.
    #[must_use]
    pub fn fits(&self, policy: &policy::Shutdown) -> bool {
        let within = |all: &[i32], some: &[i32]| some.iter().all(|one| all.contains(one));
        within(&self.means.0, &signals(policy, &self.init))
            && within(&self.means.1, &reboot_commands(policy, &self.init))
    }

    /// From now on decides by this policy, which fits.
    pub fn adopt(&mut self, policy: policy::Shutdown) {
        self.policy = policy;
    }

    /// Decides; see [`plan`].
    pub fn plan(&self, mode: ShutdownMode) -> Result<Act, Refusal> {
        plan(mode, &self.policy, &self.init)
    }

    /// Does it and returns at once: init takes its time, and so may `sync(2)`.
    ///
    /// # Errors
    /// Init could not be asked: the system's word. `reboot(2)` failing is not
    /// told; nothing then happens.
    pub fn act(&self, act: Act) -> io::Result<()> {
        match (act, &self.init, &self.kernel) {
            (Act::Signal(signal), ..) => Ok(init::signal(signal)?),
            // At most 768 bytes, and a pipe takes 4096 whole or not at all.
            (Act::Fifo(mode), Init::Sysvinit(fifo), _) => {
                let mut fifo = fifo;
                fifo.write_all(&requests(mode))
            }
            (Act::Kernel(mode), _, Some(kernel)) => {
                kernel.send(mode).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            }
            (Act::Fifo(_) | Act::Kernel(_), ..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Starts the thread that may block in `sync(2)`. It has no way back: after
/// `reboot(2)` there is nobody to tell.
fn start_kernel() -> io::Result<mpsc::Sender<ShutdownMode>> {
    let (order, orders) = mpsc::channel();
    let (running, runs) = mpsc::channel();
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = thread::Builder::new().name("shutdown".to_owned()).stack_size(64 << 10).spawn(move || {
        let _ = running.send(());
        for mode in orders {
            sync();
            let _ = process::reboot(reboot_command(mode));
        }
    });
    mask.thread_set_mask()?;
    started?;
    let _ = runs.recv();
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ShutdownMethod::{Auto, Init as Ask, Kernel};
    use ShutdownMode::{Halt, Powerdown, Reboot};

    fn policy(method: ShutdownMethod, modes: &[ShutdownMode]) -> policy::Shutdown {
        policy::Shutdown { modes: modes.to_vec(), method }
    }

    fn fifo_in(dir: &Path) -> (File, File) {
        let path = dir.join("initctl");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
        (reader, open_fifo(&path).unwrap())
    }

    #[test]
    fn every_method_init_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (_reader, fifo) = fifo_in(dir.path());
        let inits = [Init::Systemd, Init::Busybox, Init::Sysvinit(fifo), Init::Unknown];
        let signal = [[38, 37, 39], [12, 10, 15]];
        for method in [Ask, Kernel, Auto] {
            for (number, init) in inits.iter().enumerate() {
                for (at, mode) in [Powerdown, Halt, Reboot].into_iter().enumerate() {
                    let found = plan(mode, &policy(method, &[Powerdown, Halt, Reboot]), init).ok();
                    let wanted = match (method, number) {
                        (Kernel, _) | (Auto, 3) => Some(Act::Kernel(mode)),
                        (_, 0 | 1) => Some(Act::Signal(signal[number][at])),
                        (_, 2) => Some(Act::Fifo(mode)),
                        _ => None,
                    };
                    assert_eq!(found, wanted, "{method:?} {} {mode:?}", init.name());
                    let none = plan(mode, &policy(method, &[]), init);
                    assert!(matches!(none, Err(Refusal::Mode(refused)) if refused == mode));
                }
            }
        }
    }

    #[test]
    fn only_what_the_policy_lists_is_ever_needed() {
        assert_eq!(signals(&policy(Ask, &[Reboot]), &Init::Systemd), [39]);
        assert_eq!(signals(&policy(Auto, &[Powerdown, Halt]), &Init::Busybox), [12, 10]);
        assert_eq!(signals(&policy(Kernel, &[Powerdown]), &Init::Systemd), [0; 0]);
        assert_eq!(
            reboot_commands(&policy(Kernel, &[Powerdown, Halt, Reboot]), &Init::Systemd),
            [0x4321_FEDC, 0xCDEF_0123_u32.cast_signed(), 0x0123_4567]
        );
        assert_eq!(reboot_commands(&policy(Auto, &[Powerdown]), &Init::Systemd), [0; 0]);
        assert_eq!(reboot_commands(&policy(Auto, &[Powerdown]), &Init::Unknown), [0x4321_FEDC]);
        assert_eq!(reboot_commands(&policy(Ask, &[Powerdown]), &Init::Unknown), [0; 0]);
        assert_eq!(reboot_commands(&policy(Kernel, &[]), &Init::Unknown), [0; 0]);
    }

    #[test]
    fn the_fifo_is_needed_only_to_ask_sysvinit() {
        let dir = tempfile::tempdir().unwrap();
        let (_reader, fifo_file) = fifo_in(dir.path());
        let init = Init::Sysvinit(fifo_file);
        assert!(fifo(&policy(Ask, &[Halt]), &init).is_some());
        assert!(fifo(&policy(Kernel, &[Halt]), &init).is_none());
        assert!(fifo(&policy(Ask, &[]), &init).is_none());
        assert!(fifo(&policy(Ask, &[Halt]), &Init::Systemd).is_none());
        assert!(signals(&policy(Ask, &[Halt]), &init).is_empty());
    }

    #[test]
    fn recognises_each_init_by_its_marks() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, run, dev) = (dir.path().join("proc"), dir.path().join("run"), dir.path().join("dev"));
        for dir in [&proc.join("1"), &run, &dev] {
            fs::create_dir_all(dir).unwrap();
        }
        let found = || Init::recognise(&proc, &run, &dev).name();
        fs::write(proc.join("1/comm"), "init\n").unwrap();
        fs::write(run.join("initctl"), "not a FIFO").unwrap();
        assert_eq!(found(), "unknown");
        let (reader, _writer) = fifo_in(&dev);
        assert_eq!(found(), "sysvinit");
        drop(reader);
        assert_eq!(found(), "unknown", "a FIFO that nobody reads");
        let _reader = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(dev.join("initctl"));
        std::os::unix::fs::symlink("/bin/busybox", proc.join("1/exe")).unwrap();
        assert_eq!(found(), "busybox");
        fs::write(proc.join("1/comm"), "systemd\n").unwrap();
        assert_eq!(found(), "systemd");
        fs::write(proc.join("1/comm"), "init\n").unwrap();
        fs::create_dir_all(run.join("systemd/system")).unwrap();
        assert_eq!(found(), "systemd");
    }

    #[test]
    fn requests_have_sysvinits_form() {
        let bytes = requests(Powerdown);
        assert_eq!(bytes.len(), 2 * REQUEST);
        let int = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([int(0), int(4), int(8), int(12)], [0x0309_1969, 6, 0, 0]);
        assert!(bytes[16..].starts_with(b"INIT_HALT=POWEROFF\0\0"));
        assert_eq!([int(384), int(388), int(392), int(396)], [0x0309_1969, 1, i32::from(b'0'), 5]);
        assert!(requests(Halt)[16..].starts_with(b"INIT_HALT=HALT\0\0"));
        let bytes = requests(Reboot);
        assert_eq!((bytes.len(), bytes[4], bytes[8]), (REQUEST, 1, b'6'));
    }
}
