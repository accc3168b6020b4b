//! Redacted answers: as typed as whole ones, and silent about what the scene has.

use postern_core::catalogue::redaction::REDACTIONS;
use serde_json::Value;

use crate::support::agent::Home;
use crate::support::runner::Test;
use crate::{agents, client, scene, schema};

pub(crate) const TESTS: &[Test] =
    &[("redacted_replies_have_their_types_and_keep_silent", redacted_replies_have_their_types_and_keep_silent)];

/// What stands in a whole answer, and not in a redacted one.
const SECRETS: &[(&str, &[&str])] = &[
    ("guest-get-host-name", &["guest.example.org"]),
    ("guest-get-timezone", &["CET", "CEST"]),
    ("guest-get-osinfo", &["seven", "Server", "kernel-version"]),
    ("guest-get-users", &["root", "alice"]),
    ("guest-network-get-interfaces", &["127.0.0.1", "\"::1\"", "fe80", "statistics"]),
    ("guest-network-get-route", &["10.8.0.0", "2001:db8:9::"]),
    ("guest-get-fsinfo", &["\"/a\"", "\"/b\"", "\"/c\""]),
    ("guest-get-disks", &["/dev/"]),
];

fn redacted_replies_have_their_types_and_keep_silent() {
    let _scene = scene::set_up();
    let names: Vec<&str> = REDACTIONS.iter().map(|row| row.name).collect();
    assert!(names.iter().all(|name| SECRETS.iter().any(|row| row.0 == *name)), "each has something to hide: {names:?}");
    let redacted: Vec<&str> = agents::offered().filter(|name| names.contains(name)).collect();
    let whole = Home::new();
    let less = Home::new();
    let telling = whole.start(&agents::policy(agents::offered()));
    let agent = less.start(&format!("profile = \"minimal\"\n[commands]\nredact = {redacted:?}\n"));
    let (mut telling, mut host) = (telling.connect(), agent.connect());
    for command in redacted {
        let returned = host.returns(command, &Value::Null);
        schema::assert_typed(command, &returned);
        client::assert_taken(command, &returned);
        let all = telling.returns(command, &Value::Null).to_string();
        let said = returned.to_string();
        let (_, secrets) = SECRETS.iter().find(|row| row.0 == command).expect("a row");
        assert!(secrets.iter().any(|secret| all.contains(secret)), "the control, {command}: {all}");
        for secret in *secrets {
            assert!(!said.contains(secret), "{command} says {secret}: {said}");
        }
        println!("    {command}: {said}");
    }
}
