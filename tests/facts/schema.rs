//! Replies held against the protocol's types: `interface.json`, the types, members and
//! values of QEMU 10.2's guest agent as facts, in the notation of its interface: a
//! member with a star may be missing, a list has the type of its elements in it, a
//! union has the members of the value of its `by` besides that.
//!
//! Trusts that table and nothing of a reply.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sound_replies_have_their_types", sound_replies_have_their_types),
    ("a_reply_that_breaks_its_type_is_found", a_reply_that_breaks_its_type_is_found),
    ("every_type_is_used_and_known", every_type_is_used_and_known),
];

static INTERFACE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("interface.json")).expect("the interface"));

/// Names of every command.
pub(crate) fn commands() -> impl Iterator<Item = &'static str> {
    INTERFACE["commands"].as_object().expect("commands").keys().map(String::as_str)
}

/// What is wrong with what `command` returned: a line for each thing, none if it
/// has the type that the interface says.
pub(crate) fn mistakes(command: &str, returned: &Value) -> Vec<String> {
    let mut mistakes = Vec::new();
    match INTERFACE["commands"].get(command) {
        // Without a type a command returns an empty object.
        Some(Value::Null) if *returned == json!({}) => {}
        Some(Value::Null) => mistakes.push(format!("{command}: nothing to return, but {returned}")),
        Some(of) => check(returned, of, command, &mut mistakes),
        None => mistakes.push(format!("{command}: no such command")),
    }
    mistakes
}

/// Panics if `returned` has not the type of what `command` returns.
pub(crate) fn assert_typed(command: &str, returned: &Value) {
    let mistakes = mistakes(command, returned);
    assert!(mistakes.is_empty(), "{}\nin {returned:#}", mistakes.join("\n"));
}

fn check(value: &Value, of: &Value, at: &str, mistakes: &mut Vec<String>) {
    let name = match of {
        Value::Array(of) => {
            let Some(values) = value.as_array() else {
                return mistakes.push(format!("{at}: no list but {value}"));
            };
            return values.iter().for_each(|value| check(value, &of[0], &format!("{at}[]"), mistakes));
        }
        of => of.as_str().expect("the name of a type"),
    };
    if let Some(members) = INTERFACE["structs"].get(name) {
        return members_of(value, &[members], at, mistakes);
    }
    if let Some(union) = INTERFACE["unions"].get(name) {
        let by = union["by"].as_str().expect("a member");
        let own = json!({ by: union["of"] });
        let more = value.get(by).and_then(Value::as_str).and_then(|value| union["members"].get(value));
        let more = more.map(|name| &INTERFACE["structs"][name.as_str().expect("a structure")]);
        return members_of(value, &[&own, more.unwrap_or(&json!({}))], at, mistakes);
    }
    let is = match name {
        "int" => value.is_i64(),
        "uint64" => value.is_u64(),
        "number" => value.is_number(),
        "str" => value.is_string(),
        "bool" => value.is_boolean(),
        name => {
            let values = INTERFACE["enums"][name].as_array().unwrap_or_else(|| panic!("no type {name}"));
            values.contains(value)
        }
    };
    if !is {
        mistakes.push(format!("{at}: no {name} but {value}"));
    }
}

/// Checks an object whose members are those of all these structures.
fn members_of(value: &Value, structs: &[&Value], at: &str, mistakes: &mut Vec<String>) {
    let Some(object) = value.as_object() else {
        return mistakes.push(format!("{at}: no object but {value}"));
    };
    let known = || structs.iter().flat_map(|members| members.as_object().expect("members"));
    for (name, of) in known() {
        let bare = name.trim_start_matches('*');
        match object.get(bare) {
            Some(value) => check(value, of, &format!("{at}.{bare}"), mistakes),
            None if bare.len() < name.len() => {}
            None => mistakes.push(format!("{at}.{bare}: missing")),
        }
    }
    for name in object.keys().filter(|name| known().all(|(known, _)| known.trim_start_matches('*') != *name)) {
        mistakes.push(format!("{at}.{name}: unknown"));
    }
}

fn disk() -> Value {
    json!({ "name": "/dev/nvme0n1", "partition": false, "dependencies": [],
        "address": { "pci-controller": { "domain": 0, "bus": 0, "slot": 4, "function": 0 },
            "bus-type": "nvme", "bus": 0, "target": 0, "unit": 0, "dev": "/dev/nvme0n1" } })
}

fn cpu() -> Value {
    json!({ "type": "linux", "cpu": 0, "user": 1, "nice": 2, "system": 3, "idle": 4, "iowait": 5 })
}

