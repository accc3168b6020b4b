//! `policy test`: the gates that an open passes, in the order in which it
//! meets them, and what each would say.
//!
//! Uses the same questions as the processes themselves: `rules::decide`,
//! `Types::of_mode`, `landlock::access_of`.
//!
//! Trust: run by the operator; looks, changes nothing.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use postern_core::catalogue::Command;
use postern_core::confine::landlock::access_of;
use postern_core::policy::rules::{self, FileRule, Mode, Rights, Types, Verdict};
use postern_core::policy::written::{Loaded, Where};

use super::permissions::{self, Need, Subject};

/// What the host would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Right {
    /// Read what is there.
    Read,
    /// Overwrite or empty what is there.
    Write,
    /// Make what is not there.
    Create,
    /// Add to the end of what is there.
    Append,
}

impl Right {
    const fn mode(self) -> Mode {
        match self {
            Self::Read => Mode::Read,
            Self::Write | Self::Create => Mode::Write,
            Self::Append => Mode::Append,
        }
    }

    const fn right(self) -> Rights {
        match self {
            Self::Read => Rights::READ,
            Self::Write => Rights::WRITE,
            Self::Create => Rights::CREATE,
            Self::Append => Rights::APPEND,
        }
    }

    const fn command(self) -> Command {
        match self {
            Self::Read => Command::FileRead,
            Self::Write | Self::Create | Self::Append => Command::FileWrite,
        }
    }
}

/// One barrier's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Which barrier.
    pub name: &'static str,
    /// `None` where it could not be asked.
    pub passes: Option<bool>,
    /// Why.
    pub why: String,
    /// What to change, if it refuses.
    pub fix: Option<String>,
}

impl Gate {
    fn pass(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, passes: Some(true), why: why.into(), fix: None }
    }

    fn refuse(name: &'static str, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, passes: Some(false), why: why.into(), fix: Some(fix.into()) }
    }

    fn unknown(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, passes: None, why: why.into(), fix: None }
    }
}

/// What every barrier says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was asked.
    pub right: Right,
    /// Of which path.
    pub path: PathBuf,
    /// In the order in which an open meets them.
    pub gates: Vec<Gate>,
}

impl Outcome {
    /// Whether no barrier refuses, and each could be asked.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.gates.iter().all(|gate| gate.passes == Some(true))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refusing: Vec<&str> =
            self.gates.iter().filter(|gate| gate.passes != Some(true)).map(|gate| gate.name).collect();
        let verdict = match refusing.as_slice() {
            [] => "allowed".to_owned(),
            names => format!("refused by {}", names.join(", ")),
        };
        writeln!(f, "{} {}: {verdict}", self.right.right(), self.path.display())?;
        for gate in &self.gates {
            let word = match gate.passes {
                Some(true) => "allows",
                Some(false) => "REFUSES",
                None => "unknown",
            };
            writeln!(f, "  {:<17} {word:<8} {}", gate.name, gate.why)?;
            if let Some(fix) = &gate.fix {
                writeln!(f, "  {:<17} {:<8} to change it: {fix}", "", "")?;
            }
        }
        Ok(())
    }
}

const POLICY: &str = "policy (broker)";
const LANDLOCK: &str = "Landlock (opener)";
const OPENER: &str = "opener";
const PERMISSIONS: &str = "file permissions";

/// What stands at the path: the object, or for a new file the directory that
/// would hold it.
struct Target {
    /// The path that the kernel has for it.
    resolved: PathBuf,
    /// `st_mode`; `None` for a file that would be made.
    st_mode: Option<u32>,
}

/// Asks every barrier.
#[must_use]
pub fn try_open(loaded: &Loaded, right: Right, path: &Path) -> Outcome {
    let mut gates = commands(loaded, right);
    let target = target(right, path);
    let exists = target.as_ref().is_ok_and(|target| target.st_mode.is_some());
    let policy = &loaded.policy;
    gates.push(rule_gate(POLICY, loaded, right, path, exists));
    match &target {
        Err(why) => gates.push(Gate::unknown(OPENER, format!("cannot look: {why}"))),
        Ok(target) => {
            gates.push(landlock(&policy.files, right, target));
            let rules = rule_gate(OPENER, loaded, right, &target.resolved, exists);
            gates.push(match (&rules.passes, target.st_mode) {
                (Some(true), Some(mode)) => types(loaded, right, &target.resolved, mode),
                _ => rules,
            });
            gates.push(permission(loaded, right, path, target));
        }
    }
    // What one change mends is said once.
    let mut said: Vec<Option<String>> = Vec::new();
    for gate in &mut gates {
        if said.contains(&gate.fix) {
            gate.fix = None;
        }
        said.push(gate.fix.clone());
    }
    Outcome { right, path: path.to_path_buf(), gates }
}

