//! The catalogue: every QGA command of Linux hosts, once, as data.
//!
//! Capability sets, seccomp filters, Landlock rulesets, `guest-info`,
//! `postern policy explain` and the README's command table are computed from
//! this table and the policy; nothing else in the tree lists commands.
//!
//! Trust: plain data, no input. Anyone may read it.
//! Source of names, arguments and silence on success: the QGA schema of
//! QEMU 10.2 (interface facts; the 0.15 schema's fourteen are all here).

pub mod facts;
pub mod redaction;
mod set;

use std::fmt;

use facts::Fact;
pub use redaction::Redaction;
pub use set::CommandSet;

/// The JSON type that an argument takes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON integer that fits a signed 64-bit number.
    Int,
    /// A JSON string.
    Str,
    /// `true` or `false`.
    Bool,
    /// An array of strings.
    StrList,
    /// Where a seek starts from: an integer 0 to 2, or "set", "cur", "end".
    Whence,
    /// A whole number that fits 64 bits, with or without sign; a negative one
    /// stands for the unsigned one of the same bits.
    Uint,
    /// An array of objects with these members.
    List(&'static [Arg]),
}

/// One argument of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// Name on the wire.
    pub name: &'static str,
    /// JSON type.
    pub kind: Kind,
    /// Whether a request may leave it out.
    pub optional: bool,
}

const fn must(name: &'static str, kind: Kind) -> Arg {
    Arg { name, kind, optional: false }
}

const fn may(name: &'static str, kind: Kind) -> Arg {
    Arg { name, kind, optional: true }
}

/// What only the broker does, on the worker's asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Open a file of the policy through the opener.
    Open,
    /// Freeze filesystems (`FIFREEZE`).
    Freeze,
    /// Thaw filesystems (`FITHAW`).
    Thaw,
    /// Ask init, or the kernel, to power down, halt or reboot.
    Shutdown,
    /// Tell disks which blocks no filesystem uses (`FITRIM`).
    Trim,
    /// Put the guest to sleep, through `/sys/power`.
    Suspend,
    /// Switch processors on and off, through `/sys/devices/system/cpu`.
    SetVcpus,
    /// Switch memory blocks on and off, through `/sys/devices/system/memory`.
    SetMemoryBlocks,
}

/// A system call that the worker itself needs for a command, beyond what
/// reading the channel and asking the broker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `read` on a descriptor it was handed.
    Read,
    /// `write` on a descriptor it was handed.
    Write,
    /// `lseek` on a descriptor it was handed.
    Seek,
    /// `uname`: the kernel's release and the host's name.
    Uname,
}

/// What a command needs; empty means nothing but the worker's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Broker acts. Capabilities follow from these and the policy.
    pub acts: &'static [Act],
    /// The worker's own system calls.
    pub calls: &'static [Call],
    /// Whether it reaches paths, so that file rules apply.
    pub paths: bool,
    /// What it tells of the guest.
    pub facts: &'static [Fact],
}

const NOTHING: Needs = Needs { acts: &[], calls: &[], paths: false, facts: &[] };

/// How a command shows in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Counted, not listed: it touches nothing and comes every few seconds.
    Counted,
    /// One record or more per request, denied ones too.
    Recorded,
    /// Summed up in the record of the file's close (offsets, byte counts).
    AtClose,
}

/// How often a command may come; the numbers are the policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// As often as it comes. A host that is refused an answer to these knows
    /// neither whether the guest lives nor how it stands, or cannot thaw it; and
    /// none of them costs more than its own reply.
    Unlimited,
    /// `limits.requests`, by the worker.
    Requests,
    /// `limits.opens`, by the broker.
    Opens,
    /// `limits.acts`, by the broker.
    Acts,
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which command; `None` for a stock command that postern does not offer.
    pub command: Option<Command>,
    /// Name on the wire.
    pub name: &'static str,
    /// Arguments in the schema's order, which is the order of error reports.
    pub args: &'static [Arg],
    /// Whether it is answered while filesystems are frozen.
    pub frozen_safe: bool,
    /// Whether success sends no reply (`success-response: false`).
    pub silent: bool,
    /// What it needs.
    pub needs: Needs,
    /// How it is audited.
    pub audit: Audit,
    /// How often it may come.
    pub rate: Rate,
    /// One line for people.
    pub summary: &'static str,
    /// Why postern will not offer it; `None` for what it does, or may yet.
    pub by_design: Option<&'static str>,
}

