//! `policy explain`: what a policy lets the host do, why, and what holds it to
//! that. One structure, shown as text or as JSON.
//!
//! Trust: computed from the checked policy with the functions that the
//! processes use themselves (`caps::broker`), so that it cannot drift.

use postern_core::catalogue::facts::Fact;
use postern_core::catalogue::redaction::Reads;
use postern_core::catalogue::{self, Act, redaction};
use postern_core::policy::rules::{FileRule, Rights, Types};
use postern_core::policy::written::{Loaded, Reason, Ruling, Where};
use postern_core::policy::{Audit, Policy, ShutdownMethod, ShutdownMode};
use serde::Serialize;

use super::processes::{self, Process};

/// What a policy means.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The files, in the order of merging.
    pub sources: Vec<String>,
    /// SHA-256 of the files one after another, in hex, as the audit log has it.
    pub digest: String,
    /// Where the host is met.
    pub channel: String,
    /// Every command of stock and postern.
    pub commands: Vec<CommandLine>,
    /// Every process.
    pub processes: Vec<Process>,
    /// Every file rule.
    pub files: Vec<Rule>,
    /// Everything that is a number or a path.
    pub settings: Settings,
    /// What would be otherwise if an ordinary user started postern.
    pub without_root: Vec<String>,
    /// What `check` warns of.
    pub warnings: Vec<String>,
}

/// One command.
#[derive(Clone, Debug, Serialize)]
pub struct CommandLine {
    /// Name on the wire.
    pub name: &'static str,
    /// Whether the host may use it.
    pub allowed: bool,
    /// What the answer says, where it is redacted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redacted: Option<Redacted>,
    /// Why.
    pub why: String,
    /// Where that is written, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

/// A redacted answer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Redacted {
    /// What it says.
    pub answer: &'static str,
    /// What keeps the rest from the host.
    pub held_by: &'static str,
}

/// Redaction is the worker's doing, and a worker is taken for lost.
const HELD_BY_WORKER: &str = "the worker, which is given what the whole answer is made of: one that fell sees past it";
const HELD_BY_OPENER: &str = "the opener, which tells no other filesystem and looks at no disk: no worker sees past it";
const HELD_BY_NOTHING_READ: &str = "nothing is read for it, so nobody sees past it";

/// One file rule.
#[derive(Clone, Debug, Serialize)]
pub struct Rule {
    /// Where it reaches.
    pub path: String,
    /// What it gives.
    pub rights: Vec<&'static str>,
    /// Where it does not reach.
    pub except: Vec<String>,
    /// What may be opened.
    pub types: Vec<&'static str>,
    /// Whether the path may be missing.
    pub optional: bool,
    /// Where it is written.
    pub file: String,
    /// The line there.
    pub line: usize,
    /// Which barrier holds which part, beside the broker's decision.
    pub held_by: Vec<Held>,
}

/// One part of a rule and what holds it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Held {
    /// The part.
    pub part: &'static str,
    /// The barrier.
    pub by: &'static str,
    /// How.
    pub how: &'static str,
}

/// Everything that is a number or a path.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// `facts.interfaces`.
    pub facts_interfaces: Vec<String>,
    /// `facts.mountpoints`.
    pub facts_mountpoints: Vec<String>,
    /// `facts.host_name`; `null` where nothing stands in for it.
    pub facts_host_name: Option<String>,
    /// `create.mode`, octal.
    pub create_mode: String,
    /// `freeze.limit`, in seconds.
    pub freeze_limit_seconds: u64,
    /// `shutdown.modes`.
    pub shutdown_modes: Vec<&'static str>,
    /// `shutdown.method`.
    pub shutdown_method: &'static str,
    /// `limits.message`, in bytes.
    pub limit_message: u32,
    /// `limits.nesting`.
    pub limit_nesting: u32,
    /// `limits.string`, in bytes.
    pub limit_string: u32,
    /// `limits.read`, in bytes.
    pub limit_read: u32,
    /// `limits.handles`.
    pub limit_handles: u32,
    /// `limits.requests`, per second of each command.
    pub limit_requests: u32,
    /// `limits.opens`, per second.
    pub limit_opens: u32,
    /// `limits.acts`, per second of each command.
    pub limit_acts: u32,
    /// `audit.log`.
    pub audit_log: String,
    /// `audit.fsync`.
    pub audit_fsync: &'static str,
    /// `audit.max_bytes`.
    pub audit_max_bytes: u64,
    /// `audit.rotate_bytes`; `null` where the broker does not rotate.
    pub audit_rotate_bytes: Option<u64>,
    /// `audit.keep`.
    pub audit_keep: usize,
    /// `audit.keep_days`.
    pub audit_keep_days: u64,
    /// `audit.heads`.
    pub audit_heads: Vec<&'static str>,
    /// `audit.head_records`.
    pub audit_head_records: u64,
    /// `audit.head_interval`, in seconds.
    pub audit_head_interval_seconds: u64,
    /// `state.directory`.
    pub state_directory: String,
}

