//! Confinement: who a process is, what it keeps, what the kernel will refuse.
//!
//! Each process calls one function here and gets a [`Confined`] token for it;
//! the loops that hear a host or another process take that token, so none of
//! them can run without. A barrier that can't be put up is an error, never a
//! warning.
//!
//! Trust: runs before any hostile byte is read. The plans come from the checked
//! policy.

pub mod caps;
pub mod filters;
pub mod identity;
pub mod landlock;
pub mod limits;
pub mod seccomp;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ::landlock::AccessFs;
use nix::errno::Errno;

use crate::catalogue::CommandSet;
use crate::catalogue::facts::Fact;
use crate::ipc::List;
use crate::messages::{Identity, Standing};
use crate::policy::parts::{OpenerPart, WorkerPart};
use landlock::{Domain, Grant};

/// Why a barrier could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel has no Landlock, or it is not enabled.
    #[error(
        "the kernel {0}; postern needs Landlock: Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, \
         and 'landlock' in the lsm= list of the kernel's command line"
    )]
    NoLandlock(&'static str),
    /// Landlock is there and refused the ruleset.
    #[error("Landlock refused the ruleset: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
    /// A path of the policy can't be opened for its Landlock rule.
    #[error("{path}: {why}; create it, write `optional = true`, or give account uid {uid} access", path = .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        why: Errno,
        /// The account that tried.
        uid: u32,
    },
    /// The filter was refused.
    #[error("seccomp refused the filter: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// Capabilities could not be set.
    #[error("setting the {set} capability set failed: {why}")]
    Capabilities {
        /// Which of the five sets.
        set: &'static str,
        /// What the kernel said.
        why: ::caps::errors::CapsError,
    },
    /// A capability that the policy needs is not to be had.
    #[error("the policy needs {0}, which this process does not have; start postern as root of the guest")]
    Lacking(::caps::Capability),
    /// Another call failed.
    #[error("{what} failed: {why}")]
    Call {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        why: io::Error,
    },
    /// The process is root and was not told to become anyone else.
    #[error("refusing to run as root; the policy's identities say as whom to run")]
    Root,
}

/// Names a system call's failure.
pub(crate) fn call<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> ConfineError {
    move |why| ConfineError::Call { what, why: why.into() }
}

/// Proof that this process is confined. Only this room makes one.
#[derive(Debug)]
pub struct Confined {
    /// What was found while confining.
    pub standing: Standing,
}

impl Confined {
    fn new(landlock_abi: u8, filter: &[seccomp::Rule], missing: List<u16, 1024>) -> Self {
        let (filter_rules, filter_digest) = seccomp::digest(filter);
        Self { standing: Standing { landlock_abi, filter_rules, filter_digest, missing } }
    }
}

/// What every process does first: no core dumps, no tracer, no new privileges;
/// faults that are recorded as what they are.
fn harden() -> Result<(), ConfineError> {
    crate::sys::process::fault_plainly().map_err(call("sigaction"))?;
    nix::sys::prctl::set_dumpable(false).map_err(call("prctl(PR_SET_DUMPABLE)"))?;
    nix::sys::prctl::set_no_new_privs().map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))
}

/// What spawner, opener and worker have in common.
fn child(limits: impl FnOnce() -> Result<(), ConfineError>) -> Result<(), ConfineError> {
    harden()?;
    crate::sys::process::ignore_requests_to_end().map_err(call("sigaction"))?;
    identity::refuse_root()?;
    caps::keep_only(&[])?;
    limits()?;
    // A child whose parent dies shall not outlive it. The pipe's end tells it
    // so too, and is what ends a spawner: the broker, of another account and in
    // a domain of its own, may not even signal it when dying. A change of
    // account clears this, so it comes after.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(call("prctl(PR_SET_PDEATHSIG)"))
}

/// Confines a worker: no path, no network, no capability; only what the
/// commands of its part need.
///
/// # Errors
/// See [`ConfineError`].
pub fn worker(part: &WorkerPart) -> Result<Confined, ConfineError> {
    child(|| limits::worker(part))?;
    let abi = landlock::restrict(Domain::Everything, &[])?;
    let filter = filters::worker(part);
    seccomp::install(&filter, false)?;
    Ok(Confined::new(abi, &filter, List::default()))
}

