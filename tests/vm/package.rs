//! The package in a Debian with systemd: it takes the stock agent's place while
//! a host polls, is watched, comes back with the port, is upgraded, and goes.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::everything;
use crate::guests::{self, LINUX_6_1, Userland};
use crate::later::later;
use crate::machine::{Machine, PORT, Setup};
use crate::postern::VERIFY;
use crate::power::powers_down;
use crate::support::runner::Test;

const TESTS: &[Test] = &[
    ("package_takes_the_place_of_stock", swap),
    ("package_is_watched_upgraded_and_removed", life),
    ("package_starts_at_boot_rotates_and_thaws", boots),
    ("package_runs_under_sysvinit", sysvinit),
];

pub(crate) fn tests() -> Vec<Test> {
    if everything() { TESTS.to_vec() } else { TESTS[..1].to_vec() }
}

/// A guest with the package and a later one in /root, and stock at work.
fn guest(userland: Userland) -> Machine {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let package = guests::package();
    let later = later(&package, scratch.path());
    let read = |path| fs::read(path).expect("a package");
    let setup = Setup::new(LINUX_6_1, userland).with_stock().file("/root/postern.deb", read(package), 0o644).file(
        "/root/later.deb",
        read(later),
        0o644,
    );
    let setup = setup.file("/root/busybox", fs::read("/bin/busybox").expect("busybox-static"), 0o755);
    Machine::boot(&setup)
}

/// Units of ours that failed; a guest has others that are no use there.
pub(crate) const FAILED: &str = "systemctl --failed --plain --no-legend | grep -E 'postern|qemu' || true";

/// Nobody is asked; what the operator changed stays.
pub(crate) const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive apt-get -y -o Dpkg::Options::=--force-confdef \
     -o Dpkg::Options::=--force-confold install";

/// What a host saw that polled.
#[derive(Debug, Default)]
struct Seen {
    answered: u32,
    /// Not within five seconds: libvirt's patience for a sync.
    unanswered: u32,
    longest: Duration,
}

/// A host that polls on one connection, as libvirt does: a sync, then a ping.
struct Poll {
    stop: Arc<AtomicBool>,
    host: JoinHandle<Seen>,
}

impl Poll {
    fn start(socket: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let host = thread::spawn(move || {
            let stream = UnixStream::connect(socket).expect("the port");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
            let mut stream = BufReader::new(stream);
            let mut seen = Seen::default();
            let mut id = 0;
            while !told.load(Ordering::Relaxed) {
                id += 1;
                let asked = Instant::now();
                if poll(&mut stream, id) {
                    seen.answered += 1;
                } else {
                    seen.unanswered += 1;
                }
                seen.longest = seen.longest.max(asked.elapsed());
                sleep(Duration::from_millis(50));
            }
            seen
        });
        Self { stop, host }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.host.join().expect("the host")
    }
}

/// Whether a sync and a ping were answered; late replies to earlier ones are
/// read over, anything else is a fault.
fn poll(stream: &mut BufReader<UnixStream>, id: u32) -> bool {
    let sync = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
    let request = format!("\u{0}{sync}{}", json!({ "execute": "guest-ping" }));
    let mut bytes = request.into_bytes();
    // What an earlier agent was told in part ends here.
    bytes[0] = 0xff;
    stream.get_mut().write_all(&bytes).expect("the port takes bytes");
    let mut synchronised = false;
    loop {
        let mut line = Vec::new();
        match stream.read_until(b'\n', &mut line) {
            Ok(0) => panic!("QEMU closed the port"),
            Ok(_) => {}
            Err(why) if why.kind() == ErrorKind::WouldBlock => return false,
            Err(why) => panic!("{why}"),
        }
        let text = line.iter().position(|byte| *byte == 0xff).map_or(&line[..], |at| &line[at + 1..]);
        let reply: Value = serde_json::from_slice(text).unwrap_or_else(|why| panic!("{why}: {line:?}"));
        if reply["return"] == json!(id) {
            synchronised = true;
        } else if synchronised {
            assert_eq!(reply, json!({ "return": {} }));
            return true;
        } else {
            // Stock answers what a 0xFF made of half a request by an error.
            assert!(
                reply.get("return").is_some()
                    || reply["error"]["desc"].as_str().is_some_and(|text| text.contains("JSON"))
            );
        }
    }
}

