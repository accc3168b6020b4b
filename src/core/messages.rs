//! What postern's processes say to each other, as data.
//!
//! The worker *asks* ([`Ask`]), the broker *answers* ([`Answer`]). The opener
//! and the spawner are told ([`OpenerOrder`], [`SpawnerOrder`]) and report.
//! A worker waits for the answer to each ask that has one before it asks
//! again; the notes [`Answer::FreezeDone`], [`Answer::ThawDone`],
//! [`Answer::Channel`], [`Answer::Frozen`], [`Answer::Alive`] and those of an act's
//! end may come between.
//!
//! Trust: everything a worker says may be a lie; everything an opener says is
//! as good as its confinement; broker and spawner are believed.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::catalogue::facts::{Fact, FactSet};
use crate::catalogue::{Command, CommandSet};
use crate::ipc::{Bytes, List, Malformed, Reader, Wire, frames};
use crate::policy::parts::{OpenerPart, WorkerPart};
use crate::policy::rules::{FileRule, Mode, Rights, Types};
use crate::policy::telling::{self, Telling};
use crate::policy::{Limits, ShutdownMode};
use crate::sys::descriptors::{self, Stat};

/// Longest path in bytes, `PATH_MAX` of Linux without its final NUL.
pub const MAX_PATH: usize = 4095;
/// Longest text that one process gives another to show or to answer, in bytes.
pub const MAX_TEXT: usize = 1024;
/// Most mountpoints in one freeze list; 64 of the longest paths would not fit a
/// frame, but so many long ones do not exist.
pub const MAX_MOUNTPOINTS: usize = 256;

/// Most processors, or memory blocks, in one ask: more than the broker holds.
pub const MAX_SWITCHES: usize = 4096;
/// Most filesystems in one [`Answer::Trimmed`]; of more there are several.
pub const MAX_TRIMMED: usize = 256;

/// A path as it stands in frames.
pub type WirePath = Bytes<MAX_PATH>;
/// A text as it stands in frames.
pub type Text = Bytes<MAX_TEXT>;

impl<const MAX: usize> Bytes<MAX> {
    /// The bytes as a path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.as_slice()))
    }

    /// The path's bytes, if they fit.
    #[must_use]
    pub fn from_path(path: &Path) -> Option<Self> {
        Self::new(path.as_os_str().as_bytes())
    }
}

macro_rules! numbered {
    ($type:ty, $from:expr) => {
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(*self as u8);
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                let convert: fn(u8) -> Option<Self> = $from;
                convert(u8::take(from)?).ok_or(Malformed::Range)
            }
        }
    };
}

numbered!(Command, Command::from_number);
numbered!(Fact, Fact::from_number);
numbered!(Mode, |number| Mode::ALL.get(usize::from(number)).copied());
numbered!(ShutdownMode, |number| ShutdownMode::ALL.get(usize::from(number)).copied());

macro_rules! bits {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                self.bits().put(out);
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Self::from_bits(Wire::take(from)?).ok_or(Malformed::Range)
            }
        }
    )*};
}

bits!(Rights, Types, CommandSet, FactSet);

/// Declares a small enumeration and its numbers in frames.
macro_rules! choice {
    ($(#[$outer:meta])* pub enum $name:ident { $( $(#[$inner:meta])* $variant:ident ),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $( $(#[$inner])* $variant ),* }
        impl $name {
            /// Every value, by number.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),*];
        }
        numbered!($name, |number| $name::ALL.get(usize::from(number)).copied());
    };
}

/// Declares a structure and how it stands in frames: its fields in order.
macro_rules! record {
    ($(#[$outer:meta])* pub struct $name:ident { $( $(#[$doc:meta])* pub $field:ident : $kind:ty ),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $( $(#[$doc])* pub $field: $kind ),* }

        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $( self.$field.put(out); )*
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(Self { $( $field: Wire::take(from)? ),* })
            }
        }
    };
}

choice! {
    /// What `guest-fsfreeze-status` answers.
    pub enum FreezeState {
        /// Nothing is frozen.
        Thawed,
        /// Frozen, or being frozen or thawed.
        Frozen,
        /// Something frozen could not be thawed.
        Error,
    }
}

choice! {
    /// How the guest is to sleep.
    pub enum SuspendMode {
        /// Memory on disk, power off.
        Disk,
        /// Memory powered.
        Ram,
        /// Memory powered, and on disk for when power fails.
        Hybrid,
    }
}

