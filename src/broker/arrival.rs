//! Waiting for a channel's path to appear: woken by the kernel when something
//! changes on the way to it, never by a clock.
//!
//! Trust: the path is the policy's or the command line's. Before confinement.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use postern_core::policy::Channel;

use crate::host::Host;
use crate::launch::Fatal;
use crate::say::{Level, Voice};

/// Opens the channel as soon as its path is there. `None`: told to end before.
pub(crate) fn await_host(channel: &Channel, signals: &SignalFd, voice: &Voice) -> Result<Option<Host>, Fatal> {
    let failed = |errno: Errno| Fatal::Call("waiting for the channel", errno.into());
    let mut waits = false;
    loop {
        let Some(path) = channel.path() else { return Ok(Some(Host::open(channel)?)) };
        let arrival = Arrival::watch(path).map_err(failed)?;
        match Host::open(channel) {
            Ok(host) => return Ok(Some(host)),
            Err(why) if !why.may_pass() => return Err(why.into()),
            Err(why) if !waits => {
                voice.say(Level::Warning, &format!("no channel yet: {why}; waiting for it"));
                voice.serves();
                waits = true;
            }
            Err(_) => {}
        }
        if !arrival.wait(signals).map_err(failed)? {
            return Ok(None);
        }
    }
}

/// Every directory on the way to a path that is there, and what stands at its
/// end. Set up before the path is tried, so that nothing is missed.
struct Arrival(Inotify);

impl Arrival {
    /// # Errors
    /// As inotify(7): mostly that there are too many.
    fn watch(path: &Path) -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // Not what is done to things that are there: in /dev any account may set
        // the times of some, and it would be root that is woken each time.
        let directory = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        // From the root on: a directory that is made meanwhile shows above it.
        let ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
        for ancestor in ancestors.into_iter().rev() {
            match inotify.add_watch(ancestor, directory) {
                Ok(_) => {}
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => break,
                Err(errno) => return Err(errno),
            }
        }
        // A port that another process holds: it is free when that closes it.
        let held = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_CLOSE_NOWRITE | AddWatchFlags::IN_ATTRIB;
        match inotify.add_watch(path, held) {
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(Self(inotify)),
            Err(errno) => Err(errno),
        }
    }

    /// Waits for a change. Returns false if postern is told to end.
    ///
    /// # Errors
    /// As poll(2).
    fn wait(&self, signals: &SignalFd) -> Result<bool, Errno> {
        loop {
            let mut ready =
                [PollFd::new(self.0.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            let [changed, signalled] = ready.map(|one| one.revents().is_some_and(|events| !events.is_empty()));
            while signalled && let Ok(Some(signal)) = signals.read_signal() {
                if [Signal::SIGTERM, Signal::SIGINT].iter().any(|end| *end as u32 == signal.ssi_signo) {
                    return Ok(false);
                }
            }
            if changed {
                return Ok(true);
            }
        }
    }
}
