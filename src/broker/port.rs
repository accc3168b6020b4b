//! A virtio-serial port that may be unplugged and come back.
//!
//! Everything that this takes is opened before confinement: a watch on `/dev`
//! and the kernel's list of drivers. The node of a port that is back is a new
//! inode, given to the worker's group by udev, and a new worker opens it; the
//! broker may open no device. Nothing here runs by a clock while nothing
//! happens: an event in `/dev` starts a second of looking.
//!
//! While `/` is frozen udev gives the node to the group and then hangs, for it
//! makes sure of each directory above its link. So a node that appears and is
//! not linked soon is tried by itself, if the kernel has the port's name for it.
//!
//! Trust: the path is the policy's. Who may write `/dev` is root of the guest.
//! A descriptor that a worker brings is asked what it is.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use nix::sys::stat::SFlag;
use postern_core::messages::{Answer, Text, WirePath};
use postern_core::sys::descriptors;

use crate::host::HostError;

/// Where device nodes appear. The directory of a port's link is made and
/// removed by udev, so it cannot be watched itself.
const NODES: &str = "/dev";
/// What the kernel calls the driver of virtio-serial ports.
const DRIVER: &str = "virtio-portsdev";
/// How long after an event in [`NODES`] the path is looked at: udev makes the
/// link a moment after the node.
const LOOK_FOR: Duration = Duration::from_secs(1);
/// When a node is tried although the path leads to none.
const LINK_WAIT: Duration = Duration::from_millis(250);
/// Most nodes that are remembered to be tried.
const NODES_MAX: usize = 32;
/// How often within that time.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest list of drivers that is read; Linux has about 600 bytes of them.
const DRIVERS_MAX: usize = 64 << 10;

/// The port's place, whether or not it is plugged in.
#[derive(Debug)]
pub(crate) struct Port {
    path: PathBuf,
    news: Inotify,
    drivers: File,
    /// Names that the kernel has for the node's driver.
    driver: Vec<String>,
    /// The port's name, as the kernel and the hypervisor have it.
    name: Option<Text>,
    gone: bool,
    /// When to look next, and since when.
    look: Option<(Instant, Instant)>,
    /// Nodes that appeared, and one of them is perhaps the port's.
    nodes: Vec<PathBuf>,
}

impl Port {
    /// The place of the port that `channel` is the open node of.
    pub(crate) fn new(path: &Path, channel: BorrowedFd<'_>) -> Result<Self, HostError> {
        // Before anything can happen to the node.
        let mut port = Self::watch(path)?;
        port.driver = driver_of(channel, &port.drivers).ok_or_else(|| HostError::NotAPort(path.to_owned()))?;
        port.name = name_of(channel);
        Ok(port)
    }

    /// The place of a port that is not there, and was: its link bears its name.
    pub(crate) fn absent(path: &Path) -> Result<Self, HostError> {
        let mut port = Self::watch(path)?;
        port.driver = vec![DRIVER.to_owned()];
        port.name = path.file_name().and_then(|name| Text::new(name.as_encoded_bytes()));
        // It may have come back while nobody watched, and udev hang since.
        port.nodes = nodes_in(Path::new(NODES));
        port.unplugged();
        Ok(port)
    }

