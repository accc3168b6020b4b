//! The real agent: the built executable with a policy in a temporary directory,
//! on a unix socket, spoken to as a host speaks; ended and swept away when it
//! goes out of scope.
//!
//! As root it gets accounts of its own by number; as an ordinary user it runs
//! as that user, with what confinement is left (`postern run` says what).

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{records, trace};

pub(crate) use super::binary::BINARY;

/// Within this everything that must happen has happened, on the slowest machine.
pub(crate) const LIVELY: Duration = Duration::from_secs(60);

/// Waits until `look` sees something; panics if it never does.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(LIVELY, Duration::from_millis(5), what, look)
}

/// As [`eventually`], with a patience of one's own and a pause between two looks.
pub(crate) fn within<T>(patience: Duration, pause: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < patience, "in vain: {what}");
        sleep(pause);
    }
}

/// Where an agent lives: policy, log, state, socket, and `files`, which belongs
/// to the worker's account. It outlives its agents, so that one can be started
/// after another.
pub(crate) struct Home {
    directory: TempDir,
    /// Account of worker, opener and spawner.
    pub(crate) worker: u32,
    /// Account of the broker.
    pub(crate) broker: u32,
    /// Start the agent as this ordinary user.
    pub(crate) user: Option<u32>,
    /// Which executable.
    pub(crate) binary: PathBuf,
    /// What to give it on the command line before verbosity and policy.
    pub(crate) launch: Vec<String>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::of(None)
    }

    /// The home of an agent that is not started as root.
    pub(crate) fn unprivileged() -> Self {
        let me = nix::unistd::geteuid();
        Self::of(Some(if me.is_root() { 70_001 } else { me.as_raw() }))
    }

    fn of(user: Option<u32>) -> Self {
        /// Other tests of this process have had so many.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("postern-").tempdir().expect("a temporary directory");
        let root = nix::unistd::geteuid().is_root();
        let me = nix::unistd::geteuid().as_raw();
        let first = 200_000 + (std::process::id() % 50_000) * 64 + NUMBER.fetch_add(2, Ordering::Relaxed) % 64;
        let (worker, broker) = match (root, user) {
            // The policy wants two; neither plays a part without root.
            (_, Some(user)) => (user, user + 1),
            (true, None) => (first, first + 1),
            (false, None) => (me, me + 1),
        };
        let home = Self { directory, worker, broker, user, binary: BINARY.into(), launch: vec!["run".into()] };
        fs::set_permissions(home.directory.path(), Permissions::from_mode(0o755)).expect("the directory's mode");
        fs::create_dir(home.files()).expect("a directory for files");
        if root {
            chown(home.files(), Some(worker), Some(worker)).expect("the files' owner");
            if let Some(user) = user {
                chown(home.directory.path(), Some(user), Some(user)).expect("the directory's owner");
            }
        }
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory that policies of tests usually reach.
    pub(crate) fn files(&self) -> PathBuf {
        self.path("files")
    }

    /// Holds every record of its logs against the schema, and looks for what must
    /// not be in them.
    fn check_records(&self) {
        if !std::thread::panicking() {
            records::check_home(&self.path("log"), &self.path("stderr"));
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("log/audit.jsonl")
    }

    /// Makes a file that the worker's account owns.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.files().join(name);
        fs::write(&path, content).expect("a file");
        if nix::unistd::geteuid().is_root() {
            chown(&path, Some(self.worker), Some(self.worker)).expect("the file's owner");
        }
        path
    }

    /// Writes the policy: `text`, in which `HOME` stands for this directory,
    /// and the tables that every agent of a test needs. A text with an `[audit]`
    /// of its own says there where heads go; else the machine's journal is left
    /// alone. Returns its path.
    pub(crate) fn policy(&self, text: &str) -> PathBuf {
        let home = self.directory.path().display();
        let path = self.path("policy.toml");
        let log = format!("[audit]\nlog = \"{home}/log/audit.jsonl\"\n");
        let text = if text.contains("[audit]\n") {
            text.replacen("[audit]\n", &log, 1)
        } else {
            format!("{text}\n{log}heads = []\n")
        };
        let mut policy = format!("version = 1\n{}\n", text.replace("HOME", &home.to_string()));
        let places = format!(
            "[state]\ndirectory = \"{home}/state\"\n\
             [channel]\nmethod = \"unix-listen\"\npath = \"{home}/host.sock\"\n"
        );
        policy.push_str(&places);
        if !text.contains("[identities]") {
            let accounts = format!("[identities]\nworker = {}\nbroker = {}\n", self.worker, self.broker);
            policy.push_str(&accounts);
        }
        fs::write(&path, policy).expect("a policy");
        path
    }

    /// The command that starts an agent with this policy.
    pub(crate) fn command(&self, policy: &str) -> Command {
        let policy = self.policy(policy);
        let mut command = trace::command(&self.binary);
        if let Some(user) = self.user.filter(|_| nix::unistd::geteuid().is_root()) {
            command.uid(user).gid(user);
            chown(&policy, Some(user), Some(user)).expect("the policy's owner");
        }
        let stderr = File::options().create(true).append(true).open(self.path("stderr")).expect("a file for stderr");
        command.args(&self.launch).args(["-vv", "--policy"]).arg(policy);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        command
    }

    /// Starts an agent and waits until it serves.
    pub(crate) fn start(&self, policy: &str) -> Agent<'_> {
        self.start_command(self.command(policy))
    }

    /// Starts an agent by a command of [`Self::command`].
    pub(crate) fn start_command(&self, mut command: Command) -> Agent<'_> {
        let number = |record: &Value| record["event"]["sequence"].as_u64().unwrap_or_default();
        // The records of an agent that was here before.
        let before = self.newest_records().iter().map(number).max().unwrap_or_default();
        let opens = fs::read_to_string(self.path("policy.toml")).is_ok_and(|policy| policy.contains("[[files]]"));
        let mut agent = Agent { home: self, child: command.spawn().expect("the agent") };
        eventually("the agent serves", || {
            if let Some(status) = agent.child.try_wait().expect("the agent's status") {
                panic!("the agent ended ({status}): {}", agent.said());
            }
            let records = self.newest_records();
            let ready = |role: &str| {
                records.iter().any(|record| {
                    number(record) > before
                        && record["event"]["action"] == "process-started"
                        && record["process"]["name"] == role
                })
            };
            (ready("worker") && (!opens || ready("opener"))).then_some(())
        });
        agent
    }

    /// Every whole record of the log and of the file that was rotated last.
    fn newest_records(&self) -> Vec<Value> {
        let log = self.log();
        let entries = log.parent().and_then(|directory| fs::read_dir(directory).ok()).into_iter().flatten().flatten();
        let rotated = entries.map(|entry| entry.path()).filter(|path| *path != log);
        let last = rotated.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok());
        last.into_iter().chain([log]).flat_map(|file| records_in(&file)).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.check_records();
    }
}