fn show(guest: &mut Machine, property: &str) -> String {
    guest.sh(&format!("systemctl show --value --property {property} postern.service")).trim().to_owned()
}

/// Waits for the service to be up with a main process other than `before`.
fn restarted(guest: &mut Machine, before: &str) -> String {
    guest.sh_eventually(&format!(
        "systemctl -q is-active postern && pid=$(systemctl show --value -p MainPID postern) && test $pid != {before} && echo $pid"
    ))
}

fn swap() {
    let mut guest = guest(Userland::Systemd);
    guest.sh_eventually("systemctl is-active qemu-guest-agent");
    let version = guest.host().returns("guest-info", &Value::Null)["version"].clone();
    assert!(version.as_str().is_some_and(|version| version.starts_with("7.")), "the control: stock answers, {version}");

    guest.sh(NETWORK);
    let stock = interfaces(&guest);

    let poll = Poll::start(guest.agent_socket());
    let said = guest.sh(&format!("{INSTALL} /root/postern.deb"));
    assert!(said.contains("Removing qemu-guest-agent"), "{said}");
    guest.sh("systemctl is-active postern");
    let seen = poll.end();
    guest.note(&format!(
        "host polled {} times over the swap, {} unanswered in 5 s, longest {:.1} s",
        seen.answered + seen.unanswered,
        seen.unanswered,
        seen.longest.as_secs_f64()
    ));
    assert!(seen.answered > 0, "{seen:?}");
    let info = guest.host().returns("guest-info", &Value::Null);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    guest.host().ping();

    // What an operator sees.
    let status = guest.sh("systemctl --no-pager --full status postern.service");
    assert!(status.contains("Active: active (running)") && status.contains("Status: \""), "{status}");
    assert_eq!(show(&mut guest, "Type"), "notify");
    assert_ne!(show(&mut guest, "WatchdogTimestampMonotonic"), "0", "it was never fed");
    guest.sh("systemctl is-active qemu-guest-agent.service; test -x /usr/sbin/qemu-ga");
    assert_eq!(guest.sh("dpkg-query -W -f '${db:Status-Abbrev}' qemu-guest-agent"), "rc ");
    assert_eq!(guest.sh(&format!("stat -L -c '%U:%G %a' /dev/virtio-ports/{PORT}")), "root:postern 660\n");
    let who = guest.sh("ps -eo user:20=,args= | grep '[p]ostern: ' | sort");
    assert_eq!(
        who.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
        "postern postern: spawner postern postern: worker postern-broker postern: broker",
        "{who}"
    );
    assert_eq!(guest.sh(FAILED), "");
    let exposure = guest.sh("systemd-analyze security --no-pager postern.service | tail -n 1");
    let number: f64 = exposure
        .split_ascii_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("an exposure: {exposure}"));
    assert!(number <= 3.5, "{exposure}");

    tells_of_the_guests_network(&mut guest, &stock);

    // udev starts it whenever the port appears.
    guest.sh("systemctl stop postern");
    assert_eq!(guest.sh(NETLINK), "inactive\n", "it goes with the service");
    guest.qmp("device_del", json!({ "id": "port" }));
    guest.event("DEVICE_DELETED");
    guest.sh_eventually(&format!("! test -e /dev/virtio-ports/{PORT}"));
    guest.qmp(
        "device_add",
        json!({ "driver": "virtserialport", "bus": "serial.0", "id": "port", "chardev": "agent", "name": PORT }),
    );
    guest.sh_eventually("systemctl -q is-active postern");
    guest.host().ping();
}

