//! The spawner: starts workers and openers, because the broker cannot become
//! another user.
//!
//! PID 1 of a PID namespace, so nothing in there can signal out and all die
//! with it. It holds no capability and can execute nothing but postern's own
//! file, by the descriptor that it was born with.
//!
//! Trust: orders come from the broker. Its children inherit its filter, and add
//! their own.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use postern_core::confine::{self, ConfineError, Confined, filters};
use postern_core::ipc::{Pipe, ReceiveError};
use postern_core::messages::{Role, SpawnerOrder, SpawnerReport, Text};
use postern_core::sys::{descriptors, last_words, process};

type Broker = Pipe<SpawnerReport, SpawnerOrder>;

/// Name of the spawner in `ps`.
pub const NAME: &CStr = c"postern: spawner";

/// How much rather than others a process is killed where memory has run out.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// A role's name in `ps`, by which a new process knows its role.
#[must_use]
pub const fn name(role: Role) -> &'static CStr {
    match role {
        Role::Opener => c"postern: opener",
        Role::Worker => c"postern: worker",
    }
}

/// Why a spawner ended; the number is its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The broker closed the pipe: the ordinary end.
    BrokerGone = 0,
    /// The broker spoke nonsense, or the pipe failed.
    BrokerBroken = 1,
    /// A barrier could not be put up; the broker was told.
    Unconfined = 4,
}

struct Child {
    id: u32,
    pid: Pid,
}

/// Runs a spawner on the descriptors that it was born with; see
/// [`filters`] for their numbers.
#[must_use]
pub fn run() -> End {
    // What `ps` shows without arguments; what it shows with them stands since
    // birth.
    let _ = process::name_self(c"postern-spawner");
    let (Ok(socket), Ok(executable)) =
        (descriptors::inherited(filters::BROKER), descriptors::inherited(filters::EXECUTABLE))
    else {
        return End::BrokerBroken;
    };
    let mut broker = Broker::new(socket);
    let say = broker.last_words();
    last_words::to(move |text| say(&SpawnerReport::Panicked { message: Text::cut(text.as_bytes()) }));
    let (identity, commands) = match broker.receive().map(|received| received.message) {
        Ok(SpawnerOrder::Setup { identity, commands }) => (identity, commands),
        Err(ReceiveError::Closed) => return End::BrokerGone,
        Ok(_) | Err(_) => return End::BrokerBroken,
    };
    // A service manager may keep postern from being killed where memory runs out:
    // that is for the broker, which thaws. A worker's size is its host's choice, and
    // it can be replaced; the guest's own processes shall not go before it.
    if std::fs::read_to_string(OOM_SCORE).is_ok_and(|score| score.starts_with('-')) {
        let _ = std::fs::write(OOM_SCORE, "0");
    }
    let prepare = || -> Result<(SignalFd, Confined), ConfineError> {
        let failed = |what| move |why: io::Error| ConfineError::Call { what, why };
        let deaths = watch_deaths().map_err(failed("watching for SIGCHLD"))?;
        let executable = executable.try_clone().map_err(failed("duplicating a descriptor"))?;
        Ok((deaths, confine::spawner(identity.as_ref(), commands, executable)?))
    };
    match prepare() {
        Ok((deaths, confined)) => {
            serve(&mut broker, &executable, &deaths, &confined).err().unwrap_or(End::BrokerBroken)
        }
        Err(why) => {
            let _ = broker.send(&SpawnerReport::Unconfined { why: Text::cut(why.to_string().as_bytes()) }, None);
            End::Unconfined
        }
    }
}

fn watch_deaths() -> io::Result<SignalFd> {
    let mut deaths = SigSet::empty();
    deaths.add(Signal::SIGCHLD);
    deaths.thread_block()?;
    Ok(SignalFd::with_flags(&deaths, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Serves until there is a reason to end, which is the error.
fn serve(
    broker: &mut Broker,
    executable: &OwnedFd,
    deaths: &SignalFd,
    confined: &Confined,
) -> Result<std::convert::Infallible, End> {
    let mut children: Vec<Child> = Vec::new();
    report(broker, &SpawnerReport::Ready { standing: confined.standing.clone() })?;
    loop {
        let mut ready =
            [PollFd::new(broker.as_fd(), PollFlags::POLLIN), PollFd::new(deaths.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Err(End::BrokerBroken),
        }
        let [order_there, death_there] = ready.map(|one| one.revents().is_some_and(|events| !events.is_empty()));
        if death_there {
            while let Ok(Some(_)) = deaths.read_signal() {}
            reap(broker, &mut children)?;
        }
        if order_there {
            obey(broker, executable, &mut children)?;
        }
    }
}

fn report(broker: &Broker, report: &SpawnerReport) -> Result<(), End> {
    broker.send(report, None).map_err(|_| End::BrokerBroken)
}

fn obey(broker: &mut Broker, executable: &OwnedFd, children: &mut Vec<Child>) -> Result<(), End> {
    let received = match broker.receive() {
        Ok(received) => received,
        Err(ReceiveError::Closed) => return Err(End::BrokerGone),
        Err(_) => return Err(End::BrokerBroken),
    };
    match (received.message, received.descriptor) {
        (SpawnerOrder::Spawn { role, id }, Some(socket)) => {
            // Standard input is /dev/null since birth.
            let stdin = io::stdin();
            let born = process::spawn(&process::Birth {
                executable: executable.as_fd(),
                name: name(role),
                null: stdin.as_fd(),
                handed: &[socket.as_fd()],
                pid_namespace: false,
                session: false,
            });
            match born {
                Ok(pid) => {
                    children.push(Child { id, pid });
                    report(broker, &SpawnerReport::Spawned { id })
                }
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
                    report(broker, &SpawnerReport::NotSpawned { id, errno })
                }
            }
        }
        (SpawnerOrder::Kill { id }, None) => {
            // A child that was not waited for yet still owns its process id.
            if let Some(child) = children.iter().find(|child| child.id == id) {
                let _ = kill(child.pid, Signal::SIGKILL);
            }
            Ok(())
        }
        _ => Err(End::BrokerBroken),
    }
}

/// Tells of every child that ended. As PID 1 it also inherits strangers; there
/// are none, for no child may fork.
fn reap(broker: &Broker, children: &mut Vec<Child>) -> Result<(), End> {
    loop {
        let (pid, signal, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, None, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Some(signal as i32), 0),
            Ok(WaitStatus::StillAlive) | Err(_) => return Ok(()),
            Ok(_) => continue,
        };
        if let Some(index) = children.iter().position(|child| child.pid == pid) {
            let child = children.swap_remove(index);
            report(broker, &SpawnerReport::Died { id: child.id, signal, status })?;
        }
    }
}

// The numbers that the filter names are the ones that the launch hands out.
const _: () = assert!(filters::BROKER == process::FIRST_HANDED && filters::EXECUTABLE == process::FIRST_HANDED + 1);
