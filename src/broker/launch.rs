//! The start, each step undoing power, in the order of the design: policy,
//! earlier freeze, channel, spawner, account, capabilities, Landlock, threads,
//! seccomp; then the loop.
//!
//! Trust: runs as whoever started it, before any host byte is read. The policy
//! is checked.

use std::fs;
use std::io;
use std::iter;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use postern_core::audit::Run;
use postern_core::catalogue::{Act, Command, CommandSet};
use postern_core::confine::filters::{BrokerNeeds, OPEN_DIRECTORY};
use postern_core::confine::{self, BrokerPlan, caps};
use postern_core::messages::{BIRTH_LIMIT, Identity, SpawnerReport};
use postern_core::policy::compare::Held;
use postern_core::policy::written::Kept;
use postern_core::policy::{Channel, Policy};
use postern_core::sys::{descriptors, last_words, process};

use crate::about::{self, Spawner};
use crate::accounts::{self, accounts};
use crate::acts::{Acts, Means};
use crate::arrival;
use crate::background::{self, Starter};
use crate::closer::Closer;
use crate::family::{Family, Pace};
pub use crate::fatal::Fatal;
use crate::fsfreeze::{self, Engine, Handles, MountTable, Remembered};
use crate::heads::Heads;
use crate::host::Host;
use crate::log::{self, Log};
use crate::notify::Notify;
use crate::options::Options;
use crate::passed::Passed;
use crate::say::{Filesystems, Level, Voice};
use crate::serve::{Broker, Parts};
use crate::shutdown::{self, Init, Shutdown};
use crate::sources::Sources;

fn call<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Fatal {
    move |why| Fatal::Call(what, why.into())
}

/// Runs the broker until it ends in order.
///
/// # Errors
/// See [`Fatal`]; what was frozen is thawed again, or remembered.
pub fn run(options: Options) -> Result<(), Fatal> {
    // What else the starter left open is nobody's business in here.
    let passed = Passed::take()?;
    descriptors::close_from(process::FIRST_HANDED + passed.count).map_err(call("closing what was left open"))?;
    let starter = options
        .service
        .daemon
        .as_ref()
        .map(|_| background::leave())
        .transpose()
        .map_err(call("going to the background"))?;
    let ended = start(options, passed, starter.clone());
    if let (Err(fatal), Some(starter)) = (&ended, starter) {
        starter.say(&format!("postern: {fatal}\n"));
    }
    ended
}