/// A running agent.
pub(crate) struct Agent<'a> {
    pub(crate) home: &'a Home,
    pub(crate) child: Child,
}

impl Agent<'_> {
    /// Its broker's process id.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A host's connection.
    pub(crate) fn connect(&self) -> Host {
        Host::connect(&self.home.path("host.sock"))
    }

    /// What it told its operator.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.home.path("stderr")).unwrap_or_default()
    }

    /// Its processes by the name that `ps` shows, without `postern: `.
    pub(crate) fn family(&self) -> BTreeMap<String, i32> {
        family_of(self.pid())
    }

    /// The process of this name, once there is one that is not `but`.
    pub(crate) fn process(&self, name: &str, but: i32) -> i32 {
        eventually(&format!("there is a {name} besides {but}"), || {
            self.family().get(name).copied().filter(|pid| *pid != but)
        })
    }

    /// Every whole record of its log, as it stands. What a full disk tore is
    /// none; whether all is there, `postern audit verify` tells.
    pub(crate) fn records(&self) -> Vec<Value> {
        records_in(&self.home.log())
    }

    /// The records of one action.
    pub(crate) fn records_of(&self, action: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["event"]["action"] == action).collect()
    }

    /// Waits for a record of this action for which `is` holds.
    pub(crate) fn await_record(&self, action: &str, is: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("a record of {action} in\n{:#?}", self.records_of(action)), || {
            self.records_of(action).into_iter().find(|record| is(record))
        })
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        let pid = self.process(name, 0);
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|errno| panic!("{signal} to {name}: {errno}"));
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        eventually("the agent ends", || self.child.try_wait().expect("the agent's status"))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.said());
        }
        // The spawner and with it all the others die with the broker.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.home.check_records();
    }
}

