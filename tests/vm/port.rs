//! The port as it is: unplugged and plugged in again, with udev and without,
//! its controller too; hosts that come and go in the middle of things; a
//! machine that stops, sleeps, and is put back to an earlier moment.
//!
//! Times are measured and shown, not asserted: what is emulated on a busy
//! machine is as slow as that.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guests::{LINUX_6_1, LINUX_6_12, Userland};
use crate::machine::{Machine, PATIENCE, PORT, Setup};
use crate::postern::{INSTALL, LAST_WORDS, POLICY, START, STOP, VERIFY, installed};
use crate::support::agent::Host;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_replugged_port_is_served_by_the_same_broker", a_replugged_port_is_served_by_the_same_broker),
    (
        "without_a_udev_rule_the_service_manager_starts_it_again",
        without_a_udev_rule_the_service_manager_starts_it_again,
    ),
    ("without_udev_it_ends_in_order", without_udev_it_ends_in_order),
    ("hosts_come_and_go_in_the_middle_of_things", hosts_come_and_go_in_the_middle_of_things),
    ("the_machine_stops_sleeps_and_goes_back_in_time", the_machine_stops_sleeps_and_goes_back_in_time),
    ("vsock_serves_one_context_only", vsock_serves_one_context_only),
    ("a_serial_line_is_as_good_as_a_port", a_serial_line_is_as_good_as_a_port),
];

/// The stock agent's port, beside ours.
const STOCK: &str = "stock.0";

/// A port beside the agent's, on a controller of its own, and the stock agent
/// on it, which tries again (`-r`).
pub(crate) fn stock_beside(machine: &mut Machine) {
    let path = machine.directory.path().join("stock");
    let address = json!({ "type": "unix", "data": { "path": path } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": true, "wait": false } });
    machine.qmp("chardev-add", json!({ "id": "stock", "backend": backend }));
    machine.qmp("device_add", json!({ "driver": "virtio-serial-pci", "id": "serial-stock" }));
    plug_port(machine, "stock");
    machine.sh_eventually(&format!("test -e /dev/virtio-ports/{STOCK}"));
    machine.sh(&format!(
        "mkdir -p /run/stock; qemu-ga -r -m virtio-serial -p /dev/virtio-ports/{STOCK} -t /run/stock \
         </dev/null >/run/stock/out 2>&1 & echo $! >/run/stock/pid"
    ));
}

/// Plugs in ours (`port`) or stock's (`stock`).
fn plug_port(machine: &mut Machine, which: &str) {
    let (bus, name, chardev) =
        if which == "stock" { ("serial-stock.0", STOCK, "stock") } else { ("serial.0", PORT, "agent") };
    let port = json!({ "driver": "virtserialport", "bus": bus, "id": which, "chardev": chardev, "name": name });
    machine.qmp("device_add", port);
}

fn unplug(machine: &mut Machine, device: &str) {
    machine.qmp("device_del", json!({ "id": device }));
    while machine.event("DEVICE_DELETED")["data"]["device"] != device {}
}

/// How long until a host that is connected has its ping answered.
fn answered_after(socket: &std::path::Path, since: Instant) -> Duration {
    let mut stream = UnixStream::connect(socket).expect("QEMU listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.write_all(b"\xff{\"execute\": \"guest-ping\"}\n").expect("QEMU listens");
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(b"{\"return\": {}}\n") {
        stream.read_exact(&mut byte).unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&heard)));
        heard.push(byte[0]);
    }
    since.elapsed()
}

/// How often an event is in the audit log.
fn count(machine: &mut Machine, action: &str) -> usize {
    let counted = machine.sh(&format!("grep -c '\"action\":\"{action}\"' /var/log/postern/audit.jsonl; true"));
    counted.trim().parse().expect("a number")
}

/// From the making of the port's node to the worker that is confined on it, by
/// the guest's own clock.
fn served_after(machine: &mut Machine) -> f64 {
    let node = machine.sh(&format!("stat -c %.W $(readlink -f /dev/virtio-ports/{PORT})"));
    let last = "grep '\"action\":\"process-started\"' /var/log/postern/audit.jsonl | tail -n 1 | \
                sed 's/.*\"@timestamp\":\"\\([^\"]*\\)\".*/\\1/'";
    let confined = machine.sh(&format!("date +%s.%N -d \"$({last})\""));
    let number = |text: &str| text.trim().parse::<f64>().unwrap_or_else(|why| panic!("{why}: {text:?}"));
    number(&confined) - number(&node)
}

