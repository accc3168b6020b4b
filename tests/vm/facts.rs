//! postern beside stock in guests: every command that only reads, by the comparison of
//! `tests/facts`, with disks and interfaces of many kinds and somebody logged in. And a
//! dead NFS server, which nobody asks.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::disks::{self, PACKAGES, SCENE, VOLUMES};
use crate::guests::{self, LINUX_6_12, Userland};
use crate::intended::Place;
use crate::machine::{Machine, Setup};
use crate::postern::{ACCOUNTS, START};
use crate::scene::{NETWORK, OPTIONAL, RELEASE, users, zone};
use crate::support::agent::Host;
use crate::support::cell;
use crate::support::runner::Test;
use crate::verdict::Column;
use crate::{agents, nfs, table};

pub(crate) fn tests() -> Vec<Test> {
    /// As many of the first.
    const QUICK: usize = 2;
    let tests: [Test; 4] = [
        ("facts_are_told_beside_stock_systemd", || told_beside(Place::Systemd)),
        ("a_dead_nfs_server_is_not_asked", a_dead_nfs_server_is_not_asked),
        ("facts_are_told_beside_stock_busybox", || told_beside(Place::Busybox)),
        ("facts_are_told_beside_stock_sysvinit", || told_beside(Place::Sysvinit)),
    ];
    if crate::everything() { tests.to_vec() } else { tests[..QUICK].to_vec() }
}

/// The releases of Debian's whose stock is asked.
const STOCKS: [&str; 2] = ["bookworm", "trixie"];

/// Before each step.
const SHELL: &str = r#"
set -ex
export PATH=$PATH:/usr/sbin:/sbin:/usr/bin:/bin
# busybox would take its own.
ip() { /root/tools/ip "$@"; }
settle() { ! command -v udevadm >/dev/null || udevadm settle; }
"#;

/// The one whose stock Debian's userlands have.
const OWN: &str = "bookworm";

/// Modules and packages, for every userland. A package's own scripts would take minutes.
const BEGIN: &str = r"
while read -r module; do
    # Some is there already, and some for other processors.
    /root/tools/busybox insmod /root/more/$module 2>/dev/null || true
