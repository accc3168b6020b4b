//! Heads of the log, to a journald and a syslog of the test's own: when they are
//! sent, what they say, and that a receiver that does not read, or is not there,
//! costs nothing but a count.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use postern_core::audit::Hash;
use serde_json::Value;

use crate::scene::{freeze, status, thaw, verify, with};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::journal::{JOURNAL, bind, fields, heard};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("heads_go_out_at_their_moments", heads_go_out_at_their_moments),
    ("a_receiver_that_does_not_read_costs_a_count", a_receiver_that_does_not_read_costs_a_count),
    ("a_receiver_under_a_new_socket_is_found_again", a_receiver_under_a_new_socket_is_found_again),
    ("without_a_receiver_one_line_is_said", without_a_receiver_one_line_is_said),
];

const SYSLOG: &str = "/dev/log";
/// As RECORDS.md says.
const MESSAGE_ID: &str = "f65ad1f760e644e4a4fcec55bd2d21eb";

/// A head that a journald got, held against the log.
#[derive(Debug)]
struct Head {
    number: u64,
    missed: u64,
}

fn head(agent: &Agent<'_>, datagram: &(Vec<u8>, u32)) -> Head {
    let (datagram, sender) = datagram;
    assert_eq!(*sender, agent.home.broker, "who sent it");
    let fields = fields(datagram);
    let number = |name: &str| fields[name].parse::<u64>().unwrap_or_else(|why| panic!("{name}: {why}: {fields:?}"));
    let head = Head { number: number("POSTERN_SEQUENCE"), missed: number("POSTERN_MISSED") };
    let log = agent.home.log();
    let before = log.with_file_name("audit.jsonl.1");
    let lines: String = [before, log.clone()].iter().map(|log| fs::read_to_string(log).unwrap_or_default()).collect();
    let line = lines.lines().nth(usize::try_from(head.number).expect("a number") - 1).expect("that record");
    let expected = [
        ("MESSAGE_ID", MESSAGE_ID.to_owned()),
        ("PRIORITY", "5".to_owned()),
        ("SYSLOG_IDENTIFIER", "postern".to_owned()),
        ("POSTERN_HASH", Hash::of(line.as_bytes()).to_string()),
        ("POSTERN_LOG", log.display().to_string()),
        ("POSTERN_BOOT_ID", fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("it").trim().to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(fields[name], value, "{name}");
    }
    head
}

fn next(agent: &Agent<'_>, journal: &UnixDatagram) -> Head {
    head(agent, &eventually("a head", || heard(journal)))
}

fn policy(heads: &str, more: &str) -> String {
    with(&format!("[audit]\nheads = [{heads}]\n{more}"))
}

/// Makes this many records, which are written when this returns.
fn refused(host: &mut Host, count: u64) {
    for _ in 0..count {
        host.fails("guest-exec", &Value::Null);
    }
    status(host);
}

fn last(agent: &Agent<'_>) -> u64 {
    agent.records().last().expect("a record")["event"]["sequence"].as_u64().expect("a number")
}

fn heads_go_out_at_their_moments() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let journal = bind(JOURNAL);
    let home = Home::new();
    // Not as time goes by.
    let mut agent = home.start(&policy("\"journal\"", "head_records = 10\nhead_interval = \"1h\"\n"));
    assert_eq!(next(&agent, &journal).number, 2, "at the start");
    let mut host = agent.connect();
    refused(&mut host, 40);
    let mut told = 2;
    while told + 10 <= last(&agent) {
        let now = next(&agent, &journal).number;
        assert!((told + 10..told + 20).contains(&now), "{told}, then {now}");
        told = now;
    }
    assert_eq!(heard(&journal), None);

    fs::rename(home.log(), home.path("log/audit.jsonl.1")).expect("rotated");
    agent.signal("broker", Signal::SIGHUP);
    let rotated = next(&agent, &journal).number;
    assert_eq!(agent.records()[0]["event"]["sequence"], rotated, "the first record of the new file");

    assert_eq!(freeze(&mut host), 1);
    refused(&mut host, 30);
    assert_eq!(heard(&journal), None, "while something is frozen");
    assert_eq!(thaw(&mut host), 1);
    let thawed = next(&agent, &journal).number;
    assert!(thawed >= rotated + 30, "after a thaw: {thawed}");
    // Too few records for a head but for the thaw itself.
    assert_eq!((freeze(&mut host), thaw(&mut host)), (1, 1));
    let again = next(&agent, &journal).number;
    assert!(again < thawed + 10, "after another thaw: {thawed}, then {again}");

    drop(host);
    agent.signal("broker", Signal::SIGTERM);
    assert!(agent.ended().success());
    let end = next(&agent, &journal);
    assert_eq!((end.number, end.missed), (last(&agent), 0), "at the end");
    assert_eq!(agent.records_of("stopped").len(), 1);
    verify(&[&home.path("log/audit.jsonl.1"), &home.log()]);

    // By time: what was written behind the head of the start.
    let agent = home.start(&policy("\"journal\"", "head_interval = \"1s\"\n"));
    let first = next(&agent, &journal).number;
    assert!(next(&agent, &journal).number > first);
}

