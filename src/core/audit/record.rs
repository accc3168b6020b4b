//! Every event of the audit log, as data.
//!
//! Trust: plain data that the broker fills in. Where a field repeats what
//! another process said, its documentation says whose word it is; the same
//! table for outsiders is `audit/RECORDS.md`.

use jiff::Timestamp;
use nix::errno::Errno;

use super::mounts::Mounts;
use super::run::{Opening, Reloaded, Run};
use super::terms::{After, Asked, Closing, End, Lost, Outcome, Peer, Role, Stands, ThawCause};
use super::text::Text;
use crate::catalogue::Command;
use crate::catalogue::facts::Fact;
use crate::messages::{Barrier, Denial, Facts, Use};
use crate::policy::rules::Mode;
use crate::policy::{ShutdownMethod, ShutdownMode};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// First record of every file and of every run. Only the log writes it.
    LogOpened {
        /// Who writes.
        run: Run,
        /// Why.
        why: Opening,
    },
    /// postern ends in order.
    Stopped {
        /// Why, in one line.
        reason: Text,
    },
    /// A host is there.
    HostConnected {
        /// Who, on a unix socket; a serial port has no credentials.
        peer: Option<Peer>,
    },
    /// One connected that is not the host, and was closed at once.
    HostRefused {
        /// Its context id on vsock, by the kernel's word.
        cid: u32,
        /// How many such there were since the last such record, this one
        /// included.
        times: u64,
    },
    /// The host went away.
    HostDisconnected {
        /// Who, on a unix socket.
        peer: Option<Peer>,
    },
    /// An open is about to be tried. Always before an open that creates or
    /// truncates.
    OpenAsked {
        /// The broker's number of the worker that asked.
        child: u32,
        /// The host's path.
        requested: Text,
        /// The host's mode.
        mode: Mode,
        /// Index of the rule that allows it.
        rule: usize,
    },
    /// An object was opened; its descriptor has not yet left the broker.
    OpenGranted {
        /// The broker's number of the worker that asked.
        child: u32,
        /// The host's path.
        requested: Text,
        /// The host's mode.
        mode: Mode,
        /// The handle that the host will use.
        handle: u64,
        /// What was opened, by which rule: the opener's word.
        file: Facts,
        /// When the content was last changed: the kernel's word to the broker.
        mtime: Timestamp,
    },
    /// An open was refused or failed.
    OpenRefused {
        /// The broker's number of the worker that asked.
        child: u32,
        /// The host's path.
        requested: Text,
        /// The host's mode.
        mode: Mode,
        /// Who refused.
        by: Barrier,
        /// Why, in one line.
        reason: Text,
        /// Index of the rule that decided, if one did.
        rule: Option<usize>,
        /// The error that the host sees.
        errno: Option<Errno>,
        /// The path that the kernel resolved, if it got so far.
        resolved: Option<Text>,
    },
    /// The worker that asked ended before it was answered: nobody was given the
    /// file.
    OpenUnanswered {
        /// The broker's number of the worker that asked.
        child: u32,
        /// The host's path.
        requested: Text,
        /// The host's mode.
        mode: Mode,
        /// Index of the rule that allows it.
        rule: usize,
        /// What the opener opened, made or truncated, if it got so far: its word.
        file: Option<Facts>,
    },
    /// A handle ended.
    FileClosed {
        /// The broker's number of the worker that held it.
        child: u32,
        /// The handle.
        handle: u64,
        /// Why.
        why: Closing,
        /// The resolved path of its grant.
        path: Text,
        /// The file now; none if the kernel did not tell.
        after: Option<After>,
        /// The worker's own word; none where it died.
        used: Option<Use>,
    },
    /// The worker refused a command by itself. The worker's own word.
    CommandRefused {
        /// The broker's number of the worker that asked.
        child: u32,
        /// The name, as the worker says the host sent it.
        command: Text,
        /// Why.
        because: Denial,
    },
    /// A freeze is about to begin.
    FreezeAsked {
        /// The broker's number of the worker that asked.
        child: u32,
        /// `guest-fsfreeze-freeze` or `-freeze-list`.
        command: Command,
        /// The host's mountpoints, for `-freeze-list`.
        mounts: Mounts,
    },
    /// A freeze is complete.
    FreezeDone {
        /// Which command.
        command: Command,
        /// How many filesystems.
        count: u64,
        /// Where.
        mounts: Mounts,
        /// Mountpoints that it left out, and why, in one word each.
        left_out: Vec<(Text, &'static str)>,
    },
    /// A freeze failed; everything is thawed again.
    FreezeFailed {
        /// Which command.
        command: Command,
        /// The mountpoint that could not be frozen.
        mount: Text,
        /// Why, in one line.
        reason: Text,
        /// The kernel's error.
        errno: Option<Errno>,
        /// Mountpoints that could not be thawed again: still frozen.
        left: Mounts,
    },
    /// A run before this one left filesystems frozen, or was about to freeze
    /// them when it died: its own record of that may be missing.
    FoundFrozen {
        /// When that freeze began, to the second.
        since: Timestamp,
        /// How many filesystems.
        count: u64,
        /// Where.
        mounts: Mounts,
    },
    /// Filesystems were thawed.
    Thawed {
        /// What made the broker thaw.
        cause: ThawCause,
        /// The broker's number of the worker that asked, if one did.
        child: Option<u32>,
        /// How many were thawed.
        count: u64,
        /// Where.
        mounts: Mounts,
        /// Mountpoints that did not thaw.
        failed: Mounts,
    },
    /// The broker is about to ask for a shutdown.
    ShutdownAsked {
        /// The broker's number of the worker that asked.
        child: u32,
        /// What the host wants.
        mode: ShutdownMode,
        /// How it will be done.
        method: ShutdownMethod,
    },
    /// A shutdown was refused.
    ShutdownRefused {
        /// The broker's number of the worker that asked.
        child: u32,
        /// The host's mode, as it stands on the wire.
        mode: Text,
        /// Why, in one line.
        reason: Text,
    },
    /// Asking for a shutdown failed.
    ShutdownFailed {
        /// What the host wants.
        mode: ShutdownMode,
        /// How it was tried.
        method: ShutdownMethod,
        /// The kernel's error.
        errno: Errno,
    },
    /// The broker is about to begin an act that may take long: a trim, a sleep,
    /// switching processors or memory blocks.
    ActAsked {
        /// The broker's number of the worker that asked.
        child: u32,
        /// Which command.
        command: Command,
        /// What is asked for.
        asked: Asked,
    },
    /// Such an act was refused.
    ActRefused {
        /// The broker's number of the worker that asked.
        child: u32,
        /// Which command.
        command: Command,
        /// Why, in one line.
        reason: Text,
    },
    /// Such an act has ended.
    ActDone {
        /// The broker's number of the worker that asked.
        child: u32,
        /// Which command.
        command: Command,
        /// What came of it.
        outcome: Outcome,
    },
    /// Such an act failed.
    ActFailed {
        /// The broker's number of the worker that asked.
        child: u32,
        /// Which command.
        command: Command,
        /// Why, in one line.
        reason: Text,
        /// The kernel's error.
        errno: Option<Errno>,
    },
    /// A process of postern started and is confined.
    ProcessStarted {
        /// Which.
        role: Role,
        /// The broker's number for it; the spawner has none, 0.
        child: u32,
        /// Its process id, where the broker knows it.
        pid: Option<u32>,
        /// Its user.
        uid: u32,
        /// What it found of its own barriers.
        stands: Stands,
    },
    /// A process of postern ended.
    ProcessDied {
        /// Which.
        role: Role,
        /// The broker's number for it; the spawner has none, 0.
        child: u32,
        /// How.
        end: End,
        /// Its last words, or why the broker killed it.
        reason: Option<Text>,
    },
    /// A process sent a frame that no sound one sends.
    MalformedFrame {
        /// Which.
        role: Role,
        /// The broker's number for it; the spawner has none, 0.
        child: u32,
        /// What was wrong, in one line.
        reason: Text,
    },
    /// A new policy is about to come into force.
    PolicyReloaded(Box<Reloaded>),
    /// A reload was asked for, and the policy in force stays.
    PolicyKept {
        /// Why, in one line.
        reason: Text,
        /// SHA-256 of the files that were not taken, if they could be read.
        refused: Option<[u8; 32]>,
        /// Keys that a new start is needed for.
        restart: Vec<&'static str>,
    },
    /// What a fact of the guest is read from was read for a worker, or is about to be
    /// handed to it.
    FactTold {
        /// The broker's number of the worker that asked.
        child: u32,
        /// Which.
        fact: Fact,
        /// Why it could not be.
        errno: Option<Errno>,
    },
    /// How often the commands that are counted, not listed, were answered
    /// since the last such record. The worker's own word.
    Counted {
        /// The broker's number of the worker that asked.
        child: u32,
        /// Count per command.
        counts: Vec<(Command, u64)>,
    },
    /// How many requests were refused for their number, beyond the policy's
    /// limits, since the last such record. The worker's own word, but for those
    /// that the broker limits.
    Limited {
        /// The broker's number of the worker that they came through.
        child: u32,
        /// Count per command.
        counts: Vec<(Command, u64)>,
    },
    /// What a host repeated beyond the log's rate, counted instead of listed.
    /// Only the log writes it.
    Repeated {
        /// How many records of each event were left out.
        counts: Vec<(&'static str, u64)>,
        /// When the first of them happened.
        since: Timestamp,
        /// When the last of them happened.
        until: Timestamp,
    },
    /// A rotated file is about to be removed. Only the log writes it.
    LogRemoved {
        /// Its name in the log's directory: the log's own, and ASCII.
        name: String,
    },
    /// Fewer records than events. Only the log writes it.
    RecordsLost(Lost),
}
