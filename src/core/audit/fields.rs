//! Groups of fields that records share, and the words in them: used by `ecs`
//! alone, which says which record has which.
//!
//! Trust: as `ecs`.

use std::borrow::Cow;

use jiff::Timestamp;
use nix::errno::Errno;

use super::json::{Fields, Value, hex};
use super::mounts::Mounts;
use super::run::{Confinement, Opening, Reloaded, Run};
use super::terms::{After, Asked, Closing, Lost, Outcome, Peer, Role, Stands, ThawCause};
use super::text::Text;
use crate::catalogue::{Command, CommandSet};
use crate::messages::{Barrier, Denial, Facts};
use crate::policy::ShutdownMethod;
use crate::policy::rules::{Mode, Types};

pub(super) fn log_opened(out: &mut Fields, run: &Run, why: Opening) {
    reason(
        out,
        match why {
            Opening::Started => "started",
            Opening::Rotated => "rotated",
            Opening::Removed => "the file was removed",
        },
    );
    out.push(("process.pid", Value::Number(run.pid.into())));
    out.push(("process.name", Value::Str("broker".into())));
    if let Some(digest) = &run.executable {
        out.push(("process.hash.sha256", digested(digest)));
    }
    out.push(("user.id", id(run.uid)));
    out.push(("host.os.kernel", Value::Str(run.kernel.clone().into())));
    out.push(("host.boot.id", Value::Str(run.boot_id.clone().into())));
    out.push(("postern.version", Value::Str(run.version.into())));
    policy(out, &run.policy_digest, &run.policy_in_force, [run.commands, run.redact], run.file_rules);
    text(out, "postern.channel", "postern.channel_bytes", &run.channel);
    out.push(("postern.privileged", Value::Bool(run.privileged)));
    out.push(("postern.landlock_abi", Value::Number(run.landlock_abi.into())));
    out.push(("postern.confinement", Value::Object(run.confinement.iter().map(confinement).collect())));
}

/// What a policy comes down to: what it allows, and what of that it redacts.
fn policy(out: &mut Fields, digest: &[u8; 32], in_force: &[u8; 32], sets: [CommandSet; 2], file_rules: usize) {
    out.push(("postern.policy_digest", digested(digest)));
    out.push(("postern.policy_in_force", digested(in_force)));
    for (name, commands) in ["postern.commands", "postern.redacted"].into_iter().zip(sets) {
        let commands = commands.iter().map(|command| command.name().to_owned()).collect();
        out.push((name, Value::List(commands)));
    }
    out.push(("postern.file_rules", Value::Number(file_rules as u64)));
}

pub(super) fn put_reloaded(out: &mut Fields, new: &Reloaded) {
    policy(out, &new.digest, &new.in_force, [new.commands, new.redact], new.file_rules);
    put_words(out, "postern.tightened", &new.tightened);
    put_words(out, "postern.widened", &new.widened);
    put_words(out, "postern.surplus", &new.surplus);
}

pub(super) fn put_refused_policy(out: &mut Fields, digest: Option<&[u8; 32]>, restart: &[&'static str]) {
    if let Some(digest) = digest {
        out.push(("postern.policy_refused", digested(digest)));
    }
    put_words(out, "postern.restart", restart);
}

/// A list of words of our own, unless it is empty.
fn put_words(out: &mut Fields, name: &'static str, words: &[&'static str]) {
    if !words.is_empty() {
        out.push((name, Value::List(words.iter().map(|&word| word.to_owned()).collect())));
    }
}

/// One process of a plan, under its name.
fn confinement(plan: &Confinement) -> (&'static str, Value) {
    let fields = vec![
        ("user", id(plan.uid)),
        ("group", id(plan.gid)),
        ("groups", Value::List(plan.groups.iter().map(u32::to_string).collect())),
        ("capabilities", Value::List(plan.capabilities.clone())),
        ("landlock", Value::Str(plan.landlock.into())),
        ("seccomp.rules", Value::Number(plan.filter_rules.into())),
        ("seccomp.sha256", digested(&plan.filter_digest)),
    ];
    (plan.name, Value::Object(fields))
}

/// What a process says of its own barriers.
pub(super) fn put_stands(out: &mut Fields, stands: &Stands) {
    out.push(("postern.landlock_abi", Value::Number(stands.landlock_abi.into())));
    out.push(("postern.seccomp.rules", Value::Number(stands.filter_rules.into())));
    out.push(("postern.seccomp.sha256", digested(&stands.filter_digest)));
}

/// Users and groups are strings in ECS: they are names, not amounts.
fn id(number: u32) -> Value {
    Value::Str(number.to_string().into())
}

fn digested(digest: &[u8; 32]) -> Value {
    Value::Str(hex(digest).into())
}

/// A time as files have it, to the nanosecond.
pub(super) fn time(at: Timestamp) -> Value {
    Value::Str(format!("{at:.9}").into())
}