impl Entry {
    const fn offered(command: Command, name: &'static str, summary: &'static str) -> Self {
        Self {
            command: Some(command),
            name,
            args: &[],
            frozen_safe: false,
            silent: false,
            needs: NOTHING,
            audit: Audit::Recorded,
            rate: Rate::Requests,
            summary,
            by_design: None,
        }
    }

    const fn not_offered(name: &'static str) -> Self {
        Self {
            command: None,
            name,
            args: &[],
            frozen_safe: false,
            silent: false,
            needs: NOTHING,
            audit: Audit::Recorded,
            rate: Rate::Requests,
            summary: "known, not offered",
            by_design: None,
        }
    }

    const fn by_design(name: &'static str, why: &'static str) -> Self {
        let mut entry = Self::not_offered(name);
        entry.by_design = Some(why);
        entry
    }

    const fn args(mut self, args: &'static [Arg]) -> Self {
        self.args = args;
        self
    }

    const fn frozen_safe(mut self) -> Self {
        self.frozen_safe = true;
        self
    }

    const fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    const fn acts(mut self, acts: &'static [Act]) -> Self {
        self.needs.acts = acts;
        self
    }

    const fn calls(mut self, calls: &'static [Call]) -> Self {
        self.needs.calls = calls;
        self
    }

    const fn paths(mut self) -> Self {
        self.needs.paths = true;
        self
    }

    /// One that tells of the guest: counted, for it comes every few seconds; what
    /// is read for it has records of its own.
    const fn tells(mut self, facts: &'static [Fact]) -> Self {
        self.needs.facts = facts;
        self.audit = Audit::Counted;
        self
    }