impl SuspendMode {
    /// The command that asks for it.
    #[must_use]
    pub const fn command(self) -> Command {
        match self {
            Self::Disk => Command::SuspendDisk,
            Self::Ram => Command::SuspendRam,
            Self::Hybrid => Command::SuspendHybrid,
        }
    }
}

choice! {
    /// What became of a memory block, in stock's words.
    pub enum BlockResponse {
        /// It is as asked for.
        Success,
        /// There is none with this number.
        NotFound,
        /// It cannot be switched.
        NotSupported,
        /// The kernel refused.
        Failed,
    }
}

choice! {
    /// Why the worker refused a known command by itself.
    pub enum Denial {
        /// The policy does not allow it.
        Policy,
        /// It is not safe while frozen.
        WhileFrozen,
        /// postern does not offer it.
        NotOffered,
        /// No agent has it.
        Unknown,
    }
}

choice! {
    /// Who stopped an open.
    pub enum Barrier {
        /// The broker, by the policy's rules on the requested path.
        Broker,
        /// The opener, by the policy's rules on the opened object.
        Opener,
        /// The kernel: Landlock, or the permissions of the account.
        Kernel,
        /// The audit log, which could not take the record.
        Audit,
    }
}

choice! {
    /// A child that the spawner can start.
    pub enum Role {
        /// Opens files.
        Opener,
        /// Speaks with the host.
        Worker,
    }
}

choice! {
    /// How a channel behaves.
    pub enum ChannelKind {
        /// A stream socket: end of file means that the host is gone for good.
        Stream,
        /// A virtio-serial port: end of file means that no host is attached
        /// now.
        Port,
        /// A serial line: end of file means that it hung up for good.
        Serial,
    }
}

record! {
    /// What a child found of its own barriers.
    pub struct Standing {
        /// Landlock's ABI as enforced.
        pub landlock_abi: u8,
        /// Number of rules of its filter.
        pub filter_rules: u16,
        /// Digest of these rules; see `confine::seccomp::digest`.
        pub filter_digest: [u8; 32],
        /// Optional rules whose path was not there, by number.
        pub missing: List<u16, 1024>,
    }
}

record! {
    /// What the opener saw of an object, at the open.
    pub struct Facts {
        /// Path that the kernel resolved.
        pub path: WirePath,
        /// Device.
        pub device: u64,
        /// Inode.
        pub inode: u64,
        /// Type and permission bits.
        pub mode: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Size in bytes, after truncation.
        pub size: u64,
        /// Number of names.
        pub links: u64,
        /// Whether this open made the file.
        pub created: bool,
        /// The rule that allowed the resolved path.
        pub rule: u16,
    }
}

record! {
    /// What a worker says it did with a handle. Its own word.
    pub struct Use {
        /// Bytes read.
        pub read: u64,
        /// Bytes written.
        pub written: u64,
        /// Calls of read, write and seek.
        pub calls: u64,
    }
}

record! {
    /// What an object that was looked at has to show: it changes with the object's
    /// content, and when a name is taken from it.
    pub struct Stamp {
        /// When it was changed last, in seconds since 1970.
        pub seconds: i64,
        /// And nanoseconds; as exactly as its filesystem keeps them.
        pub nanoseconds: i64,
        /// Number of names.
        pub links: u64,
    }
}

impl Stamp {
    /// As it is now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn of(object: BorrowedFd<'_>) -> Result<Self, Errno> {
        let Stat { changed: (seconds, nanoseconds), links, .. } = descriptors::stat(object)?;
        Ok(Self { seconds, nanoseconds, links })
    }
}

record! {
    /// A processor or a memory block, and what it is to be.
    pub struct Switch {
        /// Its number; of a processor the bits of the host's signed one.
        pub number: u64,
        /// On, or off.
        pub online: bool,
    }
}

record! {
    /// What became of one filesystem of a trim.
    pub struct Trimmed {
        /// Where it is mounted.
        pub path: WirePath,
        /// What the kernel says, or else what hosts are told.
        pub done: Option<TrimmedBytes>,
        /// Why it was not trimmed; empty if it was.
        pub error: Text,
    }
}

record! {
    /// What the kernel says of a trim.
    pub struct TrimmedBytes {
        /// Bytes that were told to the disk.
        pub trimmed: u64,
        /// The shortest range of bytes that was told, as the kernel rounded it.
        pub minimum: u64,
    }
}

record! {
    /// What became of one memory block.
    pub struct BlockSet {
        /// Its number.
        pub number: u64,
        /// In stock's words.
        pub response: BlockResponse,
        /// The kernel's error number.
        pub errno: Option<i32>,
    }
}