fn records_in(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// This broker and what is below it: see [`Agent::family`].
pub(crate) fn family_of(broker: i32) -> BTreeMap<String, i32> {
    let mut found = BTreeMap::from([(name_of(broker).unwrap_or_default(), broker)]);
    let all = processes();
    let mut parents = vec![broker];
    while let Some(parent) = parents.pop() {
        for (pid, _) in all.iter().filter(|(_, of)| *of == parent) {
            // One that is being born still has its parent's name: it must
            // not take its place.
            found.entry(name_of(*pid).unwrap_or_default()).or_insert(*pid);
            parents.push(*pid);
        }
    }
    found
}

/// The name that `ps` shows, without `postern: `.
fn name_of(pid: i32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    Some(line.trim_end_matches(['\0', ' ']).strip_prefix("postern: ")?.to_owned())
}

/// Every process, with its parent; a dead one that nobody waited for is none.
fn processes() -> Vec<(i32, i32)> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        (state != "Z" && state != "X").then_some(fields.next()?.parse().ok()?)
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

/// Whether a process lives.
pub(crate) fn lives(pid: i32) -> bool {
    processes().iter().any(|(one, _)| *one == pid)
}

/// The host's end of the channel.
pub(crate) struct Host {
    stream: BufReader<UnixStream>,
}

impl Host {
    pub(crate) fn connect(socket: &Path) -> Self {
        Self::over(eventually("the agent listens", || UnixStream::connect(socket).ok()))
    }

    /// A host at the end of this connection.
    pub(crate) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIVELY)).expect("a time limit");
        stream.set_write_timeout(Some(LIVELY)).expect("a time limit");
        Self { stream: BufReader::new(stream) }
    }

    /// A second descriptor for writing, and the host for reading.
    pub(crate) fn split(self) -> (UnixStream, Self) {
        (self.stream.get_ref().try_clone().expect("a second descriptor"), self)
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the channel takes bytes");
    }

    /// The next reply line as it came, without its newline.
    pub(crate) fn hear_line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a reply in time");
        assert!(line.ends_with('\n'), "the channel ended: {line}");
        line.trim_end().to_owned()
    }

    /// The next reply line.
    pub(crate) fn hear(&mut self) -> Value {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("a reply in time");
        assert!(!line.is_empty(), "the channel ended");
        let text = line.strip_prefix(b"\xff").unwrap_or(&line);
        serde_json::from_slice(text).unwrap_or_else(|_| panic!("a reply: {:?}", String::from_utf8_lossy(&line)))
    }

    /// Skips all up to the reply of a `guest-sync-delimited` with this number.
    pub(crate) fn skip_to(&mut self, number: i64) {
        loop {
            let mut bytes = Vec::new();
            self.stream.read_until(0xff, &mut bytes).expect("a reply in time");
            assert!(!bytes.is_empty(), "the channel ended");
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a reply in time");
            if serde_json::from_str::<Value>(&line).is_ok_and(|reply| reply["return"] == number) {
                return;
            }
        }
    }

    /// Sends a whole request and returns the whole reply; `None` if the channel
    /// ends before.
    pub(crate) fn try_ask(&mut self, request: &Value) -> Option<Value> {
        self.stream.get_mut().write_all(request.to_string().as_bytes()).ok()?;
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).ok()?;
        line.ends_with(b"\n").then(|| serde_json::from_slice(&line).expect("a reply"))
    }

    /// Asks with arguments and returns the whole reply.
    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let mut request = serde_json::json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        self.send(request.to_string().as_bytes());
        self.hear()
    }

    /// Asks and returns what the reply returns.
    pub(crate) fn returns(&mut self, command: &str, arguments: &Value) -> Value {
        let reply = self.ask(command, arguments);
        assert!(reply.get("return").is_some(), "{command} {arguments}: {reply}");
        reply["return"].clone()
    }

    /// Asks and returns the error's text.
    pub(crate) fn fails(&mut self, command: &str, arguments: &Value) -> String {
        let reply = self.ask(command, arguments);
        reply["error"]["desc"].as_str().unwrap_or_else(|| panic!("{command} {arguments}: {reply}")).to_owned()
    }

    pub(crate) fn ping(&mut self) {
        self.returns("guest-ping", &Value::Null);
    }

    /// Opens a file: its handle, or the error's text.
    pub(crate) fn open(&mut self, path: impl AsRef<Path>, mode: &str) -> Result<i64, String> {
        let path = path.as_ref().to_str().expect("a path in UTF-8");
        let reply = self.ask("guest-file-open", &serde_json::json!({ "path": path, "mode": mode }));
        match reply["error"]["desc"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(reply["return"].as_i64().unwrap_or_else(|| panic!("{reply}"))),
        }
    }

    /// Up to 4 KiB from where the handle is, still encoded.
    pub(crate) fn read(&mut self, handle: i64) -> String {
        let reply = self.returns("guest-file-read", &serde_json::json!({ "handle": handle }));
        reply["buf-b64"].as_str().expect("buf-b64").to_owned()
    }

    pub(crate) fn write(&mut self, handle: i64, encoded: &str) -> Value {
        self.ask("guest-file-write", &serde_json::json!({ "handle": handle, "buf-b64": encoded }))
    }

    pub(crate) fn close(&mut self, handle: i64) {
        self.returns("guest-file-close", &serde_json::json!({ "handle": handle }));
    }
}