/// The start proper, and the life after it.
#[expect(clippy::too_many_lines, reason = "one step after the other, as the design has them")]
fn start(options: Options, passed: Passed, starter: Option<Starter>) -> Result<(), Fatal> {
    let Options { policy, origin, channel, verbosity, service, pace } = options;
    let executable = about::executable().map_err(call("reading its own executable"))?;
    let mut voice = Voice::new(verbosity, starter);
    last_words::to_stderr();
    process::name_self(c"postern-broker").map_err(call("naming the process"))?;
    // An executable that its user may not read makes a process whose memory is
    // root's, also to itself: then `ps` shows the command line as it was typed.
    let _ = process::rename_self(c"postern: broker");
    let landlock = confine::landlock::version()?;
    let privileged = nix::unistd::geteuid().is_root();
    let accounts = if privileged { Some(accounts(&policy)?) } else { None };
    let owner = accounts.as_ref().map_or_else(own_ids, |(_, broker)| (broker.uid, broker.gid));

    // Before any disk is touched: what did a former run leave?
    let state = state_directory(&policy.state, owner)?;
    let (note, remembered) = note(&policy.state, &state)?;
    background::own_files(&service, remembered.is_some(), &mut voice)?;
    if !privileged {
        voice.say(Level::Warning, UNPRIVILEGED);
    }
    let needs_freeze = privileged && (policy.needs(Act::Freeze) || policy.needs(Act::Thaw));
    if let Some(remembered) = &remembered {
        // Nobody would ever thaw, so nobody would ever write the log.
        if !needs_freeze {
            return Err(Fatal::CannotThaw);
        }
        let count = remembered.filesystems.len();
        voice.say(Level::Warning, &format!("an earlier run left {} frozen; waiting for a thaw", Filesystems(count)));
    } else {
        log::prepare_directory(&policy.audit.log, owner.0, owner.1)?;
    }

    let notify = Notify::from_environment().unwrap_or_else(|why| {
        voice.say(Level::Warning, &format!("the service manager won't be told: NOTIFY_SOCKET: {why}"));
        Notify::default()
    });
    let boot_id = about::line("/proc/sys/kernel/random/boot_id").map_err(call("reading the boot id"))?;
    let kept = origin.map(Kept::open);
    let heads = Heads::open(&policy.audit, boot_id.clone(), &voice).map_err(call("making a socket"))?;
    let signals = watch_signals()?;
    let activated = channel.is_none() && passed.host.is_some();
    let host = match (&channel, passed.host) {
        (None, Some(host)) => host,
        (channel, _) => {
            let channel = channel.as_ref().unwrap_or(&policy.channel);
            match meet(channel, remembered.is_some(), service.waits, &signals, &voice)? {
                Some(host) => host,
                None => return Ok(()),
            }
        }
    };
    let sources = Sources::open(policy.facts(), passed.netlink).map_err(call("opening what tells of the guest"))?;
    if let Some(warning) = sources.network.warning() {
        voice.say(Level::Warning, warning);
    }
    let mounts = needs_freeze.then(MountTable::open).transpose().map_err(call("reading the mount table"))?;
    confine::limits::make_room()?;
    let means = if privileged { Means::open(&policy, Path::new("/sys")) } else { Ok(Means::default()) };
    let means = means.map_err(call("opening what the policy's acts take"))?;
    if means.blocks_left_out() > 0 {
        let said = format!(
            "guest-set-memory-blocks: the first {} blocks cannot be switched, there are too many",
            means.blocks_left_out()
        );
        voice.say(Level::Warning, &said);
    }
    let init = Init::recognise(Path::new("/proc"), Path::new("/run"), Path::new("/dev"));
    if privileged && policy.needs(Act::Shutdown) {
        voice.say(Level::Info, &format!("init is {}", init.name()));
    }

    let identity = accounts.as_ref().map(|(worker, _)| accounts::identity(worker, &policy));
    let (family, spawner) = found_family(identity, policy.commands, pace)?;
    let landlock_abi = spawner.standing.landlock_abi;
    voice.say(Level::Info, &format!("the kernel has Landlock ABI {landlock}; {landlock_abi} is enforced"));

    let capabilities = if privileged { caps::broker(&policy, init.asked()) } else { Vec::new() };
    let broker_account = accounts.as_ref().map(|(_, broker)| accounts::identity_alone(broker));
    confine::broker_identity(broker_account.as_ref(), &capabilities)?;

    let handles = Handles::new(duplicate(&state)?).map_err(|why| state_failed(&policy.state, &why))?;
    // Who may neither freeze nor open files writes no state.
    let mut writes_state = Vec::new();
    if policy.commands.contains(Command::FileOpen) {
        writes_state.push(handles.directory());
    }
    if needs_freeze {
        writes_state.push(note.directory());
    }
    let state = Some(state).filter(|_| !writes_state.is_empty());
    let mut plan = plan(&policy, &host, &heads, &init, privileged, needs_freeze, state)?;
    for (_, directory) in kept.iter().flat_map(Kept::directories) {
        plan.filter.policy.push(directory.as_raw_fd());
        plan.policy.push(duplicate(directory)?);
    }
    let named = capabilities.iter().map(ToString::to_string).collect();
    let run = Run {
        version: env!("CARGO_PKG_VERSION"),
        executable,
        kernel: about::line("/proc/sys/kernel/osrelease").map_err(call("reading the kernel's release"))?,
        policy_digest: policy.digest,
        policy_in_force: policy.in_force(),
        commands: policy.commands,
        redact: policy.redact,
        file_rules: policy.files.len(),
        channel: about::channel(channel.as_ref().unwrap_or(&policy.channel), activated),
        privileged,
        landlock_abi: u32::from(landlock_abi),
        boot_id,
        pid: std::process::id(),
        uid: nix::unistd::geteuid().as_raw(),
        confinement: Vec::new(),
    };
    let mut log = Log::start_held(&policy.audit, run);
    plan.filter.log = log.needs();
    plan.filter.state = writes_state;
    log.tell_confinement(about::confinement(&policy, accounts.as_ref(), named, &plan));
    if remembered.is_none() {
        log.begin()?;
    }
    for record in iter::once(spawner.record()).chain(remembered.as_ref().map(about::found_frozen)) {
        // One that a full disk has no room for waits.
        let _ = log.note(&record);
    }
    let (journal, syslog) = heads.reached();
    let held = Held {
        unprivileged: !privileged,
        opens: policy.commands.contains(Command::FileOpen),
        commands: policy.commands,
        facts: policy.facts(),
        freezes: needs_freeze,
        shuts_down: privileged && policy.needs(Act::Shutdown),
        syncs: plan.filter.log.is_some_and(|log| log.sync),
        rotates: plan.filter.log.is_some_and(|log| log.rotate),
        journal,
        syslog,
        channel: channel.is_none() && !activated,
        ..Held::default()
    };
    let (confined, (engine, acts, shutdown, closer)) = confine::broker_barriers(plan, || -> Result<_, Fatal> {
        let engine = mounts
            .map(|mounts| Engine::start(mounts, note, remembered))
            .transpose()
            .map_err(call("starting the freezer"))?;
        let acts = if means.is_empty() { None } else { Some(Acts::start(means).map_err(call("starting a thread"))?) };
        let shutdown = Shutdown::start(policy.shutdown.clone(), init).map_err(call("starting a thread"))?;
        Ok((engine, acts, shutdown, Closer::start().map_err(call("starting a thread"))?))
    })?;
    let parts = Parts {
        policy,
        kept,
        held,
        voice,
        notify,
        heads,
        log,
        engine,
        acts,
        shutdown,
        handles,
        sources,
        host,
        family,
        signals,
        privileged,
    };
    // Never dropped: what its threads would do on their way out is in no filter,
    // and the process ends behind it.
    ManuallyDrop::new(Broker::new(parts, closer, landlock_abi)).serve(&confined)
}

