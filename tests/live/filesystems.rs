//! What a host is told of filesystems, against what the test sees for itself, and
//! that nobody is asked for it: no dead server, no process, no automounter.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Pid, setpgid};
use serde_json::{Value, json};

use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::{Disk, Mounted, one_of_each};
use crate::support::runner::Test;
use crate::support::server::Server;

pub(crate) const TESTS: &[Test] = &[
    ("filesystems_are_told_as_they_are", filesystems_are_told_as_they_are),
    ("telling_of_filesystems_asks_nobody", telling_of_filesystems_asks_nobody),
    ("a_mountpoint_out_of_reach_has_no_numbers", a_mountpoint_out_of_reach_has_no_numbers),
    ("telling_outlives_what_the_kernel_forgets", telling_outlives_what_the_kernel_forgets),
];

/// What the issue demands of a host's wait.
const SOON: Duration = Duration::from_secs(2);

fn policy() -> String {
    "profile = \"minimal\"\n[commands]\nallow = [\"guest-get-fsinfo\", \"guest-get-disks\"]\n".to_owned()
}

fn filesystems(host: &mut Host) -> Vec<Value> {
    let told = host.returns("guest-get-fsinfo", &Value::Null);
    told.as_array().expect("a list").clone()
}

/// The one that is told of at this mountpoint.
fn at<'a>(told: &'a [Value], mountpoint: &str) -> &'a Value {
    let mut found = told.iter().filter(|one| one["mountpoint"] == mountpoint);
    let one = found.next().unwrap_or_else(|| panic!("{mountpoint} in {told:?}"));
    assert!(found.next().is_none(), "{mountpoint} twice in {told:?}");
    one
}

fn has_numbers(one: &Value) -> bool {
    let there = ["used-bytes", "total-bytes", "total-bytes-privileged"].map(|name| one.get(name).is_some());
    assert!(there == [true; 3] || there == [false; 3], "{one}");
    there[0]
}

fn mountpoints(told: &[Value]) -> Vec<&str> {
    told.iter().map(|one| one["mountpoint"].as_str().expect("a path")).collect()
}

fn filesystems_are_told_as_they_are() {
    let (disks, mut mounts) = one_of_each();
    fs::create_dir("/a/below").expect("a directory");
    mounts.push(Mounted::bind(Path::new("/a/below"), Path::new("/bound")));
    fs::write("/b/file", vec![1; 1 << 20]).expect("a file");
    let odd = Disk::small("ext4", "/odd.img");
    let odd = odd.mount("/an odd\tname\\");
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let told = filesystems(&mut host);
    // The last mounted first, each once.
    assert_eq!(mountpoints(&told), ["/an odd\tname\\", "/c", "/b", "/a"]);
    for (kind, disk, path) in [("ext4", &disks[0], "/a"), ("xfs", &disks[1], "/b"), ("btrfs", &disks[2], "/c")] {
        let one = at(&told, path);
        let name = disk.device.file_name().and_then(|name| name.to_str()).expect("a name");
        assert_eq!((&one["name"], &one["type"], &one["disk"]), (&json!(name), &json!(kind), &json!([])));
        let now = statvfs(path).expect("how full it is");
        let used = now.blocks() - now.blocks_free();
        let blocks = [used, used + now.blocks_available(), now.blocks()];
        for (name, blocks) in ["used-bytes", "total-bytes", "total-bytes-privileged"].iter().zip(blocks) {
            assert_eq!(one[name], blocks * now.fragment_size(), "{path} {name}");
        }
        let disks = host.returns("guest-get-disks", &Value::Null);
        let disk = disks.as_array().expect("a list").iter().find(|one| one["name"] == format!("/dev/{name}"));
        assert_eq!(disk, Some(&json!({ "name": format!("/dev/{name}"), "partition": false, "dependencies": [] })));
    }
    // The table is read anew each time.
    drop(odd);
    assert_eq!(mountpoints(&filesystems(&mut host)), ["/c", "/b", "/a"]);
    let records = agent.records_of("fact-told");
    assert!(records.iter().any(|record| record["postern"]["fact"] == "filesystems"), "{records:?}");
}

/// An automounter: what the kernel asks of it can be seen, and is never done. The
/// test may look without asking; what it starts in another group may not.
struct Automounter {
    asked: File,
    at: &'static str,
}

impl Automounter {
    fn mount(at: &'static str) -> Self {
        let (asked, kernels) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let own = Pid::this();
        // Its leader already, or else from now on.
        let _ = setpgid(own, own);
        let options = format!("fd={},pgrp={own},minproto=5,maxproto=5,direct", kernels.as_raw_fd());
        fs::create_dir_all(at).expect("a mountpoint");
        mount(Some("auto"), at, Some("autofs"), MsFlags::empty(), Some(options.as_str())).expect("autofs");
        Self { asked: asked.into(), at }
    }

