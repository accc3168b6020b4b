//! `[facts]`: how much an answer about the guest tells, of an allowed command and
//! of a redacted one.
//!
//! Each method is a question that a worker asks of one thing before it puts it
//! into an answer. `redacted` says that the command stands in `commands.redact`.
//! What the policy lists counts in either case; what is left out where it lists
//! nothing, only in a redacted answer.
//!
//! Trust: pure. Names and addresses come from the kernel, patterns from the
//! checked policy. Called by the worker; the host has no say in it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::catalogue::facts::FactSet;
use crate::catalogue::redaction::Reads;
use crate::catalogue::{Command, CommandSet};

/// `[facts]`. By default nothing is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// Patterns of the network interfaces that answers may name; none: see
    /// [`QUIET_INTERFACES`]. At most [`MAX_PATTERNS`].
    pub interfaces: Vec<String>,
    /// Where the filesystems are mounted that answers may name; none: `/` in a
    /// redacted answer, else all. At most [`MAX_MOUNTPOINTS`].
    pub mountpoints: Vec<PathBuf>,
    /// What stands in for the host name; `None`: [`REPLACED_HOST_NAME`] in a
    /// redacted answer, else the real one.
    pub host_name: Option<String>,
}

/// Most patterns of interfaces.
pub const MAX_PATTERNS: usize = 64;
/// Longest pattern, in bytes. An interface's name has 15 at most (`IFNAMSIZ` of
/// `linux/if.h` without its NUL); this leaves room for stars.
pub const MAX_PATTERN: usize = 31;
/// Most mountpoints. With [`MAX_MOUNTPOINT`] they fit one frame to the worker.
pub const MAX_MOUNTPOINTS: usize = 100;
/// Longest mountpoint, in bytes.
pub const MAX_MOUNTPOINT: usize = 512;
/// Longest host name, in bytes: `HOST_NAME_MAX` of Linux.
pub const MAX_HOST_NAME: usize = 64;

/// The host name of a redacted answer where the policy gives none.
pub const REPLACED_HOST_NAME: &str = "guest";

/// Interfaces that a redacted answer leaves out where the policy lists none, and
/// who makes them. They say what runs in the guest, and no host reaches it by
/// their addresses.
pub static QUIET_INTERFACES: [(&str, &str); 28] = [
    ("lo", "the kernel: loopback"),
    ("veth*", "containers: the outer end of a pair"),
    ("docker*", "Docker: bridges"),
    ("br-*", "Docker: bridges of its networks"),
    ("podman*", "Podman: bridges"),
    ("cni*", "CNI plugins: bridges; cni-podman too"),
    ("lxdbr*", "LXD: bridges"),
    ("incusbr*", "Incus: bridges"),
    ("lxc*", "LXC: bridges; Cilium: the outer end of a pod's pair"),
    ("cilium*", "Cilium: its own"),
    ("flannel*", "Flannel: overlays"),
    ("cali*", "Calico: the outer end of a pod's pair"),
    ("vxlan.calico", "Calico: overlay"),
    ("vxlan-v6.calico", "Calico: overlay"),
    ("tunl*", "the kernel: IP in IP, which Calico uses"),
    ("weave*", "Weave Net: bridge"),
    ("kube-*", "Kubernetes: kube-ipvs0, kube-bridge"),
    ("nodelocaldns", "Kubernetes: the node's DNS cache"),
    ("antrea-*", "Antrea: gateway, tunnel"),
    ("ovn-*", "OVN: tunnels, management ports"),
    ("ovs-system", "Open vSwitch: its datapath"),
    ("genev_sys_*", "Open vSwitch: Geneve tunnels"),
    ("vxlan_sys_*", "Open vSwitch: VXLAN tunnels"),
    ("virbr*", "libvirt: bridges for guests in the guest"),
    ("vnet*", "libvirt: such a guest's end"),
    ("tap*", "QEMU: such a guest's end"),
    ("fwbr*", "Proxmox VE: such a guest's firewall bridge"),
    ("dummy*", "the kernel: no network at all"),
];

impl Telling {
    /// Whether an answer names the interface called `name`.
    #[must_use]
    pub fn shows_interface(&self, redacted: bool, name: &str) -> bool {
        if self.interfaces.is_empty() {
            !(redacted && QUIET_INTERFACES.iter().any(|(pattern, _)| fits(pattern, name)))
        } else {
            self.interfaces.iter().any(|pattern| fits(pattern, name))
        }
    }