    fn watch(path: &Path) -> Result<Self, HostError> {
        let failed = |why| HostError::Watch(path.to_owned(), why);
        let news = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        news.add_watch(NODES, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVED_TO)
            .map_err(failed)?;
        let drivers = File::open("/proc/devices")
            .map_err(|why| failed(Errno::from_raw(why.raw_os_error().unwrap_or_default())))?;
        let (driver, nodes) = (Vec::new(), Vec::new());
        Ok(Self { path: path.to_owned(), news, drivers, driver, name: None, gone: false, look: None, nodes })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn is_gone(&self) -> bool {
        self.gone
    }

    /// The watch on `/dev`, to poll.
    pub(crate) fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes in what happened in `/dev`, one read of it: any account makes
    /// events there, by setting the times of `/dev/null`, and may be faster than
    /// this.
    pub(crate) fn hear(&mut self) {
        let events = self.news.read_events().unwrap_or_default();
        if !events.iter().any(is_of_a_port) {
            return;
        }
        let names = events.into_iter().filter_map(|event| event.name);
        let nodes = names.filter(|name| is_node(name));
        for node in nodes.map(|name| Path::new(NODES).join(name)) {
            if self.gone && self.nodes.len() < NODES_MAX && !self.nodes.contains(&node) {
                self.nodes.push(node);
            }
        }
        self.look_again();
    }

    /// The port was unplugged. It may be back already.
    pub(crate) fn unplugged(&mut self) {
        self.gone = true;
        self.look_again();
    }

    /// Looks at the path for a while, if the port is gone.
    pub(crate) fn look_again(&mut self) {
        let now = Instant::now();
        // Not at once: a node that is being removed is still there. Nor later
        // than it was to be, or enough news would put it off for ever.
        let next = self.look.map_or(now + LOOK_EVERY, |(next, _)| next.min(now + LOOK_EVERY));
        self.look = self.gone.then_some((next, now));
    }

    /// When to look next.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.look.map(|(next, _)| next)
    }

    /// The order to fetch the port, if a node is there again: at the path, or
    /// one that nobody has linked and only its name tells of. Asked when it is
    /// time to look; each is told once.
    pub(crate) fn is_back(&mut self) -> Option<Answer> {
        let now = Instant::now();
        let (_, since) = self.look.filter(|(next, _)| now >= *next)?;
        let there = |path: &Path| fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device());
        if there(&self.path) {
            self.look = None;
            return Some(Answer::OpenPort { path: wire(&self.path)?, name: None });
        }
        self.look = (now < since + LOOK_FOR).then(|| (now + LOOK_EVERY, since));
        if now < since + LINK_WAIT {
            return None;
        }
        let name = self.name.clone()?;
        let node = self.nodes.pop().filter(|node| there(node))?;
        Some(Answer::OpenPort { path: wire(&node)?, name: Some(name) })
    }

    /// A worker found no port where it was sent: the next event tells, or the
    /// next node that is still to be tried.
    pub(crate) fn not_there(&mut self) {
        if !self.nodes.is_empty() {
            self.look_again();
        }
    }

    /// Takes the node that a worker opened.
    ///
    /// # Errors
    /// What it is, if it is not what was opened first.
    pub(crate) fn take_back(&mut self, channel: BorrowedFd<'_>) -> Result<(), &'static str> {
        if driver_of(channel, &self.drivers).as_ref() != Some(&self.driver) {
            return Err("it brought something else than the port");
        }
        self.gone = false;
        self.look = None;
        self.nodes.clear();
        Ok(())
    }
}

/// Whether this may tell of a port. Only root makes anything in [`NODES`]; what
/// is there already is changed by others too, but for a port's node.
fn is_of_a_port(event: &InotifyEvent) -> bool {
    let new = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_Q_OVERFLOW;
    event.mask.intersects(new) || event.name.as_deref().is_some_and(is_node)
}

/// What may be nodes of ports in there, by their names.
fn nodes_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| is_node(&entry.file_name())).map(|entry| entry.path()).take(NODES_MAX).collect()
}

fn is_node(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"vport")
}

/// Whether an open virtio-serial port has been unplugged, by the kernel's word:
/// it polls as hung up, and not as readable, which one without a host does. A
/// terminal in its place polls as broken.
pub(crate) fn is_unplugged(port: BorrowedFd<'_>) -> bool {
    let state = state_of(port);
    state.contains(PollFlags::POLLERR) || (state.contains(PollFlags::POLLHUP) && !state.contains(PollFlags::POLLIN))
}

/// Whether a serial line has hung up.
pub(crate) fn has_hung_up(line: BorrowedFd<'_>) -> bool {
    state_of(line).intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
}

