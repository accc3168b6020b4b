//! Settings → [`Policy`]: what can only be seen when all files are merged.
//!
//! Called by `written` only. Always makes a policy, so that every mistake is
//! found in one go; whether it may be used, the report says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mistake::{Kind, Place, Report};
use super::read::{At, Settings, Value, Written};
use super::{World, paths, profiles};
use crate::catalogue::Command::{
    FileOpen, FsfreezeFreeze, FsfreezeFreezeList, FsfreezeStatus, FsfreezeThaw, Shutdown as ShutdownCommand, Sync,
    SyncDelimited,
};
use crate::catalogue::{CATALOGUE, Command, CommandSet};
use crate::policy::{
    Account, Audit, Channel, Freeze, Fsync, Heads, Identities, Limits, Policy, Shutdown, ShutdownMethod, ShutdownMode,
    Vsock,
};

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

    let (rulings, commands) = commands(written, report);
    let shutdown = Shutdown {
        modes: settings.list("shutdown", "modes").map_or_else(Vec::new, |at| {
            at.value.iter().filter_map(|item| ShutdownMode::from_name(item.text())).collect()
        }),
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
        },
        audit: audit(settings),
        identities: identities(written, world, report),
        channel: channel(written, report),
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

fn audit(settings: &Settings) -> Audit {
    let number = |name| settings.number("audit", name).map_or(0, |at| at.value);
    let heads =
        |name: &str| settings.list("audit", "heads").is_some_and(|at| at.value.iter().any(|item| item.text() == name));
    Audit {
        log: PathBuf::from(settings.text("audit", "log").map_or("", |at| at.value)),
        fsync: match settings.text("audit", "fsync").map(|at| at.value) {
            Some("open") => Fsync::Open,
            Some("record") => Fsync::Record,
            _ => Fsync::Never,
        },
        rotate_bytes: settings.number("audit", "rotate_bytes").map(|at| at.value),
        keep: usize::try_from(number("keep")).unwrap_or(usize::MAX),
        keep_time: Duration::from_secs(number("keep_days").saturating_mul(24 * 60 * 60)),
        max_bytes: number("max_bytes"),
        heads: Heads {
            journal: heads("journal"),
            syslog: heads("syslog"),
            records: number("head_records"),
            interval: Duration::from_secs(number("head_interval")),
        },
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
    Deny(Place),
    Unnamed,
    NotOffered,
}

impl Decided {
    const fn place(&self) -> Option<Place> {
        match self {
            Self::Profile(_, place) | Self::Allow(place) | Self::Deny(place) => Some(*place),
            Self::Unnamed | Self::NotOffered => None,
        }
    }

    const fn allows(&self) -> bool {
        matches!(self, Self::Profile(..) | Self::Allow(_))
    }

    fn into_public(self, name: &'static str, report: &Report) -> Ruling {
        let allowed = self.allows();
        let reason = match self {
            Self::Profile(profile, place) => Reason::Profile(profile, whereabouts(place, report)),
            Self::Allow(place) => Reason::Allow(whereabouts(place, report)),
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

/// Decides each row of the catalogue: deny, else allow, else the profile.
fn commands(written: &Written, report: &mut Report) -> (Vec<Decided>, CommandSet) {
    let settings = &written.settings;
    let items = |name| settings.all("commands", name).filter_map(as_list).flatten();
    let profile = settings.text("", "profile").and_then(|at| Some((profiles::lookup(at.value)?, at.place)));
    for denied in items("deny") {
        let same_file =
            |allowed: &&At<Value>| allowed.text() == denied.text() && allowed.place.source == denied.place.source;
        if items("allow").any(|allowed| same_file(&allowed)) {
            let what = format!("{} is both allowed and denied in this file", denied.text());
            report.error(Kind::AllowedAndDenied, denied.place, what, "name it once; 'deny' wins over other files");
        }
    }
    let rulings: Vec<Decided> = CATALOGUE
        .iter()
        .map(|entry| {
            let named = |name| items(name).find(|item| item.text() == entry.name);
            match (entry.command, named("deny"), named("allow"), profile) {
                (_, Some(denied), ..) => Decided::Deny(denied.place),
                (None, ..) => Decided::NotOffered,
                (_, _, Some(allowed), _) => Decided::Allow(allowed.place),
                (Some(command), _, _, Some((profile, place))) if profile.set().contains(command) => {
                    Decided::Profile(profile.name, place)
                }
                _ => Decided::Unnamed,
            }
        })
        .collect();
    let allowed = CATALOGUE.iter().zip(&rulings).filter(|(_, ruling)| ruling.allows());
    let set = allowed.filter_map(|(entry, _)| entry.command).collect();
    (rulings, set)
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
    if !known(&["profile", "commands.allow", "commands.deny"]) {
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
    if !allowed.contains(Sync) && !allowed.contains(SyncDelimited) {
        let what = format!("neither {SyncDelimited} nor {Sync} is allowed: hosts cannot connect");
        report.warn(Kind::NoSync, Place::whole(report_main(written)), what, "write profile = \"minimal\" or another");
    }
}

/// The main file's number: the first after the defaults, if it could be read.
fn report_main(written: &Written) -> usize {
    usize::from(written.files > 0)
}

/// The method and where, which must fit.
fn channel(written: &Written, report: &mut Report) -> Channel {
    let method = written.settings.text("channel", "method");
    let path = written.settings.text("channel", "path");
    let text = path.as_ref().map_or("", |at| at.value);
    let kind = method.as_ref().map_or("virtio-serial", |at| at.value);
    let given = path.as_ref().is_some_and(|path| path.place.source != 0);
    let port = written.settings.number("channel", "port");
    let peer = written.settings.number("channel", "peer");
    if let Some(method) = &method {
        let needs = match kind {
            "unix-listen" if !given => Some(("a path", "path = \"/run/postern/host.sock\"")),
            "isa-serial" if !given => Some(("a path", "path = \"/dev/ttyS0\"")),
            "vsock-listen" if port.is_none() => Some(("a port", "port = 1234")),
            _ => None,
        };
        if let Some((what, example)) = needs {
            let article = if kind == "isa-serial" { "an" } else { "a" };
            let what = format!("{article} {kind} channel needs {what}");
            report.error(Kind::ChannelPath, method.place, what, format!("write {example} under [channel]"));
        }
    }
    if let Some(path) = path.as_ref().filter(|path| given && Path::new(path.value).starts_with("/dev"))
        && kind == "unix-listen"
    {
        let help = "write a path such as \"/run/postern/host.sock\"";
        let what = "a unix-listen channel makes a socket, which /dev is not for";
        report.error(Kind::ChannelPath, path.place, what, help);
    }
    let vsock = kind == "vsock-listen";
    let written = |at: &Option<At<u64>>| at.as_ref().filter(|at| at.place.source != 0).map(|at| at.place);
    let idle =
        if vsock { path.as_ref().filter(|_| given).map(|at| at.place) } else { written(&port).or(written(&peer)) };
    if let Some(place) = idle {
        let what = format!("a {kind} channel does not use this");
        report.warn(Kind::IdleSetting, place, what, "leave it out");
    }
    let number = |at: Option<At<u64>>| at.and_then(|at| u32::try_from(at.value).ok());
    let path = PathBuf::from(text);
    match kind {
        "isa-serial" => Channel::IsaSerial(path),
        "unix-listen" => Channel::UnixListen(path),
        "vsock-listen" => Channel::VsockListen(Vsock {
            cid: Vsock::ANY,
            port: number(port).unwrap_or_default(),
            peer: number(peer).unwrap_or(Vsock::HOST),
        }),
        _ => Channel::VirtioSerial(path),
    }
}

/// Looks the accounts up.
fn identities(written: &Written, world: &World, report: &mut Report) -> Identities {
    let account = |role: &str, report: &mut Report| {
        let at = written.settings.either("identities", role)?;
        let (name, uid, gid) = match &at.value {
            Value::Number(id) => {
                let id = u32::try_from(*id).ok()?;
                (id.to_string(), id, id)
            }
            Value::Text(name) => {
                let Some((uid, gid)) = world.account(name) else {
                    let what = format!("[identities] {role}: there is no account '{name}' in /etc/passwd");
                    let help = format!("make it (useradd --system {name}), or name another: {role} = \"ACCOUNT\"");
                    missing(at.place, world, what, help, report);
                    return None;
                };
                (name.clone(), uid, gid)
            }
            _ => return None,
        };
        // 65534 is what the kernel shows for users that it cannot map.
        if uid == 0 || gid == 0 || uid == 65534 {
            let what = format!("account '{name}' (user {uid}, group {gid}) belongs to others too");
            report.error(Kind::UnfitAccount, at.place, what, "write an account that nothing else uses");
            return None;
        }
        Some((Account { name, uid, gid }, at.place))
    };
    let worker = account("worker", report);
    let broker = account("broker", report);
    if let (Some((worker, _)), Some((broker, place))) = (&worker, &broker)
        && (worker.uid == broker.uid || worker.gid == broker.gid)
    {
        let shared = if worker.uid == broker.uid { "account" } else { "group" };
        let what = format!("worker and broker have the same {shared}, which would open the broker to the worker");
        report.error(Kind::SharedAccount, *place, what, "give each an account and group of its own");
    }
    let mut groups = Vec::new();
    for item in written.settings.list("identities", "groups").map_or(&[][..], |at| at.value) {
        let id = match &item.value {
            Value::Number(id) => u32::try_from(*id).ok(),
            Value::Text(name) => {
                let id = world.group(name);
                if id.is_none() {
                    let what = format!("there is no group '{name}' in /etc/group");
                    let help = format!("make it (groupadd --system {name}), or write a number");
                    missing(item.place, world, what, help, report);
                }
                id
            }
            _ => None,
        };
        let brokers = broker.as_ref().is_some_and(|(broker, _)| Some(broker.gid) == id);
        match id {
            Some(_) if brokers => {
                let what = "this is the broker's group, which would open the broker to the worker";
                report.error(Kind::SharedAccount, item.place, what, "leave it out");
            }
            Some(0) => {
                let what = "this is root's group";
                report.error(Kind::UnfitAccount, item.place, what, "write a group that may read only what is meant");
            }
            Some(id) => groups.push(id),
            None => {}
        }
    }
    Identities { worker: worker.map(|(account, _)| account), broker: broker.map(|(account, _)| account), groups }
}

/// An account that is not there: root needs it, nobody else does, and on
/// another machine it may be there.
fn missing(place: Place, world: &World, what: String, help: String, report: &mut Report) {
    if world.here && world.euid == 0 {
        report.error(Kind::UnknownAccount, place, what, help);
    } else if world.here && world.wants_accounts {
        report.warn(Kind::NotHere, place, what, help);
    }
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
