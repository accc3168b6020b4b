//! How each record looks in the Elastic Common Schema: the only place where
//! events meet field names. `audit/RECORDS.md` says what each field means.
//!
//! Trust: records are the broker's; the [`Text`]s in them are hostile and pass
//! through [`text`] here and the escaping writer behind it.

use std::borrow::Cow;

use nix::errno::Errno;

use super::json::{Fields, Value, hex, members};
use super::record::{Closing, End, Lost, Mounts, Opening, Peer, Record, Role, Run, ThawCause};
use super::text::Text;
use crate::catalogue;
use crate::messages::{Barrier, Denial, Facts};
use crate::policy::ShutdownMethod;
use crate::policy::rules::{Mode, Types};

/// The version of the Elastic Common Schema whose names and values are used.
pub const ECS_VERSION: &str = "8.11.0";

/// A record as JSON, but for what its place in the chain adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(String);

impl Body {
    /// Renders a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let mut fields = head_fields(record);
        details(record, &mut fields);
        // The chain writes `@timestamp` and `event.sequence` before this text
        // and `postern.previous` behind it, so `event` is the first object and
        // `postern` the last. Sorting is stable: fields keep their order.
        fields.sort_by_key(|(name, _)| (!name.starts_with("event."), name.starts_with("postern.")));
        let (ours, ecs): (Fields, Fields) = fields.into_iter().partition(|(name, _)| name.starts_with("postern."));
        let mut out = String::new();
        members(&mut out, &ecs.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>());
        // `"event":{` is written by the chain.
        let mut out = out.split_off("\"event\":{".len());
        out.push_str(",\"postern\":{");
        let inner: Vec<_> =
            ours.iter().filter_map(|(name, value)| Some((name.strip_prefix("postern.")?, value))).collect();
        members(&mut out, &inner);
        if !inner.is_empty() {
            out.push(',');
        }
        Self(out)
    }

    /// Length in bytes; the chain adds fewer than 512.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is empty; it never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Record {
    /// Its `event.action`: a name of ours or of the catalogue, never a host's.
    #[must_use]
    pub fn action(&self) -> &'static str {
        head(self).action
    }
}

/// The ECS categorization of a record and its stage, as one row.
struct Head {
    action: &'static str,
    category: &'static [&'static str],
    kind: &'static [&'static str],
    outcome: &'static str,
    stage: Option<&'static str>,
}

const fn row(
    action: &'static str,
    category: &'static [&'static str],
    kind: &'static [&'static str],
    outcome: &'static str,
    stage: Option<&'static str>,
) -> Head {
    Head { action, category, kind, outcome, stage }
}

/// The name of a command as the catalogue has it, so that a host's string never
/// becomes an action.
fn known(command: &Text) -> Option<&'static str> {
    let name = std::str::from_utf8(command.bytes()).ok()?;
    catalogue::lookup(name).map(|entry| entry.name)
}

