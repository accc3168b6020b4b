//! postern in a guest: the policy that scenes start from, how it gets there, is
//! started and ended, and where its log is. Scripts for the guest's shell.

use crate::machine::Setup;

/// What every scene of a VM starts from: freeze, power, and files below /srv.
pub(crate) const POLICY: &str = r#"version = 1
profile = "backup"
[commands]
allow = ["guest-shutdown", "guest-file-open", "guest-file-close", "guest-file-read", "guest-file-write",
         "guest-file-seek", "guest-file-flush"]
[shutdown]
modes = ["powerdown", "reboot", "halt"]
method = "init"
[[files]]
path = "/srv"
rights = ["read", "write", "create"]
"#;

/// Makes what the policy names and starts postern; the tiny way, by hand.
pub(crate) const START: &str = "mkdir -p /srv && chown postern: /srv && \
     (postern run -vv </dev/null >/run/postern.log 2>&1 & echo $! >/run/postern.pid)";

/// Starts the newer stock of a guest that has it.
pub(crate) const STOCK_START: &str = "mkdir -p /run/stock && \
     (/stock/start -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run/stock \
     </dev/null >/run/stock.log 2>&1 & echo $! >/run/stock.pid)";

/// Ends the one that [`START`] started.
pub(crate) const STOP: &str =
    "kill $(cat /run/postern.pid); while kill -0 $(cat /run/postern.pid) 2>/dev/null; do sleep 0.1; done";

/// Succeeds when that one has ended, with what it said.
pub(crate) const LAST_WORDS: &str = "! kill -0 $(cat /run/postern.pid) 2>/dev/null && cat /run/postern.log";

/// Where the audit log is, by default.
pub(crate) const LOG: &str = "/var/log/postern/audit.jsonl";

/// Succeeds if it is whole.
pub(crate) const VERIFY: &str = "postern audit verify /var/log/postern/audit.jsonl";

/// Accounts as the package makes them, where a userland has none.
pub(crate) const ACCOUNTS: &str = "grep -q '^postern:' /etc/passwd || { \
     useradd --system --no-create-home postern && useradd --system --no-create-home postern-broker; }; \
     pidof qemu-ga && service qemu-guest-agent stop; true";

/// As the package installs it, by hand.
pub(crate) fn installed(setup: Setup, rules: bool) -> Setup {
    let setup = setup
        .file("/usr/lib/systemd/system/postern.service", include_str!("../../packaging/postern.service"), 0o644)
        .file(
            "/usr/lib/systemd/system/postern-netlink.socket",
            include_str!("../../packaging/postern-netlink.socket"),
            0o644,
        )
        .file("/usr/lib/sysusers.d/postern.conf", include_str!("../../packaging/postern.sysusers"), 0o644)
        .file("/usr/lib/tmpfiles.d/postern.conf", include_str!("../../packaging/postern.tmpfiles"), 0o644);
    let rule = include_str!("../../packaging/61-postern.rules");
    if rules { setup.file("/usr/lib/udev/rules.d/61-postern.rules", rule, 0o644) } else { setup }
}

/// What the package's scripts do.
pub(crate) const INSTALL: &str = "systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload && \
     udevadm control --reload && udevadm trigger --settle --subsystem-match=virtio-ports && \
     mkdir -p /srv && chown postern: /srv";
