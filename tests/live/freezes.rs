//! Freezing and thawing as a host asks for it, on real filesystems.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::sys::signal::Signal;
use postern_core::catalogue::CATALOGUE;
use serde_json::{Value, json};

use crate::scene::{
    disabled, freeze, frozen_list, own_directory, policy, status, story, story_of_freezes, thaw, verify, with,
};
use crate::support::agent::{Home, Host, eventually};
use crate::support::disk::{Disk, Mounted, one_of_each, one_that_fails};
use crate::support::runner::{Role, Test};
use crate::support::writers::{self, Writers};

pub(crate) const TESTS: &[Test] = &[
    ("a_writer_blocks_on_each_kind_until_the_host_thaws", a_writer_blocks_on_each_kind_until_the_host_thaws),
    ("only_what_is_safe_is_answered_while_frozen", only_what_is_safe_is_answered_while_frozen),
    ("every_kind_of_mount_is_frozen", every_kind_of_mount_is_frozen),
    ("one_that_fails_is_named_and_all_is_thawed", one_that_fails_is_named_and_all_is_thawed),
    ("the_time_limit_thaws", the_time_limit_thaws),
    ("a_frozen_agent_ends_in_order", a_frozen_agent_ends_in_order),
    ("a_log_on_the_frozen_filesystem_loses_nothing", a_log_on_the_frozen_filesystem_loses_nothing),
    ("a_host_that_floods_the_ring_hides_no_thaw", a_host_that_floods_the_ring_hides_no_thaw),
];

pub(crate) const ROLES: &[Role] = &[writers::ROLE];

fn a_writer_blocks_on_each_kind_until_the_host_thaws() {
    let (_disks, mounts) = one_of_each();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(status(&mut host), "thawed");
    assert_eq!(thaw(&mut host), 0, "nothing is frozen");
    let mut writers = Writers::on(&mounts);
    assert_eq!(freeze(&mut host), 3);
    assert_eq!(status(&mut host), "frozen");
    writers.are_held_up();
    assert!(mounts.iter().all(Mounted::is_frozen));
    // A second freeze is refused, and changes nothing.
    assert_eq!(host.fails("guest-fsfreeze-freeze", &Value::Null), disabled("guest-fsfreeze-freeze"));
    assert_eq!(frozen_list(&mut host, &["/a"]), Err(disabled("guest-fsfreeze-freeze-list")));
    assert_eq!(thaw(&mut host), 3);
    assert_eq!(status(&mut host), "thawed");
    writers.finish();
    assert_eq!(thaw(&mut host), 0);
    assert_eq!(frozen_list(&mut host, &["/b", "/nowhere", "/proc"]), Ok(1));
    assert!(mounts[1].is_frozen() && !mounts[0].is_frozen() && !mounts[2].is_frozen());
    assert_eq!(thaw(&mut host), 1);
    assert_eq!(frozen_list(&mut host, &[]), Ok(0), "an empty list freezes nothing");
    assert_eq!(status(&mut host), "thawed");
    let refused = "refused (not while filesystems are frozen)";
    assert_eq!(
        story_of_freezes(&agent),
        [
            "guest-fsfreeze-thaw done (asked by the host)",
            "guest-fsfreeze-freeze asked",
            "guest-fsfreeze-freeze done /c /b /a",
            &format!("guest-fsfreeze-freeze {refused}"),
            &format!("guest-fsfreeze-freeze-list {refused}"),
            "guest-fsfreeze-thaw done /a /b /c (asked by the host)",
            "guest-fsfreeze-thaw done (asked by the host)",
            "guest-fsfreeze-freeze-list asked /b /nowhere /proc",
            "guest-fsfreeze-freeze-list done /b",
            "guest-fsfreeze-thaw done /b (asked by the host)",
            "guest-fsfreeze-freeze-list asked",
            "guest-fsfreeze-freeze-list done",
        ]
    );
}