#[rustfmt::skip]
fn head(record: &Record) -> Head {
    const OPEN: &str = "guest-file-open";
    const SHUTDOWN: &str = "guest-shutdown";
    match record {
        Record::LogOpened { why: Opening::Started, .. } => row("log-opened", &["process"], &["start"], "success", None),
        Record::LogOpened { .. } => row("log-opened", &["process"], &["info"], "success", None),
        Record::Stopped { .. } => row("stopped", &["process"], &["end"], "success", None),
        Record::HostConnected { .. } => row("host-connected", &["session"], &["start"], "success", None),
        Record::HostRefused { .. } =>
            row("host-refused", &["network", "session"], &["start", "denied"], "failure", Some("refused")),
        Record::HostDisconnected { .. } => row("host-disconnected", &["session"], &["end"], "success", None),
        Record::OpenAsked { mode, .. } => row(OPEN, &["file"], access(*mode), "unknown", Some("asked")),
        Record::OpenGranted { mode, .. } => row(OPEN, &["file"], access(*mode), "success", Some("granted")),
        Record::OpenRefused { .. } => row(OPEN, &["api", "file"], &["access", "denied"], "failure", Some("refused")),
        Record::FileClosed { .. } => row("guest-file-close", &["file"], &["info"], "success", Some("done")),
        Record::CommandRefused { command, .. } =>
            row(known(command).unwrap_or("unknown-command"), &["api"], &["denied"], "failure", Some("refused")),
        Record::FreezeAsked { command, .. } => row(command.name(), &["host"], &["change"], "unknown", Some("asked")),
        Record::FreezeDone { command, .. } => row(command.name(), &["host"], &["change"], "success", Some("done")),
        Record::FreezeFailed { command, .. } => row(command.name(), &["host"], &["change"], "failure", Some("failed")),
        Record::Thawed { failed, .. } if failed.kept().is_empty() =>
            row("guest-fsfreeze-thaw", &["host"], &["change"], "success", Some("done")),
        Record::Thawed { .. } => row("guest-fsfreeze-thaw", &["host"], &["change"], "failure", Some("failed")),
        Record::ShutdownAsked { .. } => row(SHUTDOWN, &["host"], &["end"], "unknown", Some("asked")),
        Record::ShutdownRefused { .. } => row(SHUTDOWN, &["api", "host"], &["end", "denied"], "failure", Some("refused")),
        Record::ShutdownFailed { .. } => row(SHUTDOWN, &["host"], &["end"], "failure", Some("failed")),
        Record::ProcessStarted { .. } => row("process-started", &["process"], &["start"], "success", None),
        Record::ProcessDied { .. } => row("process-died", &["process"], &["end"], "failure", None),
        Record::MalformedFrame { .. } =>
            row("malformed-frame", &["intrusion_detection"], &["denied"], "failure", Some("refused")),
        Record::Counted { .. } => row("counted", &["api"], &["info"], "success", None),
        Record::Repeated { .. } => row("repeated", &["api"], &["denied", "info"], "failure", None),
        Record::LogRemoved { .. } => row("log-removed", &["file"], &["deletion"], "unknown", Some("asked")),
        Record::RecordsLost(_) => row("records-lost", &["process"], &["info"], "failure", None),
    }
}

fn head_fields(record: &Record) -> Fields {
    let head = head(record);
    let mut fields = vec![
        ("event.action", Value::Str(head.action.into())),
        ("event.category", Value::Names(head.category)),
        ("event.type", Value::Names(head.kind)),
        ("event.outcome", Value::Str(head.outcome.into())),
        ("ecs.version", Value::Str(ECS_VERSION.into())),
    ];
    if let Some(stage) = head.stage {
        fields.push(("postern.stage", Value::Str(stage.into())));
    }
    fields
}

/// What an open in this mode does to a file.
const fn access(mode: Mode) -> &'static [&'static str] {
    if mode.writes() { &["access", "change"] } else { &["access"] }
}

