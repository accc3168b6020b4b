//! Which records each command yields, as a table: the catalogue's audit classes
//! spelled out. The live test sends the requests and compares.

use postern_core::audit::{Body, Chain, Record, Timestamp};
use postern_core::catalogue::{Audit, CATALOGUE, Command};
use serde_json::Value;

use crate::samples;

/// `event.action`, `postern.stage`, `event.outcome`.
pub(crate) type Shape = (&'static str, &'static str, &'static str);

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meets {
    /// The policy allows it.
    Allowed,
    /// The policy does not allow the command.
    Denied,
    /// Filesystems are frozen.
    Frozen,
}

/// One request and the records that it yields, `counted` left out.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) command: &'static str,
    /// Arguments as JSON; `{handle}` is one that an allowed open gave,
    /// `{allowed}` and `{outside}` are paths, `{missing}` one that is not there,
    /// `{other-mode}` is a shutdown that the policy does not list.
    pub(crate) arguments: &'static str,
    pub(crate) meets: Meets,
    pub(crate) yields: &'static [Shape],
}

const fn case(command: &'static str, arguments: &'static str, meets: Meets, yields: &'static [Shape]) -> Case {
    Case { command, arguments, meets, yields }
}

const OPEN: &str = "guest-file-open";
const ASKED: Shape = (OPEN, "asked", "unknown");
const GRANTED: Shape = (OPEN, "granted", "success");
const REFUSED: Shape = (OPEN, "refused", "failure");

/// Requests that say nothing, or that say it elsewhere.
const NOTHING: &[Shape] = &[];

/// What a command tells of is recorded when it is read for a worker.
const TOLD: &[Shape] = &[("fact-told", "granted", "success")];
const TOLD_TWICE: &[Shape] = &[TOLD[0]; 2];
const TOLD_THRICE: &[Shape] = &[TOLD[0]; 3];

