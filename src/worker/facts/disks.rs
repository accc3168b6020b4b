//! `guest-get-disks`: disks and their partitions, what they are made of and where they
//! sit.
//!
//! Stock tells of `NVMe` disks also how worn they are; that takes a command to the
//! device, which the opener could not be let send without all others.
//!
//! Trust: the kernel's names. Pure.

use std::collections::BTreeMap;

use postern_core::ipc::bundle::Bundle;
use serde::Serialize;

use super::block::{Address, Block, Blocks};

/// One disk or partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    name: String,
    partition: bool,
    dependencies: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
}

/// All that were gathered, partitions before their disk, and the last of the kernel's
/// list first, as stock has them.
#[must_use]
pub fn read(bundle: &Bundle<'_>) -> Vec<Disk> {
    let blocks = Blocks::read(bundle);
    let mut parts: BTreeMap<&str, Vec<&Block<'_>>> = BTreeMap::new();
    let mut disks = Vec::new();
    for block in blocks.all() {
        match block.parent_name().and_then(|parent| blocks.named(parent)) {
            Some(disk) => parts.entry(disk.name).or_default().push(block),
            None => disks.push(block),
        }
    }
    let mut found = Vec::new();
    for disk in disks.into_iter().rev() {
        found.extend(parts.remove(disk.name).into_iter().flatten().map(|part| Disk {
            name: part.node(),
            partition: true,
            dependencies: vec![disk.node()],
            address: None,
            alias: None,
        }));
        found.push(Disk {
            name: disk.node(),
            partition: false,
            dependencies: disk.made_of(),
            address: disk.address(),
            alias: disk.alias().map(str::to_owned),
        });
    }
    found
}
