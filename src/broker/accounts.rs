//! The accounts that broker and worker become: there, and nobody else's.
//!
//! Trust: names and numbers are the policy's. Who else runs as one of them is
//! the kernel's word. As root, at the start only.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_core::ipc::List;
use postern_core::messages::Identity;
use postern_core::policy::{Account, Policy};

use crate::launch::Fatal;

/// Worker's and broker's account, neither used by anybody else.
pub(crate) fn accounts(policy: &Policy) -> Result<(Account, Account), Fatal> {
    let missing = |which: &str| {
        Fatal::Account(format!(
            "the policy's {which} account does not exist; make it with: \
             useradd --system --no-create-home --shell /usr/sbin/nologin NAME"
        ))
    };
    let worker = policy.identities.worker.clone().ok_or_else(|| missing("worker"))?;
    let broker = policy.identities.broker.clone().ok_or_else(|| missing("broker"))?;
    for account in [&worker, &broker] {
        // One that was killed a moment ago may still be on its way out.
        let since = Instant::now();
        while let Some(pid) = process_of(account.uid)? {
            if since.elapsed() < DYING {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            return Err(Fatal::Account(format!(
                "account {} (uid {}) is in use by process {pid}; postern needs accounts of its own, for processes of \
                 one account can disturb each other",
                account.name, account.uid
            )));
        }
    }
    Ok((worker, broker))
}

/// How long an earlier postern that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(3);

/// SIGKILL's bit in the sets of `proc_pid_status(5)`.
const SIGKILL_PENDING: u64 = 1 << (Signal::SIGKILL as u64 - 1);

/// A process that runs as `uid`, if there is one. What is dead, killed or on its
/// way out does not count: broker, opener and the spawner that waits for it may
/// stay so for as long as something is frozen, and only a successor can thaw.
fn process_of(uid: u32) -> Result<Option<u32>, Fatal> {
    for entry in fs::read_dir("/proc").map_err(|why| Fatal::Call("listing /proc", why))? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // The directory of a process that is not dumpable is root's; its status
        // tells the truth. A process that ended meanwhile has none.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim_start();
        let pends = |set| u64::from_str_radix(field(set), 16).is_ok_and(|pending| pending & SIGKILL_PENDING != 0);
        // Who has no memory any more is exiting or dead.
        if pends("SigPnd:") || pends("ShdPnd:") || field("VmSize:").is_empty() {
            continue;
        }
        let uids = field("Uid:");
        if uids.split_ascii_whitespace().any(|field| field.parse() == Ok(uid)) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

pub(crate) fn identity(account: &Account, policy: &Policy) -> Identity {
    let groups = List::new(policy.identities.groups.clone()).unwrap_or_default();
    Identity { uid: account.uid, gid: account.gid, groups }
}

pub(crate) fn identity_alone(account: &Account) -> Identity {
    Identity { uid: account.uid, gid: account.gid, groups: List::default() }
}
