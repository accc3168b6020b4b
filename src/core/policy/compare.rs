//! Two policies: what the new one allows more or less than the old, key by key,
//! and what of it a running broker cannot take on.
//!
//! One row for each key of the key table, which a test holds complete. "Tightens"
//! is a promise: all that the new policy allows, the old one allowed; where a row
//! cannot promise it, it says "widens".
//!
//! Trust: pure; both policies are checked. Called by the broker for a reload.

use std::path::{Path, PathBuf};

use super::rules::{FileRule, Mode, Rights, Types, Verdict, decide};
use super::{Fsync, Policy};
use crate::catalogue::facts::FactSet;
use crate::catalogue::{Act, Command, CommandSet};

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    Same,
    /// The host may do less, or the record says more.
    Tightens,
    /// The host may do more, or the record says less.
    Widens,
}

/// What a broker has had since its start, and cannot get afterwards: parts of its
/// filter, of its Landlock domain, capabilities, threads, sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// It is not root's, so it never acts, whatever the policy says.
    pub unprivileged: bool,
    /// Commands that it was started for. Those of them that are not plain it has
    /// children for.
    pub commands: CommandSet,
    /// What it has told of the guest: what that is read from it opened at its start.
    pub facts: FactSet,
    /// It opens files, and so remembers which handles it gave.
    pub opens: bool,
    /// It freezes and thaws.
    pub freezes: bool,
    /// It shuts down in some way.
    pub shuts_down: bool,
    /// Its filter and capabilities suffice for the new policy's `[shutdown]`.
    pub shutdown_fits: bool,
    /// It waits for the log's disk.
    pub syncs: bool,
    /// It renames and removes its log's files.
    pub rotates: bool,
    /// It sends heads to journald.
    pub journal: bool,
    /// It sends heads to syslog.
    pub syslog: bool,
    /// The host is met where the policy says, not where the command line or the
    /// service manager does.
    pub channel: bool,
}

/// One key, or several that only count together.
struct Row {
    keys: &'static [&'static str],
    change: fn(&Policy, &Policy) -> Change,
    /// Whether the new policy's value takes a new start.
    restart: fn(&Policy, &Policy, &Held) -> bool,
}

const fn row(keys: &'static [&'static str], change: fn(&Policy, &Policy) -> Change) -> Row {
    Row { keys, change, restart: |_, _, _| false }
}

const fn fixed(keys: &'static [&'static str], change: fn(&Policy, &Policy) -> Change) -> Row {
    Row { keys, change, restart: |_, _, _| true }
}

impl Row {
    const fn restart(mut self, restart: fn(&Policy, &Policy, &Held) -> bool) -> Self {
        self.restart = restart;
        self
    }
}

/// Less of it is tighter.
fn less<T: Ord>(old: &T, new: &T) -> Change {
    match new.cmp(old) {
        std::cmp::Ordering::Less => Change::Tightens,
        std::cmp::Ordering::Equal => Change::Same,
        std::cmp::Ordering::Greater => Change::Widens,
    }
}

/// More of it is tighter.
fn more<T: Ord>(old: &T, new: &T) -> Change {
    less(new, old)
}

/// Neither is tighter.
fn other<T: PartialEq>(old: &T, new: &T) -> Change {
    if old == new { Change::Same } else { Change::Widens }
}

/// A subset is tighter.
fn subset<T: PartialEq>(old: &[T], new: &[T]) -> Change {
    let within = |one: &[T], other: &[T]| one.iter().all(|item| other.contains(item));
    match (within(new, old), within(old, new)) {
        (true, true) => Change::Same,
        (true, false) => Change::Tightens,
        _ => Change::Widens,
    }
}

/// How much a log waits for its disk.
const fn care(fsync: Fsync) -> u8 {
    match fsync {
        Fsync::Never => 0,
        Fsync::Open => 1,
        Fsync::Record => 2,
    }
}

fn freezes(policy: &Policy) -> bool {
    policy.needs(Act::Freeze) || policy.needs(Act::Thaw)
}

