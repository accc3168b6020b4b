//! The kernel's audit as a second witness, with the rules that ship: as many
//! opens there as records here, of the same inodes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::guests::{self, LINUX_6_1, Userland};
use crate::machine::{Machine, Setup};
use crate::postern::{INSTALL, LOG, POLICY, VERIFY, installed};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("the_kernels_audit_sees_what_the_log_says", the_kernels_audit)];

const RULES: &str = include_str!("../../audit/collectors/postern.rules");

/// auditd, and what the userland does not have of what it needs.
const PACKAGES: [&str; 3] = ["libauparse0", "libwrap0", "auditd"];

/// `O_PATH`, by openat(2)'s numbers on all processors of ours.
const LOOK: u64 = 0x20_0000;

/// Device and inode, as `file.device` and `file.inode` are.
type Object = (String, String);

/// A line of the audit log: its fields, without quotes. Behind a group separator auditd
/// adds names for numbers.
fn fields(line: &str) -> BTreeMap<&str, &str> {
    line.split([' ', '\u{1d}'])
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect()
}

/// How often each regular file was opened for more than a look, by events of this key.
fn opened(log: &str, key: &str) -> BTreeMap<Object, usize> {
    let lines: Vec<_> = log.lines().map(fields).collect();
    let mut found = BTreeMap::new();
    for call in lines.iter().filter(|line| line.get("type") == Some(&"SYSCALL") && line.get("key") == Some(&key)) {
        let flags = u64::from_str_radix(call["a2"], 16).expect("flags");
        if call["success"] != "yes" || flags & LOOK != 0 {
            continue;
        }
        for path in lines.iter().filter(|line| line.get("type") == Some(&"PATH") && line["msg"] == call["msg"]) {
            if path["nametype"] == "PARENT" || !path["mode"].starts_with("0100") {
                continue;
            }
            let (major, minor) = path["dev"].split_once(':').expect("a device");
            let number = |text| u64::from_str_radix(text, 16).expect("a number");
            let device = format!("{}:{}", number(major), number(minor));
            *found.entry((device, path["inode"].to_owned())).or_insert(0) += 1;
        }
    }
    found
}

/// How often each file was granted, by postern's log.
fn granted(log: &str) -> BTreeMap<Object, usize> {
    let mut found = BTreeMap::new();
    for record in log.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record")) {
        if record["postern"]["stage"] == "granted" {
            let text = |name: &str| record["file"][name].as_str().expect(name).to_owned();
            *found.entry((text("device"), text("inode"))).or_insert(0) += 1;
        }
    }
    found
}

fn the_kernels_audit() {
    let mut setup = installed(Setup::new(LINUX_6_1, Userland::Systemd).with_postern(POLICY), true)
        .file("/srv/read", "content", 0o644)
        .file("/srv/refused", "content", 0o600)
        .file("/etc/audit/rules.d/10-postern.rules", RULES, 0o640);
    for package in PACKAGES {
        let content = std::fs::read(guests::debian(package)).expect("a package");
        setup = setup.file(&format!("/root/debs/{package}.deb"), content, 0o644);
    }
    let mut machine = Machine::boot(&setup);
    machine.sh(INSTALL);
    let installed = machine.sh("dpkg -i --force-confold /root/debs/*.deb 2>&1");
    assert!(machine.sh("systemctl is-active auditd").starts_with("active"), "{installed}");
    let rules = machine.sh("auditctl -l");
    assert_eq!(rules.lines().count(), RULES.lines().filter(|line| line.starts_with("-a")).count(), "{rules}");
    // udev has started it already; the kernel follows only what is started after its audit was enabled.
    machine.sh("systemctl restart postern");

    let mut host = machine.host();
    machine.sh("ln -s read /srv/link");
    for (path, mode) in [
        ("/srv/read", "r"),
        ("/srv/link", "r"),
        ("/srv/read", "r"),
        ("/srv/new", "w"),
        ("/srv/new", "a+"),
        ("/srv/new", "w+"),
        ("/srv/other", "w+"),
    ] {
        let handle = host.open(path, mode).unwrap_or_else(|why| panic!("{path} {mode}: {why}"));
        host.close(handle);
    }
    for (path, mode) in [("/srv/refused", "r"), ("/srv/read", "w"), ("/etc/shadow", "r"), ("/srv/none", "r")] {
        host.open(path, mode).expect_err("no handle");
    }
    // Acts of others on what must not change.
    machine.sh("touch /etc/postern/policy.d-not-yet && chmod 711 /usr/bin/postern && echo >>/var/log/postern/forged");
    for key in ["postern-policy", "postern-log", "postern-executable"] {
        machine.sh_eventually(&format!("ausearch --input-logs --key {key} --success yes >/dev/null"));
    }
    machine.sh(VERIFY);
    let granted = granted(&machine.sh(&format!("cat {LOG}")));
    let log = machine.sh("cat /var/log/audit/audit.log");
    let disk = &granted.keys().next().expect("a file was granted").0;
    let mut opened = opened(&log, "postern-open");
    // The kernel's own files, which a process opens at its start.
    opened.retain(|(device, _), _| device == disk);
    assert_eq!(granted.values().sum::<usize>(), 7);
    assert_eq!(opened, granted, "{log}");
    // The broker's own writes are not held against it.
    assert!(
        !log.lines().any(|line| line.contains("key=\"postern-log\"") && line.contains("comm=\"postern\"")),
        "{log}"
    );
    machine.note(&format!("{} opens of {} files, both witnesses agree", opened.values().sum::<usize>(), opened.len()));
}
