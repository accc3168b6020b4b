//! One table of the file → its part of the policy, where that takes more than
//! reading its keys.
//!
//! Called by `check` only. Always makes a part, so that every mistake is found in
//! one go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::World;
use super::mistake::{Kind, Place, Report};
use super::read::{At, Settings, Value, Written};
use crate::policy::telling::Telling;
use crate::policy::{Account, Audit, Channel, Fsync, Heads, Identities, Vsock};

pub(super) fn audit(settings: &Settings) -> Audit {
    let number = |name| settings.number("audit", name).map_or(0, |at| at.value);
    let heads =
        |name: &str| settings.list("audit", "heads").is_some_and(|at| at.value.iter().any(|item| item.text() == name));
    Audit {
        log: PathBuf::from(settings.text("audit", "log").map_or("", |at| at.value)),
        fsync: match settings.text("audit", "fsync").map(|at| at.value) {
            Some("open") => Fsync::Open,
            Some("record") => Fsync::Record,
            _ => Fsync::Never,
        },
        rotate_bytes: settings.number("audit", "rotate_bytes").map(|at| at.value),
        keep: usize::try_from(number("keep")).unwrap_or(usize::MAX),
        keep_time: Duration::from_secs(number("keep_days").saturating_mul(24 * 60 * 60)),
        max_bytes: number("max_bytes"),
        heads: Heads {
            journal: heads("journal"),
            syslog: heads("syslog"),
            records: number("head_records"),
            interval: Duration::from_secs(number("head_interval")),
        },
    }
}

pub(super) fn telling(settings: &Settings) -> Telling {
    let list = |name| settings.list("facts", name).map_or(&[][..], |at| at.value).iter().map(At::text);
    Telling {
        interfaces: list("interfaces").map(str::to_owned).collect(),
        mountpoints: list("mountpoints").map(PathBuf::from).collect(),
        host_name: settings.text("facts", "host_name").map(|at| at.value.to_owned()),
    }
}

/// The method and where, which must fit.
pub(super) fn channel(written: &Written, report: &mut Report) -> Channel {
    let method = written.settings.text("channel", "method");
    let path = written.settings.text("channel", "path");
    let text = path.as_ref().map_or("", |at| at.value);
    let kind = method.as_ref().map_or("virtio-serial", |at| at.value);
    let given = path.as_ref().is_some_and(|path| path.place.source != 0);
    let port = written.settings.number("channel", "port");
    let peer = written.settings.number("channel", "peer");
    if let Some(method) = &method {
        let needs = match kind {
            "unix-listen" if !given => Some(("a path", "path = \"/run/postern/host.sock\"")),
            "isa-serial" if !given => Some(("a path", "path = \"/dev/ttyS0\"")),
            "vsock-listen" if port.is_none() => Some(("a port", "port = 1234")),
            _ => None,
        };
        if let Some((what, example)) = needs {
            let article = if kind == "isa-serial" { "an" } else { "a" };
            let what = format!("{article} {kind} channel needs {what}");
            report.error(Kind::ChannelPath, method.place, what, format!("write {example} under [channel]"));
        }
    }
    if let Some(path) = path.as_ref().filter(|path| given && Path::new(path.value).starts_with("/dev"))
        && kind == "unix-listen"
    {
        let help = "write a path such as \"/run/postern/host.sock\"";
        let what = "a unix-listen channel makes a socket, which /dev is not for";
        report.error(Kind::ChannelPath, path.place, what, help);
    }
    let vsock = kind == "vsock-listen";
    let written = |at: &Option<At<u64>>| at.as_ref().filter(|at| at.place.source != 0).map(|at| at.place);
    let idle =
        if vsock { path.as_ref().filter(|_| given).map(|at| at.place) } else { written(&port).or(written(&peer)) };
    if let Some(place) = idle {
        let what = format!("a {kind} channel does not use this");
        report.warn(Kind::IdleSetting, place, what, "leave it out");
    }
    let number = |at: Option<At<u64>>| at.and_then(|at| u32::try_from(at.value).ok());
    let path = PathBuf::from(text);
    match kind {
        "isa-serial" => Channel::IsaSerial(path),
        "unix-listen" => Channel::UnixListen(path),
        "vsock-listen" => Channel::VsockListen(Vsock {
            cid: Vsock::ANY,
            port: number(port).unwrap_or_default(),
            peer: number(peer).unwrap_or(Vsock::HOST),
        }),
        _ => Channel::VirtioSerial(path),
    }
}

