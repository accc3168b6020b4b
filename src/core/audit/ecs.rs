//! How each record looks in the Elastic Common Schema: the only place where
//! events meet field names. `audit/RECORDS.md` says what each field means.
//!
//! Trust: records are the broker's; the [`Text`]s in them are hostile and pass
//! through [`text`] and the escaping writer behind it.

use super::fields::{
    FAILED, LEFT, MISSING, MOUNTS, closing, log_opened, moment, put_after, put_asked, put_asked_act, put_child,
    put_counts, put_errno, put_file, put_left_out, put_lost, put_mounts, put_outcome, put_peer, put_process,
    put_refused_policy, put_reloaded, put_shutdown, put_stands, reason, refusal, refused_by, text, thaw_cause, time,
};
use super::json::{Fields, Value, members};
use super::mounts::Mounts;
use super::record::Record;
use super::run::Opening;
use super::terms::End;
use super::text::Text;
use crate::catalogue;
use crate::policy::rules::Mode;

/// The version of the Elastic Common Schema whose names and values are used.
pub const ECS_VERSION: &str = "8.11.0";

/// Most records are shorter, in bytes.
const USUAL: usize = 1 << 10;

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
        let mut out = String::with_capacity(USUAL);
        members(&mut out, &ecs.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>());
        // `"event":{` is written by the chain.
        out.drain(.."\"event\":{".len());
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
        Record::OpenUnanswered { mode, .. } => row(OPEN, &["file"], access(*mode), "failure", Some("failed")),
        Record::FileClosed { .. } => row("guest-file-close", &["file"], &["info"], "success", Some("done")),
        Record::CommandRefused { command, .. } =>
            row(known(command).unwrap_or("unknown-command"), &["api"], &["denied"], "failure", Some("refused")),
        Record::FreezeAsked { command, .. } | Record::ActAsked { command, .. } =>
            row(command.name(), &["host"], &["change"], "unknown", Some("asked")),
        Record::FreezeDone { command, .. } | Record::ActDone { command, .. } =>
            row(command.name(), &["host"], &["change"], "success", Some("done")),
        Record::FreezeFailed { command, .. } | Record::ActFailed { command, .. } =>
            row(command.name(), &["host"], &["change"], "failure", Some("failed")),
        Record::FoundFrozen { .. } => row("found-frozen", &["host"], &["info"], "success", None),
        Record::Thawed { failed, .. } if failed.kept().is_empty() =>
            row("guest-fsfreeze-thaw", &["host"], &["change"], "success", Some("done")),
        Record::Thawed { .. } => row("guest-fsfreeze-thaw", &["host"], &["change"], "failure", Some("failed")),
        Record::ShutdownAsked { .. } => row(SHUTDOWN, &["host"], &["end"], "unknown", Some("asked")),
        Record::ShutdownRefused { .. } => row(SHUTDOWN, &["api", "host"], &["end", "denied"], "failure", Some("refused")),
        Record::ShutdownFailed { .. } => row(SHUTDOWN, &["host"], &["end"], "failure", Some("failed")),
        Record::ActRefused { command, .. } =>
            row(command.name(), &["api", "host"], &["change", "denied"], "failure", Some("refused")),
        Record::ProcessStarted { .. } => row("process-started", &["process"], &["start"], "success", None),
        Record::ProcessDied { .. } => row("process-died", &["process"], &["end"], "failure", None),
        Record::MalformedFrame { .. } =>
            row("malformed-frame", &["intrusion_detection"], &["denied"], "failure", Some("refused")),
        Record::PolicyReloaded(_) =>
            row("policy-reloaded", &["configuration"], &["change"], "success", None),
        Record::PolicyKept { .. } => row("policy-kept", &["configuration"], &["info"], "failure", Some("refused")),
        Record::FactTold { errno: None, .. } => row("fact-told", &["host"], &["info"], "success", Some("granted")),
        Record::FactTold { .. } => row("fact-told", &["host"], &["info"], "failure", Some("failed")),
        Record::Counted { .. } => row("counted", &["api"], &["info"], "success", None),
        Record::Limited { .. } => row("limited", &["api"], &["denied"], "failure", Some("refused")),
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

