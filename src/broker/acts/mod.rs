//! Acts that may take long and are neither freezes nor shutdowns: trimming,
//! putting the guest to sleep, switching processors and memory blocks.
//!
//! One thread does them, one at a time: a trim takes minutes, a block of memory
//! that is full too, and who asks for sleep is held until the guest wakes. The
//! broker's loop only asks and polls. What an act needs of sysfs is opened at the
//! start, as root, and only if the policy allows a command that needs it; the
//! broker has no right to open it later. So processors and memory blocks that are
//! plugged in afterwards are not known here until postern starts anew.
//!
//! Trust: takes its orders from the broker's loop, which has decided and recorded
//! before. Numbers in them are the host's, and are only looked up.

mod memory;
mod suspend;
mod trim;
mod vcpus;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use postern_core::catalogue::{Act, Command};
use postern_core::messages::{BlockSet, SuspendMode, Switch, Trimmed};
use postern_core::policy::Policy;

use crate::fsfreeze::{self, MountTable};
pub use memory::{Blocks, MOST_BLOCKS};
pub use suspend::Power;
pub use vcpus::{MOST_VCPUS, Vcpus};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Trim every local filesystem, ranges of at least so many bytes.
    Trim(u64),
    /// Put the guest to sleep.
    Suspend(SuspendMode),
    /// Switch processors, in this order, until one fails.
    SetVcpus(Vec<Switch>),
    /// Switch memory blocks, each whatever becomes of the others.
    SetMemoryBlocks(Vec<Switch>),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each filesystem, in the reverse order of the mount table.
    Trimmed(Vec<Trimmed>),
    /// The guest slept, and is awake again.
    Slept,
    /// So many processors are as asked for; the rest of the list was left.
    VcpusSet {
        /// From the list's beginning.
        count: u64,
        /// The rest.
        left: u64,
    },
    /// Each memory block, in the order of the list.
    BlocksSet(Vec<BlockSet>),
}

/// Why an act failed. The text is what hosts are told, and stock's where stock
/// has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Of a trim: the mount table could not be read.
    #[error("{0}")]
    Table(fsfreeze::Failure),
    /// Kernel or machine has no such sleep.
    #[error("the requested suspend mode is not supported by the guest")]
    Unsupported,
    /// The kernel did not put the guest to sleep.
    #[error("suspend: cannot write to '/sys/power/{file}': {}", fsfreeze::text(*.errno))]
    Suspend {
        /// The file that was written: `state`, or `disk` before it.
        file: &'static str,
        /// The system's word.
        errno: Errno,
    },
    /// Of processors: not there at postern's start.
    #[error("open(\"{}\"): No such file or directory", vcpus::directory(*.0))]
    NoVcpu(u64),
    /// Of processors: one beyond those that are held.
    #[error("logical processor #{number} is not among the first {most} of the guest, which alone can be switched", number = .0, most = vcpus::MOST_VCPUS)]
    VcpuBeyond(u64),
    /// Of processors: one that is always on.
    #[error("logical processor #{} can't be offlined", .0.cast_signed())]
    VcpuStays(u64),
    /// Of processors: the kernel did not say how one is, or did not switch it.
    #[error("{call}(\"{}/online\"): {}", vcpus::directory(*.number), fsfreeze::text(*.errno))]
    Vcpu {
        /// The call's name in stock.
        call: &'static str,
        /// Which.
        number: u64,
        /// The system's word.
        errno: Errno,
    },
    /// This broker was not started for it.
    #[error("not possible: postern was started under a policy without it")]
    NoMeans,
}

impl Failure {
    /// The system's word, if it had one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Table(failure) => failure.errno(),
            Self::Suspend { errno, .. } | Self::Vcpu { errno, .. } => Some(*errno),
            Self::NoVcpu(_) => Some(Errno::ENOENT),
            Self::Unsupported | Self::VcpuBeyond(_) | Self::VcpuStays(_) | Self::NoMeans => None,
        }
    }
}

