//! Settings → [`Policy`]: what can only be seen when all files are merged.
//!
//! Called by `written` only. Always makes a policy, so that every mistake is
//! found in one go; whether it may be used, the report says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mistake::{Kind, Place, Report};
use super::read::{At, Settings, Value, Written};
use super::{World, keys, paths, profiles, tables};
use crate::catalogue::Command::{
    FileOpen, FsfreezeFreeze, FsfreezeFreezeList, FsfreezeStatus, FsfreezeThaw, Shutdown as ShutdownCommand, Sync,
    SyncDelimited,
};
use crate::catalogue::redaction::REDACTIONS;
use crate::catalogue::{CATALOGUE, Command, CommandSet};
use crate::policy::{Freeze, Limits, Policy, Shutdown, ShutdownMethod, ShutdownMode};

/// A line of a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Where {
    /// The file; `(built-in defaults)` for a default.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
}

/// Why a command is allowed or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The profile with this name holds it.
    Profile(&'static str, Where),
    /// `allow` names it.
    Allow(Where),
    /// `redact` names it.
    Redact(Where),
    /// `deny` names it.
    Deny(Where),
    /// Nothing allows it.
    Unnamed,
    /// Stock has it, postern does not.
    NotOffered,
}

/// What the policy says of one command of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Name on the wire.
    pub name: &'static str,
    /// Whether the host may use it.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
}

/// Where each part of a policy was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// One for each row of the catalogue, in its order.
    pub commands: Vec<Ruling>,
    /// One for each file rule, in the policy's order.
    pub files: Vec<Where>,
}

/// Checks the whole. `own` are the policy's own files and directories.
pub(super) fn check(written: &Written, report: &mut Report, world: &World, own: &[PathBuf]) -> (Policy, Why) {
    let settings = &written.settings;
    let path = |table, name| PathBuf::from(settings.text(table, name).map_or("", |at| at.value));
    let number = |table, name| settings.number(table, name).map_or(0, |at| at.value);
    let small = |table, name| u32::try_from(number(table, name)).unwrap_or(u32::MAX);

    let (rulings, commands, redact) = commands(written, report);
    let shutdown = Shutdown {
        modes: modes(settings, &rulings),
        method: match settings.text("shutdown", "method").map(|at| at.value) {
            Some("kernel") => ShutdownMethod::Kernel,
            Some("auto") => ShutdownMethod::Auto,
            _ => ShutdownMethod::Init,
        },
    };
    let own = Own { policy: own, log: &path("audit", "log"), state: &path("state", "directory") };
    let (files, places) = paths::rules(&written.rules, &own, world, report);
    let policy = Policy {
        digest: [0; 32],
        commands,
        redact,
        facts: tables::telling(settings),
        files,
        create_mode: small("create", "mode"),
        freeze: Freeze { limit: Duration::from_secs(number("freeze", "limit")) },
        shutdown,
        limits: Limits {
            message: small("limits", "message"),
            nesting: small("limits", "nesting"),
            string: small("limits", "string"),
            read: small("limits", "read"),
            handles: small("limits", "handles"),
            requests: small("limits", "requests"),
            opens: small("limits", "opens"),
            acts: small("limits", "acts"),
        },
        hang: Duration::from_secs(number("limits", "hang")),
        audit: tables::audit(settings),
        identities: tables::identities(written, world, report),
        channel: tables::channel(written, report),
        state: path("state", "directory"),
    };
    own_places(written, &own, report);
    if let Some(at) = settings.number("audit", "rotate_bytes").filter(|at| at.value > policy.audit.max_bytes / 2) {
        let what = "the first file alone would spend more than half of audit.max_bytes before it is rotated";
        report.error(Kind::TextOutOfRange, at.place, what, "write less, or give max_bytes more");
    }
    families(&policy, &rulings, written, &places, report);
    let why = Why {
        commands: CATALOGUE.iter().zip(rulings).map(|(entry, ruling)| ruling.into_public(entry.name, report)).collect(),
        files: places.iter().map(|place| whereabouts(*place, report)).collect(),
    };
    (policy, why)
}

/// Those that the files set; else, where the profile allows `guest-shutdown`, the
/// profile's.
fn modes(settings: &Settings, rulings: &[Decided]) -> Vec<ShutdownMode> {
    let written = settings.list("shutdown", "modes").filter(|at| at.place.source != 0);
    match (written, &rulings[ShutdownCommand as usize]) {
        (Some(at), _) => at.value.iter().filter_map(|item| ShutdownMode::from_name(item.text())).collect(),
        (None, Decided::Profile(name, _)) => profiles::lookup(name).map_or(&[][..], |profile| profile.modes).to_vec(),
        (None, _) => Vec::new(),
    }
}

