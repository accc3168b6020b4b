//! What the guest's files say → what the host is told: every parser of facts.
//!
//! The first byte says which file the rest is; beyond those, the rest is what the
//! opener gathered, whole.

use std::time::{Duration, UNIX_EPOCH};

use postern_core::catalogue::facts::{BLOCK_DEVICES, MOUNTS};
use postern_core::ipc::bundle::{Bundle, Gathered, Kind};
use postern_worker::facts::{cpu, disks, diskstats, fsinfo, memory, os::OsInfo, timezone::Timezone, users};
use serde_json::Value;

use super::reply::json;

/// Where a file stands by itself, or beneath which name in which directory; of a
/// directory the names.
const GATHERED: [(&str, &str, Kind, &str); 13] = [
    ("", "", Kind::Content, "/etc/os-release"),
    ("", "", Kind::Content, "/etc/localtime"),
    ("", "", Kind::Content, "/run/utmp"),
    ("/run/systemd/sessions", "", Kind::Entry, ""),
    ("/run/systemd/sessions", "1", Kind::Content, ""),
    ("/sys/devices/system/cpu", "", Kind::Entry, ""),
    ("/sys/devices/system/memory", "", Kind::Entry, ""),
    ("/sys/devices/system/memory", "memory1", Kind::Content, "state"),
    (BLOCK_DEVICES, "a", Kind::Link, ""),
    (BLOCK_DEVICES, "a", Kind::Content, "/run/udev/data/b8:0"),
    (BLOCK_DEVICES, "a", Kind::Names, "slaves"),
    (MOUNTS, "a", Kind::Content, ""),
    (MOUNTS, "a", Kind::Space, ""),
];
/// What else is told of the device of that name.
const DISK: [(Kind, &str, &str); 4] = [
    (Kind::Link, "", "../../devices/pci0000:00/0000:00:1f.2/ata3/host7/target7:0:0/7:0:0:0/block/a"),
    (Kind::Link, "/sys/devices/pci0000:00/0000:00:1f.2/driver", "../../../bus/pci/drivers/ahci"),
    (Kind::Names, "/sys/devices/pci0000:00/0000:00:1f.2", "ata1\0ata2\0ata3\0"),
    (Kind::Content, "dm/name", "x\n"),
];

/// Takes an input.
///
/// # Panics
/// Where a reply is no JSON, says of a number that it is something else, is out of
/// proportion to the file, or is another one when it is made again.
pub fn run(input: &[u8]) {
    let Some((&which, bytes)) = input.split_first() else { return };
    match which {
        b'0' => each(&cpu::stats(bytes), bytes, "cpu"),
        b'1' => each(&diskstats::stats(bytes), bytes, "minor"),
        b':' => {
            if let Some(info) = memory::block_info(bytes) {
                assert!(json(&info, bytes)["size"].is_u64());
            }
        }
        b';' => lists(bytes),
        which => {
            let place = if which < b'a' { which.wrapping_sub(b'2') } else { which - b'a' + 8 };
            if let Some(place) = GATHERED.get(usize::from(place)) {
                let gathered = gathered(place, bytes);
                all(&Bundle::read(gathered.bytes()).expect("it was made here"), gathered.bytes());
            } else if let Ok(bundle) = Bundle::read(bytes) {
                all(&bundle, bytes);
            }
        }
    }
}

fn gathered((directory, name, kind, path): &(&str, &str, Kind, &str), bytes: &[u8]) -> Gathered {
    let mut gathered = Gathered::default();
    let mut add = |kind, path: &[u8], told: &[u8]| assert!(gathered.add(kind, path, told));
    if !directory.is_empty() {
        add(Kind::Directory, directory.as_bytes(), b"");
    }
    if *kind == Kind::Entry {
        bytes.split(|byte| *byte == 0).for_each(|name| add(Kind::Entry, &name[..name.len().min(300)], b""));
        return gathered;
    }
    if !name.is_empty() {
        add(Kind::Entry, name.as_bytes(), b"");
    }
    add(*kind, path.as_bytes(), bytes);
    if *directory == BLOCK_DEVICES {
        for (kind, path, told) in DISK {
            add(kind, path.as_bytes(), told.as_bytes());
        }
        add(Kind::Directory, MOUNTS.as_bytes(), b"");
        add(Kind::Entry, name.as_bytes(), b"");
        add(Kind::Content, b"", b"1 0 8:0 / /m rw - ext4 /dev/a rw");
    }
    gathered
}

