//! The opener: opens files for the broker, as the policy's account, inside a
//! Landlock domain of exactly the policy's paths.
//!
//! It looks at what a path names (`O_PATH`, no side effect), asks the policy's
//! rules about the path that the kernel *resolved* and about the object's type,
//! and only then opens that same object. Landlock asks once more.
//!
//! It also reads what the catalogue's facts of the guest are read from, and hands
//! that on unparsed.
//!
//! Trust: orders come from the broker, the paths in them from the host. Not
//! reachable from the worker.
#![forbid(unsafe_code)]

mod disks;
mod gather;
mod lasting;
mod mounts;
mod open;

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode as Permissions, umask};
use postern_core::catalogue::facts;
use postern_core::confine::{self, Confined, filters};
use postern_core::ipc::{Pipe, ReceiveError};
use postern_core::messages::{OpenerOrder, OpenerReport, Text, WirePath};
use postern_core::policy::parts::OpenerPart;
use postern_core::sys::{descriptors, last_words, process};

use gather::{Gatherer, Told};
use lasting::Looks;
use open::{Opened, Opener};

type Broker = Pipe<OpenerReport, OpenerOrder>;

/// Why an opener ended; the number is its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The broker closed the pipe: the ordinary end.
    BrokerGone = 0,
    /// The broker spoke nonsense, or the pipe failed.
    BrokerBroken = 1,
    /// A barrier could not be put up; the broker was told.
    Unconfined = 4,
}

/// Runs an opener on the descriptors that it was born with; see
/// [`filters`] for their numbers.
#[must_use]
pub fn run() -> End {
    // What `ps` shows without arguments; what it shows with them stands since
    // birth.
    let _ = process::name_self(c"postern-opener");
    let Ok(socket) = descriptors::inherited(filters::BROKER) else { return End::BrokerBroken };
    let mut broker = Broker::new(socket);
    let say = broker.last_words();
    last_words::to(move |text| say(&OpenerReport::Panicked { message: Text::cut(text.as_bytes()) }));
    let mut memory = None;
    let mut next = || loop {
        let received = broker.receive()?;
        match received.message {
            OpenerOrder::Memory {} => memory = received.descriptor,
            order => return Ok(order),
        }
    };
    let part = match OpenerPart::from_orders(&mut next) {
        Ok(part) => part,
        Err(ReceiveError::Closed) => return End::BrokerGone,
        Err(_) => return End::BrokerBroken,
    };
    let (proc_self_fd, mut gatherer, confined) = match prepare(&part, memory) {
        Ok(prepared) => prepared,
        Err(why) => {
            let _ = broker.send(&OpenerReport::Unconfined { why: Text::cut(why.to_string().as_bytes()) }, None);
            return End::Unconfined;
        }
    };
    serve(&mut broker, &Opener::new(part, proc_self_fd), &mut gatherer, &confined)
}

/// What an opener works with: `/proc/self/fd`, and what it gathers with.
type Prepared = (OwnedFd, Gatherer, Confined);

fn prepare(part: &OpenerPart, memory: Option<OwnedFd>) -> Result<Prepared, confine::ConfineError> {
    let failed = |what| move |why| confine::ConfineError::Call { what, why };
    // First, for it came under the number that is the other's.
    let memory = memory
        .map(|memory| descriptors::move_to(memory, filters::GATHERED))
        .transpose()
        .map_err(failed("moving a descriptor"))?;
    let proc_self_fd = nix::fcntl::open("/proc/self/fd", OFlag::O_PATH | OFlag::O_CLOEXEC, Permissions::empty())
        .map_err(std::io::Error::from)
        .and_then(|directory| descriptors::move_to(directory, filters::PROC_SELF_FD))
        .map_err(failed("opening /proc/self/fd"))?;
    let mounts = part
        .facts
        .measures()
        .then(|| nix::fcntl::open(facts::MOUNTS, filters::OPEN_FACT, Permissions::empty()))
        .transpose()
        .map_err(std::io::Error::from)
        .and_then(|table| table.map(|table| descriptors::move_to(table, filters::MOUNTINFO)).transpose())
        .map_err(failed("opening /proc/self/mountinfo"))?;
    // The policy says which mode a created file gets, whatever the umask.
    umask(Permissions::empty());
    Ok((proc_self_fd, Gatherer::new(memory, mounts, part.telling.clone()), confine::opener(part)?))
}

fn serve(broker: &mut Broker, opener: &Opener, gatherer: &mut Gatherer, confined: &Confined) -> End {
    if broker.send(&OpenerReport::Ready { standing: confined.standing.clone() }, None).is_err() {
        return End::BrokerBroken;
    }
    loop {
        let sent = match broker.receive().map(|received| received.message) {
            Ok(OpenerOrder::Open { id, path, mode }) => match opener.open(path.as_path(), mode) {
                Ok(Opened { file, look, facts }) => {
                    broker.send_two(&OpenerReport::Opened { id, facts }, file.as_fd(), look.as_fd())
                }
                Err(refusal) => {
                    let resolved = refusal.resolved.as_deref().and_then(WirePath::from_path);
                    let report = OpenerReport::NotOpened { id, errno: refusal.errno as i32, by: refusal.by, resolved };
                    broker.send(&report, None)
                }
            },
            Ok(OpenerOrder::Tell { id, fact }) => match (Looks::of(fact), gatherer.tell(fact)) {
                (Some(Looks { name, object }), Ok(Told { length, denied: false })) => {
                    let report = OpenerReport::Lasting { id, length, name: name.1, object: object.1 };
                    broker.send_two(&report, name.0.as_fd(), object.0.as_fd())
                }
                (_, Ok(Told { length, denied })) => broker.send(&OpenerReport::Gathered { id, length, denied }, None),
                (_, Err(errno)) => broker.send(&OpenerReport::NotTold { id, errno: errno as i32 }, None),
            },
            Err(ReceiveError::Closed) => return End::BrokerGone,
            Ok(_) | Err(_) => return End::BrokerBroken,
        };
        if sent.is_err() {
            return End::BrokerBroken;
        }
    }
}
