//! Capabilities: which the broker's acts need, and the five sets.

use caps::{CapSet, Capability, CapsHashSet};

use super::ConfineError;
use crate::catalogue::Act;
use crate::policy::{Policy, ShutdownMethod};

/// How the guest's init takes a wish to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// By a signal to PID 1.
    BySignal,
    /// By a FIFO, which the broker holds open.
    ByFifo,
    /// In no way that postern knows.
    InNoWay,
}

impl Asked {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BySignal, Self::ByFifo, Self::InNoWay];
}

/// The broker's capabilities under `policy`, in a guest whose init is `asked`
/// so; that matters for shutting down only.
///
/// | act | capability | why |
/// |---|---|---|
/// | freeze, thaw, trim | `CAP_SYS_ADMIN` | `FIFREEZE`, `FITHAW`, `FITRIM` |
/// | freeze, thaw, trim | `CAP_DAC_READ_SEARCH` | opening mountpoints that are closed to others |
/// | shutdown by a signal to init | `CAP_KILL` | signalling PID 1 |
/// | shutdown by init's FIFO | none | it is open |
/// | suspend, processors, memory blocks | none | their files are open |
/// | shutdown by the kernel | `CAP_SYS_BOOT` | `reboot(2)` |
#[must_use]
pub fn broker(policy: &Policy, asked: Asked) -> Vec<Capability> {
    let mut needed = Vec::new();
    if [Act::Freeze, Act::Thaw, Act::Trim].into_iter().any(|act| policy.needs(act)) {
        needed.extend([Capability::CAP_DAC_READ_SEARCH, Capability::CAP_SYS_ADMIN]);
    }
    if policy.needs(Act::Shutdown) {
        needed.extend(match (policy.shutdown.method, asked) {
            (ShutdownMethod::Kernel, _) | (ShutdownMethod::Auto, Asked::InNoWay) => Some(Capability::CAP_SYS_BOOT),
            (ShutdownMethod::Init | ShutdownMethod::Auto, Asked::BySignal) => Some(Capability::CAP_KILL),
            (ShutdownMethod::Init | ShutdownMethod::Auto, Asked::ByFifo) | (ShutdownMethod::Init, Asked::InNoWay) => {
                None
            }
        });
    }
    needed
}

/// What a start as root takes before [`broker`] is all that is left: what a
/// service manager must leave to the process that it starts.
pub const START: [(Capability, &str); 6] = [
    (Capability::CAP_CHOWN, "giving the directories of log and state to the broker, where they are missing"),
    (Capability::CAP_DAC_READ_SEARCH, "opening the state directory, which is the broker's alone"),
    (Capability::CAP_SETGID, "becoming the broker's and the worker's account"),
    (Capability::CAP_SETPCAP, "emptying the bounding set"),
    (Capability::CAP_SETUID, "becoming the broker's and the worker's account"),
    (Capability::CAP_SYS_ADMIN, "the spawner's PID namespace"),
];

fn failed(set: &'static str) -> impl Fn(caps::errors::CapsError) -> ConfineError {
    move |why| ConfineError::Capabilities { set, why }
}

/// Checks that what is to be kept is there.
///
/// # Errors
/// [`ConfineError::Lacking`].
pub(super) fn require(needed: &[Capability]) -> Result<(), ConfineError> {
    let held = caps::read(None, CapSet::Permitted).map_err(failed("permitted"))?;
    needed.iter().find(|needed| !held.contains(needed)).map_or(Ok(()), |&lacking| Err(ConfineError::Lacking(lacking)))
}

/// Takes all but `kept` out of the bounding set, while still able to.
///
/// # Errors
/// [`ConfineError::Capabilities`].
pub(super) fn drop_bounding(kept: &[Capability]) -> Result<(), ConfineError> {
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed("bounding"))?;
        }
    }
    Ok(())
}

/// Keeps exactly `kept` permitted and effective; nothing inheritable, nothing
/// ambient.
///
/// # Errors
/// [`ConfineError::Capabilities`].
pub(super) fn keep_only(kept: &[Capability]) -> Result<(), ConfineError> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed("effective"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("permitted"))
}