    const fn audit(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    const fn rate(mut self, rate: Rate) -> Self {
        self.rate = rate;
        self
    }
}

/// A command that postern offers. The number is its bit in a
/// [`CommandSet`] and its form in IPC frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each variant is the wire name in its row")]
pub enum Command {
    SyncDelimited,
    Sync,
    Ping,
    Info,
    Shutdown,
    FileOpen,
    FileClose,
    FileRead,
    FileWrite,
    FileSeek,
    FileFlush,
    FsfreezeStatus,
    FsfreezeFreeze,
    FsfreezeFreezeList,
    FsfreezeThaw,
    GetTime,
    GetHostName,
    GetLoad,
    GetTimezone,
    GetOsinfo,
    GetUsers,
    GetCpustats,
    GetDiskstats,
    GetVcpus,
    GetMemoryBlocks,
    GetMemoryBlockInfo,
    NetworkGetInterfaces,
    NetworkGetRoute,
    GetFsinfo,
    GetDisks,
    Fstrim,
    SuspendDisk,
    SuspendRam,
    SuspendHybrid,
    SetVcpus,
    SetMemoryBlocks,
}

/// `GuestLogicalProcessor` of the schema, as a host sends it.
const VCPU: &[Arg] = &[must("logical-id", Kind::Int), must("online", Kind::Bool), may("can-offline", Kind::Bool)];
/// `GuestMemoryBlock` of the schema, as a host sends it.
const MEMORY_BLOCK: &[Arg] =
    &[must("phys-index", Kind::Uint), must("online", Kind::Bool), may("can-offline", Kind::Bool)];

/// Every command that stock `qemu-ga` 10.2 has on Linux. Offered commands come
/// first, in [`Command`]'s order, so that a command indexes its own row.
pub static CATALOGUE: [Entry; 43] = [
    Entry::offered(Command::SyncDelimited, "guest-sync-delimited", "echo a number behind a 0xFF byte")
        .rate(Rate::Unlimited)
        .args(&[must("id", Kind::Int)])
        .frozen_safe()
        .audit(Audit::Counted),
    Entry::offered(Command::Sync, "guest-sync", "echo a number")
        .rate(Rate::Unlimited)
        .args(&[must("id", Kind::Int)])
        .frozen_safe()
        .audit(Audit::Counted),
    Entry::offered(Command::Ping, "guest-ping", "answer, nothing else")
        .rate(Rate::Unlimited)
        .frozen_safe()
        .audit(Audit::Counted),
    Entry::offered(Command::Info, "guest-info", "list version and commands").frozen_safe().audit(Audit::Counted),
    Entry::offered(Command::Shutdown, "guest-shutdown", "power down, halt or reboot")
        .rate(Rate::Acts)
        .args(&[may("mode", Kind::Str)])
        .silent()
        .acts(&[Act::Shutdown]),
    Entry::offered(Command::FileOpen, "guest-file-open", "open a file of the policy")
        .rate(Rate::Opens)
        .args(&[must("path", Kind::Str), may("mode", Kind::Str)])
        .acts(&[Act::Open])
        .paths(),
    Entry::offered(Command::FileClose, "guest-file-close", "close a handle").args(&[must("handle", Kind::Int)]),
    Entry::offered(Command::FileRead, "guest-file-read", "read from a handle")
        .args(&[must("handle", Kind::Int), may("count", Kind::Int)])
        .calls(&[Call::Read])
        .audit(Audit::AtClose),
    Entry::offered(Command::FileWrite, "guest-file-write", "write to a handle")
        .args(&[must("handle", Kind::Int), must("buf-b64", Kind::Str), may("count", Kind::Int)])
        .calls(&[Call::Write])
        .audit(Audit::AtClose),
    Entry::offered(Command::FileSeek, "guest-file-seek", "move a handle's position")
        .args(&[must("handle", Kind::Int), must("offset", Kind::Int), must("whence", Kind::Whence)])
        .calls(&[Call::Seek])
        .audit(Audit::AtClose),
    Entry::offered(Command::FileFlush, "guest-file-flush", "flush a handle; nothing is buffered")
        .args(&[must("handle", Kind::Int)])
        .audit(Audit::AtClose),
    Entry::offered(Command::FsfreezeStatus, "guest-fsfreeze-status", "tell whether filesystems are frozen")
        .rate(Rate::Unlimited)
        .frozen_safe()
        .audit(Audit::Counted),
    Entry::offered(Command::FsfreezeFreeze, "guest-fsfreeze-freeze", "freeze all local filesystems")
        .rate(Rate::Acts)
        .acts(&[Act::Freeze]),
    Entry::offered(Command::FsfreezeFreezeList, "guest-fsfreeze-freeze-list", "freeze the named filesystems")
        .rate(Rate::Acts)
        .args(&[may("mountpoints", Kind::StrList)])
        .acts(&[Act::Freeze]),
    Entry::offered(Command::FsfreezeThaw, "guest-fsfreeze-thaw", "thaw what was frozen")
        .rate(Rate::Unlimited)
        .frozen_safe()
        .acts(&[Act::Thaw]),
    Entry::offered(Command::GetTime, "guest-get-time", "tell the time of day").tells(&[]),
    Entry::offered(Command::GetHostName, "guest-get-host-name", "tell the host's name")
        .tells(&[])
        .calls(&[Call::Uname]),
    Entry::offered(Command::GetLoad, "guest-get-load", "tell the load averages").tells(&[Fact::Load]),
    Entry::offered(Command::GetTimezone, "guest-get-timezone", "tell the time zone").tells(&[Fact::Timezone]),
    Entry::offered(Command::GetOsinfo, "guest-get-osinfo", "tell the distribution and its kernel")
        .tells(&[Fact::OsRelease])
        .calls(&[Call::Uname]),
    Entry::offered(Command::GetUsers, "guest-get-users", "tell who is logged in").tells(&[Fact::Users]),
    Entry::offered(Command::GetCpustats, "guest-get-cpustats", "tell what the processors did").tells(&[Fact::Cpustats]),
    Entry::offered(Command::GetDiskstats, "guest-get-diskstats", "tell what the disks did").tells(&[Fact::Diskstats]),
    Entry::offered(Command::GetVcpus, "guest-get-vcpus", "tell which processors there are").tells(&[
        Fact::CpusPresent,
        Fact::CpusOnline,
        Fact::Vcpus,
    ]),
    Entry::offered(Command::GetMemoryBlocks, "guest-get-memory-blocks", "tell which blocks of memory there are")
        .tells(&[Fact::MemoryBlocks]),
    Entry::offered(Command::GetMemoryBlockInfo, "guest-get-memory-block-info", "tell how large those are")
        .tells(&[Fact::MemoryBlockSize]),
    Entry::offered(Command::NetworkGetInterfaces, "guest-network-get-interfaces", "tell interfaces and addresses")
        .tells(&[Fact::Interfaces]),
    Entry::offered(Command::NetworkGetRoute, "guest-network-get-route", "tell the tables of routes")
        .tells(&[Fact::Routes, Fact::Routes6]),
    Entry::offered(Command::GetFsinfo, "guest-get-fsinfo", "tell of filesystems and their disks")
        .tells(&[Fact::Filesystems]),
    Entry::offered(Command::GetDisks, "guest-get-disks", "tell of disks and partitions").tells(&[Fact::Disks]),
    Entry::offered(Command::Fstrim, "guest-fstrim", "tell disks which blocks are free")
        .rate(Rate::Acts)
        .args(&[may("minimum", Kind::Int)])
        .acts(&[Act::Trim]),
    Entry::offered(Command::SuspendDisk, "guest-suspend-disk", "sleep, memory on disk")
        .rate(Rate::Acts)
        .silent()
        .acts(&[Act::Suspend]),
    Entry::offered(Command::SuspendRam, "guest-suspend-ram", "sleep, memory powered")
        .rate(Rate::Acts)
        .silent()
        .acts(&[Act::Suspend]),
    Entry::offered(Command::SuspendHybrid, "guest-suspend-hybrid", "sleep, memory powered and on disk")
        .rate(Rate::Acts)
        .silent()
        .acts(&[Act::Suspend]),
    Entry::offered(Command::SetVcpus, "guest-set-vcpus", "switch processors on and off")
        .rate(Rate::Acts)
        .args(&[must("vcpus", Kind::List(VCPU))])
        .acts(&[Act::SetVcpus]),
    Entry::offered(Command::SetMemoryBlocks, "guest-set-memory-blocks", "switch memory blocks on and off")
        .rate(Rate::Acts)
        .args(&[must("mem-blks", Kind::List(MEMORY_BLOCK))])
        .acts(&[Act::SetMemoryBlocks]),
    Entry::by_design(
        "guest-set-time",
        "who sets the clock says which certificates hold and when records were made; kvm-clock, ptp_kvm or NTP keep it",
    ),
    Entry::by_design("guest-set-user-password", "who sets a password can log in as its user, past every rule on files"),
    Entry::by_design("guest-exec-status", "there is nothing to ask after: guest-exec is not offered"),
    Entry::by_design("guest-exec", "a program of the host's choice is past every rule on files and commands"),
    Entry::by_design(
        "guest-ssh-get-authorized-keys",
        "it reads in every home directory; a [[files]] rule can name the one file that is meant",
    ),
    Entry::by_design(
        "guest-ssh-add-authorized-keys",
        "who adds a key can log in as its user; a [[files]] rule can name the one file that is meant",
    ),
    Entry::by_design(
        "guest-ssh-remove-authorized-keys",
        "it locks users out; a [[files]] rule can name the one file that is meant",
    ),
];

impl Command {
    /// Every offered command, in catalogue order.
    pub fn all() -> impl Iterator<Item = Self> {
        CATALOGUE.iter().filter_map(|entry| entry.command)
    }

