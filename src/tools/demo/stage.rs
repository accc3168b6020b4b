//! Where the demo plays: its directory, its accounts, its policy, the agent.
//!
//! Trust: makes everything itself, in a directory that only root or the person
//! can change. Guards take away what they made, in whatever way the demo ends.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use postern_core::policy::written::World;

use super::{DemoError, Interrupts, file};
use crate::client::{Client, Lost};

const POLICY: &str = include_str!("policy.toml");

/// Every account that the demo may use as root lies here: above what systems
/// give to people and packages, below `nobody`.
const IDS: std::ops::Range<u32> = 64_200..65_200;

/// How long the agent may take to start or to end. It takes milliseconds; a
/// busy machine more.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// What stands in the file outside the policy, which every account may read.
const SECRET: &str = "Nothing that a host should see.\n";

/// Who the agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cast {
    /// Started as root, which becomes these two accounts.
    Accounts { worker: u32, broker: u32 },
    /// Started as this account: root lacks `CAP_SYS_ADMIN`, as in a container,
    /// and an agent that is started as root must be fully confined.
    One(u32),
    /// Started as the person who runs the demo.
    Myself,
}

impl Cast {
    fn choose() -> Result<Self, DemoError> {
        if !geteuid().is_root() {
            return Ok(Self::Myself);
        }
        let (worker, broker) = free_ids()?;
        let whole = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false);
        Ok(if whole { Self::Accounts { worker, broker } } else { Self::One(worker) })
    }

    /// Whether nothing of the confinement is missing.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Accounts { .. })
    }

    /// For people.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Accounts { .. } => "two accounts of their own, a PID namespace".to_owned(),
            Self::One(uid) => format!("one account for all ({uid}): root lacks CAP_SYS_ADMIN here, as in a container"),
            Self::Myself => "your own account for all: this is not root".to_owned(),
        }
    }
}

/// The directory and what is in it.
pub(super) struct Stage {
    pub(super) cast: Cast,
    pub(super) directory: PathBuf,
    keep: bool,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let gone = |path: &Path| _ = fs::remove_dir_all(path);
        if self.keep {
            // Of no use without the agent.
            _ = fs::remove_file(self.socket());
            gone(&self.at("state"));
            _ = fs::remove_file(self.at("postern"));
        } else {
            gone(&self.directory);
        }
    }
}