fn a_replugged_port_is_served_by_the_same_broker() {
    let setup = installed(Setup::new(LINUX_6_1, Userland::Systemd).with_postern(POLICY), true);
    let mut machine = Machine::boot(&setup);
    machine.sh(INSTALL);
    machine.sh("systemctl start postern && systemctl is-active postern");
    stock_beside(&mut machine);
    let stock = machine.directory.path().join("stock");
    let agent = machine.agent_socket();
    let broker = machine.sh("systemctl show -p MainPID -p NRestarts postern");
    assert!(broker.contains("NRestarts=0") && !broker.contains("MainPID=0"), "{broker}");
    answered_after(&stock, Instant::now());
    machine.host().ping();
    let mut handle = machine.host().open("/srv/file", "w+").expect("a handle");
    let mut rounds = 0;
    let mut notes = Vec::new();
    for (device, frozen) in [("port", false), ("port", true), ("serial", false), ("serial", true)] {
        let what = if device == "port" { "port" } else { "controller" };
        if frozen {
            assert_eq!(machine.host().returns("guest-fsfreeze-freeze", &Value::Null), json!(1));
        }
        unplug(&mut machine, device);
        unplug(&mut machine, if device == "port" { "stock" } else { "serial-stock" });
        rounds += 1;
        machine.sh_eventually(&format!("! test -e /dev/virtio-ports/{PORT}"));
        machine.sh_eventually("! pgrep -x postern-worker");
        // Here and there in /dev: nothing of it is the port.
        machine.sh("touch /dev/other; rm /dev/other");
        assert_eq!(machine.sh("systemctl show -p MainPID -p NRestarts postern"), broker, "the broker waits");
        if device == "serial" {
            machine.qmp("device_add", json!({ "driver": "virtio-serial-pci", "id": "serial" }));
            machine.qmp("device_add", json!({ "driver": "virtio-serial-pci", "id": "serial-stock" }));
        }
        let plugged = Instant::now();
        plug_port(&mut machine, "port");
        let ours = answered_after(&agent, plugged);
        let mut host = machine.host();
        if frozen {
            assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "frozen", "it outlives its {what}");
            // udev hangs, and with it all that waits for its link.
            machine.sh(&format!("! test -e /dev/virtio-ports/{PORT}"));
            assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), json!(1));
        }
        let plugged = Instant::now();
        plug_port(&mut machine, "stock");
        let theirs = answered_after(&stock, plugged);
        let flush = host.fails("guest-file-flush", &json!({ "handle": handle }));
        assert_eq!(flush, format!("handle '{handle}' has not been found"), "the worker that held it is gone");
        let next = host.open("/srv/file", "r").expect("a handle");
        assert!(next > handle, "{next} after {handle}: none is given twice");
        handle = next;
        drop(host);
        machine.sh_eventually(&format!("test -e /dev/virtio-ports/{PORT}"));
        let inside = served_after(&mut machine);
        notes.push(format!(
            "{what} back{}: worker confined {inside:.2} s after the node was made; ping answered {:.2} s after it was \
             plugged in, by stock -r {:.2} s",
            if frozen { ", all frozen until after" } else { "" },
            ours.as_secs_f64(),
            theirs.as_secs_f64()
        ));
        assert_eq!(machine.sh("systemctl show -p MainPID -p NRestarts postern"), broker, "no restart");
        assert_eq!(count(&mut machine, "host-connected"), rounds);
        assert_eq!(count(&mut machine, "host-disconnected"), rounds);
    }
    machine.note(&notes.join("; "));
    assert_eq!(count(&mut machine, "log-opened"), 1);
    assert_eq!(count(&mut machine, "malformed-frame"), 0);
    machine.sh(VERIFY);
}