fn commands(loaded: &Loaded, right: Right) -> Vec<Gate> {
    let allowed = loaded.policy.commands;
    let needed = [Command::FileOpen, right.command()];
    let missing: Vec<&str> =
        needed.into_iter().filter(|command| !allowed.contains(*command)).map(Command::name).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let names = missing.join(" and ");
    vec![Gate::refuse(
        "commands",
        format!("the policy does not allow {names}"),
        format!("write allow = [\"{}\"] under [commands]", missing.join("\", \"")),
    )]
}

/// Where the open would end.
fn target(right: Right, path: &Path) -> Result<Target, String> {
    let at =
        |path: &Path, what: &str| fs::canonicalize(path).map_err(|error| format!("{what}{}: {error}", path.display()));
    let found = fs::metadata(path);
    let makes = right == Right::Create || right == Right::Append || right == Right::Write;
    match found {
        Ok(found) if right != Right::Create => Ok(Target { resolved: at(path, "")?, st_mode: Some(found.mode()) }),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound || !makes => {
            Err(format!("{}: {error}", path.display()))
        }
        // 'create' asks about a file that is not there, even if this one is.
        _ => {
            let parent = path.parent().ok_or("the root is no file")?;
            let name = path.file_name().ok_or_else(|| format!("{} names no file", path.display()))?;
            Ok(Target { resolved: at(parent, "its directory ")?.join(name), st_mode: None })
        }
    }
}

fn show(place: Option<&Where>) -> String {
    place.map_or_else(String::new, |place| format!("{}:{}", place.file.display(), place.line))
}

/// The policy's rules about one path; broker and opener ask the same.
fn rule_gate(name: &'static str, loaded: &Loaded, right: Right, path: &Path, exists: bool) -> Gate {
    let rules = &loaded.policy.files;
    let place = |rule: usize| show(loaded.why.files.get(rule));
    let shown = path.display();
    match rules::decide(rules, path, right.mode()) {
        Verdict::Allowed { rule, existing, missing } => {
            let lacking = match (exists, existing, missing) {
                (true, false, _) if right == Right::Append => Some("append"),
                (true, false, _) => Some("write"),
                (false, _, false) => Some("create"),
                _ => None,
            };
            match lacking {
                Some(lacking) => {
                    let state = if exists { "exists" } else { "does not exist" };
                    let why = format!("{shown} {state}, and the rule gives no '{lacking}' ({})", place(rule));
                    Gate::refuse(name, why, format!("add \"{lacking}\" to its rights"))
                }
                None => Gate::pass(name, format!("{shown}: rule for {} ({})", rules[rule].path.display(), place(rule))),
            }
        }
        Verdict::NotCanonical => Gate::refuse(
            name,
            format!("{shown} is relative, or has '.', '..' or '//' in it"),
            "name the plain path from / on",
        ),
        Verdict::Unreached => Gate::refuse(name, format!("no rule reaches {shown}"), new_rule(right, path, exists)),
        Verdict::Excepted { rule } => {
            let why = format!("{shown} is excepted from the rule for {} ({})", rules[rule].path.display(), place(rule));
            Gate::refuse(name, why, "take it out of 'except', or write a rule for this very path")
        }
        Verdict::LacksRight { rule } => {
            let why =
                format!("the rule for {} gives no '{}' ({})", rules[rule].path.display(), right.right(), place(rule));
            Gate::refuse(name, why, format!("add \"{}\" to its rights", right.right()))
        }
    }
}

/// The rule that would reach a path; to make a file, one for its directory.
fn new_rule(right: Right, path: &Path, exists: bool) -> String {
    let parent = path.parent().unwrap_or(path);
    let (path, rights) = match right {
        Right::Create => (parent, "\"create\"".to_owned()),
        _ if exists || right == Right::Read => (path, format!("\"{}\"", right.right())),
        _ => (parent, format!("\"{}\", \"create\"", right.right())),
    };
    format!("write a [[files]] rule: path = \"{}\", rights = [{rights}]", path.display())
}

