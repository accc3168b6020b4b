//! Fields and values without `postern.` are the Elastic Common Schema's, as
//! `ecs.txt` has them.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::audit::{Body, Chain, ECS_VERSION, Timestamp};
use serde_json::Value;

use crate::samples;

const ECS: &str = include_str!("ecs.txt");
const REFERENCE: &str = include_str!("../../audit/RECORDS.md");

/// The rows of one kind: what stands behind the first word, and the words behind that.
fn rows(kind: &str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let rows = ECS.lines().filter_map(|line| line.split_once(' ')).filter(|(first, _)| *first == kind);
    let rows: BTreeMap<_, _> = rows
        .map(|(_, rest)| {
            let mut words = rest.split(' ');
            (words.next().expect("a name"), words.collect())
        })
        .collect();
    assert!(rows.len() > 3, "the list has no {kind}");
    rows
}

fn every_record() -> impl Iterator<Item = Value> {
    samples::texts().into_iter().flat_map(|text| samples::all(&text)).map(|record| {
        let line = Chain::START.seal(Timestamp::UNIX_EPOCH, &Body::of(&record), None);
        serde_json::from_str(&line).expect("JSON")
    })
}

/// Whether a JSON value is what a field of this type holds.
fn is(value: &Value, kind: &str) -> bool {
    match (kind, value) {
        (list, Value::Array(values)) if list.ends_with("[]") => {
            !values.is_empty() && values.iter().all(|value| is(value, list.trim_end_matches("[]")))
        }
        ("keyword", Value::String(_)) => true,
        ("date", Value::String(date)) => date.parse::<Timestamp>().is_ok(),
        ("long", Value::Number(number)) => number.is_u64() || number.is_i64(),
        _ => false,
    }
}

/// Calls `see` for every field of ECS that a record has.
fn fields(prefix: &str, value: &Value, see: &mut impl FnMut(&str, &Value)) {
    for (name, value) in value.as_object().expect("an object") {
        let name = format!("{prefix}{name}");
        match value {
            _ if name == "postern" => {}
            Value::Object(_) => fields(&format!("{name}."), value, see),
            _ => see(&name, value),
        }
    }
}

#[test]
fn every_field_is_one_of_ecs_and_has_its_type() {
    let known = rows("field");
    for record in every_record() {
        fields("", &record, &mut |name, value| {
            let kind = known.get(name).unwrap_or_else(|| panic!("{name} is no field of ECS: {record}"));
            assert!(is(value, kind[0]), "{name} is no {}: {value}", kind[0]);
        });
        assert_eq!(record["ecs"]["version"], ECS_VERSION);
    }
    assert!(ECS_VERSION.starts_with("8.11."), "the list is of another version");
}

#[test]
fn the_reference_gives_the_types_of_ecs() {
    let known = rows("field");
    let mut seen = 0;
    for line in REFERENCE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        if !name.starts_with("postern.") && (name.contains('.') || name.starts_with('@')) {
            let kind = known.get(name).unwrap_or_else(|| panic!("{name} is no field of ECS"));
            assert_eq!(cells[2], kind[0], "{name}");
            seen += 1;
        }
    }
    assert!(seen > 15, "the table of fields was not found");
}

#[test]
fn every_value_of_a_categorization_field_is_one_of_ecs() {
    let (values, types) = (rows("values"), rows("types"));
    let strings = |value: &Value| -> BTreeSet<String> {
        let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        list.iter().map(|value| value.as_str().expect("a string").to_owned()).collect()
    };
    for record in every_record() {
        let event = &record["event"];
        for field in ["kind", "category", "type", "outcome"] {
            // `kind` may be left out.
            let Some(value) = event.get(field) else { continue };
            let allowed = &values[format!("event.{field}").as_str()];
            assert!(strings(value).iter().all(|value| allowed.contains(&value.as_str())), "{field}: {event}");
        }
        // Each type goes with one of the categories, and each category with one of the types.
        let (categories, kinds) = (strings(&event["category"]), strings(&event["type"]));
        let goes = |category: &String, kind: &String| {
            types.get(category.as_str()).is_some_and(|types| types.contains(&kind.as_str()))
        };
        assert!(kinds.iter().all(|kind| categories.iter().any(|category| goes(category, kind))), "{event}");
        assert!(categories.iter().all(|category| kinds.iter().any(|kind| goes(category, kind))), "{event}");
    }
}
