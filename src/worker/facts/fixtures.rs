//! Guests as they were found, for tests: what the kernel and udev had in machines of
//! QEMU's, and what the stock agent answered there, each in a small table.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;

use postern_core::catalogue::facts::{ATA_PORTS, BLOCK_DEVICES, MOUNTS, PCI_DEVICES, UDEV};
use postern_core::ipc::bundle::{Bundle, Gathered, Kind};
use serde_json::{Value, json};

use super::{disks, fsinfo};

/// A guest: the bundle of it, and stock's answers by command.
#[derive(Default)]
struct Guest {
    gathered: Gathered,
    names: BTreeMap<&'static str, Vec<String>>,
    mounts: String,
    stock: BTreeMap<String, Vec<Value>>,
}

impl Guest {
    fn read(table: &str) -> Self {
        let mut guest = Self::default();
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let (what, rest) = line.split_once(' ').expect("a line says what it is");
            let words: Vec<&str> = rest.split(' ').collect();
            match what {
                "block" => guest.block(&words),
                "pci" => {
                    guest.entry(PCI_DEVICES, words[0]);
                    let driver = format!("../../../bus/pci/drivers/{}", words[1]);
                    guest.add(Kind::Link, &format!("{PCI_DEVICES}/{}/driver", words[0]), &driver);
                }
                "ata" => {
                    let (_, port) = rest.rsplit_once('/').expect("a port");
                    guest.entry(ATA_PORTS, port);
                    guest.add(Kind::Link, &format!("{ATA_PORTS}/{port}"), &format!("../../devices/{rest}"));
                }
                "mount" => guest.mounts.extend([rest, "\n"]),
                "space" => {
                    let (device, space) = rest.split_once(' ').expect("a device");
                    guest.add(Kind::Space, device, space);
                }
                command => {
                    let answer = serde_json::from_str(rest).expect("JSON");
                    guest.stock.entry(command.to_owned()).or_default().push(answer);
                }
            }
        }
        for (directory, names) in std::mem::take(&mut guest.names) {
            guest.add(Kind::Names, directory, &names.concat());
        }
        let mounts = std::mem::take(&mut guest.mounts);
        guest.add(Kind::Content, MOUNTS, &mounts);
        guest
    }

    fn add(&mut self, kind: Kind, path: &str, told: &str) {
        assert!(self.gathered.add(kind, path.as_bytes(), told.as_bytes()), "room");
    }

    fn entry(&mut self, directory: &'static str, name: &str) {
        self.names.entry(directory).or_default().push(format!("{name}\0"));
    }

    fn block(&mut self, words: &[&str]) {
        let [name, number, size, place, more @ ..] = words else { panic!("{words:?}") };
        let at = format!("{BLOCK_DEVICES}/{name}");
        self.entry(BLOCK_DEVICES, name);
        self.add(Kind::Link, &at, &format!("../../devices/{place}"));
        self.add(Kind::Content, &format!("{at}/size"), &format!("{size}\n"));
        if *number != "-" {
            self.add(Kind::Content, &format!("{at}/dev"), &format!("{number}\n"));
        }
        for (key, value) in more.iter().filter_map(|word| word.split_once('=')) {
            match key {
                "serial" => {
                    let noted = format!("S:disk/by-id/{name}\nI:123456\nE:ID_BUS=x\nE:ID_SERIAL={value}\nG:systemd\n");
                    self.add(Kind::Content, &format!("{UDEV}/b{number}"), &noted);
                }
                "alias" => self.add(Kind::Content, &format!("{at}/dm/name"), &format!("{value}\n")),
                "slaves" => self.add(Kind::Names, &format!("{at}/slaves"), &(value.replace(',', "\0") + "\0")),
                _ => panic!("{key}"),
            }
        }
    }

    fn bundle(&self) -> Bundle<'_> {
        Bundle::read(self.gathered.bytes()).expect("a bundle")
    }

    fn filesystems(&self, shows: impl Fn(&Path) -> bool, disks: bool) -> Vec<Value> {
        list(&fsinfo::read(&self.bundle(), shows, disks).expect("a mount table"))
    }
}

fn list(answer: &impl serde::Serialize) -> Vec<Value> {
    serde_json::from_value(serde_json::to_value(answer).expect("JSON")).expect("a list")
}