/// A time as records have it, to the microsecond.
pub(super) fn moment(at: Timestamp) -> Value {
    Value::Str(format!("{at:.6}").into())
}

/// How often each command came, or was refused.
pub(super) fn put_counts(out: &mut Fields, counts: &[(Command, u64)]) {
    let counts = counts.iter().map(|(command, count)| (command.name(), Value::Number(*count))).collect();
    out.push(("postern.counts", Value::Object(counts)));
}

/// The broker's number of a process.
pub(super) fn put_child(out: &mut Fields, child: u32) {
    out.push(("postern.child", Value::Number(child.into())));
}

pub(super) fn put_after(out: &mut Fields, after: &After) {
    out.push(("postern.after.size", Value::Number(after.size)));
    out.push(("postern.after.mtime", time(after.mtime)));
    out.push(("postern.after.changed", Value::Bool(after.changed)));
}

pub(super) fn put_lost(out: &mut Fields, lost: Lost) {
    reason(out, "records were not written");
    out.push(("postern.lost", Value::Number(lost.ring)));
    out.push(("postern.unwritten", Value::Number(lost.unwritten)));
    put_errno(out, lost.errno);
}

pub(super) fn put_asked(out: &mut Fields, requested: &Text, mode: Mode, rule: Option<usize>) {
    text(out, "postern.requested", "postern.requested_bytes", requested);
    out.push(("postern.mode", Value::Str(mode.fopen().into())));
    if let Some(rule) = rule {
        out.push(("postern.rule", Value::Number(rule as u64)));
    }
}

/// Ids, inodes and modes are strings in ECS: they are names, not amounts.
pub(super) fn put_file(out: &mut Fields, file: &Facts) {
    let device = format!("{}:{}", nix::sys::stat::major(file.device), nix::sys::stat::minor(file.device));
    let kind = match Types::of_mode(file.mode) {
        Some(Types::REGULAR) => "file",
        Some(Types::FIFO) => "fifo",
        Some(Types::CHARACTER) => "character-device",
        Some(Types::BLOCK) => "block-device",
        _ if file.mode & libc::S_IFMT == libc::S_IFDIR => "dir",
        _ if file.mode & libc::S_IFMT == libc::S_IFLNK => "symlink",
        _ => "other",
    };
    text(out, "file.path", "postern.path_bytes", &Text::from(&file.path));
    out.push(("file.device", Value::Str(device.into())));
    out.push(("file.inode", Value::Str(file.inode.to_string().into())));
    out.push(("file.type", Value::Str(kind.into())));
    out.push(("file.size", Value::Number(file.size)));
    out.push(("file.mode", Value::Str(format!("{:04o}", file.mode & 0o7777).into())));
    out.push(("file.uid", id(file.uid)));
    out.push(("file.gid", id(file.gid)));
    out.push(("postern.links", Value::Number(file.links)));
    out.push(("postern.created", Value::Bool(file.created)));
}

pub(super) fn put_peer(out: &mut Fields, peer: Option<Peer>) {
    let Some(peer) = peer else { return };
    out.push(("user.id", id(peer.uid)));
    out.push(("postern.peer.pid", Value::Signed(peer.pid.into())));
    out.push(("postern.peer.uid", Value::Number(peer.uid.into())));
    out.push(("postern.peer.gid", Value::Number(peer.gid.into())));
}

pub(super) fn put_process(out: &mut Fields, role: Role, child: u32) {
    if role != Role::Spawner {
        put_child(out, child);
    }
    let name = match role {
        Role::Worker => "worker",
        Role::Opener => "opener",
        Role::Spawner => "spawner",
    };
    out.push(("process.name", Value::Str(name.into())));
}

pub(super) fn put_shutdown(out: &mut Fields, mode: &'static str, method: ShutdownMethod) {
    let method = match method {
        ShutdownMethod::Init => "init",
        ShutdownMethod::Kernel => "kernel",
        ShutdownMethod::Auto => "auto",
    };
    out.push(("postern.shutdown.mode", Value::Str(mode.into())));
    out.push(("postern.shutdown.method", Value::Str(method.into())));
}

pub(super) fn put_asked_act(out: &mut Fields, asked: &Asked) {
    match asked {
        Asked::Trim { minimum } => out.push(("postern.minimum", Value::Number(*minimum))),
        Asked::Suspend => {}
        Asked::Switch { on, off } => {
            for (name, list) in [("postern.on", on), ("postern.off", off)] {
                if list.bytes().is_empty() {
                    continue;
                }
                // Digits, commas and hyphens: nothing of it is lost.
                out.push((name, Value::Str(String::from_utf8_lossy(list.bytes()).into_owned().into())));
                if list.is_cut() {
                    out.push(("postern.cut", Value::Bool(true)));
                }
            }
        }
    }
}

