//! The four processes under several policies: what their tables are asked for.
//! Used by the attacks and by the target `filters`, which looks at the tables
//! alone.

use nix::libc;
use postern_core::catalogue::facts::{Fact, FactSet};
use postern_core::catalogue::{Command, CommandSet};
use postern_core::confine::filters::{self, BrokerNeeds, Listens, LogNeeds, Reconnects};
use postern_core::confine::seccomp::Rule;
use postern_core::policy::Limits;
use postern_core::policy::parts::{OpenerPart, WorkerPart};
use postern_core::policy::rules::{FileRule, Rights, Types};
use postern_core::policy::telling::Telling;

/// Who the attacker is.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "each of the two targets uses its part")]
pub(crate) enum Role {
    /// The account without confinement.
    None,
    Worker(WorkerPart),
    Opener(OpenerPart),
    Spawner(CommandSet),
    Broker(BrokerNeeds),
}

/// Descriptor of the log's directory; see `attacks::held`.
pub(crate) const LOG_DIRECTORY: i32 = 27;
/// Descriptor of the state directory.
pub(crate) const STATE_DIRECTORY: i32 = 28;
/// A directory of the policy's files, kept open.
pub(crate) const POLICY_DIRECTORY: i32 = 31;
/// A log, and nothing that a policy has to ask for.
const APPENDS: LogNeeds = LogNeeds { directory: LOG_DIRECTORY, rotate: false, sync: false };
/// A socket that the broker may connect anew.
const SYSLOG: Reconnects = Reconnects::new(23, "/dev/log");

/// A rule for regular files.
pub(crate) fn rule(path: &str, rights: Rights) -> FileRule {
    FileRule { path: path.into(), rights, except: Vec::new(), optional: false, types: Types::REGULAR }
}

pub(crate) fn opener(rules: Vec<FileRule>) -> Role {
    telling_opener(rules, FactSet::EMPTY)
}

fn telling_opener(rules: Vec<FileRule>, facts: FactSet) -> Role {
    Role::Opener(OpenerPart { rules, create_mode: 0o600, facts, telling: Telling::default() })
}

fn worker(commands: CommandSet) -> Role {
    Role::Worker(WorkerPart {
        commands,
        redact: CommandSet::EMPTY,
        telling: Telling::default(),
        limits: Limits::default(),
    })
}

impl Role {
    /// A worker of a policy that allows everything.
    pub(crate) fn worker() -> Self {
        worker(Command::all().collect())
    }

    /// An opener with a rule for nothing of the stage.
    #[allow(dead_code, reason = "each of the two targets uses its part")]
    pub(crate) fn opener() -> Self {
        opener(vec![rule("/bin", Rights::READ)])
    }

    /// A spawner whose children may serve everything.
    #[allow(dead_code, reason = "each of the two targets uses its part")]
    pub(crate) fn spawner() -> Self {
        Self::Spawner(Command::all().collect())
    }

    /// A broker with every act that a policy can need beside one another.
    pub(crate) fn broker() -> Self {
        Self::Broker(BrokerNeeds {
            freeze: true,
            trim: false,
            signals: vec![libc::SIGUSR1, 38],
            reboots: Vec::new(),
            listens: Some(Listens::Unix),
            reconnects: vec![SYSLOG],
            log: Some(APPENDS),
            state: vec![STATE_DIRECTORY],
            policy: vec![POLICY_DIRECTORY],
        })
    }

    /// A broker that shuts down through the kernel.
    pub(crate) fn rebooting_broker() -> Self {
        let reboots = vec![libc::LINUX_REBOOT_CMD_POWER_OFF, libc::LINUX_REBOOT_CMD_RESTART];
        Self::Broker(BrokerNeeds { reboots, log: Some(APPENDS), ..BrokerNeeds::default() })
    }

    /// A broker on a port, of a policy without freeze and shutdown.
    pub(crate) fn idle_broker() -> Self {
        Self::Broker(BrokerNeeds { log: Some(APPENDS), ..BrokerNeeds::default() })
    }

    /// One that trims, and freezes nothing.
    pub(crate) fn trimming_broker() -> Self {
        Self::Broker(BrokerNeeds { trim: true, log: Some(APPENDS), ..BrokerNeeds::default() })
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
            Self::Worker(part) => filters::worker(part),
            Self::Opener(part) => filters::opener(part),
            Self::Spawner(commands) => filters::spawner(*commands),
            Self::Broker(needs) => filters::broker(needs),
        }
    }

    /// Every process, each under policies that together make every rule there is,
    /// the smallest first.
    pub(crate) fn all() -> Vec<(&'static str, Self)> {
        let every_right = Rights::READ.with(Rights::WRITE).with(Rights::CREATE).with(Rights::APPEND);
        let log = |rotate, sync| Some(LogNeeds { rotate, sync, ..APPENDS });
        let vsock = BrokerNeeds { listens: Some(Listens::Vsock), log: log(false, true), ..BrokerNeeds::default() };
        let everything = BrokerNeeds {
            freeze: true,
            trim: true,
            signals: vec![libc::SIGUSR1, 38],
            reboots: vec![libc::LINUX_REBOOT_CMD_POWER_OFF, libc::LINUX_REBOOT_CMD_RESTART],
            listens: Some(Listens::Unix),
            reconnects: vec![SYSLOG, Reconnects::new(24, "/run/systemd/journal/socket")],
            log: log(true, true),
            state: vec![STATE_DIRECTORY, STATE_DIRECTORY + 1],
            policy: vec![POLICY_DIRECTORY],
        };
        vec![
            ("worker, no command", worker(CommandSet::default())),
            ("worker, every command", Self::worker()),
            ("opener, no file rule", opener(Vec::new())),
            ("opener, a rule to read", opener(vec![rule("/bin", Rights::READ)])),
            ("opener, every right", opener(vec![rule("/bin", every_right)])),
            ("opener, every fact", telling_opener(Vec::new(), Fact::all().collect())),
            ("spawner", Self::Spawner(CommandSet::EMPTY)),
            ("spawner, every command", Self::spawner()),
            ("broker, not even a log", Self::Broker(BrokerNeeds::default())),
            ("broker, a log alone", Self::idle_broker()),
            ("broker, freezes and asks init", Self::broker()),
            ("broker, reboots", Self::rebooting_broker()),
            ("broker, vsock, fsync", Self::Broker(vsock)),
            ("broker, rotates", Self::rotating_broker()),
            ("broker, trims", Self::trimming_broker()),
            ("broker, everything", Self::Broker(everything)),
        ]
    }

    /// The name of a process's smallest table.
    #[allow(dead_code, reason = "each of the two targets uses its part")]
    pub(crate) fn smallest(process: &str) -> &'static str {
        Self::all().into_iter().map(|(name, _)| name).find(|name| name.starts_with(process)).unwrap_or_default()
    }
}