    fn was_asked(&self, patience: PollTimeout) -> bool {
        let mut ready = [PollFd::new(self.asked.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, patience).expect("poll") > 0
    }

    /// That it would be: somebody looks into it, and waits until it is gone.
    fn is_asked_by_who_looks(&self) -> Child {
        let mut looks = Command::new("/bin/sh");
        let looks = looks.args(["-c", &format!("echo {}/*", self.at)]).process_group(0).spawn().expect("a process");
        assert!(self.was_asked(PollTimeout::from(10_000_u16)), "the control: the kernel asks");
        looks
    }
}

impl Drop for Automounter {
    fn drop(&mut self) {
        let _ = umount2(self.at, MntFlags::MNT_DETACH);
    }
}

/// The call in which a process of the agent's waits.
fn waits_in(agent: &Agent<'_>, name: &str) -> String {
    let pid = agent.process(name, 0);
    let said = fs::read_to_string(format!("/proc/{pid}/syscall")).expect("its call");
    said.split_whitespace().next().unwrap_or_default().to_owned()
}

fn telling_of_filesystems_asks_nobody() {
    let disks = [1, 2, 3, 4, 5].map(|number| Disk::small("ext4", format!("/{number}.img")));
    let [near, ntfs, covered, over, beneath] = &disks;
    let _near = near.mount("/near");
    let _covered = covered.mount("/covered");
    // A server of its own; one of a block device; one over a local filesystem; one
    // beneath a local filesystem, which therefore is all that is asked.
    let servers = [
        Server::mount("/far"),
        {
            fs::create_dir("/ntfs").expect("a mountpoint");
            Server::mount_as("fuseblk", &ntfs.device, "/ntfs")
        },
        Server::mount_as("fuse", Path::new("server"), "/covered"),
        Server::mount("/under"),
    ];
    let _over = over.mount("/under");
    let automounter = Automounter::mount("/auto");
    let _tree = Mounted::bind(Path::new("/near"), Path::new("/bound"));
    // By an automounter's hand, which is not asked again for what is there.
    let other = Automounter::mount("/boot");
    let _beneath = beneath.mount("/boot");
    servers.iter().for_each(Server::die);
    let asked: Vec<u32> = servers.iter().map(Server::last).collect();

    let home = Home::new();
    let mut command = home.command(&policy());
    command.process_group(0);
    let agent = home.start_command(command);
    let mut host = agent.connect();
    for round in 0..5 {
        let started = Instant::now();
        let told = filesystems(&mut host);
        let took = started.elapsed();
        assert!(took < SOON, "{took:?}");
        println!("    round {round}: {} filesystems in {took:?}", told.len());
        assert_eq!(mountpoints(&told), ["/boot", "/under", "/ntfs", "/covered", "/near"]);
        for (mountpoint, numbers) in
            [("/near", true), ("/ntfs", false), ("/covered", false), ("/under", true), ("/boot", true)]
        {
            assert_eq!(has_numbers(at(&told, mountpoint)), numbers, "{told:?}");
        }
        assert_eq!(at(&told, "/ntfs")["type"], "fuseblk");
        host.ping();
    }
    assert_eq!(servers.iter().map(Server::last).collect::<Vec<_>>(), asked, "a dead server was asked");
    for one in [&automounter, &other] {
        assert!(!one.was_asked(PollTimeout::ZERO), "{} was triggered", one.at);
    }
    for name in ["opener", "worker"] {
        let idle = [libc::SYS_recvmsg, libc::SYS_epoll_wait, libc::SYS_epoll_pwait].map(|call| call.to_string());
        eventually(&format!("the {name} waits for somebody to ask"), || {
            idle.contains(&waits_in(&agent, name)).then_some(())
        });
    }
    let mut looks = automounter.is_asked_by_who_looks();
    let started = Instant::now();
    filesystems(&mut host);
    assert!(started.elapsed() < SOON, "while the automounter does not answer");
    drop(automounter);
    let _ = looks.kill();
    let _ = looks.wait();
}

/// It is looked at as the policy's account; stock looks as root.
fn a_mountpoint_out_of_reach_has_no_numbers() {
    let disk = Disk::small("ext4", "/1.img");
    fs::create_dir("/closed").expect("a directory");
    let mounted = disk.mount("/closed/disk");
    fs::set_permissions("/closed", PermissionsExt::from_mode(0o700)).expect("its mode");
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let told = filesystems(&mut host);
    assert!(!has_numbers(at(&told, "/closed/disk")), "{told:?}");
    // By another way it is reached, and told of where it was mounted first.
    let open = Mounted::bind(&mounted.at, Path::new("/open"));
    let told = filesystems(&mut host);
    assert_eq!(mountpoints(&told), ["/closed/disk"]);
    assert!(has_numbers(&told[0]), "{told:?}");
    fs::set_permissions("/closed", PermissionsExt::from_mode(0o711)).expect("its mode");
    drop(open);
    assert!(has_numbers(at(&filesystems(&mut host), "/closed/disk")));
}

/// Files of /proc that nobody has open are made anew when memory was short, and then
/// are others to a Landlock domain.
fn telling_outlives_what_the_kernel_forgets() {
    let disk = Disk::small("ext4", "/1.img");
    let _mounted = disk.mount("/disk");
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let before = filesystems(&mut host);
    let opener = agent.process("opener", 0);
    for _ in 0..2 {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
        assert_eq!(filesystems(&mut host), before);
    }
    assert_eq!(agent.process("opener", 0), opener, "the same opener");
}
