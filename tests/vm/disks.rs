//! A guest with disks of many kinds: what postern tells of them is what Debian 12's
//! stock agent tells in the same guest. Virtio, SCSI, IDE, SATA, `NVMe`; partitions, LVM,
//! md, loop, btrfs over two disks, a bind mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::guests::{self, LINUX_6_12, Userland};
use crate::machine::{Machine, Setup};
use crate::postern::{ACCOUNTS, START};
use crate::support::agent::Host;
use crate::support::runner::Test;

pub(crate) fn tests() -> Vec<Test> {
    // It takes a minute and more.
    let test: Test = ("disks_are_told_as_stock_tells_them", disks_are_told_as_stock_tells_them);
    crate::everything().then_some(test).into_iter().collect()
}

const POLICY: &str = r#"version = 1
profile = "minimal"
[commands]
allow = ["guest-get-fsinfo", "guest-get-disks"]
"#;

/// LVM and md, with what the userland does not have of what they need.
const PACKAGES: [&str; 7] = ["libaio1", "libbsd0", "libdevmapper-event1.02.1", "libedit2", "dmsetup", "lvm2", "mdadm"];

/// Name, MiB, and QEMU's device.
const DISKS: [(&str, u64, &str); 12] = [
    ("parts", 96, "virtio-blk-pci,serial=PARTS"),
    ("volume", 64, "virtio-blk-pci"),
    ("mirror-a", 48, "virtio-blk-pci,bus=bridge,addr=3"),
    ("mirror-b", 48, "virtio-blk-pci,bus=bridge,addr=5,serial=MIRROR-B"),
    ("tree-a", 160, "virtio-blk-pci"),
    ("tree-b", 160, "virtio-blk-pci"),
    ("scsi-a", 32, "scsi-hd,bus=scsi.0,scsi-id=2,lun=3,serial=SCSI-A"),
    ("scsi-b", 32, "scsi-hd,bus=scsi.0,scsi-id=5,lun=0"),
    ("nvme", 32, "nvme,serial=NVME"),
    ("ide", 32, "ide-hd,bus=ide.1,unit=1,serial=IDE"),
    ("sata-a", 32, "ide-hd,bus=ahci.2,serial=SATA"),
    ("sata-b", 32, "ide-hd,bus=ahci.4"),
];

/// Sets the scene. Virtio disks are known by their size: which letter the kernel gives
/// which is its affair.
const SCENE: &str = r"
set -e
while read -r module; do
    # Some is there already, and some for other processors.
    insmod /root/more/$module 2>/dev/null || true
done </root/more/order
export DEBIAN_FRONTEND=noninteractive DM_DISABLE_UDEV=1 PATH=$PATH:/usr/sbin:/sbin
dpkg --unpack --force-depends /root/debs/*.deb >/dev/null 2>&1
udevadm settle
disk() { mkdir -p /m/$2; mkfs.ext4 -q -F $1; mount $1 /m/$2; }
sized() { for at in /sys/block/vd*; do test $(cat $at/size) != $(($1 * 2048)) || echo /dev/${at##*/}; done; }
parts=$(sized 96) volume=$(sized 64) mirrors=$(sized 48) trees=$(sized 160)
disk ${parts}1 parts
pvcreate -qy ${parts}2 $volume
vgcreate -qy group-0 ${parts}2 $volume
lvcreate -qy -Zn -L 40M -n one group-0
lvcreate -qy -Zn -L 24M -n two group-0 $volume
vgmknodes
disk /dev/group-0/one one
disk /dev/group-0/two two
mdadm --quiet --create /dev/md0 --run --level=1 --metadata=1.2 --raid-devices=2 $mirrors
disk /dev/md0 mirror
truncate -s 32M /root/image
disk $(losetup --find --show /root/image) loop
mkdir -p /m/tree /m/bound
set -- $trees
mount -t btrfs -o device=$1,device=$2 $1 /m/tree
mount --bind /m/parts/lost+found /m/bound
for name in sda sdb sdc sdd sde nvme0n1; do disk /dev/$name $name; done
udevadm settle
sync
lsblk -o NAME,SIZE,TYPE,MOUNTPOINT
";

/// Two partitions of type Linux: 20 MiB, and the rest of `sectors`.
fn partition(image: &Path, sectors: u32) {
    let entry = |start: u32, count: u32| {
        [&[0, 0, 0, 0, 0x83, 0, 0, 0][..], &start.to_le_bytes(), &count.to_le_bytes()].concat()
    };
    let first = 20 * 2048;
    let table =
        [entry(2048, first), entry(2048 + first, sectors - first - 2048), vec![0; 32], vec![0x55, 0xaa]].concat();
    let mut disk = File::options().write(true).open(image).expect("the disk");
    disk.seek(SeekFrom::Start(446)).expect("its first sector");
    disk.write_all(&table).expect("a partition table");
}

