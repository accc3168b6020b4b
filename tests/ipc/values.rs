//! Any message that postern's processes can send each other.

use postern_core::catalogue::facts::Fact;
use postern_core::catalogue::{Command, CommandSet};
use postern_core::ipc::{Bytes, List, Wire};
use postern_core::messages::{
    Answer, Ask, Barrier, BlockResponse, BlockSet, ChannelKind, Count, Denial, Facts, FreezeState, Identity,
    OpenerOrder, OpenerReport, Role, SpawnerOrder, SpawnerReport, Stamp, Standing, SuspendMode, Switch, Text, Trimmed,
    TrimmedBytes, Use, WirePath,
};
use postern_core::policy::parts::WorkerPart;
use postern_core::policy::rules::{Mode, Rights, Types};
use postern_core::policy::telling::{
    MAX_HOST_NAME, MAX_MOUNTPOINT, MAX_MOUNTPOINTS, MAX_PATTERN, MAX_PATTERNS, Telling,
};
use postern_core::policy::{Limits, ShutdownMode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn bytes<const MAX: usize>() -> impl Strategy<Value = Bytes<MAX>> {
    prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), MAX..=MAX)].prop_map(|bytes| Bytes::cut(&bytes))
}

fn path() -> impl Strategy<Value = WirePath> {
    bytes()
}

fn text() -> impl Strategy<Value = Text> {
    bytes()
}