fn without_a_udev_rule_the_service_manager_starts_it_again() {
    let setup = installed(Setup::new(LINUX_6_12, Userland::Systemd).with_postern(POLICY), false);
    let mut machine = Machine::boot(&setup);
    machine.sh(INSTALL);
    machine.sh("systemctl start postern && systemctl is-active postern");
    assert_eq!(machine.host().returns("guest-fsfreeze-freeze", &Value::Null), json!(1));
    unplug(&mut machine, "port");
    machine.sh_eventually(&format!("! test -e /dev/virtio-ports/{PORT}"));
    let plugged = Instant::now();
    plug_port(&mut machine, "port");
    let took = answered_after(&machine.agent_socket(), plugged);
    machine
        .note(&format!("no udev rule: served again {:.2} s after it was plugged in, by a restart", took.as_secs_f64()));
    assert_eq!(machine.host().returns("guest-fsfreeze-status", &Value::Null), "thawed", "it thaws before it ends");
    machine.sh("touch /srv/writes");
    let said = machine.sh("journalctl -o cat -u postern; systemctl show -p NRestarts postern");
    assert!(said.contains("NRestarts=1") && said.contains("status=5"), "{said}");
    assert!(said.contains("the worker's account can't open it (EACCES"), "{said}");
    assert_eq!(count(&mut machine, "stopped"), 1, "an end in order");
    machine.sh(VERIFY);
}

fn without_udev_it_ends_in_order() {
    let mut machine = Machine::boot(&Setup::new(LINUX_6_1, Userland::Busybox).with_postern(POLICY));
    machine.sh(START);
    assert_eq!(machine.host().returns("guest-fsfreeze-freeze", &Value::Null), json!(1));
    unplug(&mut machine, "port");
    // Nobody removes the link, so it leads to the new node at once.
    plug_port(&mut machine, "port");
    let said = machine.sh_eventually(LAST_WORDS);
    assert!(said.contains("can't open it (EACCES"), "{said}");
    machine.sh("touch /srv/writes");
    assert_eq!(count(&mut machine, "stopped"), 1);
    machine.sh(START);
    machine.host().ping();
}

