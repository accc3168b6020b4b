//! Facts of the guest, as the running agent tells them: what the test reads for
//! itself, and no descriptor without its record.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("time_name_and_load_are_the_guests", time_name_and_load_are_the_guests),
    ("a_kept_fact_has_one_record_for_each_worker", a_kept_fact_has_one_record_for_each_worker),
    ("kept_facts_outlive_the_kernels_caches", kept_facts_outlive_the_kernels_caches),
    ("what_the_kernel_does_not_have_is_told_as_that", what_the_kernel_does_not_have_is_told_as_that),
    ("a_fact_waits_for_an_opener_that_is_replaced", a_fact_waits_for_an_opener_that_is_replaced),
    ("without_facts_nothing_is_there_for_them", without_facts_nothing_is_there_for_them),
];

fn telling(commands: &[&str]) -> String {
    format!("profile = \"minimal\"\n[commands]\nallow = {commands:?}\n")
}

/// As the kernel writes them: to hundredths.
fn load(host: &mut Host) -> [String; 3] {
    let load = host.returns("guest-get-load", &Value::Null);
    ["load1m", "load5m", "load15m"].map(|name| format!("{:.2}", load[name].as_f64().expect("a number")))
}

/// What the kernel says at about the same time.
fn loads() -> [String; 3] {
    let text = fs::read_to_string("/proc/loadavg").expect("/proc/loadavg");
    let mut words = text.split(' ').map(str::to_owned);
    [(); 3].map(|()| words.next().expect("three"))
}

fn time_name_and_load_are_the_guests() {
    let home = Home::new();
    let agent = home.start(&telling(&["guest-get-time", "guest-get-host-name", "guest-get-load"]));
    let mut host = agent.connect();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let before = clock();
    let told = host.returns("guest-get-time", &Value::Null).as_u64().expect("nanoseconds");
    assert!((before..=clock()).contains(&told.into()), "{told}");
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("its name");
    assert_eq!(host.returns("guest-get-host-name", &Value::Null), json!({ "host-name": name.trim_end() }));
    // It is computed every five seconds.
    eventually("the load as the kernel has it", || (load(&mut host) == loads()).then_some(()));
    assert!(host.fails("guest-get-load", &json!({ "x": 1 })).contains("unexpected"));
}

fn told(agent: &Agent<'_>) -> Vec<(String, String, u64)> {
    let record = |record: Value| {
        let ours = &record["postern"];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&ours["fact"]), text(&ours["stage"]), ours["child"].as_u64().expect("a number"))
    };
    agent.records_of("fact-told").into_iter().map(record).collect()
}

fn a_kept_fact_has_one_record_for_each_worker() {
    let home = Home::new();
    let mut agent = home.start(&telling(&["guest-get-load"]));
    let mut host = agent.connect();
    for _ in 0..10 {
        load(&mut host);
    }
    let first = told(&agent);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!((first[0].0.as_str(), first[0].1.as_str()), ("load", "granted"));
    agent.signal("worker", Signal::SIGKILL);
    agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    load(&mut host);
    load(&mut host);
    let both = told(&agent);
    assert_eq!(both.len(), 2, "{both:?}");
    assert_ne!(both[0].2, both[1].2, "another worker's");
    drop(host);
    agent.signal("broker", Signal::SIGTERM);
    agent.ended();
    let counted: u64 = agent
        .records_of("counted")
        .iter()
        .filter_map(|record| record["postern"]["counts"]["guest-get-load"].as_u64())
        .sum();
    assert_eq!(counted, 2, "what a killed worker had counted went with it");
}

/// Has the kernel forget every name and inode that nobody holds: the files of `/proc`
/// are other ones afterwards.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
}

fn kept_facts_outlive_the_kernels_caches() {
    let commands = ["guest-get-load", "guest-get-cpustats", "guest-get-diskstats"];
    let home = Home::new();
    let agent = home.start(&telling(&commands));
    assert!(!agent.family().contains_key("opener"), "nobody opens anything for these: {:?}", agent.family());
    // Before the first ask, between two, and for another worker.
    for worker in 0..2 {
        let mut host = agent.connect();
        for _ in 0..2 {
            forget();
            for command in commands {
                host.returns(command, &Value::Null);
            }
        }
        assert_eq!(told(&agent).len(), (worker + 1) * commands.len(), "one record for each worker");
        agent.signal("worker", Signal::SIGKILL);
        agent.await_record("process-died", |record| record["process"]["name"] == "worker");
    }
}

/// A kernel that can neither add nor remove memory.
fn what_the_kernel_does_not_have_is_told_as_that() {
    let none: Option<&str> = None;
    mount(Some("none"), "/sys/devices/system", Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
    let home = Home::new();
    let agent = home.start(&telling(&["guest-get-memory-block-info"]));
    let mut host = agent.connect();
    for _ in 0..3 {
        let refused = host.fails("guest-get-memory-block-info", &Value::Null);
        assert_eq!(refused, "open(\"/sys/devices/system/memory/\"): No such file or directory", "as stock");
    }
    let told = told(&agent);
    assert_eq!(told.len(), 1, "asked once, for there is nothing to wait for: {told:?}");
    assert_eq!((told[0].0.as_str(), told[0].1.as_str()), ("memory-block-size", "failed"));
}

fn a_fact_waits_for_an_opener_that_is_replaced() {
    let home = Home::new();
    let agent = home.start(&telling(&["guest-get-disks"]));
    let mut host = agent.connect();
    host.ping();
    let opener = agent.process("opener", 0);
    agent.signal("opener", Signal::SIGKILL);
    // Whether the broker knows yet or not: told, or an error that says so.
    let reply = host.ask("guest-get-disks", &Value::Null);
    let said = &reply["error"]["desc"];
    assert!(reply["return"].is_array() || *said == "failed to read disks: Input/output error", "{reply}");
    agent.process("opener", opener);
    host.returns("guest-get-disks", &Value::Null);
}

fn without_facts_nothing_is_there_for_them() {
    let home = Home::new();
    let agent = home.start("profile = \"minimal\"\n");
    let mut host = agent.connect();
    host.ping();
    assert!(!agent.family().contains_key("opener"), "{:?}", agent.family());
    let refused = host.fails("guest-get-load", &Value::Null);
    assert_eq!(refused, "Command guest-get-load has been disabled: the command is not allowed");
    assert!(told(&agent).is_empty());
}