fn state_of(channel: BorrowedFd<'_>) -> PollFlags {
    let mut state = [PollFd::new(channel, PollFlags::POLLIN | PollFlags::POLLOUT)];
    match poll(&mut state, PollTimeout::ZERO) {
        Ok(_) => state[0].revents().unwrap_or(PollFlags::empty()),
        Err(_) => PollFlags::empty(),
    }
}

/// The names of a character device's driver; `None` for anything else.
///
/// Not its number: each controller of ports has one of its own, which may be
/// another when it is plugged in again.
fn driver_of(channel: BorrowedFd<'_>, drivers: &File) -> Option<Vec<String>> {
    let stat = descriptors::stat(channel).ok()?;
    if stat.mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() {
        return None;
    }
    let names = names_of(&nix::sys::stat::major(stat.stands_for).to_string(), &read_whole(drivers)?);
    (!names.is_empty()).then_some(names)
}

/// The name that the kernel has for a port: of its device's attributes. No
/// other device has one there.
fn name_of(channel: BorrowedFd<'_>) -> Option<Text> {
    let device = descriptors::stat(channel).ok()?.stands_for;
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let name = fs::read(format!("/sys/dev/char/{major}:{minor}/name")).ok()?;
    Text::new(name.trim_ascii_end()).filter(|name| !name.as_slice().is_empty())
}

fn wire(path: &Path) -> Option<WirePath> {
    WirePath::from_path(path)
}

fn read_whole(file: &File) -> Option<String> {
    let mut text = vec![0; DRIVERS_MAX];
    let mut length = 0;
    while length < text.len() {
        match file.read_at(&mut text[length..], length as u64).ok()? {
            0 => break,
            count => length += count,
        }
    }
    text.truncate(length);
    String::from_utf8(text).ok()
}