fn hosts_come_and_go_in_the_middle_of_things() {
    let mut machine = Machine::boot(&Setup::new(LINUX_6_1, Userland::Busybox).with_postern(POLICY));
    machine.sh("mkdir -p /srv; dd if=/dev/zero of=/srv/large bs=1M count=8 2>/dev/null");
    machine.sh(START);
    machine.host().ping();
    let workers = machine.sh("pidof postern");
    let memory = |machine: &mut Machine| -> u64 {
        let peaks = machine.sh(
            "for pid in $(pidof postern); do sed -n 's/VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$pid/status; done",
        );
        peaks.lines().map(|line| line.parse::<u64>().expect("KiB")).sum()
    };
    // Half a message, and the host is gone: the next one's bytes are not its rest.
    let settle = |machine: &mut Machine| drop(machine.sh("sleep 0.5"));
    for half in
        ["{\"execute\": \"guest-ping\", \"arguments\": {", "{\"execute\": \"gues", "[[[[", "{\"a\": \"", "{\"a\": \"\\"]
    {
        let mut host = machine.host();
        host.send(half.as_bytes());
        settle(&mut machine);
        drop(host);
        settle(&mut machine);
        assert_eq!(machine.host().ask("guest-ping", &Value::Null), json!({ "return": {} }), "after {half:?}");
    }
    // One that goes at once still had its say: nobody waits for a shutdown's reply.
    let mut host = machine.host();
    host.send(br#"{"execute": "guest-file-open", "arguments": {"path": "/srv/made", "mode": "w"}}"#);
    drop(host);
    machine.sh_eventually("test -e /srv/made");
    // Amid a reply; the host that comes next resynchronises, as hosts do.
    let mut host = synchronised(&machine);
    let handle = host.open("/srv/large", "r").expect("a handle");
    let read = json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": 8 << 20 } }).to_string();
    drop(host);
    for _ in 0..5 {
        let mut host = machine.host();
        host.send(read.as_bytes());
        settle(&mut machine);
        drop(host);
        synchronised(&machine);
    }
    let mut host = synchronised(&machine);
    let back = host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": 0 }));
    assert_eq!(back["position"], 0, "handles outlive a host that connects anew for each command");
    assert_eq!(host.returns("guest-file-read", &json!({ "handle": handle, "count": 8 << 20 }))["count"], 8 << 20);
    drop(host);
    // One that asks for much and reads nothing: it waits, in bounded memory, and
    // all is there when it reads.
    let before = memory(&mut machine);
    let mut host = machine.host();
    let ask = format!(
        "{}{read}",
        r#"{"execute": "guest-file-seek", "arguments": {"handle": HANDLE, "offset": 0, "whence": 0}}"#
            .replace("HANDLE", &handle.to_string())
    );
    for _ in 0..6 {
        host.send(ask.as_bytes());
    }
    machine.sh("sleep 3");
    let grown = memory(&mut machine) - before;
    assert!(grown < 4096, "it grew by {grown} KiB while the host did not read 64 MiB of replies");
    assert!(machine.sh("cat /var/log/postern/audit.jsonl").contains("guest-file-open"), "the broker goes on");
    for _ in 0..6 {
        assert_eq!(host.hear()["return"]["position"], 0);
        assert_eq!(host.hear()["return"]["count"], 8 << 20);
    }
    host.ping();
    machine.note(&format!("64 MiB of replies to a host that does not read: all processes grew by {grown} KiB"));
    // One that never reads, and goes: the rest is dropped.
    host.send(ask.as_bytes());
    settle(&mut machine);
    drop(host);
    synchronised(&machine).ping();
    assert_eq!(machine.sh("pidof postern"), workers, "no process was replaced");
}

/// A host that has synchronised as libvirt and Proxmox do, whatever stands in
/// the channel.
fn synchronised(machine: &Machine) -> Host {
    let mut stream = UnixStream::connect(machine.agent_socket()).expect("QEMU listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream
        .write_all(b"\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": 4711}}")
        .expect("QEMU listens");
    let (mut heard, mut byte) = (Vec::new(), [0]);
    while !heard.ends_with(b"\xff{\"return\": 4711}\n") {
        stream.read_exact(&mut byte).expect("the agent answers");
        heard.push(byte[0]);
    }
    Host::over(stream)
}

fn the_machine_stops_sleeps_and_goes_back_in_time() {
    let mut machine = Machine::boot(&Setup::new(LINUX_6_1, Userland::Busybox).with_postern(POLICY));
    machine.sh(START);
    let mut host = machine.host();
    host.ping();
    let handle = host.open("/srv/file", "w+").expect("a handle");
    let processes = machine.sh("pidof postern");
    // Stopped, with a request on its way.
    machine.qmp("stop", json!({}));
    host.send(br#"{"execute": "guest-sync", "arguments": {"id": 1}}"#);
    sleep(Duration::from_millis(300));
    machine.qmp("cont", json!({}));
    assert_eq!(host.hear(), json!({ "return": 1 }));
    // Asleep in memory.
    machine.sh("(sleep 1; echo mem >/sys/power/state) >/dev/null 2>&1 &");
    machine.event("SUSPEND");
    host.send(br#"{"execute": "guest-sync", "arguments": {"id": 2}}"#);
    machine.qmp("system_wakeup", json!({}));
    machine.event("WAKEUP");
    assert_eq!(host.hear(), json!({ "return": 2 }), "asked while it slept");
    // Frozen, saved, thawed; put back, it is frozen again and can be thawed.
    assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), json!(1));
    saved(&mut machine, "savevm frozen");
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), json!(1));
    saved(&mut machine, "savevm thawed");
    saved(&mut machine, "loadvm frozen");
    let mut host = synchronised_over(host);
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "frozen");
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), json!(1));
    saved(&mut machine, "loadvm thawed");
    let mut host = synchronised_over(host);
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "thawed");
    host.returns("guest-file-flush", &json!({ "handle": handle }));
    // A host that was not there when it was saved.
    drop(host);
    synchronised(&machine).ping();
    assert_eq!(machine.sh("pidof postern"), processes, "no process was replaced");
}

/// A snapshot taken or put back by QEMU's monitor, which says nothing if it
/// worked.
fn saved(machine: &mut Machine, command: &str) {
    let said = machine.qmp("human-monitor-command", json!({ "command-line": command }));
    assert_eq!(said, "", "{command}");
}

/// The same host synchronises anew: a machine that was put back may be in the
/// middle of another conversation.
fn synchronised_over(host: Host) -> Host {
    let (mut writer, mut reader) = host.split();
    writer.write_all(b"\xff{\"execute\": \"guest-sync\", \"arguments\": {\"id\": 815}}").expect("QEMU listens");
    while reader.hear() != json!({ "return": 815 }) {}
    reader
}