/// What the acts of a policy take, opened at the start.
#[derive(Debug, Default)]
pub struct Means {
    trim: Option<MountTable>,
    power: Option<Power>,
    vcpus: Option<Vcpus>,
    blocks: Option<Blocks>,
}

impl Means {
    /// Opens what `policy` needs. As root, before confinement. `sys` is `/sys`.
    /// What the kernel does not have is left out, and its acts fail as in stock.
    ///
    /// # Errors
    /// The mount table, or a directory of sysfs that is there, cannot be read.
    pub fn open(policy: &Policy, sys: &Path) -> io::Result<Self> {
        let devices = sys.join("devices/system");
        Ok(Self {
            trim: policy.needs(Act::Trim).then(MountTable::open).transpose()?,
            power: policy.needs(Act::Suspend).then(|| Power::open(policy, &sys.join("power"))).transpose()?,
            vcpus: policy.needs(Act::SetVcpus).then(|| Vcpus::open(&devices.join("cpu"))).transpose()?,
            blocks: policy.needs(Act::SetMemoryBlocks).then(|| Blocks::open(&devices.join("memory"))).transpose()?,
        })
    }

    /// Whether it is there for anything.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.trim.is_none() && self.power.is_none() && self.vcpus.is_none() && self.blocks.is_none()
    }

    /// Memory blocks that there were too many of to be held.
    #[must_use]
    pub fn blocks_left_out(&self) -> usize {
        self.blocks.as_ref().map_or(0, Blocks::left_out)
    }

    fn act(&self, order: &Order) -> Result<Outcome, Failure> {
        match order {
            Order::Trim(minimum) => trim::trim(self.trim.as_ref().ok_or(Failure::NoMeans)?, *minimum),
            Order::Suspend(mode) => self.power.as_ref().ok_or(Failure::NoMeans)?.suspend(*mode),
            Order::SetVcpus(list) => self.vcpus.as_ref().ok_or(Failure::NoMeans)?.set(list),
            Order::SetMemoryBlocks(list) => Ok(self.blocks.as_ref().ok_or(Failure::NoMeans)?.set(list)),
        }
    }
}

/// The thread that acts, and the way to it.
#[derive(Debug)]
pub struct Acts {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ended: Mutex<Option<Result<Outcome, Failure>>>,
    signal: EventFd,
}

impl Acts {
    /// Starts the thread. When to call this: as [`crate::fsfreeze::Engine::start`].
    ///
    /// # Errors
    /// No thread or no descriptor can be had.
    pub fn start(means: Means) -> io::Result<Self> {
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared { ended: Mutex::new(None), signal });
        let (orders, taken) = mpsc::channel::<Order>();
        let (running, runs) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        // Signals are the loop's; the thread inherits the mask.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let started = thread::Builder::new().name("acts".to_owned()).stack_size(256 << 10).spawn(move || {
            let _ = running.send(());
            for order in taken {
                let ended = means.act(&order);
                *theirs.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
                // The counter is far from full, and full would be readable too.
                let _ = theirs.signal.write(1);
            }
        });
        mask.thread_set_mask()?;
        started?;
        // Its first steps must be over before the filter comes.
        let _ = runs.recv();
        Ok(Self { orders, shared })
    }

    /// Has it done. The caller waits for [`Acts::ended`] before the next one.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn begin(&self, order: Order) -> Result<(), Failure> {
        self.orders.send(order).map_err(|_| Failure::NoMeans)
    }

    /// Readable when [`Acts::ended`] has something.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }

    /// What came of the act that was begun last, once.
    #[must_use]
    pub fn ended(&self) -> Option<Result<Outcome, Failure>> {
        // First the counter, then the result: one that comes between is in both.
        let _ = self.shared.signal.read();
        self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Opens a file of sysfs to read and switch it; `None` where there is none, or none
/// that root may switch, as in a container.
fn open_switch(path: &Path) -> io::Result<Option<File>> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(why) => match fsfreeze::errno(&why) {
            Errno::ENOENT | Errno::EACCES | Errno::EPERM | Errno::EROFS => Ok(None),
            _ => Err(why),
        },
    }
}

