//! Installing over the stock agent, upgrading, removing, purging.

use std::time::{Duration, Instant};

use super::later::later;
use super::package;
use super::tree::Tree;

/// All that a package could leave: names, owners, modes, links, accounts.
/// Without what the tools keep for themselves.
const SNAPSHOT: &str = r"
find / -xdev \( -path /tmp -o -path /proc -o -path /dev -o -path /var/cache -o -path /var/lib/apt \
    -o -path /var/lib/dpkg -o -path /var/log/apt -o -path /var/log/dpkg.log -o -path '/etc/*-' \) -prune \
    -o -printf '%p %M %u %g %l\n' | sort
find /run -mindepth 1 -printf '%p %M %u %g %l\n' | sort
cat /etc/passwd /etc/group /etc/shadow /etc/gshadow
dpkg-query --show --showformat '${Package} ${db:Status-Abbrev}\n'";

/// Why nothing can be installed here.
fn without_root() -> bool {
    let without = !nix::unistd::geteuid().is_root();
    if without {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        println!("NOT RUN: needs root");
    }
    without
}

/// A Debian with both versions of the package in `/tmp`.
fn debian(kind: &str) -> Tree {
    let scratch = tempfile::tempdir().unwrap();
    let tree = Tree::new(kind);
    tree.bring(&package().0, "postern.deb");
    tree.bring(&later(&package().0, scratch.path()), "later.deb");
    tree
}

/// Where the stock agent's service leads.
const ALIAS: &str = "readlink -e /etc/systemd/system/qemu-guest-agent.service";

/// No service is started or stopped by a package.
const NO_SERVICES: &str = "printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d";

fn nothing_is_left(kind: &str) {
    if without_root() {
        return;
    }
    let tree = debian(kind);
    tree.sh(NO_SERVICES);
    tree.sh("apt-get purge -y qemu-guest-agent");
    let before = tree.sh(SNAPSHOT);
    tree.sh("apt-get install -y /tmp/postern.deb");
    assert_ne!(tree.sh(SNAPSHOT), before, "the control: a snapshot shows an installed package");
    tree.sh(
        "echo >/etc/postern/policy.d.example; mkdir -p /etc/postern/policy.d; echo >/etc/postern/policy.d/10-mine.toml",
    );
    tree.sh("touch /var/log/postern/audit.jsonl.1");
    tree.sh("apt-get install -y /tmp/later.deb");
    tree.sh("apt-get purge -y postern");
    let after = tree.sh(SNAPSHOT);
    for line in after.lines() {
        assert!(before.lines().any(|known| known == line), "left behind: {line}");
    }
    for line in before.lines() {
        assert!(after.lines().any(|known| known == line), "taken away: {line}");
    }
}

#[test]
fn purging_leaves_nothing_behind_with_systemd() {
    nothing_is_left("systemd");
}

#[test]
fn purging_leaves_nothing_behind_without_systemd() {
    nothing_is_left("sysvinit");
}

#[test]
fn purging_spares_what_is_somebody_elses() {
    if without_root() {
        return;
    }
    let tree = debian("sysvinit");
    tree.sh(NO_SERVICES);
    // Somebody who is called so, and had the name first.
    tree.sh("useradd --create-home --user-group --shell /bin/sh postern");
    let before = tree.sh("getent passwd postern; getent group postern; getent shadow postern");
    tree.sh("apt-get install -y /tmp/postern.deb");
    // Links where the package has directories lead to what is not its own.
    tree.sh("mkdir /srv/log /srv/etc; touch /srv/log/kept /srv/etc/kept; rmdir /var/log/postern");
    tree.sh("ln -s /srv/log /var/log/postern; ln -s /srv/etc /etc/postern/policy.d");
    tree.sh("apt-get purge -y postern; test -e /srv/log/kept; test -e /srv/etc/kept");
    tree.sh("! test -L /var/log/postern; ! test -e /etc/postern; ! getent passwd postern-broker");
    assert_eq!(tree.sh("getent passwd postern; getent group postern; getent shadow postern"), before);
}

#[test]
fn it_swaps_places_with_the_stock_agent() {
    if without_root() {
        return;
    }
    let tree = debian("systemd");
    tree.sh(NO_SERVICES);
    tree.sh("echo '# mine' >>/etc/qemu/fsfreeze-hook");
    let said = tree.sh("apt-get install -y /tmp/postern.deb");
    assert!(said.contains("Removing qemu-guest-agent"), "{said}");
    assert_eq!(tree.sh("readlink -f /usr/sbin/qemu-ga"), "/usr/bin/postern\n");
    tree.sh("grep -q '^# mine' /etc/qemu/fsfreeze-hook; ! test -e /usr/lib/systemd/system/qemu-guest-agent.service");
    // What wants the stock agent has one.
    tree.sh("apt-get check");
    // The stock agent's service is a name of postern's.
    assert_eq!(tree.sh(ALIAS), "/usr/lib/systemd/system/postern.service\n");
    tree.sh("postern policy check; test \"$(stat -c '%U %a' /run/postern/state)\" = 'postern-broker 700'");
    // And back: the stock agent needs its names, which a removal gives back.
    tree.sh("apt-get remove -y postern");
    tree.sh("! test -L /usr/sbin/qemu-ga; ! test -e /run/postern; test -e /etc/postern/policy.toml");
    tree.sh("test -d /var/log/postern; getent passwd postern postern-broker");
    tree.sh(&format!("! {ALIAS}"));
}

