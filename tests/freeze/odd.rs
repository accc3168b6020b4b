//! The scenes of [`super::beside`].

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use postern_core::sys::fs::{FIFREEZE, freeze, thaw};
use serde_json::json;

use super::beside::{Agent, Scene, Scratch, Stage};
use crate::support::agent::{LIVELY, eventually};
use crate::support::disk::{Disk, one_that_fails};
use crate::support::process::is_inside_ioctl;
use crate::support::server::Server;

/// How names of scenes begin that have disks of their own.
pub(crate) const BARE: &str = "an ";

/// The scene in which the policy's limit is short.
pub(crate) const NEVER_THAWS: &str = "a host that never thaws";

const fn same(name: &'static str, play: fn(&mut Stage)) -> Scene {
    Scene { name, differs: None, play }
}

const fn other(name: &'static str, why: &'static str, play: fn(&mut Stage)) -> Scene {
    Scene { name, differs: Some(why), play }
}

pub(crate) const SCENES: &[Scene] = &[
    same("freeze while frozen", |stage| {
        stage.freeze();
        stage.freeze();
        stage.freeze_list(&["/a"]);
        stage.status();
        stage.thaw();
    }),
    same("freeze-list, then freeze", |stage| {
        stage.freeze_list(&["/a"]);
        stage.freeze();
        stage.thaw();
    }),
    same("freeze-list, then freeze-list of another", |stage| {
        stage.freeze_list(&["/a"]);
        stage.freeze_list(&["/b"]);
        stage.thaw();
    }),
    same("freeze-list of what is no mountpoint", |stage| {
        fs::create_dir("/a/inner").expect("a directory");
        for list in [&[][..], &["/nowhere"], &["/a/inner"], &["a"], &["/proc"]] {
            stage.freeze_list(list);
        }
        stage.status();
    }),
    other("freeze-list with a slash at the end", "both spellings are the same path", |stage| {
        stage.freeze_list(&["/a/"]);
        stage.thaw();
    }),
    same("freeze-list that names one twice", |stage| {
        stage.freeze_list(&["/a", "/a"]);
        stage.thaw();
    }),
    same("thaw with nothing frozen", |stage| {
        stage.thaw();
        stage.status();
    }),
    same("thaw twice", |stage| {
        stage.freeze();
        stage.thaw();
        stage.thaw();
    }),
    other("unmounted while frozen", "a frozen filesystem is held, so it cannot go away unthawed", |stage| {
        stage.freeze();
        stage.done("umount /a", umount2("/a", MntFlags::empty()));
        stage.thaw();
    }),
    other("lazily unmounted while frozen", "what is held is thawed, mounted or not", |stage| {
        stage.freeze();
        stage.done("umount -l /a", umount2("/a", MntFlags::MNT_DETACH));
        stage.thaw();
    }),
    same("lazily unmounted, and mounted elsewhere", |stage| {
        stage.freeze();
        stage.done("umount -l /a", umount2("/a", MntFlags::MNT_DETACH));
        stage.disks[0].mount("/elsewhere");
        stage.thaw();
    }),
    same("remounted read-only while frozen", |stage| {
        stage.freeze();
        let none: Option<&str> = None;
        let remounted = mount(none, "/a", none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none);
        stage.done("mount -o remount,ro /a", remounted);
        stage.thaw();
    }),
    same("its loop device detached while frozen", |stage| {
        stage.freeze();
        // Else it is free when it is unmounted, and may be another test's then.
        let held = fs::File::open(&stage.disks[0].disk.device).expect("the device");
        stage.held.push(held);
        let detached = Command::new("/bin/losetup").arg("--detach").arg(&stage.disks[0].disk.device).status();
        stage.done("losetup -d", if detached.is_ok_and(|how| how.success()) { Ok(()) } else { Err(Errno::EBUSY) });
        stage.thaw();
    }),
    same("bound elsewhere while frozen", |stage| {
        stage.freeze();
        fs::create_dir_all("/bound").expect("a mountpoint");
        let none: Option<&str> = None;
        stage.done("mount --bind /a /bound", mount(Some("/a"), "/bound", none, MsFlags::MS_BIND, none));
        stage.thaw();
    }),
    same("another one mounted while frozen", |stage| {
        stage.freeze();
        stage.disks.push(Scratch::new("/3.img", "/c"));
        stage.thaw();
        stage.freeze();
        stage.thaw();
    }),
    other("frozen by somebody else before", "what somebody else froze is theirs to thaw", |stage| {
        let frozen = stage.disks[0].freeze();
        stage.done("fsfreeze -f /a", frozen);
        stage.freeze();
        stage.thaw();
    }),
    same("frozen by somebody else too", |stage| {
        stage.freeze();
        let frozen = stage.disks[0].freeze();
        stage.done("fsfreeze -f /a", frozen);
        stage.thaw();
    }),
    same("thawed by somebody else", |stage| {
        stage.freeze();
        let thawed = stage.disks[0].thaw();
        stage.done("fsfreeze -u /a", thawed);
        stage.status();
        stage.thaw();
    }),
    same("thawed and frozen again by somebody else", |stage| {
        stage.freeze();
        let again = stage.disks[0].thaw().and_then(|()| stage.disks[0].freeze());
        stage.done("fsfreeze -u /a, -f /a", again);
        stage.thaw();
    }),
    same("mounted in another mount namespace only", |stage| {
        let third = Scratch::new("/3.img", "/c");
        let mut holder = elsewhere();
        umount2("/c", MntFlags::empty()).expect("the mount of ours");
        stage.disks.push(third);
        stage.freeze();
        stage.thaw();
        let _ = holder.kill();
        let _ = holder.wait();
    }),
    other(
        "mounted elsewhere too, and lazily unmounted here while frozen",
        "what is held is thawed, mounted or not",
        |stage| {
            let mut holder = elsewhere();
            stage.freeze();
            stage.done("umount -l /a", umount2("/a", MntFlags::MNT_DETACH));
            stage.thaw();
            let _ = holder.kill();
            let _ = holder.wait();
        },
    ),
    same("covered by another mount", |stage| {
        let none: Option<&str> = None;
        mount(none, "/a", Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
        stage.freeze();
        stage.thaw();
        umount2("/a", MntFlags::empty()).expect("the tmpfs");
    }),
    other("mounted as a file only", "the confined broker opens directories only, and says so", |stage| {
        fs::write("/a/file", "").expect("a file");
        fs::write("/file", "").expect("a mountpoint");
        let none: Option<&str> = None;
        mount(Some("/a/file"), "/file", none, MsFlags::MS_BIND, none).expect("a bind mount");
        umount2("/a", MntFlags::empty()).expect("the whole");
        stage.freeze();
        stage.thaw();
        umount2("/file", MntFlags::MNT_DETACH).expect("the file");
        fs::remove_file("/file").expect("the mountpoint");
    }),
    same("an error on one of three", |stage| {
        let guards = one_that_fails();
        stage.send("guest-fsfreeze-freeze", &json!({}));
        stage.hear("freeze", LIVELY);
        stage.status();
        let [plain, broken, last] = guards.1;
        stage.note(if plain.is_frozen() || last.is_frozen() { "**others frozen**" } else { "the others thawed" });
        drop((plain, broken, last, guards.0));
        for gone in ["/small", "/1.img", "/3.img"] {
            let _ = umount2(gone, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(gone).or_else(|_| fs::remove_dir(gone));
        }
    }),
    other(
        "an image in a file of another, which is bound again later",
        "what lies on what is known, so that the upper one comes first",
        |stage| {
            let lower = Disk::new("ext4", Path::new("/lower.img"), 128);
            let lower = lower.mount("/lower");
            let upper = Disk::small("ext4", "/lower/upper.img");
            let upper = upper.mount("/upper");
            let again = crate::support::disk::Mounted::bind(Path::new("/lower"), Path::new("/again"));
            stage.start_over();
            fs::write(upper.path("data"), vec![7; 1 << 20]).expect("something to flush");
            stage.send("guest-fsfreeze-freeze", &json!({}));
            stage.hear_meanwhile("freeze");
            if stage.agent == Agent::Stock {
                stage.note(if lower.thaw() { "*fsfreeze -u /lower: done*" } else { "*it was not frozen*" });
                stage.hear("freeze", LIVELY);
            }
            stage.thaw();
            drop((again, upper, lower));
        },
    ),
    same("a dead server of FUSE mounted", |stage| {
        let server = Server::mount("/far");
        server.die();
        stage.freeze();
        stage.thaw();
        drop(server);
        fs::remove_dir("/far").expect("the mountpoint");
    }),
    other(
        "a dead server of FUSE on a block device mounted",
        "no server is asked: the kernel could not freeze it anyway",
        |stage| {
            let third = Disk::small("ext4", "/3.img");
            fs::create_dir_all("/ntfs").expect("a mountpoint");
            let server = Server::dead_as("fuseblk", &third.device, "/ntfs");
            stage.send("guest-fsfreeze-freeze", &json!({}));
            stage.hear_meanwhile("freeze");
            if stage.agent == Agent::Stock {
                stage.note("*the server ends*");
                server.abort();
                stage.hear("freeze", LIVELY);
            }
            stage.thaw();
            drop(server);
        },
    ),
    other(
        "an upper one stuck in its freeze: ping, thaw",
        "a freeze under way holds nothing up, and a thaw ends it",
        |stage| {
            let (lower, root) = stuck(stage);
            stage.send("guest-ping", &json!({}));
            stage.hear_meanwhile("ping");
            stage.send("guest-fsfreeze-thaw", &json!({}));
            stage.is_read();
            stage.note("*fsfreeze -u /lower*");
            thaw(root.as_fd()).expect("the lower one's thaw");
            let rest: &[&str] =
                if stage.agent == Agent::Stock { &["freeze", "ping", "thaw"] } else { &["freeze", "thaw"] };
            for one in rest {
                stage.hear(one, LIVELY);
            }
            stage.disks.insert(0, lower);
        },
    ),
    other("an upper one stuck in its freeze: the next host", "it is answered meanwhile", |stage| {
        let (lower, root) = stuck(stage);
        stage.connect_anew();
        stage.send("guest-ping", &json!({}));
        stage.hear_meanwhile("ping");
        stage.note("*fsfreeze -u /lower*");
        thaw(root.as_fd()).expect("the lower one's thaw");
        if stage.agent == Agent::Stock {
            stage.hear("ping", LIVELY);
        }
        stage.disks.insert(0, lower);
        stage.settle();
        stage.thaw();
    }),
    same("the agent killed while frozen, and started again", |stage| {
        stage.freeze();
        stage.kill_agent();
        stage.start_anew();
        stage.status();
        stage.freeze();
        stage.thaw();
    }),
    other("the agent told to end while frozen", "it thaws what it froze before it ends", |stage| {
        stage.freeze();
        stage.end_agent();
    }),
    other(NEVER_THAWS, "the policy's limit thaws: three seconds here", |stage| {
        stage.freeze();
        sleep(Duration::from_secs(6));
        stage.status();
    }),
];

/// A mount namespace with copies of these mounts, as a container may have.
fn elsewhere() -> std::process::Child {
    let script = "echo here; read -r forever";
    let mut command = Command::new("/bin/unshare");
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("it speaks");
    child
}

/// A freeze of `/upper` that is stuck, for somebody else has frozen what its image
/// lies on, which is returned, and its root: mounting it anew could wait too.
fn stuck(stage: &mut Stage) -> (Scratch, fs::File) {
    let lower = Scratch::new("/lower.img", "/lower");
    let upper = Scratch::new("/lower/upper.img", "/upper");
    fs::write("/upper/data", vec![7; 1 << 20]).expect("something to flush");
    let root = fs::File::open("/lower").expect("its root");
    freeze(root.as_fd()).expect("the lower one's freeze");
    stage.disks.push(upper);
    stage.send("guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/upper"] }));
    let agent = stage.process_id();
    eventually("the freeze is stuck", || is_inside_ioctl(agent, FIFREEZE, Path::new("/upper")).then_some(()));
    (lower, root)
}

