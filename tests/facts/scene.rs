//! The machine that is asked about: a cell (`support::cell`) with a network of its own,
//! scratch disks, and the files of /etc and /run that a userland has.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::support::disk::{Disk, Mounted, one_of_each};

/// Interfaces that a kernel can be without; the others every one has.
pub(crate) const OPTIONAL: &[(&str, &str)] = &[
    ("dummy", "link add dummy0 type dummy"),
    ("vlan", "link add link left name left.7 type vlan id 7"),
    ("macvlan", "link add link left name mac0 type macvlan"),
];

/// A veth pair, one end in a bridge; addresses of every kind; routes.
pub(crate) const NETWORK: &str = "\
link set lo up
link add left address 02:00:00:00:00:01 type veth peer name right address 02:00:00:00:00:02
link add bridge0 address 02:00:00:00:00:03 type bridge
link set right master bridge0
link set left up
link set right up
link set bridge0 up
address add 192.0.2.2/24 dev left
address add 192.0.2.3/24 dev left
address add 198.51.100.1/30 dev left
address add 203.0.113.1 peer 203.0.113.9/32 dev left
address add 2001:db8:1::2/64 dev left nodad
address add 2001:db8:1::3/128 dev left nodad
address add fd00:7::1/48 dev bridge0 nodad
address add 10.7.0.1/16 dev bridge0
route add default via 192.0.2.1 dev left metric 100
route add 10.8.0.0/16 via 192.0.2.9 dev left
route add 10.9.0.0/20 dev bridge0 metric 7 mtu 1400
route add 10.10.0.7/32 via 10.7.0.9 src 10.7.0.1
route add 10.11.0.0/16 dev left window 4096 rtt 300ms
route add unreachable 10.66.0.0/16
route add default via 2001:db8:1::1 dev left metric 512
route add 2001:db8:9::/48 via fd00:7::9 dev bridge0
route add 2001:db8:a::/48 dev bridge0 metric 77
route add unreachable 2001:db8:66::/48
";

/// Central Europe's time, as zic(8) would write it without any past.
pub(crate) fn zone() -> Vec<u8> {
    // Two headers, of version 1 and 2: no transition, one kind of time, four letters.
    let header = [&b"TZif2"[..], &[0; 15], &[0; 12], &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4]].concat();
    let kind = [&3600_u32.to_be_bytes()[..], &[0, 0], b"CET\0"].concat();
    [&header, &kind, &header, &kind, &b"\nCET-1CEST,M3.5.0,M10.5.0/3\n"[..]].concat()
}

pub(crate) const RELEASE: &str = r#"# A comment
PRETTY_NAME="Guest \"of\" a test 7 (seven)"
NAME='Guest of a test'
VERSION_ID=7
VERSION="7 (seven)"
ID=guest
VARIANT="Server \$ \\ edition"
VARIANT_ID=server
HOME_URL="https://example.org/"
"#;

/// One line of utmp(5), of `x86_64` and aarch64.
fn entry(kind: i16, user: &str, line: &str, seconds: u32, micros: u32) -> Vec<u8> {
    let mut entry = vec![0; 384];
    let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &kind.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(8, line.as_bytes());
    put(44, user.as_bytes());
    // The 64-bit aarch64 has wider times behind the same fields.
    let (wide, at) = if cfg!(target_arch = "aarch64") { (8, 344) } else { (4, 340) };
    put(at, &seconds.to_le_bytes());
    put(at + wide, &micros.to_le_bytes());
    entry
}

/// The same with a host that it comes from, in the field behind the user's name.
fn from_elsewhere(mut entry: Vec<u8>) -> Vec<u8> {
    entry[76..80].copy_from_slice(b"host");
    entry
}

pub(crate) fn users() -> Vec<u8> {
    const BOOT: i16 = 2;
    const USER: i16 = 7;
    const DEAD: i16 = 8;
    [
        entry(BOOT, "reboot", "~", 1_700_000_000, 0),
        entry(USER, "root", "tty1", 1_700_000_300, 500_000),
        entry(USER, "alice", "pts/0", 1_700_000_200, 250_000),
        // Twice there: since the earlier time.
        entry(USER, "alice", "pts/1", 1_700_000_100, 750_000),
        entry(DEAD, "bob", "pts/2", 1_700_000_000, 0),
        from_elsewhere(entry(USER, "a-name-as-long-as-its-utmp-field", "pts/3", 1_700_000_400, 0)),
    ]
    .concat()
}

