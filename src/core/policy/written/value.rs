//! One TOML value → a value in range, by the type that its key takes.
//!
//! Called by `read` only. Every `None` comes with a mistake in the report.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeValue};

use super::keys::{Among, MAX_GROUPS, MAX_PATH, Type};
use super::mistake::{Kind, Place, Report, nearest, quoted};
use super::names::{host_name, name_or_id, pattern};
use super::read::{At, Value, no_choice};
use crate::catalogue;
use crate::policy::rules::is_canonical;
use crate::policy::telling::{MAX_MOUNTPOINT, MAX_MOUNTPOINTS, MAX_PATTERNS};

/// Reads `value` as `takes`.
pub(super) fn read(takes: Type, value: &Spanned<DeValue<'_>>, source: usize, report: &mut Report) -> Option<At<Value>> {
    let place = Place::new(source, value.span());
    let read = match (takes, value.get_ref()) {
        (Type::Version, DeValue::Integer(_)) => {
            if number(value) != Some(1) {
                let what = "this version of the policy format is unknown";
                report.error(
                    Kind::UnknownVersion,
                    place,
                    what,
                    "write version = 1, or use the postern that the file is for",
                );
                return None;
            }
            Value::Number(1)
        }
        (Type::Choice(words), DeValue::String(word)) => {
            if !words.contains(&word.as_ref()) {
                no_choice(word, words, place, report);
                return None;
            }
            Value::Text(word.to_string())
        }
        (Type::Path, DeValue::String(text)) => Value::Text(path(text, MAX_PATH, place, report)?),
        (Type::Flag, DeValue::Boolean(flag)) => Value::Flag(*flag),
        (Type::Mode, DeValue::String(text)) => Value::Number(mode(text, place, report)?),
        (Type::Duration { min, max }, DeValue::String(text)) => Value::Number(duration(text, min, max, place, report)?),
        (Type::Size { min, max } | Type::Count { min, max }, DeValue::Integer(_)) => {
            Value::Number(in_range(value, min, max, place, report)?)
        }
        (Type::Size { min, max }, DeValue::String(text)) => Value::Number(size(text, min, max, place, report)?),
        (Type::Account, DeValue::String(_) | DeValue::Integer(_)) => name_or_id(value, place, report)?,
        (Type::Choices { of, least }, DeValue::Array(items)) => {
            let list = list(items, source, report, |item, place, report| match item.get_ref() {
                DeValue::String(word) if of.contains(&word.as_ref()) => Some(Value::Text(word.to_string())),
                DeValue::String(word) => {
                    no_choice(word, of, place, report);
                    None
                }
                _ => wrong_item("a string", item, place, report),
            })?;
            if items.len() < least {
                report.error(
                    Kind::EmptyList,
                    place,
                    "the list is empty",
                    format!("write one or more of {}", of.join(", ")),
                );
                return None;
            }
            list
        }
        (Type::Commands(among), DeValue::Array(items)) => {
            list(items, source, report, |item, place, report| match item.get_ref() {
                DeValue::String(name) => command(name, among, place, report),
                _ => wrong_item("a command name", item, place, report),
            })?
        }
        (Type::Paths, DeValue::Array(items)) => {
            list(items, source, report, |item, place, report| match item.get_ref() {
                DeValue::String(text) => path(text, MAX_PATH, place, report).map(Value::Text),
                _ => wrong_item("a path", item, place, report),
            })?
        }
        (Type::Mountpoints, DeValue::Array(items)) => {
            at_most(MAX_MOUNTPOINTS, "mountpoints", items, place, report)?;
            list(items, source, report, |item, place, report| match item.get_ref() {
                DeValue::String(text) => path(text, MAX_MOUNTPOINT, place, report).map(Value::Text),
                _ => wrong_item("a path", item, place, report),
            })?
        }
        (Type::Patterns, DeValue::Array(items)) => {
            at_most(MAX_PATTERNS, "patterns", items, place, report)?;
            list(items, source, report, |item, place, report| match item.get_ref() {
                DeValue::String(text) => pattern(text, place, report),
                _ => wrong_item("a pattern", item, place, report),
            })?
        }
        (Type::HostName, DeValue::String(text)) => host_name(text, place, report)?,
        (Type::Groups, DeValue::Array(items)) => {
            at_most(MAX_GROUPS, "groups", items, place, report)?;
            list(items, source, report, |item, place, report| match item.get_ref() {
                DeValue::String(_) | DeValue::Integer(_) => name_or_id(item, place, report),
                _ => wrong_item("a group", item, place, report),
            })?
        }
        _ => {
            let what = format!("this takes {}, not {}", wanted(takes), found(value.get_ref()));
            report.error(Kind::WrongType, place, what, format!("write {}", shape(takes)));
            return None;
        }
    };
    Some(At { value: read, place })
}

