//! What the clients of guest agents ask for, and what becomes of it under a policy:
//! `policy explain --client`.
//!
//! The table says which commands each thing that a client does takes, and what
//! comes of it where one is missing. What the policy does to a command is asked of
//! the checked policy.
//!
//! Trust: pure. The table is facts of the clients' own sources, named in it.

use std::fmt;

use postern_core::catalogue::{self, Act, Command, redaction};
use postern_core::policy::written::{Loaded, Reason};
use postern_core::policy::{Policy, ShutdownMode};
use serde::Serialize;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Client {
    /// `virsh` and whatever else uses libvirt's calls: `OpenStack` Nova, oVirt.
    Libvirt,
    /// Proxmox VE.
    Proxmox,
    /// `KubeVirt`.
    Kubevirt,
}

/// One thing that a client does.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// What, in the client's own words.
    pub what: &'static str,
    /// The commands that it takes.
    pub commands: &'static [&'static str],
    /// The shutdown modes that it asks for.
    pub modes: &'static [ShutdownMode],
    /// What comes of it where a command is missing.
    pub without: &'static str,
    /// Whether the client then does nothing at all with the agent.
    pub required: bool,
}

const fn takes(what: &'static str, commands: &'static [&'static str], without: &'static str) -> Use {
    Use { what, commands, modes: &[], without, required: false }
}

impl Use {
    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    const fn modes(mut self, modes: &'static [ShutdownMode]) -> Self {
        self.modes = modes;
        self
    }
}

const UNSUPPORTED: &str = "KubeVirt takes the agent for unsupported: condition AgentConnected without what it tells";
const NO_GUEST_INFO: &str =
    "KubeVirt takes the agent for unsupported, and libvirt's one query for all of the guest's data may end here";

/// Sources: kubevirt/kubevirt `pkg/virt-handler/vm.go` (which commands it wants
/// enabled), `pkg/virt-launcher/virtwrap/agent-poller/agent_poller.go` (what it
/// polls), `pkg/virt-launcher/virtwrap/manager.go` (freezing, soft reboot).
const KUBEVIRT: &[Use] = &[
    takes("libvirt's connection", &["guest-sync"], "libvirt cannot speak with the agent").required(),
    takes("poll: which commands there are", &["guest-info"], UNSUPPORTED).required(),
    takes("guestAgentPing probes", &["guest-ping"], UNSUPPORTED).required(),
    takes("no request of its own", &["guest-get-time"], UNSUPPORTED).required(),
    takes("virtctl soft-reboot", &["guest-shutdown"], UNSUPPORTED).required().modes(&[ShutdownMode::Reboot]),
    takes("poll: interfaces in the VMI's status", &["guest-network-get-interfaces"], NO_GUEST_INFO).required(),
    takes("poll: virtctl fslist", &["guest-get-fsinfo"], UNSUPPORTED).required(),
    takes("poll: host name", &["guest-get-host-name"], NO_GUEST_INFO).required(),
    takes("poll: virtctl userlist", &["guest-get-users"], NO_GUEST_INFO).required(),
    takes("poll: time zone", &["guest-get-timezone"], NO_GUEST_INFO).required(),
    takes("poll: virtctl guestosinfo", &["guest-get-osinfo"], NO_GUEST_INFO).required(),
    takes("poll: freeze status", &["guest-fsfreeze-status"], "the VMI's status does not show a freeze"),
    takes(
        "VirtualMachineSnapshot, virtctl freeze",
        &["guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"],
        "snapshots of a running guest are not consistent",
    ),
    takes(
        "accessCredentials: SSH keys by the agent",
        &["guest-ssh-get-authorized-keys", "guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys"],
        "a VMI with such credentials counts as unsupported; cloud-init can bring keys instead",
    ),
    takes(
        "accessCredentials: passwords by the agent",
        &["guest-set-user-password"],
        "a VMI with such credentials counts as unsupported; cloud-init can set passwords instead",
    ),
    takes(
        "exec probes",
        &["guest-exec", "guest-exec-status"],
        "a VMI with such a probe counts as unsupported; use guestAgentPing, TCP or HTTP",
    ),
];

/// Source: libvirt/libvirt `src/qemu/qemu_agent.c`; which `virsh` command is behind it,
/// `tools/virsh-domain.c`.
const LIBVIRT: &[Use] = &[
    takes("connecting", &["guest-sync"], "libvirt cannot speak with the agent").required(),
    takes("virsh qemu-agent-command, oVirt, Ansible", &["guest-info", "guest-ping"], "who asks it gets an error"),
    takes(
        "virsh shutdown and reboot --mode agent",
        &["guest-shutdown"],
        "it fails; --mode acpi does not take the agent",
    )
    .modes(&[ShutdownMode::Powerdown, ShutdownMode::Reboot]),
    takes(
        "virsh domfsfreeze, domfsthaw, snapshot-create --quiesce; Nova's quiesced snapshots",
        &["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"],
        "it fails, and no snapshot is made",
    ),
    takes("virsh domfsfreeze --mountpoint", &["guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw"], "it fails"),
    takes(
        "virsh domifaddr --source agent, guestinfo --interface; Terraform, Vagrant",
        &["guest-network-get-interfaces"],
        "it fails; --source lease or arp may know addresses",
    ),
    takes("virsh domfsinfo, guestinfo --filesystem", &["guest-get-fsinfo"], "it fails"),
    takes("virsh guestinfo --disk", &["guest-get-disks"], "it fails"),
    takes("virsh domhostname --source agent, guestinfo --hostname", &["guest-get-host-name"], "it fails"),
    takes("virsh guestinfo --os", &["guest-get-osinfo"], "it fails"),
    takes("virsh guestinfo --user", &["guest-get-users"], "it fails"),
    takes("virsh guestinfo --timezone", &["guest-get-timezone"], "it fails"),
    takes("virsh guestinfo --load", &["guest-get-load"], "it fails"),
    takes("virsh domtime", &["guest-get-time"], "it fails"),
    takes(
        "virsh domtime --now, --sync, --time; Nova's time after a resume",
        &["guest-set-time"],
        "it fails; the guest's own clock source keeps time",
    ),
    takes("virsh guestvcpus", &["guest-get-vcpus"], "it fails"),
    takes(
        "virsh guestvcpus --enable, --disable, setvcpus --guest",
        &["guest-get-vcpus", "guest-set-vcpus"],
        "it fails",
    ),
    takes("virsh domfstrim", &["guest-fstrim"], "it fails; fstrim.timer in the guest needs no agent"),
    takes("virsh dompmsuspend mem", &["guest-suspend-ram"], "it fails"),
    takes("virsh dompmsuspend disk", &["guest-suspend-disk"], "it fails"),
    takes("virsh dompmsuspend hybrid", &["guest-suspend-hybrid"], "it fails"),
    takes("virsh set-user-password; Nova's set_admin_password", &["guest-set-user-password"], "it fails"),
    takes("virsh get-user-sshkeys", &["guest-ssh-get-authorized-keys"], "it fails"),
    takes("virsh set-user-sshkeys", &["guest-ssh-add-authorized-keys", "guest-ssh-remove-authorized-keys"], "it fails"),
];

/// Sources: proxmox/qemu-server `src/PVE/QMPClient.pm`, `src/PVE/QemuServer/Agent.pm`,
/// `src/PVE/API2/Qemu/Agent.pm`.
const PROXMOX: &[Use] = &[
    takes("every request", &["guest-sync-delimited"], "Proxmox VE cannot speak with the agent").required(),
    takes(
        "asking whether the agent runs, before all else",
        &["guest-ping"],
        "Proxmox VE takes the agent for not running: no freeze, no shutdown by it, every other request refused",
    )
    .required(),
    takes("qm shutdown, qm reboot", &["guest-shutdown"], "it waits for nothing; ACPI does it where the agent is off")
        .modes(&[ShutdownMode::Powerdown]),
    takes(
        "backups, snapshots without RAM, clones, replication",
        &["guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"],
        "it goes on without a freeze: consistent as after a power cut",
    ),
    takes("the summary's IP addresses, network-get-interfaces", &["guest-network-get-interfaces"], "it shows none"),
    takes(
        "fstrim_cloned_disks, qm agent fstrim",
        &["guest-fstrim"],
        "clones and migrated disks stay as large as they are",
    ),
    takes("qm agent info", &["guest-info"], "it fails"),
    takes("qm agent get-osinfo", &["guest-get-osinfo"], "it fails"),
    takes("qm agent get-host-name", &["guest-get-host-name"], "it fails"),
    takes("qm agent get-fsinfo", &["guest-get-fsinfo"], "it fails"),
    takes("qm agent get-users", &["guest-get-users"], "it fails"),
    takes("qm agent get-time", &["guest-get-time"], "it fails"),
    takes("qm agent get-timezone", &["guest-get-timezone"], "it fails"),
    takes("qm agent get-vcpus", &["guest-get-vcpus"], "it fails"),
    takes("qm agent get-memory-blocks", &["guest-get-memory-blocks"], "it fails"),
    takes("qm agent get-memory-block-info", &["guest-get-memory-block-info"], "it fails"),
    takes("qm agent suspend-ram", &["guest-suspend-ram"], "it fails; qm suspend does not take the agent"),
    takes("qm agent suspend-disk", &["guest-suspend-disk"], "it fails"),
    takes("qm agent suspend-hybrid", &["guest-suspend-hybrid"], "it fails"),
    takes("agent/file-read", &["guest-file-open", "guest-file-read", "guest-file-close"], "it fails"),
    takes("agent/file-write", &["guest-file-open", "guest-file-write", "guest-file-close"], "it fails"),
    takes("qm guest exec", &["guest-exec"], "it fails"),
    takes("qm guest exec-status", &["guest-exec-status"], "it fails"),
    takes("qm guest passwd", &["guest-set-user-password"], "it fails; cloud-init can set passwords instead"),
];

impl Client {
    /// What it does, in the order of its weight.
    #[must_use]
    pub const fn uses(self) -> &'static [Use] {
        match self {
            Self::Libvirt => LIBVIRT,
            Self::Proxmox => PROXMOX,
            Self::Kubevirt => KUBEVIRT,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Proxmox => "Proxmox VE",
            Self::Kubevirt => "KubeVirt",
        }
    }
}

