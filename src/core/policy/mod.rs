//! The policy: as written (TOML) → checked → what each process gets.
//!
//! `written` reads the files and reports every mistake with its place;
//! this file holds the checked form; [`rules`] answers questions about paths;
//! [`telling`] those about what may be told; [`parts`] cuts out what worker and opener need to know, and no more;
//! [`compare`] says what one policy allows more or less than another.
//!
//! Trust: policy files are trusted once their owner and mode were checked.

pub mod compare;
mod narrow;
pub mod parts;
pub mod rules;
pub mod telling;
pub mod written;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalogue::{Act, CommandSet};
pub use narrow::Narrowing;
use rules::FileRule;
use telling::Telling;

/// A checked policy. Everything in it is in range and canonical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// SHA-256 over the source files as read, in the order in which they merge.
    pub digest: [u8; 32],
    /// Commands that the host may use.
    pub commands: CommandSet,
    /// Those of them whose answers say little.
    pub redact: CommandSet,
    /// How much answers about the guest tell.
    pub facts: Telling,
    /// File rules, in the order of the files.
    pub files: Vec<FileRule>,
    /// Permission bits of a file that the host creates; the umask does not
    /// apply. Default 0600.
    pub create_mode: u32,
    /// Freezing.
    pub freeze: Freeze,
    /// Shutting down.
    pub shutdown: Shutdown,
    /// Limits on what one request may use.
    pub limits: Limits,
    /// A worker that holds files and says nothing for so long is replaced.
    pub hang: Duration,
    /// The audit log.
    pub audit: Audit,
    /// Accounts that the processes run as.
    pub identities: Identities,
    /// Where the host is met, unless the command line says otherwise.
    pub channel: Channel,
    /// Directory, best on a tmpfs, for what a restarted postern must know.
    pub state: PathBuf,
}

impl Policy {
    /// The broker's capabilities that this policy needs; see
    /// [`crate::confine::caps`] for the mapping.
    #[must_use]
    pub fn needs(&self, act: Act) -> bool {
        match act {
            Act::Shutdown => self.commands.needs_act(act) && !self.shutdown.modes.is_empty(),
            Act::Open => self.commands.needs_act(act) && !self.files.is_empty(),
            Act::Freeze | Act::Thaw | Act::Trim | Act::Suspend | Act::SetVcpus | Act::SetMemoryBlocks => {
                self.commands.needs_act(act)
            }
        }
    }
}

/// `[freeze]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freeze {
    /// The broker thaws by itself this long after a freeze began.
    pub limit: Duration,
}

/// What a host may ask `guest-shutdown` for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ShutdownMode {
    /// Stop and switch off. The default on the wire.
    Powerdown,
    /// Stop and stay on.
    Halt,
    /// Stop and start again.
    Reboot,
}

impl ShutdownMode {
    /// Every mode, by number.
    pub const ALL: [Self; 3] = [Self::Powerdown, Self::Halt, Self::Reboot];

    /// Name on the wire and in the policy.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Powerdown => "powerdown",
            Self::Halt => "halt",
            Self::Reboot => "reboot",
        }
    }

    /// The mode with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How the broker shuts the guest down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMethod {
    /// Ask init in its own way; refuse where init is unknown. The default.
    Init,
    /// `sync(2)`, then `reboot(2)`.
    Kernel,
    /// As `Init` where init is known, else as `Kernel`.
    Auto,
}

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Modes that the host may ask for, without repeats.
    pub modes: Vec<ShutdownMode>,
    /// How they are done.
    pub method: ShutdownMethod,
}

/// Most tokens of one request: stock's limit. With [`Limits::message`] it bounds
/// what a parsed request takes.
pub const TOKENS_MAX: u32 = 2 << 20;

/// `[limits]`. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request. Ceiling and default 64 MiB, as stock's token limit.
    pub message: u32,
    /// Deepest nesting of a request. Ceiling and default 1024, as stock.
    pub nesting: u32,
    /// Longest string in a request. Ceiling and default 64 MiB, as stock.
    pub string: u32,
    /// Largest `count` of one read. Ceiling and default 48 MiB, as stock.
    pub read: u32,
    /// Files open at once. Default 64, ceiling 1024.
    pub handles: u32,
    /// Requests of one command that are answered in a second. Default 100 000.
    pub requests: u32,
    /// Opens that are done in a second. Default 10 000.
    pub opens: u32,
    /// Freezes and shutdowns, each command for itself, that are begun in a
    /// second. Default 10.
    pub acts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: 64 << 20,
            nesting: 1024,
            string: 64 << 20,
            read: 48 << 20,
            handles: 64,
            requests: 100_000,
            opens: 10_000,
            acts: 10,
        }
    }
}

/// `[audit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The log file; its directory belongs to the broker's account.
    pub log: PathBuf,
    /// When the broker waits for the disk.
    pub fsync: Fsync,
    /// Size in bytes from which the broker rotates by itself; `None`: never.
    pub rotate_bytes: Option<u64>,
    /// Rotated files that the broker keeps.
    pub keep: usize,
    /// A rotated file whose last record is younger is never removed by the broker.
    pub keep_time: Duration,
    /// Bytes that the log and its rotated files may take together before opens
    /// are refused.
    pub max_bytes: u64,
    /// Where and how often the log's head is sent.
    pub heads: Heads,
}

