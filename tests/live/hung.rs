//! Mounts whose server or disk hangs: what of them a freeze touches, and that the
//! agent stays awake, thaws the rest and keeps its limit while it waits for them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_core::sys::fs::FIFREEZE;
use serde_json::{Value, json};

use crate::scene::{
    count, freeze, frozen_list, own_directory, policy, reply_to, send, status, story, story_of_freezes, thaw, with,
};
use crate::stuck::Scene;
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::Disk;
use crate::support::process::is_inside_ioctl;
use crate::support::runner::Test;
use crate::support::server::{NAME, Server};

pub(crate) const TESTS: &[Test] = &[
    ("a_dead_server_is_not_asked_by_a_freeze", a_dead_server_is_not_asked_by_a_freeze),
    ("a_dead_server_over_a_mountpoint_is_outlived", a_dead_server_over_a_mountpoint_is_outlived),
    ("a_disk_on_a_dead_server_is_outlived", a_disk_on_a_dead_server_is_outlived),
    ("a_state_directory_that_hangs_is_outlived", a_state_directory_that_hangs_is_outlived),
    ("a_thaw_that_hangs_keeps_nothing_else_frozen", a_thaw_that_hangs_keeps_nothing_else_frozen),
    ("a_limit_that_passes_during_a_thaw_changes_nothing", a_limit_that_passes_during_a_thaw_changes_nothing),
    ("an_agent_told_to_end_during_a_thaw_ends_behind_it", an_agent_told_to_end_during_a_thaw_ends_behind_it),
];

/// What a host sends in the meantime is answered at once. Less than any limit here,
/// which would end what it could have waited for; no more is said of a machine that
/// has other things to do.
const AWAKE: Duration = Duration::from_secs(4);

fn is_awake(host: &mut Host, wanted: &str) {
    let asked = Instant::now();
    for round in 0..5 {
        send(host, "guest-fsfreeze-status", &Value::Null, "status");
        assert_eq!(reply_to(host, "status"), Ok(json!(wanted)));
        send(host, "guest-info", &Value::Null, "info");
        reply_to(host, "info").expect("its commands");
        send(host, "guest-ping", &Value::Null, &round.to_string());
        reply_to(host, &round.to_string()).expect("a ping's answer, and no other");
    }
    let took = asked.elapsed();
    assert!(took < AWAKE, "{took:?} for fifteen answers");
}

/// Whether a thread of the broker's sleeps in this system call.
fn is_inside(agent: &Agent<'_>, call: i64) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("its threads");
    threads.flatten().any(|thread| {
        let said = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
        said.split(' ').next() == Some(&call.to_string())
    })
}

fn a_dead_server_is_not_asked_by_a_freeze() {
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let local = disks[0].mount("/local");
    let far = Server::mount("/far");
    // A type whose filesystems live on a block device, as ntfs-3g's.
    fs::create_dir("/ntfs").expect("a mountpoint");
    let ntfs = Server::mount_as("fuseblk", &disks[1].device, "/ntfs");
    far.die();
    ntfs.die();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    assert!(local.is_frozen());
    is_awake(&mut host, "frozen");
    assert_eq!(thaw(&mut host), 1);
    assert_eq!(frozen_list(&mut host, &["/far", "/ntfs", "/local"]), Ok(1), "named by the host");
    is_awake(&mut host, "frozen");
    assert_eq!(thaw(&mut host), 1);
}

/// Opening a filesystem that a dead one covers waits for the dead one.
fn a_dead_server_over_a_mountpoint_is_outlived() {
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (other, covered) = (disks[0].mount("/other"), disks[1].mount("/covered"));
    let home = Home::new();
    let mut agent = home.start(&with("[freeze]\nlimit = \"5s\"\n"));
    let mut host = agent.connect();
    let get_stuck = |host: &mut Host| {
        // What waits for one that lived before could not be ended by anything.
        let server = Server::dead_as("fuse", Path::new("server"), "/covered");
        send(host, "guest-fsfreeze-freeze", &Value::Null, "freeze");
        eventually("the freezer waits for the server", || is_inside(&agent, libc::SYS_openat).then_some(()));
        server
    };
    for by_host in [true, false] {
        let server = get_stuck(&mut host);
        is_awake(&mut host, "thawed");
        if by_host {
            send(&mut host, "guest-fsfreeze-thaw", &Value::Null, "thaw");
        }
        assert_eq!(reply_to(&mut host, "freeze"), Err("the freeze was ended by a thaw".to_owned()));
        if by_host {
            assert_eq!(reply_to(&mut host, "thaw"), Ok(json!(0)));
        }
        // The freezer waits on, so nothing can be frozen; all else works.
        let path = home.write("file", b"content");
        host.open(path, "r").expect("all commands again");
        assert_eq!(host.fails("guest-fsfreeze-freeze", &Value::Null), "a freeze or thaw is still under way");
        server.abort();
        // Out of the call it is a moment before it is free.
        let why = eventually("the freezer is free", || {
            Some(host.fails("guest-fsfreeze-freeze", &Value::Null)).filter(|why| why.contains("/covered"))
        });
        assert_eq!(why, "failed to open /covered: Transport endpoint is not connected");
        drop(server);
        assert_eq!(freeze(&mut host), 2);
        assert!(other.is_frozen() && covered.is_frozen());
        assert_eq!(thaw(&mut host), 2);
    }
    let story = story_of_freezes(&agent);
    assert!(story.iter().any(|line| line.ends_with("(the time limit passed)")), "{story:?}");
    let _server = get_stuck(&mut host);
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0), "with the freezer still waiting");
}

