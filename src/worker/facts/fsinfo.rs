//! `guest-get-fsinfo`: filesystems on block devices, each once, how full they are
//! and which disks they lie on.
//!
//! How full one is, the opener asks, and only where nobody else must be asked: a
//! filesystem of which it tells nothing is listed without numbers.
//!
//! Trust: the kernel's tables; mountpoints are named by whoever may mount. Pure.

use std::path::Path;

use postern_core::catalogue::facts::MOUNTS;
use postern_core::ipc::bundle::{Bundle, Kind};
use postern_core::mountinfo::{self, Device, Mount};
use serde::Serialize;

use super::FactError;
use super::block::{Address, Block, Blocks};

/// One filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Filesystem {
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

/// The filesystems at mountpoints that are shown, the last mounted first, with or
/// without the disks below them.
///
/// Each is there once, under the first of those mountpoints, as with stock since
/// QEMU 8: the older one tells of bind mounts as of filesystems.
///
/// # Errors
/// [`FactError::NoMountTable`].
pub(crate) fn read(
    bundle: &Bundle<'_>,
    shows: impl Fn(&Path) -> bool,
    disks: bool,
) -> Result<Vec<Filesystem>, FactError> {
    let table = bundle.content(MOUNTS).ok_or(FactError::NoMountTable)?;
    let mounts = mountinfo::parse(table).map_err(|_| FactError::NoMountTable)?;
    let blocks = Blocks::read(bundle);
    let mut taken: Vec<Device> = Vec::new();
    let mut found = Vec::new();
    for mount in mounts.iter().filter(|mount| shows(&mount.mountpoint)) {
        let Some(block) = block_of(mount, &blocks) else { continue };
        if taken.contains(&mount.device) {
            continue;
        }
        taken.push(mount.device);
        let space = bundle.told(Kind::Space, mount.device.to_string().as_ref()).and_then(Space::read);
        found.push(Filesystem {
            name: block.name.to_owned(),
            mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
            kind: mount.kind.to_string_lossy().into_owned(),
            space,
            disk: if disks { blocks.addresses(&block) } else { Vec::new() },
        });
    }
    found.reverse();
    Ok(found)
}

/// The device that a filesystem is on, or the first of several.
fn block_of<'a>(mount: &Mount, blocks: &Blocks<'a>) -> Option<Block<'a>> {
    if mount.device.major != 0 {
        blocks.numbered(mount.device)
    } else if mount.kind == "btrfs" {
        // Its number is no device's.
        blocks.of_source(&mount.source)
    } else {
        None
    }
}