/// Names of a character driver in the text of `/proc/devices`.
fn names_of(major: &str, drivers: &str) -> Vec<String> {
    let characters = drivers.lines().skip_while(|line| *line != "Character devices:").skip(1);
    let rows = characters.take_while(|line| !line.is_empty()).filter_map(|line| line.trim_start().split_once(' '));
    rows.filter(|(number, _)| *number == major).map(|(_, name)| name.trim_start().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVERS: &str = "Character devices:\n  1 mem\n  4 tty\n  4 ttyS\n 10 misc\n244 virtio-portsdev\n\nBlock \
                           devices:\n  8 sd\n244 virtblk\n";

    #[test]
    fn a_driver_is_known_by_its_names() {
        for (major, names) in [
            ("1", vec!["mem"]),
            ("4", vec!["tty", "ttyS"]),
            ("244", vec!["virtio-portsdev"]),
            ("8", vec![]),
            ("24", vec![]),
        ] {
            assert_eq!(names_of(major, DRIVERS), names, "{major}");
        }
        assert!(names_of("1", "").is_empty());
    }

    #[test]
    fn only_the_same_driver_is_taken_back() {
        let open = |path| File::open(path).unwrap_or_else(|why| panic!("{path}: {why}"));
        let null = open("/dev/null");
        let mut port = Port::new(Path::new("/dev/null"), null.as_fd()).expect("a place");
        assert!(!port.is_gone() && port.next_look().is_none());
        port.unplugged();
        assert!(port.is_gone() && port.next_look().is_some());
        for other in ["/dev/tty", "/proc/devices", "/dev"] {
            let Ok(other) = File::open(other) else { continue };
            assert!(port.take_back(other.as_fd()).is_err(), "{other:?}");
            assert!(port.is_gone());
        }
        port.take_back(open("/dev/zero").as_fd()).expect("the same driver");
        assert!(!port.is_gone() && port.next_look().is_none());
        let file = open("/proc/devices");
        assert!(matches!(Port::new(Path::new("/proc/devices"), file.as_fd()), Err(HostError::NotAPort(_))));
    }

    #[test]
    fn it_is_looked_for_after_news_and_then_no_more() {
        let null = File::open("/dev/null").expect("/dev/null");
        let mut port = Port::new(Path::new("/dev/null"), null.as_fd()).expect("a place");
        port.hear();
        assert!(port.next_look().is_none(), "it is there");
        port.path = "/nowhere".into();
        port.unplugged();
        let mut looks = 0;
        while let Some(next) = port.next_look() {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            assert!(port.is_back().is_none());
            looks += 1;
            assert!(looks < 1000, "it never ends");
        }
        assert!(looks > 1);
        port.path = "/dev/null".into();
        assert!(port.is_back().is_none(), "nobody looks");
        let there = tempfile::tempdir().expect("a directory");
        port.news.add_watch(there.path(), AddWatchFlags::IN_CREATE).expect("a watch");
        fs::write(there.path().join("node"), "").expect("a node");
        // News of /dev that other tests make may come first, a buffer at a time.
        (0..1000).find(|_| {
            port.hear();
            port.next_look().is_some()
        });
        std::thread::sleep(LOOK_EVERY);
        let order = Answer::OpenPort { path: WirePath::cut(b"/dev/null"), name: None };
        assert_eq!(port.is_back(), Some(order));
        assert!(port.next_look().is_none(), "it says so once");
    }

    #[test]
    fn what_any_account_can_do_in_dev_holds_nothing_up() {
        use nix::sys::stat::futimens;
        use nix::sys::time::TimeSpec;
        // All may write these, so all may set their times. Two, for the kernel
        // makes one of equal events.
        let open = |path| File::options().write(true).open(path).unwrap_or_else(|why| panic!("{path}: {why}"));
        let nodes = [open("/dev/null"), open("/dev/zero")];
        let touch = |node: &File| futimens(node, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW).expect("its times");
        let mut port = Port::new(Path::new("/dev/null"), nodes[0].as_fd()).expect("a place");
        port.unplugged();
        let found = (0..1000).find_map(|_| {
            touch(&nodes[0]);
            port.hear();
            std::thread::sleep(Duration::from_millis(1));
            touch(&nodes[1]);
            port.hear();
            port.is_back()
        });
        assert!(found.is_some(), "nobody ever looks");
        assert!(port.next_look().is_none());
        // Whoever is faster than the broker does not keep it.
        (0..2000).for_each(|_| nodes.iter().for_each(touch));
        port.hear();
        let mut news = [PollFd::new(port.news(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut news, PollTimeout::ZERO), Ok(1), "all at once");
        assert!(port.next_look().is_none(), "no news of a port");
    }

    #[test]
    fn an_absent_port_is_looked_for_among_the_nodes_that_are_there() {
        let there = tempfile::tempdir().expect("a directory");
        for name in ["vport2p1", "null", "virtio-ports"] {
            fs::write(there.path().join(name), "").expect("a node");
        }
        assert_eq!(nodes_in(there.path()), [there.path().join("vport2p1")]);
        assert!(nodes_in(Path::new("/nowhere")).is_empty());
        let path = Path::new("/dev/virtio-ports/org.qemu.guest_agent.0");
        let mut port = Port::absent(path).expect("a place");
        assert!(port.is_gone() && port.next_look().is_some());
        assert_eq!(port.name, Some(Text::cut(b"org.qemu.guest_agent.0")));
        // Nothing but a port is taken for it.
        let null = File::open("/dev/null").expect("/dev/null");
        assert!(port.take_back(null.as_fd()).is_err() && port.is_gone());
    }

    #[test]
    fn a_node_without_a_link_is_tried_by_its_name() {
        let null = File::open("/dev/null").expect("/dev/null");
        let mut port = Port::new(Path::new("/dev/null"), null.as_fd()).expect("a place");
        assert_eq!(port.name, None, "it is no port");
        port.path = "/nowhere".into();
        port.name = Some(Text::cut(b"org.qemu.guest_agent.0"));
        port.unplugged();
        port.nodes = vec!["/nowhere/else".into(), "/dev/zero".into()];
        let mut orders = Vec::new();
        while let Some(next) = port.next_look() {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            orders.extend(port.is_back());
        }
        let name = port.name.clone();
        assert_eq!(orders, [Answer::OpenPort { path: WirePath::cut(b"/dev/zero"), name }]);
    }
}