/// The way to the host; `None` if postern was told to stop while it waited.
fn meet(
    channel: &Channel,
    is_frozen: bool,
    waits: bool,
    signals: &SignalFd,
    voice: &Voice,
) -> Result<Option<Host>, Fatal> {
    match Host::open(channel) {
        Ok(host) => Ok(Some(host)),
        // Somebody must thaw, if only by the time limit.
        Err(why) if is_frozen => {
            let said = format!("no channel yet: {why}");
            let host = Host::unplugged(channel, why)?;
            voice.say(Level::Warning, &said);
            Ok(Some(host))
        }
        Err(_) if waits => Ok(arrival::await_host(channel, signals, voice)?),
        Err(why) => Err(why.into()),
    }
}

/// What an operator must know of a postern that was not started as root.
const UNPRIVILEGED: &str = "started without root: broker, worker and opener share one account, there is no PID \
     namespace, and nothing can be frozen or shut down; for development and tests only";

fn own_ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

fn state_failed(path: &Path, why: &dyn std::fmt::Display) -> Fatal {
    Fatal::State(path.to_owned(), why.to_string())
}

/// The state directory, made if it is missing (`/run` is empty after a boot).
/// One that is there is not touched: on a frozen filesystem even that could
/// block.
fn state_directory(path: &Path, (uid, gid): (u32, u32)) -> Result<OwnedFd, Fatal> {
    let failed = |why: &dyn std::fmt::Display| state_failed(path, why);
    if background::leads_through_others(path) {
        return Err(failed(&"in a directory that another user can change; choose another place"));
    }
    let missing = matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    if missing {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().mode(0o755).recursive(true).create(parent).map_err(|why| failed(&why))?;
        }
        fs::DirBuilder::new().mode(0o700).create(path).map_err(|why| failed(&why))?;
    }
    let directory =
        nix::fcntl::open(path, OPEN_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|why| failed(&why))?;
    if missing {
        // By descriptor: whoever may write the directory above could have put
        // a link in its place.
        std::os::unix::fs::fchown(&directory, Some(uid), Some(gid)).map_err(|why| failed(&why))?;
    }
    let found = fs::File::from(duplicate(&directory)?).metadata().map_err(|why| failed(&why))?;
    if found.uid() != uid {
        return Err(failed(&format!("belongs to uid {}; give it to uid {uid}", found.uid())));
    }
    if found.permissions().mode() & 0o022 != 0 {
        return Err(failed(&"others can write it; chmod it to 0700"));
    }
    Ok(directory)
}