/// A vsock client, in what a minimal Debian has: says what it hears.
const VSOCK_CLIENT: &str = r#"
use Socket;
alarm 30;
socket(my $s, 40, SOCK_STREAM, 0) or die "socket: $!";
connect($s, pack("SSLLCx3", 40, 0, 1234, $ARGV[0], 0)) or die "connect: $!";
syswrite($s, '{"execute": "guest-ping"}');
my $line = "";
while (sysread($s, my $byte, 1) == 1) { $line .= $byte; last if $byte eq "\n"; }
print "heard: $line\n";
"#;

fn vsock_serves_one_context_only() {
    let setup = Setup::new(LINUX_6_1, Userland::Systemd).with_postern(POLICY).file("/root/client", VSOCK_CLIENT, 0o644);
    let mut machine = Machine::boot(&installed(setup, true));
    // What the one said that the port started is none of this.
    machine.sh("systemctl mask --now postern && rm -f /var/log/postern/*");
    machine.sh("systemd-sysusers && mkdir -p /srv && chown postern: /srv && echo 1 >/proc/sys/kernel/printk");
    let channel = "[channel]\nmethod = \"vsock-listen\"\nport = 1234\n";
    let serve = |machine: &mut Machine, more: &str| {
        machine.sh(&format!("printf '%s' '{POLICY}{channel}{more}' >/etc/postern/policy.toml"));
        machine.sh(START);
        machine.sh_eventually("grep -q 'ready' /run/postern.log");
    };
    // A process of the guest itself, by the loopback transport: context 1.
    serve(&mut machine, "");
    for _ in 0..3 {
        let heard = machine.sh("perl /root/client 1");
        assert_eq!(heard, "heard: \n", "closed at once");
    }
    let refused = machine.sh("grep '\"action\":\"host-refused\"' /var/log/postern/audit.jsonl");
    assert_eq!(refused.lines().count(), 1, "not one for each: {refused}");
    let refused: Value = serde_json::from_str(refused.trim()).expect("a record");
    assert_eq!((&refused["postern"]["cid"], &refused["postern"]["count"]), (&json!(1), &json!(1)), "{refused}");
    let died =
        machine.sh("grep '\"action\":\"process-died\"' /var/log/postern/audit.jsonl; cat /run/postern.log; true");
    assert_eq!((count(&mut machine, "host-connected"), count(&mut machine, "process-died")), (0, 0), "{died}");
    machine.sh(STOP);
    // On a slow machine the worker may be killed when postern stops.
    let died = count(&mut machine, "process-died");
    // The policy says that it may.
    serve(&mut machine, "peer = 1\n");
    for _ in 0..3 {
        assert_eq!(machine.sh("perl /root/client 1"), "heard: {\"return\": {}}\n\n");
    }
    assert_eq!((count(&mut machine, "host-connected"), count(&mut machine, "process-died")), (3, died));
    machine.sh(VERIFY);
}

/// A UART of QEMU's: raw, no echo, and no word of who comes and goes.
fn a_serial_line_is_as_good_as_a_port() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let socket = place.path().join("line");
    let backend = format!("socket,id=line,path={},server=on,wait=off", socket.display());
    let line = ["-chardev", &backend, "-device", "isa-serial,chardev=line,index=2"];
    let setup = Setup::new(LINUX_6_12, Userland::Busybox).with_postern(POLICY).with_devices(&line);
    let mut machine = Machine::boot(&setup);
    machine.sh(&START.replace("postern run", "postern run --channel isa-serial:/dev/ttyS2"));
    machine.sh_eventually("grep -q ready /run/postern.log");
    let content = "cG9zdGVybg".repeat(2000);
    for visit in 0..2 {
        let mut host = Host::connect(&socket);
        // What the last host left half said is gone.
        host.send(b"\xff");
        let handle = host.open("/srv/file", if visit == 0 { "w+" } else { "r" }).expect("a file");
        if visit == 0 {
            assert_eq!(host.write(handle, &content)["return"]["count"], 15_000);
        }
        let arguments = json!({ "handle": handle, "count": 20_000 });
        if visit == 1 {
            assert_eq!(host.returns("guest-file-read", &arguments)["buf-b64"], content);
        }
        host.close(handle);
        assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), json!(1));
        assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), json!(1));
        host.send(br#"{"execute": "guest-pi"#);
    }
    machine.note("served by a UART");
    machine.sh(VERIFY);
}