/// What stock makes of questions during a freeze, for comparison with
/// `a_ping_is_answered_while_a_freeze_is_stuck`: when it answers them.
pub(crate) fn stock_answers_behind_its_freeze() {
    let asked = std::env::var("POSTERN_STUCK_SECONDS").ok();
    let how_long = Duration::from_secs(asked.map_or(2, |seconds| seconds.parse().expect("a number of seconds")));
    let mut stage = Stage::bare(Agent::Stock);
    let (lower, root) = stuck(&mut stage);
    let begun = Instant::now();
    let mut sent = Vec::new();
    while begun.elapsed() < how_long {
        for command in ["guest-ping", "guest-info", "guest-fsfreeze-status"] {
            sent.push(Instant::now());
            stage.send(command, &json!({}));
        }
        // Few enough that the socket takes them all.
        stage.hear("", how_long / 40);
    }
    let during = stage.take_notes().iter().filter(|note| !note.ends_with("no answer")).count();
    thaw(root.as_fd()).expect("the lower one's thaw");
    stage.hear("freeze", LIVELY);
    let mut times: Vec<Duration> = sent
        .iter()
        .map(|sent| {
            stage.hear("", LIVELY);
            sent.elapsed()
        })
        .collect();
    assert_eq!(stage.take_notes()[0], "freeze → 1", "its reply comes first, whoever waits for it still");
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "    stock, stuck for {how_long:?}: {during} of {} answered meanwhile; median {:?}, p99 {:?}, slowest {:?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
    assert_eq!(during, 0);
    stage.disks.insert(0, lower);
}
