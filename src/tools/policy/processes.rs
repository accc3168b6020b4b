//! The part of `policy explain` about processes: accounts, capabilities,
//! Landlock, and every call that a filter lets through.
//!
//! Trust: computed from the checked policy with the tables that the processes
//! confine themselves by.

use std::fmt;

use ::caps::Capability;
use postern_core::catalogue::facts::{Allows, Fact};
use postern_core::catalogue::{Act, Command};
use postern_core::confine::caps::{self, Asked};
use postern_core::confine::filters::{self, BrokerNeeds, Listens, LogNeeds};
use postern_core::confine::seccomp;
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
    let rules = policy.files.iter().map(|rule| format!("{} ({})", rule.path.display(), rule.rights));
    let facts = policy.facts().iter().flat_map(|fact| fact.grants().map(move |grant| (fact.row().name, grant)));
    let facts = facts.map(|(name, (path, allows))| {
        let allowed = match allows {
            Allows::Read => "read",
            Allows::List => "list",
        };
        format!("{path} ({allowed}, to tell of {name})")
    });
    let paths: Vec<String> = rules.chain(facts).collect();
    let paths = if paths.is_empty() { "no path".to_owned() } else { paths.join("; ") };
    vec![
        Process {
            name: "broker",
            account: account(&policy.identities.broker),
            groups: Vec::new(),
            capabilities: capabilities(policy),
            landlock: broker_leaves(policy),
            calls: broker_calls(policy),
        },
        child("spawner", "executes its own file".to_owned(), &filters::spawner(policy.commands)),
        child("opener", paths, &filters::opener(&policy.opener_part())),
        child("worker", worker_leaves(policy), &filters::worker(&policy.worker_part())),
    ]
}

/// What a worker's domain leaves it; and what it holds that no domain is asked about.
fn worker_leaves(policy: &Policy) -> String {
    let facts = policy.facts();
    let mut leaves = "no path".to_owned();
    if facts.contains(Fact::Interfaces) {
        leaves += "; a netlink socket, by which one that has fallen sees every interface, address and route of the \
                   guest, whatever is redacted, and can change none (that takes CAP_NET_ADMIN)";
    } else if facts.contains(Fact::Routes) {
        leaves += "; the kernel's tables of routes, of which one that has fallen sees every line, whatever is redacted";
    }
    leaves
}

/// The broker's capabilities. Which one shutdown takes is known when postern
/// starts: they are told as for an init that takes signals, with what is other
/// for others.
fn capabilities(policy: &Policy) -> Vec<String> {
    let by = |asked| caps::broker(policy, asked);
    let usual = by(Asked::BySignal);
    let others = [(Asked::ByFifo, "where init takes requests by a FIFO"), (Asked::InNoWay, "where init is unknown")];
    let told = |needed: &Capability| {
        let instead = others.iter().filter(|(asked, _)| !by(*asked).contains(needed)).map(|(asked, when)| {
            let other = by(*asked).into_iter().find(|other| !usual.contains(other));
            format!("{} {when}", other.map_or_else(|| "none".to_owned(), |other| other.to_string()))
        });
        let instead: Vec<String> = instead.collect();
        if instead.is_empty() { needed.to_string() } else { format!("{needed} ({})", instead.join(", ")) }
    };
    usual.iter().map(told).collect()
}

/// What the broker's domain leaves it, and what it had open before.
fn broker_leaves(policy: &Policy) -> String {
    let lists = freezes(policy) || policy.needs(Act::Trim);
    let leaves = filters::broker_leaves(lists, policy.audit.rotate_bytes.is_some(), remembers(policy));
    match filters::broker_opens(policy).as_slice() {
        [] => leaves.to_owned(),
        opened => format!("{leaves}; open since its start: {}", opened.join("; ")),
    }
}

fn freezes(policy: &Policy) -> bool {
    policy.needs(Act::Freeze) || policy.needs(Act::Thaw)
}

/// Whether the broker writes state files: of what is frozen, of the numbers that
/// it gave to files.
fn remembers(policy: &Policy) -> bool {
    freezes(policy) || policy.commands.contains(Command::FileOpen)
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
        freeze: freezes(policy),
        trim: policy.needs(Act::Trim),
        listens: match policy.channel {
            Channel::VirtioSerial(_) | Channel::IsaSerial(_) => None,
            Channel::UnixListen(_) => Some(Listens::Unix),
            Channel::VsockListen(_) => Some(Listens::Vsock),
        },
        log: Some(LogNeeds::new(&policy.audit, 0)),
        state: if remembers(policy) { vec![0] } else { Vec::new() },
        // As of the log's directory: which numbers, and how many, the start shows.
        policy: vec![0],
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
