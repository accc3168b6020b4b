//! The part of `policy explain` about processes: accounts, capabilities,
//! Landlock, and every call that a filter lets through.
//!
//! Trust: computed from the checked policy with the tables that the processes
//! confine themselves by.

use std::fmt;

use postern_core::catalogue::Act;
use postern_core::confine::filters::{self, BrokerNeeds, Listens, LogNeeds};
use postern_core::confine::{caps, seccomp};
use postern_core::policy::{Account, Channel, Policy, ShutdownMethod};
use serde::Serialize;

/// One process.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Which.
    pub name: &'static str,
    /// As whom it runs; nothing where the account is not on this machine.
    pub account: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Permitted, effective and bounding; nothing is inheritable or ambient.
    pub capabilities: Vec<String>,
    /// What its Landlock domain leaves.
    pub landlock: String,
    /// What its filter lets through. Any other call kills the process.
    pub calls: Vec<Call>,
}

/// One call that a filter lets through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Which of its arguments, from 0, are held to certain values.
    pub restricted_arguments: Vec<u8>,
    /// Why it is let through.
    pub why: &'static str,
}

/// Every process under `policy`.
pub(super) fn of(policy: &Policy) -> Vec<Process> {
    let account = |account: &Option<Account>| {
        account.as_ref().map(|account| format!("{} (user {}, group {})", account.name, account.uid, account.gid))
    };
    let worker = account(&policy.identities.worker);
    let child = |name, landlock: String, rules: &[seccomp::Rule]| Process {
        name,
        account: worker.clone(),
        groups: policy.identities.groups.clone(),
        capabilities: Vec::new(),
        landlock,
        calls: calls(rules),
    };
    let paths: Vec<String> =
        policy.files.iter().map(|rule| format!("{} ({})", rule.path.display(), rule.rights)).collect();
    let paths = if paths.is_empty() { "no path".to_owned() } else { paths.join("; ") };
    vec![
        Process {
            name: "broker",
            account: account(&policy.identities.broker),
            groups: Vec::new(),
            capabilities: capabilities(policy),
            landlock: filters::broker_leaves(policy.needs(Act::Freeze), policy.audit.rotate_bytes.is_some()).to_owned(),
            calls: broker_calls(policy),
        },
        child("spawner", "executes its own file".to_owned(), &filters::spawner()),
        child("opener", paths, &filters::opener(&policy.opener_part())),
        child("worker", "no path".to_owned(), &filters::worker(&policy.worker_part())),
    ]
}

/// The broker's capabilities. With method `auto`, which one shutdown takes is
/// known when postern starts.
fn capabilities(policy: &Policy) -> Vec<String> {
    let (known, unknown) = (caps::broker(policy, true), caps::broker(policy, false));
    let both = known.iter().zip(&unknown);
    both.map(
        |(known, unknown)| {
            if known == unknown { known.to_string() } else { format!("{known} ({unknown} where init is unknown)") }
        },
    )
    .collect()
}

fn calls(rules: &[seccomp::Rule]) -> Vec<Call> {
    let call = |rule: &seccomp::Rule| Call {
        name: rule.name,
        restricted_arguments: rule.when.iter().map(|when| when.argument()).collect(),
        why: rule.why,
    };
    rules.iter().map(call).collect()
}

/// Which signal or which command shuts down depends on the init that is found
/// at the start, and the log's directory has its number from there, so those
/// rules are named here without their values.
fn broker_calls(policy: &Policy) -> Vec<Call> {
    let needs = BrokerNeeds {
        freeze: policy.needs(Act::Freeze) || policy.needs(Act::Thaw),
        listens: match policy.channel {
            Channel::VirtioSerial(_) | Channel::IsaSerial(_) => None,
            Channel::UnixListen(_) => Some(Listens::Unix),
            Channel::VsockListen(_) => Some(Listens::Vsock),
        },
        log: Some(LogNeeds::new(&policy.audit, 0)),
        ..BrokerNeeds::default()
    };
    let mut calls = calls(&filters::broker(&needs));
    if policy.audit.heads.journal || policy.audit.heads.syslog {
        calls.push(Call {
            name: "connect",
            restricted_arguments: vec![0, 2],
            why: "journald or syslog, which was restarted under a new socket: its own datagram socket, the name's length",
        });
    }
    if policy.needs(Act::Shutdown) {
        if policy.shutdown.method != ShutdownMethod::Kernel {
            calls.push(Call {
                name: "kill",
                restricted_arguments: vec![0, 1],
                why: "asking init to shut down: PID 1, and the signals that the init found at the start takes",
            });
        }
        if policy.shutdown.method != ShutdownMethod::Init {
            calls.push(Call {
                name: "reboot",
                restricted_arguments: vec![0, 2],
                why: "shutting down by the kernel, as the policy chose",
            });
        }
    }
    calls
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.account.as_deref().unwrap_or("account not on this machine");
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        let groups = if groups.is_empty() { String::new() } else { format!(", groups {}", groups.join(" ")) };
        let capabilities = if self.capabilities.is_empty() { "none".to_owned() } else { self.capabilities.join(" ") };
        writeln!(f, "  {:<9} {account}{groups}", self.name)?;
        writeln!(f, "            capabilities  {capabilities}")?;
        writeln!(f, "            Landlock      {}", self.landlock)?;
        writeln!(f, "            seccomp       {}", self.calls_in_short())
    }
}

impl Process {
    /// Each name once; a bracket says that arguments are restricted.
    fn calls_in_short(&self) -> String {
        let mut names: Vec<&str> = self.calls.iter().map(|call| call.name).collect();
        names.sort_unstable();
        names.dedup();
        let free =
            |name: &&str| self.calls.iter().any(|call| call.name == *name && call.restricted_arguments.is_empty());
        let (free, held): (Vec<&str>, Vec<&str>) = names.iter().copied().partition(free);
        format!("{}; with restricted arguments: {}", free.join(" "), held.join(" "))
    }
}
