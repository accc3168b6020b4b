//! The JSON Schema of a policy file, made from the key table, for editors.
//!
//! It sees what lies in the shape of one file; what takes the system or several
//! files to see, only `postern policy check` reports.
//!
//! Trust: plain data. `policy/schema.json` is held equal to this by a test.

use postern_core::policy::telling::{MAX_HOST_NAME, MAX_MOUNTPOINT, MAX_MOUNTPOINTS, MAX_PATTERN, MAX_PATTERNS};
use postern_core::policy::written::keys::{self, Key, MAX_GROUPS, MAX_ID, MAX_PATH, MAX_RULES, TABLES, Type};
use serde_json::{Map, Value, json};

/// An absolute path in plain form: what `rules::is_canonical` accepts.
const PATH: &str = r"^/(([^/.\u0000][^/\u0000]*|\.[^/.\u0000][^/\u0000]*|\.\.[^/\u0000]+)(/([^/.\u0000][^/\u0000]*|\.[^/.\u0000][^/\u0000]*|\.\.[^/\u0000]+))*)?$";

/// A pattern of interface names.
const PATTERN: &str = "^[A-Za-z0-9_.@+*?-]+$";

/// A host name.
const HOST_NAME: &str = "^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$";

/// The schema.
#[must_use]
pub fn schema() -> Value {
    let mut properties = properties("");
    for table in TABLES.iter().filter(|table| !table.name.is_empty()) {
        let mut one = object(table.name);
        if !table.repeated {
            one["description"] = json!(table.doc);
            properties.insert(table.name.to_owned(), one);
            continue;
        }
        let list = json!({ "type": "array", "description": table.doc, "items": one, "maxItems": MAX_RULES });
        properties.insert(table.name.to_owned(), list);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "postern policy",
        "description": "A policy file of postern, or a drop-in of one.",
        "type": "object",
        "additionalProperties": false,
        "required": required(""),
        "properties": properties,
    })
}

/// The schema as it stands in `policy/schema.json`.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", schema())
}

fn object(table: &str) -> Value {
    let mut object = json!({ "type": "object", "additionalProperties": false, "properties": properties(table) });
    if !required(table).is_empty() {
        object["required"] = json!(required(table));
    }
    object
}

fn required(table: &str) -> Vec<&'static str> {
    keys::of_table(table).filter(|key| key.required).map(|key| key.name).collect()
}

fn properties(table: &str) -> Map<String, Value> {
    keys::of_table(table).map(|key| (key.name.to_owned(), property(key))).collect()
}

fn property(key: &Key) -> Value {
    let mut property = takes(key.takes);
    property["description"] = json!(key.doc);
    property
}

fn takes(takes: Type) -> Value {
    let list = |items: Value| json!({ "type": "array", "items": items, "uniqueItems": true });
    let path = json!({ "type": "string", "pattern": PATH, "maxLength": MAX_PATH });
    let name_or_id = json!({ "anyOf": [
        { "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.-]*$" },
        { "type": "integer", "minimum": 1, "maximum": MAX_ID },
    ] });
    match takes {
        Type::Version => json!({ "type": "integer", "const": 1 }),
        Type::Choice(of) => json!({ "enum": of }),
        Type::Choices { of, least } => {
            let mut list = list(json!({ "enum": of }));
            list["minItems"] = json!(least);
            list
        }
        Type::Commands(among) => list(json!({ "enum": among.names().collect::<Vec<_>>() })),
        Type::Path => path,
        Type::Mountpoints => {
            let mut list = list(json!({ "type": "string", "pattern": PATH, "maxLength": MAX_MOUNTPOINT }));
            list["maxItems"] = json!(MAX_MOUNTPOINTS);
            list
        }
        Type::Patterns => {
            let mut list = list(json!({ "type": "string", "pattern": PATTERN, "maxLength": MAX_PATTERN }));
            list["maxItems"] = json!(MAX_PATTERNS);
            list
        }
        Type::HostName => json!({ "type": "string", "pattern": HOST_NAME, "maxLength": MAX_HOST_NAME }),
        Type::Paths => list(path),
        Type::Size { min, max } => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            { "type": "string", "pattern": "^[1-9][0-9]*(KiB|MiB)$" },
        ] }),
        Type::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Type::Duration { .. } => json!({ "type": "string", "pattern": "^[1-9][0-9]*[smh]$" }),
        Type::Mode => json!({ "type": "string", "pattern": "^0?[0-7][0-7][0145]$" }),
        Type::Flag => json!({ "type": "boolean" }),
        Type::Account => name_or_id,
        Type::Groups => {
            let mut list = list(name_or_id);
            list["maxItems"] = json!(MAX_GROUPS);
            list
        }
    }
}
