//! Shutting the guest down in each mode: init ends its services first and
//! unmounts, and the machine does what the mode says.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::everything;
use crate::guests::{Kernel, LINUX_6_1, LINUX_6_12, NEWEST, Userland};
use crate::machine::Machine;
use crate::postern::LOG;
use crate::services::{self, STOPPED, insist, story, story_of};
use crate::support::runner::Test;

const QUICK: &[Test] = &[
    ("power_busybox", || power(LINUX_6_12, Userland::Busybox)),
    // How systemd powers off the freezes' scene shows.
    ("reboot_systemd", || reboot(LINUX_6_1, Userland::Systemd)),
];

const OTHERS: &[Test] = &[
    ("power_systemd", || power(LINUX_6_1, Userland::Systemd)),
    ("power_sysvinit", || power(LINUX_6_1, Userland::Sysvinit)),
    ("power_newest_systemd", || power(NEWEST, Userland::Systemd)),
];

pub(crate) fn tests() -> Vec<Test> {
    if everything() { [QUICK, OTHERS].concat() } else { QUICK.to_vec() }
}

/// One machine through all three: reboot, halt and reset, power off.
fn power(kernel: Kernel, userland: Userland) {
    let mut machine = services::boot(kernel, userland);
    // What QEMU would take for its end it does.
    machine.qmp("set-action", json!({ "reboot": "reset" }));

    ask(&mut machine, "reboot");
    let reset = machine.event("RESET");
    assert_eq!(reset["data"], json!({ "guest": true, "reason": "guest-reset" }));
    machine.booted();
    was_shut_down(&mut machine, 1, "reboot");

    let before = machine.console().len();
    ask(&mut machine, "halt");
    machine.console_shows("reboot: System halted", before);
    assert_eq!(machine.qmp("query-status", json!({}))["status"], "running", "halted is not off");
    machine.qmp("system_reset", json!({}));
    machine.booted();
    was_shut_down(&mut machine, 2, "halt");

    machine.note("");
    powers_down(&mut machine);
    let image = disk_is_clean(&mut machine, "powerdown");
    assert_eq!(debugfs(&image, &format!("cat {STOPPED}")), "stopped\n".repeat(3));
}

/// A reboot that ends at the reset, and what it left on the disk.
fn reboot(kernel: Kernel, userland: Userland) {
    let mut machine = services::boot(kernel, userland);
    machine.note("");
    ask(&mut machine, "reboot");
    let end = machine.event("SHUTDOWN");
    assert_eq!(end["data"], json!({ "guest": true, "reason": "guest-reset" }));
    disk_is_clean(&mut machine, "reboot");
}

/// Asks for a mode. What goes well has no reply.
fn ask(machine: &mut Machine, mode: &str) {
    insist(machine, "guest-ping");
    let request = json!({ "execute": "guest-shutdown", "arguments": { "mode": mode } });
    machine.host().send(request.to_string().as_bytes());
}

/// Powers off as a host asks for it; QEMU has ended then.
pub(crate) fn powers_down(machine: &mut Machine) {
    ask(machine, "powerdown");
    let end = machine.event("SHUTDOWN");
    assert_eq!(end["data"], json!({ "guest": true, "reason": "guest-shutdown" }));
    machine.ended();
}

/// In the next boot: stop jobs ran, postern was told to stop, the filesystem
/// was unmounted.
fn was_shut_down(machine: &mut Machine, times: usize, mode: &str) {
    assert_eq!(machine.sh(&format!("cat {STOPPED}")), "stopped\n".repeat(times));
    let kernel = machine.sh("dmesg | grep 'EXT4-fs (vda)'");
    assert!(kernel.contains("mounted filesystem") && !kernel.contains("recover"), "{kernel}");
    insist(machine, "guest-ping");
    let story = story(machine);
    let start = story.iter().rposition(|line| line.starts_with("log-opened")).expect("this boot's start");
    ended_by(&story[..start], mode);
}

/// A log that ends with an orderly stop, for the host asked for this mode.
fn ended_by(story: &[String], mode: &str) {
    // An opener may still have been on its way.
    let lines = story.iter().map(String::as_str).filter(|line| !line.starts_with("process-started"));
    let lines: Vec<&str> = lines.collect();
    let end = &lines[lines.len().saturating_sub(2)..];
    assert_eq!(end, [format!("guest-shutdown asked {mode}").as_str(), "stopped (SIGTERM)"], "{story:#?}");
}

/// Looks into the disk of a machine that has ended: unmounted in order,
/// whole, and postern's log ends as it should. The image.
pub(crate) fn disk_is_clean(machine: &mut Machine, mode: &str) -> PathBuf {
    let image = machine.image();
    let header = output("dumpe2fs", &["-h".as_ref(), image.as_os_str()]);
    let of = |key: &str| header.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).unwrap_or_default();
    assert_eq!(of("Filesystem state:"), "clean", "{header}");
    assert!(!of("Filesystem features:").contains("needs_recovery"), "{header}");
    output("e2fsck", &["-fn".as_ref(), image.as_os_str()]);
    assert!(debugfs(&image, &format!("cat {STOPPED}")).ends_with("stopped\n"), "no stop job ran");
    let log = machine.directory.path().join("audit.jsonl");
    std::fs::write(&log, debugfs(&image, &format!("cat {LOG}"))).expect("the log");
    ended_by(&story_of(&log), mode);
    image
}

fn debugfs(image: &Path, request: &str) -> String {
    output("debugfs", &["-R".as_ref(), request.as_ref(), image.as_os_str()])
}

/// What a program prints that must succeed.
fn output(program: &str, arguments: &[&std::ffi::OsStr]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|why| panic!("{program}: {why}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    said
}