fn only_what_is_safe_is_answered_while_frozen() {
    let disk = Disk::small("ext4", "/disk.img");
    let _mounted = disk.mount("/disk");
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let handle = host.open(&path, "r+").expect("a handle");
    assert_eq!(freeze(&mut host), 1);
    for entry in &CATALOGUE {
        let safe = entry.frozen_safe && entry.command.is_some();
        if safe {
            continue;
        }
        let arguments = match entry.name {
            "guest-file-open" => json!({ "path": path }),
            "guest-file-write" => json!({ "handle": handle, "buf-b64": "AAAA" }),
            "guest-file-seek" => json!({ "handle": handle, "offset": 0, "whence": 0 }),
            name if name.starts_with("guest-file") => json!({ "handle": handle }),
            _ => json!({}),
        };
        let reply = host.ask(entry.name, &arguments);
        assert_eq!(reply["error"]["class"], "CommandNotFound", "{}: {reply}", entry.name);
        assert_eq!(reply["error"]["desc"], disabled(entry.name));
    }
    host.ping();
    assert_eq!(host.returns("guest-sync", &json!({ "id": 7 })), 7);
    assert_eq!(host.returns("guest-sync-delimited", &json!({ "id": 8 })), 8);
    assert_eq!(status(&mut host), "frozen");
    let enabled = |host: &mut Host| -> Vec<String> {
        let info = host.returns("guest-info", &Value::Null);
        let commands = info["supported_commands"].as_array().expect("commands").iter();
        let enabled = commands.filter(|command| command["enabled"] == true);
        enabled.map(|command| command["name"].as_str().expect("a name").to_owned()).collect()
    };
    let mut safe = enabled(&mut host);
    safe.sort();
    assert_eq!(
        safe,
        [
            "guest-fsfreeze-status",
            "guest-fsfreeze-thaw",
            "guest-info",
            "guest-ping",
            "guest-sync",
            "guest-sync-delimited"
        ]
    );
    assert_eq!(thaw(&mut host), 1);
    assert_eq!(enabled(&mut host).len(), 15, "all again");
    assert_eq!(host.read(handle), "Y29udGVudA==", "a handle outlives a freeze");
}

fn every_kind_of_mount_is_frozen() {
    let disks: Vec<Disk> = (0..4).map(|number| Disk::small("ext4", format!("/{number}.img"))).collect();
    let home = Home::new();
    // A closed mountpoint of another owner.
    fs::create_dir("/closed").expect("a directory");
    let closed = disks[0].mount("/closed/inner");
    for dir in ["/closed/inner", "/closed"] {
        chown(dir, Some(777), Some(777)).expect("another owner");
        fs::set_permissions(dir, Permissions::from_mode(0o700)).expect("closed");
    }
    // One that is left as a file bind mount and as a bind mount of a directory.
    let whole = disks[1].mount("/whole");
    fs::write("/whole/file", "").expect("a file");
    fs::create_dir("/whole/dir").expect("a directory");
    let file = Mounted::bind(Path::new("/whole/file"), Path::new("/file"));
    let _dir = Mounted::bind(Path::new("/whole/dir"), Path::new("/dir"));
    drop(whole);
    // One in a file of another, whose last mount is younger.
    let lower = Disk::new("ext4", Path::new("/lower.img"), 256);
    let lower = lower.mount("/lower");
    let upper = Disk::small("xfs", "/lower/upper.img");
    let upper = upper.mount("/upper");
    let _again = Mounted::bind(Path::new("/lower"), Path::new("/again"));
    let agent = home.start(&policy());
    let mut host = agent.connect();
    // Made later: one more, and one in a file of the oldest.
    let later = disks[2].mount("/later");
    let over = disks[3].mount("/later/over");
    assert_eq!(freeze(&mut host), 6);
    for mounted in [&closed, &file, &lower, &upper, &later, &over] {
        assert!(mounted.is_frozen(), "{}", mounted.at.display());
    }
    assert_eq!(thaw(&mut host), 6);
    assert_eq!(frozen_list(&mut host, &["/file"]), Ok(1), "named by the mountpoint that is a file");
    assert!(file.is_frozen() && !lower.is_frozen());
    assert_eq!(thaw(&mut host), 1);
    let story = story_of_freezes(&agent);
    assert_eq!(story[1], "guest-fsfreeze-freeze done /later/over /later /upper /lower /dir /closed/inner", "{story:?}");
}

fn one_that_fails_is_named_and_all_is_thawed() {
    let (_disks, [plain, _broken, last]) = one_that_fails();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    let why = host.fails("guest-fsfreeze-freeze", &Value::Null);
    assert!(why.starts_with("failed to freeze /broken: "), "{why}");
    assert!(!plain.is_frozen() && !last.is_frozen());
    assert_eq!(status(&mut host), "thawed");
    let path = home.write("file", b"");
    host.open(path, "r").expect("all commands again");
    assert_eq!(frozen_list(&mut host, &["/plain", "/last"]), Ok(2), "and again without it");
    assert_eq!(thaw(&mut host), 2);
    let failed = agent.await_record("guest-fsfreeze-freeze", |record| record["postern"]["stage"] == "failed");
    assert_eq!(failed["postern"]["failed"], json!(["/broken"]));
    assert_eq!(failed["event"]["reason"], why);
    verify(&[&home.log()]);
}