/// Confines an opener to the paths of its part.
///
/// # Errors
/// See [`ConfineError`]; a rule's path that is missing and not optional is one.
pub fn opener(part: &OpenerPart) -> Result<Confined, ConfineError> {
    child(|| limits::opener(part.facts))?;
    let mut grants = Vec::new();
    let mut missing = Vec::new();
    for (number, rule) in part.rules.iter().enumerate() {
        match landlock::open(&rule.path) {
            Ok(object) => grants.push(Grant::of_rule(object, rule.rights)?),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) if rule.optional => {
                missing.push(u16::try_from(number).unwrap_or(u16::MAX));
            }
            Err(why) => {
                let uid = nix::unistd::geteuid().as_raw();
                return Err(ConfineError::Path { path: rule.path.clone(), why, uid });
            }
        }
    }
    // What a guest does not have, it does not tell of.
    for (path, allows) in part.facts.iter().flat_map(Fact::grants) {
        if let Ok(object) = landlock::open(path.as_ref()) {
            grants.push(Grant { object, access: landlock::access_for(allows) });
        }
    }
    let abi = landlock::restrict(Domain::Everything, &grants)?;
    drop(grants);
    let filter = filters::opener(part);
    seccomp::install(&filter, false)?;
    Ok(Confined::new(abi, &filter, List::new(missing).unwrap_or_default()))
}

/// Confines the spawner: another account, no capability, and nothing to execute
/// but its own file. Its children may serve what is plain, and `commands`.
///
/// # Errors
/// See [`ConfineError`].
pub fn spawner(
    identity: Option<&Identity>,
    commands: CommandSet,
    executable: OwnedFd,
) -> Result<Confined, ConfineError> {
    if let Some(identity) = identity {
        caps::drop_bounding(&[])?;
        identity::become_account(identity)?;
    }
    child(limits::spawner)?;
    let mut grants = vec![Grant { object: executable, access: AccessFs::Execute.into() }];
    if let Some(loader) = filters::LOADER {
        let why = |why| ConfineError::Path { path: loader.into(), why, uid: 0 };
        grants.push(Grant { object: landlock::open(loader.as_ref()).map_err(why)?, access: AccessFs::Execute.into() });
    }
    let abi = landlock::restrict(Domain::ExecuteOnly, &grants)?;
    let filter = filters::spawner(commands);
    seccomp::install(&filter, false)?;
    Ok(Confined::new(abi, &filter, List::default()))
}

/// What confines a broker, computed by its launch from the policy and the init
/// it found.
#[derive(Debug)]
pub struct BrokerPlan {
    /// What it may still do.
    pub filter: filters::BrokerNeeds,
    /// Directory of the audit log.
    pub log: Option<OwnedFd>,
    /// Directory of the state files, if it ever writes one.
    pub state: Option<OwnedFd>,
    /// Root directory: every directory beneath may be opened, if it freezes or trims.
    pub root: Option<OwnedFd>,
    /// Directories of the sockets that it may connect to anew.
    pub sockets: Vec<OwnedFd>,
    /// Directories of the policy's files, which it reads again for a reload.
    pub policy: Vec<OwnedFd>,
}

/// First half of the broker's confinement, before its threads start: account,
/// exactly `capabilities` in the five sets, limits.
///
/// # Errors
/// See [`ConfineError`].
pub fn broker_identity(identity: Option<&Identity>, capabilities: &[::caps::Capability]) -> Result<(), ConfineError> {
    if let Some(identity) = identity {
        caps::require(capabilities)?;
        caps::drop_bounding(capabilities)?;
        identity::become_account(identity)?;
    }
    identity::refuse_root()?;
    caps::keep_only(if identity.is_some() { capabilities } else { &[] })?;
    limits::broker()?;
    harden()
}

/// Second half: Landlock, then `threads`, which inherit it, then one filter for
/// all threads.
///
/// # Errors
/// See [`ConfineError`], or what `threads` returns.
pub fn broker_barriers<T, E: From<ConfineError>>(
    plan: BrokerPlan,
    threads: impl FnOnce() -> Result<T, E>,
) -> Result<(Confined, T), E> {
    let BrokerPlan { filter, log, state, root, sockets, policy } = plan;
    let mut grants = Vec::new();
    if let Some(object) = log {
        let mut access = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::ReadDir;
        if filter.log.is_some_and(|log| log.rotate) {
            // Renaming is removing one name and making another.
            access |= AccessFs::RemoveFile;
        }
        grants.push(Grant { object, access });
    }
    if let Some(object) = state {
        let access =
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::ReadDir;
        grants.push(Grant { object, access });
    }
    if let Some(object) = root {
        grants.push(Grant { object, access: AccessFs::ReadDir.into() });
    }
    grants.extend(policy.into_iter().map(|object| Grant { object, access: AccessFs::ReadFile.into() }));
    // Kernels before ABI 9 know no such right, and need none.
    grants.extend(sockets.into_iter().map(|object| Grant { object, access: AccessFs::ResolveUnix.into() }));
    let domain = if filter.signals.is_empty() { Domain::Everything } else { Domain::EverythingButSignals };
    let abi = landlock::restrict(domain, &grants)?;
    let made = threads()?;
    let filter = filters::broker(&filter);
    seccomp::install(&filter, true).map_err(E::from)?;
    Ok((Confined::new(abi, &filter, List::default()), made))
}