/// Why a request does not do what the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// The policy does not allow it, or not in the way asked for.
    NotAllowed,
    /// The answer says little.
    Redacted,
    /// postern does not offer it, and why is said.
    ByDesign,
    /// This postern does not offer it.
    NotOffered,
}

/// One command that is in the way of a use.
#[derive(Clone, Debug, Serialize)]
pub struct Hindered {
    /// Name on the wire.
    pub command: &'static str,
    /// In short.
    pub because: Obstacle,
    /// At length.
    pub why: String,
}

/// One use that does not go as the client means it.
#[derive(Clone, Debug, Serialize)]
pub struct Hindrance {
    /// The use.
    pub what: &'static str,
    /// Whether it fails; else its answer says less.
    pub fails: bool,
    /// What comes of that; nothing where it does not fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without: Option<&'static str>,
    /// Whether the client then does nothing at all with the agent.
    pub required: bool,
    /// The commands.
    pub commands: Vec<Hindered>,
}

/// What becomes of a client under a policy.
#[derive(Clone, Debug, Serialize)]
pub struct Outlook {
    /// The client.
    pub client: &'static str,
    /// Whether it has all without which it does nothing with the agent.
    pub works: bool,
    /// How many things it does.
    pub uses: usize,
    /// Those that do not go as it means them, in the order of the table.
    pub hindrances: Vec<Hindrance>,
    /// Commands that it uses, that are allowed, and that do nothing unless root
    /// starts postern: an ordinary user's broker has no capability.
    pub needs_root: Vec<&'static str>,
}

