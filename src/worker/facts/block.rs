//! Block devices: which there are, what they are made of, and where on the guest's
//! buses they sit.
//!
//! A device is where its link in `/sys/class/block` leads: below `virtual` what the
//! kernel makes of others (its `slaves`), else what drivers found on a bus. Layout of
//! these paths: the kernel's `Documentation/ABI` and `Documentation/scsi`; which of
//! it a host is told, and as which bus, is what the stock agent was seen to say.
//!
//! Trust: the kernel's names, and serial numbers as udev writes them, which the
//! hypervisor chooses. Pure: a bundle in, addresses out.

use std::path::Path;

use postern_core::catalogue::facts::{ATA_PORTS, BLOCK_DEVICES, PCI_DEVICES, UDEV};
use postern_core::ipc::bundle::Bundle;
use postern_core::mountinfo::Device;
use serde::Serialize;

/// Most devices that are looked at for what one filesystem lies on: more than the
/// kernel can stack, and a bound on what cannot be.
const DEVICES_MAX: usize = 4096;

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

    /// An address written `dddd:bb:ss.f`, in hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.split_once('.')?;
        let mut parts = rest.split(':').map(hexadecimal);
        let mut next = || parts.next()?;
        let address = Self { domain: next()?, bus: next()?, slot: next()?, function: hexadecimal(function)? };
        parts.next().is_none().then_some(address)
    }
}

fn hexadecimal(digits: &str) -> Option<i64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().map(i64::from)
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
    /// Its number.
    pub(crate) device: Device,
    /// Where it is, below `/sys/devices`.
    place: &'a str,
}

impl Block<'_> {
    /// Its node.
    pub(crate) fn node(&self) -> String {
        node(self.name)
    }

    /// Whether the kernel makes it of other devices, or of memory or files.
    fn is_virtual(&self) -> bool {
        self.place.starts_with("virtual/block/")
    }

    /// The device that it is a partition of, if it is one: what is a directory of
    /// a device's own.
    fn parent_name(&self) -> Option<&str> {
        let (above, _) = self.place.rsplit_once('/')?;
        Some(above.rsplit_once('/').map_or(above, |(_, name)| name))
    }
}

/// The node of a device that the kernel names so.
fn node(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

/// The guest's block devices, of what was gathered.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    bundle: &'a Bundle<'a>,
    all: Vec<Block<'a>>,
}