/// What a file of sysfs says now, of short ones: from its beginning, for there it
/// is made anew.
fn read_now(file: &File) -> Result<String, Errno> {
    let mut bytes = [0; 256];
    let count = file.read_at(&mut bytes, 0).map_err(|why| fsfreeze::errno(&why))?;
    Ok(String::from_utf8_lossy(&bytes[..count]).trim_ascii().to_owned())
}

/// Tells a file of sysfs a word, which it takes whole wherever it is written.
fn tell(mut file: &File, word: &str) -> Result<(), Errno> {
    file.write_all(word.as_bytes()).map_err(|why| fsfreeze::errno(&why))
}

/// The numbered directories of a directory of sysfs, such as `cpu0`, with their
/// numbers, in order. None where the kernel has no such directory at all.
fn numbered(directory: &Path, prefix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digits = name.strip_prefix(prefix).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether a policy allows one of the sleeps that go through the disk's file.
fn sleeps_on_disk(policy: &Policy) -> bool {
    [Command::SuspendDisk, Command::SuspendHybrid].into_iter().any(|command| policy.commands.contains(command))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use postern_core::policy::written::{World, load_embedded};

    /// A policy that allows these.
    pub(super) fn policy(commands: &[Command]) -> Policy {
        let names: Vec<String> = commands.iter().map(|command| format!("\"{command}\"")).collect();
        let text = format!("version = 1\n[commands]\nallow = [{}]\n", names.join(", "));
        load_embedded("test", &text, &World::elsewhere()).expect("a policy").policy
    }

    #[test]
    fn what_the_policy_does_not_name_is_not_opened() {
        let sys = tempfile::tempdir().unwrap();
        for (directory, file) in [("power", "state"), ("devices/system/cpu/cpu1", "online")] {
            fs::create_dir_all(sys.path().join(directory)).unwrap();
            fs::write(sys.path().join(directory).join(file), "").unwrap();
        }
        let open = |commands: &[Command]| Means::open(&policy(commands), sys.path()).unwrap();
        assert!(open(&[Command::Ping, Command::FsfreezeThaw, Command::FsfreezeFreeze]).is_empty());
        let orders = [
            (Command::Fstrim, Order::Trim(u64::MAX)),
            (Command::SuspendRam, Order::Suspend(SuspendMode::Ram)),
            (Command::SetVcpus, Order::SetVcpus(Vec::new())),
            (Command::SetMemoryBlocks, Order::SetMemoryBlocks(Vec::new())),
        ];
        for (allowed, _) in &orders {
            let means = open(&[*allowed]);
            assert!(!means.is_empty());
            for (command, order) in orders.iter().filter(|(command, _)| *command != Command::Fstrim) {
                let done = means.act(order);
                assert_eq!(done == Err(Failure::NoMeans), command != allowed, "{command} with {allowed}: {done:?}");
            }
            assert_eq!(means.trim.is_some(), *allowed == Command::Fstrim);
        }
    }

    #[test]
    fn an_act_is_done_elsewhere_and_told_of_once() {
        let sys = tempfile::tempdir().unwrap();
        let acts = Acts::start(Means::open(&policy(&[Command::SetVcpus]), sys.path()).unwrap()).unwrap();
        for _ in 0..3 {
            assert_eq!(acts.ended(), None);
            acts.begin(Order::SetVcpus(Vec::new())).unwrap();
            let started = Instant::now();
            let ended = loop {
                if let Some(ended) = acts.ended() {
                    break ended;
                }
                assert!(started.elapsed() < Duration::from_secs(30));
                thread::sleep(Duration::from_millis(1));
            };
            assert_eq!(ended, Ok(Outcome::VcpusSet { count: 0, left: 0 }));
        }
        acts.begin(Order::Trim(0)).unwrap();
    }
}
