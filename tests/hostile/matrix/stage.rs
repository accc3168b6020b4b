//! Where a state of the matrix is played: an agent whose spawner is the test, its
//! scratch disks, and what an outsider sees of all that: files, filesystems,
//! signals, memory, records.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use postern_core::sys::fs::FIFREEZE;
use serde_json::Value;

use super::standin::{Life, SCRIPT, Standin, meeting};
use crate::support::agent::{Agent, BINARY, Home, Host, eventually};
use crate::support::cell;
use crate::support::disk::{Disk, Mounted};
use crate::support::init::Inbox;
use crate::support::process::is_inside_ioctl;
use crate::worker;

/// Everything but what would change this machine or take another: no sleep, no
/// processor, no memory block, and no trim beside them, so that what the policy
/// withholds is among the frames too; one mode of shutting down. How
/// often is another test's: here each frame is to be decided on its own.
pub(super) const POLICY: &str = r#"
profile = "files"
[commands]
allow = ["guest-shutdown", "guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list",
         "guest-fsfreeze-thaw"]
[[files]]
path = "/m/ro"
rights = ["read"]
[[files]]
path = "/m/rw"
rights = ["read", "write", "create", "append"]
[shutdown]
modes = ["powerdown"]
[freeze]
limit = "1h"
[limits]
handles = 16
opens = 1000000
acts = 1000000
"#;

/// What systemd takes to power off: systemd(1), SIGRTMIN+4.
const POWER_OFF: u32 = 38;

/// What the broker is at while frames come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The worker has not said yet that it is confined.
    Unconfined,
    Thawed,
    /// An open of the worker is at the opener, which does not answer.
    Opening,
    /// A freeze is stuck in the kernel.
    Freezing,
    Frozen,
    /// A thaw left something frozen.
    Error,
    /// Init was asked to stop the guest.
    ShuttingDown,
}

impl State {
    pub(super) const ALL: [Self; 7] =
        [Self::Unconfined, Self::Thawed, Self::Opening, Self::Freezing, Self::Frozen, Self::Error, Self::ShuttingDown];

    /// Whether filesystems are, or are being frozen.
    pub(super) const fn is_frozen(self) -> bool {
        matches!(self, Self::Freezing | Self::Frozen | Self::Error)
    }
}

/// What the test's machine has, for all states.
pub(super) struct Ground {
    pub(super) home: Home,
    meeting: UnixListener,
    inbox: Inbox,
    /// Mounts of what is frozen: `/third`, `/upper`, and `/lower` with its image.
    pub(super) third: Mounted,
    upper: Mounted,
    lower: Mounted,
    disks: [Disk; 3],
    before: BTreeMap<PathBuf, String>,
}

impl Ground {
    pub(super) fn new() -> Self {
        fs::create_dir_all("/run/systemd/system").expect("systemd's mark");
        let inbox = Inbox::of_cell();
        let mut home = Home::new();
        home.binary = cell::SELF.into();
        home.launch = vec!["--role".into(), "broker".into()];
        fs::write(worker::SCRIPT, SCRIPT).expect("the script");
        for (directory, mode, file) in [("/m/ro", 0o755, 0o644), ("/m/rw", 0o755, 0o644), ("/m/no", 0o777, 0o666)] {
            fs::create_dir_all(directory).expect("a directory");
            let name = Path::new(directory).join("f");
            fs::write(&name, directory).expect("a file");
            for (path, mode) in [(Path::new(directory), mode), (&name, file)] {
                fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode");
                chown(path, Some(home.worker), Some(home.worker)).expect("its owner");
            }
        }
        // A freeze of the upper one waits for what the lower one's can't write
        // while somebody else has frozen that.
        let below = Disk::new("ext4", Path::new("/lower.img"), 256);
        let lower = below.mount("/lower");
        let above = Disk::small("ext4", "/lower/upper.img");
        let upper = above.mount("/upper");
        let disk = Disk::small("ext4", "/third.img");
        let third = disk.mount("/third");
        fs::create_dir_all("/a").expect("a directory");
        let (meeting, disks) = (meeting(), [disk, above, below]);
        let mut ground = Self { home, meeting, inbox, third, upper, lower, disks, before: BTreeMap::new() };
        ground.before = ground.files();
        ground
    }

    /// Starts an agent whose workers are the test's.
    pub(super) fn start(&self, own_openers: bool) -> (Agent<'_>, Standin) {
        let mut agent = Agent { home: &self.home, child: self.home.command(POLICY).spawn().expect("the agent") };
        self.meeting.set_nonblocking(true).expect("a socket that does not wait");
        let mut spawner = eventually("the agent's spawner comes", || {
            if let Some(status) = agent.child.try_wait().expect("the agent's status") {
                panic!("the agent ended ({status}): {}", agent.said());
            }
            Standin::meet(&self.meeting)
        });
        spawner.own_openers = own_openers;
        (agent, spawner)
    }