/// What has to stay for the scene to stay.
pub(crate) struct Scene {
    _mounts: Vec<Mounted>,
    _disks: [Disk; 3],
}

/// Sets it up, in a cell. Needs the programs `ip`, `losetup` and three of mkfs.
pub(crate) fn set_up() -> Scene {
    network();
    files();
    let (disks, mut mounts) = one_of_each();
    // The same filesystem twice, once as one of its directories.
    fs::create_dir("/a/below").expect("a directory");
    mounts.push(Mounted::bind(Path::new("/a/below"), Path::new("/mnt")));
    fs::write("/b/file", vec![1; 1 << 20]).expect("a file");
    Scene { _mounts: mounts, _disks: disks }
}

fn network() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS).expect("namespaces");
    // sysfs shows the network of who mounted it.
    let none: Option<&str> = None;
    umount2("/sys", MntFlags::MNT_DETACH).expect("the other network's sysfs");
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("sysfs");
    fs::write("/proc/sys/kernel/hostname", "guest.example.org").expect("a host name");
    let ip = |lines: &str| {
        let mut ip = Command::new("/bin/ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
        ip.stdin.take().expect("its input").write_all(lines.as_bytes()).expect("lines");
        ip.wait().expect("its end").success()
    };
    assert!(ip(NETWORK), "ip took it all");
    for (kind, line) in OPTIONAL {
        let there = Command::new("/bin/ip").args(line.split(' ')).stderr(Stdio::null()).status().expect("ip").success();
        println!("    {kind}: {}", if there { "there" } else { "NOT THERE: this kernel has none" });
    }
}

/// What a userland has in files: without the rest of the scene it needs no program.
pub(crate) fn files() {
    for directory in ["/etc", "/var", "/usr/share/zoneinfo/Europe", "/run"] {
        fs::create_dir_all(directory).expect("a directory");
    }
    fs::write("/etc/os-release", RELEASE).expect("a file");
    fs::write("/usr/share/zoneinfo/Europe/Berlin", zone()).expect("a file");
    symlink("/usr/share/zoneinfo/Europe/Berlin", "/etc/localtime").expect("a link");
    fs::write("/run/utmp", users()).expect("a file");
    symlink("/run", "/var/run").expect("a link");
    // What udev notes of disks, those of the machine's that are no loop device.
    fs::create_dir_all("/run/udev/data").expect("a directory");
    for disk in fs::read_dir("/sys/block").expect("/sys/block").flatten() {
        let number = fs::read_to_string(disk.path().join("dev")).unwrap_or_default();
        if !number.starts_with("7:") {
            let noted = "I:1000000\nE:ID_SERIAL=noted-by-udev\nV:1\n";
            fs::write(format!("/run/udev/data/b{}", number.trim()), noted).expect("a file");
        }
    }
}

/// `/etc/localtime` is no link.
pub(crate) fn zone_in_place() {
    fs::remove_file("/etc/localtime").expect("a link");
    fs::write("/etc/localtime", zone()).expect("a file");
}

/// The distribution says who it is below `/usr` alone.
pub(crate) fn release_below_usr() {
    fs::create_dir_all("/usr/lib").expect("a directory");
    fs::rename("/etc/os-release", "/usr/lib/os-release").expect("a file");
}

/// logind knows who is logged in, and utmp is gone.
pub(crate) fn sessions_of_logind() {
    fs::remove_file("/run/utmp").expect("a file");
    fs::create_dir_all("/run/systemd/sessions").expect("a directory");
    let session =
        "UID=0\nUSER=root\nACTIVE=1\nSTATE=active\nREMOTE=0\nTYPE=tty\nCLASS=user\nREALTIME=1700000000000000\n";
    fs::write("/run/systemd/sessions/1", session).expect("a file");
}
