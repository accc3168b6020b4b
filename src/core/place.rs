//! Where a block device is: the path below `/sys/devices` to which the kernel's links
//! to it lead. Below `virtual` is what it makes of others, elsewhere what drivers found
//! on a bus. Layout: the kernel's `Documentation/ABI`.
//!
//! Trust: pure. The paths are the kernel's; any others have parts all the same. Used by
//! the opener, which looks what such a device is made of, and the worker, which tells.

/// A path below `/sys/devices`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a>(&'a str);

impl<'a> Place<'a> {
    /// To which a link leads, as it is written.
    #[must_use]
    pub fn of_link(link: &'a [u8]) -> Option<Self> {
        Some(Self(str::from_utf8(link).ok()?.split_once("/devices/")?.1))
    }

    /// The path, from `/sys/devices` on.
    #[must_use]
    pub const fn path(self) -> &'a str {
        self.0
    }

    /// The directories on the way, and the device itself.
    pub fn parts(self) -> impl Iterator<Item = &'a str> + Clone {
        self.0.split('/')
    }

    /// The device's name.
    #[must_use]
    pub fn name(self) -> &'a str {
        self.0.rsplit_once('/').map_or(self.0, |(_, name)| name)
    }

    /// The name of what it is a directory of: of a partition its disk.
    #[must_use]
    pub fn parent_name(self) -> Option<&'a str> {
        Some(Self(self.0.rsplit_once('/')?.0).name())
    }

    /// Whether the kernel makes it of other devices, or of memory or files.
    #[must_use]
    pub fn is_virtual(self) -> bool {
        self.0.starts_with("virtual/block/")
    }

    /// The controller on PCI by which it is reached: behind the root of a domain and
    /// bridges, which have addresses too. With the path of its directory.
    #[must_use]
    pub fn controller(self) -> Option<(PciAddress, &'a str)> {
        let mut end = self.0.find('/').filter(|_| self.0.starts_with("pci"))?;
        let mut found = None;
        for part in self.0[end + 1..].split('/') {
            let Some(address) = PciAddress::parse(part) else { break };
            end += 1 + part.len();
            found = Some((address, &self.0[..end]));
        }
        found
    }

    /// The number that the kernel has for its ATA port.
    #[must_use]
    pub fn ata_port(self) -> Option<u32> {
        self.parts().find_map(ata_port)
    }
}

/// The number of a port that the kernel names so: it counts through all controllers'.
#[must_use]
pub fn ata_port(name: &str) -> Option<u32> {
    name.strip_prefix("ata")?.parse().ok()
}

/// A place on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the parts of an address have no other names")]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u32,
    pub slot: u32,
    pub function: u32,
}

impl PciAddress {
    /// An address written `dddd:bb:ss.f`, in hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.split_once('.')?;
        let mut parts = rest.split(':').map(hexadecimal);
        let mut next = || parts.next()?;
        let address = Self { domain: next()?, bus: next()?, slot: next()?, function: hexadecimal(function)? };
        parts.next().is_none().then_some(address)
    }
}

fn hexadecimal(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(link: &str) -> Place<'_> {
        Place::of_link(link.as_bytes()).expect("a place")
    }

    #[test]
    fn a_disk_behind_a_bridge() {
        let partition = place("../../devices/pci0000:00/0000:00:02.0/0000:01:00.0/virtio2/block/vdb/vdb1");
        let address = PciAddress { domain: 0, bus: 1, slot: 0, function: 0 };
        assert_eq!(partition.controller(), Some((address, "pci0000:00/0000:00:02.0/0000:01:00.0")));
        assert_eq!((partition.name(), partition.parent_name()), ("vdb1", Some("vdb")));
        assert!(!partition.is_virtual());
        assert_eq!(partition.ata_port(), None);
        let drive = place("../devices/pci0000:00/10000:e1:1f.2/ata13/host7/target7:0:0/7:0:0:0/block/sdf");
        assert_eq!(drive.controller().map(|(address, _)| (address.domain, address.slot)), Some((0x10000, 0x1f)));
        assert_eq!(drive.ata_port(), Some(13));
    }

    #[test]
    fn places_on_no_pci_have_no_controller() {
        for link in [
            "../../devices/virtual/block/dm-0",
            "../devices/platform/0000:00:01.0/virtio0/block/vda",
            "/devices/pci0000:00/virtio0/0000:00:01.0/block/vda",
            "/devices/pci0000:00",
            "/devices/pci0000:00/0000:00:01/block",
            "/devices/pci0000:00/0000:00:0+1.0/block",
            "/devices/",
        ] {
            assert_eq!(place(link).controller(), None, "{link}");
        }
        assert!(place("../../devices/virtual/block/dm-0").is_virtual());
        assert_eq!(Place::of_link(b"../../class/block"), None);
        assert_eq!(Place::of_link(b"/devices/\xff"), None);
        assert_eq!((place("/devices/a").parent_name(), place("/devices/a").name()), (None, "a"));
    }
}