/// The commands of a policy whose acts take what only a start under it can get: a request
/// in the filter, descriptors of sysfs, capabilities.
fn acting(policy: &Policy) -> CommandSet {
    const ACTS: [Act; 4] = [Act::Trim, Act::Suspend, Act::SetVcpus, Act::SetMemoryBlocks];
    policy.commands.iter().filter(|command| command.entry().needs.acts.iter().any(|act| ACTS.contains(act))).collect()
}

/// The new policy shuts down in a way that the broker has no means for.
fn lacks_shutdown(new: &Policy, held: &Held) -> bool {
    !held.unprivileged && new.needs(Act::Shutdown) && !held.shutdown_fits
}

/// How much of a command's answer the host gets: nothing, little, all.
fn tells(policy: &Policy, command: Command) -> u8 {
    let (allowed, redacted) = (policy.commands.contains(command), policy.redact.contains(command));
    u8::from(allowed) + u8::from(allowed && !redacted)
}

/// A list of `[facts]`: what it holds is all that is told. Without one, all is,
/// or of commands that are redacted something that no list stands for.
fn listed<T: PartialEq>(old: &Policy, key: &str, lists: (&[T], &[T])) -> Change {
    let heeds = |command: Command| command.redaction().is_some_and(|row| row.keys.contains(&key));
    match lists {
        ([], []) => Change::Same,
        ([], _) if !old.redact.iter().any(heeds) => Change::Tightens,
        ([], _) | (_, []) => Change::Widens,
        (old, new) => subset(old, new),
    }
}

static ROWS: [Row; 33] = [
    // Every file says it, and there is one.
    row(&["version"], |_, _| Change::Same),
    row(&["profile", "commands.allow", "commands.redact", "commands.deny"], |old, new| {
        let each = Command::all().map(|command| less(&tells(old, command), &tells(new, command)));
        each.max().unwrap_or(Change::Same)
    })
    .restart(|old, new, held| {
        let freeze = !held.unprivileged && freezes(new) && !held.freezes;
        let open = new.commands.contains(Command::FileOpen) && !held.opens;
        let tell = !new.facts().is_within(held.facts)
            || new.commands.iter().any(|command| !command.is_plain() && !held.commands.contains(command));
        let act = !held.unprivileged && acting(new).iter().any(|command| !held.commands.contains(command));
        open || tell || freeze || act || (lacks_shutdown(new, held) && !old.commands.contains(Command::Shutdown))
    }),
    row(&["facts.interfaces"], |old, new| listed(old, "interfaces", (&old.facts.interfaces, &new.facts.interfaces))),
    row(&["facts.mountpoints"], |old, new| {
        listed(old, "mountpoints", (&old.facts.mountpoints, &new.facts.mountpoints))
    }),
    row(&["facts.host_name"], |old, new| match (&old.facts.host_name, &new.facts.host_name) {
        (None, Some(_)) if old.redact.is_empty() => Change::Tightens,
        (old, new) => other(old, new),
    }),
    row(&["files.path", "files.rights", "files.except", "files.optional", "files.types"], |old, new| {
        files(&old.files, &new.files)
    }),
    row(&["create.mode"], |old, new| match (old.create_mode, new.create_mode) {
        (old, new) if old == new => Change::Same,
        (old, new) if new & !old == 0 => Change::Tightens,
        _ => Change::Widens,
    }),
    row(&["freeze.limit"], |old, new| less(&old.freeze.limit, &new.freeze.limit)),
    row(&["shutdown.modes"], |old, new| subset(&old.shutdown.modes, &new.shutdown.modes))
        .restart(|_, new, held| lacks_shutdown(new, held)),
    row(&["shutdown.method"], |old, new| other(&old.shutdown.method, &new.shutdown.method))
        .restart(|_, new, held| lacks_shutdown(new, held)),
    row(&["limits.message"], |old, new| less(&old.limits.message, &new.limits.message)),
    row(&["limits.nesting"], |old, new| less(&old.limits.nesting, &new.limits.nesting)),
    row(&["limits.string"], |old, new| less(&old.limits.string, &new.limits.string)),
    row(&["limits.read"], |old, new| less(&old.limits.read, &new.limits.read)),
    row(&["limits.handles"], |old, new| less(&old.limits.handles, &new.limits.handles)),
    row(&["limits.requests"], |old, new| less(&old.limits.requests, &new.limits.requests)),
    row(&["limits.opens"], |old, new| less(&old.limits.opens, &new.limits.opens)),
    row(&["limits.acts"], |old, new| less(&old.limits.acts, &new.limits.acts)),
    // A worker that hangs has its host wait; how long is neither more nor less.
    row(&["limits.hang"], |old, new| other(&old.hang, &new.hang)),
    fixed(&["audit.log"], |old, new| other(&old.audit.log, &new.audit.log)),
    row(&["audit.fsync"], |old, new| more(&care(old.audit.fsync), &care(new.audit.fsync)))
        .restart(|_, new, held| new.audit.fsync != Fsync::Never && !held.syncs),
    row(&["audit.rotate_bytes"], |old, new| other(&old.audit.rotate_bytes, &new.audit.rotate_bytes))
        .restart(|_, new, held| new.audit.rotate_bytes.is_some() && !held.rotates),
    row(&["audit.keep"], |old, new| more(&old.audit.keep, &new.audit.keep)),
    row(&["audit.keep_days"], |old, new| more(&old.audit.keep_time, &new.audit.keep_time)),
    row(&["audit.max_bytes"], |old, new| less(&old.audit.max_bytes, &new.audit.max_bytes)),
    row(&["audit.heads"], |old, new| {
        let (old, new) = (&old.audit.heads, &new.audit.heads);
        more(&old.journal, &new.journal).max(more(&old.syslog, &new.syslog))
    })
    .restart(|_, new, held| {
        let heads = &new.audit.heads;
        (heads.journal && !held.journal) || (heads.syslog && !held.syslog)
    }),
    row(&["audit.head_records"], |old, new| less(&old.audit.heads.records, &new.audit.heads.records)),
    row(&["audit.head_interval"], |old, new| less(&old.audit.heads.interval, &new.audit.heads.interval)),
    fixed(&["identities.worker"], |old, new| other(&old.identities.worker, &new.identities.worker)),
    fixed(&["identities.broker"], |old, new| other(&old.identities.broker, &new.identities.broker)),
    fixed(&["identities.groups"], |old, new| other(&old.identities.groups, &new.identities.groups)),
    fixed(&["channel.method", "channel.path", "channel.port", "channel.peer"], |old, new| {
        other(&old.channel, &new.channel)
    })
    .restart(|_, _, held| held.channel),
    fixed(&["state.directory"], |old, new| other(&old.state, &new.state)),
];