/// Which barrier holds which right. The broker decides each open first; these
/// are what holds if it were wrong.
const HELD: [(Rights, Held); 4] = [
    (
        Rights::READ,
        Held {
            part: "read",
            by: "Landlock",
            how: "the opener's domain lets files be opened for reading beneath the rules' paths only",
        },
    ),
    (
        Rights::WRITE,
        Held {
            part: "write",
            by: "Landlock",
            how: "likewise for writing; emptying too from Linux 6.2 on, before that the opener's filter, by flags",
        },
    ),
    (
        Rights::CREATE,
        Held {
            part: "create",
            by: "Landlock",
            how: "files can be made beneath the rules' directories only; the opener makes them exclusively, so nothing is overwritten",
        },
    ),
    (
        Rights::APPEND,
        Held {
            part: "append",
            by: "opener, seccomp",
            how: "opened with O_APPEND; the worker's filter refuses to clear it and to write at a position",
        },
    ),
];

const HELD_EXCEPT: Held =
    Held { part: "except", by: "opener", how: "asked of the path that the kernel has for the object, links resolved" };
const HELD_TYPES: Held =
    Held { part: "types", by: "opener", how: "asked of the object itself, before it is opened for use" };
const HELD_ACCOUNT: Held = Held {
    part: "account",
    by: "file permissions",
    how: "opened as the worker's account, with the policy's groups only",
};