impl Stage {
    /// Makes the directory and all that is in it.
    pub(super) fn set(keep: Option<&Path>) -> Result<Self, DemoError> {
        let cast = Cast::choose()?;
        let strangers = cast != Cast::Myself;
        let directory = match keep {
            Some(directory) => wanted(directory, strangers)?,
            None => temporary(strangers)?,
        };
        let stage = Self { cast, directory, keep: keep.is_some() };
        let (worker, broker) = match cast {
            Cast::Accounts { worker, broker } => (Some(worker), Some(broker)),
            Cast::One(uid) => (Some(uid), Some(uid)),
            Cast::Myself => (None, None),
        };
        if let Cast::One(uid) = cast {
            // The socket is made by it.
            chown(&stage.directory, Some(uid), Some(uid)).map_err(file("giving away", &stage.directory))?;
        }
        stage.directory_of("files", 0o755, worker)?;
        stage.directory_of("log", 0o700, broker)?;
        stage.directory_of("state", 0o700, broker)?;
        stage.write("secret.txt", SECRET, 0o644)?;
        let link = stage.at("files/link");
        symlink("../secret.txt", &link).map_err(file("making the link", link))?;
        stage.write("policy.toml", &stage.policy()?, 0o644)?;
        Ok(stage)
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.at("host.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.at("log/audit.jsonl")
    }

    fn directory_of(&self, name: &str, mode: u32, uid: Option<u32>) -> Result<(), DemoError> {
        let path = self.at(name);
        fs::DirBuilder::new().mode(mode).create(&path).map_err(file("making", &path))?;
        // The umask may have taken something away.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(file("chmod", &path))?;
        chown(&path, uid, uid).map_err(file("giving away", &path))?;
        Ok(())
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), DemoError> {
        let path = self.at(name);
        let made = File::create_new(&path).and_then(|mut made| {
            made.write_all(text.as_bytes())?;
            made.set_permissions(fs::Permissions::from_mode(mode))
        });
        made.map_err(file("writing", path))
    }

    fn policy(&self) -> Result<String, DemoError> {
        // Every JSON string is a TOML string.
        let quoted = |path: PathBuf| match path.to_str() {
            Some(text) => Ok(serde_json::Value::from(text).to_string()),
            None => Err(DemoError::Place(format!("{} is not UTF-8; a policy is", path.display()))),
        };
        let mut text = POLICY
            .replace("@FILES@", &quoted(self.at("files"))?)
            .replace("@LOG@", &quoted(self.log())?)
            .replace("@STATE@", &quoted(self.at("state"))?);
        match self.cast {
            Cast::Accounts { worker, broker } => {
                text = text.replace("@WORKER@", &worker.to_string()).replace("@BROKER@", &broker.to_string());
            }
            // Without root there are no accounts to choose.
            Cast::One(_) | Cast::Myself => text.truncate(text.find("\n[identities]").unwrap_or(text.len())),
        }
        Ok(text)
    }

    /// The executable that is running, or a copy if other accounts may not
    /// execute it. In which directory it lies does not matter: the agent's
    /// children are executed by descriptor.
    fn executable(&self) -> Result<PathBuf, DemoError> {
        let own = std::env::current_exe().map_err(|why| DemoError::Call("looking for the executable", why))?;
        let mode = fs::metadata(&own).map_err(file("looking at", &own))?.mode();
        if self.cast == Cast::Myself || mode & 0o001 != 0 {
            // By a name that every account can follow.
            return Ok(PathBuf::from("/proc/self/exe"));
        }
        let copy = self.at("postern");
        fs::copy(&own, &copy).map_err(file("copying the executable to", &copy))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o711)).map_err(file("chmod", &copy))?;
        Ok(copy)
    }
}

/// The directory that a person wants, if the demo can run there.
fn wanted(directory: &Path, strangers: bool) -> Result<PathBuf, DemoError> {
    let made = fs::DirBuilder::new().mode(0o755).create(directory);
    let new = made.is_ok();
    match made {
        // The umask may have taken something away.
        Ok(()) => {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).map_err(file("chmod", directory))?;
        }
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {
            let mut entries = fs::read_dir(directory).map_err(file("listing", directory))?;
            if entries.next().is_some() {
                let what = format!("{} is not empty; name a new directory", directory.display());
                return Err(DemoError::Place(what));
            }
        }
        Err(why) => return Err(file("making", directory)(why)),
    }
    let directory = fs::canonicalize(directory).map_err(file("looking at", directory))?;
    fit(&directory, strangers).map_err(|why| {
        if new {
            _ = fs::remove_dir(&directory);
        }
        DemoError::Place(format!("the demo cannot run in {}: {why}", directory.display()))
    })?;
    Ok(directory)
}

/// A new directory where temporary files belong.
fn temporary(strangers: bool) -> Result<PathBuf, DemoError> {
    let mut why_not = String::new();
    for parent in [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/run".into()] {
        let Ok(parent) = fs::canonicalize(parent) else { continue };
        if let Err(why) = fit(&parent, strangers) {
            why_not = why;
            continue;
        }
        for attempt in 0..100 {
            let directory = parent.join(format!("postern-demo-{}-{attempt}", std::process::id()));
            if fs::DirBuilder::new().mode(0o755).create(&directory).is_ok() {
                fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))
                    .map_err(file("chmod", &directory))?;
                return Ok(directory);
            }
        }
        why_not = format!("no directory can be made in {}", parent.display());
    }
    Err(DemoError::Place(format!("no temporary directory will do: {why_not}; name one with --keep")))
}

