//! The clients' transcripts (`tests/transcripts/clients`) over a real virtio-serial
//! port: first to the stock agent of a Debian guest, then to postern in its place.
//! Each connection of a client is one to QEMU's socket, as on a host.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::guests::{LINUX_6_1, Userland};
use crate::machine::{Machine, Setup};
use crate::play::{Stage, play};
use crate::postern::{ACCOUNTS, POLICY, START, VERIFY};
use crate::script::{self, Kind, Way};
use crate::support::agent::eventually;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("clients_over_virtio_serial", over_virtio_serial),
    ("clients_that_speak_as_they_connect", that_speak_as_they_connect),
];

/// How often a client comes anew.
const TIMES: usize = 40;

/// The bytes of a client that speaks as soon as it is connected can be in the
/// guest before the kernel there has heard that a host is: they must be
/// answered all the same.
fn that_speak_as_they_connect() {
    let mut machine = Machine::boot(&Setup::new(LINUX_6_1, Userland::Systemd).with_postern(POLICY));
    machine.note("");
    machine.sh(ACCOUNTS);
    machine.sh(START);
    machine.host().ping();
    // Ahead of the kernel's thread that is to note the host.
    machine.sh("pids=$(pgrep -f '^postern: ') && for pid in $pids; do chrt -f -p 50 $pid || exit 1; done");
    for time in 0..TIMES {
        // With a pause the guest notices that there is no host; without, hardly.
        sleep(Duration::from_millis([0, 3, 30, 100][time % 4]));
        let mut host = machine.host();
        // Every other one says more than fits one buffer of the port.
        let room = " ".repeat(time % 2 * 20_000);
        let sync = r#"{"execute":"guest-sync-delimited","arguments":{"id":1}}"#;
        host.send(format!("{sync}\n{{\"execute\":{room}\"guest-ping\"}}\n").as_bytes());
        println!("client {time}");
        assert_eq!(host.hear(), json!({ "return": 1 }));
        assert_eq!(host.hear(), json!({ "return": {} }));
    }
}

fn over_virtio_serial() {
    let mut machine = Machine::boot(&Setup::new(LINUX_6_1, Userland::Systemd).with_postern(POLICY).with_stock());
    machine.note("");
    machine.sh("mkdir -p /srv");
    machine.sh_eventually("systemctl is-active qemu-guest-agent");
    satisfies_all(&mut machine, Kind::Stock);
    machine.sh("systemctl stop qemu-guest-agent && rm -rf /srv");
    machine.sh(ACCOUNTS);
    machine.sh(START);
    satisfies_all(&mut machine, Kind::Postern);
    machine.sh(VERIFY);
}

fn satisfies_all(machine: &mut Machine, kind: Kind) {
    let mut wrong = Vec::new();
    for script in script::all() {
        for (name, size) in &script.files {
            machine.sh(&format!("truncate -s {size} /srv/{name} && chmod 644 /srv/{name}"));
        }
        let socket = machine.agent_socket();
        let stage = Stage {
            kind,
            way: Way::Machine,
            connect: &|| eventually("QEMU takes a host", || UnixStream::connect(&socket).ok()),
            names: [("DIR", "/srv"), ("MNT", "/")].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        let played = play(&script, &stage);
        println!("{:<16} {kind:?}: {} replies, {} checks", script.client, played.replies, played.checks);
        wrong.extend(played.wrong);
    }
    assert!(wrong.is_empty(), "{} steps:\n{}", wrong.len(), wrong.join("\n"));
}
