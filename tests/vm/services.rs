//! postern as a service of each userland's init, which starts it again when it
//! dies, and a service of the guest's own whose stop job leaves a sign on the disk.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guests::{Kernel, Userland};
use crate::machine::{Machine, PATIENCE, Setup};
use crate::postern::{ACCOUNTS, INSTALL, LOG, POLICY, VERIFY, installed};
use crate::support::agent::{BINARY, LIVELY};
use crate::support::records;

/// Where the guest's own service leaves a line each time it is stopped.
pub(crate) const STOPPED: &str = "/var/lib/stopped";

/// systemd's way to know a service with a stop job.
const WITNESS_UNIT: &str = "[Unit]\nDescription=Leaves a sign when it is stopped\n\
     [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n\
     ExecStop=/bin/sh -c 'echo stopped >>/var/lib/stopped'\n";

/// System V's way.
const WITNESS_SCRIPT: &str = "#!/bin/sh\n### BEGIN INIT INFO\n# Provides: witness\n# Required-Start: $local_fs\n\
     # Required-Stop: $local_fs\n# Default-Start: 2\n# Default-Stop: 0 1 6\n\
     # Short-Description: Leaves a sign when it is stopped\n### END INIT INFO\n\
     [ \"$1\" != stop ] || echo stopped >>/var/lib/stopped\n";

/// The line of an inittab that keeps postern running: busybox's.
const RESPAWN_BUSYBOX: &str = "::respawn:/usr/bin/postern run -vv </dev/null 2>>/run/postern.log\n";
/// System V's. The `+` keeps init from writing to wtmp that postern died: with /
/// frozen it would wait there for a thaw, and start nothing any more.
const RESPAWN_SYSVINIT: &str = "po:2:respawn:+/usr/bin/postern run -vv </dev/null 2>>/run/postern.log";

/// Boots a guest in which postern is a service.
pub(crate) fn boot(kernel: Kernel, userland: Userland) -> Machine {
    boot_with(kernel, userland, &[])
}

/// As [`boot`], with more of QEMU's arguments.
pub(crate) fn boot_with(kernel: Kernel, userland: Userland, devices: &[&str]) -> Machine {
    let setup = Setup::new(kernel, userland).with_postern(POLICY).with_devices(devices).file("/srv/here", "", 0o644);
    let setup = match userland {
        Userland::Busybox => {
            let inittab = format!("{}{RESPAWN_BUSYBOX}", include_str!("busybox/inittab"));
            setup.file("/etc/inittab", inittab, 0o644)
        }
        Userland::Systemd => installed(setup, true).file("/etc/systemd/system/witness.service", WITNESS_UNIT, 0o644),
        Userland::Sysvinit => setup.file("/etc/init.d/witness", WITNESS_SCRIPT, 0o755),
    };
    let mut machine = Machine::boot(&setup);
    match userland {
        Userland::Busybox => {}
        Userland::Systemd => {
            machine.sh(INSTALL);
            machine.sh("systemctl add-wants multi-user.target witness.service && systemctl start postern witness");
        }
        Userland::Sysvinit => {
            machine.sh(ACCOUNTS);
            machine.sh(&format!(
                "update-rc.d qemu-guest-agent disable && update-rc.d witness defaults && \
                 cat >>/etc/inittab <<'END'\n{RESPAWN_SYSVINIT}\nEND\ntelinit q"
            ));
        }
    }
    assert_eq!(insist(&machine, "guest-fsfreeze-status"), "thawed");
    machine
}

/// Asks as hosts do that know of agents which die: a new connection, a sync, the
/// question; and all that again until there is an answer.
pub(crate) fn insist(machine: &Machine, command: &str) -> Value {
    let started = Instant::now();
    for id in 1.. {
        if let Some(answer) = try_once(&machine.agent_socket(), command, id) {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "nobody answers {command}; the console:\n{}", machine.console());
        sleep(Duration::from_millis(100));
    }
    unreachable!("a loop without end")
}

/// libvirt gives a sync 5 s.
const SYNC: Duration = Duration::from_secs(5);

fn try_once(socket: &Path, command: &str, id: u32) -> Option<Value> {
    let mut stream = BufReader::new(UnixStream::connect(socket).ok()?);
    stream.get_ref().set_read_timeout(Some(SYNC)).ok()?;
    stream.get_ref().set_write_timeout(Some(SYNC)).ok()?;
    let sync = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
    writeln!(stream.get_mut(), "{sync}").ok()?;
    let mut line = Vec::new();
    // What an earlier one left ends where the delimiter is.
    stream.read_until(0xFF, &mut line).ok()?;
    line.clear();
    stream.read_until(b'\n', &mut line).ok()?;
    if serde_json::from_slice::<Value>(&line).ok()?["return"] != id {
        return None;
    }
    stream.get_ref().set_read_timeout(Some(LIVELY)).ok()?;
    writeln!(stream.get_mut(), "{}", json!({ "execute": command })).ok()?;
    line.clear();
    stream.read_until(b'\n', &mut line).ok()?;
    let reply: Value = serde_json::from_slice(&line).ok()?;
    assert!(reply.get("return").is_some(), "{command}: {reply}");
    Some(reply["return"].clone())
}

/// The log in the guest, which must be whole: `action stage` or `action`, with
/// what tells apart what these tests look at.
pub(crate) fn story(machine: &mut Machine) -> Vec<String> {
    machine.sh(VERIFY);
    told(&machine.sh(&format!("cat {LOG}")))
}

/// As [`story`], of a log that was copied to this machine.
pub(crate) fn story_of(log: &Path) -> Vec<String> {
    let output = Command::new(BINARY).args(["audit", "verify"]).arg(log).output().expect("postern audit verify");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    told(&std::fs::read_to_string(log).expect("the log"))
}

fn told(log: &str) -> Vec<String> {
    records::check_printed("a guest's log", log);
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    let word = |value: &Value| value.as_str().map(|text| format!(" {text}")).unwrap_or_default();
    records
        .map(|record| {
            let signal = record["postern"]["signal"].as_i64().map(|signal| format!(" signal {signal}"));
            let mounts = record["postern"]["mounts"].as_array().into_iter().flatten();
            format!(
                "{}{}{}{}{}{}{}",
                record["event"]["action"].as_str().expect("an action"),
                word(&record["postern"]["stage"]),
                word(&record["process"]["name"]),
                word(&record["postern"]["shutdown"]["mode"]),
                mounts.map(word).collect::<String>(),
                signal.unwrap_or_default(),
                record["event"]["reason"].as_str().map(|why| format!(" ({why})")).unwrap_or_default(),
            )
        })
        .filter(|line| !line.starts_with("counted") && !line.starts_with("host-"))
        .collect()
}