impl Wire for Limits {
    fn put(&self, out: &mut Vec<u8>) {
        for limit in [self.message, self.nesting, self.string, self.read, self.handles] {
            limit.put(out);
        }
        for rate in [self.requests, self.opens, self.acts] {
            rate.put(out);
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            message: u32::take(from)?,
            nesting: u32::take(from)?,
            string: u32::take(from)?,
            read: u32::take(from)?,
            handles: u32::take(from)?,
            requests: u32::take(from)?,
            opens: u32::take(from)?,
            acts: u32::take(from)?,
        })
    }
}

/// The policy's checks hold what is put to the bounds.
impl Wire for Telling {
    fn put(&self, out: &mut Vec<u8>) {
        let patterns = self.interfaces.iter().take(telling::MAX_PATTERNS);
        let patterns = patterns.map(|pattern| Bytes::<{ telling::MAX_PATTERN }>::cut(pattern.as_bytes()));
        let mountpoints = self.mountpoints.iter().take(telling::MAX_MOUNTPOINTS);
        let mountpoints =
            mountpoints.map(|path| Bytes::<{ telling::MAX_MOUNTPOINT }>::cut(path.as_os_str().as_bytes()));
        let host_name = self.host_name.as_ref();
        let host_name = host_name.map(|name| Bytes::<{ telling::MAX_HOST_NAME }>::cut(name.as_bytes()));
        List::<_, { telling::MAX_PATTERNS }>::new(patterns.collect()).unwrap_or_default().put(out);
        List::<_, { telling::MAX_MOUNTPOINTS }>::new(mountpoints.collect()).unwrap_or_default().put(out);
        host_name.put(out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let patterns = List::<Bytes<{ telling::MAX_PATTERN }>, { telling::MAX_PATTERNS }>::take(from)?;
        let mountpoints = List::<Bytes<{ telling::MAX_MOUNTPOINT }>, { telling::MAX_MOUNTPOINTS }>::take(from)?;
        let host_name: Option<Bytes<{ telling::MAX_HOST_NAME }>> = Wire::take(from)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Range);
        Ok(Self {
            interfaces: patterns.as_slice().iter().map(|pattern| text(pattern.as_slice())).collect::<Result<_, _>>()?,
            mountpoints: mountpoints.as_slice().iter().map(|path| path.as_path().to_owned()).collect(),
            host_name: host_name.map(|name| text(name.as_slice())).transpose()?,
        })
    }
}

impl Wire for WorkerPart {
    fn put(&self, out: &mut Vec<u8>) {
        self.commands.put(out);
        self.redact.put(out);
        self.telling.put(out);
        self.limits.put(out);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            commands: Wire::take(from)?,
            redact: Wire::take(from)?,
            telling: Wire::take(from)?,
            limits: Wire::take(from)?,
        })
    }
}

frames! {
    /// Worker → broker.
    pub enum Ask {
        /// First: confined and ready for a channel.
        1 Ready { standing: Standing },
        /// Instead of the first: could not be confined.
        2 Unconfined { why: Text },
        /// Open a file. Answer: `Opened`, `NotOpened` or, where there are too
        /// many, `Refused`.
        3 Open { path: WirePath, mode: Mode },
        /// A handle was closed. No answer.
        4 Closed { handle: u64, used: Use },
        /// Freeze. Answer: `Begun` or `Refused`, and a `FreezeDone` later.
        5 Freeze { only: Option<List<WirePath, MAX_MOUNTPOINTS>> },
        /// Thaw. Answer: `Begun` or `Refused`, and a `ThawDone` later.
        6 Thaw {},
        /// Answer: `Status`.
        7 Status {},
        /// Shut down. Answer: `ShuttingDown` or `Refused`.
        8 Shutdown { mode: ShutdownMode },
        /// The host left; the channel's descriptor is closed. No answer.
        9 HostGone {},
        /// A known command was refused. No answer.
        10 Denied { command: Bytes<64>, why: Denial },
        /// How often the commands that are counted came since the last count.
        /// No answer.
        11 Counted { commands: List<Count, 64> },
        /// Last words of a worker that panicked or got no memory. No answer.
        12 Panicked { message: Text },
        /// The port was unplugged. No answer.
        13 PortGone {},
        /// The port as this worker, new and not confined yet, opened it at the
        /// broker's word. Before the first, and only then. No answer.
        14 Port {} + fd,
        /// Instead: why it could not, as an error number; the worker ends. No
        /// answer.
        15 NoPort { errno: i32 },
        /// To the note of the same name. No answer.
        16 Alive {},
        /// How many requests were refused for their number since the last such
        /// ask. No answer.
        17 Limited { commands: List<Count, 64> },
        /// Tell of the guest. Answer: `Kept`, `Gathered`, `Lasting` or
        /// `NotTold`.
        18 Fact { fact: Fact },
        /// Trim all local filesystems, of ranges of at least so many bytes. This
        /// and the next three: answer `Begun` or `Refused`; after the first, notes
        /// with what came of it, and `ActDone` or `ActFailed` last.
        30 Trim { minimum: u64 },
        /// Put the guest to sleep.
        31 Suspend { mode: SuspendMode },
        /// Switch processors on and off.
        32 SetVcpus { vcpus: List<Switch, MAX_SWITCHES> },
        /// Switch memory blocks on and off.
        33 SetMemoryBlocks { blocks: List<Switch, MAX_SWITCHES> },
    }
}

