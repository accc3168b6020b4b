//! Disks of many kinds for a guest: virtio, SCSI, IDE, SATA, `NVMe`; partitions, btrfs
//! over two disks, a loop device, a bind mount, and where the userland has what it
//! takes LVM and md. Filesystems are made here, what lies on several disks in there.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

/// LVM and md, with what the userland does not have of what they need.
pub(crate) const PACKAGES: [&str; 8] =
    ["libdevmapper1.02.1", "libaio1", "libbsd0", "libdevmapper-event1.02.1", "libedit2", "dmsetup", "lvm2", "mdadm"];

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

/// Mounts them. Virtio disks are known by their size: which letter the kernel gives which
/// is its affair.
pub(crate) const SCENE: &str = r"
disk() { mkdir -p /m/$2; mount -t ext4 $1 /m/$2; }
sized() { for at in /sys/block/vd*; do test $(cat $at/size) != $(($1 * 2048)) || echo /dev/${at##*/}; done; }
parts=$(sized 96) volume=$(sized 64) mirrors=$(sized 48) trees=$(sized 160)
disk ${parts}1 parts
loop=$(losetup -f)
losetup $loop /root/image
disk $loop loop
mkdir -p /m/tree /mnt
set -- $trees
mount -t btrfs -o device=$1,device=$2 $1 /m/tree
mount -o bind /m/parts/lost+found /mnt
for name in sda sdb sdc sdd sde nvme0n1; do disk /dev/$name $name; done
";

/// Besides, with the files of [`PACKAGES`].
pub(crate) const VOLUMES: &str = r"
export DM_DISABLE_UDEV=1
made() { mkfs.ext4 -q -F $1; disk $1 $2; }
pvcreate -qy ${parts}2 $volume
vgcreate -qy group-0 ${parts}2 $volume
lvcreate -qy -Zn -L 40M -n one group-0
lvcreate -qy -Zn -L 24M -n two group-0 $volume
vgmknodes
made /dev/group-0/one one
made /dev/group-0/two two
mdadm --quiet --create /dev/md0 --run --level=1 --metadata=1.2 --raid-devices=2 $mirrors
made /dev/md0 mirror
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

/// An ext4 of `mebibytes` in a file, from `offset` on.
fn ext4(image: &Path, offset: u64, mebibytes: u64) {
    let offset = format!("lazy_itable_init=0,offset={offset}");
    let made =
        Command::new("mkfs.ext4").args(["-q", "-F", "-E", &offset]).arg(image).arg(format!("{mebibytes}M")).status();
    assert!(made.expect("mkfs.ext4").success());
}

/// The image that the guest has as `/root/image`.
pub(crate) fn image(directory: &Path) -> Vec<u8> {
    let path = directory.join("image");
    File::create(&path).and_then(|image| image.set_len(8 << 20)).expect("an image");
    ext4(&path, 0, 8);
    std::fs::read(&path).expect("an image")
}

/// Makes the disks; QEMU's arguments for them.
pub(crate) fn disks(directory: &Path) -> Vec<String> {
    let path = |name: &str| directory.join(format!("{name}.img"));
    for (name, mebibytes, _) in DISKS {
        File::create(path(name)).and_then(|disk| disk.set_len(mebibytes << 20)).expect("a disk");
    }
    partition(&path("parts"), 96 * 2048);
    ext4(&path("parts"), 1 << 20, 20);
    for (name, mebibytes, _) in DISKS.iter().filter(|disk| !disk.2.starts_with("virtio")) {
        ext4(&path(name), 0, *mebibytes);
    }
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