/// Places of postern itself that no rule may reach.
pub(super) struct Own<'a> {
    pub(super) policy: &'a [PathBuf],
    pub(super) log: &'a Path,
    pub(super) state: &'a Path,
}

/// Why one command is allowed or not, with the place of the word that says so.
enum Decided {
    Profile(&'static str, Place),
    Allow(Place),
    Redact(Place),
    Deny(Place),
    Unnamed,
    NotOffered,
}

impl Decided {
    const fn place(&self) -> Option<Place> {
        match self {
            Self::Profile(_, place) | Self::Allow(place) | Self::Redact(place) | Self::Deny(place) => Some(*place),
            Self::Unnamed | Self::NotOffered => None,
        }
    }

    const fn allows(&self) -> bool {
        matches!(self, Self::Profile(..) | Self::Allow(_) | Self::Redact(_))
    }

    fn into_public(self, name: &'static str, report: &Report) -> Ruling {
        let allowed = self.allows();
        let reason = match self {
            Self::Profile(profile, place) => Reason::Profile(profile, whereabouts(place, report)),
            Self::Allow(place) => Reason::Allow(whereabouts(place, report)),
            Self::Redact(place) => Reason::Redact(whereabouts(place, report)),
            Self::Deny(place) => Reason::Deny(whereabouts(place, report)),
            Self::Unnamed => Reason::Unnamed,
            Self::NotOffered => Reason::NotOffered,
        };
        Ruling { name, allowed, reason }
    }
}

fn whereabouts(place: Place, report: &Report) -> Where {
    Where { file: report.sources[place.source].path.clone(), line: report.line(place) }
}

/// Decides each row of the catalogue: deny, else redact, else allow, else the
/// profile. With it, what is allowed, and what of that is redacted.
fn commands(written: &Written, report: &mut Report) -> (Vec<Decided>, CommandSet, CommandSet) {
    let settings = &written.settings;
    let items = |name| settings.all("commands", name).filter_map(as_list).flatten();
    let profile = settings.text("", "profile").and_then(|at| Some((profiles::lookup(at.value)?, at.place)));
    for (winner, loser, both) in [
        ("deny", "allow", "both allowed and denied"),
        ("deny", "redact", "both redacted and denied"),
        ("redact", "allow", "both allowed and redacted"),
    ] {
        for at in items(winner) {
            let same = |other: &At<Value>| other.text() == at.text() && other.place.source == at.place.source;
            if items(loser).any(same) {
                let what = format!("{} is {both} in this file", at.text());
                let help = format!("name it once; '{winner}' wins over '{loser}' of other files");
                report.error(Kind::NamedTwice, at.place, what, help);
            }
        }
    }
    let rulings: Vec<Decided> = CATALOGUE
        .iter()
        .map(|entry| {
            let named = |name| items(name).find(|item| item.text() == entry.name);
            match (entry.command, named("deny"), named("redact"), named("allow"), profile) {
                (_, Some(denied), ..) => Decided::Deny(denied.place),
                (None, ..) => Decided::NotOffered,
                (_, _, Some(redacted), ..) => Decided::Redact(redacted.place),
                (_, _, _, Some(allowed), _) => Decided::Allow(allowed.place),
                (Some(command), _, _, _, Some((profile, place))) if profile.set().contains(command) => {
                    Decided::Profile(profile.name, place)
                }
                _ => Decided::Unnamed,
            }
        })
        .collect();
    let those = |are: fn(&Decided) -> bool| {
        CATALOGUE
            .iter()
            .zip(&rulings)
            .filter(|(_, ruling)| are(ruling))
            .filter_map(|(entry, _)| entry.command)
            .collect()
    };
    let (allowed, redacted) = (those(Decided::allows), those(|ruling| matches!(ruling, Decided::Redact(_))));
    (rulings, allowed, redacted)
}

fn as_list(at: &At<Value>) -> Option<&Vec<At<Value>>> {
    if let Value::List(list) = &at.value { Some(list) } else { None }
}

/// Commands that make sense only together, and settings that nothing uses.
fn families(policy: &Policy, rulings: &[Decided], written: &Written, rules: &[Place], report: &mut Report) {
    // What was not understood may have set any of this.
    if !report.is_complete() {
        return;
    }
    let good_so_far = !report.has_errors();
    let known = |keys: &[&str]| !keys.iter().any(|key| written.tainted.iter().any(|tainted| tainted == key));
    if !known(&["profile", "commands.allow", "commands.redact", "commands.deny"]) {
        return;
    }
    let allowed = policy.commands;
    // Where a command was allowed; the whole main file for one that was not.
    let place = |command: Command| rulings[command as usize].place().unwrap_or(Place::whole(report_main(written)));
    let freezing = [FsfreezeFreeze, FsfreezeFreezeList].into_iter().find(|&command| allowed.contains(command));
    if let Some(freeze) = freezing {
        if !allowed.contains(FsfreezeThaw) {
            let what = format!("{freeze} is allowed, {FsfreezeThaw} is not: filesystems would stay frozen");
            report.error(Kind::FreezeWithoutThaw, place(freeze), what, format!("allow \"{FsfreezeThaw}\" too"));
        }
        if !allowed.contains(FsfreezeStatus) && good_so_far {
            let what = format!("{freeze} is allowed, {FsfreezeStatus} is not: hosts ask it to follow a freeze");
            report.warn(Kind::IncompleteFamily, place(freeze), what, format!("allow \"{FsfreezeStatus}\" too"));
        }
    }
    if allowed.contains(ShutdownCommand) && policy.shutdown.modes.is_empty() && known(&["shutdown.modes"]) {
        let what = format!("{ShutdownCommand} is allowed, but no mode of it");
        let help = "write modes = [\"powerdown\", \"reboot\"] under [shutdown]";
        report.error(Kind::ShutdownWithoutModes, place(ShutdownCommand), what, help);
    }
    if good_so_far {
        unused(allowed, &place, written, rules, report);
    }
}

/// What is allowed or written to no use.
fn unused(
    allowed: CommandSet,
    place: &dyn Fn(Command) -> Place,
    written: &Written,
    rules: &[Place],
    report: &mut Report,
) {
    let opens = allowed.contains(FileOpen);
    let by_handle = allowed.iter().find(|command| *command != FileOpen && command.name().starts_with("guest-file-"));
    match (opens, by_handle, rules.first()) {
        (false, Some(command), _) => {
            let what = format!("{command} is allowed, {FileOpen} is not: there is no handle to use");
            report.warn(Kind::IncompleteFamily, place(command), what, format!("allow \"{FileOpen}\" too"));
        }
        (false, None, Some(&rule)) => {
            let what = format!("{FileOpen} is not allowed, so file rules have no use");
            report.warn(Kind::IdleSetting, rule, what, "write profile = \"files\", or allow the file commands");
        }
        (true, _, None) if written.rules.is_empty() => {
            let what = format!("{FileOpen} is allowed, but no [[files]] rule names a path");
            report.warn(Kind::IdleSetting, place(FileOpen), what, "write a [[files]] rule with path and rights");
        }
        _ => {}
    }
    let modes = written.settings.list("shutdown", "modes");
    if let Some(modes) = modes.filter(|modes| !modes.value.is_empty() && !allowed.contains(ShutdownCommand)) {
        let what = format!("{ShutdownCommand} is not allowed, so these modes have no use");
        report.warn(Kind::IdleSetting, modes.place, what, format!("allow \"{ShutdownCommand}\", or leave them out"));
    }
    for key in keys::of_table("facts") {
        let heeds = |command: Command| command.redaction().is_some_and(|row| row.keys.contains(&key.name));
        let setting = written.settings.all("facts", key.name).last();
        if let Some(setting) = setting.filter(|_| !allowed.iter().any(heeds)) {
            let of = REDACTIONS.iter().filter(|row| row.keys.contains(&key.name)).map(|row| row.name);
            let of = of.collect::<Vec<_>>().join(" nor ");
            let what = format!("{of} is not allowed, so this has no use");
            report.warn(Kind::IdleSetting, setting.place, what, "allow or redact it, or leave this out");
        }
    }
    if !allowed.contains(Sync) && !allowed.contains(SyncDelimited) {
        let what = format!("neither {SyncDelimited} nor {Sync} is allowed: hosts cannot connect");
        report.warn(Kind::NoSync, Place::whole(report_main(written)), what, "write profile = \"minimal\" or another");
    }
}

/// The main file's number: the first after the defaults, if it could be read.
fn report_main(written: &Written) -> usize {
    usize::from(written.files > 0)
}

/// Log and state belong to the broker's account, the policy must not.
fn own_places(written: &Written, own: &Own<'_>, report: &mut Report) {
    let log_directory = own.log.parent().unwrap_or(own.log);
    for (directory, table, name) in [(own.state, "state", "directory"), (log_directory, "audit", "log")] {
        let Some(at) = written.settings.text(table, name) else { continue };
        if let Some(policy) = own.policy.iter().find(|policy| policy.starts_with(directory)) {
            let what =
                format!("the policy's {} lies in a directory of the broker, who could change it", policy.display());
            report.error(Kind::CoversOwn, at.place, what, "write another directory");
        }
    }
    if own.log.starts_with(own.state)
        && let Some(at) = written.settings.text("audit", "log")
    {
        let what =
            "the log lies in the state directory, which is best on a tmpfs: a restart of the guest would lose it";
        report.warn(Kind::IdleSetting, at.place, what, "write another directory, such as /var/log/postern");
    }
}