/// Every difference of two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Keys of which the new policy takes something away.
    pub tightened: Vec<&'static str>,
    /// Keys of which it gives something, or changes what is neither.
    pub widened: Vec<&'static str>,
    /// Those of both that take a new start.
    pub restart: Vec<&'static str>,
    /// What the broker holds and the new policy has no use for.
    pub surplus: Vec<&'static str>,
    /// The host could not thaw any more.
    loses_thaw: bool,
}

/// What becomes of a new policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the one that is in force.
    Unchanged,
    /// It can take its place.
    Fits,
    /// It cannot, or not now: the old one stays, all of it.
    Kept(String),
}

/// Compares.
#[must_use]
pub fn compare(old: &Policy, new: &Policy, held: &Held) -> Comparison {
    let mut found = Comparison { loses_thaw: !held.unprivileged && thaws(old) && !thaws(new), ..Comparison::default() };
    for row in &ROWS {
        let change = (row.change)(old, new);
        match change {
            Change::Same => {}
            Change::Tightens => found.tightened.extend(row.keys),
            Change::Widens => found.widened.extend(row.keys),
        }
        if change != Change::Same && (row.restart)(old, new, held) {
            found.restart.extend(row.keys);
        }
    }
    let surplus = [
        ("opening files", held.opens && !new.commands.contains(Command::FileOpen)),
        ("freezing", held.freezes && !freezes(new)),
        ("shutting down", held.shuts_down && !new.needs(Act::Shutdown)),
        ("trimming", held.commands.needs_act(Act::Trim) && !new.needs(Act::Trim)),
        ("suspending", held.commands.needs_act(Act::Suspend) && !new.needs(Act::Suspend)),
        ("switching processors", held.commands.needs_act(Act::SetVcpus) && !new.needs(Act::SetVcpus)),
        ("switching memory blocks", held.commands.needs_act(Act::SetMemoryBlocks) && !new.needs(Act::SetMemoryBlocks)),
        ("telling of the guest", !held.facts.is_within(new.facts())),
        ("waiting for the log's disk", held.syncs && new.audit.fsync == Fsync::Never),
        ("rotating the log", held.rotates && new.audit.rotate_bytes.is_none()),
    ];
    found.surplus = surplus.into_iter().filter(|(_, is)| *is).map(|(what, _)| what).collect();
    found
}