/// Explains.
#[must_use]
pub fn explain(loaded: &Loaded) -> Explanation {
    let policy = &loaded.policy;
    Explanation {
        sources: loaded.sources.iter().map(|source| source.path.display().to_string()).collect(),
        digest: hex(&policy.digest),
        channel: policy.channel.to_string(),
        commands: loaded.why.commands.iter().map(command).collect(),
        processes: processes::of(policy),
        files: policy.files.iter().zip(&loaded.why.files).map(|(files, place)| rule(files, place)).collect(),
        settings: settings(policy),
        without_root: without_root(policy),
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn command(ruling: &Ruling) -> CommandLine {
    let redaction = match ruling.reason {
        Reason::Redact(_) => redaction::redaction(ruling.name),
        _ => None,
    };
    let redacted = redaction.map(|row| Redacted {
        answer: row.answer,
        held_by: match row.reads {
            Reads::Nothing => HELD_BY_NOTHING_READ,
            Reads::Only([Fact::Mounts]) => HELD_BY_OPENER,
            Reads::Only(_) | Reads::All => HELD_BY_WORKER,
        },
    });
    let (why, place) = match &ruling.reason {
        Reason::Profile(name, place) => (format!("profile {name}"), Some(place)),
        Reason::Allow(place) => ("allow".to_owned(), Some(place)),
        Reason::Redact(place) => ("redact".to_owned(), Some(place)),
        Reason::Deny(place) => ("deny".to_owned(), Some(place)),
        Reason::Unnamed => ("nothing allows it".to_owned(), None),
        Reason::NotOffered => match catalogue::lookup(ruling.name).and_then(|entry| entry.by_design) {
            Some(why) => (format!("not offered by design: {why}"), None),
            None => ("postern does not offer it".to_owned(), None),
        },
    };
    CommandLine {
        name: ruling.name,
        allowed: ruling.allowed,
        redacted,
        why,
        file: place.map(|place| place.file.display().to_string()),
        line: place.map(|place| place.line),
    }
}

fn rule(rule: &FileRule, place: &Where) -> Rule {
    let mut held_by: Vec<Held> =
        HELD.iter().filter(|(right, _)| rule.rights.contains(*right)).map(|(_, held)| *held).collect();
    if !rule.except.is_empty() {
        held_by.push(HELD_EXCEPT);
    }
    held_by.extend([HELD_TYPES, HELD_ACCOUNT]);
    let named = |names: &[(Rights, &'static str)]| {
        names.iter().filter(|(right, _)| rule.rights.contains(*right)).map(|(_, name)| *name).collect()
    };
    Rule {
        path: rule.path.display().to_string(),
        rights: named(&Rights::NAMED),
        except: rule.except.iter().map(|path| path.display().to_string()).collect(),
        types: Types::NAMED.iter().filter(|(kind, _)| rule.types.contains(*kind)).map(|(_, name)| *name).collect(),
        optional: rule.optional,
        file: place.file.display().to_string(),
        line: place.line,
        held_by,
    }
}

fn settings(policy: &Policy) -> Settings {
    let Audit { log, fsync, rotate_bytes, keep, keep_time, max_bytes, heads } = &policy.audit;
    Settings {
        facts_interfaces: policy.facts.interfaces.clone(),
        facts_mountpoints: policy.facts.mountpoints.iter().map(|path| path.display().to_string()).collect(),
        facts_host_name: policy.facts.host_name.clone(),
        create_mode: format!("{:04o}", policy.create_mode),
        freeze_limit_seconds: policy.freeze.limit.as_secs(),
        shutdown_modes: policy.shutdown.modes.iter().copied().map(ShutdownMode::name).collect(),
        shutdown_method: match policy.shutdown.method {
            ShutdownMethod::Init => "init",
            ShutdownMethod::Kernel => "kernel",
            ShutdownMethod::Auto => "auto",
        },
        limit_message: policy.limits.message,
        limit_nesting: policy.limits.nesting,
        limit_string: policy.limits.string,
        limit_read: policy.limits.read,
        limit_handles: policy.limits.handles,
        limit_requests: policy.limits.requests,
        limit_opens: policy.limits.opens,
        limit_acts: policy.limits.acts,
        audit_log: log.display().to_string(),
        audit_fsync: fsync.name(),
        audit_max_bytes: *max_bytes,
        audit_rotate_bytes: *rotate_bytes,
        audit_keep: *keep,
        audit_keep_days: keep_time.as_secs() / (24 * 60 * 60),
        audit_heads: [("journal", heads.journal), ("syslog", heads.syslog)]
            .into_iter()
            .filter_map(|(name, is_told)| is_told.then_some(name))
            .collect(),
        audit_head_records: heads.records,
        audit_head_interval_seconds: heads.interval.as_secs(),
        state_directory: policy.state.display().to_string(),
    }
}

fn without_root(policy: &Policy) -> Vec<String> {
    let mut lines = vec![
        "every process runs as the user who starts postern; identities are not used".to_owned(),
        "file rules reach what that user may open".to_owned(),
    ];
    let names = [
        (Act::Freeze, "freeze"),
        (Act::Thaw, "thaw"),
        (Act::Shutdown, "shutdown"),
        (Act::Trim, "trim"),
        (Act::Suspend, "suspend"),
        (Act::SetVcpus, "switching processors"),
        (Act::SetMemoryBlocks, "switching memory blocks"),
    ];
    let acts: Vec<&str> = names.into_iter().filter(|(act, _)| policy.needs(*act)).map(|(_, name)| name).collect();
    if !acts.is_empty() {
        lines.push(format!("no capability, so the host gets an error for: {}", acts.join(", ")));
    }
    lines
}

impl Explanation {
    /// As JSON, for programs.
    #[must_use]
    pub fn json(&self) -> String {
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string_pretty(self).map_or_else(|error| error.to_string(), |text| text + "\n")
    }
}