    /// Whether an answer gives this address of an interface that it names: a
    /// redacted one gives none that only the guest, or only its own link, can use.
    #[must_use]
    pub const fn shows_address(&self, redacted: bool, address: IpAddr) -> bool {
        !redacted
            || match address {
                IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
                IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
            }
    }

    /// Whether an answer gives the counters of an interface that it names.
    #[must_use]
    pub const fn shows_statistics(&self, redacted: bool) -> bool {
        !redacted
    }

    /// Whether an answer gives a route over the interface called `name`. A redacted
    /// one gives `default` routes only, those to everywhere.
    #[must_use]
    pub fn shows_route(&self, redacted: bool, name: &str, default: bool) -> bool {
        (!redacted || default) && self.shows_interface(redacted, name)
    }

    /// Whether an answer names the filesystem that is mounted at `path`.
    #[must_use]
    pub fn shows_mount(&self, redacted: bool, path: &Path) -> bool {
        if self.mountpoints.is_empty() {
            !redacted || path == Path::new("/")
        } else {
            self.mountpoints.iter().any(|listed| listed == path)
        }
    }

    /// Those of the allowed `commands` that make the calls of their rows, where those
    /// of `redact` are redacted.
    #[must_use]
    pub fn calling(&self, commands: CommandSet, redact: CommandSet) -> CommandSet {
        commands.iter().filter(|&command| self.reads(command, redact) == Reads::All).collect()
    }

    /// The facts that are read for them.
    #[must_use]
    pub fn facts(&self, commands: CommandSet, redact: CommandSet) -> FactSet {
        let of = |command| match self.reads(command, redact) {
            Reads::Nothing => &[],
            Reads::Only(facts) => facts,
            Reads::All => command.entry().needs.facts,
        };
        commands.iter().flat_map(of).copied().collect()
    }

    fn reads(&self, command: Command, redact: CommandSet) -> Reads {
        match command.redaction() {
            Some(row) if redact.contains(command) => row.reads,
            // The answer is the policy's.
            Some(row) if row.keys.contains(&"host_name") && self.host_name.is_some() => Reads::Nothing,
            _ => Reads::All,
        }
    }