/// Makes the disks; QEMU's arguments for them.
fn disks(directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(format!("{name}.img"));
    for (name, mebibytes, _) in DISKS {
        File::create(path(name)).and_then(|disk| disk.set_len(mebibytes << 20)).expect("a disk");
    }
    partition(&path("parts"), 96 * 2048);
    let made = Command::new("mkfs.btrfs").arg("-q").args([path("tree-a"), path("tree-b")]).status();
    assert!(made.expect("mkfs.btrfs").success());
    let buses = ["pci-bridge,id=bridge,chassis_nr=1", "virtio-scsi-pci,id=scsi", "ahci,id=ahci"];
    let mut arguments: Vec<String> = buses.iter().flat_map(|bus| ["-device", bus]).map(str::to_owned).collect();
    for (name, _, device) in DISKS {
        let drive = format!("if=none,id={name},format=raw,file={}", path(name).display());
        let (kind, rest) = device.split_once(',').unwrap_or((device, "id=x"));
        let rest = if rest == "id=x" { String::new() } else { format!(",{rest}") };
        arguments.extend(["-drive".to_owned(), drive, "-device".to_owned(), format!("{kind},drive={name}{rest}")]);
    }
    arguments
}

fn setup(directory: &Path) -> Setup {
    let arguments = disks(directory);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut setup =
        Setup::new(LINUX_6_12, Userland::Systemd).with_postern(POLICY).with_stock().with_devices(&arguments);
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let modules = guests::kernel(LINUX_6_12).join("more");
    for entry in std::fs::read_dir(modules).expect("more modules").flatten() {
        let name = entry.file_name().into_string().expect("a module's name");
        setup = setup.file(&format!("/root/more/{name}"), read(&entry.path()), 0o644);
    }
    for package in PACKAGES {
        let deb: PathBuf = guests::debian(package);
        setup = setup.file(&format!("/root/debs/{package}.deb"), read(&deb), 0o644);
    }
    setup
}

fn told(host: &mut Host, command: &str) -> Vec<Value> {
    let told = host.returns(command, &Value::Null);
    told.as_array().expect("a list").clone()
}

/// By their names; of two with one name the later, which stock has of the mountpoint
/// that was first.
fn by_name(list: Vec<Value>, without: &[&str]) -> BTreeMap<String, Value> {
    let one = |mut value: Value| {
        let members = value.as_object_mut().expect("an object");
        members.retain(|name, _| !without.contains(&name.as_str()));
        // The kernel's list of what a device is made of has no order of its own.
        for list in ["disk", "dependencies"] {
            if let Some(list) = members.get_mut(list).and_then(Value::as_array_mut) {
                list.sort_by_key(Value::to_string);
            }
        }
        (value["name"].as_str().expect("a name").to_owned(), value)
    };
    list.into_iter().map(one).collect()
}

fn disks_are_told_as_stock_tells_them() {
    // What no stock of this release tells, and what takes a command to the device.
    const OTHERS: &[&str] = &["total-bytes-privileged", "smart"];
    let directory = tempfile::Builder::new().prefix("postern-disks-").tempdir().expect("a temporary directory");
    let mut setup = setup(directory.path());
    setup.memory = 768;
    let mut machine = Machine::boot(&setup);
    println!("{}", machine.sh(SCENE));
    machine.sh_eventually("systemctl is-active qemu-guest-agent");
    let ask = |host: &mut Host| ["guest-get-fsinfo", "guest-get-disks"].map(|command| told(host, command));
    let stock = {
        let mut host = machine.host();
        ask(&mut host)
    };
    machine.sh("systemctl stop qemu-guest-agent");
    machine.sh(ACCOUNTS);
    machine.sh(START);
    let mut host = machine.host();
    host.ping();
    let ours = ask(&mut host);
    let mounted: Vec<&str> = ours[0].iter().filter_map(|one| one["mountpoint"].as_str()).collect();
    for (stock, ours) in stock.into_iter().zip(ours.clone()) {
        let [stock, mut ours] = [stock, ours].map(|list| by_name(list, OTHERS));
        assert!(stock.len() > 10, "{stock:?}");
        if let Some(root) = ours.get_mut("vda").filter(|one| one["mountpoint"] == "/") {
            // postern's own log is there.
            root["used-bytes"] = stock["vda"]["used-bytes"].clone();
            root["total-bytes"] = stock["vda"]["total-bytes"].clone();
        }
        for (name, one) in &stock {
            assert_eq!(ours.get(name), Some(one), "{name}");
        }
        assert_eq!(ours.len(), stock.len(), "{ours:#?}");
    }
    let names: Vec<&str> = ours[1].iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["/dev/dm-1", "/dev/dm-0", "/dev/md0", "/dev/loop0", "/dev/nvme0n1", "/dev/sde"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    machine.note(&format!("{} filesystems and {} disks as stock has them", mounted.len(), names.len()));
}
