//! Odd scenes of freezing and thawing, each played by postern and by the stock
//! agent in the same cell: what they answer and what is frozen behind it. The table
//! is `tests/freeze/BESIDE.md`; where the two differ it says why.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_core::sys::fs::{freeze, thaw};
use serde_json::{Value, json};

use super::odd;
use crate::scene;
use crate::support::agent::{Home, LIVELY, eventually, family_of, lives};
use crate::support::disk::Disk;

/// The table as it is published.
const TABLE: &str = include_str!("BESIDE.md");

/// What stock does not answer within this is noted as such.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agent {
    Postern,
    Stock,
}

/// A scene: its name, why the two differ if they do, and what happens in it.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) differs: Option<&'static str>,
    pub(crate) play: fn(&mut Stage),
}

/// A scratch disk at a mountpoint, held by nothing but its mount, so that it can be
/// unmounted. Thawed and unmounted when dropped.
pub(crate) struct Scratch {
    pub(crate) disk: Disk,
    pub(crate) at: PathBuf,
}

impl Scratch {
    pub(crate) fn new(image: &str, at: &str) -> Self {
        let disk = Disk::small("ext4", image);
        fs::create_dir_all(at).expect("a mountpoint");
        let scratch = Self { disk, at: at.into() };
        scratch.mount(at);
        scratch
    }

    /// Mounts it there too.
    pub(crate) fn mount(&self, at: &str) {
        fs::create_dir_all(at).expect("a mountpoint");
        let none: Option<&str> = None;
        mount(Some(&self.disk.device), at, Some("ext4"), MsFlags::empty(), none).expect("a mount");
    }

    /// Does something to it by way of a mount of its own.
    fn on<T>(&self, act: impl FnOnce(&File) -> T) -> T {
        const PROBE: &str = "/probe";
        self.mount(PROBE);
        let root = File::open(PROBE).expect("its root");
        let done = act(&root);
        drop(root);
        umount2(PROBE, MntFlags::empty()).expect("the probe");
        done
    }

    /// Freezes it behind the agent's back.
    pub(crate) fn freeze(&self) -> Result<(), Errno> {
        self.on(|root| freeze(root.as_fd()))
    }

    /// Thaws it behind the agent's back.
    pub(crate) fn thaw(&self) -> Result<(), Errno> {
        self.on(|root| thaw(root.as_fd()))
    }

