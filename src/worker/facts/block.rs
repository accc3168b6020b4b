//! Block devices: which there are, what they are made of, and where on the guest's
//! buses they sit.
//!
//! A device is where the kernel's links to it lead: below `virtual` what it makes of
//! others (its `slaves`), else what drivers found on a bus. Layout of these paths: the
//! kernel's `Documentation/ABI` and `Documentation/scsi`; which of it a host is told,
//! and as which bus, is what the stock agent was seen to say.
//!
//! Trust: the kernel's names, and serial numbers as udev writes them, which the
//! hypervisor chooses. Pure: a bundle in, addresses out.

use std::os::unix::ffi::OsStrExt;

use postern_core::catalogue::facts::BLOCK_DEVICES;
use postern_core::ipc::bundle::{Bundle, Entry, Kind, names_of, path_of};
use postern_core::place::{self, Place};
use serde::Serialize;

/// Most devices that are looked at for what the filesystems of one answer lie on:
/// 1,000 filesystems on 60 each, and a bound on what cannot be.
pub(super) const DEVICES_MAX: usize = 1 << 16;
/// Longest serial number in bytes that is told; drivers have 20 to 256.
const SERIAL_MAX: usize = 512;

/// A controller's place on PCI; -1 throughout where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PciAddress {
    domain: i64,
    bus: i64,
    slot: i64,
    function: i64,
}

impl PciAddress {
    const NONE: Self = Self { domain: -1, bus: -1, slot: -1, function: -1 };
}

impl From<place::PciAddress> for PciAddress {
    fn from(address: place::PciAddress) -> Self {
        let place::PciAddress { domain, bus, slot, function } = address;
        Self { domain: domain.into(), bus: bus.into(), slot: slot.into(), function: function.into() }
    }
}

/// What a disk is on; those of the schema's that stock tells on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bus {
    Ide,
    Scsi,
    Virtio,
    Usb,
    Sata,
    Nvme,
    /// Any other, MMC among them.
    Unknown,
}

/// Where a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Address {
    pci_controller: PciAddress,
    bus_type: Bus,
    bus: i64,
    target: i64,
    unit: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    dev: String,
}

/// A block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    /// As the kernel names it; a slash in it is an exclamation mark here.
    pub(crate) name: &'a str,
    place: Place<'a>,
    entry: Entry<'a>,
}

impl<'a> Block<'a> {
    fn of(entry: Entry<'a>) -> Option<Self> {
        let place = Place::of_link(entry.link("")?.as_os_str().as_bytes())?;
        Some(Self { name: str::from_utf8(entry.name).ok()?, place, entry })
    }

    /// Its node.
    pub(crate) fn node(&self) -> String {
        node(self.name)
    }

