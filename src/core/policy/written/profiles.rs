//! Profiles: named sets of commands, and of shutdown modes where they hold that
//! command, as data.
//!
//! What a profile holds never changes under the same policy version, so that an
//! upgrade of postern never widens a policy: a new set gets a new name. A test
//! pins each set.
//!
//! Trust: plain data. Anyone may read it.

use crate::catalogue::Command::{
    FileClose, FileFlush, FileOpen, FileRead, FileSeek, FileWrite, FsfreezeFreeze, FsfreezeFreezeList, FsfreezeStatus,
    FsfreezeThaw, Fstrim, GetDisks, GetFsinfo, GetHostName, GetLoad, GetMemoryBlockInfo, GetMemoryBlocks, GetOsinfo,
    GetTime, GetTimezone, GetUsers, GetVcpus, Info, NetworkGetInterfaces, Ping, Shutdown, Sync, SyncDelimited,
};
use crate::catalogue::{Command, CommandSet};
use crate::policy::ShutdownMode;

/// A named set of commands.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Name in a policy file.
    pub name: &'static str,
    /// What it allows.
    pub commands: &'static [Command],
    /// What it lets the host ask `guest-shutdown` for, where no file sets
    /// `shutdown.modes`.
    pub modes: &'static [ShutdownMode],
    /// One paragraph for people.
    pub doc: &'static str,
}

impl Profile {
    /// What it allows, as a set.
    #[must_use]
    pub fn set(&self) -> CommandSet {
        self.commands.iter().copied().collect()
    }
}

/// Every profile.
pub static PROFILES: [Profile; 7] = [
    Profile {
        name: "minimal",
        commands: &[SyncDelimited, Sync, Ping, Info],
        modes: &[],
        doc: "The host can see that the agent lives and what it offers; nothing else.",
    },
    Profile {
        name: "backup",
        commands: &[SyncDelimited, Sync, Ping, Info, FsfreezeStatus, FsfreezeFreeze, FsfreezeFreezeList, FsfreezeThaw],
        modes: &[],
        doc: "minimal, and freezing filesystems for a consistent snapshot. No shutdown: who takes backups need not \
              switch guests off, and without it the broker holds no CAP_KILL.",
    },
    Profile {
        name: "files",
        commands: &[SyncDelimited, Sync, Ping, Info, FileOpen, FileClose, FileRead, FileWrite, FileSeek, FileFlush],
        modes: &[],
        doc: "minimal, and the file commands. They reach what [[files]] rules name and nothing else; the broker needs \
              no capability for them.",
    },
    Profile {
        name: "libvirt",
        commands: &[
            SyncDelimited,
            Sync,
            Ping,
            Info,
            Shutdown,
            FsfreezeStatus,
            FsfreezeFreeze,
            FsfreezeFreezeList,
            FsfreezeThaw,
            GetTime,
            GetHostName,
            GetLoad,
            GetTimezone,
            GetOsinfo,
            GetUsers,
            GetVcpus,
            NetworkGetInterfaces,
            GetFsinfo,
            GetDisks,
            Fstrim,
        ],
        modes: &[ShutdownMode::Powerdown, ShutdownMode::Reboot],
        doc: "What virsh and tools on libvirt's calls (Nova, oVirt) ask for: all that they show of the guest, freezing, \
              trimming, shutdown and reboot. Not suspending, switching processors off, files.",
    },
    Profile {
        name: "proxmox",
        commands: &[
            SyncDelimited,
            Sync,
            Ping,
            Info,
            Shutdown,
            FsfreezeStatus,
            FsfreezeFreeze,
            FsfreezeThaw,
            GetTime,
            GetHostName,
            GetTimezone,
            GetOsinfo,
            GetUsers,
            GetVcpus,
            GetMemoryBlocks,
            GetMemoryBlockInfo,
            NetworkGetInterfaces,
            GetFsinfo,
            Fstrim,
        ],
        modes: &[ShutdownMode::Powerdown],
        doc: "What Proxmox VE asks for by itself (freezing at backups, shutdown, trimming of clones, addresses in the \
              summary), and every read of its agent API. Not suspending, which its own commands do without the agent, \
              nor files.",
    },
    Profile {
        name: "kubevirt",
        commands: &[
            SyncDelimited,
            Sync,
            Ping,
            Info,
            Shutdown,
            FsfreezeStatus,
            FsfreezeFreeze,
            FsfreezeThaw,
            GetTime,
            GetHostName,
            GetTimezone,
            GetOsinfo,
            GetUsers,
            NetworkGetInterfaces,
            GetFsinfo,
        ],
        modes: &[ShutdownMode::Powerdown, ShutdownMode::Reboot],
        doc: "The commands without which KubeVirt takes an agent for unsupported, and freezing for its snapshots. Deny \
              none of the former: redact them.",
    },
    Profile {
        name: "confidential",
        commands: &[SyncDelimited, Sync, Ping, Info, Shutdown],
        modes: &[ShutdownMode::Powerdown, ShutdownMode::Reboot],
        doc: "For a guest whose host is not trusted: nothing about users, network or disks, no freeze. The host could \
              cut the power at any time: that it can ask for an orderly end is to the guest's good. The broker holds \
              CAP_KILL and no other capability.",
    },
];

/// The names, for the key table.
pub const NAMES: &[&str] = &["minimal", "backup", "files", "libvirt", "proxmox", "kubevirt", "confidential"];

/// The profile with this name.
#[must_use]
pub fn lookup(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_table_names_every_profile() {
        assert_eq!(NAMES.to_vec(), PROFILES.map(|profile| profile.name).to_vec());
    }

    /// An upgrade must not widen a policy. Do not change these numbers: add a
    /// profile with another name.
    #[test]
    fn a_profile_never_changes() {
        let bits = PROFILES.map(|profile| profile.set().bits());
        assert_eq!(bits, [0xf, 0x780f, 0x7ef, 0x749f_f81f, 0x579d_d81f, 0x141d_d81f, 0x1f]);
        for profile in &PROFILES {
            assert_eq!(profile.modes.is_empty(), !profile.commands.contains(&Shutdown), "{}", profile.name);
        }
    }
}