record! {
    /// How often a command came.
    pub struct Count {
        /// The command.
        pub command: Command,
        /// How often.
        pub times: u64,
    }
}

frames! {
    /// Broker → worker.
    pub enum Answer {
        /// First: the worker's part of the policy.
        1 Setup { part: WorkerPart, frozen: bool },
        /// A host is there. Note.
        2 Channel { kind: ChannelKind } + fd,
        /// The file, under a handle that was never used before.
        3 Opened { handle: u64 } + fd,
        /// The open failed with this error number.
        4 NotOpened { errno: i32 },
        /// The act has begun.
        5 Begun {},
        /// The act is refused; the text is for the host.
        6 Refused { why: Text },
        /// A freeze has ended: how many filesystems. Note.
        7 FreezeDone { count: u64 },
        /// A freeze has failed; all is thawed again. Note.
        8 FreezeFailed { why: Text },
        /// A thaw has ended: how many filesystems. Note.
        9 ThawDone { count: u64 },
        /// A thaw has failed. Note.
        10 ThawFailed { why: Text },
        /// What is frozen.
        11 Status { state: FreezeState },
        /// Shutting down; no reply is due to the host.
        12 ShuttingDown {},
        /// Only frozen-safe commands from now on, or all again. Note.
        13 Frozen { frozen: bool },
        /// Say `Counted`, then end. Note.
        14 End {},
        /// Before the first: open the port at this path, which was unplugged
        /// and is back, and say `Port` or `NoPort`. With a name: only if the
        /// kernel has that name for it.
        15 OpenPort { path: WirePath, name: Option<Text> },
        /// Say `Alive`, also in the midst of a long transfer. Note.
        16 Alive {},
        /// Another worker takes the host over: once no request is half read and
        /// no answer owed, say `Counted`, then end. Note.
        17 Retire {},
        /// Before the first, where the policy needs it: where the opener puts what
        /// it gathers, to read only.
        18 Memory {} + fd,
        /// So many bytes of it are what was asked for.
        19 Gathered { length: u32 },
        /// The file, to be kept and read again.
        20 Kept {} + fd,
        /// Before the first, where the policy needs it: the socket over which the
        /// kernel tells of the network.
        21 Network {} + fd,
        /// Nothing can be told: error number.
        22 NotTold { errno: i32 },
        /// As `Gathered`, and looks at the name and at the object that show when it
        /// is to be asked for again.
        23 Lasting { length: u32, name: Stamp, object: Stamp } + fds,
        /// What a trim has come to, or part of it. Note.
        30 Trimmed { filesystems: List<Trimmed, MAX_TRIMMED> },
        /// What became of the memory blocks. Note.
        31 BlocksSet { blocks: List<BlockSet, MAX_SWITCHES> },
        /// An act has ended: how many it was done to. Note.
        32 ActDone { count: u64 },
        /// An act has failed. Note.
        33 ActFailed { why: Text },
    }
}

frames! {
    /// Broker → opener.
    pub enum OpenerOrder {
        /// First: how many rules follow, the mode of created files, and what it may
        /// tell of the guest, of which filesystems.
        1 Setup { rules: u16, create_mode: u32, facts: FactSet, telling: Telling },
        /// One rule, with as many exceptions following.
        2 Rule { path: WirePath, rights: Rights, types: Types, optional: bool, except: u16 },
        /// One exception of the rule before.
        3 Except { path: WirePath },
        /// Open. Report: `Opened` or `NotOpened`.
        4 Open { id: u64, path: WirePath, mode: Mode },
        /// Before the first, where the policy needs it: where to put what it
        /// gathers.
        5 Memory {} + fd,
        /// Tell of the guest. Report: `Gathered`, `Lasting` or `NotTold`.
        6 Tell { id: u64, fact: Fact },
    }
}