    /// The device that it is a partition of, if that is one: what is a directory of
    /// a device's own.
    pub(crate) fn parent_name(&self) -> Option<&'a str> {
        self.place.parent_name()
    }

    /// Its name with the device mapper.
    pub(crate) fn alias(&self) -> Option<&'a str> {
        self.entry.text("dm/name")
    }

    /// What it is made of, the last of the kernel's list first, as stock has it.
    fn slaves(&self) -> impl DoubleEndedIterator<Item = &'a str> + use<'a> {
        self.entry.names("slaves").rev().filter_map(|name| name.to_str())
    }

    /// The nodes of what it is made of.
    pub(crate) fn made_of(&self) -> Vec<String> {
        self.slaves().map(node).collect()
    }

    /// Where a device is that is not made of others; of a partition, its disk.
    pub(crate) fn address(&self) -> Option<Address> {
        if self.place.is_virtual() {
            return None;
        }
        let seat = self.seat().unwrap_or(Seat::UNKNOWN);
        Some(Address {
            pci_controller: seat.controller,
            bus_type: seat.on,
            bus: seat.bus,
            target: 0,
            unit: seat.unit,
            serial: self.serial().map(str::to_owned),
            dev: self.node(),
        })
    }

    /// As udev has noted it.
    fn serial(&self) -> Option<&'a str> {
        let noted = str::from_utf8(self.entry.elsewhere(Kind::Content)?).ok()?;
        let serial = noted.lines().find_map(|line| line.strip_prefix("E:ID_SERIAL="));
        serial.filter(|serial| serial.len() <= SERIAL_MAX)
    }

    /// By the path below `/sys/devices`: first the root of a PCI domain, then bridges,
    /// the controller, and what its driver makes of it.
    fn seat(&self) -> Option<Seat> {
        let mut parts = self.place.parts();
        if !parts.next()?.starts_with("pci") {
            // Virtio without PCI.
            let virtio = parts.any(|part| part.starts_with("virtio"));
            return virtio.then_some(Seat { on: Bus::Virtio, ..Seat::UNKNOWN });
        }
        let (controller, _) = self.place.controller()?;
        let driver = path_of(self.entry.elsewhere(Kind::Link)?).file_name()?.to_str()?;
        let scsi = parts.find_map(scsi);
        let (on, bus, unit) = match driver {
            // Two channels, each with two drives.
            "ata_piix" => (Bus::Ide, self.ata_port()?, scsi?.target),
            "ahci" => (Bus::Sata, 0, self.ata_port()?),
            "sym53c8xx" => (Bus::Scsi, 0, scsi?.target),
            "virtio-pci" => scsi.map_or((Bus::Virtio, 0, 0), |scsi| (Bus::Scsi, 0, scsi.lun)),
            "nvme" => (Bus::Nvme, 0, 0),
            "xhci_hcd" | "ehci-pci" => (Bus::Usb, 0, 0),
            _ => return None,
        };
        Some(Seat { controller: controller.into(), on, bus, unit })
    }

    /// Which of its controller's ports it is at: the kernel counts through all.
    fn ata_port(&self) -> Option<i64> {
        let own = self.place.ata_port()?;
        let beside = names_of(self.entry.elsewhere(Kind::Names)?);
        let first = beside.filter_map(|name| place::ata_port(name.to_str()?)).min()?;
        Some(i64::from(own.checked_sub(first)?))
    }
}

/// The node of a device that the kernel names so.
fn node(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

/// The guest's block devices that were gathered.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    all: Vec<Block<'a>>,
    /// Places in `all`, in the order of their names.
    by_name: Vec<usize>,
}

impl<'a> Blocks<'a> {
    /// All that have a place.
    pub(crate) fn read(bundle: &Bundle<'a>) -> Self {
        let all: Vec<Block<'a>> = bundle.directory(BLOCK_DEVICES).into_iter().flatten().filter_map(Block::of).collect();
        let mut by_name: Vec<usize> = (0..all.len()).collect();
        by_name.sort_unstable_by_key(|&at| all[at].name);
        Self { all, by_name }
    }

    /// In the kernel's order.
    pub(crate) fn all(&self) -> &[Block<'a>] {
        &self.all
    }

    /// The device that the kernel names so.
    pub(crate) fn named(&self, name: &str) -> Option<&Block<'a>> {
        let at = self.by_name.binary_search_by_key(&name, |&at| self.all[at].name).ok()?;
        Some(&self.all[self.by_name[at]])
    }

    /// The disks that hold what is on this device; `None` once more devices than are
    /// left have been looked at.
    pub(crate) fn addresses(&self, block: &Block<'a>, left: &mut usize) -> Option<Vec<Address>> {
        let mut found = Vec::new();
        let mut next = vec![block];
        while let Some(block) = next.pop() {
            match block.address() {
                Some(address) => found.push(address),
                None => {
                    for slave in block.slaves().rev().filter_map(|name| self.named(name)) {
                        *left = left.checked_sub(1)?;
                        next.push(slave);
                    }
                }
            }
        }
        Some(found)
    }
}

/// Where a disk sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    controller: PciAddress,
    on: Bus,
    bus: i64,
    unit: i64,
}

impl Seat {
    const UNKNOWN: Self = Self { controller: PciAddress::NONE, on: Bus::Unknown, bus: 0, unit: 0 };
}

/// The end of a SCSI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scsi {
    target: i64,
    lun: i64,
}

/// A SCSI address, written `host:channel:target:lun`.
fn scsi(part: &str) -> Option<Scsi> {
    let mut numbers = part.split(':').map(|number| number.parse::<u32>().ok());
    let mut next = || numbers.next()?.map(i64::from);
    let (_host, _channel) = (next()?, next()?);
    let address = Scsi { target: next()?, lun: next()? };
    numbers.next().is_none().then_some(address)
}