#[expect(clippy::too_many_lines, reason = "one table: an arm per record")]
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
        Record::OpenAsked { child, requested, mode, rule } => {
            put_child(out, *child);
            put_asked(out, requested, *mode, Some(*rule));
        }
        Record::OpenGranted { child, requested, mode, handle, file, mtime } => {
            put_child(out, *child);
            put_asked(out, requested, *mode, Some(file.rule.into()));
            out.push(("postern.handle", Value::Number(*handle)));
            put_file(out, file);
            out.push(("file.mtime", time(*mtime)));
        }
        Record::OpenRefused { child, requested, mode, by, reason, rule, errno, resolved } => {
            put_child(out, *child);
            put_asked(out, requested, *mode, *rule);
            text(out, "event.reason", "postern.reason_bytes", reason);
            out.push(("postern.refused_by", Value::Str(refused_by(*by).into())));
            put_errno(out, *errno);
            if let Some(path) = resolved {
                text(out, "file.path", "postern.path_bytes", path);
            }
        }
        Record::OpenUnanswered { child, requested, mode, rule, file } => {
            reason(out, "the worker ended before it was answered");
            put_child(out, *child);
            put_asked(out, requested, *mode, Some(*rule));
            if let Some(file) = file {
                put_file(out, file);
            }
        }
        Record::FileClosed { child, handle, why, path, after, used } => {
            put_child(out, *child);
            reason(out, closing(*why));
            text(out, "file.path", "postern.path_bytes", path);
            out.push(("postern.handle", Value::Number(*handle)));
            if let Some(after) = after {
                put_after(out, after);
            }
            if let Some(used) = used {
                out.push(("postern.self_reported.bytes_read", Value::Number(used.read)));
                out.push(("postern.self_reported.bytes_written", Value::Number(used.written)));
                out.push(("postern.self_reported.calls", Value::Number(used.calls)));
            }
        }
        Record::CommandRefused { child, command, because } => {
            put_child(out, *child);
            reason(out, refusal(*because));
            out.push(("postern.refused_by", Value::Str("policy".into())));
            if known(command).is_none() {
                text(out, "postern.command", "postern.command_bytes", command);
            }
        }
        Record::FreezeAsked { child, mounts, .. } => {
            put_child(out, *child);
            put_mounts(out, MOUNTS, mounts);
        }
        Record::FreezeDone { count, mounts, left_out, .. } => {
            out.push(("postern.count", Value::Number(*count)));
            put_mounts(out, MOUNTS, mounts);
            put_left_out(out, left_out);
        }
        Record::FreezeFailed { mount, reason, errno, left, .. } => {
            text(out, "event.reason", "postern.reason_bytes", reason);
            put_errno(out, *errno);
            put_mounts(out, FAILED, &Mounts::from_iter([mount.clone()]));
            put_mounts(out, LEFT, left);
        }
        Record::FoundFrozen { since, count, mounts } => {
            reason(out, "an earlier run froze these, or was about to");
            out.push(("event.start", moment(*since)));
            out.push(("postern.count", Value::Number(*count)));
            put_mounts(out, MOUNTS, mounts);
        }
        Record::Thawed { cause, child, count, mounts, failed } => {
            if let Some(child) = child {
                put_child(out, *child);
            }
            reason(out, thaw_cause(*cause));
            out.push(("postern.count", Value::Number(*count)));
            put_mounts(out, MOUNTS, mounts);
            put_mounts(out, FAILED, failed);
        }
        Record::ShutdownAsked { child, mode, method } => {
            put_child(out, *child);
            put_shutdown(out, mode.name(), *method);
        }
        Record::ShutdownRefused { child, mode, reason } => {
            put_child(out, *child);
            text(out, "event.reason", "postern.reason_bytes", reason);
            text(out, "postern.shutdown.mode", "postern.shutdown.mode_bytes", mode);
        }
        Record::ShutdownFailed { mode, method, errno } => {
            put_shutdown(out, mode.name(), *method);
            put_errno(out, Some(*errno));
        }
        Record::ActAsked { child, asked, .. } => {
            put_child(out, *child);
            put_asked_act(out, asked);
        }
        Record::ActRefused { child, reason, .. } => {
            put_child(out, *child);
            text(out, "event.reason", "postern.reason_bytes", reason);
        }
        Record::ActDone { child, outcome, .. } => {
            put_child(out, *child);
            put_outcome(out, outcome);
        }
        Record::ActFailed { child, reason, errno, .. } => {
            put_child(out, *child);
            text(out, "event.reason", "postern.reason_bytes", reason);
            put_errno(out, *errno);
        }
        Record::ProcessStarted { role, child, pid, uid, stands } => {
            put_process(out, *role, *child);
            if let Some(pid) = pid {
                out.push(("process.pid", Value::Number((*pid).into())));
            }
            out.push(("user.id", Value::Str(uid.to_string().into())));
            put_stands(out, stands);
            put_mounts(out, MISSING, &stands.missing);
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
        Record::PolicyReloaded(reloaded) => put_reloaded(out, reloaded),
        Record::PolicyKept { reason, refused, restart } => {
            text(out, "event.reason", "postern.reason_bytes", reason);
            put_refused_policy(out, refused.as_ref(), restart);
        }
        Record::FactTold { child, fact, errno } => {
            put_child(out, *child);
            out.push(("postern.fact", Value::Str(fact.row().name.into())));
            put_errno(out, *errno);
        }
        Record::Counted { child, counts } => {
            put_child(out, *child);
            put_counts(out, counts);
        }
        Record::Limited { child, counts } => {
            reason(out, "more in a second than the policy allows");
            put_child(out, *child);
            out.push(("postern.refused_by", Value::Str("policy".into())));
            put_counts(out, counts);
        }
        Record::Repeated { counts, since, until } => {
            reason(out, "repeated more often than the log takes");
            out.push(("event.start", moment(*since)));
            out.push(("event.end", moment(*until)));
            out.push((
                "postern.counts",
                Value::Object(counts.iter().map(|(name, count)| (*name, Value::Number(*count))).collect()),
            ));
        }
        Record::LogRemoved { name } => {
            reason(out, "older than the policy keeps");
            out.push(("postern.removed", Value::Str(name.clone().into())));
        }
        Record::RecordsLost(lost) => put_lost(out, *lost),
    }
}