/// Asks the policy about each use of the client.
#[must_use]
pub fn outlook(loaded: &Loaded, client: Client) -> Outlook {
    let hindrances: Vec<Hindrance> = client.uses().iter().filter_map(|one| hindrance(loaded, one)).collect();
    Outlook {
        client: client.name(),
        works: !hindrances.iter().any(|hindrance| hindrance.fails && hindrance.required),
        uses: client.uses().len(),
        hindrances,
        needs_root: needs_root(&loaded.policy, client),
    }
}

fn needs_root(policy: &Policy, client: Client) -> Vec<&'static str> {
    let uses = |name: &str| client.uses().iter().any(|one| one.commands.contains(&name));
    let acts = |command: &Command| command.entry().needs.acts.iter().any(|act| *act != Act::Open);
    policy.commands.iter().filter(|command| uses(command.name()) && acts(command)).map(Command::name).collect()
}

fn hindrance(loaded: &Loaded, one: &Use) -> Option<Hindrance> {
    let commands: Vec<Hindered> = one.commands.iter().filter_map(|name| hindered(loaded, name, one)).collect();
    let fails = commands.iter().any(|command| command.because != Obstacle::Redacted);
    (!commands.is_empty()).then(|| Hindrance {
        what: one.what,
        fails,
        without: fails.then_some(one.without),
        required: one.required,
        commands,
    })
}

