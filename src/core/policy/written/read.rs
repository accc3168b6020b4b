//! TOML → settings: walks a parsed file over the key table.
//!
//! Knows nothing of what keys mean: it reports what has the wrong name, type or
//! range, and hands on what is left. Called by `written` only.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::{self, Key, TABLES, Table, Type};
use super::mistake::{Kind, Place, Report, nearest, one_of, quoted};
use super::value;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A value in range: what a [`Type`] leaves of TOML.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Bytes, seconds, permission bits, an id, a count.
    Number(u64),
    /// A path, a choice, a name.
    Text(String),
    Flag(bool),
    List(Vec<At<Value>>),
}

/// A key that was written.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) value: At<Value>,
}

/// One table as written. Later settings override earlier ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings(Vec<Setting>);

impl Settings {
    /// Every setting of a key, in the order of the files.
    pub(super) fn all(&self, table: &str, name: &str) -> impl Iterator<Item = &At<Value>> {
        debug_assert!(keys::KEYS.iter().any(|key| (key.table, key.name) == (table, name)), "{table}.{name}");
        self.0.iter().filter(move |setting| (setting.key.table, setting.key.name) == (table, name)).map(|s| &s.value)
    }

    fn last<'a, T>(&'a self, table: &str, name: &str, pick: impl Fn(&'a Value) -> Option<T>) -> Option<At<T>> {
        self.all(table, name).filter_map(|at| Some(At { value: pick(&at.value)?, place: at.place })).last()
    }

    pub(super) fn number(&self, table: &str, name: &str) -> Option<At<u64>> {
        self.last(table, name, |value| if let Value::Number(number) = value { Some(*number) } else { None })
    }