/// Whether a policy in this directory can be trusted, and other accounts can
/// reach what lies in it, if the agent runs as such.
fn fit(directory: &Path, strangers: bool) -> Result<(), String> {
    let me = geteuid().as_raw();
    for part in directory.ancestors() {
        let found = fs::metadata(part).map_err(|why| format!("{}: {why}", part.display()))?;
        let part = part.display();
        if found.uid() != 0 && found.uid() != me {
            return Err(format!("{part} belongs to user {}, who could change the policy", found.uid()));
        }
        if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
            return Err(format!("others can write in {part}, and could change the policy"));
        }
        if strangers && found.mode() & 0o001 == 0 {
            return Err(format!("the agent's accounts cannot enter {part} (mode {:04o})", found.mode() & 0o7777));
        }
    }
    Ok(())
}

/// Two ids that stand in no account file and that no process has.
fn free_ids() -> Result<(u32, u32), DemoError> {
    let world = World::live();
    let mut taken: Vec<u32> = Vec::new();
    for text in [&world.passwd, &world.group] {
        taken.extend(text.lines().filter_map(|line| line.split(':').nth(2)?.parse::<u32>().ok()));
    }
    let processes = fs::read_dir("/proc").map_err(file("listing", "/proc"))?;
    for process in processes.filter_map(Result::ok) {
        let Ok(status) = fs::read_to_string(process.path().join("status")) else { continue };
        let ids = status.lines().filter_map(|line| line.strip_prefix("Uid:").or_else(|| line.strip_prefix("Gid:")));
        taken.extend(ids.flat_map(str::split_ascii_whitespace).filter_map(|id| id.parse::<u32>().ok()));
    }
    // Another demo may be looking too: each begins elsewhere.
    let length = IDS.end - IDS.start;
    let begin = std::process::id() % (length / 2) * 2;
    let mut free = (0..length).map(|step| IDS.start + (begin + step) % length).filter(|id| !taken.contains(id));
    match (free.next(), free.next()) {
        (Some(worker), Some(broker)) => Ok((worker, broker)),
        _ => Err(DemoError::Place(format!("all user ids from {} to {} are in use", IDS.start, IDS.end))),
    }
}

/// The running agent.
pub(super) struct Agent {
    child: Child,
    said: PathBuf,
}

impl Agent {
    /// Starts the agent and waits until it answers.
    pub(super) fn start(stage: &Stage, interrupts: &Interrupts) -> Result<(Self, Client), DemoError> {
        let said = stage.at("agent.log");
        let voice = File::create_new(&said).map_err(file("making", &said))?;
        let mut command = Command::new(stage.executable()?);
        if let Cast::One(uid) = stage.cast {
            command.uid(uid).gid(uid);
        }
        let child = command
            .arg0("postern")
            .arg("run")
            .arg("--policy")
            .arg(stage.at("policy.toml"))
            .arg("--channel")
            .arg(format!("unix-listen:{}", stage.socket().display()))
            .arg("-vv")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(voice)
            // A terminal's Ctrl-C is for the demo, which then ends the agent.
            .process_group(0)
            .spawn()
            .map_err(|why| DemoError::Call("starting the agent", why))?;
        let mut agent = Self { child, said };
        let until = Instant::now() + PATIENCE;
        let mut client = loop {
            interrupts.check()?;
            if let Some(status) = agent.ended()? {
                return Err(DemoError::Agent(format!("did not start ({status}):\n{}", agent.said())));
            }
            match Client::connect(&stage.socket(), PATIENCE) {
                Ok(client) => break client,
                Err(Lost::Connect { .. }) if Instant::now() < until => sleep(LOOK),
                Err(lost) => return Err(lost.into()),
            }
        };
        match client.sync() {
            Ok(()) => Ok((agent, client)),
            Err(lost) => Err(DemoError::Agent(format!("does not answer: {lost}\n{}", agent.said()))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said to its operator.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default().trim_end().to_owned()
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, DemoError> {
        self.child.try_wait().map_err(|why| DemoError::Call("waiting for the agent", why))
    }

    /// Asks it to end, as a service manager does, and waits.
    pub(super) fn stop(&mut self) -> Result<ExitStatus, DemoError> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It was not waited for, so the number is still its own.
            _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            sleep(LOOK);
        }
        _ = self.child.kill();
        _ = self.child.wait();
        Err(DemoError::Agent(format!("did not end at SIGTERM and was killed:\n{}", self.said())))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.stop();
    }
}
