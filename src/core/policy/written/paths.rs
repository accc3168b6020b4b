//! `[[files]]`: each rule for itself, against the others, and against what
//! stands at its path.
//!
//! Called by `check` only.

use std::path::{Path, PathBuf};

use super::check::Own;
use super::keys::MAX_RULES;
use super::mistake::{Kind, Place, Report};
use super::read::{At, Settings, Value};
use super::{Look, World};
use crate::policy::rules::{FileRule, Rights, Types};

/// Checks the rules, returns those that are sound and their places.
pub(super) fn rules(
    written: &[(Place, Settings)],
    own: &Own<'_>,
    world: &World,
    report: &mut Report,
) -> (Vec<FileRule>, Vec<Place>) {
    let (mut rules, mut places) = (Vec::<FileRule>::new(), Vec::<Place>::new());
    for (_, settings) in written.iter().take(MAX_RULES) {
        // What a rule lacks was reported when it was read.
        let (Some(path), Some(rights)) = (settings.text("files", "path"), settings.list("files", "rights")) else {
            continue;
        };
        let excepts = settings.list("files", "except").map_or(&[][..], |at| at.value);
        let rule = FileRule {
            path: PathBuf::from(path.value),
            rights: set(rights.value, &Rights::NAMED, Rights::NONE, Rights::with),
            except: excepts.iter().map(|item| PathBuf::from(item.text())).collect(),
            optional: settings.flag("files", "optional"),
            types: types(settings),
        };
        if system(&rule, path.place, report) {
            own_places(&rule, own, path.place, report);
            stands(&rule, path.place, world, report);
        }
        exceptions(&rule, excepts, world, report);
        for (other, place) in rules.iter().zip(&places) {
            overlap(&rule, path.place, other, *place, report);
        }
        rules.push(rule);
        places.push(path.place);
    }
    // Each is held against each: those beyond are not looked at.
    if let Some((place, _)) = written.get(MAX_RULES) {
        let what = format!("there are {} file rules", written.len());
        report.error(Kind::TooMany, *place, what, format!("write at most {MAX_RULES}, in all files together"));
    }
    // A rule can also be made useless by one that follows it.
    for (index, rule) in rules.iter().enumerate() {
        for (later, other) in rules.iter().enumerate().skip(index + 1).filter(|(_, other)| other.path != rule.path) {
            let same_file = places[index].source == places[later].source;
            useless(rule, places[index], other, same_file, report);
        }
    }
    (rules, places)
}

/// The named members of a list as a set.
fn set<T: Copy>(items: &[At<Value>], names: &[(T, &str)], none: T, with: impl Fn(T, T) -> T) -> T {
    let members = items.iter().filter_map(|item| names.iter().find(|(_, name)| *name == item.text()));
    members.fold(none, |set, (member, _)| with(set, *member))
}

fn types(settings: &Settings) -> Types {
    let Some(list) = settings.list("files", "types") else { return Types::default() };
    let bits = set(list.value, &Types::NAMED.map(|(kind, name)| (kind.bits(), name)), 0, |set, bit| set | bit);
    Types::from_bits(bits).unwrap_or_default()
}

const CHANGES: [Rights; 3] = [Rights::WRITE, Rights::CREATE, Rights::APPEND];

fn changes(rights: Rights) -> bool {
    CHANGES.iter().any(|right| rights.contains(*right))
}

/// Refuses places where a rule can only be an accident.
fn system(rule: &FileRule, place: Place, report: &mut Report) -> bool {
    let path = &rule.path;
    if path == Path::new("/") {
        report.error(Kind::KernelTree, place, "this is the whole system", "name the directories that are meant");
        return false;
    }
    if path.starts_with("/proc") || path.starts_with("/sys") {
        let part = path.components().nth(2).map(|part| part.as_os_str().to_string_lossy().into_owned());
        let process = part.as_deref().is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        if part.is_none() || process || changes(rule.rights) {
            let what = format!("{} opens the kernel and other processes to the host", path.display());
            let help = "name single files to read, such as \"/proc/loadavg\"";
            report.error(Kind::KernelTree, place, what, help);
            return false;
        }
    } else if path == Path::new("/dev")
        || path.starts_with("/dev") && !path.starts_with("/dev/shm") && rule.types == Types::REGULAR
    {
        let what = format!("{} holds devices, and the rule is for regular files", path.display());
        let help = "name one device and its kind, such as types = [\"character-device\"]";
        report.error(Kind::KernelTree, place, what, help);
        return false;
    }
    if rule.types.contains(Types::BLOCK) {
        let what = "a block device holds files of every account: file rules and permissions do not reach into it";
        report.warn(Kind::RawDevice, place, what, "leave block-device out unless the host may have the whole disk");
    }
    true
}