    pub(super) fn text(&self, table: &str, name: &str) -> Option<At<&str>> {
        self.last(table, name, |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    pub(super) fn flag(&self, table: &str, name: &str) -> bool {
        self.last(table, name, |value| if let Value::Flag(flag) = value { Some(*flag) } else { None })
            .is_some_and(|at| at.value)
    }

    pub(super) fn list(&self, table: &str, name: &str) -> Option<At<&[At<Value>]>> {
        self.last(table, name, |value| if let Value::List(list) = value { Some(list.as_slice()) } else { None })
    }

    /// A key that takes a name or a number.
    pub(super) fn either(&self, table: &str, name: &str) -> Option<&At<Value>> {
        self.all(table, name).last()
    }
}

impl At<Value> {
    /// The text of a text; empty for anything else.
    pub(super) fn text(&self) -> &str {
        if let Value::Text(text) = &self.value { text } else { "" }
    }
}

/// Every file, read.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    /// Tables that stand once, merged.
    pub(super) settings: Settings,
    /// `[[files]]`, in the order of the files.
    pub(super) rules: Vec<(Place, Settings)>,
    /// Keys whose value was reported, as `table.name`: what follows from them
    /// is not known.
    pub(super) tainted: Vec<String>,
    /// How many files were read, the defaults not counted.
    pub(super) files: usize,
}

/// Reads the source with number `index` over what was read before.
pub(super) fn source(index: usize, written: &mut Written, report: &mut Report) {
    written.files = index;
    let text = report.sources[index].text.clone();
    let (table, errors) = DeTable::parse_recoverable(&text);
    if !errors.is_empty() {
        // A tree made of half a file would only add mistakes that are none.
        let mut lines = Vec::new();
        for error in errors {
            if report.is_full() {
                report.more += 1;
                continue;
            }
            let place = Place::new(index, error.span().unwrap_or(0..1));
            // One slip makes the parser stumble several times on its line.
            if !lines.contains(&report.line(place)) {
                lines.push(report.line(place));
                let (what, help) = syntax(error.message());
                report.error(Kind::Syntax, place, what, help);
            }
        }
        written.tainted.extend(
            ["profile", "commands.allow", "commands.redact", "commands.deny", "shutdown.modes"].map(str::to_owned),
        );
        return;
    }
    let mut top = BTreeMap::new();
    for (name, value) in table.get_ref() {
        let place = Place::new(index, name.span());
        let known = TABLES.iter().find(|table| !table.name.is_empty() && table.name == name.get_ref().as_ref());
        match known {
            Some(table) => read_table(table, place, value, index, written, report),
            None => drop(top.insert(name, value)),
        }
    }
    let settings = keys_of(&TABLES[0], Place::whole(index), top, index, &mut written.tainted, report);
    written.settings.0.extend(settings);
}

/// Reads what stands under the name of a table.
fn read_table(
    table: &'static Table,
    place: Place,
    value: &Spanned<DeValue<'_>>,
    index: usize,
    written: &mut Written,
    report: &mut Report,
) {
    let name = table.name;
    match (value.get_ref(), table.repeated) {
        (DeValue::Table(entries), false) => {
            let settings = keys_of(table, place, entries.iter().collect(), index, &mut written.tainted, report);
            written.settings.0.extend(settings);
        }
        (DeValue::Array(items), true) => {
            for item in items {
                let place = Place::new(index, item.span());
                if let DeValue::Table(entries) = item.get_ref() {
                    let settings = keys_of(table, place, entries.iter().collect(), index, &mut written.tainted, report);
                    written.rules.push((place, Settings(settings)));
                } else {
                    report.error(Kind::WrongType, place, format!("{name} holds tables"), format!("write [[{name}]]"));
                }
            }
        }
        (_, false) => {
            let what = format!("'{name}' is a table, and stands once");
            report.error(Kind::WrongType, place, what, format!("write [{name}]"));
        }
        (_, true) => {
            let what = format!("'{name}' is a list of tables, one for each rule");
            report.error(Kind::WrongType, place, what, format!("write [[{name}]]"));
        }
    }
}

type Entries<'a, 'i> = BTreeMap<&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>>;

/// Reads the keys of one table.
fn keys_of(
    table: &'static Table,
    place: Place,
    entries: Entries<'_, '_>,
    index: usize,
    tainted: &mut Vec<String>,
    report: &mut Report,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut present = Vec::new();
    for (name, value) in entries {
        let Some(key) = keys::of_table(table.name).find(|key| key.name == name.get_ref().as_ref()) else {
            unknown(table, name, value, index, report);
            continue;
        };
        present.push(key.name);
        match value::read(key.takes, value, index, report) {
            Some(read) => settings.push(Setting { key, value: read }),
            None => tainted.push(key.id()),
        }
    }
    for key in keys::of_table(table.name).filter(|key| key.required && !present.contains(&key.name)) {
        let what = match table.name {
            "" => format!("'{}' is missing", key.name),
            name => format!("'{}' is missing in this [[{name}]]", key.name),
        };
        let help = match key.takes {
            Type::Version => "write version = 1 on the first line, in drop-ins too".to_owned(),
            _ => format!("write {} = {}, or what you mean", key.name, key.example),
        };
        report.error(Kind::MissingKey, place, what, help);
    }
    settings
}

/// A name that is no key of its table.
fn unknown(
    table: &'static Table,
    name: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    index: usize,
    report: &mut Report,
) {
    if report.is_full() {
        report.more += 1;
        return;
    }
    let place = Place::new(index, name.span());
    let word = name.get_ref().as_ref();
    let here = match table.name {
        "" => "at the top".to_owned(),
        name if table.repeated => format!("in [[{name}]]"),
        name => format!("in [{name}]"),
    };
    let is_table = match value.get_ref() {
        DeValue::Table(_) => true,
        DeValue::Array(items) => items.iter().any(|item| matches!(item.get_ref(), DeValue::Table(_))),
        _ => false,
    };
    if table.name.is_empty() && is_table {
        let names = || TABLES.iter().map(|table| table.name).filter(|name| !name.is_empty());
        let help = match nearest(word, names()) {
            Some(near) if TABLES.iter().any(|table| table.name == near && table.repeated) => {
                format!("write [[{near}]]")
            }
            Some(near) => format!("write [{near}]"),
            None => format!("the tables are {}", names().collect::<Vec<_>>().join(", ")),
        };
        report.error(Kind::UnknownTable, place, format!("there is no table {}", quoted(word)), help);
        return;
    }
    let names: Vec<&str> = keys::of_table(table.name).map(|key| key.name).collect();
    let elsewhere = keys::KEYS.iter().find(|key| key.name == word);
    let help = match (nearest(word, names.iter().copied()), elsewhere) {
        (Some(near), _) => format!("write '{near}'"),
        (None, Some(key)) if key.table.is_empty() => format!("write '{word}' above the first [table]"),
        (None, Some(key)) => format!("write '{word}' under [{}]", key.table),
        (None, None) => format!("the keys are {}", names.join(", ")),
    };
    report.error(Kind::UnknownKey, place, format!("there is no key {} {here}", quoted(word)), help);
}

/// The TOML parser's words, and what to do.
fn syntax(message: &str) -> (String, String) {
    let help = match message {
        "duplicate key" => "write each key and each [table] once; a list holds several values",
        text if text.contains("string") => "put text in \"quotes\", both ends on one line",
        text if text.contains("key") => "write name = value, one on each line",
        _ => "write name = value, one on each line, text in \"quotes\"",
    };
    (format!("this is not TOML: {message}"), help.to_owned())
}

/// A word that is none of `words`.
pub(super) fn no_choice(word: &str, words: &[&str], place: Place, report: &mut Report) {
    let help = match nearest(word, words.iter().copied()) {
        Some(near) => format!("write \"{near}\""),
        None => format!("write {}", one_of(words)),
    };
    report.error(Kind::UnknownChoice, place, format!("{} is no value of this", quoted(word)), help);
}