#[rustfmt::skip]
pub(crate) static CASES: [Case; 58] = [
    case("guest-sync-delimited", r#"{"id": 1}"#, Meets::Allowed, NOTHING),
    case("guest-sync", r#"{"id": 1}"#, Meets::Allowed, NOTHING),
    case("guest-ping", "{}", Meets::Allowed, NOTHING),
    case("guest-info", "{}", Meets::Allowed, NOTHING),
    case("guest-fsfreeze-status", "{}", Meets::Allowed, NOTHING),
    case("guest-fsfreeze-status", "{}", Meets::Frozen, NOTHING),
    case("guest-ping", "{}", Meets::Denied, &[("guest-ping", "refused", "failure")]),
    // A mode that does not create: the grant is the first record.
    case(OPEN, r#"{"path": "{allowed}"}"#, Meets::Allowed, &[GRANTED]),
    case(OPEN, r#"{"path": "{allowed}", "mode": "w"}"#, Meets::Allowed, &[ASKED, GRANTED]),
    case(OPEN, r#"{"path": "{allowed}", "mode": "a+"}"#, Meets::Allowed, &[ASKED, GRANTED]),
    case(OPEN, r#"{"path": "{outside}"}"#, Meets::Allowed, &[REFUSED]),
    case(OPEN, r#"{"path": "{outside}", "mode": "w"}"#, Meets::Allowed, &[REFUSED]),
    case(OPEN, r#"{"path": "{missing}"}"#, Meets::Allowed, &[REFUSED]),
    case(OPEN, r#"{"path": "relative"}"#, Meets::Allowed, &[REFUSED]),
    case(OPEN, r#"{"path": "{allowed}"}"#, Meets::Denied, &[REFUSED]),
    case(OPEN, r#"{"path": "{allowed}"}"#, Meets::Frozen, &[REFUSED]),
    case("guest-file-read", r#"{"handle": {handle}}"#, Meets::Allowed, NOTHING),
    case("guest-file-write", r#"{"handle": {handle}, "buf-b64": "cG9zdGVybi1zZWNyZXQ="}"#, Meets::Allowed, NOTHING),
    case("guest-file-seek", r#"{"handle": {handle}, "offset": 0, "whence": 0}"#, Meets::Allowed, NOTHING),
    case("guest-file-flush", r#"{"handle": {handle}}"#, Meets::Allowed, NOTHING),
    case("guest-file-read", r#"{"handle": {handle}}"#, Meets::Frozen, &[("guest-file-read", "refused", "failure")]),
    case("guest-file-write", r#"{"handle": 1, "buf-b64": ""}"#, Meets::Denied, &[("guest-file-write", "refused", "failure")]),
    case("guest-file-close", r#"{"handle": {handle}}"#, Meets::Allowed, &[("guest-file-close", "done", "success")]),
    case("guest-fsfreeze-freeze", "{}", Meets::Denied, &[("guest-fsfreeze-freeze", "refused", "failure")]),
    case("guest-fsfreeze-freeze", "{}", Meets::Frozen, &[("guest-fsfreeze-freeze", "refused", "failure")]),
    case("guest-fsfreeze-freeze", "{}", Meets::Allowed,
        &[("guest-fsfreeze-freeze", "asked", "unknown"), ("guest-fsfreeze-freeze", "done", "success")]),
    case("guest-fsfreeze-freeze-list", r#"{"mountpoints": ["{mountpoint}"]}"#, Meets::Allowed,
        &[("guest-fsfreeze-freeze-list", "asked", "unknown"), ("guest-fsfreeze-freeze-list", "done", "success")]),
    case("guest-fsfreeze-thaw", "{}", Meets::Frozen, &[("guest-fsfreeze-thaw", "done", "success")]),
    case("guest-fsfreeze-thaw", "{}", Meets::Denied, &[("guest-fsfreeze-thaw", "refused", "failure")]),
    case("guest-shutdown", r#"{"mode": "reboot"}"#, Meets::Allowed, &[("guest-shutdown", "asked", "unknown")]),
    case("guest-shutdown", r#"{"mode": "{other-mode}"}"#, Meets::Allowed, &[("guest-shutdown", "refused", "failure")]),
    case("guest-shutdown", "{}", Meets::Denied, &[("guest-shutdown", "refused", "failure")]),
    case("guest-get-time", "{}", Meets::Allowed, NOTHING),
    case("guest-get-host-name", "{}", Meets::Allowed, NOTHING),
    case("guest-get-load", "{}", Meets::Allowed, TOLD),
    case("guest-get-timezone", "{}", Meets::Allowed, TOLD),
    case("guest-get-osinfo", "{}", Meets::Allowed, TOLD),
    case("guest-get-users", "{}", Meets::Allowed, TOLD),
    case("guest-get-cpustats", "{}", Meets::Allowed, TOLD),
    case("guest-get-diskstats", "{}", Meets::Allowed, TOLD),
    case("guest-get-vcpus", "{}", Meets::Allowed, TOLD_THRICE),
    case("guest-get-memory-blocks", "{}", Meets::Allowed, TOLD),
    case("guest-get-memory-block-info", "{}", Meets::Allowed, TOLD),
    // The socket was handed over, and recorded, when the worker was born.
    case("guest-network-get-interfaces", "{}", Meets::Allowed, NOTHING),
    case("guest-network-get-route", "{}", Meets::Allowed, TOLD_TWICE),
    case("guest-get-fsinfo", "{}", Meets::Allowed, TOLD),
    case("guest-get-disks", "{}", Meets::Allowed, TOLD),
    case("guest-get-load", "{}", Meets::Frozen, &[("guest-get-load", "refused", "failure")]),
    case("guest-fstrim", "{}", Meets::Allowed,
        &[("guest-fstrim", "asked", "unknown"), ("guest-fstrim", "done", "success")]),
    case("guest-fstrim", "{}", Meets::Denied, &[("guest-fstrim", "refused", "failure")]),
    case("guest-fstrim", "{}", Meets::Frozen, &[("guest-fstrim", "refused", "failure")]),
    // The table is played where the kernel offers no sleep.
    case("guest-suspend-disk", "{}", Meets::Allowed,
        &[("guest-suspend-disk", "asked", "unknown"), ("guest-suspend-disk", "failed", "failure")]),
    case("guest-suspend-ram", "{}", Meets::Allowed,
        &[("guest-suspend-ram", "asked", "unknown"), ("guest-suspend-ram", "failed", "failure")]),
    case("guest-suspend-hybrid", "{}", Meets::Allowed,
        &[("guest-suspend-hybrid", "asked", "unknown"), ("guest-suspend-hybrid", "failed", "failure")]),
    case("guest-suspend-ram", "{}", Meets::Denied, &[("guest-suspend-ram", "refused", "failure")]),
    case("guest-set-vcpus", r#"{"vcpus": []}"#, Meets::Allowed,
        &[("guest-set-vcpus", "asked", "unknown"), ("guest-set-vcpus", "done", "success")]),
    case("guest-set-memory-blocks", r#"{"mem-blks": []}"#, Meets::Allowed,
        &[("guest-set-memory-blocks", "asked", "unknown"), ("guest-set-memory-blocks", "done", "success")]),
    case("guest-exec", r#"{"path": "/bin/sh"}"#, Meets::Denied, &[("guest-exec", "refused", "failure")]),
];

#[test]
fn the_table_holds_every_command_and_agrees_with_its_audit_class() {
    for entry in CATALOGUE.iter().filter(|entry| entry.command.is_some()) {
        let allowed: Vec<_> =
            CASES.iter().filter(|case| case.command == entry.name && case.meets != Meets::Denied).collect();
        assert!(!allowed.is_empty(), "{} is not in the table", entry.name);
        for case in allowed {
            let refused_while_frozen = case.meets == Meets::Frozen && !entry.frozen_safe;
            let tells = entry.needs.facts.iter().any(|fact| !fact.is_handed());
            let silent = entry.audit != Audit::Recorded && !refused_while_frozen && !tells;
            assert_eq!(case.yields.is_empty(), silent, "{case:?}");
        }
    }
    for case in CASES.iter().filter(|case| case.meets == Meets::Denied) {
        assert_eq!(case.yields, [(case.command, "refused", "failure")], "denied ones are recorded");
    }
    // An effect never stands before a record that announces it.
    for case in CASES.iter().filter(|case| case.yields.iter().any(|(_, stage, _)| matches!(*stage, "done"))) {
        let needs = CATALOGUE.iter().find(|entry| entry.name == case.command).expect("a command").needs;
        // A thaw has none before it: it must never wait for one.
        let announced = needs.acts.iter().any(|act| *act != postern_core::catalogue::Act::Thaw);
        assert_eq!(announced, case.yields.iter().any(|(_, stage, _)| *stage == "asked"), "{case:?}");
    }
    for case in &CASES {
        let filled = ["{handle}", "{allowed}", "{outside}", "{missing}", "{mountpoint}", "{other-mode}"]
            .iter()
            .fold(case.arguments.to_owned(), |text, name| text.replace(name, "1000"));
        serde_json::from_str::<Value>(&filled).unwrap_or_else(|error| panic!("{error}: {case:?}"));
    }
}

#[test]
fn the_table_names_only_records_that_there_are() {
    let mut records = samples::all(b"/srv/a");
    records.extend(Command::all().map(|command| Record::CommandRefused {
        child: 1,
        command: command.name().into(),
        because: postern_core::messages::Denial::Policy,
    }));
    let shapes: Vec<_> = records.iter().map(shape_of).collect();
    for (action, stage, outcome) in CASES.iter().flat_map(|case| case.yields) {
        let found = shapes.iter().any(|shape| *shape == [*action, *stage, *outcome].map(str::to_owned));
        assert!(found, "{action} {stage} {outcome}");
    }
}

fn shape_of(record: &Record) -> [String; 3] {
    let line = Chain::START.seal(Timestamp::UNIX_EPOCH, &Body::of(record), None);
    let value: Value = serde_json::from_str(&line).expect("JSON");
    shape(&value)
}

/// The shape of a record as it stands in a log.
pub(crate) fn shape(record: &Value) -> [String; 3] {
    [&record["event"]["action"], &record["postern"]["stage"], &record["event"]["outcome"]]
        .map(|value| value.as_str().unwrap_or_default().to_owned())
}
