//! Becoming one of the four processes: the descriptors that it holds, then its
//! real confinement. Called in a forked child, whose descriptor 3 is its
//! broker's end already.

use std::fs::{self, File, Permissions};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::stat::Mode as Permission;
use postern_core::confine::{self, BrokerPlan, ConfineError, identity};
use postern_core::ipc::List;
use postern_core::messages::Identity;
use postern_core::sys::descriptors;

use super::ACCOUNT;
use super::attacks::{STAGE, held};
use super::needs::Role;

/// Where the broker's log is.
pub(crate) const LOG: &str = "/tmp/own/log";
/// Where its state is.
pub(crate) const STATE: &str = "/tmp/own/state";

impl Role {
    /// Sets the stage and takes the role.
    pub(crate) fn prepare(&self) {
        set_stage();
        set_ground();
        hold();
        self.confine();
    }

    /// Takes the role, without the stage.
    pub(crate) fn confine(&self) {
        let place = |descriptor: OwnedFd| keep(descriptor, 4);
        let account = Identity { uid: ACCOUNT, gid: ACCOUNT, groups: List::default() };
        let become_account = || {
            identity::become_account(&account).expect("the account");
            // As a new program is: who confines itself has to undo it.
            nix::sys::prctl::set_dumpable(true).expect("dumpable");
        };
        match self {
            Self::None => {
                become_account();
                for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
                    caps::clear(None, set).expect("no capability");
                }
            }
            Self::Worker(part) => {
                become_account();
                place(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll").0);
                confine::worker(part).expect("a worker's confinement");
            }
            Self::Opener(part) => {
                become_account();
                place(look("/proc/self/fd"));
                nix::sys::stat::umask(Permission::empty());
                confine::opener(part).expect("an opener's confinement");
            }
            Self::Spawner(commands) => {
                let executable = look("/proc/self/exe");
                place(executable.try_clone().expect("a duplicate"));
                confine::spawner(Some(&account), *commands, executable).expect("a spawner's confinement");
            }
            Self::Broker(needs) => {
                for (path, number) in [(LOG, held::LOG), (STATE, held::STATE)] {
                    let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
                    keep(directory.expect("a directory of the broker's").into(), number);
                }
                let plan = BrokerPlan {
                    filter: needs.clone(),
                    log: Some(look(LOG)),
                    state: Some(look(STATE)),
                    root: needs.freeze.then(|| look("/")),
                    sockets: Vec::new(),
                    policy: Vec::new(),
                };
                let mut capabilities = Vec::new();
                if needs.freeze {
                    capabilities.extend([caps::Capability::CAP_SYS_ADMIN, caps::Capability::CAP_DAC_READ_SEARCH]);
                }
                if !needs.signals.is_empty() {
                    capabilities.push(caps::Capability::CAP_KILL);
                }
                confine::broker_identity(Some(&account), &capabilities).expect("a broker's identity");
                confine::broker_barriers(plan, || Ok::<_, ConfineError>(())).expect("a broker's barriers");
            }
        }
    }
}

fn look(path: &str) -> OwnedFd {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Permission::empty()).expect(path)
}

/// The directories that a broker's confinement needs.
pub(crate) fn set_ground() {
    for directory in [LOG, STATE] {
        fs::create_dir_all(directory).expect("a directory of the broker's");
        chown(directory, Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
    }
}

/// Files that the account may do anything with, as they were before the last
/// attack.
fn set_stage() {
    let stage = Path::new(STAGE);
    let _ = fs::remove_dir_all(stage);
    fs::create_dir(stage).expect("the stage");
    fs::write(stage.join("file"), "content of the file").expect("a file");
    fs::write(stage.join("append"), "content to keep").expect("a file");
    symlink(stage.join("file"), stage.join("link")).expect("a link");
    // Bound to nobody: what is connected to is the name.
    drop(UnixListener::bind(stage.join("socket")).expect("a socket"));
    for name in ["", "file", "append"] {
        chown(stage.join(name), Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
    }
    fs::set_permissions(stage, Permissions::from_mode(0o755)).expect("its mode");
}

/// Gives a descriptor this number for as long as the process lives.
pub(crate) fn keep(descriptor: OwnedFd, number: u64) {
    let number = i32::try_from(number).expect("a descriptor");
    let _ = descriptors::move_to(descriptor, number).expect("a descriptor moves").into_raw_fd();
}

/// Opens what an attacker holds, under the numbers of [`held`].
fn hold() {
    let stage = Path::new(STAGE);
    keep(File::options().read(true).write(true).open(stage.join("file")).expect("a file").into(), held::FILE);
    keep(File::options().append(true).open(stage.join("append")).expect("a file").into(), held::APPEND);
    let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(stage).expect("a directory");
    keep(directory.into(), held::DIRECTORY);
    let flags = SockFlag::SOCK_CLOEXEC;
    let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a socketpair");
    send(one.as_raw_fd(), b"message", MsgFlags::empty()).expect("a message");
    keep(one, held::SOCKET);
    keep(other, held::PEER);
    keep(File::open(stage.join("file")).expect("a file").into(), held::READ);
    keep(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll").0, held::EPOLL);
}
