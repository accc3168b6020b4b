//! Accounts: giving up root for good.

use nix::unistd::{Gid, Uid, getresuid, setgroups, setresgid, setresuid};

use super::{ConfineError, call};
use crate::messages::Identity;

/// Becomes the account, in all of real, effective and saved ids. Capabilities
/// are kept until [`super::caps::keep_only`] says which.
///
/// # Errors
/// If the process may not.
pub fn become_account(identity: &Identity) -> Result<(), ConfineError> {
    let groups: Vec<Gid> = identity.groups.as_slice().iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    nix::sys::prctl::set_keepcaps(true).map_err(call("prctl(PR_SET_KEEPCAPS)"))?;
    setgroups(&groups).map_err(call("setgroups"))?;
    setresgid(gid, gid, gid).map_err(call("setresgid"))?;
    setresuid(uid, uid, uid).map_err(call("setresuid"))?;
    nix::sys::prctl::set_keepcaps(false).map_err(call("prctl(PR_SET_KEEPCAPS)"))
}

/// # Errors
/// [`ConfineError::Root`] if any of the ids is still root's.
pub(super) fn refuse_root() -> Result<(), ConfineError> {
    let uids = getresuid().map_err(call("getresuid"))?;
    let root = [uids.real, uids.effective, uids.saved].iter().any(|uid| uid.is_root());
    if root { Err(ConfineError::Root) } else { Ok(()) }
}