fn hindered(loaded: &Loaded, name: &'static str, one: &Use) -> Option<Hindered> {
    let found = |because, why: String| Some(Hindered { command: name, because, why });
    let ruling = loaded.why.commands.iter().find(|ruling| ruling.name == name)?;
    let Some(command) = catalogue::lookup(name).and_then(|entry| entry.command) else {
        return match catalogue::lookup(name).and_then(|entry| entry.by_design) {
            Some(why) => found(Obstacle::ByDesign, format!("not offered by design: {why}")),
            None => found(Obstacle::NotOffered, "this postern does not offer it".to_owned()),
        };
    };
    let at = |place: &postern_core::policy::written::Where| format!("{}:{}", place.file.display(), place.line);
    match &ruling.reason {
        Reason::Deny(place) => found(Obstacle::NotAllowed, format!("denied ({})", at(place))),
        Reason::Unnamed | Reason::NotOffered => found(Obstacle::NotAllowed, "nothing allows it".to_owned()),
        Reason::Redact(place) => {
            let answer = redaction::redaction(name).map_or("little", |row| row.answer);
            found(Obstacle::Redacted, format!("redacted ({}): answers {answer}", at(place)))
        }
        Reason::Profile(..) | Reason::Allow(_) => found(Obstacle::NotAllowed, lacking(&loaded.policy, command, one)?),
    }
}

/// What an allowed command lacks beside the word that allows it.
fn lacking(policy: &Policy, command: Command, one: &Use) -> Option<String> {
    if command == Command::FileOpen && policy.files.is_empty() {
        return Some("no [[files]] rule names a path".to_owned());
    }
    let missing: Vec<&str> =
        one.modes.iter().filter(|mode| !policy.shutdown.modes.contains(mode)).map(|mode| mode.name()).collect();
    let lacks = command == Command::Shutdown && !missing.is_empty();
    lacks.then(|| format!("shutdown.modes lacks {}", missing.join(", ")))
}

impl Outlook {
    /// As JSON, for programs.
    #[must_use]
    pub fn json(&self) -> String {
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string_pretty(self).map_or_else(|error| error.to_string(), |text| text + "\n")
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let works = if self.works { "works with" } else { "does not work with" };
        writeln!(f, "{} {works} postern under this policy", self.client)?;
        let (fail, less): (Vec<&Hindrance>, Vec<&Hindrance>) = self.hindrances.iter().partition(|one| one.fails);
        let whole = self.uses - self.hindrances.len();
        writeln!(f, "{whole} of the {} things that it does are as with stock", self.uses)?;
        for (title, list) in [("Does not work", fail), ("Works, but", less)] {
            if !list.is_empty() {
                writeln!(f, "\n{title}")?;
            }
            for one in list {
                write!(f, "{one}")?;
            }
        }
        if !self.needs_root.is_empty() {
            writeln!(f, "\nOnly where root starts postern\n  {}", self.needs_root.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let required = if self.required && self.fails { " (required)" } else { "" };
        writeln!(f, "  {}{required}", self.what)?;
        for Hindered { command, why, .. } in &self.commands {
            writeln!(f, "    {command}: {why}")?;
        }
        self.without.map_or(Ok(()), |without| writeln!(f, "    so: {without}"))
    }
}
