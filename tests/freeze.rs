//! Freeze and thaw on real filesystems, by the broker's engine under the
//! broker's real confinement. Needs root, loop devices, mkfs of ext4, xfs, btrfs
//! and squashfs, and for the comparison the stock agent. Each test runs in a cell (`support::cell`), whose mount table
//! shows nothing of the machine, so nothing of the machine is ever frozen.

#[path = "freeze/beside.rs"]
mod beside;
#[path = "freeze/odd.rs"]
mod odd;
#[path = "live/scene.rs"]
#[allow(dead_code, reason = "the target `live` uses the rest")]
mod scene;
mod support;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use postern_broker::fsfreeze::{Engine, Event, FROZEN_FILE, Filesystem, Memory, MountTable, Why};
use postern_core::confine::filters::BrokerNeeds;
use postern_core::confine::{self, BrokerPlan};
use postern_core::ipc::List;
use postern_core::messages::Identity;
use postern_core::sys::fs::FIFREEZE;
use support::disk::{Disk, Mounted, one_of_each, one_that_fails};
use support::process::Peer;
use support::writers::{self, Writers};
use support::{agent, cell, runner};

const PROGRAMS: &[&str] =
    &[agent::BINARY, "qemu-ga", "losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mksquashfs", "unshare", "sh"];

fn main() -> ExitCode {
    runner::main(
        &[
            ("a_writer_blocks_on_each_kind_until_the_thaw", a_writer_blocks_on_each_kind_until_the_thaw),
            ("a_closed_mountpoint_is_frozen", a_closed_mountpoint_is_frozen),
            ("only_what_the_list_names_is_frozen", only_what_the_list_names_is_frozen),
            ("a_file_mountpoint_is_passed_over", a_file_mountpoint_is_passed_over),
            ("only_file_mountpoints_fail_the_freeze", only_file_mountpoints_fail_the_freeze),
            ("a_nested_loop_mount_comes_first", a_nested_loop_mount_comes_first),
            ("a_nested_loop_mount_comes_first_in_a_copied_namespace", a_nested_loop_mount_in_a_copied_namespace),
            ("a_covered_mount_is_reached_elsewhere_or_noted", a_covered_mount_is_reached_elsewhere_or_noted),
            ("what_was_mounted_later_is_frozen", what_was_mounted_later_is_frozen),
            ("what_cannot_be_frozen_is_noted", what_cannot_be_frozen_is_noted),
            ("a_failure_thaws_all_and_names_the_mount", a_failure_thaws_all_and_names_the_mount),
            ("a_killed_engine_is_followed_by_one_that_thaws", a_killed_engine_is_followed_by_one_that_thaws),
            ("a_remembered_one_that_is_gone_is_an_error", a_remembered_one_that_is_gone_is_an_error),
            ("a_stuck_freeze_is_ended_by_a_thaw", a_stuck_freeze_is_ended_by_a_thaw),
            ("a_freeze_stuck_on_itself_is_ended_by_a_thaw", a_freeze_stuck_on_itself_is_ended_by_a_thaw),
            ("odd_scenes_end_as_the_table_says", beside::odd_scenes_end_as_the_table_says),
            ("odder_scenes_end_as_the_table_says", beside::odder_scenes_end_as_the_table_says),
            ("stock_answers_behind_its_freeze", odd::stock_answers_behind_its_freeze),
        ],
        &[("engine", engine), writers::ROLE],
        PROGRAMS,
    )
}

// ---- roles -------------------------------------------------------------------

/// An account that owns nothing here.
const ACCOUNT: u32 = 54_321;
const LIMIT: Duration = Duration::from_secs(600);