fn a_receiver_that_does_not_read_costs_a_count() {
    let journal = bind(JOURNAL);
    let home = Home::new();
    let agent = home.start(&policy("\"journal\"", "head_records = 1\nhead_interval = \"1h\"\n"));
    let mut host = agent.connect();
    // More than any queue of datagrams is long here, by net.unix.max_dgram_qlen.
    let most: u64 =
        fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").expect("it").trim().parse().expect("a number");
    refused(&mut host, 2 * most + 100);
    let warned = || agent.said().lines().filter(|line| line.contains("heads")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(warned(), [format!("postern: journald takes no heads of the audit log now: {JOURNAL}: no room")]);
    let mut heads = 0;
    let told = eventually("a head that tells of others", || {
        let one = head(&agent, &heard(&journal)?);
        heads += 1;
        (one.missed > 0).then_some(one)
    });
    assert_eq!(told.number, last(&agent), "nothing older was kept");
    // One round of the loop may write two records.
    assert!(told.missed + heads - 1 <= told.number && told.missed >= 20, "{told:?}, {heads} with it");
    refused(&mut host, 1);
    assert_eq!(next(&agent, &journal).missed, 0);
    assert_eq!(warned().len(), 1);
}

fn a_receiver_under_a_new_socket_is_found_again() {
    // /dev of a cell is the machine's: one of our own, with what postern needs.
    mount(Some("dev"), "/dev", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("a tmpfs");
    mknod("/dev/null", SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).expect("/dev/null");
    fs::set_permissions("/dev/null", fs::Permissions::from_mode(0o666)).expect("its mode");
    assert!(fs::metadata("/dev/null").expect("it").file_type().is_char_device());
    let home = Home::new();
    let (journal, syslog) = (bind(JOURNAL), bind(SYSLOG));
    let agent = home.start(&policy("\"journal\", \"syslog\"", "head_records = 5\nhead_interval = \"1h\"\n"));
    let line = |socket: &UnixDatagram| String::from_utf8(eventually("a line", || heard(socket)).0).expect("text");
    let first = line(&syslog);
    let start = format!("<85>postern[{}]: audit head: record 2, sha256 ", agent.pid());
    assert!(first.starts_with(&start) && first.ends_with(&format!(", log {}", home.log().display())), "{first}");
    assert_eq!(next(&agent, &journal).number, 2);
    let mut host = agent.connect();
    let mut receivers = (journal, syslog);
    for _ in 0..3 {
        // Gone for a while, and back before anything was sent.
        drop(receivers);
        fs::remove_file(SYSLOG).expect("it was there");
        refused(&mut host, 6);
        receivers = (bind(JOURNAL), bind(SYSLOG));
        refused(&mut host, 6);
        let found = next(&agent, &receivers.0);
        let (missed, line) = (format!("missed {}", found.missed), line(&receivers.1));
        assert!(found.missed > 0 && line.contains(&missed), "{found:?} {line}");
        drop(receivers);
        receivers = (bind(JOURNAL), bind(SYSLOG));
        refused(&mut host, 6);
        let found = next(&agent, &receivers.0);
        assert_eq!(found.missed, 0, "{found:?}");
    }
}

fn without_a_receiver_one_line_is_said() {
    let home = Home::new();
    let agent = home.start(&policy("\"journal\"", "head_records = 1\n"));
    let mut host = agent.connect();
    refused(&mut host, 50);
    let said = agent.said();
    let warned: Vec<&str> = said.lines().filter(|line| line.contains("heads")).collect();
    let why = "No such file or directory (os error 2)";
    assert_eq!(warned, [format!("postern: journald takes no heads of the audit log now: {JOURNAL}: {why}")]);
    // It came after all.
    let journal = bind(JOURNAL);
    refused(&mut host, 1);
    assert!(next(&agent, &journal).missed >= 50 / 2);
}