fn details(record: &Record, out: &mut Fields) {
    match record {
        Record::LogOpened { run, why } => log_opened(out, run, *why),
        Record::Stopped { reason } => text(out, "event.reason", "postern.reason_bytes", reason),
        Record::HostConnected { peer } | Record::HostDisconnected { peer } => put_peer(out, *peer),
        Record::HostRefused { cid, times } => {
            reason(out, "not the context id that may connect");
            out.push(("postern.refused_by", Value::Str("policy".into())));
            out.push(("postern.cid", Value::Number((*cid).into())));
            out.push(("postern.count", Value::Number(*times)));
        }
        Record::OpenAsked { requested, mode, rule } => put_asked(out, requested, *mode, Some(*rule)),
        Record::OpenGranted { requested, mode, handle, file } => {
            put_asked(out, requested, *mode, Some(file.rule.into()));
            out.push(("postern.handle", Value::Number(*handle)));
            put_file(out, file);
        }
        Record::OpenRefused { requested, mode, by, reason, rule, errno, resolved } => {
            put_asked(out, requested, *mode, *rule);
            text(out, "event.reason", "postern.reason_bytes", reason);
            out.push(("postern.refused_by", Value::Str(refused_by(*by).into())));
            put_errno(out, *errno);
            if let Some(path) = resolved {
                text(out, "file.path", "postern.path_bytes", path);
            }
        }
        Record::FileClosed { handle, why, path, used } => {
            reason(out, closing(*why));
            text(out, "file.path", "postern.path_bytes", path);
            out.push(("postern.handle", Value::Number(*handle)));
            if let Some(used) = used {
                out.push(("postern.self_reported.bytes_read", Value::Number(used.read)));
                out.push(("postern.self_reported.bytes_written", Value::Number(used.written)));
                out.push(("postern.self_reported.calls", Value::Number(used.calls)));
            }
        }
        Record::CommandRefused { command, because } => {
            reason(out, refusal(*because));
            out.push(("postern.refused_by", Value::Str("policy".into())));
            if known(command).is_none() {
                text(out, "postern.command", "postern.command_bytes", command);
            }
        }
        Record::FreezeAsked { mounts, .. } => put_mounts(out, MOUNTS, mounts),
        Record::FreezeDone { count, mounts, .. } => {
            out.push(("postern.count", Value::Number(*count)));
            put_mounts(out, MOUNTS, mounts);
        }
        Record::FreezeFailed { mount, reason, errno, .. } => {
            text(out, "event.reason", "postern.reason_bytes", reason);
            put_errno(out, *errno);
            put_mounts(out, FAILED, &Mounts::from_iter([mount.clone()]));
        }
        Record::Thawed { cause, count, mounts, failed } => {
            reason(out, thaw_cause(*cause));
            out.push(("postern.count", Value::Number(*count)));
            put_mounts(out, MOUNTS, mounts);
            put_mounts(out, FAILED, failed);
        }
        Record::ShutdownAsked { mode, method } => put_shutdown(out, mode.name(), *method),
        Record::ShutdownRefused { mode, reason } => {
            text(out, "event.reason", "postern.reason_bytes", reason);
            text(out, "postern.shutdown.mode", "postern.shutdown.mode_bytes", mode);
        }
        Record::ShutdownFailed { mode, method, errno } => {
            put_shutdown(out, mode.name(), *method);
            put_errno(out, Some(*errno));
        }
        Record::ProcessStarted { role, child, pid, uid } => {
            put_process(out, *role, *child);
            if let Some(pid) = pid {
                out.push(("process.pid", Value::Number((*pid).into())));
            }
            out.push(("user.id", Value::Str(uid.to_string().into())));
        }
        Record::ProcessDied { role, child, end, reason } => {
            if let Some(reason) = reason {
                text(out, "event.reason", "postern.reason_bytes", reason);
            }
            put_process(out, *role, *child);
            match end {
                End::Exited(status) => out.push(("process.exit_code", Value::Signed((*status).into()))),
                End::Signalled(signal) => out.push(("postern.signal", Value::Signed((*signal).into()))),
                End::Unknown => {}
            }
        }
        Record::MalformedFrame { role, child, reason } => {
            text(out, "event.reason", "postern.reason_bytes", reason);
            put_process(out, *role, *child);
        }
        Record::Counted { counts } => {
            let counts = counts.iter().map(|(command, count)| (command.name(), *count)).collect();
            out.push(("postern.counts", Value::Counts(counts)));
        }
        Record::Repeated { counts, since, until } => {
            reason(out, "repeated more often than the log takes");
            out.push(("event.start", Value::Str(format!("{since:.6}").into())));
            out.push(("event.end", Value::Str(format!("{until:.6}").into())));
            out.push(("postern.counts", Value::Counts(counts.clone())));
        }
        Record::LogRemoved { name } => {
            reason(out, "older than the policy keeps");
            out.push(("postern.removed", Value::Str(name.clone().into())));
        }
        Record::RecordsLost(lost) => put_lost(out, *lost),
    }
}