/// The note of what is frozen, and what stands in it.
fn note(path: &Path, state: &OwnedFd) -> Result<(fsfreeze::Memory, Option<Remembered>), Fatal> {
    let failed = |why: fsfreeze::Error| state_failed(path, &why);
    let note = fsfreeze::Memory::new(duplicate(state)?).map_err(failed)?;
    let remembered = note.read().map_err(failed)?;
    Ok((note, remembered))
}

fn duplicate(descriptor: &OwnedFd) -> Result<OwnedFd, Fatal> {
    descriptor.try_clone().map_err(call("duplicating a descriptor"))
}

/// A root that may not make namespaces, as in most containers.
const NO_NAMESPACE: &str = "a PID namespace of its own needs CAP_SYS_ADMIN, which this root does not have; run \
     postern in the guest itself, or as an ordinary user";
const EPERM: i32 = Errno::EPERM as i32;

/// What the spawner, openers and workers are: the same file. A test's broken
/// broker has the test's own workers before it.
fn own_executable() -> String {
    let named = if cfg!(feature = "sabotage") { std::env::var("POSTERN_SABOTAGE_FAMILY").ok() } else { None };
    named.unwrap_or_else(|| "/proc/self/exe".to_owned())
}

/// Starts the spawner and hears that it is confined.
fn found_family(identity: Option<Identity>, commands: CommandSet, pace: Pace) -> Result<(Family, Spawner), Fatal> {
    let open = |path: &str, flags| nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty());
    let executable = open(&own_executable(), OFlag::O_PATH).map_err(call("opening its own executable"))?;
    let null = open("/dev/null", OFlag::O_RDWR).map_err(call("opening /dev/null"))?;
    let mut family =
        Family::found(&executable, &null, identity, commands, pace).map_err(|why| match why.raw_os_error() {
            Some(EPERM) => Fatal::Unconfined { who: "spawner", why: NO_NAMESPACE.to_owned() },
            _ => Fatal::Call("starting the spawner", why),
        })?;
    let born = Instant::now();
    loop {
        let left = BIRTH_LIMIT.saturating_sub(born.elapsed());
        let mut ready = [PollFd::new(family.spawner.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) => return Err(Fatal::Spawner("did not start in time")),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Fatal::Call("poll", errno.into())),
            Ok(_) => {}
        }
        return match family.spawner.try_receive().map(|received| (received.message, received.sender)) {
            Ok((SpawnerReport::Ready { standing }, sender)) => Ok((family, Spawner { standing, sender })),
            Ok((SpawnerReport::Unconfined { why }, _)) => Err(Fatal::Unconfined { who: "spawner", why: why.to_text() }),
            Ok(_) => Err(Fatal::Spawner("spoke nonsense")),
            Err(_) => Err(Fatal::Spawner("ended at its start")),
        };
    }
}

fn watch_signals() -> Result<SignalFd, Fatal> {
    let mut watched = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        watched.add(signal);
    }
    watched.thread_block().map_err(call("blocking signals"))?;
    SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(call("signalfd"))
}

fn plan(
    policy: &Policy,
    host: &Host,
    heads: &Heads,
    init: &Init,
    privileged: bool,
    freeze: bool,
    state: Option<OwnedFd>,
) -> Result<BrokerPlan, Fatal> {
    let look = |path: &Path| nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let shutdown = privileged && policy.needs(Act::Shutdown);
    let filter = BrokerNeeds {
        freeze,
        trim: privileged && policy.needs(Act::Trim),
        signals: if shutdown { shutdown::signals(&policy.shutdown, init) } else { Vec::new() },
        reboots: if shutdown { shutdown::reboot_commands(&policy.shutdown, init) } else { Vec::new() },
        listens: host.listens(),
        reconnects: heads.reconnects(),
        log: None,
        state: Vec::new(),
        policy: Vec::new(),
    };
    let lists = filter.trim;
    let directory = policy.audit.log.parent().unwrap_or(Path::new("/"));
    Ok(BrokerPlan {
        filter,
        log: Some(look(directory).map_err(call("opening the log's directory"))?),
        state,
        policy: Vec::new(),
        root: (freeze || lists).then(|| look(Path::new("/"))).transpose().map_err(call("opening /"))?,
        sockets: heads
            .directories()
            .iter()
            .map(|directory| look(directory))
            .collect::<Result<_, _>>()
            .map_err(call("opening the directory of journald's or syslog's socket"))?,
    })
}