fn a_disk_on_a_dead_server_is_outlived() {
    let server = Server::mount("/far");
    let third = Disk::small("ext4", "/third.img");
    let third = third.mount("/third");
    let far = Disk::small("ext4", Path::new("/far").join(NAME));
    let far = far.mount("/on-far");
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"5s\"\n"));
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 2, "while its server lives");
    assert_eq!(thaw(&mut host), 2);
    fs::write(far.path("data"), vec![7; 1 << 20]).expect("something to flush");
    server.die();
    send(&mut host, "guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/on-far", "/third"] }), "freeze");
    let broker = agent.child.id();
    eventually("the freeze is stuck", || is_inside_ioctl(broker, FIFREEZE, &far.at).then_some(()));
    is_awake(&mut host, "thawed");
    // Whichever came first.
    eventually("the limit thaws what is frozen", || (!third.is_frozen()).then_some(()));
    is_awake(&mut host, "thawed");
    // A next one starts while it is dead: nothing of the dead server's is opened.
    let beside = Home::new();
    let next = beside.start(&policy());
    is_awake(&mut next.connect(), "thawed");
    server.abort();
    let why = reply_to(&mut host, "freeze").expect_err("its disk is gone");
    assert!(why == "the freeze was ended by a thaw" || why.starts_with("failed to freeze /on-far: "), "{why}");
    is_awake(&mut host, "thawed");
}

/// The file that tells a next broker what is frozen is written first: where that
/// hangs nothing is frozen.
fn a_state_directory_that_hangs_is_outlived() {
    let home = Home::new();
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (lower, third) = (disks[0].mount("/lower"), disks[1].mount("/third"));
    let _state = own_directory(&home, &lower, "state");
    let agent = home.start(&with("[freeze]\nlimit = \"5s\"\n"));
    let mut host = agent.connect();
    lower.freeze();
    send(&mut host, "guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/third"] }), "freeze");
    is_awake(&mut host, "thawed");
    assert_eq!(reply_to(&mut host, "freeze"), Err("the freeze was ended by a thaw".to_owned()));
    assert!(!third.is_frozen());
    is_awake(&mut host, "thawed");
    assert_eq!(host.fails("guest-fsfreeze-freeze", &Value::Null), "a freeze or thaw is still under way");
    assert!(lower.thaw());
    eventually("freezes work again", || (host.ask("guest-fsfreeze-freeze", &Value::Null)["return"] == 2).then_some(()));
    assert_eq!(count(&mut host, "guest-fsfreeze-thaw"), 2);
    assert!(!home.path("state/frozen").exists());
}

fn a_thaw_that_hangs_keeps_nothing_else_frozen() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick_thaw(&agent, &mut host, "thaw");
    // It was frozen first, so it is thawed last.
    eventually("the other is thawed", || (!scene.third.is_frozen()).then_some(()));
    is_awake(&mut host, "frozen");
    assert!(home.path("state/frozen").exists(), "a next broker would have to know");
    scene.release();
    assert_eq!(reply_to(&mut host, "thaw"), Ok(json!(2)));
    assert!(scene.is_thawed());
    assert!(!home.path("state/frozen").exists());
    assert_eq!(frozen_list(&mut host, &["/upper", "/third"]), Ok(2), "and again");
    assert_eq!(thaw(&mut host), 2);
}

fn a_limit_that_passes_during_a_thaw_changes_nothing() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"5s\"\n"));
    let mut host = agent.connect();
    scene.stick_thaw(&agent, &mut host, "thaw");
    std::thread::sleep(Duration::from_secs(6));
    is_awake(&mut host, "frozen");
    scene.release();
    assert_eq!(reply_to(&mut host, "thaw"), Ok(json!(2)));
    assert_eq!(status(&mut host), "thawed");
    assert_eq!(thaw(&mut host), 0);
    let story = story_of_freezes(&agent);
    let ends: Vec<&String> = story.iter().filter(|line| line.starts_with("guest-fsfreeze-thaw")).collect();
    assert_eq!(ends.len(), 2, "{story:?}");
    assert!(ends.iter().all(|line| line.ends_with("(asked by the host)")), "{story:?}");
}

fn an_agent_told_to_end_during_a_thaw_ends_behind_it() {
    let scene = Scene::new();
    let home = Home::new();
    let mut agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick_thaw(&agent, &mut host, "thaw");
    agent.signal("broker", Signal::SIGTERM);
    eventually("the other is thawed", || (!scene.third.is_frozen()).then_some(()));
    assert!(agent.child.try_wait().expect("its status").is_none(), "one is still frozen");
    scene.release();
    assert_eq!(agent.ended().code(), Some(0));
    assert!(scene.is_thawed());
    let story = story(&agent);
    assert!(story.last().is_some_and(|line| line.starts_with("stopped")), "{story:?}");
    assert!(!home.path("state/frozen").exists());
}
