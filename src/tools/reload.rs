//! `postern reload`: checks the policy, signals the broker, and waits for the
//! record that says how it ended.
//!
//! Trust: run by root or by the service manager. The audit log is believed as far
//! as it goes: what came of a reload, nothing else; what stands in it is escaped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_core::audit::{Hash, sequence_of};
use postern_core::policy::written::{self, World};

use crate::audit::follow::Tail;
use crate::audit::record::{self, Record};
use crate::audit::words::escape;

/// The broker's name, as it gives itself.
const NAME: &str = "postern-broker";
/// Where the init script has its process id.
const PIDFILE: &str = "/run/postern.pid";
/// Between two looks at the log.
const AGAIN: Duration = Duration::from_millis(20);
/// Within so many bytes of a line stands what sort of record it is: the time and
/// the number come first.
const ACTION_BYTES: usize = 256;

/// The policy has mistakes.
const BAD: u8 = 3;
/// What came of it is not known.
const UNKNOWN: u8 = 4;
/// There is nobody to tell.
const NOBODY: u8 = 5;

/// `postern reload`.
#[derive(Debug, clap::Args)]
pub struct Reload {
    /// The policy that the agent was started with, instead of the installed one
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The agent's process id, such as systemd's $MAINPID, instead of what /run/postern.pid says
    #[arg(long, value_name = "NUMBER")]
    pid: Option<i32>,
    /// How many seconds to wait for what comes of it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// What the log says of a reload.
enum Said {
    InForce(String),
    Kept(String),
}

impl Reload {
    /// Does it: what came of it on stdout, why not on stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let loaded = match written::load(self.policy.as_deref(), &World::live()) {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                eprintln!("{mistakes}\nthe policy in force stays");
                return ExitCode::from(BAD);
            }
        };
        for warning in &loaded.warnings {
            eprintln!("{warning}");
        }
        let pid = match self.pid.map_or_else(|| from_pidfile(Path::new(PIDFILE)), Ok).and_then(broker) {
            Ok(pid) => pid,
            Err(why) => {
                eprintln!("postern: {why}");
                return ExitCode::from(NOBODY);
            }
        };
        let log = &loaded.policy.audit.log;
        match tell(pid, log, loaded.policy.digest, Duration::from_secs(self.wait)) {
            Ok(Some(Said::InForce(what))) => {
                println!("{what}");
                ExitCode::SUCCESS
            }
            Ok(Some(Said::Kept(why))) => {
                eprintln!("postern: the policy in force stays: {why}");
                ExitCode::FAILURE
            }
            Ok(None) => {
                eprintln!(
                    "postern: told, but {} does not say within {} s what came of it. While filesystems are being frozen \
                     or are frozen it waits; if audit.log has changed, run: systemctl restart postern",
                    log.display(),
                    self.wait
                );
                ExitCode::from(UNKNOWN)
            }
            Err(why) => {
                eprintln!("postern: {}: {why}", log.display());
                ExitCode::from(UNKNOWN)
            }
        }
    }
}

fn from_pidfile(path: &Path) -> Result<i32, String> {
    let path_name = path.display();
    let text = fs::read_to_string(path)
        .map_err(|why| format!("{path_name}: {why}; name the agent with --pid, or run: systemctl reload postern"))?;
    text.trim().parse().map_err(|_| format!("{path_name} holds no process id; name the agent with --pid"))
}

/// The process, if it is a broker: a number may be another's by now.
fn broker(pid: i32) -> Result<Pid, String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if pid > 1 && name.trim_end() == NAME {
        Ok(Pid::from_raw(pid))
    } else {
        Err(format!("process {pid} is no running {NAME}"))
    }
}

/// Signals, and waits for what the log says behind that; `None` if it says
/// nothing. Where the policy's files are those in force already, nothing will.
fn tell(pid: Pid, log: &Path, digest: [u8; 32], wait: Duration) -> io::Result<Option<Said>> {
    let digest = Hash(digest).to_string();
    let mut last = 0;
    let mut running = String::new();
    let mut tail = match Tail::open(log) {
        Ok(mut tail) => {
            while let Some(line) = tail.next()? {
                last = sequence_of(line).unwrap_or(last);
                learn(line, &mut running);
            }
            Some(tail)
        }
        // Moved away: the signal has the broker make another.
        Err(why) if why.kind() == io::ErrorKind::NotFound => None,
        Err(why) => return Err(why),
    };
    kill(pid, Signal::SIGHUP)?;
    let since = Instant::now();
    loop {
        if running == digest {
            return Ok(Some(Said::InForce("the policy has not changed; it is in force".to_owned())));
        }
        if tail.is_none() {
            tail = Tail::open(log).ok();
        }
        while let Some(line) = tail.as_mut().map_or(Ok(None), Tail::next)? {
            let is_new = sequence_of(line).is_some_and(|number| number > last);
            if is_new
                && is_one_of(line, &["policy-reloaded", "policy-kept"])
                && let Some(record) = record::parse(line)
            {
                return Ok(Some(said(&record)));
            }
            learn(line, &mut running);
        }
        if since.elapsed() >= wait {
            return Ok(None);
        }
        std::thread::sleep(AGAIN);
    }
}

/// Takes in which policy is in force, where a record says so.
fn learn(line: &[u8], running: &mut String) {
    if is_one_of(line, &["log-opened", "policy-reloaded"])
        && let Some(record) = record::parse(line)
    {
        *running = record.postern.policy_digest.into_owned();
    }
}

/// Whether a line may be a record of one of these, without reading all of it.
fn is_one_of(line: &[u8], actions: &[&str]) -> bool {
    let start = String::from_utf8_lossy(&line[..line.len().min(ACTION_BYTES)]);
    actions.iter().any(|action| start.contains(&format!("\"action\":\"{action}\"")))
}

fn said(record: &Record<'_>) -> Said {
    if record.event.action == "policy-kept" {
        return Said::Kept(escape(&record.event.reason));
    }
    let mut text = format!("record {}: the policy is in force", record.event.sequence);
    let ours = &record.postern;
    for (what, keys) in [
        ("tightened", &ours.tightened),
        ("widened", &ours.widened),
        ("until the next start the broker keeps what it needs for", &ours.surplus),
    ] {
        if !keys.is_empty() {
            text.extend(["; ", what, ": ", &escape(&keys.join(", "))]);
        }
    }
    Said::InForce(text)
}