/// Interfaces of the guest as its agent tells them, without what counts on.
fn interfaces(guest: &Machine) -> Value {
    let mut told = guest.host().returns("guest-network-get-interfaces", &Value::Null);
    for interface in told.as_array_mut().expect("interfaces") {
        interface.as_object_mut().expect("an interface").remove("statistics");
    }
    told
}

/// What a network namespace with nothing in it does not have.
const NETWORK: &str = "/root/busybox ip address add 192.0.2.1/32 dev lo && \
     /root/busybox ip route add unreachable 203.0.113.0/24";
/// The unit of the netlink socket.
const NETLINK: &str = "systemctl show --value --property ActiveState postern-netlink.socket";

/// Which network namespace a process of the service is in: files there have other
/// numbers.
const APART: &str = "test $(stat -c %i /proc/$(systemctl show --value -p MainPID postern)/net/dev) != \
     $(stat -c %i /proc/1/net/dev)";

/// How many netlink sockets of the guest's own namespace the broker holds.
const HELD: &str = "ls -l /proc/$(systemctl show --value -p MainPID postern)/fd | grep -o 'socket:[^]]*' | \
     cut -d '[' -f 2 | while read -r inode; do grep -w $inode /proc/1/net/netlink || true; done | wc -l";

/// The service has no network, and tells of the guest's.
fn tells_of_the_guests_network(guest: &mut Machine, stock: &Value) {
    let before = show(guest, "MainPID");
    guest.sh(
        "printf 'version = 1\n[commands]\nallow = [\"guest-network-get-interfaces\", \"guest-network-get-route\"]\n' \
         >/etc/postern/policy.d/30-network.toml; ! systemctl reload postern",
    );
    assert_eq!(show(guest, "MainPID"), before, "it takes a new start, and says so");
    for restarted in [false, true] {
        if restarted {
            let pid = show(guest, "MainPID");
            guest.sh(&format!("kill -KILL {pid}"));
            self::restarted(guest, &pid);
        } else {
            guest.sh("systemctl restart postern");
        }
        guest.sh(APART);
        assert_eq!(guest.sh(HELD), "1\n");
        assert_eq!(guest.sh(NETLINK), "active\n");
        assert_eq!(interfaces(guest), *stock, "restarted by systemd: {restarted}");
        let routes = guest.host().returns("guest-network-get-route", &Value::Null);
        let refused = |route: &Value| route["destination"] == "203.0.113.0" && route["mask"] == "255.255.255.0";
        assert!(routes.as_array().expect("routes").iter().any(refused), "{routes}");
    }
    assert!(stock.to_string().contains("192.0.2.1"), "the control: {stock}");
    assert_eq!(guest.sh(FAILED), "");
    // Without the command it is closed.
    guest.sh("rm /etc/postern/policy.d/30-network.toml && systemctl restart postern");
    assert_eq!(guest.sh(HELD), "0\n");
    assert_eq!(guest.sh(FAILED), "");
}