/// Reads each item; a list with a bad one is none.
fn list(
    items: &DeArray<'_>,
    source: usize,
    report: &mut Report,
    read: impl Fn(&Spanned<DeValue<'_>>, Place, &mut Report) -> Option<Value>,
) -> Option<Value> {
    let mut list: Vec<At<Value>> = Vec::new();
    let mut sound = true;
    for item in items {
        if report.is_full() {
            return None;
        }
        let place = Place::new(source, item.span());
        let Some(value) = read(item, place, report) else {
            sound = false;
            continue;
        };
        if list.iter().any(|other| same(&other.value, &value)) {
            report.error(Kind::Repeated, place, "this stands in the list already", "leave it out here");
            sound = false;
        }
        list.push(At { value, place });
    }
    sound.then_some(Value::List(list))
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Text(one), Value::Text(other)) => one == other,
        (Value::Number(one), Value::Number(other)) => one == other,
        _ => false,
    }
}

fn at_most(most: usize, of: &str, items: &DeArray<'_>, place: Place, report: &mut Report) -> Option<()> {
    if items.len() > most {
        let what = format!("the list holds {} {of}", items.len());
        report.error(Kind::TooMany, place, what, format!("write at most {most}"));
        return None;
    }
    Some(())
}

fn wrong_item(wanted: &str, item: &Spanned<DeValue<'_>>, place: Place, report: &mut Report) -> Option<Value> {
    let what = format!("the list holds {}", found(item.get_ref()));
    report.error(Kind::WrongType, place, what, format!("write {wanted} in quotes"));
    None
}

/// The value of an integer that is not negative and fits.
fn number(value: &Spanned<DeValue<'_>>) -> Option<u64> {
    let integer = value.get_ref().as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

pub(super) fn in_range(
    value: &Spanned<DeValue<'_>>,
    min: u64,
    max: u64,
    place: Place,
    report: &mut Report,
) -> Option<u64> {
    let number = number(value).filter(|number| (min..=max).contains(number));
    if number.is_none() {
        let what = "this number is out of range";
        report.error(Kind::OutOfRange, place, what, format!("write {min} to {max}"));
    }
    number
}

fn path(text: &str, longest: usize, place: Place, report: &mut Report) -> Option<String> {
    if !text.starts_with('/') {
        let what = format!("path {} is relative", quoted(text));
        report.error(Kind::RelativePath, place, what, "write it from / on");
        return None;
    }
    if text.len() > longest {
        let what = format!("the path has {} bytes", text.len());
        let takes = if longest == MAX_PATH { "Linux takes" } else { "this takes" };
        report.error(Kind::TooLong, place, what, format!("{takes} at most {longest}"));
        return None;
    }
    if !is_canonical(Path::new(text)) {
        let what = format!("path {} is not in its plain form", quoted(text));
        let help = match plain(text) {
            Some(plain) => format!("write {}", quoted(&plain)),
            None => "leave the NUL out".to_owned(),
        };
        report.error(Kind::NotCanonical, place, what, help);
        return None;
    }
    Some(text.to_owned())
}

/// `text` with `.`, `..` and doubled slashes worked out.
fn plain(text: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    (!text.contains('\0')).then(|| format!("/{}", parts.join("/")))
}

fn mode(text: &str, place: Place, report: &mut Report) -> Option<u64> {
    let digits = text.len() == 3 || text.len() == 4 && text.starts_with('0');
    let octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let bits = u64::from_str_radix(text, 8).ok().filter(|bits| digits && octal && bits & 0o7002 == 0);
    if bits.is_none() {
        let what = match u64::from_str_radix(text, 8) {
            Ok(bits) if octal && bits & 0o7000 != 0 => format!("mode {} has set-id or sticky bits", quoted(text)),
            Ok(bits) if octal && bits & 0o002 != 0 => format!("mode {} lets others write", quoted(text)),
            _ => format!("{} is no mode", quoted(text)),
        };
        report.error(Kind::BadMode, place, what, "write three octal digits such as \"0600\" or \"0640\"");
    }
    bits
}

/// A number with a unit: the leading digits, no zero in front, and the rest.
fn measure<'a>(text: &'a str, units: &[(&str, u64)]) -> Result<u64, &'a str> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or(unit)?;
    if digits.is_empty() || digits.starts_with('0') {
        return Err(unit);
    }
    // A number too large for 64 bits is out of every range.
    Ok(digits.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(factor))
}

fn size(text: &str, min: u64, max: u64, place: Place, report: &mut Report) -> Option<u64> {
    let Ok(bytes) = measure(text, &[("KiB", 1 << 10), ("MiB", 1 << 20)]) else {
        let what = format!("{} is no size", quoted(text));
        report.error(
            Kind::BadSize,
            place,
            what,
            "write a number with KiB or MiB such as \"16MiB\", or bytes without quotes",
        );
        return None;
    };
    if !(min..=max).contains(&bytes) {
        let what = format!("{} is out of range", quoted(text));
        report.error(Kind::TextOutOfRange, place, what, format!("write {} to {}", show_size(min), show_size(max)));
        return None;
    }
    Some(bytes)
}

