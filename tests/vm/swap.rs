//! The package takes the stock agent's place, and gives it back, under a domain of
//! libvirt's that goes on all the while: what virsh gets before, between, after.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guests::{self, LINUX_6_1, Userland};
use crate::libvirt::{Domain, Libvirt, NAME};
use crate::machine::Setup;
use crate::machine::eventually;
use crate::package::{FAILED, INSTALL};
use crate::shell::Shell;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("package_swaps_under_libvirt", swap)];

const PING: &str = r#"{"execute":"guest-ping"}"#;
const INFO: &str = r#"{"execute":"guest-info"}"#;

/// The version of the agent that answers, or why nobody does, as virsh says it.
fn version(libvirt: &Libvirt) -> Result<String, String> {
    let (well, printed) = libvirt.try_virsh(&["qemu-agent-command", NAME, INFO]);
    let last = printed.lines().last().unwrap_or_default();
    if !well {
        return Err(last.trim_start_matches("error: ").to_owned());
    }
    let reply: Value = serde_json::from_str(last).unwrap_or_else(|why| panic!("{why}: {printed}"));
    Ok(reply["return"]["version"].as_str().expect("a version").to_owned())
}

/// What a host was told that asked all the time.
struct Seen {
    /// How many calls each agent answered, by its version.
    answered: BTreeMap<String, usize>,
    /// How many calls failed, by reason.
    failed: BTreeMap<String, usize>,
    /// From the last answer before a failure to the first one after it.
    gap: Duration,
}

/// Tells a thread to end when it goes out of scope.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks again and again, as an operator's script would, while `act` happens and
/// until the agent whose version starts with `wanted` answers.
fn asking(domain: &mut Domain, wanted: &str, act: impl FnOnce(&mut Shell)) -> Seen {
    let stop = AtomicBool::new(false);
    let (libvirt, shell) = (&domain.libvirt, &mut domain.shell);
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            let mut seen = Seen { answered: BTreeMap::new(), failed: BTreeMap::new(), gap: Duration::ZERO };
            let mut answered = Instant::now();
            let mut failing = false;
            while !stop.load(Ordering::Relaxed) {
                match version(libvirt) {
                    Ok(version) => {
                        *seen.answered.entry(version).or_default() += 1;
                        if failing {
                            seen.gap = seen.gap.max(answered.elapsed());
                        }
                        answered = Instant::now();
                        failing = false;
                    }
                    Err(why) => {
                        *seen.failed.entry(why).or_default() += 1;
                        failing = true;
                    }
                }
                sleep(Duration::from_millis(100));
            }
            seen
        });
        // Also when what follows fails.
        let end = Stop(&stop);
        act(shell);
        eventually("the other agent answers", || version(libvirt).is_ok_and(|it| it.starts_with(wanted)).then_some(()));
        drop(end);
        host.join().expect("the host")
    })
}

impl Seen {
    /// Exactly these two answered, one after the other.
    fn told(&self, what: &str) -> String {
        let failed: Vec<String> = self.failed.iter().map(|(why, times)| format!("{times} × \"{why}\"")).collect();
        let failed = if failed.is_empty() { "none failed".to_owned() } else { failed.join(", ") };
        assert_eq!(self.answered.len(), 2, "two agents: {:?}", self.answered);
        for why in self.failed.keys() {
            // What reached an agent is answered; what did not is refused at once.
            assert!(
                ["not connected", "disappeared", "not available"].iter().any(|word| why.contains(word)),
                "virsh failed for another reason than that there is no agent: {why}"
            );
        }
        format!("{what}: {:?} answered, {failed}, {:.1} s", self.answered, self.gap.as_secs_f64())
    }
}

