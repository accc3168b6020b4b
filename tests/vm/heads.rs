//! Heads of the audit log in real guests: journald gets them, also while it was
//! stopped, full or on a frozen disk, a syslog daemon is found again after its
//! restart, and a log that was tampered with contradicts them.

use serde_json::Value;

use crate::guests::{Kernel, LINUX_6_1, NEWEST, Userland};
use crate::machine::{Machine, Setup};
use crate::postern::{INSTALL, LOG, POLICY, START, STOP, installed};
use crate::services::insist;
use crate::support::agent::Host;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("heads_reach_journald", heads_reach_journald),
    ("heads_reach_a_syslog_daemon_that_was_restarted", heads_reach_a_syslog_daemon_that_was_restarted),
];

/// A drop-in for more of them.
const OFTEN: &str = "version = 1\n[audit]\nhead_records = 1\n";

/// By RECORDS.md; as JSON.
const HEADS: &str = "journalctl --sync; journalctl -q -o json MESSAGE_ID=f65ad1f760e644e4a4fcec55bd2d21eb";

fn heads(machine: &mut Machine) -> Vec<Value> {
    machine.sh(HEADS).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(head: &Value, name: &str) -> u64 {
    head[name].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name}: {head}"))
}

/// Makes records, each in a round of the broker's loop: it is asked in between.
fn refused(host: &mut Host, count: usize) {
    for _ in 0..count {
        host.fails("guest-exec", &Value::Null);
        host.returns("guest-fsfreeze-status", &Value::Null);
    }
}

/// Status and words of the verification against all that the journal has.
fn verified(machine: &mut Machine) -> (i32, String) {
    machine.try_sh(&format!("{HEADS} | postern audit verify --anchors - {LOG}"))
}

fn agrees(machine: &mut Machine, when: &str) {
    let (status, said) = verified(machine);
    assert!(status == 0 && said.contains("heads agree, the last with record"), "{when}: {status}: {said}");
}

fn boot(kernel: Kernel) -> Machine {
    let setup = installed(Setup::new(kernel, Userland::Systemd).with_postern(POLICY), true).file(
        "/etc/postern/policy.d/heads.toml",
        OFTEN,
        0o644,
    );
    let mut machine = Machine::boot(&setup);
    machine.sh(INSTALL);
    // On the disk that is frozen later.
    machine.sh("journalctl --flush && systemctl start postern");
    machine
}

/// Refusals while journald stands still: more than its queue takes heads.
const MANY: usize = 800;

