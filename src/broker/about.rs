//! What the first records of a run say of it: executable, kernel, the confinement
//! that each process is to have, the spawner, a freeze that was found.
//!
//! Trust: computed at the launch, before any host byte is read, from the checked
//! policy and with the tables that the processes confine themselves by. Callers:
//! `launch`.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use postern_core::audit::{Confinement, Record, Role, Stands, Text, Timestamp};
use postern_core::confine::{BrokerPlan, filters, seccomp};
use postern_core::ipc::Sender;
use postern_core::messages::Standing;
use postern_core::policy::{Account, Channel, Policy};
use sha2::{Digest, Sha256};

use crate::fsfreeze::Remembered;

/// How much of the executable is read at a time, in bytes.
const PIECE: usize = 128 << 10;

/// SHA-256 of the file that this process executes, whatever has become of its
/// name. None where this user may not read it: an installed one, started without
/// root.
///
/// # Errors
/// As open(2) and read(2).
pub(crate) fn executable() -> io::Result<Option<[u8; 32]>> {
    let mut file = match File::open("/proc/self/exe") {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(why) => return Err(why),
    };
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(digest.finalize().into())),
            count => digest.update(&piece[..count]),
        }
    }
}

/// The one line of a file of `/proc/sys`.
///
/// # Errors
/// As open(2) and read(2).
pub(crate) fn line(path: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim_ascii().to_owned())
}

/// Where the host is met. What a service manager passed has no other name.
pub(crate) fn channel(channel: &Channel, passed: bool) -> Text {
    if passed { Text::from("passed by the service manager") } else { Text::from(channel.to_string().as_str()) }
}

/// Who a process is to be: user, group, supplementary groups.
type Who = (u32, u32, Vec<u32>);

/// How each process is to be confined. `accounts` are worker's and broker's; none
/// without root, where all are who started postern.
pub(crate) fn confinement(
    policy: &Policy,
    accounts: Option<&(Account, Account)>,
    capabilities: Vec<String>,
    plan: &BrokerPlan,
) -> Vec<Confinement> {
    let (broker, others): (Who, Who) = match accounts {
        Some((worker, broker)) => {
            ((broker.uid, broker.gid, Vec::new()), (worker.uid, worker.gid, policy.identities.groups.clone()))
        }
        None => (starter(), starter()),
    };
    let one = |name, (uid, gid, groups): &Who, capabilities, landlock, filter: &[seccomp::Rule]| {
        let (filter_rules, filter_digest) = seccomp::digest(filter);
        let (uid, gid, groups) = (*uid, *gid, groups.clone());
        Confinement { name, uid, gid, groups, capabilities, landlock, filter_rules, filter_digest }
    };
    let rotates = plan.filter.log.is_some_and(|log| log.rotate);
    let broker_leaves = filters::broker_leaves(plan.root.is_some(), rotates, plan.state.is_some());
    let mut all = vec![
        one("broker", &broker, capabilities, broker_leaves, &filters::broker(&plan.filter)),
        one("spawner", &others, Vec::new(), "executes its own file", &filters::spawner(policy.commands)),
        one("worker", &others, Vec::new(), NO_PATH, &filters::worker(&policy.worker_part())),
    ];
    // Without file rules and facts there is none.
    if policy.has_opener() {
        let filter = filters::opener(&policy.opener_part());
        all.insert(2, one("opener", &others, Vec::new(), RULES, &filter));
    }
    all
}

/// The plan after a reload: broker and spawner stay what they are.
pub(crate) fn replan(confinement: &mut Vec<Confinement>, policy: &Policy) {
    let Some(spawner) = confinement.iter().find(|one| one.name == "spawner").cloned() else { return };
    confinement.retain(|one| matches!(one.name, "broker" | "spawner"));
    let mut add = |name, landlock, filter: &[seccomp::Rule]| {
        let (filter_rules, filter_digest) = seccomp::digest(filter);
        confinement.push(Confinement { name, landlock, filter_rules, filter_digest, ..spawner.clone() });
    };
    if policy.has_opener() {
        add("opener", RULES, &filters::opener(&policy.opener_part()));
    }
    add("worker", NO_PATH, &filters::worker(&policy.worker_part()));
}

/// What the domains of opener and worker leave.
const RULES: &str = "the policy's file rules";
const NO_PATH: &str = "no path";

fn starter() -> Who {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    (uid.as_raw(), gid.as_raw(), groups.iter().map(|group| group.as_raw()).collect())
}

/// The spawner's first word, and by the kernel's who said it.
#[derive(Debug)]
pub(crate) struct Spawner {
    pub(crate) standing: Standing,
    pub(crate) sender: Option<Sender>,
}

impl Spawner {
    /// The record of its start.
    pub(crate) fn record(&self) -> Record {
        Record::ProcessStarted {
            role: Role::Spawner,
            child: 0,
            pid: self.sender.map(|sender| sender.pid.cast_unsigned()),
            uid: self.sender.map_or(0, |sender| sender.uid),
            stands: Stands::of(&self.standing, std::iter::empty()),
        }
    }
}

/// The record of a freeze that an earlier run left: its own may be lost, for while
/// something is frozen records wait in memory.
pub(crate) fn found_frozen(remembered: &Remembered) -> Record {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(remembered.since, Duration::from);
    let ago = now.saturating_sub(remembered.since);
    Record::FoundFrozen {
        since: Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::MIN),
        count: remembered.filesystems.len() as u64,
        mounts: remembered.filesystems.iter().map(|one| one.mountpoint.as_path()).collect(),
    }
}
