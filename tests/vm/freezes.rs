//! The root filesystem frozen, with the audit log and the journal on it: what
//! writes waits, whoever of postern is killed meanwhile, the host can thaw, and
//! the log has it all.

use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::everything;
use crate::guests::{Kernel, LINUX_6_1, LINUX_6_12, NEWEST, Userland};
use crate::machine::Machine;
use crate::power;
use crate::services::{self, insist, story};
use crate::support::agent::Host;
use crate::support::runner::Test;

const QUICK: &[Test] = &[
    ("freezes_of_the_root_busybox", || freezes(LINUX_6_12, Userland::Busybox)),
    ("freezes_of_the_root_systemd", || freezes(LINUX_6_1, Userland::Systemd)),
];

const OTHERS: &[Test] = &[
    ("freezes_of_the_root_newest_busybox", || freezes(NEWEST, Userland::Busybox)),
    ("freezes_of_the_root_newest_systemd", || freezes(NEWEST, Userland::Systemd)),
    ("a_slow_disk_keeps_no_host_waiting", a_slow_disk_keeps_no_host_waiting),
    ("freezes_of_the_root_sysvinit", || freezes(LINUX_6_1, Userland::Sysvinit)),
];

pub(crate) fn tests() -> Vec<Test> {
    if everything() { [QUICK, OTHERS].concat() } else { QUICK.to_vec() }
}

const WORKER: &str = "postern-worker";
const OPENER: &str = "postern-opener";
const BROKER: &str = "postern-broker";
const SPAWNER: &str = "postern-spawner";

/// Who is killed while / is frozen: what the table calls it, and the processes.
const VICTIMS: [(&str, &[&str]); 4] =
    [("worker", &[WORKER]), ("opener", &[OPENER]), ("broker", &[BROKER]), ("all", &[WORKER, OPENER, SPAWNER, BROKER])];

fn freezes(kernel: Kernel, userland: Userland) {
    let mut machine = services::boot(kernel, userland);
    if userland == Userland::Systemd {
        machine.sh("journalctl --flush && ls /var/log/journal/*/system.journal");
    }
    let mut seen = story(&mut machine).len();
    let thaw = thaws_in_time(&mut machine, userland);
    assert_eq!(new_lines(&mut machine, &mut seen), [ASKED, DONE, THAWED]);

    let mut times = vec![format!("thaw {thaw:.1} s")];
    for (name, victims) in VICTIMS {
        let (back, thaw) = outlives(&mut machine, userland, victims);
        times.push(format!("{name} killed: back {back:.1} s, thaw {thaw:.1} s"));
        let lines = new_lines(&mut machine, &mut seen);
        let died = |who: &str| format!("process-died {who} signal 9");
        let wanted = match name {
            // What the broker had in memory died with it: the next one says what
            // it found.
            "broker" | "all" => [ASKED, STARTED, FOUND, THAWED].map(str::to_owned).to_vec(),
            _ => vec![ASKED.to_owned(), DONE.to_owned(), died(name), THAWED.to_owned()],
        };
        assert_eq!(lines, wanted, "{name} was killed");
    }
    thaws_by_itself(&mut machine, userland, &mut seen);
    machine.note(&times.join("; "));

    // After all that it still shuts down as it should.
    power::powers_down(&mut machine);
    power::disk_is_clean(&mut machine, "powerdown");
}

const ASKED: &str = "guest-fsfreeze-freeze asked";
const DONE: &str = "guest-fsfreeze-freeze done /";
const FOUND: &str = "found-frozen / (an earlier run froze these, or was about to)";
const THAWED: &str = "guest-fsfreeze-thaw done / (asked by the host)";
const STARTED: &str = "log-opened broker (started)";

/// What the log got since, without who was born.
fn new_lines(machine: &mut Machine, seen: &mut usize) -> Vec<String> {
    let story = story(machine);
    let new = story[*seen..].iter().filter(|line| !line.starts_with("process-started")).cloned().collect();
    *seen = story.len();
    new
}

/// Freezes / and lets something write to it, and much to the journal.
fn freeze(machine: &mut Machine, userland: Userland) {
    machine.sh("rm -f /run/late; echo \"x$(cat /run/round 2>/dev/null)\" >/run/round");
    assert_eq!(insist(machine, "guest-fsfreeze-freeze"), 1);
    assert_eq!(insist(machine, "guest-fsfreeze-status"), "frozen");
    machine.sh("(echo late >>/srv/late; echo $? >/run/late) >/dev/null 2>&1 &");
    if userland == Userland::Systemd {
        // More than journald's sockets hold: whoever says something now waits.
        machine.sh("(seq 1000 | logger -t noise; echo end of the noise | logger -t \"end-$(cat /run/round)\") >/dev/null 2>&1 &");
    }
    machine.sh("sleep 1; test ! -e /run/late");
}

/// Thaws; in how many seconds. What waited goes on.
fn thaw(machine: &mut Machine, userland: Userland) -> f64 {
    let asked = Instant::now();
    assert_eq!(insist(machine, "guest-fsfreeze-thaw"), 1);
    let took = asked.elapsed().as_secs_f64();
    assert_eq!(insist(machine, "guest-fsfreeze-status"), "thawed");
    machine.sh_eventually("test \"$(cat /run/late)\" = 0");
    machine.sh("echo more >>/srv/late && sync");
    if userland == Userland::Systemd {
        machine.sh_eventually("journalctl --sync; journalctl -b -q -n 50 -t \"end-$(cat /run/round)\" | grep noise");
    }
    took
}

fn thaws_in_time(machine: &mut Machine, userland: Userland) -> f64 {
    freeze(machine, userland);
    thaw(machine, userland)
}

