//! What is told again until it changes: the zone, the distribution, who is logged in.
//! Every change that shows is told at once, any other one soon; in between nothing is
//! gathered, and there is no record.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::guest::{login, policy, put, told, zone};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("what_lasts_is_told_again_until_it_changes", what_lasts_is_told_again_until_it_changes),
    ("a_change_that_does_not_show_is_told_soon", a_change_that_does_not_show_is_told_soon),
    ("logind_sessions_are_told_again_until_they_change", logind_sessions_are_told_again_until_they_change),
];

const COMMANDS: [&str; 3] = ["guest-get-timezone", "guest-get-osinfo", "guest-get-users"];

fn gathered(agent: &Agent<'_>) -> usize {
    agent.records_of("fact-told").len()
}

/// Waits until nothing is gathered for these any more: what they tell of has not
/// changed for some time.
fn lasts(agent: &Agent<'_>, host: &mut Host, commands: &[&str]) {
    eventually("it lasts", || {
        let mut ask = || commands.iter().for_each(|command| drop(told(host, command)));
        ask();
        let before = gathered(agent);
        (0..5).for_each(|_| ask());
        (gathered(agent) == before).then_some(())
    });
}

/// Puts a link there in place of another.
fn lead(link: &str, to: &str) {
    symlink(to, "/new-link").expect("a link");
    fs::rename("/new-link", link).expect("its name");
}

/// The zone, the distribution, and who is logged in.
fn seen(host: &mut Host) -> Value {
    let (id, users) = (told(host, COMMANDS[1])["id"].take(), told(host, COMMANDS[2]));
    let users: Vec<&Value> = users.as_array().expect("a list").iter().map(|user| &user["user"]).collect();
    json!([zone_of(host), id, users])
}

fn zone_of(host: &mut Host) -> Value {
    told(host, COMMANDS[0])["zone"].take()
}

fn what_lasts_is_told_again_until_it_changes() {
    for name in ["EST", "CET"] {
        put(&format!("/usr/share/zoneinfo/Nowhere/{name}"), &zone(&format!("{name}5"), name, -18_000));
    }
    fs::create_dir_all("/etc").expect("/etc");
    lead("/etc/localtime", "../usr/share/zoneinfo/Nowhere/EST");
    put("/usr/lib/os-release", b"ID=one\n");
    lead("/etc/os-release", "../usr/lib/os-release");
    fs::write("/run/utmp", login("ann", 1, 0)).expect("utmp");
    let home = Home::new();
    let agent = home.start(&policy(&COMMANDS));
    let mut host = agent.connect();
    lasts(&agent, &mut host, &COMMANDS);
    // Other files, and links, under the names.
    lead("/etc/localtime", "../usr/share/zoneinfo/Nowhere/CET");
    put("/usr/lib/os-release", b"ID=two\n");
    put("/run/utmp", &login("bob", 1, 0));
    assert_eq!(seen(&mut host), json!(["CET", "two", ["bob"]]));
    lasts(&agent, &mut host, &COMMANDS);
    // The same ones, with something else in them.
    fs::write("/usr/share/zoneinfo/Nowhere/CET", zone("ART3", "ART", -10_800)).expect("the zone");
    fs::write("/usr/lib/os-release", b"ID=six\n").expect("the release");
    fs::write("/run/utmp", login("eve", 1, 0)).expect("utmp");
    assert_eq!(seen(&mut host), json!(["ART", "six", ["eve"]]));
}

fn a_change_that_does_not_show_is_told_soon() {
    for name in ["EST", "CET"] {
        put(&format!("/usr/share/zoneinfo/Nowhere/{name}"), &zone(&format!("{name}5"), name, -18_000));
    }
    fs::create_dir_all("/etc").expect("/etc");
    lead("/usr/share/zoneinfo/chosen", "Nowhere/EST");
    lead("/etc/localtime", "../usr/share/zoneinfo/chosen");
    put("/usr/lib/os-release", b"ID=theirs\n");
    let home = Home::new();
    let agent = home.start(&policy(&COMMANDS));
    let mut host = agent.connect();
    lasts(&agent, &mut host, &COMMANDS[..2]);
    // A link behind the link, and a file where there was none.
    lead("/usr/share/zoneinfo/chosen", "Nowhere/CET");
    put("/etc/os-release", b"ID=mine\n");
    eventually("both are told", || {
        let id = told(&mut host, COMMANDS[1])["id"].take();
        (zone_of(&mut host) == "CET" && id == "mine").then_some(())
    });
}

fn logind_sessions_are_told_again_until_they_change() {
    let session =
        |user: &str, state: &str, since: u32| format!("USER={user}\nSTATE={state}\nCLASS=user\nREALTIME={since}\n");
    put("/run/systemd/sessions/1", session("ann", "active", 1).as_bytes());
    let home = Home::new();
    let agent = home.start(&policy(&COMMANDS));
    let mut host = agent.connect();
    let users = |host: &mut Host| {
        let users = told(host, COMMANDS[2]);
        users.as_array().expect("a list").iter().map(|user| user["user"].clone()).collect::<Value>()
    };
    lasts(&agent, &mut host, &COMMANDS[2..]);
    assert_eq!(users(&mut host), json!(["ann"]));
    put("/run/systemd/sessions/2", session("bob", "online", 2).as_bytes());
    assert_eq!(users(&mut host), json!(["ann", "bob"]));
    lasts(&agent, &mut host, &COMMANDS[2..]);
    put("/run/systemd/sessions/1", session("ann", "closing", 1).as_bytes());
    assert_eq!(users(&mut host), json!(["bob"]));
}