/// What the opener's domain would let through: rights of every rule above add up.
fn landlock(rules: &[FileRule], right: Right, target: &Target) -> Gate {
    let (name, needed) = match (right, target.st_mode) {
        (Right::Read, _) => ("read", access_of(Rights::READ, false)),
        (Right::Write, Some(_)) => ("write", access_of(Rights::WRITE, false)),
        (Right::Append, Some(_)) => ("append", access_of(Rights::APPEND, false)),
        _ => ("create", access_of(Rights::CREATE, true)),
    };
    let mut held = access_of(Rights::NONE, false);
    for rule in rules.iter().filter(|rule| target.resolved.starts_with(&rule.path)) {
        let directory = rule.path != target.resolved;
        held |= access_of(rule.rights, directory);
    }
    let resolved = target.resolved.display();
    if held.contains(needed) {
        Gate::pass(LANDLOCK, format!("{resolved} lies beneath a rule with the right"))
    } else {
        let fix = new_rule(right, &target.resolved, target.st_mode.is_some());
        Gate::refuse(LANDLOCK, format!("{resolved} lies beneath no rule that gives '{name}'"), fix)
    }
}

/// The opener's look at the object.
fn types(loaded: &Loaded, right: Right, path: &Path, st_mode: u32) -> Gate {
    let Verdict::Allowed { rule, .. } = rules::decide(&loaded.policy.files, path, right.mode()) else {
        return Gate::unknown(OPENER, "no rule");
    };
    let place = show(loaded.why.files.get(rule));
    match Types::of_mode(st_mode) {
        Some(kind) if loaded.policy.files[rule].types.contains(kind) => {
            Gate::pass(OPENER, format!("{} is a {kind} object, as the rule wants ({place})", path.display()))
        }
        Some(kind) => Gate::refuse(
            OPENER,
            format!("{} is a {kind} object, which the rule does not allow ({place})", path.display()),
            format!("add types = [\"{kind}\"] to the rule"),
        ),
        None => Gate::refuse(
            OPENER,
            format!("{} is a directory or a socket, which are never opened", path.display()),
            "name a file",
        ),
    }
}

/// File permissions of the worker's account.
fn permission(loaded: &Loaded, right: Right, path: &Path, target: &Target) -> Gate {
    let root = nix::unistd::geteuid().is_root();
    let identities = &loaded.policy.identities;
    let (who, name) = match (&identities.worker, root) {
        (Some(account), true) => {
            (Subject { uid: account.uid, gid: account.gid, groups: identities.groups.clone() }, account.name.clone())
        }
        // Without root postern runs as whoever starts it.
        (_, false) => (Subject::current(), "you (postern without root runs as you)".to_owned()),
        (None, true) => return Gate::unknown(PERMISSIONS, "the worker's account is not on this machine"),
    };
    let parent = path.parent().unwrap_or(path);
    let (path, need) = match (right, target.st_mode) {
        (Right::Read, _) => (path, Need::Read),
        (_, Some(_)) => (path, Need::Write),
        (_, None) => (parent, Need::Add),
    };
    let bits = match permissions::by_bits(path, &who, need) {
        Ok(obstacle) => obstacle,
        Err(error) => return Gate::unknown(PERMISSIONS, format!("cannot look at {}: {error}", path.display())),
    };
    let kernel = permissions::by_kernel(path, &who, need);
    let sure = if kernel.is_some() { "the kernel was asked" } else { "by permission bits; an ACL could say otherwise" };
    match (kernel, bits) {
        (Some(Ok(())), _) | (None, None) => Gate::pass(PERMISSIONS, format!("{name} may ({sure})")),
        (_, Some(obstacle)) => {
            let (at, bits, need) = (obstacle.path.display(), obstacle.bits, obstacle.need.letters());
            let why = format!(
                "{at} (mode {:04o}, user {}, group {}) gives {name} no '{need}' as {} ({sure})",
                bits.mode & 0o7777,
                bits.uid,
                bits.gid,
                bits.class(&who)
            );
            let fix = if bits.class(&who) == "others"
                && (bits.mode >> 3) & (obstacle.need as u32) == obstacle.need as u32
                && bits.gid != 0
            {
                format!("add {} to groups under [identities], or: setfacl -m u:{}:{need} {at}", bits.gid, who.uid)
            } else {
                format!("setfacl -m u:{}:{need} {at}", who.uid)
            };
            Gate::refuse(PERMISSIONS, why, fix)
        }
        (Some(Err(errno)), None) => Gate::refuse(
            PERMISSIONS,
            format!("the kernel says '{}' to {name} although the mode would allow it", errno.desc()),
            "look for an ACL (getfacl), a read-only mount or a security module",
        ),
    }
}