/// The ids of these processes, once each is there.
fn processes(machine: &mut Machine, names: &[&str]) -> String {
    machine.sh_eventually(&format!(
        "for name in {}; do found=; for one in /proc/[0-9]*; do read -r comm <$one/comm && [ \"$comm\" = $name ] && \
         found=\"$found ${{one#/proc/}}\"; done 2>/dev/null; [ -n \"$found\" ] || exit 1; echo $found; done",
        names.join(" ")
    ))
}

/// Kills with / frozen. In how many seconds status was `frozen` again, and in
/// how many it was thawed.
fn outlives(machine: &mut Machine, userland: Userland, victims: &[&str]) -> (f64, f64) {
    let before = processes(machine, victims);
    freeze(machine, userland);
    // Some may be gone with others by then.
    machine.sh(&format!("kill -KILL {} 2>&1; true", before.replace('\n', " ")));
    let killed = Instant::now();
    assert_eq!(insist(machine, "guest-fsfreeze-status"), "frozen");
    let back = killed.elapsed().as_secs_f64();
    machine.sh("test ! -e /run/late");
    let thaw = thaw(machine, userland);
    let after = processes(machine, victims);
    assert!(before.lines().all(|old| after.lines().all(|new| old != new)), "before {before:?}, after {after:?}");
    (back, thaw)
}

/// A host that never comes back: the policy's time limit thaws.
fn thaws_by_itself(machine: &mut Machine, userland: Userland, seen: &mut usize) {
    machine.sh("mkdir -p /etc/postern/policy.d && \
         printf 'version = 1\\n[freeze]\\nlimit = \"5s\"\\n' >/etc/postern/policy.d/limit.toml");
    if userland == Userland::Systemd {
        machine.sh("systemctl restart postern");
    } else {
        let broker = processes(machine, &[BROKER]);
        machine.sh(&format!("kill {broker}"));
        machine.sh_eventually(&format!("! test -d /proc/{}", broker.trim()));
    }
    assert_eq!(insist(machine, "guest-fsfreeze-status"), "thawed");
    assert_eq!(new_lines(machine, seen), ["stopped (SIGTERM)", STARTED]);
    machine.sh("rm -f /run/late");
    assert_eq!(insist(machine, "guest-fsfreeze-freeze"), 1);
    machine.sh("(echo late >>/srv/late; echo $? >/run/late) >/dev/null 2>&1 &");
    machine.sh_eventually("test \"$(cat /run/late)\" = 0");
    assert_eq!(insist(machine, "guest-fsfreeze-status"), "thawed");
    let by_limit = THAWED.replace("asked by the host", "the time limit passed");
    assert_eq!(new_lines(machine, seen), [ASKED, DONE, &by_limit]);
}

/// What the slow disk takes in a second, in bytes.
const SLOWLY: u64 = 512 << 10;

/// A disk of so few bytes a second, with much to write before it is frozen: every
/// question is answered meanwhile.
fn a_slow_disk_keeps_no_host_waiting() {
    let asked = std::env::var("POSTERN_STUCK_SECONDS").ok();
    let seconds: u64 = asked.map_or(10, |seconds| seconds.parse().expect("a number of seconds"));
    let image = tempfile::NamedTempFile::new().expect("an image file");
    File::set_len(image.as_file(), 256 << 20).expect("its size");
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(image.path()).status();
    assert!(made.expect("mkfs.ext4").success());
    let drive = format!("if=none,id=slow,format=raw,file={},throttling.bps-write={SLOWLY}", image.path().display());
    let devices = ["-drive", &drive, "-device", "virtio-blk-pci,drive=slow"];
    let mut machine = services::boot_with(LINUX_6_12, Userland::Busybox, &devices);
    let blocks = seconds * SLOWLY / 65536;
    // Nothing is to be written before the freeze.
    machine.sh("echo 100 >/proc/sys/vm/dirty_ratio; echo 90 >/proc/sys/vm/dirty_background_ratio");
    machine.sh("mkdir /run/slow && mount -t ext4 /dev/vdb /run/slow");
    machine.sh(&format!("dd if=/dev/zero of=/run/slow/data bs=64k count={blocks}"));

    let mut host = machine.host();
    let send = |host: &mut Host, command: &str, id: &str| {
        let arguments = if command.contains("sync") { json!({ "id": 5 }) } else { json!({}) };
        host.send(json!({ "execute": command, "arguments": arguments, "id": id }).to_string().as_bytes());
    };
    send(&mut host, "guest-fsfreeze-freeze", "freeze");
    let (begun, mut times, mut done) = (Instant::now(), Vec::new(), None);
    while done.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(3 * seconds + 240), "the freeze takes for ever");
        // A sync would take away the freeze's reply.
        for command in ["guest-ping", "guest-info", "guest-fsfreeze-status"] {
            let asked = Instant::now();
            send(&mut host, command, command);
            let mut reply = host.hear();
            if reply["id"] == "freeze" {
                done = Some((begun.elapsed(), reply));
                reply = host.hear();
            }
            assert_eq!(reply["id"], command);
            times.push(asked.elapsed());
        }
    }
    let (took, reply): (Duration, Value) = done.expect("an end");
    assert_eq!(reply["return"], 2, "{reply}");
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    machine.note(&format!(
        "freeze of a slow disk {:.1} s; {} answers meanwhile: median {:.1?}, p99 {:.1?}, slowest {:.1?}",
        took.as_secs_f64(),
        times.len(),
        at(50),
        at(99),
        at(100)
    ));
    assert!(took > Duration::from_secs(seconds / 2), "it was no slow disk: {took:?}");
    assert!(at(50) < Duration::from_secs(1), "median {:?}", at(50));
    drop(host);
    assert_eq!(insist(&machine, "guest-fsfreeze-thaw"), 2);
}
