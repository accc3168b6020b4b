//! `guest-get-time` and `guest-get-host-name`: what the kernel says without a file.
//!
//! Trust: the kernel's word.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::utsname::uname;
use serde::Serialize;

/// Nanoseconds since 1970, UTC.
pub(crate) fn now() -> Result<i64, Errno> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Errno::ERANGE)?;
    i64::try_from(since.as_nanos()).map_err(|_| Errno::ERANGE)
}

/// What `guest-get-host-name` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HostName {
    /// The name of the node, as uname(2) has it.
    #[serde(rename = "host-name")]
    pub(crate) host_name: String,
}

impl HostName {
    /// The name now: it may change while postern runs.
    pub(crate) fn read() -> Result<Self, Errno> {
        Ok(Self { host_name: uname()?.nodename().to_string_lossy().into_owned() })
    }
}