#[test]
fn an_upgrade_keeps_a_changed_policy() {
    if without_root() {
        return;
    }
    let tree = debian("systemd");
    tree.sh(NO_SERVICES);
    tree.sh("apt-get install -y /tmp/postern.deb");
    tree.sh("sed -i 's/^profile = .*/profile = \"minimal\"/' /etc/postern/policy.toml");
    tree.sh("chown -R root:root /etc/postern; touch /var/log/postern/mine");
    tree.sh("apt-get -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install -y /tmp/later.deb");
    tree.sh("grep -q '^profile = \"minimal\"' /etc/postern/policy.toml; ! grep -q Later /etc/postern/policy.toml");
    tree.sh("grep -q Later /etc/postern/policy.toml.dpkg-dist");
    // The control: what was not changed is replaced.
    tree.sh("grep -q Later /etc/logrotate.d/postern");
    tree.sh("postern policy check; test -e /var/log/postern/mine");
    // Neither does removing and installing again lose it.
    tree.sh("apt-get remove -y postern");
    tree.sh("apt-get -o Dpkg::Options::=--force-confold install -y /tmp/later.deb");
    tree.sh("grep -q '^profile = \"minimal\"' /etc/postern/policy.toml");
}

#[test]
fn an_operator_who_disabled_it_is_heard() {
    if without_root() {
        return;
    }
    let tree = debian("systemd");
    tree.sh(NO_SERVICES);
    tree.sh("apt-get install -y /tmp/postern.deb");
    tree.sh(&format!("systemctl disable postern.service; ! {ALIAS}; systemctl mask postern.service"));
    tree.sh("apt-get install -y /tmp/later.deb");
    tree.sh(&format!("! {ALIAS}; test \"$(readlink /etc/systemd/system/postern.service)\" = /dev/null"));
}

/// The broker's process, if it runs.
const BROKER: &str = "pgrep -x postern-broker";
const PING: &str = "postern call --socket /run/postern/host.sock guest-ping";

/// Waits until a script succeeds; a start in the background gives no sign.
fn eventually(tree: &Tree, script: &str) -> String {
    let started = Instant::now();
    loop {
        match tree.try_sh(script) {
            (true, said) => return said,
            (false, said) => assert!(started.elapsed() < Duration::from_secs(60), "in vain: {script}\n{said}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn without_systemd_the_init_script_runs_it() {
    if without_root() {
        return;
    }
    let tree = debian("sysvinit");
    // No init runs here that could tell its runlevel; services start in 2.
    tree.sh("printf '#!/bin/sh\\necho N 2\\n' >/tmp/runlevel; chmod 755 /tmp/runlevel; mount --bind /tmp/runlevel /sbin/runlevel");
    // No port is here: both agents listen on sockets.
    tree.sh("echo 'TRANSPORT=unix-listen:/run/stock.sock' >/etc/default/qemu-guest-agent");
    tree.sh("/etc/init.d/qemu-guest-agent start; pgrep -x qemu-ga");
    tree.sh("mkdir -p /etc/postern/policy.d; printf 'version = 1\\n[channel]\\nmethod = \"unix-listen\"\\npath = \
         \"/run/postern/host.sock\"\\n' >/etc/postern/policy.d/10-channel.toml");
    tree.sh("apt-get install -y /tmp/postern.deb");
    tree.sh("! pgrep -x qemu-ga");
    eventually(&tree, PING);
    let first = tree.sh(BROKER);
    tree.sh("/etc/init.d/postern status; /etc/init.d/postern start");
    assert_eq!(tree.sh(BROKER), first, "started twice");

    // As one that holds a freeze.
    tree.sh("touch /run/postern/state/frozen");
    let said = tree.sh("apt-get install -y /tmp/later.deb");
    assert!(said.contains("filesystems are frozen"), "{said}");
    assert_eq!(tree.sh(BROKER), first, "restarted in the middle of a freeze");
    tree.sh("rm /run/postern/state/frozen; apt-get install -y --reinstall /tmp/later.deb");
    eventually(&tree, PING);
    assert_ne!(tree.sh(BROKER), first, "not restarted");
    tree.sh("/etc/init.d/postern reload");
    tree.sh("postern audit verify /var/log/postern/audit.jsonl");

    // A policy with a mistake is told to whoever starts it.
    tree.sh("echo 'profle = 1' >>/etc/postern/policy.d/10-channel.toml");
    let (started, said) = tree.try_sh("/etc/init.d/postern restart");
    assert!(!started && said.contains("profle"), "{said}");
    tree.sh("sed -i '$ d' /etc/postern/policy.d/10-channel.toml; /etc/init.d/postern start");
    eventually(&tree, PING);

    tree.sh("apt-get remove -y postern");
    tree.sh("! pgrep postern; ! test -e /run/postern; ! test -e /run/postern.pid");
    // The log tells of an end in order.
    tree.sh("tail -n 1 /var/log/postern/audit.jsonl | grep stopped");
    tree.sh("apt-get purge -y postern; ! test -e /var/log/postern; ! getent passwd postern postern-broker");
}