fn log_opened(out: &mut Fields, run: &Run, why: Opening) {
    reason(
        out,
        match why {
            Opening::Started => "started",
            Opening::Rotated => "rotated",
            Opening::Removed => "the file was removed",
        },
    );
    out.push(("process.pid", Value::Number(run.pid.into())));
    out.push(("process.name", Value::Str("broker".into())));
    out.push(("user.id", Value::Str(run.uid.to_string().into())));
    out.push(("postern.version", Value::Str(run.version.into())));
    out.push(("postern.policy_digest", Value::Str(hex(&run.policy_digest).into())));
    out.push(("postern.privileged", Value::Bool(run.privileged)));
    out.push(("postern.landlock_abi", Value::Number(run.landlock_abi.into())));
    out.push(("postern.boot_id", Value::Str(run.boot_id.clone().into())));
}

fn put_lost(out: &mut Fields, lost: Lost) {
    reason(out, "records were not written");
    out.push(("postern.lost", Value::Number(lost.ring)));
    out.push(("postern.unwritten", Value::Number(lost.unwritten)));
    put_errno(out, lost.errno);
}

fn put_asked(out: &mut Fields, requested: &Text, mode: Mode, rule: Option<usize>) {
    text(out, "postern.requested", "postern.requested_bytes", requested);
    out.push(("postern.mode", Value::Str(mode.fopen().into())));
    if let Some(rule) = rule {
        out.push(("postern.rule", Value::Number(rule as u64)));
    }
}

/// Ids, inodes and modes are strings in ECS: they are names, not amounts.
fn put_file(out: &mut Fields, file: &Facts) {
    let device = format!("{}:{}", nix::sys::stat::major(file.device), nix::sys::stat::minor(file.device));
    let kind = match Types::of_mode(file.mode) {
        Some(Types::REGULAR) => "file",
        Some(Types::FIFO) => "fifo",
        Some(Types::CHARACTER) => "character-device",
        Some(Types::BLOCK) => "block-device",
        _ if file.mode & libc::S_IFMT == libc::S_IFDIR => "dir",
        _ if file.mode & libc::S_IFMT == libc::S_IFLNK => "symlink",
        _ => "other",
    };
    text(out, "file.path", "postern.path_bytes", &Text::from(&file.path));
    out.push(("file.device", Value::Str(device.into())));
    out.push(("file.inode", Value::Str(file.inode.to_string().into())));
    out.push(("file.type", Value::Str(kind.into())));
    out.push(("file.size", Value::Number(file.size)));
    out.push(("file.mode", Value::Str(format!("{:04o}", file.mode & 0o7777).into())));
    out.push(("file.uid", Value::Str(file.uid.to_string().into())));
    out.push(("file.gid", Value::Str(file.gid.to_string().into())));
    out.push(("postern.links", Value::Number(file.links)));
    out.push(("postern.created", Value::Bool(file.created)));
}

fn put_peer(out: &mut Fields, peer: Option<Peer>) {
    let Some(peer) = peer else { return };
    out.push(("user.id", Value::Str(peer.uid.to_string().into())));
    out.push(("postern.peer.pid", Value::Signed(peer.pid.into())));
    out.push(("postern.peer.uid", Value::Number(peer.uid.into())));
    out.push(("postern.peer.gid", Value::Number(peer.gid.into())));
}

fn put_process(out: &mut Fields, role: Role, child: u32) {
    if role != Role::Spawner {
        out.push(("postern.child", Value::Number(child.into())));
    }
    let name = match role {
        Role::Worker => "worker",
        Role::Opener => "opener",
        Role::Spawner => "spawner",
    };
    out.push(("process.name", Value::Str(name.into())));
}