/// A list; the longest now and then.
fn list<T, const MAX: usize>(one: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = List<T, MAX>>
where
    T: Clone + std::fmt::Debug,
{
    prop_oneof![9 => vec(one.clone(), 0..5), 1 => vec(one, MAX..=MAX)]
        .prop_map(|values| List::new(values).expect("at most so many"))
}

fn mode() -> impl Strategy<Value = Mode> {
    select(&Mode::ALL[..])
}

fn shutdown() -> impl Strategy<Value = ShutdownMode> {
    select(&ShutdownMode::ALL[..])
}

fn command() -> impl Strategy<Value = Command> + Clone {
    select(Command::all().collect::<Vec<_>>())
}

fn standing() -> impl Strategy<Value = Standing> {
    (any::<u8>(), any::<u16>(), any::<[u8; 32]>(), list(any::<u16>())).prop_map(
        |(landlock_abi, filter_rules, filter_digest, missing)| Standing {
            landlock_abi,
            filter_rules,
            filter_digest,
            missing,
        },
    )
}

fn used() -> impl Strategy<Value = Use> {
    any::<[u64; 3]>().prop_map(|[read, written, calls]| Use { read, written, calls })
}

fn facts() -> impl Strategy<Value = Facts> {
    (path(), any::<[u64; 4]>(), any::<[u32; 3]>(), any::<bool>(), any::<u16>()).prop_map(
        |(path, [device, inode, size, links], [mode, uid, gid], created, rule)| Facts {
            path,
            device,
            inode,
            mode,
            uid,
            gid,
            size,
            links,
            created,
            rule,
        },
    )
}

pub(crate) fn ask() -> impl Strategy<Value = Ask> {
    let count = || (command(), any::<u64>()).prop_map(|(command, times)| Count { command, times });
    // A list of the longest paths fits no packet, so no worker sends one.
    let short = vec(any::<u8>(), 0..200).prop_map(|bytes| WirePath::cut(&bytes));
    prop_oneof![
        standing().prop_map(|standing| Ask::Ready { standing }),
        text().prop_map(|why| Ask::Unconfined { why }),
        (path(), mode()).prop_map(|(path, mode)| Ask::Open { path, mode }),
        (any::<u64>(), used()).prop_map(|(handle, used)| Ask::Closed { handle, used }),
        option::of(list(short)).prop_map(|only| Ask::Freeze { only }),
        Just(Ask::Thaw {}),
        Just(Ask::Status {}),
        shutdown().prop_map(|mode| Ask::Shutdown { mode }),
        Just(Ask::HostGone {}),
        (bytes(), select(Denial::ALL)).prop_map(|(command, why)| Ask::Denied { command, why }),
        list(count()).prop_map(|commands| Ask::Counted { commands }),
        list(count()).prop_map(|commands| Ask::Limited { commands }),
        text().prop_map(|message| Ask::Panicked { message }),
        Just(Ask::PortGone {}),
        Just(Ask::Port {}),
        any::<i32>().prop_map(|errno| Ask::NoPort { errno }),
        Just(Ask::Alive {}),
        fact().prop_map(|fact| Ask::Fact { fact }),
        any::<u64>().prop_map(|minimum| Ask::Trim { minimum }),
        select(SuspendMode::ALL).prop_map(|mode| Ask::Suspend { mode }),
        list(switch()).prop_map(|vcpus| Ask::SetVcpus { vcpus }),
        list(switch()).prop_map(|blocks| Ask::SetMemoryBlocks { blocks }),
    ]
}

fn commands() -> impl Strategy<Value = CommandSet> {
    vec(command(), 0..15).prop_map(|commands| commands.into_iter().collect())
}

fn fact() -> impl Strategy<Value = Fact> {
    select(Fact::all().collect::<Vec<_>>())
}

/// What `[facts]` can say; the longest and the most now and then.
fn telling() -> impl Strategy<Value = Telling> {
    let several = |most| prop_oneof![9 => 0..5_usize, 1 => Just(most)];
    let texts = |count: usize, most: usize| {
        vec(prop_oneof![9 => "[a-zä*?/]{0,9}".boxed(), 1 => Just("x".repeat(most)).boxed()], count..=count)
    };
    (
        several(MAX_PATTERNS).prop_flat_map(move |count| texts(count, MAX_PATTERN)),
        several(MAX_MOUNTPOINTS).prop_flat_map(move |count| texts(count, MAX_MOUNTPOINT)),
        option::of(prop_oneof![Just("x".repeat(MAX_HOST_NAME)).boxed(), "[a-z.]{1,9}".boxed()]),
    )
        .prop_map(|(interfaces, mountpoints, host_name)| Telling {
            interfaces,
            mountpoints: mountpoints.into_iter().map(Into::into).collect(),
            host_name,
        })
}

fn worker_part() -> impl Strategy<Value = WorkerPart> {
    let limits = any::<[u32; 8]>().prop_map(|[message, nesting, string, read, handles, requests, opens, acts]| {
        Limits { message, nesting, string, read, handles, requests, opens, acts }
    });
    (commands(), commands(), telling(), limits).prop_map(|(commands, redact, telling, limits)| WorkerPart {
        commands,
        redact,
        telling,
        limits,
    })
}

fn switch() -> impl Strategy<Value = Switch> + Clone {
    any::<(u64, bool)>().prop_map(|(number, online)| Switch { number, online })
}

fn trimmed() -> impl Strategy<Value = Trimmed> + Clone {
    let done = any::<(u64, u64)>().prop_map(|(trimmed, minimum)| TrimmedBytes { trimmed, minimum });
    // As many of the longest fit no packet, so the broker sends several.
    let short = vec(any::<u8>(), 0..100);
    (short.clone(), option::of(done), short).prop_map(|(path, done, error)| Trimmed {
        path: WirePath::cut(&path),
        done,
        error: Text::cut(&error),
    })
}

fn block() -> impl Strategy<Value = BlockSet> + Clone {
    (any::<u64>(), select(BlockResponse::ALL), option::of(any::<i32>()))
        .prop_map(|(number, response, errno)| BlockSet { number, response, errno })
}

pub(crate) fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        (worker_part(), any::<bool>()).prop_map(|(part, frozen)| Answer::Setup { part, frozen }),
        select(ChannelKind::ALL).prop_map(|kind| Answer::Channel { kind }),
        any::<u64>().prop_map(|handle| Answer::Opened { handle }),
        any::<i32>().prop_map(|errno| Answer::NotOpened { errno }),
        Just(Answer::Begun {}),
        text().prop_map(|why| Answer::Refused { why }),
        any::<u64>().prop_map(|count| Answer::FreezeDone { count }),
        text().prop_map(|why| Answer::FreezeFailed { why }),
        any::<u64>().prop_map(|count| Answer::ThawDone { count }),
        text().prop_map(|why| Answer::ThawFailed { why }),
        select(FreezeState::ALL).prop_map(|state| Answer::Status { state }),
        Just(Answer::ShuttingDown {}),
        any::<bool>().prop_map(|frozen| Answer::Frozen { frozen }),
        Just(Answer::End {}),
        Just(Answer::Alive {}),
        Just(Answer::Retire {}),
        Just(Answer::Memory {}),
        any::<u32>().prop_map(|length| Answer::Gathered { length }),
        Just(Answer::Kept {}),
        (any::<u32>(), stamp(), stamp()).prop_map(|(length, name, object)| Answer::Lasting { length, name, object }),
        any::<i32>().prop_map(|errno| Answer::NotTold { errno }),
        list(trimmed()).prop_map(|filesystems| Answer::Trimmed { filesystems }),
        list(block()).prop_map(|blocks| Answer::BlocksSet { blocks }),
        any::<u64>().prop_map(|count| Answer::ActDone { count }),
        text().prop_map(|why| Answer::ActFailed { why }),
        (path(), option::of(text())).prop_map(|(path, name)| Answer::OpenPort { path, name }),
    ]
}

