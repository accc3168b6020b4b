//! A guest whose clock on the wall is set by years while filesystems are frozen
//! and while the log is rotated: the freeze's limit goes by another clock, and
//! the chain goes on. And whom the unit keeps from the kernel's OOM killer.

use std::time::{Duration, Instant};

use crate::guests::{LINUX_6_1, Userland};
use crate::machine::Machine;
use crate::services::{self, insist};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("a_clock_set_by_years_keeps_nothing_frozen", a_clock_set_by_years)];

/// Long enough to set the clock in between.
const LIMIT: Duration = Duration::from_secs(20);

fn a_clock_set_by_years() {
    let mut machine = services::boot(LINUX_6_1, Userland::Systemd);
    is_protected(&mut machine);
    machine.sh("systemctl stop systemd-timesyncd 2>/dev/null; mkdir -p /etc/postern/policy.d && \
         printf 'version = 1\\n[freeze]\\nlimit = \"20s\"\\n[limits]\\nacts = 1000\\n[audit]\\nrotate_bytes = \"64KiB\"\\nkeep = 2\\nkeep_days = 1\\n' \
         >/etc/postern/policy.d/clock.toml && systemctl restart postern");
    let mut told = Vec::new();
    for (name, years) in [("10 years ahead", 10), ("20 years back", -20)] {
        let thawed = frozen_meanwhile(&mut machine, years);
        assert!(thawed >= LIMIT / 2, "{name}: the limit ran out early, after {thawed:?}");
        assert!(thawed < LIMIT * 4, "{name}: {thawed:?}");
        told.push(format!("{name}: thawed after {:.0} s of {} s", thawed.as_secs_f64(), LIMIT.as_secs()));
        rotates(&mut machine);
    }
    machine.note(&told.join("; "));
}

/// Freezes, sets the clock, and waits for the limit to thaw.
fn frozen_meanwhile(machine: &mut Machine, years: i32) -> Duration {
    assert_eq!(insist(machine, "guest-fsfreeze-freeze"), 1);
    let frozen = Instant::now();
    set(machine, years);
    assert_eq!(insist(machine, "guest-fsfreeze-status"), "frozen", "the clock thaws nothing");
    while insist(machine, "guest-fsfreeze-status") != "thawed" {
        assert!(frozen.elapsed() < LIMIT * 6, "the clock keeps it frozen");
        std::thread::sleep(Duration::from_millis(500));
    }
    frozen.elapsed()
}

fn set(machine: &mut Machine, years: i32) {
    machine.sh(&format!("date -s @$(( $(date +%s) + {years} * 31557600 )) >/dev/null"));
}

/// Fills the log until it has been rotated twice more, with the clock set each
/// time, and has the chain verified. What is removed is the oldest by its number, not
/// by its time.
fn rotates(machine: &mut Machine) {
    for years in [3, -3] {
        let before = newest(machine);
        set(machine, years);
        let started = Instant::now();
        while newest(machine) == before {
            assert!(started.elapsed() < LIMIT * 6, "it is not rotated: {before}");
            for _ in 0..20 {
                insist(machine, "guest-fsfreeze-freeze");
                insist(machine, "guest-fsfreeze-thaw");
            }
        }
    }
    machine.sh("postern audit verify $(ls /var/log/postern/audit.jsonl.0*) /var/log/postern/audit.jsonl >&2");
}

/// Name of the file that was rotated last.
fn newest(machine: &mut Machine) -> String {
    machine.sh("ls /var/log/postern/ | grep 'audit.jsonl.0' | tail -n 1; true").trim().to_owned()
}

/// `OOMScoreAdjust=` of the unit is the broker's alone.
fn is_protected(machine: &mut Machine) {
    let found = machine.sh_eventually(
        "for name in broker spawner opener worker; do for one in /proc/[0-9]*; do read -r comm <$one/comm && \
         [ \"$comm\" = postern-$name ] && echo $name $(cat $one/oom_score_adj); done 2>/dev/null; done; true",
    );
    let lines: Vec<&str> = found.lines().collect();
    assert!(lines.contains(&"broker -900"), "{found}");
    assert!(lines.contains(&"spawner 0") && lines.contains(&"worker 0"), "{found}");
}