fn all(bundle: &Bundle<'_>, bytes: &[u8]) {
    let info = OsInfo::of_release(bundle);
    let whole = json(&info, bytes);
    let whole = whole.as_object().expect("an object");
    assert!(whole.values().all(Value::is_string));
    let reduced = json(&info.reduced(), bytes);
    assert!(reduced.as_object().expect("an object").iter().all(|(key, id)| key == "id" && whole.get(key) == Some(id)));

    for year in [0, 30, 56, 10_000] {
        let zone = json(&Timezone::read(bundle, UNIX_EPOCH + Duration::from_secs(year * 31_556_952)), bytes);
        let offset = zone["offset"].as_i64().expect("a whole number");
        // RFC 9636: not even a day and two hours.
        assert!(offset.abs() < 26 * 3600 && zone["zone"].is_string(), "{zone}");
    }

    let users = users::users(bundle);
    each(&users, bytes, "login-time");
    for user in json(&users, bytes).as_array().expect("a list") {
        assert!(user["user"].is_string() && user["login-time"].as_f64().is_some_and(|time| time >= 0.0), "{user}");
    }
    if let Ok(vcpus) = cpu::vcpus(bundle) {
        each(&vcpus, bytes, "logical-id");
    }
    if let Ok(blocks) = memory::blocks(bundle) {
        each(&blocks, bytes, "phys-index");
    }
    let disks = disks::read(bundle);
    for disk in json(&disks, bytes).as_array().expect("a list") {
        assert!(
            disk["name"].is_string() && disk["partition"].is_boolean() && disk["dependencies"].is_array(),
            "{disk}"
        );
    }
    if let Ok(filesystems) = fsinfo::read(bundle) {
        filesystems_of(&serde_json::to_value(&filesystems).expect("JSON"));
    }
}

/// Lists of processors: of two that are known, the one that can be switched off is on
/// or not as the list says.
fn lists(bytes: &[u8]) {
    let mut gathered = Gathered::default();
    for (kind, path, told) in [
        (Kind::Directory, GATHERED[5].0, &b""[..]),
        (Kind::Entry, "cpu0", b""),
        (Kind::Entry, "cpu1", b""),
        (Kind::Content, "online", b"1"),
    ] {
        assert!(gathered.add(kind, path.as_bytes(), told));
    }
    let vcpus = cpu::vcpus(&Bundle::read(gathered.bytes()).expect("it was made here")).expect("two");
    let lists = [Some(b"0-1\n".to_vec()), Some(bytes.to_vec())];
    let known = cpu::Known::new(lists.clone(), vcpus);
    if let Some(now) = known.now(&lists) {
        let now = json(&now, bytes);
        assert!(now[0]["online"] == true && now[1]["online"].is_boolean() && now[1]["can-offline"] == true, "{now}");
    }
}

/// Each has its disks, which are as many as are looked at for all of them, at most.
fn filesystems_of(told: &Value) {
    let told = told.as_array().expect("a list");
    let mut disks = 0;
    for one in told {
        assert!(["name", "mountpoint", "type"].iter().all(|member| one[member].is_string()), "{one}");
        let numbers = ["used-bytes", "total-bytes", "total-bytes-privileged"].map(|member| one.get(member));
        assert!(numbers.iter().all(|number| number.is_some_and(Value::is_u64)) || numbers == [None; 3], "{one}");
        let of = one["disk"].as_array().expect("a list");
        disks += of.len();
        for disk in of {
            assert!(disk["bus-type"].is_string() && disk["pci-controller"]["slot"].is_i64(), "{disk}");
            assert!(disk["serial"].as_str().is_none_or(|serial| serial.len() <= 512), "{disk}");
        }
    }
    assert!(disks <= 1 << 16, "{disks}");
}

/// Every entry of a list has this member, and it is a number.
fn each(list: &impl serde::Serialize, bytes: &[u8], number: &str) {
    for entry in json(list, bytes).as_array().expect("a list") {
        assert!(entry[number].is_number(), "{entry}");
    }
}