done </root/more/order
for package in /root/packages/*.tar; do
    test ! -e $package || tar -x -C / --keep-directory-symlink -f $package
done
settle
";

/// What the guest is called, where its clock is, and one processor of two at rest.
const SELF: &str = r"
echo guest.example.org >/proc/sys/kernel/hostname
mkdir -p /etc
ln -sf /usr/share/zoneinfo/Europe/Berlin /etc/localtime
echo 0 >/sys/devices/system/cpu/cpu1/online
for at in /sys/class/net/*/device; do nic=${at%/device}; nic=${nic##*/}; done
ip link set $nic up
ip address add 10.0.2.15/24 dev $nic
# The module has made one of its own.
ip link del dummy0
";

/// Somebody logs in, by the system's own login.
const LOGIN: &str = r"
if test -d /run/systemd/system; then echo 'session optional pam_systemd.so' >>/etc/pam.d/common-session; fi
(sleep 100000 | script -qfc 'login -f root' /dev/null) </dev/null >/dev/null 2>&1 &
";

/// The tiny userland has no login that writes utmp: its records are in a file.
const NO_LOGIN: &str = "mkdir -p /run /var; ln -sfn /run /var/run; cp /root/utmp /run/utmp";

/// What an answer must name, or the scene is not what it is meant to be; behind that what
/// only Debian's userlands can have.
const SHOWN: [(&str, &[&str], &[&str]); 4] = [
    ("guest-get-disks", &["/dev/vda", "/dev/sde", "/dev/nvme0n1", "/dev/loop0"], &["/dev/dm-1", "/dev/md0"]),
    ("guest-get-fsinfo", &["/m/tree", "/m/nvme0n1", "/m/loop", "scsi"], &["/m/one", "/m/two", "/m/mirror"]),
    (
        "guest-network-get-interfaces",
        &["left", "right", "left.7", "bridge0", "mac0", "dummy0", "2001:db8:1::2", "10.0.2.15"],
        &[],
    ),
    ("guest-get-users", &["root"], &[]),
];

/// Programs of this machine, with their libraries and loader.
fn with_tools(mut setup: Setup) -> Setup {
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    setup = setup.file("/root/tools/busybox", read(&cell::find("busybox")), 0o755);
    let ip = cell::find("ip");
    for file in cell::libraries(&ip).iter().chain([&ip]) {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        let name = if name.starts_with("ld-linux") { "loader" } else { name };
        setup = setup.file(&format!("/root/tools/lib/{name}"), read(file), 0o755);
    }
    let run = "#!/bin/sh\nexec /root/tools/lib/loader --library-path /root/tools/lib /root/tools/lib/ip \"$@\"\n";
    setup.file("/root/tools/ip", run, 0o755)
}

/// All files of a directory.
fn with_files(mut setup: Setup, from: &Path, to: &str) -> Setup {
    for entry in std::fs::read_dir(from).unwrap_or_else(|why| panic!("{}: {why}", from.display())).flatten() {
        let name = entry.file_name().into_string().expect("a name");
        setup = setup.file(&format!("{to}/{name}"), std::fs::read(entry.path()).expect("a file"), 0o755);
    }
    setup
}

fn base(userland: Userland, policy: &str) -> Setup {
    let setup = Setup::new(LINUX_6_12, userland).with_postern(policy);
    let setup = setup.with_devices(&["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    with_files(with_tools(setup), &guests::kernel(LINUX_6_12).join("more"), "/root/more")
}

/// Where the host meets stock of a release.
fn port(release: &str) -> String {
    format!("org.postern.stock.{release}")
}

fn setup(userland: Userland, directory: &Path) -> Setup {
    let policy = format!("version = 1\n{}", agents::policy(agents::allowed()));
    let mut arguments = disks::disks(directory);
    arguments.extend(["-smp", "2"].map(str::to_owned));
    for release in STOCKS {
        let chardev = format!("socket,id={release},path={},server=on,wait=off", directory.join(release).display());
        let device = format!("virtserialport,bus=serial.0,chardev={release},name={}", port(release));
        arguments.extend(["-chardev".to_owned(), chardev, "-device".to_owned(), device]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut setup = base(userland, &policy).with_devices(&arguments);
    setup.memory = 768;
    setup = setup.file("/root/image", disks::image(directory), 0o644);
    setup = setup.file("/usr/share/zoneinfo/Europe/Berlin", zone(), 0o644);
    let own = userland != Userland::Busybox;
    for release in STOCKS.iter().filter(|release| !own || **release != OWN) {
        setup = with_files(setup, &guests::stock(release), &format!("/root/stock/{release}"));
    }
    if !own {
        return setup.file("/etc/os-release", RELEASE, 0o644).file("/root/utmp", users(), 0o644);
    }
    let mut packages = PACKAGES.to_vec();
    if userland == Userland::Systemd {
        packages.push("libpam-systemd");
    }
    for package in packages {
        let files = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(guests::debian(package)).output();
        setup = setup.file(&format!("/root/packages/{package}.tar"), files.expect("dpkg-deb").stdout, 0o644);
    }
    setup
}

/// Starts stock of a release on its port: the userland's own if it is of that release.
fn start_stock(release: &str, own: bool) -> String {
    let program = if own && release == OWN { "qemu-ga".to_owned() } else { format!("/root/stock/{release}/start") };
    let port = port(release);
    format!(
        "mkdir -p /run/stock-{release}; PATH=$PATH:/usr/sbin QGA_CONF=/nowhere {program} -m virtio-serial \
         -p /dev/virtio-ports/{port} -t /run/stock-{release} </dev/null >/run/stock-{release}/said 2>&1 &"
    )
}

fn told_beside(place: Place) {
    let userland = match place {
        Place::Busybox => Userland::Busybox,
        Place::Sysvinit => Userland::Sysvinit,
        Place::Systemd | Place::Cell => Userland::Systemd,
    };
    let own = userland != Userland::Busybox;
    let directory = tempfile::Builder::new().prefix("postern-facts-").tempdir().expect("a temporary directory");
    let setup = setup(userland, directory.path());
    let mut machine = Machine::boot(&setup);
    let began = Instant::now();
    let kinds: Vec<&str> = OPTIONAL.iter().map(|(_, line)| *line).collect();
    let network = format!("ip -batch - <<'END'\n{NETWORK}{}\nEND\n", kinds.join("\n"));
    let (volumes, login) = if own { (VOLUMES, LOGIN) } else { ("", NO_LOGIN) };
    let steps = [&[BEGIN][..], &[SELF, &network], &[SCENE, volumes, "settle; sync"], &[login]];
    for step in steps {
        machine.sh(&[&[SHELL], step].concat().concat());
    }
    if own {
        machine.sh_eventually("who | grep root");
    }
    machine.sh(ACCOUNTS);
    for release in STOCKS {
        machine.sh(&start_stock(release, own));
    }
    machine.sh(START);
    let set = began.elapsed();
    let mut ours = machine.host();
    ours.ping();
    let mut hosts = STOCKS.map(|release| {
        let mut host = Host::connect(&directory.path().join(release));
        let version = host.returns("guest-info", &Value::Null)["version"].as_str().expect("a version").to_owned();
        (Column::new(place, &version), host)
    });
    for (column, theirs) in &mut hosts {
        for command in agents::compared() {
            column.judge(command, theirs, &mut ours);
        }
    }
    if place == Place::Systemd {
        // As on systems that keep no utmp.
        machine.sh("rm /run/utmp");
        for (column, theirs) in &mut hosts {
            column.judge("guest-get-users", theirs, &mut ours);
        }
    }
    for (column, theirs) in &mut hosts {
        column.complete(theirs, &mut ours);
    }
    for (command, names, of_debian) in SHOWN {
        let told = ours.returns(command, &Value::Null).to_string();
        for name in names.iter().chain(of_debian.iter().filter(|_| own)) {
            assert!(told.contains(&format!("\"{name}\"")), "{name} is not in the scene of {command}: {told}");
        }
    }
    let count = |host: &mut Host, command: &str| host.returns(command, &Value::Null).as_array().expect("a list").len();
    let told = SHOWN.map(|(command, ..)| format!("{} of {command}", count(&mut ours, command)));
    let (set, asked) = (set.as_secs(), began.elapsed().saturating_sub(set).as_secs());
    machine.note(&format!("{}; set up in {set} s, asked for {asked} s", told.join(", ")));
    table::publish(&hosts.map(|(column, _)| column));
}

/// How long each of some answers takes; the median.
fn takes(host: &mut Host) -> (Value, Duration) {
    let mut told = Value::Null;
    let mut took = [(); 7].map(|()| {
        let started = Instant::now();
        told = host.returns("guest-get-fsinfo", &Value::Null);
        started.elapsed()
    });
    took.sort_unstable();
    (told, took[took.len() / 2])
}

/// Whether a filesystem at this mountpoint is told of with its size.
fn has_size(told: &Value, mountpoint: &str) -> bool {
    let mut all = told.as_array().expect("a list").iter();
    let one = all.find(|one| one["mountpoint"] == mountpoint).unwrap_or_else(|| panic!("{mountpoint} in {told}"));
    one.get("used-bytes").is_some()
}

fn a_dead_nfs_server_is_not_asked() {
    /// What the issue demands of a host's wait.
    const SOON: Duration = Duration::from_secs(2);
    let policy = "version = 1\nprofile = \"minimal\"\n[commands]\nallow = [\"guest-get-fsinfo\"]\n";
    let directory = tempfile::Builder::new().prefix("postern-nfs-").tempdir().expect("a temporary directory");
    let setup = base(Userland::Busybox, policy).file("/root/image", disks::image(directory.path()), 0o644);
    let mut machine = Machine::boot(&setup);
    let server = nfs::Server::start();
    let (options, port) = ("addr=10.0.2.2,vers=3,proto=tcp,mountproto=tcp,mountvers=3,nolock,hard,noac", server.port);
    let mount = format!(
        "mkdir /far /near; ip address add 10.0.2.15/24 dev eth0; ip link set eth0 up; cp /root/image /root/other
         mount -i -t nfs -o {options},port={port},mountport={port} 10.0.2.2:/far /far
         mount -o loop -t ext4 /root/image /near; mount -o loop -t ext4 /root/other /far/below"
    );
    machine.sh(&[SHELL, BEGIN, &mount].concat());
    machine.sh(START);
    let mut host = machine.host();
    host.ping();
    let look = |more: &str| format!("(stat -f /far; echo $? >/run/looked{more}) >/dev/null 2>&1 &");
    machine.sh(&look(""));
    assert_eq!(machine.sh_eventually("cat /run/looked").trim(), "0", "the control: the server serves");
    let (alive, took_alive) = takes(&mut host);

    server.die();
    let before = server.calls();
    let (told, took) = takes(&mut host);
    assert_eq!(server.calls(), before, "the dead server was asked");
    // The control: who looks asks, and waits.
    machine.sh(&look("-again"));
    machine.sh_eventually("sleep 1; test ! -e /run/looked-again");
    assert!(server.calls() > before, "the control: who looks asks");
    let (_, took_beside) = takes(&mut host);
    machine.sh("test ! -e /run/looked-again");
    // The sizes of / go on.
    let count = |told: &Value| told.as_array().expect("a list").len();
    assert_eq!([count(&alive), count(&told)], [3, 3], "{alive}, and {told}");
    for (mountpoint, size) in [("/", true), ("/near", true), ("/far/below", false)] {
        assert_eq!(has_size(&told, mountpoint), size, "{told}");
    }
    // One that is busy takes longer for everything, an answer that waits for the server for ever.
    for took in [took, took_beside] {
        assert!(took < SOON + 10 * took_alive, "{took:?}, and {took_alive:?} while it lived");
    }
    machine.note(&format!(
        "fsinfo in {took_alive:?}, with a dead server in {took:?}, and {took_beside:?} while another waits for it"
    ));
}