impl Audit {
    /// The defaults of the key table, with this log.
    #[must_use]
    pub const fn at(log: PathBuf) -> Self {
        Self {
            log,
            fsync: Fsync::Never,
            rotate_bytes: None,
            keep: 16,
            keep_time: Duration::from_secs(30 * 24 * 60 * 60),
            max_bytes: 1 << 30,
            heads: Heads { journal: true, syslog: false, records: 1000, interval: Duration::from_secs(15 * 60) },
        }
    }
}

/// When records are forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before each open's effect and each descriptor that leaves.
    Open,
    /// Each record.
    Record,
    /// Never: the kernel writes them out in its own time. The default.
    Never,
}

impl Fsync {
    /// Its name in the policy.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Record => "record",
            Self::Never => "never",
        }
    }
}

/// Who else learns the number and the hash of the log's last record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    /// journald, by its native protocol.
    pub journal: bool,
    /// Whoever reads `/dev/log`.
    pub syslog: bool,
    /// After so many records.
    pub records: u64,
    /// So long after a record that no head told of yet.
    pub interval: Duration,
}

/// An account by name and number, looked up when the policy was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As written in the policy.
    pub name: String,
    /// User id, never 0.
    pub uid: u32,
    /// Primary group id, never 0.
    pub gid: u32,
}

/// `[identities]`. `None` where the account is missing and the caller did not
/// ask for it to be there (`policy check` as an ordinary user).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identities {
    /// Worker, opener and spawner.
    pub worker: Option<Account>,
    /// Broker.
    pub broker: Option<Account>,
    /// Supplementary groups of worker, opener and spawner.
    pub groups: Vec<u32>,
}

/// Where the host is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// A virtio-serial port, such as
    /// `/dev/virtio-ports/org.qemu.guest_agent.0`.
    VirtioSerial(PathBuf),
    /// A serial line, such as `/dev/ttyS0`, which postern puts into raw mode.
    IsaSerial(PathBuf),
    /// A unix socket that postern makes and listens on.
    UnixListen(PathBuf),
    /// A vsock port that postern listens on.
    VsockListen(Vsock),
}

/// Where postern listens on vsock, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vsock {
    /// Context id of the guest to listen as; [`Vsock::ANY`] for every one that
    /// it has.
    pub cid: u32,
    /// Port.
    pub port: u32,
    /// Context id that may connect: [`Vsock::HOST`] unless the policy says
    /// otherwise.
    pub peer: u32,
}

impl Vsock {
    /// `VMADDR_CID_ANY` of `linux/vm_sockets.h`; stock writes it -1.
    pub const ANY: u32 = u32::MAX;
    /// `VMADDR_CID_HOST` of `linux/vm_sockets.h`.
    pub const HOST: u32 = 2;

    /// `CID:PORT`, as stock's `--path` has it; only the host may connect.
    fn from_text(text: &str) -> Option<Self> {
        let (cid, port) = text.split_once(':')?;
        let cid = if cid == "-1" { Self::ANY } else { cid.parse().ok()? };
        Some(Self { cid, port: port.parse().ok()?, peer: Self::HOST })
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtioSerial(path) => write!(f, "virtio-serial:{}", path.display()),
            Self::IsaSerial(path) => write!(f, "isa-serial:{}", path.display()),
            Self::UnixListen(path) => write!(f, "unix-listen:{}", path.display()),
            Self::VsockListen(Vsock { cid: Vsock::ANY, port, .. }) => write!(f, "vsock-listen:-1:{port}"),
            Self::VsockListen(Vsock { cid, port, .. }) => write!(f, "vsock-listen:{cid}:{port}"),
        }
    }
}

impl Channel {
    /// The channel that `METHOD:PATH` names, as on the command line.
    ///
    /// # Errors
    /// A text for the operator that says what is wrong and what to write.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let Some((method, path)) = text.split_once(':') else {
            return Err(format!(
                "'{text}' is no channel; write METHOD:PATH, such as unix-listen:/run/postern/host.sock"
            ));
        };
        Self::new(method, PathBuf::from(path))
    }

    /// The path that must be there, or be free, for this channel.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::VirtioSerial(path) | Self::IsaSerial(path) | Self::UnixListen(path) => Some(path),
            Self::VsockListen(_) => None,
        }
    }

    /// The channel of a method and a path; of `vsock-listen` the path is
    /// `CID:PORT`.
    ///
    /// # Errors
    /// As [`Channel::from_text`].
    pub fn new(method: &str, path: PathBuf) -> Result<Self, String> {
        if method == "vsock-listen" {
            let vsock = path.to_str().and_then(Vsock::from_text).map(Self::VsockListen);
            return vsock.ok_or_else(|| {
                format!("'{}' is no vsock address; write CID:PORT, such as -1:1234 for port 1234", path.display())
            });
        }
        if !path.is_absolute() {
            return Err(format!("channel path '{}' is not absolute; write it from / on", path.display()));
        }
        match method {
            "virtio-serial" => Ok(Self::VirtioSerial(path)),
            "isa-serial" => Ok(Self::IsaSerial(path)),
            "unix-listen" => Ok(Self::UnixListen(path)),
            _ => Err(format!(
                "'{method}' is no channel method; postern has virtio-serial, isa-serial, unix-listen and vsock-listen"
            )),
        }
    }
}