fn the_time_limit_thaws() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"3s\"\n"));
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    eventually("the time limit thaws", || (status(&mut host) == "thawed").then_some(()));
    assert!(!mounted.is_frozen());
    assert_eq!(thaw(&mut host), 0);
    let path = home.write("file", b"");
    host.open(path, "r").expect("all commands again");
    assert_eq!(freeze(&mut host), 1, "and again");
    assert_eq!(thaw(&mut host), 1);
    assert_eq!(
        story_of_freezes(&agent)[..4],
        [
            "guest-fsfreeze-freeze asked",
            "guest-fsfreeze-freeze done /disk",
            "guest-fsfreeze-thaw done /disk (the time limit passed)",
            "guest-fsfreeze-thaw done (asked by the host)",
        ]
    );
    assert!(agent.said().contains("thawed 1 filesystem: the policy's time limit was over"), "{}", agent.said());
}

fn a_frozen_agent_ends_in_order() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let _log = own_directory(&home, &mounted, "log");
    // The last records must be written however worker and thaw come to their
    // ends; so more than once.
    for signal in [Signal::SIGTERM, Signal::SIGINT].repeat(3) {
        let before = fs::read_to_string(home.log()).unwrap_or_default().lines().count();
        let mut agent = home.start(&policy());
        let mut host = agent.connect();
        host.ping();
        assert_eq!(freeze(&mut host), 1);
        agent.signal("broker", signal);
        assert_eq!(agent.ended().code(), Some(0));
        assert!(!mounted.is_frozen());
        let story = story(&agent);
        let mut ends: Vec<&str> = story[before..].iter().map(String::as_str).collect();
        ends.retain(|line| !line.starts_with("process-") && !line.starts_with("host-") && !line.starts_with("counted"));
        assert_eq!(
            ends,
            [
                "log-opened (started)",
                "guest-fsfreeze-freeze asked",
                "guest-fsfreeze-freeze done /disk",
                "guest-fsfreeze-thaw done /disk (postern is stopping)",
                &format!("stopped ({signal})"),
            ]
        );
        assert!(!home.path("state/frozen").exists());
    }
}

fn a_log_on_the_frozen_filesystem_loses_nothing() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let _log = own_directory(&home, &mounted, "log");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    let path = home.write("file", b"");
    let refusals = 200;
    for _ in 0..refusals {
        assert!(host.open(&path, "r").is_err());
    }
    // Told to go on in another file while nothing may be written.
    agent.signal("broker", Signal::SIGHUP);
    let second = {
        drop(host);
        agent.connect()
    };
    let mut host = second;
    assert_eq!(status(&mut host), "frozen");
    assert!(fs::metadata(home.log()).expect("the log").len() > 0);
    assert_eq!(thaw(&mut host), 1);
    host.ping();
    let found = agent.await_record("guest-fsfreeze-thaw", |record| record["postern"]["stage"] == "done");
    let story = story(&agent);
    let refused = story.iter().filter(|line| line.starts_with("guest-file-open refused")).count();
    assert_eq!(refused, refusals);
    assert!(!story.iter().any(|line| line.starts_with("records-lost")), "{story:?}");
    // Records bear the time at which things happened, not that of their writing.
    let all = agent.records();
    let time = |record: &Value| record["@timestamp"].as_str().expect("a time").to_owned();
    let first_refusal = all.iter().find(|record| record["event"]["action"] == "guest-file-open").expect("a refusal");
    assert!(time(first_refusal) < time(&found));
}

fn a_host_that_floods_the_ring_hides_no_thaw() {
    let disk = Disk::small("ext4", "/disk.img");
    let mounted = disk.mount("/disk");
    let home = Home::new();
    let _log = own_directory(&home, &mounted, "log");
    let mut agent = home.start(&policy());
    let mut host = agent.connect();
    assert_eq!(freeze(&mut host), 1);
    let path = home.write("file", b"");
    let refusals = 3000_u64;
    for _ in 0..refusals {
        assert!(host.open(&path, "r").is_err());
    }
    assert_eq!(thaw(&mut host), 1);
    // What the log left out is told at the latest when postern ends.
    agent.signal("broker", Signal::SIGTERM);
    assert!(agent.ended().success());
    let story = story(&agent);
    let kept = story.iter().filter(|line| line.starts_with("guest-file-open refused")).count() as u64;
    let repeated = agent.records_of("repeated");
    let counted = repeated.iter().filter_map(|record| record["postern"]["counts"]["guest-file-open"].as_u64());
    assert_eq!(kept + counted.sum::<u64>(), refusals, "{kept} listed, {repeated:?}");
    assert!(kept > 100 && kept < refusals / 2, "{kept}");
    assert!(
        story.contains(&"guest-fsfreeze-thaw done /disk (asked by the host)".to_owned()),
        "{:?}",
        &story[story.len() - 4..]
    );
}