fn heads_reach_journald() {
    let mut machine = boot(LINUX_6_1);
    let mut host = machine.host();
    refused(&mut host, 5);
    let uid = machine.sh("id -u postern-broker");
    let found = heads(&mut machine);
    assert!(found.len() >= 6, "{found:?}");
    for head in &found {
        let of = |name: &str| head[name].as_str().unwrap_or_default().to_owned();
        assert_eq!((of("_UID"), of("_SYSTEMD_UNIT")), (uid.trim().to_owned(), "postern.service".to_owned()));
        assert_eq!(
            (of("_TRANSPORT"), of("SYSLOG_IDENTIFIER"), of("PRIORITY")),
            ("journal".into(), "postern".into(), "5".into())
        );
        assert_eq!((of("POSTERN_LOG"), of("POSTERN_MISSED")), (LOG.to_owned(), "0".to_owned()));
        assert_eq!(of("POSTERN_BOOT_ID").replace('-', ""), of("_BOOT_ID"));
    }
    agrees(&mut machine, "at first");

    // Restarted: systemd holds its socket.
    machine.sh("systemctl restart systemd-journald");
    refused(&mut host, 5);
    agrees(&mut machine, "after a restart of journald");

    // Stopped, and soon its queue is full.
    let before = heads(&mut machine).len();
    machine.sh("kill -STOP $(pidof systemd-journald)");
    refused(&mut host, MANY);
    let sent = machine.sh(&format!("postern audit head {LOG}"));
    machine.sh("kill -CONT $(pidof systemd-journald)");
    machine.sh_eventually(&format!("{HEADS} | grep -v '\"POSTERN_MISSED\":\"0\"' | grep -q POSTERN_MISSED"));
    let found = heads(&mut machine);
    let late: Vec<&Value> = found.iter().filter(|head| number(head, "POSTERN_MISSED") > 0).collect();
    let last = sent.split(' ').next().and_then(|number| number.parse::<u64>().ok()).expect("a number");
    assert_eq!(late.len(), 1, "{late:?}");
    assert!(number(late[0], "POSTERN_SEQUENCE") >= last, "nothing older was kept: {late:?}");
    let missed = number(late[0], "POSTERN_MISSED");
    assert!(
        usize::try_from(missed).expect("a count") + found.len() - before >= MANY / 2,
        "{missed} missed, {} came",
        found.len() - before
    );
    agrees(&mut machine, "after a stop");
    let warned = machine.sh_eventually("journalctl --sync; journalctl -q -u postern | grep 'takes no heads'");
    assert_eq!(warned.lines().count(), 1, "{warned}");

    // On a frozen disk, under a journald that cannot write.
    assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), 1);
    machine.sh("(seq 1000 | logger -t noise) >/dev/null 2>&1 &");
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "frozen");
    for _ in 0..50 {
        host.fails("guest-file-open", &serde_json::json!({ "path": "/srv/x", "mode": "w" }));
    }
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), 1);
    machine.sh_eventually(&format!(
        "test \"$({HEADS} | tail -n 1 | sed 's/.*POSTERN_SEQUENCE\":\"\\([0-9]*\\)\".*/\\1/')\" = \
         \"$(postern audit head {LOG} | cut -d' ' -f1)\""
    ));
    agrees(&mut machine, "after a thaw");
    drop(host);

    // Another user's head is none.
    machine.sh(
        "setpriv --reuid=nobody --clear-groups logger -t postern \"audit head: record 1, sha256 $(printf %064d 0), \
         boot x, missed 0, log /var/log/postern/audit.jsonl\"",
    );
    machine.sh("systemctl stop postern");
    let all = "journalctl --sync; journalctl -q -o json SYSLOG_IDENTIFIER=postern";
    let broker = format!("--sender $(stat -c %u {LOG})");
    let said = machine.sh(&format!("{all} | postern audit verify --anchors - {broker} {LOG}"));
    assert!(said.contains("; ignored: 1 head by other users (65534), 1 of which contradict the log"), "{said}");
    let end = machine.sh(&format!("postern audit head {LOG}"));
    let last = end.split(' ').next().expect("a number");
    assert!(said.contains(&format!("the last with record {last}")), "the head of the orderly end: {said}");

    // Cut, and written anew by postern itself.
    machine.sh(&format!("cp -p {LOG} /root/log && head -n -3 /root/log >{LOG}"));
    let (status, said) = verified(&mut machine);
    assert!(status == 3 && said.starts_with("cut: "), "{status}: {said}");
    machine.sh(&format!(
        "cp -p {LOG} /root/short && cat /root/log >{LOG} && truncate -s 0 {LOG} && systemctl start postern"
    ));
    assert_eq!(insist(&machine, "guest-fsfreeze-status"), "thawed");
    machine.sh("systemctl stop postern");
    let (status, said) = verified(&mut machine);
    assert!(
        status == 3 && said.starts_with("rewritten: record") && said.contains("or one before it"),
        "{status}: {said}"
    );
    machine.note(&format!("{missed} of {MANY} missed while journald was stopped; cut and rewritten logs found"));
}

/// On a kernel whose Landlock asks to which sockets a process connects.
fn heads_reach_a_syslog_daemon_that_was_restarted() {
    let policy = "version = 1\n[audit]\nhead_records = 1\nheads = [\"journal\", \"syslog\"]\n";
    let setup = Setup::new(NEWEST, Userland::Busybox).with_postern(POLICY).file(
        "/etc/postern/policy.d/heads.toml",
        policy,
        0o644,
    );
    let mut machine = Machine::boot(&setup);
    // Nobody is there yet.
    machine.sh("test ! -e /dev/log");
    machine.sh(START);
    let mut host = machine.host();
    host.ping();
    refused(&mut host, 5);
    let warned = "grep -c 'takes no heads' /run/postern.log";
    assert_eq!(machine.sh(warned), "2\n", "of journald and of syslog, once each");
    for round in 0..3 {
        machine.sh(&format!("syslogd -O /run/messages.{round} && while ! test -S /dev/log; do sleep 0.1; done"));
        refused(&mut host, 5);
        machine.sh_eventually(&format!("test $(grep -c 'postern\\[.*audit head: ' /run/messages.{round}) -ge 5"));
        // Of these every user can write some, and all agree with the log.
        let said = machine.sh(&format!("postern audit verify --anchors /run/messages.{round} {LOG}"));
        assert!(said.contains("heads agree") && said.contains("of a syslog file"), "{said}");
        machine.sh("kill $(pidof syslogd) && while pidof syslogd; do sleep 0.1; done; rm -f /dev/log");
        refused(&mut host, 5);
    }
    assert_eq!(machine.sh(warned), "5\n", "and once after each that was there and was gone");
    machine.sh(STOP);
    machine.note("found again three times, with Landlock on sockets' names");
}
