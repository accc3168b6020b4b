//! Landlock: domains, and what a file rule's rights mean in one.
//!
//! All rights of the newest ABI that kernel and crate know are handled, so all
//! are denied but what a grant gives; network and scopes where the kernel has
//! them. The floor is ABI 1.

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{ConfineError, call};
use crate::catalogue::facts::Allows;
use crate::policy::rules::Rights;
use crate::sys::{descriptors, process};

/// The newest ABI of the crate; older kernels enforce what they know of it.
const NEWEST: ABI = ABI::V9;

/// What a domain denies unless granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Files, network, signals and abstract sockets beyond the domain.
    Everything,
    /// As `Everything`, but signals: for the broker that signals init.
    EverythingButSignals,
    /// Executing, network, signals, abstract sockets: for the spawner, whose
    /// children take file rules of their own.
    ExecuteOnly,
}

/// What is granted beneath an object.
#[derive(Debug)]
pub struct Grant {
    /// A descriptor of the file or directory, `O_PATH` suffices.
    pub object: OwnedFd,
    /// What may be done.
    pub access: BitFlags<AccessFs>,
}

impl Grant {
    /// What a file rule needs: `write` and `append` are one to Landlock, and a
    /// created file must be writable; the opener tells them apart.
    pub(super) fn of_rule(object: OwnedFd, rights: Rights) -> Result<Self, ConfineError> {
        use std::os::fd::AsFd;
        let stat = descriptors::stat(object.as_fd()).map_err(call("fstat"))?;
        Ok(Self { object, access: access_of(rights, stat.mode & libc::S_IFMT == libc::S_IFDIR) })
    }
}

/// The Landlock right that a fact's grant stands for.
#[must_use]
pub fn access_for(allows: Allows) -> BitFlags<AccessFs> {
    match allows {
        Allows::Read => AccessFs::ReadFile.into(),
        Allows::List => AccessFs::ReadDir.into(),
    }
}

/// The Landlock rights of a rule, on a directory or on a single file.
#[must_use]
pub fn access_of(rights: Rights, directory: bool) -> BitFlags<AccessFs> {
    let mut access = BitFlags::<AccessFs>::EMPTY;
    if rights.contains(Rights::READ) {
        access |= AccessFs::ReadFile;
    }
    if rights.contains(Rights::WRITE) {
        access |= AccessFs::WriteFile | AccessFs::Truncate;
    }
    if rights.contains(Rights::APPEND) {
        access |= AccessFs::WriteFile;
    }
    if rights.contains(Rights::CREATE) && directory {
        access |= AccessFs::WriteFile | AccessFs::MakeReg;
    }
    access
}

/// Opens a path for a grant, following links: a rule means what stands there.
///
/// # Errors
/// As open(2).
pub fn open(path: &Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// The kernel's version of Landlock, asked for before anything else, so that a
/// kernel without it is named as such and not by what else it lacks.
///
/// # Errors
/// [`ConfineError::NoLandlock`].
pub fn version() -> Result<u32, ConfineError> {
    process::landlock_version().map_err(|why| match why {
        Errno::EOPNOTSUPP => ConfineError::NoLandlock("has Landlock, but not enabled"),
        _ => ConfineError::NoLandlock("has no Landlock"),
    })
}

/// Puts this thread, and all it starts, into a domain with exactly `grants`.
/// Returns the ABI that is enforced.
///
/// # Errors
/// [`ConfineError::NoLandlock`], or what the kernel refused.
pub fn restrict(domain: Domain, grants: &[Grant]) -> Result<u8, ConfineError> {
    let files = match domain {
        Domain::Everything | Domain::EverythingButSignals => AccessFs::from_all(NEWEST),
        Domain::ExecuteOnly => AccessFs::Execute.into(),
    };
    let scopes = match domain {
        Domain::EverythingButSignals => Scope::AbstractUnixSocket.into(),
        Domain::Everything | Domain::ExecuteOnly => Scope::from_all(NEWEST),
    };
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(files)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(scopes)?
        .create()?;
    for grant in grants {
        ruleset = ruleset.add_rule(PathBeneath::new(&grant.object, grant.access))?;
    }
    let status = ruleset.restrict_self()?;
    match status.landlock {
        LandlockStatus::NotEnabled => Err(ConfineError::NoLandlock("has Landlock, but not enabled")),
        LandlockStatus::NotImplemented => Err(ConfineError::NoLandlock("has no Landlock")),
        LandlockStatus::Available { .. } if status.ruleset == RulesetStatus::NotEnforced => {
            Err(ConfineError::NoLandlock("did not enforce the Landlock ruleset"))
        }
        LandlockStatus::Available { effective_abi, .. } => Ok(effective_abi as u8),
    }
}
