//! `guest-get-fsinfo`: filesystems on block devices, each once, how full they are
//! and which disks they lie on.
//!
//! Which are shown, and how full each is, the opener looks: of what a host is not told
//! nothing comes here. A filesystem is listed without numbers where somebody else must
//! have been asked for them.
//!
//! Trust: the kernel's tables; mountpoints are named by whoever may mount. Pure.

use postern_core::catalogue::facts::MOUNTS;
use postern_core::ipc::bundle::{Bundle, Entry};
use postern_core::mountinfo;
use serde::Serialize;

use super::FactError;
use super::block::{Address, Blocks, DEVICES_MAX};

/// One filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Filesystem {
    name: String,
    mountpoint: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    space: Option<Space>,
    disk: Vec<Address>,
}

/// How full a filesystem is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Space {
    used_bytes: u64,
    /// What there is for users, used or not.
    total_bytes: u64,
    /// What there is for root as well.
    total_bytes_privileged: u64,
}

impl Space {
    /// Of what the opener tells: the size of a block, and how many blocks there are,
    /// are free, and are free for users.
    fn read(told: &[u8]) -> Option<Self> {
        let mut numbers = str::from_utf8(told).ok()?.split(' ').map(|number| number.parse::<u64>().ok());
        let mut next = || numbers.next()?;
        let (size, blocks, free, available) = (next()?, next()?, next()?, next()?);
        let used = blocks.saturating_sub(free);
        Some(Self {
            used_bytes: used.saturating_mul(size),
            total_bytes: used.saturating_add(available).saturating_mul(size),
            total_bytes_privileged: blocks.saturating_mul(size),
        })
    }
}

/// The filesystems that were gathered, the last mounted first, with the disks below
/// them if those were gathered too.
///
/// Each is there once, under the first of its mountpoints that are shown, as with stock
/// since QEMU 8: the older one tells of bind mounts as of filesystems.
///
/// # Errors
/// [`FactError::NoMountTable`], [`FactError::TooManyDisks`].
pub fn read(bundle: &Bundle<'_>) -> Result<Vec<Filesystem>, FactError> {
    let blocks = Blocks::read(bundle);
    let mut left = DEVICES_MAX;
    let mut of = |entry: Entry<'_>| {
        let line = entry.content("").and_then(|line| mountinfo::lines(line).next()).ok_or(FactError::NoMountTable)?;
        let mount = line.map_err(|_| FactError::NoMountTable)?.mount();
        let name = String::from_utf8_lossy(entry.name).into_owned();
        let disk = blocks.named(&name).map_or(Some(Vec::new()), |block| blocks.addresses(block, &mut left));
        Ok(Filesystem {
            disk: disk.ok_or(FactError::TooManyDisks)?,
            name,
            mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
            kind: mount.kind.to_string_lossy().into_owned(),
            space: entry.space().and_then(Space::read),
        })
    };
    let entries = bundle.directory(MOUNTS).ok_or(FactError::NoMountTable)?;
    let mut found = entries.map(&mut of).collect::<Result<Vec<_>, _>>()?;
    found.reverse();
    Ok(found)
}