fn sound_replies_have_their_types() {
    let route = json!({ "iface": "eth0", "destination": "0.0.0.0", "metric": 0, "version": 4, "flags": 3 });
    for (command, returned) in [
        ("guest-ping", json!({})),
        ("guest-get-time", json!(-1)),
        ("guest-fsfreeze-status", json!("frozen")),
        ("guest-get-load", json!({ "load1m": 0, "load5m": 0.25, "load15m": 1.5 })),
        ("guest-get-users", json!([])),
        ("guest-get-users", json!([{ "user": "root", "login-time": 1.5 }])),
        ("guest-get-osinfo", json!({})),
        ("guest-get-disks", json!([disk(), { "name": "/dev/vda", "partition": true }])),
        ("guest-get-cpustats", json!([cpu()])),
        ("guest-get-memory-block-info", json!({ "size": u64::MAX })),
        ("guest-network-get-route", json!([route])),
    ] {
        assert_typed(command, &returned);
    }
}

/// Each way to break a type, and where it is found.
fn a_reply_that_breaks_its_type_is_found() {
    let with = |mut value: Value, at: &str, put: Value| {
        *value.pointer_mut(at).expect("a place") = put;
        value
    };
    let without = |mut value: Value, at: &str, member: &str| {
        value.pointer_mut(at).and_then(Value::as_object_mut).expect("an object").remove(member).expect("the member");
        value
    };
    let and = |mut value: Value, at: &str, member: &str| {
        value.pointer_mut(at).expect("a place")[member] = json!(1);
        value
    };
    let disks = json!([disk()]);
    for (command, returned, found) in [
        ("guest-none", json!({}), "guest-none: no such command"),
        ("guest-ping", json!({ "pong": 1 }), "guest-ping: nothing to return, but {\"pong\":1}"),
        ("guest-ping", json!(null), "guest-ping: nothing to return, but null"),
        ("guest-get-time", json!(1.0), "guest-get-time: no int but 1.0"),
        ("guest-get-time", json!("1"), "guest-get-time: no int but \"1\""),
        ("guest-get-time", json!(u64::MAX), "guest-get-time: no int but 18446744073709551615"),
        ("guest-get-memory-block-info", json!({ "size": -1 }), "guest-get-memory-block-info.size: no uint64 but -1"),
        ("guest-fsfreeze-status", json!("error"), "guest-fsfreeze-status: no GuestFsfreezeStatus but \"error\""),
        ("guest-fsfreeze-status", json!(0), "guest-fsfreeze-status: no GuestFsfreezeStatus but 0"),
        ("guest-get-users", json!({}), "guest-get-users: no list but {}"),
        ("guest-get-users", json!([1]), "guest-get-users[]: no object but 1"),
        ("guest-get-users", json!([{ "user": "root" }]), "guest-get-users[].login-time: missing"),
        ("guest-get-osinfo", json!({ "id": null }), "guest-get-osinfo.id: no str but null"),
        (
            "guest-get-disks",
            with(disks.clone(), "/0/partition", json!(0)),
            "guest-get-disks[].partition: no bool but 0",
        ),
        (
            "guest-get-disks",
            with(disks.clone(), "/0/dependencies", json!([1])),
            "guest-get-disks[].dependencies[]: no str but 1",
        ),
        (
            "guest-get-disks",
            with(disks.clone(), "/0/address/bus-type", json!("floppy")),
            "guest-get-disks[].address.bus-type: no GuestDiskBusType but \"floppy\"",
        ),
        (
            "guest-get-disks",
            without(disks.clone(), "/0/address/pci-controller", "slot"),
            "guest-get-disks[].address.pci-controller.slot: missing",
        ),
        ("guest-get-disks", and(disks.clone(), "/0/address", "lun"), "guest-get-disks[].address.lun: unknown"),
        ("guest-get-cpustats", json!([without(cpu(), "", "type")]), "guest-get-cpustats[].type: missing"),
        ("guest-get-cpustats", json!([without(cpu(), "", "idle")]), "guest-get-cpustats[].idle: missing"),
        ("guest-get-cpustats", json!([and(cpu(), "", "idle-time")]), "guest-get-cpustats[].idle-time: unknown"),
        (
            "guest-get-cpustats",
            json!([with(cpu(), "/type", json!("plan9"))]),
            "guest-get-cpustats[].type: no GuestCpuStatsType but \"plan9\"",
        ),
    ] {
        let mistakes = mistakes(command, &returned);
        assert!(mistakes.iter().any(|one| one == found), "{command}: {mistakes:?}, and not {found}");
    }
}

/// Every name in the table leads somewhere, and is led to.
fn every_type_is_used_and_known() {
    fn names<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
        match value {
            Value::String(name) => into.push(name),
            Value::Array(values) => values.iter().for_each(|value| names(value, into)),
            Value::Object(members) => members.values().for_each(|value| names(value, into)),
            _ => {}
        }
    }
    let mut used = Vec::new();
    for part in ["commands", "structs", "unions"] {
        names(&INTERFACE[part], &mut used);
    }
    let known = ["structs", "unions", "enums"].iter().flat_map(|part| INTERFACE[*part].as_object().expect("types"));
    let known: Vec<&str> = known.map(|(name, _)| name.as_str()).collect();
    for name in &known {
        assert!(used.contains(name), "{name} is no command's");
    }
    for name in used.iter().filter(|name| name.starts_with("Guest")) {
        assert!(known.contains(name), "{name} is no type");
    }
}
