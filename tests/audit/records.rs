//! Every record is one line of JSON that the schema takes and the reference
//! describes.

use postern_core::audit::{Body, Chain, MAX_LINE, Record, Timestamp};
use serde_json::{Map, Value};

use crate::samples;

const SCHEMA: &str = include_str!("../../audit/record.schema.json");
const REFERENCE: &str = include_str!("../../audit/RECORDS.md");

fn line(record: &Record) -> String {
    Chain::START.seal(Timestamp::UNIX_EPOCH, &Body::of(record), None)
}

fn every_line() -> impl Iterator<Item = String> {
    samples::texts().into_iter().flat_map(|text| samples::all(&text)).map(|record| line(&record))
}

/// The dotted name of every member, with what stands under it.
fn members<'a>(prefix: &str, object: &'a Map<String, Value>, found: &mut Vec<(String, &'a Value)>) {
    for (name, value) in object {
        let name = format!("{prefix}{name}");
        match value {
            // How often, per command: the names are the catalogue's.
            Value::Object(inner) if name != "postern.counts" => members(&format!("{name}."), inner, found),
            _ => found.push((name, value)),
        }
    }
}

/// The name of one process's field stands for the same of all.
fn for_all(name: &str) -> String {
    const PLANNED: &str = "postern.confinement.";
    match name.strip_prefix(PLANNED).and_then(|rest| rest.split_once('.')) {
        Some((_, field)) => format!("{PLANNED}*.{field}"),
        None => name.to_owned(),
    }
}

/// The dotted name of every member that the schema allows.
fn properties(prefix: &str, schema: &Value, root: &Value, found: &mut Vec<String>) {
    for (name, schema) in schema["properties"].as_object().expect("properties") {
        let name = format!("{prefix}{name}");
        let schema = match schema["$ref"].as_str() {
            Some(place) => root.pointer(place.trim_start_matches('#')).expect("a definition"),
            None => schema,
        };
        if schema.get("properties").is_some() {
            properties(&format!("{name}."), schema, root, found);
        } else {
            found.push(for_all(&name));
        }
    }
}

#[test]
fn the_schema_takes_every_record() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    for line in every_line() {
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let errors: Vec<_> = validator.iter_errors(&record).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{line:.2000}");
    }
}

#[test]
fn the_schema_refuses_what_no_record_is() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let granted = samples::all(b"/srv/a").into_iter().find(|record| matches!(record, Record::OpenGranted { .. }));
    let good: Value = serde_json::from_str(&line(&granted.expect("there is one"))).expect("JSON");
    assert!(validator.is_valid(&good));
    let spoil: [(&str, &str, Value); 8] = [
        ("", "contents", "c2VjcmV0".into()),
        ("/event", "sequence", "1".into()),
        ("/event", "sequence", 0.into()),
        ("/event", "outcome", "granted".into()),
        ("/postern", "previous", "00".into()),
        ("/file", "inode", 7.into()),
        ("/postern", "handle", Value::Null),
        ("", "@timestamp", "yesterday".into()),
    ];
    for (place, name, value) in spoil {
        let mut bad = good.clone();
        bad.pointer_mut(place).expect("the object is there")[name] = value;
        assert!(!validator.is_valid(&bad), "{place}/{name}");
    }
    for (place, name) in [("/postern", "handle"), ("/file", "inode"), ("/postern", "previous"), ("", "file")] {
        let mut bad = good.clone();
        bad.pointer_mut(place).and_then(Value::as_object_mut).expect("the object is there").remove(name);
        assert!(!validator.is_valid(&bad), "{place} without {name}");
    }
}

#[test]
fn the_reference_describes_every_field_and_no_other() {
    let lines: Vec<Value> = every_line().map(|line| serde_json::from_str(&line).expect("JSON")).collect();
    let mut found = Vec::new();
    for line in &lines {
        members("", line.as_object().expect("an object"), &mut found);
    }
    let mut written: Vec<String> = found.iter().map(|(name, _)| for_all(name)).collect();
    written.extend(["postern.torn.bytes", "postern.torn.sha256"].map(str::to_owned));
    written.sort_unstable();
    written.dedup();
    let mut described: Vec<&str> =
        REFERENCE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name).collect();
    // Rows of the table of events name events, which have no dot.
    described.retain(|name| name.contains('.') || name.starts_with('@'));
    described.sort_unstable();
    assert_eq!(written, described);
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let mut allowed = Vec::new();
    properties("", &schema, &schema, &mut allowed);
    allowed.sort_unstable();
    allowed.dedup();
    assert_eq!(allowed, described);

    let mut actions: Vec<&str> = lines.iter().filter_map(|line| line["event"]["action"].as_str()).collect();
    actions.sort_unstable();
    actions.dedup();
    for action in actions {
        // Refused commands carry any name of the catalogue.
        let known = postern_core::catalogue::lookup(action).is_some();
        assert!(known || REFERENCE.contains(&format!("`{action}`")), "{action} is not described");
    }
}

#[test]
fn every_record_is_one_bounded_line_without_a_control_character() {
    for line in every_line() {
        assert!(line.len() <= MAX_LINE, "{}", line.len());
        assert!(!line.chars().any(char::is_control), "{line:.2000}");
        let value: Value = serde_json::from_str(&line).expect("JSON");
        // A reader that keeps the last of two equal names would write fewer.
        assert_eq!(count_members(&value), line_members(&line), "{line:.2000}");
    }
}

fn count_members(value: &Value) -> usize {
    match value {
        Value::Object(members) => members.len() + members.values().map(count_members).sum::<usize>(),
        _ => 0,
    }
}

/// Members of an object as written: every colon outside of strings.
fn line_members(line: &str) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in line.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b':' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

#[test]
fn a_name_that_is_not_utf8_loses_nothing() {
    let raw = b"/srv/\xff\xfe\xe4";
    for record in samples::all(raw) {
        let line: Value = serde_json::from_str(&line(&record)).expect("JSON");
        let ours = &line["postern"];
        if let Record::OpenGranted { .. } = record {
            assert_eq!(ours["requested_bytes"], "2f7372762ffffee4");
            assert_eq!(ours["path_bytes"], "2f7372762ffffee4");
            assert_eq!(line["file"]["path"], "/srv/\u{fffd}\u{fffd}\u{fffd}");
        }
        if let Record::FreezeDone { count: 3, .. } = record {
            assert_eq!(ours["mounts_bytes"], serde_json::json!(["2f7372762ffffee4", "2f", "2f737276"]));
        }
    }
}