pub(super) fn put_outcome(out: &mut Fields, outcome: &Outcome) {
    out.push(("postern.count", Value::Number(outcome.count)));
    put_mounts(out, MOUNTS, &outcome.mounts);
    if let Some(trimmed) = outcome.trimmed {
        out.push(("postern.trimmed", Value::Number(trimmed)));
    }
    put_mounts(out, FAILED, &outcome.failed);
    if outcome.left > 0 {
        out.push(("postern.not_switched", Value::Number(outcome.left)));
    }
}

pub(super) fn put_errno(out: &mut Fields, errno: Option<Errno>) {
    if let Some(errno) = errno {
        out.push(("postern.errno", Value::Str(format!("{errno:?}").into())));
    }
}

/// Names of a list of mountpoints: readable, in hexadecimal, how many left out.
pub(super) type ListNames = [&'static str; 3];
pub(super) const MOUNTS: ListNames = ["postern.mounts", "postern.mounts_bytes", "postern.mounts_omitted"];
pub(super) const FAILED: ListNames = ["postern.failed", "postern.failed_bytes", "postern.failed_omitted"];
pub(super) const LEFT: ListNames = ["postern.left", "postern.left_bytes", "postern.left_omitted"];
const LEFT_OUT: ListNames = ["postern.left_out", "postern.left_out_bytes", "postern.left_out_omitted"];
pub(super) const MISSING: ListNames = ["postern.missing", "postern.missing_bytes", "postern.missing_omitted"];

/// All of a list in hexadecimal beside it as soon as one entry is not UTF-8.
pub(super) fn put_mounts(out: &mut Fields, [name, raw, omitted]: ListNames, mounts: &Mounts) {
    if mounts.is_empty() {
        return;
    }
    let lossy = mounts.kept().iter().map(|mount| String::from_utf8_lossy(mount.bytes()).into_owned());
    out.push((name, Value::List(lossy.collect())));
    if mounts.kept().iter().any(|mount| std::str::from_utf8(mount.bytes()).is_err()) {
        out.push((raw, Value::List(mounts.kept().iter().map(|mount| hex(mount.bytes())).collect())));
    }
    if mounts.omitted() > 0 {
        out.push((omitted, Value::Number(mounts.omitted())));
    }
    if mounts.kept().iter().any(Text::is_cut) {
        out.push(("postern.cut", Value::Bool(true)));
    }
}

/// Two lists in one order: what was left out, and why.
pub(super) fn put_left_out(out: &mut Fields, left_out: &[(Text, &'static str)]) {
    let mounts: Mounts = left_out.iter().map(|(mount, _)| mount.clone()).collect();
    put_mounts(out, LEFT_OUT, &mounts);
    if !mounts.is_empty() {
        let because = left_out.iter().take(mounts.kept().len()).map(|(_, why)| (*why).to_owned()).collect();
        out.push(("postern.left_out_because", Value::List(because)));
    }
}

/// A hostile string under `name`; where it is not UTF-8 also in hexadecimal
/// under `raw`, so that nothing of it is lost.
pub(super) fn text(out: &mut Fields, name: &'static str, raw: &'static str, text: &Text) {
    let readable = String::from_utf8_lossy(text.bytes());
    let lossy = matches!(readable, Cow::Owned(_));
    out.push((name, Value::Str(readable.into_owned().into())));
    if lossy {
        out.push((raw, Value::Str(hex(text.bytes()).into())));
    }
    // Two cut strings in one record write the mark once: same name, same value.
    if text.is_cut() {
        out.push(("postern.cut", Value::Bool(true)));
    }
}

pub(super) fn reason(out: &mut Fields, reason: &'static str) {
    out.push(("event.reason", Value::Str(reason.into())));
}

pub(super) const fn refused_by(by: Barrier) -> &'static str {
    match by {
        Barrier::Broker => "policy",
        Barrier::Opener => "opener",
        Barrier::Kernel => "kernel",
        Barrier::Audit => "audit",
    }
}

pub(super) const fn closing(why: Closing) -> &'static str {
    match why {
        Closing::Host => "closed by the host",
        Closing::WorkerDied => "the worker died",
        Closing::Stopping => "postern is stopping",
        Closing::Reloaded => "the policy was reloaded",
    }
}

pub(super) const fn refusal(because: Denial) -> &'static str {
    match because {
        Denial::Policy => "the policy does not allow it",
        Denial::WhileFrozen => "not while filesystems are frozen",
        Denial::NotOffered => "postern does not offer it",
        Denial::Unknown => "no agent has it",
    }
}

pub(super) const fn thaw_cause(cause: ThawCause) -> &'static str {
    match cause {
        ThawCause::Host => "asked by the host",
        ThawCause::TimeLimit => "the time limit passed",
        ThawCause::Stopping => "postern is stopping",
    }
}