fn guests() -> [(&'static str, Guest); 2] {
    [
        ("i440fx", Guest::read(include_str!("fixtures/i440fx.txt"))),
        ("q35", Guest::read(include_str!("fixtures/q35.txt"))),
    ]
}

/// What differs on purpose: of what a process or a server answers for no numbers.
fn as_intended(mut filesystem: Value) -> Value {
    if filesystem["type"] == "fuseblk" {
        for number in ["used-bytes", "total-bytes", "total-bytes-privileged"] {
            filesystem.as_object_mut().expect("an object").remove(number).expect("stock has it");
        }
    }
    filesystem
}

#[test]
fn filesystems_are_those_that_stock_tells_in_its_order() {
    for (name, guest) in guests() {
        let stock: Vec<Value> = guest.stock["fsinfo"].iter().cloned().map(as_intended).collect();
        let ours = guest.filesystems(|_| true, true);
        assert!(stock.len() > 8, "{name}");
        for (ours, stock) in ours.iter().zip(&stock) {
            assert_eq!(ours, stock, "{name}");
        }
        assert_eq!(ours.len(), stock.len(), "{name}");
    }
}

#[test]
fn disks_are_those_that_stock_tells() {
    for (name, guest) in guests() {
        let by_name = |list: &[Value]| -> BTreeMap<String, Value> {
            list.iter().map(|disk| (disk["name"].as_str().expect("a name").to_owned(), disk.clone())).collect()
        };
        let (stock, ours) = (&guest.stock["disks"], list(&disks::read(&guest.bundle())));
        assert_eq!(ours.len(), stock.len(), "{name}");
        for (disk, ours) in by_name(&ours) {
            assert_eq!(Some(&ours), by_name(stock).get(&disk), "{name}");
        }
    }
}

#[test]
fn a_redacted_answer_has_no_disks() {
    for (name, guest) in guests() {
        let filesystems = guest.filesystems(|path| path == Path::new("/m/loop") || path == Path::new("/"), false);
        assert!(filesystems.iter().all(|one| one["disk"] == json!([])), "{name}");
        assert!(filesystems.iter().any(|one| one["mountpoint"] == "/"), "{name}");
        assert!(filesystems.len() <= 2, "{name}");
    }
}

/// Two subvolumes are one filesystem; which of them is told, the policy may say.
#[test]
fn a_filesystem_is_told_under_the_mountpoint_that_is_shown() {
    let [(_, guest), _] = guests();
    let shown = guest.filesystems(|path| path == Path::new("/m/sub"), true);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!((&shown[0]["name"], &shown[0]["mountpoint"]), (&json!("vdg"), &json!("/m/sub")));
    assert_eq!(shown[0]["total-bytes-privileged"], 167_772_160);
}

/// `source` of a btrfs mount, and the device that it must be found by.
#[test]
fn btrfs_is_found_by_what_it_was_mounted_from() {
    const UUID: &str = "disk/by-uuid/5ce1d30e-c0ad-476c-b244-c091ef230bc6";
    for (source, name) in [
        ("/dev/sdb1", Some("sdb1")),
        ("/dev/cciss/c0d0", Some("cciss!c0d0")),
        ("/dev/mapper/vg-root", Some("dm-0")),
        (&format!("/dev/{UUID}"), Some("sdb1")),
        ("/dev/root", None),
        ("dev/sdb1", None),
        ("/dev/mapper/sdb1", None),
        ("", None),
    ] {
        let mut guest = Guest::default();
        guest.block(&["sdb1", "8:17", "9", "pci0000:00/0000:00:01.0/ata1/block/sdb/sdb1"]);
        guest.block(&["cciss!c0d0", "104:0", "9", "pci0000:00/0000:00:02.0/cciss0/c0d0/block/cciss!c0d0"]);
        guest.block(&["dm-0", "253:0", "9", "virtual/block/dm-0", "alias=vg-root", "slaves=sdb1"]);
        guest.add(Kind::Content, &format!("{UDEV}/b8:17"), &format!("S:other\nS:{UUID}\n"));
        let names = guest.names[BLOCK_DEVICES].concat();
        guest.add(Kind::Names, BLOCK_DEVICES, &names);
        guest.add(Kind::Content, MOUNTS, &format!("1 0 0:30 /@ / rw - btrfs {source} rw\n"));
        let found = guest.filesystems(|_| true, true);
        assert_eq!(found.first().map(|one| &one["name"]), name.map(|name| json!(name)).as_ref(), "{source}");
        if name == Some("cciss!c0d0") {
            assert_eq!(found[0]["disk"][0]["dev"], "/dev/cciss/c0d0");
        }
    }
}

/// What no kernel says costs no more than its size, and hangs nothing.
#[test]
fn devices_made_of_themselves_and_of_nothing_end() {
    let mut guest = Guest::default();
    guest.block(&["dm-0", "253:0", "9", "virtual/block/dm-0", "slaves=dm-1,dm-0,dm-1"]);
    guest.block(&["dm-1", "253:1", "9", "virtual/block/dm-1", "slaves=dm-0,dm-1,gone,sda"]);
    guest.block(&["sda", "8:0", "9", "pci0000:00/block/sda"]);
    let names = guest.names[BLOCK_DEVICES].concat();
    guest.add(Kind::Names, BLOCK_DEVICES, &names);
    guest.add(Kind::Content, MOUNTS, "1 0 253:0 / / rw - ext4 x rw\n2 1 9:9 / /x rw - ext4 gone rw\n");
    let found = guest.filesystems(|_| true, true);
    assert_eq!(found.len(), 1, "what has no device is not told");
    let address = &found[0]["disk"][0];
    assert_eq!((&address["bus-type"], &address["pci-controller"]["bus"]), (&json!("unknown"), &json!(-1)));
    assert!(fsinfo::read(&Bundle::default(), |_| true, true).is_err(), "no mount table");
    assert_eq!(disks::read(&Bundle::default()), []);
}

/// Paths that are read, and some of what may stand there.
const PATHS: &[&str] = &[
    MOUNTS,
    BLOCK_DEVICES,
    ATA_PORTS,
    "7:0",
    "/sys/class/block/a",
    "/sys/class/block/a/dev",
    "/sys/class/block/a/size",
    "/sys/class/block/a/slaves",
    "/sys/class/block/b",
    "/sys/class/block/b/dev",
    "/sys/class/block/b/slaves",
    "/sys/class/ata_port/ata1",
    "/sys/bus/pci/devices/0000:00:01.0/driver",
    "/run/udev/data/b7:0",
];
const TOLD: &[&str] = &[
    "a\0b\0",
    "ata1\0",
    "7:0\n",
    "0:0",
    "1 0 7:0 / / rw - ext4 /dev/a rw\n",
    "1 0 0:9 / / rw - btrfs /dev/b rw\n",
    "../devices/virtual/block/a",
    "../../devices/pci0000:00/0000:00:01.0/ata1/host0/target0:0:0/0:0:0:0/block/a/b",
    "../devices/pci/0000:00:01.0/ata4294967295/0:0:0:4294967295/",
    "devices/platform/virtio0/block/a",
    "drivers/ata_piix",
    "drivers/ahci",
    "drivers/virtio-pci",
    "E:ID_SERIAL=\nS:b\n",
    "4096 18446744073709551615 0 18446744073709551615",
    "\u{e9}\0/",
    "",
];

proptest! {
    /// Whatever is told, there is an answer that is JSON.
    #[test]
    fn any_bundle_has_an_answer(
        entries in proptest::collection::vec((0_u8..4, select(PATHS), select(TOLD), any::<bool>()), 0..40),
    ) {
        let mut gathered = Gathered::default();
        for (kind, path, told, cut) in entries {
            let kind = [Kind::Content, Kind::Link, Kind::Names, Kind::Space][usize::from(kind)];
            let told = &told.as_bytes()[usize::from(cut && !told.is_empty())..];
            prop_assert!(gathered.add(kind, path.as_bytes(), told));
        }
        let bundle = Bundle::read(gathered.bytes()).expect("a bundle");
        prop_assert!(list(&disks::read(&bundle)).len() <= 2);
        if let Ok(found) = fsinfo::read(&bundle, |_| true, true) {
            prop_assert!(list(&found).len() <= 1);
        }
    }
}