impl<'a> Blocks<'a> {
    /// All that have a number and a place.
    pub(crate) fn read(bundle: &'a Bundle<'a>) -> Self {
        let block = |name: &'a str| {
            let place = bundle.link(beneath(name, ""))?.to_str()?;
            let (_, place) = place.split_once("/devices/")?;
            let device = Device::parse(bundle.content(beneath(name, "/dev"))?)?;
            Some(Block { name, device, place })
        };
        let all = bundle.names(BLOCK_DEVICES).filter_map(|name| block(name.to_str()?)).collect();
        Self { bundle, all }
    }

    /// In the kernel's order.
    pub(crate) fn all(&self) -> &[Block<'a>] {
        &self.all
    }

    /// The device with this number.
    pub(crate) fn numbered(&self, device: Device) -> Option<Block<'a>> {
        self.all.iter().find(|block| block.device == device).copied()
    }

    fn named(&self, name: &str) -> Option<Block<'a>> {
        self.all.iter().find(|block| block.name == name).copied()
    }

    /// The device that a mount was made from, by the path that was said then: its
    /// node, its name with the device mapper, or one of udev's names for it.
    pub(crate) fn of_source(&self, source: &Path) -> Option<Block<'a>> {
        let rest = source.strip_prefix("/dev").ok()?.to_str()?;
        let mapped = rest.strip_prefix("mapper/");
        let by_name = self.named(&rest.replace('/', "!"));
        by_name
            .or_else(|| self.all.iter().find(|block| mapped.is_some() && self.alias(block) == mapped).copied())
            .or_else(|| self.all.iter().find(|block| self.udev(block, "S:").any(|name| name == rest)).copied())
    }

    /// The disk that this is a partition of.
    pub(crate) fn disk_of(&self, block: &Block<'a>) -> Option<Block<'a>> {
        self.named(block.parent_name()?)
    }

    /// Its name with the device mapper.
    pub(crate) fn alias(&self, block: &Block<'_>) -> Option<&'a str> {
        self.bundle.text(beneath(block.name, "/dm/name"))
    }

    /// Whether it has no size: a loop device without a file, a drive without a disk.
    pub(crate) fn is_empty(&self, block: &Block<'_>) -> bool {
        self.bundle.text(beneath(block.name, "/size")).is_none_or(|size| size == "0")
    }

    /// What it is made of, the last of the kernel's list first, as stock has it.
    fn slaves(&self, block: &Block<'_>) -> Vec<&'a str> {
        let mut names: Vec<_> =
            self.bundle.names(beneath(block.name, "/slaves")).filter_map(|name| name.to_str()).collect();
        names.reverse();
        names
    }

    /// The nodes of what it is made of.
    pub(crate) fn made_of(&self, block: &Block<'_>) -> Vec<String> {
        self.slaves(block).into_iter().map(node).collect()
    }

    /// The disks that hold what is on this device.
    pub(crate) fn addresses(&self, block: &Block<'a>) -> Vec<Address> {
        let mut found = Vec::new();
        let mut left = vec![*block];
        for _ in 0..DEVICES_MAX {
            let Some(block) = left.pop() else { break };
            match self.address(&block) {
                Some(address) => found.push(address),
                None => left.extend(self.slaves(&block).into_iter().rev().filter_map(|name| self.named(name))),
            }
        }
        found
    }

    /// Where a device is that is not made of others; of a partition, its disk.
    pub(crate) fn address(&self, block: &Block<'_>) -> Option<Address> {
        if block.is_virtual() {
            return None;
        }
        let seat = Seat::of(block.place, self.bundle).unwrap_or(Seat::UNKNOWN);
        Some(Address {
            pci_controller: seat.controller,
            bus_type: seat.on,
            bus: seat.bus,
            target: 0,
            unit: seat.unit,
            serial: self.udev(block, "E:ID_SERIAL=").next().map(str::to_owned),
            dev: block.node(),
        })
    }

    /// What udev has noted of a device under this key.
    fn udev(&self, block: &Block<'_>, key: &'static str) -> impl Iterator<Item = &'a str> + use<'a> {
        let noted = self.bundle.text(format!("{UDEV}/b{}", block.device)).unwrap_or_default();
        noted.lines().filter_map(move |line| line.strip_prefix(key))
    }
}

fn beneath(name: &str, rest: &str) -> String {
    format!("{BLOCK_DEVICES}/{name}{rest}")
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

    /// By the path below `/sys/devices`: first the root of a PCI domain, then bridges,
    /// the controller, and what its driver makes of it.
    fn of(place: &str, bundle: &Bundle<'_>) -> Option<Self> {
        let mut parts = place.split('/');
        if !parts.next()?.starts_with("pci") {
            // Virtio without PCI.
            let virtio = parts.any(|part| part.starts_with("virtio"));
            return virtio.then_some(Self { on: Bus::Virtio, ..Self::UNKNOWN });
        }
        let (name, controller) = parts.clone().map_while(|part| Some((part, PciAddress::parse(part)?))).last()?;
        let driver = bundle.link(format!("{PCI_DEVICES}/{name}/driver"))?.file_name()?.to_str()?;
        let scsi = parts.clone().find_map(scsi);
        let port = || ata_port(parts.clone().find(|part| number(part, "ata").is_some())?, name, bundle);
        let (on, bus, unit) = match driver {
            // Two channels, each with two drives.
            "ata_piix" => (Bus::Ide, port()?, scsi?.target),
            "ahci" => (Bus::Sata, 0, port()?),
            "sym53c8xx" => (Bus::Scsi, 0, scsi?.target),
            "virtio-pci" => scsi.map_or((Bus::Virtio, 0, 0), |scsi| (Bus::Scsi, 0, scsi.lun)),
            "nvme" => (Bus::Nvme, 0, 0),
            "xhci_hcd" | "ehci-pci" => (Bus::Usb, 0, 0),
            _ => return None,
        };
        Some(Self { controller, on, bus, unit })
    }
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

/// The number behind a name.
fn number(part: &str, name: &str) -> Option<u32> {
    part.strip_prefix(name)?.parse().ok()
}

/// Which of its controller's ports this is: the kernel counts through all.
fn ata_port(port: &str, controller: &str, bundle: &Bundle<'_>) -> Option<i64> {
    let own = number(port, "ata")?;
    let first = bundle
        .names(ATA_PORTS)
        .filter_map(|name| {
            let link = bundle.link(Path::new(ATA_PORTS).join(name))?;
            let is_ours = link.components().any(|part| part.as_os_str() == controller);
            number(name.to_str()?, "ata").filter(|_| is_ours)
        })
        .min()?;
    Some(i64::from(own.checked_sub(first)?))
}
