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
use postern_core::catalogue::Command;
use postern_core::confine::filters::{self, BrokerNeeds, Listens, LogNeeds, Reconnects};
use postern_core::confine::seccomp::Rule;
use postern_core::confine::{self, BrokerPlan, ConfineError, identity};
use postern_core::ipc::List;
use postern_core::messages::Identity;
use postern_core::policy::Limits;
use postern_core::policy::parts::{OpenerPart, WorkerPart};
use postern_core::policy::rules::{FileRule, Rights, Types};
use postern_core::sys::descriptors;

use super::ACCOUNT;
use super::attacks::{STAGE, held};

/// Who the attacker is.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// The account without confinement.
    None,
    Worker,
    Opener(OpenerPart),
    Spawner,
    Broker(BrokerNeeds),
}

/// Where the broker's log is.
pub(crate) const LOG: &str = "/tmp/own/log";
/// Its directory ([`held::LOG`]), and nothing that a policy has to ask for.
const APPENDS: LogNeeds = LogNeeds { directory: 27, rotate: false, sync: false };
/// Where its state is.
pub(crate) const STATE: &str = "/tmp/own/state";

/// A socket that the broker may connect anew: [`held::SOCKET`].
const SYSLOG: Reconnects = Reconnects::new(23, "/dev/log");

/// A rule for regular files.
pub(crate) fn rule(path: &str, rights: Rights) -> FileRule {
    FileRule { path: path.into(), rights, except: Vec::new(), optional: false, types: Types::REGULAR }
}

pub(crate) fn opener(rules: Vec<FileRule>) -> Role {
    Role::Opener(OpenerPart { rules, create_mode: 0o600 })
}

impl Role {
    /// An opener with a rule for nothing of the stage.
    pub(crate) fn opener() -> Self {
        opener(vec![rule("/bin", Rights::READ)])
    }

    /// A broker with every act that a policy can need.
    pub(crate) fn broker() -> Self {
        Self::Broker(BrokerNeeds {
            freeze: true,
            signals: vec![libc::SIGUSR1, 38],
            reboots: Vec::new(),
            listens: Some(Listens::Unix),
            reconnects: vec![SYSLOG],
            log: Some(APPENDS),
        })
    }

    /// A broker that shuts down through the kernel.
    pub(crate) fn rebooting_broker() -> Self {
        Self::Broker(BrokerNeeds {
            freeze: false,
            signals: Vec::new(),
            reboots: vec![libc::LINUX_REBOOT_CMD_POWER_OFF, libc::LINUX_REBOOT_CMD_RESTART],
            listens: None,
            reconnects: Vec::new(),
            log: Some(APPENDS),
        })
    }

    /// A broker on a port, of a policy without freeze and shutdown.
    pub(crate) fn idle_broker() -> Self {
        Self::Broker(BrokerNeeds { log: Some(APPENDS), ..BrokerNeeds::default() })
    }

    /// One that rotates its log and waits for the disk.
    pub(crate) fn rotating_broker() -> Self {
        let log = Some(LogNeeds { rotate: true, sync: true, ..APPENDS });
        Self::Broker(BrokerNeeds { log, ..BrokerNeeds::default() })
    }

    /// Its filter, as this process would get it.
    pub(crate) fn filter(&self) -> Vec<Rule> {
        match self {
            Self::None => Vec::new(),
            Self::Worker => filters::worker(&worker_part()),
            Self::Opener(part) => filters::opener(part),
            Self::Spawner => filters::spawner(),
            Self::Broker(needs) => filters::broker(needs),
        }
    }

    /// Sets the stage and takes the role.
    pub(crate) fn prepare(&self) {
        set_stage();
        hold();
        self.confine();
    }

    fn confine(&self) {
        let place = |descriptor: OwnedFd| keep(descriptor, 4);
        let account = Identity { uid: ACCOUNT, gid: ACCOUNT, groups: List::default() };
        let become_account = || identity::become_account(&account).expect("the account");
        match self {
            Self::None => {
                become_account();
                for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
                    caps::clear(None, set).expect("no capability");
                }
            }
            Self::Worker => {
                become_account();
                place(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll").0);
                confine::worker(&worker_part()).expect("a worker's confinement");
            }
            Self::Opener(part) => {
                become_account();
                place(look("/proc/self/fd"));
                nix::sys::stat::umask(Permission::empty());
                confine::opener(part).expect("an opener's confinement");
            }
            Self::Spawner => {
                let executable = look("/proc/self/exe");
                place(executable.try_clone().expect("a duplicate"));
                confine::spawner(Some(&account), executable).expect("a spawner's confinement");
            }
            Self::Broker(needs) => {
                for directory in [LOG, STATE] {
                    fs::create_dir_all(directory).expect("a directory of the broker's");
                    chown(directory, Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
                }
                let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(LOG);
                keep(directory.expect("the log's directory").into(), held::LOG);
                let plan = BrokerPlan {
                    filter: needs.clone(),
                    log: Some(look(LOG)),
                    state: Some(look(STATE)),
                    root: needs.freeze.then(|| look("/")),
                    sockets: Vec::new(),
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

fn worker_part() -> WorkerPart {
    WorkerPart { commands: Command::all().collect(), limits: Limits::default() }
}

fn look(path: &str) -> OwnedFd {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Permission::empty()).expect(path)
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
fn keep(descriptor: OwnedFd, number: u64) {
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
