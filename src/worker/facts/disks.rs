//! `guest-get-disks`: disks and their partitions, what they are made of and where they
//! sit.
//!
//! Stock tells of `NVMe` disks also how worn they are; that takes a command to the
//! device, which the opener could not be let send without all others.
//!
//! Trust: the kernel's names. Pure.

use postern_core::ipc::bundle::Bundle;
use serde::Serialize;

use super::block::{Address, Blocks};

/// One disk or partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Disk {
    name: String,
    partition: bool,
    dependencies: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
}

/// All that have a size, partitions before their disk, and the last of the kernel's
/// list first, as stock has them.
pub(crate) fn read(bundle: &Bundle<'_>) -> Vec<Disk> {
    let blocks = Blocks::read(bundle);
    let mut found = Vec::new();
    let parents: Vec<_> = blocks.all().iter().map(|block| (block, blocks.disk_of(block))).collect();
    for (disk, _) in parents.iter().rev().filter(|(disk, parent)| parent.is_none() && !blocks.is_empty(disk)) {
        let parts = parents.iter().filter(|(_, parent)| parent.as_ref() == Some(*disk));
        found.extend(parts.map(|(part, _)| Disk {
            name: part.node(),
            partition: true,
            dependencies: vec![disk.node()],
            address: None,
            alias: None,
        }));
        found.push(Disk {
            name: disk.node(),
            partition: false,
            dependencies: blocks.made_of(disk),
            address: blocks.address(disk),
            alias: blocks.alias(disk).map(str::to_owned),
        });
    }
    found
}