    fn is_frozen(&self) -> bool {
        self.on(|root| match freeze(root.as_fd()) {
            Ok(()) => thaw(root.as_fd()).is_err(),
            Err(why) => why == Errno::EBUSY,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.thaw();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let device = self.disk.device.display().to_string();
        let ours = mounts.lines().rev().filter(|line| line.split(' ').any(|word| word == device));
        for at in ours.filter_map(|line| line.split(' ').nth(4)) {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

/// Where a scene is played: an agent, two disks, and what has been noted.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    limit: &'static str,
    home: Home,
    process: Child,
    host: BufReader<UnixStream>,
    /// At `/a` and `/b`.
    pub(crate) disks: Vec<Scratch>,
    noted: Vec<String>,
    /// What stays open until the end.
    pub(crate) held: Vec<File>,
}

impl Stage {
    /// One without disks.
    pub(crate) fn bare(agent: Agent) -> Self {
        Self::new(agent, &Scene { name: odd::BARE, differs: None, play: |_| () })
    }

    fn new(agent: Agent, scene: &Scene) -> Self {
        let places = [("/1.img", "/a"), ("/2.img", "/b")];
        let disks = places
            .iter()
            .filter(|_| !scene.name.starts_with(odd::BARE))
            .map(|(image, at)| Scratch::new(image, at))
            .collect();
        let home = Home::new();
        let limit = if scene.name == odd::NEVER_THAWS { "3s" } else { "10m" };
        let process = start(agent, &home, limit);
        let host = connect(&socket(agent, &home));
        Self { agent, limit, home, process, host, disks, noted: Vec::new(), held: Vec::new() }
    }

    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.noted)
    }

    pub(crate) fn note(&mut self, what: &str) {
        self.noted.push(what.to_owned());
    }

    /// Notes how something went that was done to the guest.
    pub(crate) fn done(&mut self, what: &str, result: Result<(), Errno>) {
        let how = result.map_or_else(|why| format!("{why:?}"), |()| "done".to_owned());
        self.noted.push(format!("*{what}: {how}*"));
    }

    pub(crate) fn send(&mut self, command: &str, arguments: &Value) {
        let request = json!({ "execute": command, "arguments": arguments });
        self.host.get_mut().write_all(request.to_string().as_bytes()).expect("the agent takes bytes");
    }

    /// Notes the next reply, or that there is none.
    pub(crate) fn hear(&mut self, to: &str, patience: Duration) {
        self.host.get_mut().set_read_timeout(Some(patience)).expect("a time limit");
        let mut line = String::new();
        let said = match self.host.read_line(&mut line) {
            Ok(0) => "the connection ends".to_owned(),
            Ok(_) => shown(&serde_json::from_str(&line).expect("a reply")),
            Err(_) => "no answer".to_owned(),
        };
        self.noted.push(format!("{to} → {said}"));
    }

    /// Notes whether there is a reply although something is stuck. What answers by
    /// then on a machine with much else to do has so long.
    pub(crate) fn hear_meanwhile(&mut self, to: &str) {
        self.hear(to, if self.agent == Agent::Stock { PATIENCE } else { LIVELY });
    }

    /// Waits until postern has read what was sent to it; stock reads nothing meanwhile.
    pub(crate) fn is_read(&mut self) {
        if self.agent == Agent::Postern {
            let before = self.noted.len();
            self.status();
            self.noted.truncate(before);
        }
    }

    fn ask(&mut self, name: &str, command: &str, arguments: &Value) {
        self.send(command, arguments);
        self.hear(name, LIVELY);
    }

    pub(crate) fn freeze(&mut self) {
        self.ask("freeze", "guest-fsfreeze-freeze", &json!({}));
    }

    pub(crate) fn freeze_list(&mut self, list: &[&str]) {
        let name = format!("list [{}]", list.join(" "));
        self.ask(&name, "guest-fsfreeze-freeze-list", &json!({ "mountpoints": list }));
    }

    pub(crate) fn thaw(&mut self) {
        self.ask("thaw", "guest-fsfreeze-thaw", &json!({}));
    }

    pub(crate) fn status(&mut self) {
        self.ask("status", "guest-fsfreeze-status", &json!({}));
    }

    /// Another host in the place of this one.
    pub(crate) fn connect_anew(&mut self) {
        let _ = self.host.get_ref().shutdown(std::net::Shutdown::Both);
        self.host = connect(&socket(self.agent, &self.home));
    }

    pub(crate) fn kill_agent(&mut self) {
        let family = family_of(self.process.id().cast_signed());
        self.process.kill().expect("SIGKILL");
        self.process.wait().expect("its end");
        eventually("its family is gone", || family.values().all(|pid| !lives(*pid)).then_some(()));
    }

    pub(crate) fn end_agent(&mut self) {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
        // Stock's way is not to; what ends in order is waited for.
        let ended = match self.agent {
            Agent::Postern => Some(eventually("the agent ends", || self.process.try_wait().expect("its status"))),
            Agent::Stock => {
                sleep(PATIENCE);
                self.process.try_wait().expect("its status")
            }
        };
        self.note(if ended.is_some() { "*SIGTERM: ends*" } else { "*SIGTERM: stays*" });
    }

    pub(crate) fn start_anew(&mut self) {
        self.process = start(self.agent, &self.home, self.limit);
        self.host = connect(&socket(self.agent, &self.home));
    }

    /// Another agent, which finds the guest as it is now.
    pub(crate) fn start_over(&mut self) {
        self.kill_agent();
        self.start_anew();
    }

    /// Waits for the end of a freeze of which nobody is told.
    pub(crate) fn settle(&mut self) {
        eventually("the freeze is done", || {
            let before = self.noted.len();
            self.status();
            let said = self.noted.drain(before..).next_back();
            (said.as_deref() == Some("status → frozen")).then_some(())
        });
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// What is frozen in the end.
    fn state(&self) -> String {
        let frozen: Vec<String> =
            self.disks.iter().filter(|disk| disk.is_frozen()).map(|disk| disk.at.display().to_string()).collect();
        if frozen.is_empty() { "all thawed".to_owned() } else { format!("**{} frozen**", frozen.join(", ")) }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Last mounted, first gone.
        while self.disks.pop().is_some() {}
    }
}

fn socket(agent: Agent, home: &Home) -> PathBuf {
    home.path(if agent == Agent::Postern { "host.sock" } else { "stock.sock" })
}

fn start(agent: Agent, home: &Home, limit: &str) -> Child {
    let mut command = match agent {
        Agent::Postern => home.command(&scene::with(&format!("[freeze]\nlimit = \"{limit}\"\n"))),
        Agent::Stock => {
            let state = home.path("stock");
            fs::create_dir_all(&state).expect("a directory");
            let mut command = Command::new("/bin/qemu-ga");
            command.args(["-m", "unix-listen", "-p"]).arg(socket(agent, home)).arg("-t").arg(state);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        }
    };
    let _ = fs::remove_file(socket(agent, home));
    command.spawn().expect("an agent")
}

fn connect(socket: &Path) -> BufReader<UnixStream> {
    BufReader::new(eventually("the agent listens", || UnixStream::connect(socket).ok()))
}

/// A reply in a few words.
fn shown(reply: &Value) -> String {
    let Some(why) = reply["error"]["desc"].as_str() else {
        return reply["return"].as_str().map_or_else(|| reply["return"].to_string(), str::to_owned);
    };
    if why.contains("has been disabled") { "disabled".to_owned() } else { format!("\"{why}\"") }
}

/// Plays a scene: what was noted, and what is frozen behind it.
fn play(scene: &Scene, agent: Agent) -> String {
    let mut stage = Stage::new(agent, scene);
    (scene.play)(&mut stage);
    let state = stage.state();
    format!("{}; {state}", stage.noted.join(", "))
}

/// The first half of the scenes.
pub(crate) fn odd_scenes_end_as_the_table_says() {
    hold(&odd::SCENES[..HALF], &rows()[..HALF]);
}

/// The other half, for another processor.
pub(crate) fn odder_scenes_end_as_the_table_says() {
    hold(&odd::SCENES[HALF..], &rows()[HALF..]);
}

const HALF: usize = odd::SCENES.len() / 2;

/// The rows of the table: scene, postern, stock, why they differ.
fn rows() -> Vec<Vec<&'static str>> {
    let lines = TABLE.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let rows: Vec<Vec<&str>> = lines.map(|line| line.trim_matches(['|', ' ']).split(" | ").collect()).collect();
    assert_eq!(rows.len(), odd::SCENES.len(), "the table has another number of scenes");
    rows
}

fn hold(scenes: &[Scene], rows: &[Vec<&str>]) {
    let begun = Instant::now();
    let mut wrong = Vec::new();
    for (scene, row) in scenes.iter().zip(rows) {
        let ours = play(scene, Agent::Postern);
        // Stock's half of the table does not depend on how postern was built.
        let stock = if cfg!(debug_assertions) { row[2].to_owned() } else { play(scene, Agent::Stock) };
        let found = [scene.name, &ours, &stock, scene.differs.unwrap_or("same")];
        if found != row[..] || (ours == stock) == scene.differs.is_some() {
            wrong.push(format!("| {} |", found.join(" | ")));
        }
    }
    println!("    {} scenes in {:?}", scenes.len(), begun.elapsed());
    assert!(wrong.is_empty(), "tests/freeze/BESIDE.md has other rows than these:\n{}", wrong.join("\n"));
}