/// The engine, confined as the broker is; orders by line. Arguments: the state
/// directory.
fn engine(arguments: &[String]) {
    let directory = || OwnedFd::from(File::open(&arguments[0]).expect("the state directory"));
    let memory = Memory::new(directory()).expect("the state directory");
    let remembered = memory.read().expect("the state file");
    let table = MountTable::open().expect("the mount table");
    let plan = BrokerPlan {
        filter: BrokerNeeds { freeze: true, state: vec![memory.directory()], ..BrokerNeeds::default() },
        log: None,
        state: Some(directory()),
        root: Some(File::open("/").expect("/").into()),
        sockets: Vec::new(),
        policy: Vec::new(),
    };
    let identity = Identity { uid: ACCOUNT, gid: ACCOUNT, groups: List::default() };
    let capabilities = [caps::Capability::CAP_SYS_ADMIN, caps::Capability::CAP_DAC_READ_SEARCH];
    confine::broker_identity(Some(&identity), &capabilities).expect("the broker's identity");
    let threads = || Engine::start(table, memory, remembered).map_err(Start::Engine);
    let (_confined, engine) = confine::broker_barriers(plan, threads).expect("the broker's barriers");
    let mut events = VecDeque::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("an order");
        let mut words = line.split(' ');
        let answer = match words.next() {
            Some("freeze") => {
                let only: Vec<PathBuf> = words.map(PathBuf::from).collect();
                engine
                    .freeze((!only.is_empty()).then_some(only))
                    .map_or_else(|why| why.to_string(), |()| "begun".into())
            }
            Some("thaw") => {
                engine.thaw(Why::Host);
                "begun".to_owned()
            }
            Some("status") => engine.status().on_wire().to_owned(),
            Some("state") => format!("{:?} {}", engine.status(), engine.holds_writes()),
            Some("deadline") => {
                let running = engine.time_left(LIMIT).is_some_and(|left| left > Duration::ZERO && left <= LIMIT);
                let over = engine.time_left(Duration::ZERO).is_some_and(|left| left.is_zero());
                format!("{:?} {running} {over}", engine.deadline(LIMIT).map(|at| at.as_secs()))
            }
            Some("event") => {
                while events.is_empty() {
                    let _ = poll(&mut [PollFd::new(engine.event_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
                    events.extend(engine.events());
                }
                events.pop_front().map_or_else(String::new, |event| shown(&event))
            }
            other => panic!("no order: {other:?}"),
        };
        println!("{answer}");
    }
    // Without destructors or exit handlers: the filter has no room for them.
    postern_core::sys::process::exit_now(0)
}

#[derive(Debug)]
#[expect(dead_code, reason = "shown by Debug")]
enum Start {
    Engine(std::io::Error),
    Confine(confine::ConfineError),
}

impl From<confine::ConfineError> for Start {
    fn from(error: confine::ConfineError) -> Self {
        Self::Confine(error)
    }
}

/// An event as one line: what happened to which mountpoints; then each note.
fn shown(event: &Event) -> String {
    let named = |word: &str, filesystems: &[Filesystem]| {
        let names = filesystems.iter().map(|one| one.mountpoint.display().to_string());
        std::iter::once(word.to_owned()).chain(names).collect::<Vec<_>>().join(" ")
    };
    let mut parts = match event {
        Event::Frozen { filesystems, .. } => vec![named("frozen", filesystems)],
        Event::FreezeFailed { failure, .. } => vec![failure.to_string()],
        Event::Thawed { filesystems, .. } => vec![named("thawed", filesystems)],
    };
    match event {
        Event::Frozen { notes, .. } => parts.extend(notes.iter().map(ToString::to_string)),
        Event::FreezeFailed { left, .. } | Event::Thawed { left, .. } => {
            parts.extend(left.iter().map(ToString::to_string));
        }
    }
    parts.join("; ")
}

// ---- helpers -----------------------------------------------------------------

/// A state directory that belongs to the engine's account.
fn state_in(parent: &Path) -> PathBuf {
    let dir = parent.join("state");
    fs::create_dir(&dir).expect("a state directory");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).expect("its mode");
    chown(&dir, Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
    dir
}

fn start(state: &Path) -> Peer {
    let mut peer = Peer::role("engine", &[state.to_str().expect("a plain path")]);
    assert!(["thawed", "frozen"].contains(&peer.ask("status").as_str()));
    peer
}

fn started() -> (PathBuf, Peer) {
    let state = state_in(Path::new("/run"));
    let engine = start(&state);
    (state, engine)
}

/// Asks for a freeze and waits for what becomes of it.
fn freeze(engine: &mut Peer, order: &str) -> String {
    assert_eq!(engine.ask(order), "begun");
    engine.ask("event")
}

fn thaw(engine: &mut Peer) -> String {
    freeze(engine, "thaw")
}

// ---- tests -------------------------------------------------------------------

fn a_writer_blocks_on_each_kind_until_the_thaw() {
    let (_disks, mounts) = one_of_each();
    let (state, mut engine) = started();
    let mut writers = Writers::on(&mounts);
    assert_eq!(engine.ask("state"), "Thawed false");
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /c /b /a");
    assert_eq!(engine.ask("state"), "Frozen true");
    assert!(state.join(FROZEN_FILE).exists());
    assert!(mounts.iter().all(Mounted::is_frozen));
    writers.are_held_up();
    assert_eq!(engine.ask("freeze"), "filesystems are frozen already; thaw them first");
    assert_eq!(thaw(&mut engine), "thawed /a /b /c");
    writers.finish();
    assert_eq!(engine.ask("state"), "Thawed false");
    assert!(!state.join(FROZEN_FILE).exists());
    assert_eq!(thaw(&mut engine), "thawed");
    assert_eq!(freeze(&mut engine, "freeze /b"), "frozen /b", "and again");
    assert_eq!(thaw(&mut engine), "thawed /b");
}

fn a_closed_mountpoint_is_frozen() {
    let disk = Disk::small("ext4", "/disk.img");
    fs::create_dir("/closed").expect("a directory");
    let mounted = disk.mount("/closed/inner");
    for dir in ["/closed/inner", "/closed"] {
        chown(dir, Some(777), Some(777)).expect("another owner");
        fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).expect("closed");
    }
    let (_, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /closed/inner");
    assert!(mounted.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /closed/inner");
    assert!(!mounted.is_frozen());
}

fn only_what_the_list_names_is_frozen() {
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (one, two) = (disks[0].mount("/one"), disks[1].mount("/two"));
    let _again = Mounted::bind(Path::new("/two"), Path::new("/again"));
    let (state, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze /again /nowhere /proc"), "frozen /two");
    assert!(two.is_frozen() && !one.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /two");
    assert_eq!(freeze(&mut engine, "freeze /nowhere"), "frozen");
    assert_eq!(engine.ask("state"), "Thawed false", "nothing is frozen, so nothing is to thaw");
    assert!(!state.join(FROZEN_FILE).exists());
}

fn a_file_mountpoint_is_passed_over() {
    let disk = Disk::small("ext4", "/disk.img");
    let whole = disk.mount("/whole");
    fs::write("/whole/file", "").expect("a file");
    fs::create_dir("/whole/dir").expect("a directory");
    let file = Mounted::bind(Path::new("/whole/file"), Path::new("/file"));
    let _dir = Mounted::bind(Path::new("/whole/dir"), Path::new("/dir"));
    let (_, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /whole");
    assert_eq!(thaw(&mut engine), "thawed /whole");
    drop(whole);
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /dir", "the file comes first and cannot be opened");
    assert!(file.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /dir");
}

fn only_file_mountpoints_fail_the_freeze() {
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (whole, other) = (disks[0].mount("/whole"), disks[1].mount("/other"));
    fs::write("/whole/file", "").expect("a file");
    let _file = Mounted::bind(Path::new("/whole/file"), Path::new("/file"));
    drop(whole);
    let (_, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "failed to open /file: Not a directory");
    assert!(!other.is_frozen());
    assert_eq!(engine.ask("state"), "Thawed false");
}

fn a_nested_loop_mount_comes_first() {
    let disk = Disk::small("ext4", "/disk.img");
    let lower = Disk::new("ext4", Path::new("/lower.img"), 256);
    let lower = lower.mount("/lower");
    let upper = Disk::small("ext4", "/lower/upper.img");
    let upper = upper.mount("/upper");
    // The lower filesystem's last mount is younger than the upper one.
    let _again = Mounted::bind(Path::new("/lower"), Path::new("/again"));
    let _third = disk.mount("/third");
    let (_, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /third /upper /lower");
    assert!(upper.is_frozen() && lower.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /lower /upper /third");
}

fn a_nested_loop_mount_in_a_copied_namespace() {
    let none: Option<&str> = None;
    fs::create_dir("/first").expect("a directory");
    mount(none, "/first", Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
    let lower = Disk::new("ext4", Path::new("/lower.img"), 256);
    let _lower = lower.mount("/second");
    let upper = Disk::small("ext4", "/second/upper.img");
    let _upper = upper.mount("/first/upper");
    // A copied namespace lists /first/upper before /second.
    let state = state_in(Path::new("/run"));
    let mut command = Command::new("/bin/unshare");
    command.args(["--mount", "--propagation", "unchanged", cell::SELF, "--role", "engine"]).arg(&state);
    let mut engine = Peer::start(&mut command);
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", engine.child.id())).expect("its mount table");
    assert_eq!(engine.ask("status"), "thawed");
    let table_then = fs::read_to_string(format!("/proc/{}/mountinfo", engine.child.id())).unwrap_or(table);
    let place = |at: &str| table_then.find(at).unwrap_or_else(|| panic!("{at} in {table_then}"));
    assert!(place(" /first/upper ") < place(" /second "), "the order that misleads: {table_then}");
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /first/upper /second");
    assert_eq!(thaw(&mut engine), "thawed /second /first/upper");
    assert!(engine.succeeds());
    umount2("/first", MntFlags::MNT_DETACH).expect("/first");
}

fn a_covered_mount_is_reached_elsewhere_or_noted() {
    let disks = ["/1.img", "/2.img", "/3.img"].map(|image| Disk::small("ext4", image));
    let under = disks[0].mount("/both");
    let elsewhere = Mounted::bind(Path::new("/both"), Path::new("/elsewhere"));
    let over = disks[1].mount("/both");
    let deep = disks[2].mount("/way/deep");
    let (_, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /way/deep /both /elsewhere");
    assert!(under.is_frozen() && over.is_frozen() && deep.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /elsewhere /both /way/deep");
    drop(elsewhere);
    let none: Option<&str> = None;
    mount(none, "/way", Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
    assert_eq!(
        freeze(&mut engine, "freeze"),
        "frozen /both; /way/deep was left out: other mounts cover it; /both was left out: other mounts cover it"
    );
    assert!(!under.is_frozen() && over.is_frozen() && !deep.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /both");
    umount2("/way", MntFlags::MNT_DETACH).expect("/way");
}

fn what_was_mounted_later_is_frozen() {
    let (_, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "frozen");
    let disk = Disk::small("xfs", "/disk.img");
    let later = disk.mount("/later");
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /later");
    assert!(later.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /later");
}

fn what_cannot_be_frozen_is_noted() {
    fs::create_dir("/content").expect("a directory");
    let made =
        Command::new("/bin/mksquashfs").args(["/content", "/squash.img", "-quiet"]).output().expect("mksquashfs");
    assert!(made.status.success(), "{made:?}");
    let squash = Disk::attach("squashfs", Path::new("/squash.img"));
    let none: Option<&str> = None;
    fs::create_dir("/squash").expect("a directory");
    mount(Some(&squash.device), "/squash", Some("squashfs"), MsFlags::MS_RDONLY, none).expect("a squashfs");
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (plain, others) = (disks[0].mount("/plain"), disks[1].mount("/others"));
    let (_, mut engine) = started();
    others.freeze();
    assert_eq!(
        freeze(&mut engine, "freeze"),
        "frozen /plain; /others was left out: it was frozen already; \
         /squash was left out: this filesystem cannot be frozen"
    );
    assert!(plain.is_frozen());
    assert_eq!(thaw(&mut engine), "thawed /plain");
    assert!(others.is_frozen(), "not ours to thaw");
    assert!(others.thaw());
    umount2("/squash", MntFlags::empty()).expect("/squash");
}

fn a_failure_thaws_all_and_names_the_mount() {
    let (_disks, [plain, _broken, last]) = one_that_fails();
    let (state, mut engine) = started();
    let answer = freeze(&mut engine, "freeze");
    assert!(answer.starts_with("failed to freeze /broken: "), "{answer}");
    assert!(!answer.contains(';'), "all was undone: {answer}");
    assert!(!plain.is_frozen() && !last.is_frozen());
    assert_eq!(engine.ask("state"), "Thawed false");
    assert!(!state.join(FROZEN_FILE).exists());
    assert_eq!(freeze(&mut engine, "freeze /plain /last"), "frozen /last /plain", "and again without it");
    assert_eq!(thaw(&mut engine), "thawed /plain /last");
}

fn a_killed_engine_is_followed_by_one_that_thaws() {
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (one, two) = (disks[0].mount("/one"), disks[1].mount("/two"));
    // The state directory is itself on a filesystem that is frozen.
    let state = state_in(Path::new("/one"));
    let mut engine = start(&state);
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /two /one");
    let deadline = engine.ask("deadline");
    assert!(deadline.ends_with(" true true"), "{deadline}");
    engine.kill();
    assert!(one.is_frozen() && two.is_frozen());
    // In a namespace of its own the next one sees other mount ids.
    let mut command = Command::new("/bin/unshare");
    command.args(["--mount", "--propagation", "unchanged", cell::SELF, "--role", "engine"]).arg(&state);
    let mut engine = Peer::start(&mut command);
    assert_eq!(engine.ask("state"), "Frozen true");
    assert_eq!(engine.ask("deadline"), deadline);
    assert_eq!(engine.ask("freeze"), "filesystems are frozen already; thaw them first");
    assert!(one.is_frozen() && two.is_frozen(), "starting thaws nothing");
    assert!(two.thaw(), "by hand");
    assert_eq!(thaw(&mut engine), "thawed /one", "what was not frozen any more is not counted");
    assert!(!one.is_frozen());
    assert_eq!(engine.ask("state"), "Thawed false");
    assert_eq!(engine.ask("deadline"), "None false false");
    assert!(!state.join(FROZEN_FILE).exists());
    assert!(engine.succeeds());
}

fn a_remembered_one_that_is_gone_is_an_error() {
    let disks = ["/1.img", "/2.img"].map(|image| Disk::small("ext4", image));
    let (one, two) = (disks[0].mount("/one"), disks[1].mount("/two"));
    let (state, mut engine) = started();
    assert_eq!(freeze(&mut engine, "freeze"), "frozen /two /one");
    engine.kill();
    umount2("/two", MntFlags::MNT_DETACH).expect("/two");
    let mut engine = start(&state);
    assert_eq!(thaw(&mut engine), "thawed /one; failed to open /two: it is not mounted there any more");
    assert_eq!(engine.ask("status"), "error");
    assert!(state.join(FROZEN_FILE).exists());
    let _two_again = disks[1].mount("/elsewhere");
    assert_eq!(thaw(&mut engine), "thawed /two");
    assert_eq!(engine.ask("state"), "Thawed false");
    assert!(!one.is_frozen() && !two.is_frozen());
    assert!(!state.join(FROZEN_FILE).exists());
}

fn a_stuck_freeze_is_ended_by_a_thaw() {
    let lower = Disk::new("ext4", Path::new("/lower.img"), 256);
    let lower = lower.mount("/lower");
    let upper = Disk::small("ext4", "/lower/upper.img");
    let upper = upper.mount("/upper");
    let third = Disk::small("ext4", "/third.img");
    let third = third.mount("/third");
    let (state, mut engine) = started();
    fs::write(upper.path("data"), vec![7; 1 << 20]).expect("something to flush");
    // Somebody else freezes what the upper one must write to: its freeze is
    // stuck in the kernel until that is over.
    lower.freeze();
    assert_eq!(engine.ask("freeze /upper /third"), "begun");
    engine.wait_until_inside_ioctl(FIFREEZE, Path::new("/upper"));
    assert!(third.is_frozen());
    assert_eq!(engine.ask("state"), "Freezing true");
    assert_eq!(engine.ask("status"), "thawed", "only frozen says that a snapshot may be taken");
    assert_eq!(engine.ask("freeze"), "a freeze or thaw is still under way");
    assert_eq!(engine.ask("thaw"), "begun");
    while third.is_frozen() {}
    assert_eq!(engine.ask("state"), "Freezing true", "one is still stuck");
    assert!(lower.thaw());
    assert_eq!(engine.ask("event"), "the freeze was ended by a thaw");
    let thawed = engine.ask("event");
    assert!(["thawed /third /upper", "thawed /third"].contains(&thawed.as_str()), "{thawed}");
    assert!(!upper.is_frozen() && !lower.is_frozen());
    assert_eq!(engine.ask("state"), "Thawed false");
    assert!(!state.join(FROZEN_FILE).exists());
}

fn a_freeze_stuck_on_itself_is_ended_by_a_thaw() {
    let (_, mut engine) = started();
    let lower = Disk::new("ext4", Path::new("/lower.img"), 256);
    let lower = lower.mount("/lower");
    let upper = Disk::small("ext4", "/lower/upper.img");
    let upper = upper.mount("/upper");
    // A later bind mount is all that is left of the lower one, and the engine
    // started too early to know what lies on what: it takes the wrong order.
    let again = Mounted::bind(Path::new("/lower"), Path::new("/again"));
    drop(lower);
    fs::write(upper.path("data"), vec![7; 1 << 20]).expect("something to flush");
    assert_eq!(engine.ask("freeze"), "begun");
    engine.wait_until_inside_ioctl(FIFREEZE, Path::new("/upper"));
    assert!(again.is_frozen());
    assert_eq!(engine.ask("thaw"), "begun");
    assert_eq!(engine.ask("event"), "the freeze was ended by a thaw");
    let thawed = engine.ask("event");
    assert!(["thawed /again /upper", "thawed /again"].contains(&thawed.as_str()), "{thawed}");
    assert!(!upper.is_frozen() && !again.is_frozen());
    assert_eq!(engine.ask("state"), "Thawed false");
}