fn stamp() -> impl Strategy<Value = Stamp> {
    any::<(i64, i64, u64)>().prop_map(|(seconds, nanoseconds, links)| Stamp { seconds, nanoseconds, links })
}

pub(crate) fn opener_order() -> impl Strategy<Value = OpenerOrder> {
    let rights = (0_u8..16).prop_map(|bits| Rights::from_bits(bits).expect("rights"));
    let types = (1_u8..16).prop_map(|bits| Types::from_bits(bits).expect("types"));
    prop_oneof![
        (any::<u16>(), any::<u32>(), vec(fact(), 0..4), telling()).prop_map(|(rules, create_mode, facts, telling)| {
            OpenerOrder::Setup { rules, create_mode, facts: facts.into_iter().collect(), telling }
        }),
        Just(OpenerOrder::Memory {}),
        (any::<u64>(), fact()).prop_map(|(id, fact)| OpenerOrder::Tell { id, fact }),
        (path(), rights, types, any::<bool>(), any::<u16>()).prop_map(|(path, rights, types, optional, except)| {
            OpenerOrder::Rule { path, rights, types, optional, except }
        }),
        path().prop_map(|path| OpenerOrder::Except { path }),
        (any::<u64>(), path(), mode()).prop_map(|(id, path, mode)| OpenerOrder::Open { id, path, mode }),
    ]
}

pub(crate) fn opener_report() -> impl Strategy<Value = OpenerReport> {
    prop_oneof![
        standing().prop_map(|standing| OpenerReport::Ready { standing }),
        text().prop_map(|why| OpenerReport::Unconfined { why }),
        (any::<u64>(), facts()).prop_map(|(id, facts)| OpenerReport::Opened { id, facts }),
        (any::<u64>(), any::<i32>(), select(Barrier::ALL), option::of(path()))
            .prop_map(|(id, errno, by, resolved)| OpenerReport::NotOpened { id, errno, by, resolved }),
        text().prop_map(|message| OpenerReport::Panicked { message }),
        (any::<u64>(), any::<u32>(), any::<bool>()).prop_map(|(id, length, denied)| OpenerReport::Gathered {
            id,
            length,
            denied
        }),
        (any::<u64>(), any::<u32>(), stamp(), stamp()).prop_map(|(id, length, name, object)| OpenerReport::Lasting {
            id,
            length,
            name,
            object
        }),
        (any::<u64>(), any::<i32>()).prop_map(|(id, errno)| OpenerReport::NotTold { id, errno }),
    ]
}

pub(crate) fn spawner_order() -> impl Strategy<Value = SpawnerOrder> {
    let identity =
        (any::<u32>(), any::<u32>(), list(any::<u32>())).prop_map(|(uid, gid, groups)| Identity { uid, gid, groups });
    prop_oneof![
        (option::of(identity), commands()).prop_map(|(identity, commands)| SpawnerOrder::Setup { identity, commands }),
        (select(Role::ALL), any::<u32>()).prop_map(|(role, id)| SpawnerOrder::Spawn { role, id }),
        any::<u32>().prop_map(|id| SpawnerOrder::Kill { id }),
    ]
}

pub(crate) fn spawner_report() -> impl Strategy<Value = SpawnerReport> {
    prop_oneof![
        standing().prop_map(|standing| SpawnerReport::Ready { standing }),
        text().prop_map(|why| SpawnerReport::Unconfined { why }),
        any::<u32>().prop_map(|id| SpawnerReport::Spawned { id }),
        (any::<u32>(), any::<i32>()).prop_map(|(id, errno)| SpawnerReport::NotSpawned { id, errno }),
        (any::<u32>(), option::of(any::<i32>()), any::<i32>()).prop_map(|(id, signal, status)| SpawnerReport::Died {
            id,
            signal,
            status
        }),
        text().prop_map(|message| SpawnerReport::Panicked { message }),
    ]
}

fn encoded(value: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.put(&mut bytes);
    bytes
}

/// A sound frame of any side.
pub(crate) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        ask().prop_map(|value| encoded(&value)),
        answer().prop_map(|value| encoded(&value)),
        opener_order().prop_map(|value| encoded(&value)),
        opener_report().prop_map(|value| encoded(&value)),
        spawner_order().prop_map(|value| encoded(&value)),
        spawner_report().prop_map(|value| encoded(&value)),
    ]
}
