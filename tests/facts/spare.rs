//! No grant of a row is spare: an agent that one of them is kept from tells less, or
//! nothing.
//!
//! The agent starts in a domain that denies reading what the grant is of, or listing,
//! and nothing else; its opener's own domain stands behind that. A grant that another
//! one of the row covers is so found too: it is left out, and nothing changes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::{AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr};
use postern_core::catalogue::facts::{Allows, Fact};
use postern_core::catalogue::{self, CommandSet};
use serde_json::Value;

use crate::agents;
use crate::compare::{Unsteady, differences};
use crate::scene;
use crate::support::agent::{BINARY, Home, Host};
use crate::support::cell;
use crate::support::runner::{Role, Test};

pub(crate) const TESTS: &[Test] = &[("no_grant_of_a_row_is_spare", no_grant_of_a_row_is_spare)];
pub(crate) const ROLES: &[Role] = &[("without", without)];

/// Grants whose lack no scene here shows, and what would.
const QUIET: &[(&str, Allows, &str, &str)] = &[
    ("guest-get-disks", Allows::List, "/sys/devices", "a device of the device mapper or of md"),
    ("guest-get-fsinfo", Allows::List, "/sys/devices", "a filesystem on such a device"),
    ("guest-get-fsinfo", Allows::Read, "/sys/devices", "a filesystem on such a device, of a disk with a serial number"),
    ("guest-get-fsinfo", Allows::Read, "/run/udev/data", "a filesystem on a disk with a serial number"),
    ("guest-get-timezone", Allows::Read, "/usr/share/zoneinfo", "a link there that changes while the agent lives"),
];

/// What is otherwise in a guest that makes other grants count, besides the scene as it is.
const OTHERWISE: &[(&str, fn())] = &[
    ("guest-get-timezone", scene::zone_in_place),
    ("guest-get-osinfo", scene::release_below_usr),
    ("guest-get-users", scene::sessions_of_logind),
];

/// Every grant of a command's facts, as the kernel resolves it.
fn grants(command: &str) -> BTreeSet<Grant> {
    let command = catalogue::lookup(command).and_then(|entry| entry.command);
    let alone: CommandSet = command.into_iter().collect();
    alone.facts().iter().flat_map(Fact::grants).collect()
}

fn no_grant_of_a_row_is_spare() {
    let _scene = scene::set_up();
    let mut wrong = Vec::new();
    for command in agents::offered() {
        let all = grants(command);
        let mut shown = BTreeSet::new();
        let mut there = BTreeSet::new();
        let otherwise = OTHERWISE.iter().filter(|(of, _)| *of == command).map(|(_, change)| Some(*change));
        for change in std::iter::once(None).chain(otherwise) {
            if let Some(change) = change {
                change();
            }
            let here: Vec<_> = all.iter().filter(|(path, _)| Path::new(path).exists()).copied().collect();
            there.extend(here.iter().copied());
            let left = here.into_iter().filter(|grant| !shown.contains(grant)).collect();
            shown.extend(those_that_show(command, left));
        }
        for grant in all {
            let what = format!("{command}, {:?} {}", grant.1, grant.0);
            let quiet = QUIET.iter().find(|row| (row.0, row.1, row.2) == (command, grant.1, grant.0));
            match quiet {
                _ if shown.contains(&grant) => {}
                _ if !there.contains(&grant) => println!("    {what}: NOT THERE on this machine"),
                Some((.., shows)) => println!("    {what}: {shows} would show that it counts"),
                None => wrong.push(what),
            }
        }
    }
    assert!(wrong.is_empty(), "nothing changes without these:\n{}", wrong.join("\n"));
}

type Grant = (&'static str, Allows);

/// Those of a command's grants without which it tells less.
fn those_that_show(command: &'static str, grants: Vec<Grant>) -> Vec<Grant> {
    if grants.is_empty() {
        return Vec::new();
    }
    let policy = agents::policy(std::iter::once(command));
    let whole = Home::new();
    let agent = whole.start(&policy);
    let mut host = agent.connect();
    let shows = |grant: &Grant| {
        let mut home = Home::new();
        home.binary = cell::SELF.into();
        let (path, allows) = (grant.0, format!("{:?}", grant.1));
        home.launch = ["--role", "without", command, path, &allows, "run"].map(str::to_owned).into();
        let less = home.start(&policy);
        let changes = changes(command, &mut host, &mut less.connect());
        changes.inspect(|how| println!("    {command}, {allows} {path}: without it {how}")).is_some()
    };
    grants.into_iter().filter(shows).collect()
}

/// What the second does not tell as the first does.
fn changes(command: &str, whole: &mut Host, less: &mut Host) -> Option<String> {
    // One that another opener is born for takes two.
    for _ in 0..20 {
        let ask = |host: &mut Host| host.ask(command, &Value::Null);
        let (before, other, after) = (ask(whole), ask(less), ask(whole));
        assert!(before.get("return").is_some(), "{command}: {before}");
        match differences(&before, &other, &after) {
            Ok(found) if found.is_empty() => return None,
            Ok(found) => {
                let one = &found[0];
                let shown = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), Value::to_string);
                let what: String = shown(&one.other).chars().take(100).collect();
                return Some(format!("{} differences, such as {what} at {}", found.len(), one.at));
            }
            Err(Unsteady(_)) => {}
        }
    }
    panic!("{command} does not stand still");
}

/// The role of an agent that lacks a grant: the command, the grant, then how the agent
/// is started.
fn without(arguments: &[String]) {
    let [command, path, allows, agent @ ..] = arguments else { panic!("{arguments:?}") };
    let is_it = |grant: &Grant| grant.0 == path && format!("{:?}", grant.1) == *allows;
    let (lacking, others): (Vec<_>, Vec<_>) = grants(command).into_iter().partition(is_it);
    let denied = access(lacking[0].1);
    let all = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = vec![("/".into(), all & !denied)];
    rules.extend(others.into_iter().map(|(path, allows)| (path.into(), access(allows))));
    // Everything beside the way there.
    let lacking = fs::canonicalize(path).expect("the grant's path");
    for directory in lacking.ancestors().skip(1) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !lacking.starts_with(entry.path()) && !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                rules.push((entry.path(), denied));
            }
        }
    }
    let created = Ruleset::default().handle_access(all).expect("a ruleset").create().expect("a ruleset");
    let beneath = rules.into_iter().filter_map(|(path, access)| {
        let access = if path.is_dir() { access } else { access & AccessFs::ReadFile };
        // What went in between needs no rule.
        let object = PathFd::new(&path).ok().filter(|_| !access.is_empty())?;
        Some(Ok::<_, landlock::RulesetError>(PathBeneath::new(object, access)))
    });
    created.add_rules(beneath).expect("rules").restrict_self().expect("a domain");
    panic!("{}", Command::new(BINARY).args(agent).exec());
}

fn access(allows: Allows) -> BitFlags<AccessFs> {
    match allows {
        Allows::Read => AccessFs::ReadFile.into(),
        Allows::List => AccessFs::ReadDir.into(),
    }
}