    /// Every file that is no policy's: what an act outside would change.
    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![PathBuf::from("/")];
        let own = self.home.files();
        let not_ours = ["/proc", "/sys", "/dev", "/m/rw", "/upper", "/lower", "/third"].map(Path::new);
        while let Some(path) = open.pop() {
            let Ok(facts) = fs::symlink_metadata(&path) else { continue };
            // Log, state and socket of the agent.
            if not_ours.contains(&path.as_path()) || Some(path.as_path()) == own.parent() {
                continue;
            }
            let changed = if facts.is_dir() { 0 } else { facts.size() };
            let shown = format!(
                "inode {} mode {:o} owner {} size {changed} changed {}.{}",
                facts.ino(),
                facts.mode(),
                facts.uid(),
                facts.ctime(),
                facts.ctime_nsec()
            );
            if facts.is_dir() {
                open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
            found.insert(path, shown);
        }
        found
    }

    /// What changed outside the policy.
    pub(super) fn changed(&self) -> Vec<String> {
        let now = self.files();
        let all = self.before.keys().chain(now.keys());
        let mut changed: Vec<String> = all
            .filter(|path| self.before.get(*path) != now.get(*path) && !Self::is_the_tests_own(path))
            .map(|path| format!("{}: {:?} is now {:?}", path.display(), self.before.get(path), now.get(path)))
            .collect();
        changed.dedup();
        changed
    }

    /// What the test itself changes: the images below its disks.
    fn is_the_tests_own(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "img")
            || path == worker::SCRIPT
            || path == Path::new("/tmp")
    }

    /// How often init was asked to power off since the last look; panics if it
    /// was asked for anything else.
    pub(super) fn asked_to_power_off(&self) -> usize {
        let signals = self.inbox.signals();
        for signal in &signals {
            assert_eq!(signal.ssi_signo, POWER_OFF, "init was asked for something that the policy withholds");
        }
        signals.len()
    }

    /// Lets a freeze of `/upper` get stuck, once it comes.
    pub(super) fn block(&self) {
        fs::write(self.upper.path("data"), vec![7; 1 << 20]).expect("something to flush");
        self.lower.freeze();
    }

    pub(super) fn unblock(&self) {
        assert!(self.lower.thaw(), "it was frozen");
    }

    pub(super) fn is_stuck(&self, agent: &Agent<'_>) -> bool {
        is_inside_ioctl(agent.child.id(), FIFREEZE, &self.upper.at)
    }

    /// Whether filesystems are what the host asked for last. Not in the midst of
    /// a freeze or thaw.
    pub(super) fn is(&self, state: State, agent: &Agent<'_>) -> bool {
        match state {
            State::Freezing => self.is_stuck(agent) && self.third.is_frozen() && self.lower.is_frozen(),
            State::Frozen | State::Error => {
                self.third.is_frozen() && !self.upper.is_frozen() && !self.lower.is_frozen()
            }
            _ => !self.third.is_frozen() && !self.upper.is_frozen() && !self.lower.is_frozen(),
        }
    }

    /// Takes `/third` away, frozen as it is: nobody can thaw it by a path.
    pub(super) fn hide(&self) {
        umount2(&self.third.at, MntFlags::MNT_DETACH).expect("/third");
    }

    /// Brings it back.
    pub(super) fn show(&self) -> Mounted {
        self.disks[0].mount(&self.third.at)
    }
}

/// Passes on between broker and spawner while `act` speaks to the agent.
pub(super) fn honestly<T>(spawner: &mut Standin, act: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                spawner.pump(Duration::from_millis(20));
            }
        });
        // Also when it panics, or the scope would wait for ever.
        let _end = OnDrop(&over);
        act()
    })
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A real worker after all: a host's ping is answered and its status is `status`;
/// then it thaws, which must give `thawed`, and the agent ends in order.
pub(super) fn ends_well(agent: &mut Agent<'_>, spawner: &mut Standin, life: Option<Life>, status: &str, thawed: i64) {
    spawner.be_honest();
    drop(life);
    honestly(spawner, || {
        let mut host: Host = agent.connect();
        host.ping();
        assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), status);
        assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), thawed);
        assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "thawed");
        assert_eq!(host.open("/m/ro/f", "r").map(|handle| host.read(handle)).as_deref(), Ok("L20vcm8="));
        host.open("/m/no/f", "r").expect_err("outside");
        drop(host);
        agent.signal("broker", Signal::SIGTERM);
        let ended = agent.ended();
        assert_eq!(ended.code(), Some(0), "{}", agent.said());
    });
}

/// The log's chain is whole.
pub(super) fn verify(home: &Home) {
    let verified = Command::new(BINARY).args(["audit", "verify"]).arg(home.log()).output();
    let verified = verified.expect("postern audit verify");
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// What the kernel says of a process's memory, in KiB: the most that it ever had
/// resident, and what of it is its own now.
pub(super) fn memory(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().split(' ').next()?.parse().ok()).unwrap_or_default()
    };
    (field("VmHWM"), field("RssAnon"))
}

/// Descriptors that a process holds.
pub(super) fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default()
}

/// Waits until the broker has nothing to do.
pub(super) fn settle(spawner: &mut Standin) {
    for _ in 0..3 {
        spawner.pump(Duration::from_millis(5));
        sleep(Duration::from_millis(5));
    }
}