/// A rule must not reach what postern itself rests on.
fn own_places(rule: &FileRule, own: &Own<'_>, place: Place, report: &mut Report) {
    let mut places: Vec<(&str, &Path)> = vec![("audit log", own.log), ("state directory", own.state)];
    places.extend(own.policy.iter().map(|path| ("policy", path.as_path())));
    // One mistake for one rule: a directory that holds the policy also holds its drop-ins.
    let reached = places.iter().find(|(_, path)| rule.reaches(path) || *path != own.log && rule.path.starts_with(path));
    if let Some((name, path)) = reached {
        let what = format!("{} reaches the {name} {}", rule.path.display(), path.display());
        let directory = path.parent().filter(|parent| *parent != rule.path && parent.starts_with(&rule.path));
        let help = match (rule.path.starts_with(path), directory) {
            (true, _) => "name another path".to_owned(),
            (false, directory) => format!("write except = [\"{}\"]", directory.unwrap_or(path).display()),
        };
        report.error(Kind::CoversOwn, place, what, help);
    }
}

/// What an `except` names must lie in the rule, and be the real path.
fn exceptions(rule: &FileRule, excepts: &[At<Value>], world: &World, report: &mut Report) {
    for item in excepts {
        let path = Path::new(item.text());
        if path == rule.path {
            let what = "this takes away all that the rule gives";
            report.error(Kind::ExceptOutside, item.place, what, "leave the rule out");
        } else if !path.starts_with(&rule.path) {
            let what = format!("{} does not lie beneath {}", path.display(), rule.path.display());
            report.error(Kind::ExceptOutside, item.place, what, "name a path beneath the rule's, or leave it out");
        } else if world.here
            && !world.confined
            && let Look::There { resolved, .. } = (world.look)(path)
        {
            through_link(path, &resolved, item.place, report);
        }
    }
}

/// A path with a link on the way matches no opened file.
fn through_link(path: &Path, resolved: &Path, place: Place, report: &mut Report) {
    if resolved != path {
        let what = format!("{} leads through a symbolic link", path.display());
        report.error(Kind::ThroughLink, place, what, format!("write \"{}\"", resolved.display()));
    }
}

/// What is there must fit the rule.
fn stands(rule: &FileRule, place: Place, world: &World, report: &mut Report) {
    if !world.here || world.confined {
        return;
    }
    let path = rule.path.display();
    match (world.look)(&rule.path) {
        Look::Missing if rule.optional => {}
        Look::Missing => {
            let what = format!("{path} does not exist");
            report.error(Kind::MissingPath, place, what, "make it, or write optional = true in this rule");
        }
        Look::Hidden(error) => {
            let what = format!("{path} cannot be looked at: {error}");
            report.warn(Kind::NotHere, place, what, "check as root to be sure of it");
        }
        Look::There { resolved, mode } => {
            through_link(&rule.path, &resolved, place, report);
            let directory = mode & libc::S_IFMT == libc::S_IFDIR;
            if !directory && rule.rights.contains(Rights::CREATE) {
                let parent = rule.path.parent().unwrap_or(&rule.path).display();
                let what = format!("{path} is a file; the kernel can hold 'create' for directories only");
                report.error(
                    Kind::CreateOnFile,
                    place,
                    what,
                    format!("write path = \"{parent}\", or leave 'create' out"),
                );
            }
            if !directory && !Types::of_mode(mode).is_some_and(|kind| rule.types.contains(kind)) {
                let kind = Types::of_mode(mode);
                let named = Types::NAMED.iter().find(|(named, _)| Some(*named) == kind);
                let (what, help) = match named {
                    Some((_, name)) => (format!("{path} is a {name}"), format!("write types = [\"{name}\"]")),
                    None => (format!("{path} can never be opened"), "name a file or directory".to_owned()),
                };
                report.error(Kind::WrongObject, place, format!("{what}, which the rule does not allow"), help);
            }
        }
    }
}

/// Two rules for one place, or one that adds nothing to an earlier one.
fn overlap(rule: &FileRule, place: Place, other: &FileRule, other_place: Place, report: &mut Report) {
    if rule.path != other.path {
        return useless(rule, place, other, place.source == other_place.source, report);
    }
    let line = report.line(other_place);
    let file = report.sources[other_place.source].path.display().to_string();
    let what = format!("a rule for {} stands already in {file}:{line}", rule.path.display());
    // Two packages may each need the same place; one file has no reason to.
    if place.source == other_place.source {
        report.error(Kind::DuplicateRule, place, what, "write one rule with the rights of both");
    } else {
        report.warn(Kind::DuplicateRule, place, what, "rights of both add up: make sure that this is meant");
    }
}

/// `rule` lies in `other`, which gives all that it gives: whoever wrote it may
/// have meant to take something away. Not so where two packages meet.
fn useless(rule: &FileRule, place: Place, other: &FileRule, same_file: bool, report: &mut Report) {
    if other.reaches(&rule.path) && other.rights.contains(rule.rights) && other.types.contains(rule.types) {
        let what = format!(
            "{} has '{}' by the rule for {} already: rights add up",
            rule.path.display(),
            rule.rights,
            other.path.display()
        );
        let help = "leave this rule out, or write an 'except' in the other to take rights away";
        if same_file {
            report.error(Kind::UselessRule, place, what, help);
        } else {
            report.warn(Kind::UselessRule, place, what, help);
        }
    }
}