fn put_shutdown(out: &mut Fields, mode: &'static str, method: ShutdownMethod) {
    let method = match method {
        ShutdownMethod::Init => "init",
        ShutdownMethod::Kernel => "kernel",
        ShutdownMethod::Auto => "auto",
    };
    out.push(("postern.shutdown.mode", Value::Str(mode.into())));
    out.push(("postern.shutdown.method", Value::Str(method.into())));
}

fn put_errno(out: &mut Fields, errno: Option<Errno>) {
    if let Some(errno) = errno {
        out.push(("postern.errno", Value::Str(format!("{errno:?}").into())));
    }
}

/// Names of a list of mountpoints: readable, in hexadecimal, how many left out.
type ListNames = [&'static str; 3];
const MOUNTS: ListNames = ["postern.mounts", "postern.mounts_bytes", "postern.mounts_omitted"];
const FAILED: ListNames = ["postern.failed", "postern.failed_bytes", "postern.failed_omitted"];

/// All of a list in hexadecimal beside it as soon as one entry is not UTF-8.
fn put_mounts(out: &mut Fields, [name, raw, omitted]: ListNames, mounts: &Mounts) {
    if mounts.kept().is_empty() && mounts.omitted() == 0 {
        return;
    }
    let lossy = mounts.kept().iter().map(|mount| String::from_utf8_lossy(mount.bytes()).into_owned());
    out.push((name, Value::List(lossy.collect())));
    if mounts.kept().iter().any(|mount| std::str::from_utf8(mount.bytes()).is_err()) {
        out.push((raw, Value::List(mounts.kept().iter().map(|mount| hex(mount.bytes())).collect())));
    }
    if mounts.omitted() > 0 {
        out.push((omitted, Value::Number(mounts.omitted())));
    }
    if mounts.kept().iter().any(Text::is_cut) {
        out.push(("postern.cut", Value::Bool(true)));
    }
}

/// A hostile string under `name`; where it is not UTF-8 also in hexadecimal
/// under `raw`, so that nothing of it is lost.
fn text(out: &mut Fields, name: &'static str, raw: &'static str, text: &Text) {
    let readable = String::from_utf8_lossy(text.bytes());
    let lossy = matches!(readable, Cow::Owned(_));
    out.push((name, Value::Str(readable.into_owned().into())));
    if lossy {
        out.push((raw, Value::Str(hex(text.bytes()).into())));
    }
    // Two cut strings in one record write the mark once: same name, same value.
    if text.is_cut() {
        out.push(("postern.cut", Value::Bool(true)));
    }
}

fn reason(out: &mut Fields, reason: &'static str) {
    out.push(("event.reason", Value::Str(reason.into())));
}

const fn refused_by(by: Barrier) -> &'static str {
    match by {
        Barrier::Broker => "policy",
        Barrier::Opener => "opener",
        Barrier::Kernel => "kernel",
        Barrier::Audit => "audit",
    }
}

const fn closing(why: Closing) -> &'static str {
    match why {
        Closing::Host => "closed by the host",
        Closing::WorkerDied => "the worker died",
        Closing::Stopping => "postern is stopping",
    }
}

const fn refusal(because: Denial) -> &'static str {
    match because {
        Denial::Policy => "the policy does not allow it",
        Denial::WhileFrozen => "not while filesystems are frozen",
        Denial::NotOffered => "postern does not offer it",
        Denial::Unknown => "no agent has it",
    }
}

const fn thaw_cause(cause: ThawCause) -> &'static str {
    match cause {
        ThawCause::Host => "asked by the host",
        ThawCause::TimeLimit => "the time limit passed",
        ThawCause::Stopping => "postern is stopping",
        ThawCause::FreezeFailed => "the freeze failed",
        ThawCause::Remembered => "frozen by an earlier run",
    }
}