fn life() {
    let mut guest = guest(Userland::Systemd);
    guest.sh(&format!("{INSTALL} /root/postern.deb"));
    guest.sh("systemctl is-active postern");

    // Reloaded: a good policy is in force, a bad one is not even sent.
    let served = show(&mut guest, "MainPID");
    guest.sh(&format!("{NEW_RULE} && systemctl reload postern && {RELOADED}"));
    guest.sh("echo nonsense >/etc/postern/policy.d/20-reload.toml && ! systemctl reload postern");
    guest.sh("journalctl --no-pager -u postern | grep 'the policy in force stays'");
    guest.sh("rm /etc/postern/policy.d/20-reload.toml && systemctl reload postern && systemctl is-active postern");
    assert_eq!(show(&mut guest, "MainPID"), served, "the same broker");
    guest.host().ping();

    // Watched: a broker that stands still is killed and another one started. A
    // minute is the unit's; a test may be less patient.
    guest.sh(
        "mkdir -p /run/systemd/system/postern.service.d && cd /run/systemd/system/postern.service.d && \
         printf '[Service]\nWatchdogSec=10s\n' >impatient.conf && systemctl daemon-reload && systemctl restart postern",
    );
    let before = show(&mut guest, "MainPID");
    guest.sh(&format!("kill -STOP {before}"));
    let after = restarted(&mut guest, &before);
    assert_eq!(show(&mut guest, "NRestarts"), "1");
    guest.sh("journalctl --no-pager -u postern | grep -i 'watchdog timeout'");
    guest.host().ping();

    // Upgraded: anew, with the operator's policy.
    guest.sh("sed -i 's/^profile = .*/profile = \"minimal\"/' /etc/postern/policy.toml");
    guest.sh(&format!("{INSTALL} /root/later.deb"));
    restarted(&mut guest, after.trim());
    guest.sh("grep -q minimal /etc/postern/policy.toml && grep -q Later /etc/postern/policy.toml.dpkg-dist");
    let info = guest.host().returns("guest-info", &Value::Null);
    let freeze = info["supported_commands"].as_array().expect("commands").iter();
    let freeze = freeze.filter(|command| command["name"] == "guest-fsfreeze-freeze").collect::<Vec<_>>();
    assert!(matches!(freeze.as_slice(), [one] if one["enabled"] == false), "{freeze:?}");
    guest.sh(VERIFY);

    // Removed: no process, no unit, no right to the port. Then purged.
    guest.sh("apt-get -y remove postern");
    guest.sh("! pgrep postern && ! systemctl cat postern.service qemu-guest-agent.service && ! test -e /run/postern");
    assert_eq!(guest.sh(FAILED), "");
    assert_eq!(guest.sh(&format!("stat -L -c '%U:%G %a' /dev/virtio-ports/{PORT}")), "root:root 600\n");
    guest.sh("test -e /var/log/postern/audit.jsonl && apt-get -y purge postern");
    guest.sh("rm -r /root/*.deb /root/busybox /run/systemd/system/postern.service.d");
    let left = guest.sh("find / -xdev -name '*postern*' ! -path '/var/log/*' ; find /run -name '*postern*'; grep -r --exclude='*-' postern /etc || true");
    assert_eq!(left, "");
}