    /// This command's row.
    #[must_use]
    pub fn entry(self) -> &'static Entry {
        &CATALOGUE[self as usize]
    }

    /// What its redacted answer says; `None`: it cannot be redacted.
    #[must_use]
    pub fn redaction(self) -> Option<&'static Redaction> {
        redaction::redaction(self.name())
    }

    /// Name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Whether it takes nothing of opener and worker but what every policy's have,
    /// and files: so that a spawner whose policy lacks it can have their children.
    #[must_use]
    pub fn is_plain(self) -> bool {
        let needs = &self.entry().needs;
        needs.facts.is_empty() && needs.calls.iter().all(|call| matches!(call, Call::Read | Call::Write | Call::Seek))
    }

    /// The command with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        CATALOGUE.get(usize::from(number)).and_then(|entry| entry.command)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The row of a name as it stands on the wire.
#[must_use]
pub fn lookup(name: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_indexes_its_own_row() {
        for (index, entry) in CATALOGUE.iter().enumerate() {
            match entry.command {
                Some(command) => assert_eq!(command as usize, index, "{}", entry.name),
                None => assert!(index >= Command::all().count(), "{} stands among the offered", entry.name),
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for entry in &CATALOGUE {
            assert_eq!(CATALOGUE.iter().filter(|other| other.name == entry.name).count(), 1, "{}", entry.name);
        }
    }

    #[test]
    fn what_runs_programs_or_lets_log_in_or_sets_the_clock_is_not_offered() {
        let refused: Vec<_> = CATALOGUE.iter().filter(|entry| entry.by_design.is_some()).collect();
        assert!(refused.iter().all(|entry| entry.command.is_none()));
        let names: Vec<_> = refused.iter().map(|entry| entry.name.trim_start_matches("guest-")).collect();
        let exec = ["exec-status", "exec"];
        let keys = ["ssh-get-authorized-keys", "ssh-add-authorized-keys", "ssh-remove-authorized-keys"];
        assert_eq!(names, [&["set-time", "set-user-password"][..], &exec, &keys].concat());
    }
}