    /// What stands in for the host name in an answer; `None`: nothing does.
    #[must_use]
    pub fn host_name(&self, redacted: bool) -> Option<&str> {
        self.host_name.as_deref().or_else(|| redacted.then_some(REPLACED_HOST_NAME))
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters, also
/// none, and `?` for one. Takes no more steps than the product of the lengths.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Behind the last star, and how much of the name it and what is before it take.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                retry = Some((p, n));
            }
            Some(one) if *one == '?' || *one == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((behind, taken)) = retry else { return false };
                (p, n) = (behind, taken + 1);
                retry = Some((p, n));
            }
        }
    }
    pattern[p..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(interfaces: &[&str], mountpoints: &[&str]) -> Telling {
        Telling {
            interfaces: interfaces.iter().map(ToString::to_string).collect(),
            mountpoints: mountpoints.iter().map(PathBuf::from).collect(),
            host_name: None,
        }
    }

    #[test]
    fn patterns_fit_as_a_shell_has_them() {
        let yes = [
            ("eth0", "eth0"),
            ("eth*", "eth"),
            ("eth*", "eth0.100"),
            ("*", ""),
            ("*", "x"),
            ("**", "x"),
            ("?", "x"),
            ("e*p?s*", "enp0s31f6"),
            ("*0", "eth000"),
            ("*a*b*", "xaxxb"),
            ("w?*", "wl"),
            ("ä?", "äö"),
        ];
        let no = [
            ("eth0", "eth1"),
            ("eth0", "eth"),
            ("eth", "eth0"),
            ("eth*", "xeth0"),
            ("?", ""),
            ("?", "xy"),
            ("*0", "eth01"),
            ("*a*b*", "xbxxa"),
            ("", "x"),
            ("eth[01]", "eth0"),
            ("ETH0", "eth0"),
        ];
        for (pattern, name) in yes {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in no {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        // The worst of a pattern and a name that can be.
        assert!(!fits(&"*a".repeat(MAX_PATTERN / 2), &"a".repeat(14)));
    }

    #[test]
    fn interfaces_of_containers_are_quiet_only_where_redacted_and_nothing_is_listed() {
        let open = Telling::default();
        let quiet = ["lo", "veth1a2b", "docker0", "br-9f8e", "cni0", "flannel.1", "cali0ab", "virbr0-nic", "lxcbr0"];
        for name in quiet {
            assert!(open.shows_interface(false, name), "{name}");
            assert!(!open.shows_interface(true, name), "{name}");
        }
        for name in ["eth0", "ens3", "enp1s0f0", "bond0", "br0", "vlan7", "eth0.7", "wg0", "log0", "team0"] {
            assert!(open.shows_interface(false, name) && open.shows_interface(true, name), "{name}");
        }
        let listed = listing(&["eth?", "docker*"], &[]);
        for redacted in [false, true] {
            assert!(listed.shows_interface(redacted, "eth0") && listed.shows_interface(redacted, "docker0"));
            assert!(!listed.shows_interface(redacted, "eth10") && !listed.shows_interface(redacted, "lo"));
        }
    }

    #[test]
    fn a_redacted_answer_gives_no_address_of_the_guest_alone() {
        for listed in [Telling::default(), listing(&["lo"], &[])] {
            for local in ["127.0.0.1", "127.8.8.8", "169.254.1.1", "::1", "fe80::1", "febf::1"] {
                let local = local.parse().unwrap();
                assert!(listed.shows_address(false, local) && !listed.shows_address(true, local), "{local}");
            }
            for other in ["10.0.0.1", "169.253.1.1", "192.0.2.1", "fd00::1", "fec0::1", "2001:db8::1"] {
                let other = other.parse().unwrap();
                assert!(listed.shows_address(false, other) && listed.shows_address(true, other), "{other}");
            }
        }
    }

    #[test]
    fn routes_follow_their_interfaces() {
        let open = Telling::default();
        assert!(open.shows_route(false, "docker0", false) && open.shows_route(true, "eth0", true));
        assert!(!open.shows_route(true, "eth0", false), "the networks behind it");
        assert!(!open.shows_route(true, "docker0", true));
        let listed = listing(&["eth*"], &[]);
        assert!(listed.shows_route(false, "eth0", false) && !listed.shows_route(false, "wg0", true));
    }

    #[test]
    fn only_listed_mountpoints_show_and_the_root_where_none_is() {
        let open = Telling::default();
        assert!(open.shows_mount(false, Path::new("/srv")) && open.shows_mount(true, Path::new("/")));
        assert!(!open.shows_mount(true, Path::new("/srv")));
        let listed = listing(&[], &["/srv", "/boot"]);
        for redacted in [false, true] {
            assert!(
                listed.shows_mount(redacted, Path::new("/srv")) && listed.shows_mount(redacted, Path::new("/boot"))
            );
            for other in ["/", "/srv/data", "/boot/efi", "/sr"] {
                assert!(!listed.shows_mount(redacted, Path::new(other)), "{other}");
            }
        }
    }

    #[test]
    fn the_host_name_is_replaced_where_redacted_or_where_the_policy_has_another() {
        let mut telling = Telling::default();
        assert_eq!((telling.host_name(false), telling.host_name(true)), (None, Some("guest")));
        telling.host_name = Some("web".to_owned());
        assert_eq!((telling.host_name(false), telling.host_name(true)), (Some("web"), Some("web")));
    }

    #[test]
    fn what_is_not_told_is_not_read() {
        let all: CommandSet = Command::all().collect();
        let redactable: CommandSet = all.iter().filter(|command| command.redaction().is_some()).collect();
        let mut telling = Telling::default();
        assert_eq!(telling.calling(all, CommandSet::EMPTY), all);
        assert_eq!(telling.facts(all, CommandSet::EMPTY), all.facts());
        for command in all.iter() {
            let one = [command].into_iter().collect();
            let reads = command.redaction().map_or(Reads::All, |row| row.reads);
            assert_eq!(telling.calling(one, redactable).is_empty(), reads != Reads::All, "{command}");
            assert!(reads != Reads::Nothing || telling.facts(one, redactable).is_empty(), "{command}");
            let less = telling.facts(one, redactable).iter().all(|fact| fact.is_within(command.entry().needs.facts));
            assert!(less, "{command}: redacted it reads more");
        }
        telling.host_name = Some("web".to_owned());
        let calling = telling.calling(all, CommandSet::EMPTY);
        assert_eq!(all.iter().filter(|one| !calling.contains(*one)).collect::<Vec<_>>(), [Command::GetHostName]);
    }

    /// The bounds are those that let a worker be told all of it at once.
    #[test]
    fn the_longest_fits_one_frame() {
        let bytes = MAX_PATTERNS * (MAX_PATTERN + 2) + MAX_MOUNTPOINTS * (MAX_MOUNTPOINT + 2) + MAX_HOST_NAME;
        assert!(bytes + 256 < crate::ipc::MAX_FRAME, "{bytes}");
    }
}