fn thaws(policy: &Policy) -> bool {
    policy.commands.contains(Command::FsfreezeThaw)
}

impl Comparison {
    /// Whether the two differ in more than words.
    #[must_use]
    pub const fn changes(&self) -> bool {
        !self.tightened.is_empty() || !self.widened.is_empty()
    }

    /// Whether nothing is widened.
    #[must_use]
    pub fn only_tightens(&self) -> bool {
        self.widened.is_empty()
    }

    /// What becomes of the new policy; `frozen` says that filesystems are frozen.
    #[must_use]
    pub fn outcome(&self, frozen: bool) -> Outcome {
        let list = |keys: &[&str]| keys.join(", ");
        if !self.changes() {
            Outcome::Unchanged
        } else if !self.restart.is_empty() {
            Outcome::Kept(format!("{} take a new start: systemctl restart postern", list(&self.restart)))
        } else if frozen && !self.only_tightens() {
            Outcome::Kept(format!("filesystems are frozen, and {} would be widened: thaw first", list(&self.widened)))
        } else if frozen && self.loses_thaw {
            Outcome::Kept("filesystems are frozen, and the host could not thaw them any more: thaw first".to_owned())
        } else {
            Outcome::Fits
        }
    }
}

/// File rules. The answer of [`decide`] for a path depends only on which rules and
/// exceptions lie on the way to it, so the paths of these stand for all others.
fn files(old: &[FileRule], new: &[FileRule]) -> Change {
    if old == new {
        return Change::Same;
    }
    let named = |rules: &[FileRule]| -> Vec<PathBuf> {
        rules.iter().flat_map(|rule| std::iter::once(&rule.path).chain(&rule.except)).cloned().collect()
    };
    let mut paths = named(old);
    paths.extend(named(new));
    paths.sort_unstable();
    paths.dedup();
    let within = paths.iter().all(|path| Mode::ALL.into_iter().all(|mode| allows_no_more(old, new, path, mode)));
    // What Landlock lets the opener do is the sum of its rules.
    let landlock = new.iter().all(|rule| rule.rights.bits() & !reach(old, &rule.path).bits() == 0);
    if within && landlock { Change::Tightens } else { Change::Widens }
}

/// All that Landlock grants at a path by these rules.
fn reach(rules: &[FileRule], path: &Path) -> Rights {
    rules.iter().filter(|rule| path.starts_with(&rule.path)).fold(Rights::NONE, |all, rule| all.with(rule.rights))
}

/// Whether `new` lets `path` be opened in `mode` only as far as `old` does.
fn allows_no_more(old: &[FileRule], new: &[FileRule], path: &Path, mode: Mode) -> bool {
    let answer = |rules: &[FileRule]| match decide(rules, path, mode) {
        Verdict::Allowed { rule, existing, missing } => Some((rules[rule].types, existing, missing)),
        Verdict::NotCanonical | Verdict::Unreached | Verdict::Excepted { .. } | Verdict::LacksRight { .. } => None,
    };
    let within = |new: Types, old: Types| old.contains(new);
    match (answer(old), answer(new)) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(old), Some(new)) => within(new.0, old.0) && (old.1 || !new.1) && (old.2 || !new.2),
    }
}

#[cfg(test)]
mod tests;
