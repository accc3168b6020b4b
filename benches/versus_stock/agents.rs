//! The agents, and the floor program beside them: where they live, how they are
//! started, and that they end.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use super::Result;
use super::host::Host;

/// The first account of postern's processes, where root starts it. They need not
/// exist. Each place has two of its own: no two agents share one.
const FIRST_ACCOUNT: u32 = 61_871;
/// How long an agent may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Stock,
    Postern,
    /// What no agent can beat: the same socket, and replies of the same sizes that
    /// nobody thought about.
    Floor,
}

impl Which {
    /// Those that are agents, in the order of the tables' columns.
    pub(crate) const BOTH: [Self; 2] = [Self::Stock, Self::Postern];
    /// In the order of the table's columns.
    pub(crate) const ALL: [Self; 3] = [Self::Stock, Self::Postern, Self::Floor];
}

/// The directory of a run, and what runs there.
pub(crate) struct Place {
    directory: TempDir,
    stock: PathBuf,
    worker: u32,
    broker: u32,
    /// Whether root started this.
    pub(crate) root: bool,
    /// Whether files are in memory only.
    pub(crate) tmpfs: bool,
    /// The CPUs that this process may use.
    pub(crate) cpus: CpuSet,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        Self::numbered(0, None, "")
    }

    /// One of several places: postern's log lies in `log`, or with everything
    /// else, and `more` are more lines of its policy's `[audit]`, and other tables.
    pub(crate) fn numbered(number: u32, log: Option<&Path>, more: &str) -> Result<Self> {
        let shm = Path::new("/dev/shm");
        let made = tempfile::Builder::new().prefix("versus-stock-").tempdir_in(shm);
        let tmpfs = made.is_ok();
        let directory = made.or_else(|_| TempDir::new())?;
        // The worker's account has to reach what is in it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let place = Self {
            stock: find_stock()?,
            worker: FIRST_ACCOUNT + 2 * number,
            broker: FIRST_ACCOUNT + 2 * number + 1,
            root: geteuid().is_root(),
            tmpfs,
            cpus: sched_getaffinity(Pid::from_raw(0))?,
            directory,
        };
        place.fill(log, more)?;
        Ok(place)
    }

    fn fill(&self, log: Option<&Path>, more: &str) -> Result<()> {
        let Self { worker, broker, .. } = self;
        let log = log.map_or_else(|| self.path("log"), Path::to_owned);
        for (path, mode, owner) in [
            (&self.path("stock-state"), 0o700, None),
            (&self.path("files"), 0o755, None),
            (&log, 0o700, Some(*broker)),
            (&self.path("state"), 0o700, Some(*broker)),
        ] {
            fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
            if self.root {
                chown(path, owner, owner)?;
            }
        }
        let text = |path: PathBuf| path.display().to_string();
        let policy = format!(
            "version = 1\nprofile = \"files\"\n[[files]]\npath = {files:?}\nrights = [\"read\", \"write\"]\n[audit]\n\
             log = {log:?}\n{more}[state]\ndirectory = {state:?}\n[identities]\nworker = {worker}\nbroker = {broker}\n",
            files = text(self.path("files")),
            log = text(log.join("audit.jsonl")),
            state = text(self.path("state")),
        );
        Ok(fs::write(self.path("policy.toml"), policy)?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file that both agents may read and write.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path("files").join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        if self.root {
            chown(&path, Some(self.worker), Some(self.worker))?;
        }
        Ok(path)
    }

    /// The agent's executable.
    pub(crate) fn program(&self, which: Which) -> PathBuf {
        match which {
            Which::Stock => self.stock.clone(),
            Which::Floor => std::env::current_exe().unwrap_or_default(),
            Which::Postern => match std::env::var_os("POSTERN") {
                Some(named) => named.into(),
                None => env!("CARGO_BIN_EXE_postern").into(),
            },
        }
    }

    fn socket(&self, which: Which) -> PathBuf {
        self.path(match which {
            Which::Stock => "stock.sock",
            Which::Postern => "postern.sock",
            Which::Floor => "floor.sock",
        })
    }

    fn command(&self, which: Which) -> Command {
        let mut command = Command::new(self.program(which));
        let socket = self.socket(which);
        match which {
            Which::Stock => {
                command.args(["-m", "unix-listen", "-p"]).arg(socket).arg("-t").arg(self.path("stock-state"))
            }
            Which::Postern => command
                .args(["run", "--policy"])
                .arg(self.path("policy.toml"))
                .arg("--channel")
                .arg(format!("unix-listen:{}", socket.display())),
            Which::Floor => command.arg("--floor").arg(socket),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

fn find_stock() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("QEMU_GA") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|place| place.join("qemu-ga")).find(|file| file.is_file());
    found.ok_or_else(|| "no stock agent found; install qemu-guest-agent, or name one with QEMU_GA=/path".into())
}

/// A running agent; ends with its value.
pub(crate) struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn start(place: &Place, which: Which) -> Result<Self> {
        let socket = place.socket(which);
        let _ = fs::remove_file(&socket);
        let child = place.command(which).spawn()?;
        Ok(Self { child, socket })
    }

    /// Connects as soon as the agent listens.
    pub(crate) fn meet(&self) -> Result<Host> {
        let since = Instant::now();
        loop {
            match Host::connect(&self.socket) {
                Ok(host) => return Ok(host),
                Err(why) if since.elapsed() > PATIENCE => return Err(format!("no agent: {why}").into()),
                Err(_) => std::thread::sleep(Duration::from_micros(20)),
            }
        }
    }

    /// The agent and all its descendants.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        let mut family = vec![self.pid()];
        let parents = parents()?;
        // A descendant follows its parent, so one walk over a growing list
        // finds all.
        let mut next = 0;
        while let Some(&parent) = family.get(next) {
            family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        Ok(family)
    }

    /// Lets every thread of the agent run on these CPUs only.
    pub(crate) fn pin(&self, cpus: &CpuSet) -> Result<()> {
        for process in self.processes()? {
            for thread in fs::read_dir(format!("/proc/{process}/task"))? {
                let thread: i32 = thread?.file_name().to_string_lossy().parse()?;
                sched_setaffinity(Pid::from_raw(thread), cpus)?;
            }
        }
        Ok(())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

/// Every process with its parent.
fn parents() -> Result<Vec<(Pid, Pid)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        // One that ended in between is no descendant any more.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        all.extend(parent.map(|parent| (Pid::from_raw(pid), Pid::from_raw(parent))));
    }
    Ok(all)
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut family = self.processes().unwrap_or_default();
        // The child was not waited for, so the number is still its own.
        let _ = kill(self.pid(), Signal::SIGTERM);
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)) | Err(_));
            // Descendants outlive it for a moment, and a new agent would find
            // its accounts in use.
            family.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
            if ended && family.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
