//! Guests as they were found, for tests: what the kernel and udev had in machines of
//! QEMU's, and what the stock agent answered there, each in a small table.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use postern_core::catalogue::facts::{BLOCK_DEVICES, MOUNTS, UDEV};
use postern_core::ipc::bundle::{Bundle, Gathered, Kind};
use serde_json::{Value, json};

use super::{FactError, disks, fsinfo};

/// A guest: what was gathered of it, and stock's answers by command.
#[derive(Default)]
struct Guest {
    disks: Vec<Found>,
    drivers: BTreeMap<String, String>,
    ports: Vec<String>,
    mounts: Vec<String>,
    spaces: BTreeMap<String, String>,
    stock: BTreeMap<String, Vec<Value>>,
}

/// A block device.
struct Found {
    name: String,
    number: String,
    place: String,
    more: BTreeMap<String, String>,
}

impl Guest {
    fn read(table: &str) -> Self {
        let mut guest = Self::default();
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let (what, rest) = line.split_once(' ').expect("a line says what it is");
            match what {
                "block" => guest.block(&rest.split(' ').collect::<Vec<_>>()),
                "pci" => guest.drivers.extend(rest.split_once(' ').map(|(at, name)| (at.to_owned(), name.to_owned()))),
                "ata" => guest.ports.push(rest.split_once("/ata_port").expect("a port").0.to_owned()),
                "mount" => guest.mounts.push(rest.to_owned()),
                "space" => {
                    guest.spaces.extend(rest.split_once(' ').map(|(of, space)| (of.to_owned(), space.to_owned())));
                }
                command => {
                    let answer = serde_json::from_str(rest).expect("JSON");
                    guest.stock.entry(command.to_owned()).or_default().push(answer);
                }
            }
        }
        guest
    }

    fn block(&mut self, words: &[&str]) {
        let [name, number, size, place, more @ ..] = words else { panic!("{words:?}") };
        let [name, number, place] = [name, number, place].map(|word| (*word).to_owned());
        let more = more.iter().filter_map(|word| word.split_once('='));
        let more = more.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        // What the opener leaves out.
        if *size != "0" && number != "-" {
            self.disks.push(Found { name, number, place, more });
        }
    }

    /// What the opener makes of all disks.
    fn disks(&self) -> Gathered {
        let mut gathered = Gathered::default();
        let mut add = |kind, path: &str, told: &str| assert!(gathered.add(kind, path.as_bytes(), told.as_bytes()));
        add(Kind::Directory, BLOCK_DEVICES, "");
        for disk in &self.disks {
            add(Kind::Entry, &disk.name, "");
            add(Kind::Link, "", &format!("../../devices/{}", disk.place));
            let slaves = disk.more.get("slaves").map(|names| names.replace(',', "\0") + "\0");
            add(Kind::Names, "slaves", &slaves.unwrap_or_default());
            if let Some(alias) = disk.more.get("alias") {
                add(Kind::Content, "dm/name", &format!("{alias}\n"));
            }
            let mut controllers = disk.place.split('/').filter_map(|part| Some((part, self.drivers.get(part)?)));
            if let Some((controller, driver)) = controllers.next_back() {
                let (before, _) = disk.place.split_once(controller).expect("it is in there");
                let at = format!("/sys/devices/{before}{controller}");
                add(Kind::Link, &format!("{at}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
                let beside = format!("{before}{controller}/");
                let names: String = self
                    .ports
                    .iter()
                    .filter_map(|port| port.strip_prefix(&beside))
                    .flat_map(|name| [name, "\0"])
                    .collect();
                add(Kind::Names, &at, &format!("power\0{names}driver\0"));
            }
            if let Some(serial) = disk.more.get("serial") {
                let noted =
                    format!("S:disk/by-id/{}\nI:123456\nE:ID_BUS=x\nE:ID_SERIAL={serial}\nG:systemd\n", disk.name);
                add(Kind::Content, &format!("{UDEV}/b{}", disk.number), &noted);
            }
        }
        gathered
    }

    /// What the opener makes of filesystems at these mountpoints.
    fn mounted(&self, shows: impl Fn(&str) -> bool, disks: bool) -> Gathered {
        let mut gathered = if disks { self.disks() } else { Gathered::default() };
        let mut add = |kind, path: &str, told: &str| assert!(gathered.add(kind, path.as_bytes(), told.as_bytes()));
        add(Kind::Directory, MOUNTS, "");
        let mut told = Vec::new();
        for line in &self.mounts {
            let words: Vec<&str> = line.split(' ').collect();
            let (number, source) = (words[2], words[words.len() - 2].strip_prefix("/dev/"));
            let of = |disk: &&Found| {
                disk.number == number || line.contains(" - btrfs ") && source == Some(disk.name.as_str())
            };
            let Some(disk) = self.disks.iter().find(of).filter(|_| shows(words[4]) && !told.contains(&number)) else {
                continue;
            };
            told.push(number);
            add(Kind::Entry, &disk.name, "");
            add(Kind::Content, "", line);
            if let Some(space) = self.spaces.get(number) {
                add(Kind::Space, "", space);
            }
        }
        gathered
    }

    fn filesystems(&self, shows: impl Fn(&str) -> bool, disks: bool) -> Vec<Value> {
        let gathered = self.mounted(shows, disks);
        list(&fsinfo::read(&Bundle::read(gathered.bytes()).expect("a bundle")).expect("a mount table"))
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
        let (stock, ours) =
            (&guest.stock["disks"], list(&disks::read(&Bundle::read(guest.disks().bytes()).expect("a bundle"))));
        assert_eq!(ours.len(), stock.len(), "{name}");
        for (disk, ours) in by_name(&ours) {
            assert_eq!(Some(&ours), by_name(stock).get(&disk), "{name}");
        }
    }
}

#[test]
fn a_redacted_answer_has_no_disks() {
    for (name, guest) in guests() {
        let filesystems = guest.filesystems(|path| ["/m/loop", "/"].contains(&path), false);
        assert!(filesystems.iter().all(|one| one["disk"] == json!([])), "{name}");
        assert!(filesystems.iter().any(|one| one["mountpoint"] == "/"), "{name}");
        assert!(filesystems.len() <= 2, "{name}");
    }
}

/// What no kernel says costs no more than its size, and hangs nothing.
#[test]
fn devices_made_of_themselves_and_of_nothing_end() {
    let mut guest = Guest::default();
    guest.block(&["dm-0", "253:0", "9", "virtual/block/dm-0", "slaves=dm-1,dm-0,dm-1"]);
    guest.block(&["dm-1", "253:1", "9", "virtual/block/dm-1", "slaves=dm-0,dm-1,gone,cciss!c0d0"]);
    guest.block(&["cciss!c0d0", "8:0", "9", "pci0000:00/block/cciss!c0d0"]);
    guest.mounts.push("1 0 253:0 / /with\\040space rw - ext4 x rw".to_owned());
    let gathered = guest.mounted(|_| true, true);
    let told = fsinfo::read(&Bundle::read(gathered.bytes()).expect("a bundle"));
    assert_eq!(told, Err(FactError::TooManyDisks), "a circle, which no kernel makes");
    guest.disks[1].more.insert("slaves".to_owned(), "gone,cciss!c0d0,cciss!c0d0".to_owned());
    guest.disks[0].more.insert("slaves".to_owned(), "dm-1,dm-1".to_owned());
    let found = guest.filesystems(|_| true, true);
    assert_eq!(found[0]["disk"].as_array().map(Vec::len), Some(4), "as often as ways lead to it");
    assert_eq!((found.len(), &found[0]["mountpoint"]), (1, &json!("/with space")));
    let address = &found[0]["disk"][0];
    assert_eq!((&address["bus-type"], &address["pci-controller"]["bus"]), (&json!("unknown"), &json!(-1)));
    assert_eq!(address["dev"], "/dev/cciss/c0d0");
    assert!(fsinfo::read(&Bundle::default()).is_err(), "no mount table");
    assert_eq!(disks::read(&Bundle::default()), []);
}

/// As many as no guest has, each on all others: time grows as they do.
#[test]
fn many_disks_and_filesystems_are_told() {
    const COUNT: usize = 4000;
    let mut guest = Guest::default();
    for at in 0..COUNT {
        guest.block(&[&format!("sd{at}"), &format!("8:{at}"), "9", &format!("pci0000:00/0000:00:01.0/block/sd{at}")]);
        guest.block(&[
            &format!("sd{at}p"),
            &format!("9:{at}"),
            "9",
            &format!("pci0000:00/0000:00:01.0/block/sd{at}/sd{at}p"),
        ]);
    }
    let mut gathered = guest.disks();
    assert!(gathered.add(Kind::Directory, MOUNTS.as_bytes(), b""));
    for at in 0..COUNT {
        assert!(gathered.add(Kind::Entry, format!("sd{at}p").as_bytes(), b""));
        assert!(gathered.add(Kind::Content, b"", format!("{at} 1 9:{at} / /m/{at} rw - ext4 x rw").as_bytes()));
    }
    let bundle = Bundle::read(gathered.bytes()).expect("a bundle");
    let told = fsinfo::read(&bundle).expect("filesystems");
    assert_eq!(list(&told)[0]["disk"][0]["dev"], format!("/dev/sd{}p", COUNT - 1));
    assert_eq!((told.len(), disks::read(&bundle).len()), (COUNT, 2 * COUNT));
}

/// Paths that are read, and some of what may stand there.
const PATHS: &[&str] = &[
    MOUNTS,
    BLOCK_DEVICES,
    "",
    "a",
    "b",
    "slaves",
    "dm/name",
    "/sys/devices/pci0000:00/0000:00:01.0/driver",
    "/sys/devices/pci0000:00/0000:00:01.0",
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
        entries in proptest::collection::vec((0_u8..6, select(PATHS), select(TOLD), any::<bool>()), 0..40),
    ) {
        let mut gathered = Gathered::default();
        for (kind, path, told, cut) in entries {
            let kinds = [Kind::Content, Kind::Link, Kind::Names, Kind::Space, Kind::Directory, Kind::Entry];
            let told = &told.as_bytes()[usize::from(cut && !told.is_empty())..];
            prop_assert!(gathered.add(kinds[usize::from(kind)], path.as_bytes(), told));
        }
        let bundle = Bundle::read(gathered.bytes()).expect("a bundle");
        prop_assert!(list(&disks::read(&bundle)).len() <= 40);
        if let Ok(found) = fsinfo::read(&bundle) {
            prop_assert!(list(&found).len() <= 40);
        }
    }
}