frames! {
    /// Opener → broker.
    pub enum OpenerReport {
        /// Confined and ready.
        1 Ready { standing: Standing },
        /// Could not be confined.
        2 Unconfined { why: Text },
        /// The file, and a look at it (`O_PATH`) for the broker to keep.
        3 Opened { id: u64, facts: Facts } + fds,
        /// No file: error number, who stopped it, and the path that the
        /// kernel resolved, if it got so far.
        4 NotOpened { id: u64, errno: i32, by: Barrier, resolved: Option<WirePath> },
        /// Last words of an opener that panicked or got no memory.
        5 Panicked { message: Text },
        /// So many bytes of the memory are what was asked for; whether something
        /// is there that could not be opened.
        6 Gathered { id: u64, length: u32, denied: bool },
        /// As `Gathered`, all of it, and looks at the name and at the object.
        7 Lasting { id: u64, length: u32, name: Stamp, object: Stamp } + fds,
        /// Nothing: error number.
        8 NotTold { id: u64, errno: i32 },
    }
}

frames! {
    /// Broker → spawner.
    pub enum SpawnerOrder {
        /// First: how far to go, and what else than files its children may serve.
        1 Setup { identity: Option<Identity>, commands: CommandSet },
        /// Start a child with this socket.
        2 Spawn { role: Role, id: u32 } + fd,
        /// Kill a child.
        3 Kill { id: u32 },
    }
}

record! {
    /// Who the spawner and its children are to be.
    pub struct Identity {
        /// User.
        pub uid: u32,
        /// Primary group.
        pub gid: u32,
        /// Supplementary groups.
        pub groups: List<u32, 64>,
    }
}

frames! {
    /// Spawner → broker.
    pub enum SpawnerReport {
        /// Confined and ready.
        1 Ready { standing: Standing },
        /// Could not be confined.
        2 Unconfined { why: Text },
        /// The child is born.
        3 Spawned { id: u32 },
        /// It is not.
        4 NotSpawned { id: u32, errno: i32 },
        /// A child ended: exit status, or the signal that killed it.
        5 Died { id: u32, signal: Option<i32>, status: i32 },
        /// Last words of a spawner that panicked or got no memory.
        6 Panicked { message: Text },
    }
}

impl OpenerPart {
    /// The orders that tell an opener this part.
    ///
    /// # Errors
    /// The path that is too long for a frame; the policy's checks refuse such.
    pub fn orders(&self) -> Result<Vec<OpenerOrder>, PathBuf> {
        let wire = |path: &PathBuf| WirePath::from_path(path).ok_or_else(|| path.clone());
        let count = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let mut orders = vec![OpenerOrder::Setup {
            rules: count(self.rules.len()),
            create_mode: self.create_mode,
            facts: self.facts,
            telling: self.telling.clone(),
        }];
        for rule in &self.rules {
            orders.push(OpenerOrder::Rule {
                path: wire(&rule.path)?,
                rights: rule.rights,
                types: rule.types,
                optional: rule.optional,
                except: count(rule.except.len()),
            });
            for except in &rule.except {
                orders.push(OpenerOrder::Except { path: wire(except)? });
            }
        }
        Ok(orders)
    }

    /// The part that these orders tell: the reverse of [`Self::orders`].
    ///
    /// # Errors
    /// [`Malformed::Range`] if an order is out of place; what `next` fails with.
    pub fn from_orders<E: From<Malformed>>(mut next: impl FnMut() -> Result<OpenerOrder, E>) -> Result<Self, E> {
        let OpenerOrder::Setup { rules, create_mode, facts, telling } = next()? else {
            return Err(Malformed::Range.into());
        };
        let mut part = Self { rules: Vec::new(), create_mode, facts, telling };
        for _ in 0..rules {
            let OpenerOrder::Rule { path, rights, types, optional, except } = next()? else {
                return Err(Malformed::Range.into());
            };
            let mut rule = FileRule { path: path.as_path().to_owned(), rights, except: Vec::new(), optional, types };
            for _ in 0..except {
                let OpenerOrder::Except { path } = next()? else { return Err(Malformed::Range.into()) };
                rule.except.push(path.as_path().to_owned());
            }
            part.rules.push(rule);
        }
        Ok(part)
    }
}

/// How long the broker lets a child take for its first word.
pub const BIRTH_LIMIT: Duration = Duration::from_secs(10);