/// Bytes in the largest unit that divides them.
pub(super) fn show_size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{}MiB", bytes >> 20)
    } else if bytes.is_multiple_of(1 << 10) {
        format!("{}KiB", bytes >> 10)
    } else {
        format!("{bytes} bytes")
    }
}

/// Seconds in the largest unit that divides them.
fn show_duration(seconds: u64) -> String {
    if seconds.is_multiple_of(3600) {
        format!("{}h", seconds / 3600)
    } else if seconds.is_multiple_of(60) {
        format!("{}m", seconds / 60)
    } else {
        format!("{seconds}s")
    }
}

fn duration(text: &str, min: u64, max: u64, place: Place, report: &mut Report) -> Option<u64> {
    let Ok(seconds) = measure(text, &[("s", 1), ("m", 60), ("h", 3600)]) else {
        let what = format!("{} is no duration", quoted(text));
        report.error(Kind::BadDuration, place, what, "write a number with s, m or h such as \"90s\" or \"10m\"");
        return None;
    };
    if !(min..=max).contains(&seconds) {
        let what = format!("{} is out of range", quoted(text));
        let help = format!("write {} to {}", show_duration(min), show_duration(max));
        report.error(Kind::TextOutOfRange, place, what, help);
        return None;
    }
    Some(seconds)
}

fn command(name: &str, among: Among, place: Place, report: &mut Report) -> Option<Value> {
    match catalogue::lookup(name) {
        Some(entry) if among.takes(entry) => Some(Value::Text(name.to_owned())),
        Some(entry) if entry.command.is_some() => {
            let what = format!("{name} has no answer that could say less");
            report.error(Kind::NotRedactable, place, what, "name it under 'deny', or leave it out");
            None
        }
        Some(_) => {
            let what = format!("stock has {name}, this postern does not offer it");
            report.error(Kind::NotOffered, place, what, "leave it out");
            None
        }
        None => {
            let full = format!("guest-{name}");
            let help = if name.contains('*') {
                "name each command: a pattern would grow with an upgrade".to_owned()
            } else if among.names().any(|known| known == full) {
                format!("write \"{full}\"")
            } else if let Some(near) = nearest(name, among.names()) {
                format!("write \"{near}\"")
            } else {
                format!("the commands are {}", told(among).collect::<Vec<_>>().join(", "))
            };
            report.error(Kind::UnknownCommand, place, format!("there is no command {}", quoted(name)), help);
            None
        }
    }
}

/// The names to tell of where one is wrong: those that postern offers, at most.
fn told(among: Among) -> impl Iterator<Item = &'static str> {
    if among == Among::Known { Among::Offered } else { among }.names()
}

/// What a type takes, for "this takes …".
fn wanted(takes: Type) -> &'static str {
    match takes {
        Type::Version | Type::Count { .. } => "an integer",
        Type::Choice(_) => "a string",
        Type::HostName => "a host name in quotes",
        Type::Patterns => "a list of patterns",
        Type::Path => "a path in quotes",
        Type::Choices { .. } => "a list of strings",
        Type::Commands(_) => "a list of command names",
        Type::Paths | Type::Mountpoints => "a list of paths",
        Type::Size { .. } => "a size",
        Type::Duration { .. } => "a duration with its unit",
        Type::Mode => "octal digits in quotes",
        Type::Flag => "true or false",
        Type::Account => "a name or a number",
        Type::Groups => "a list of names or numbers",
    }
}

/// The shape of a value of the type, for "write …".
fn shape(takes: Type) -> String {
    match takes {
        Type::Version => "version = 1".to_owned(),
        Type::Choice(words) => super::mistake::one_of(words),
        Type::Choices { of, .. } => format!("a list such as [\"{}\"]", of[0]),
        Type::Commands(Among::Redactable) => "a list such as [\"guest-get-host-name\"]".to_owned(),
        Type::Commands(_) => "a list such as [\"guest-ping\"]".to_owned(),
        Type::Patterns => "a list such as [\"eth*\"]".to_owned(),
        Type::HostName => "\"guest\", in quotes".to_owned(),
        Type::Path => "it from / on, in quotes".to_owned(),
        Type::Paths | Type::Mountpoints => "a list such as [\"/srv/data\"]".to_owned(),
        Type::Size { .. } => "\"16MiB\", or bytes without quotes".to_owned(),
        Type::Count { min, max } => format!("{min} to {max} without quotes"),
        Type::Duration { .. } => "a number and its unit in quotes, such as \"90s\" or \"10m\"".to_owned(),
        Type::Mode => "\"0600\", in quotes".to_owned(),
        Type::Flag => "true or false without quotes".to_owned(),
        Type::Account => "\"postern\", or a number".to_owned(),
        Type::Groups => "a list such as [\"adm\"]".to_owned(),
    }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