/// Reboots as a host asks for it, by the policy that the package brings.
fn reboot(guest: &mut Machine) {
    let before = guest.sh(BOOT);
    // What QEMU would take for its end it does.
    guest.qmp("set-action", json!({ "reboot": "reset" }));
    guest.host().send(br#"{"execute": "guest-shutdown", "arguments": {"mode": "reboot"}}"#);
    guest.event("RESET");
    guest.booted();
    assert_ne!(guest.sh(BOOT), before);
}

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

/// A filesystem beside /: with that frozen apt itself would wait.
const DISK: &str =
    "truncate -s 20M /run/disk && mke2fs -q /run/disk && mkdir -p /srv/disk && mount -o loop /run/disk /srv/disk";

fn boots() {
    let mut guest = guest(Userland::Systemd);
    guest.sh(&format!("{INSTALL} /root/postern.deb"));
    reboot(&mut guest);
    guest.sh_eventually("systemctl is-active postern");
    guest.host().ping();
    assert_eq!(show(&mut guest, "Type"), "notify");
    assert_ne!(show(&mut guest, "StatusText"), "");
    assert_eq!(guest.sh(&format!("stat -L -c '%U:%G %a' /dev/virtio-ports/{PORT}")), "root:postern 660\n");
    assert_eq!(guest.sh(FAILED), "");

    // logrotate, as the package sets it up.
    let broker = show(&mut guest, "MainPID");
    guest.sh("logrotate --force /etc/logrotate.d/postern");
    guest.sh_eventually("cd /var/log/postern && test -s audit.jsonl.1 && test -s audit.jsonl");
    assert_eq!(guest.sh("stat -c '%U %a' /var/log/postern/audit.jsonl"), "postern-broker 600\n");
    guest.sh("cd /var/log/postern && postern audit verify audit.jsonl.1 audit.jsonl");
    assert_eq!(show(&mut guest, "MainPID"), broker, "logrotate restarted it");

    // Something is frozen: an upgrade leaves the one who knows of it alone, a
    // removal thaws first.
    guest.sh(DISK);
    let frozen = json!({ "mountpoints": ["/srv/disk"] });
    assert_eq!(guest.host().returns("guest-fsfreeze-freeze-list", &frozen), 1);
    guest.sh("(echo late >/srv/disk/late) >/dev/null 2>&1 & sleep 1; test ! -s /srv/disk/late");
    let said = guest.sh(&format!("{INSTALL} /root/later.deb"));
    assert!(said.contains("filesystems are frozen"), "{said}");
    assert_eq!(show(&mut guest, "MainPID"), broker);
    assert_eq!(guest.host().returns("guest-fsfreeze-status", &Value::Null), "frozen");
    guest.sh("test ! -s /srv/disk/late");
    guest.sh("apt-get -y remove postern");
    guest.sh_eventually("grep -q late /srv/disk/late");
    guest.sh("! pgrep postern && ! test -e /run/postern");
    let log = guest.sh("tail -n 3 /var/log/postern/audit.jsonl");
    assert!(log.contains("postern is stopping") && log.contains("SIGTERM"), "{log}");
}

/// The broker's process.
const BROKER: &str = "pgrep -x postern-broker";

/// A drop-in that a running agent can take, and that it did.
const NEW_RULE: &str = "printf 'version = 1\n[limits]\nhandles = 7\n' >/etc/postern/policy.d/20-reload.toml";
const RELOADED: &str = "grep '\"action\":\"policy-reloaded\"' /var/log/postern/audit.jsonl | grep -c limits.handles";

fn sysvinit() {
    let mut guest = guest(Userland::Sysvinit);
    guest.sh_eventually("pgrep -x qemu-ga");
    let said = guest.sh(&format!("{INSTALL} /root/postern.deb"));
    assert!(said.contains("Removing qemu-guest-agent"), "{said}");
    guest.sh_eventually(BROKER);
    guest.host().ping();
    guest.sh("! pgrep -x qemu-ga; service postern status");

    let first = guest.sh(BROKER);
    guest.sh("service postern restart");
    assert_ne!(guest.sh_eventually(BROKER), first);
    guest.host().ping();
    // What logrotate does; Debian's brings cron along where there is no systemd.
    guest.sh("cd /var/log/postern && mv audit.jsonl audit.jsonl.1 && service postern reopen");
    guest.sh_eventually(
        "cd /var/log/postern && test -s audit.jsonl.1 && postern audit verify audit.jsonl.1 audit.jsonl",
    );
    let served = guest.sh(BROKER);
    guest.sh(&format!("{NEW_RULE} && service postern reload && {RELOADED}"));
    assert_eq!(guest.sh(BROKER), served, "the same broker");
    guest.host().ping();
    guest.sh("service postern stop && ! pgrep postern");
    guest.sh("service postern status; test $? = 3");
    guest.sh("service postern start");
    guest.sh_eventually(BROKER);
    guest.host().ping();

    // Nobody supervises it here. Its processes go with it, status tells, and it
    // can be started.
    guest.sh(&format!("kill -KILL $({BROKER})"));
    guest.sh_eventually("! pgrep postern");
    let (status, said) = guest.try_sh("service postern status");
    assert!(status == 1 && said.contains("not running"), "{status}: {said}");
    guest.sh("service postern start");
    guest.sh_eventually(BROKER);
    guest.host().ping();

    // The runlevels start it and stop it.
    reboot(&mut guest);
    guest.sh_eventually(BROKER);
    let story = guest.sh("grep -E 'stopped|guest-shutdown' /var/log/postern/audit.jsonl | tail -n 2");
    assert!(story.contains("guest-shutdown") && story.contains("stopped"), "{story}");
    powers_down(&mut guest);
}