/// Looks the accounts up.
pub(super) fn identities(written: &Written, world: &World, report: &mut Report) -> Identities {
    let account = |role: &str, report: &mut Report| {
        let at = written.settings.either("identities", role)?;
        let (name, uid, gid) = match &at.value {
            Value::Number(id) => {
                let id = u32::try_from(*id).ok()?;
                (id.to_string(), id, id)
            }
            Value::Text(name) => {
                let Some((uid, gid)) = world.account(name) else {
                    let what = format!("[identities] {role}: there is no account '{name}' in /etc/passwd");
                    let help = format!("make it (useradd --system {name}), or name another: {role} = \"ACCOUNT\"");
                    missing(at.place, world, what, help, report);
                    return None;
                };
                (name.clone(), uid, gid)
            }
            _ => return None,
        };
        // 65534 is what the kernel shows for users that it cannot map.
        if uid == 0 || gid == 0 || uid == 65534 {
            let what = format!("account '{name}' (user {uid}, group {gid}) belongs to others too");
            report.error(Kind::UnfitAccount, at.place, what, "write an account that nothing else uses");
            return None;
        }
        Some((Account { name, uid, gid }, at.place))
    };
    let worker = account("worker", report);
    let broker = account("broker", report);
    if let (Some((worker, _)), Some((broker, place))) = (&worker, &broker)
        && (worker.uid == broker.uid || worker.gid == broker.gid)
    {
        let shared = if worker.uid == broker.uid { "account" } else { "group" };
        let what = format!("worker and broker have the same {shared}, which would open the broker to the worker");
        report.error(Kind::SharedAccount, *place, what, "give each an account and group of its own");
    }
    let mut groups = Vec::new();
    for item in written.settings.list("identities", "groups").map_or(&[][..], |at| at.value) {
        let id = match &item.value {
            Value::Number(id) => u32::try_from(*id).ok(),
            Value::Text(name) => {
                let id = world.group(name);
                if id.is_none() {
                    let what = format!("there is no group '{name}' in /etc/group");
                    let help = format!("make it (groupadd --system {name}), or write a number");
                    missing(item.place, world, what, help, report);
                }
                id
            }
            _ => None,
        };
        let brokers = broker.as_ref().is_some_and(|(broker, _)| Some(broker.gid) == id);
        match id {
            Some(_) if brokers => {
                let what = "this is the broker's group, which would open the broker to the worker";
                report.error(Kind::SharedAccount, item.place, what, "leave it out");
            }
            Some(0) => {
                let what = "this is root's group";
                report.error(Kind::UnfitAccount, item.place, what, "write a group that may read only what is meant");
            }
            // By its name and by its number.
            Some(id) if groups.contains(&id) => {}
            Some(id) => groups.push(id),
            // One that was not there at the start: no group has this number.
            None if world.confined => groups.push(u32::MAX),
            None => {}
        }
    }
    Identities { worker: worker.map(|(account, _)| account), broker: broker.map(|(account, _)| account), groups }
}

/// An account that is not there: root needs it, nobody else does, and on
/// another machine it may be there.
fn missing(place: Place, world: &World, what: String, help: String, report: &mut Report) {
    if world.confined {
        return;
    }
    if world.here && world.euid == 0 {
        report.error(Kind::UnknownAccount, place, what, help);
    } else if world.here && world.wants_accounts {
        report.warn(Kind::NotHere, place, what, help);
    }
}