/// The agent can do what a backup needs.
fn backs_up(domain: &Domain) {
    assert_eq!(domain.virsh(&["domfsfreeze", NAME]), "Froze 1 filesystem(s)");
    let status = r#"{"execute":"guest-fsfreeze-status"}"#;
    assert_eq!(domain.virsh(&["qemu-agent-command", NAME, status]), r#"{"return":"frozen"}"#);
    assert_eq!(domain.virsh(&["domfsthaw", NAME]), "Thawed 1 filesystem(s)");
}

/// With a rule for files there is an opener, too.
const FILES: &str = "mkdir -p /etc/postern/policy.d && printf '%s\\n' 'version = 1' '[commands]' \
    'allow = [\"guest-file-open\", \"guest-file-close\", \"guest-file-read\"]' \
    '[[files]]' 'path = \"/srv\"' 'rights = [\"read\"]' >/etc/postern/policy.d/10-files.toml && \
    systemctl restart postern";

/// Prints each process of postern's whose mounts are not those of the guest.
const ELSEWHERE: &str = r#"guests=$(readlink /proc/1/ns/mnt)
for role in broker spawner opener worker; do
    pid=$(pgrep -f "^postern: $role") || { echo "no $role"; continue; }
    test "$(readlink /proc/$pid/ns/mnt)" = "$guests" || echo "$role sees other mounts"
done"#;

fn swap() {
    let read = |path| fs::read(path).expect("a package");
    let setup = Setup::new(LINUX_6_1, Userland::Systemd)
        .with_stock()
        .file("/root/postern.deb", read(guests::package()), 0o644)
        .file("/root/stock.deb", read(guests::debian("qemu-guest-agent")), 0o644);
    let mut domain = Domain::boot_setup(&setup);
    domain.await_agent();
    let domain_id = domain.virsh(&["domid", NAME]);
    let stock = version(&domain.libvirt).expect("stock answers");
    assert!(stock.starts_with("7."), "the control: {stock}");
    assert!(domain.virsh(&["domfsinfo", NAME]).contains(" /"), "stock tells of filesystems");
    backs_up(&domain);

    let there = asking(&mut domain, env!("CARGO_PKG_VERSION"), |shell| {
        let said = shell.sh(&format!("{INSTALL} /root/postern.deb"));
        assert!(said.contains("Removing qemu-guest-agent"), "{said}");
    });
    let there = there.told("to postern");
    domain.note(&there);
    assert_eq!(domain.shell.sh("systemctl show --value --property NRestarts postern"), "0\n");
    let starts = domain.shell.sh("journalctl --no-pager -o cat -u postern.service | grep -c '^Started postern'");
    assert_eq!(starts, "1\n", "started more than once, each with a gap of its own");
    assert_eq!(domain.virsh(&["qemu-agent-command", NAME, PING]), r#"{"return":{}}"#);
    assert_eq!(domain.virsh(&["guestinfo", NAME]), "");
    backs_up(&domain);
    let status = domain.shell.sh("systemctl --no-pager --full status postern.service");
    assert!(status.contains("Active: active (running)") && status.contains("Status: \""), "{status}");

    // No directive of the unit gives it mounts of its own.
    domain.shell.sh(FILES);
    domain.await_agent();
    assert_eq!(domain.shell.sh(ELSEWHERE), "");
    domain.shell.sh("rm -r /etc/postern/policy.d && systemctl restart postern");
    domain.await_agent();

    // And back.
    let back = asking(&mut domain, "7.", |shell| {
        let said = shell.sh(&format!("{INSTALL} /root/stock.deb"));
        assert!(said.contains("Removing postern"), "{said}");
        // Debian's package does so at the next boot only: its unit is static.
        shell.sh("systemctl start qemu-guest-agent");
    });
    domain.note(&format!("{there}; {}", back.told("back to stock")));
    domain
        .shell
        .sh("! pgrep postern && ! test -e /run/postern && pgrep -x qemu-ga && systemctl is-active qemu-guest-agent");
    domain.shell.sh("! test -L /etc/systemd/system/qemu-guest-agent.service && ! systemctl cat postern.service");
    let unit = domain.shell.sh("systemctl show --value --property FragmentPath qemu-guest-agent.service");
    assert!(unit.ends_with("/lib/systemd/system/qemu-guest-agent.service\n"), "{unit}");
    assert_eq!(domain.shell.sh(FAILED), "");
    assert!(domain.virsh(&["domfsinfo", NAME]).contains(" /"), "stock tells of filesystems again");
    backs_up(&domain);
    assert_eq!(domain.virsh(&["domid", NAME]), domain_id, "the domain was started anew");
}
