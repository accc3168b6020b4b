//! rsyslogd as sender and as receiver, with the configurations that ship: only
//! paths, port and address are put in.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::certificates::certificates;
use crate::support::agent::{Home, LIVELY, eventually, within};

const SEND: &str = include_str!("../../audit/collectors/rsyslog-send.conf");
const RECEIVE: &str = include_str!("../../audit/collectors/rsyslog-receive.conf");

/// The configuration that Debian's package has, which includes what we ship.
pub(crate) const DEBIANS: &str = "/etc/rsyslog.conf";

/// The address that a receiver here sees.
const FROM: &str = "127.0.0.1";

/// rsyslog's modules, which it loads by name, and its configuration.
pub(crate) fn modules() -> Vec<String> {
    let directories = fs::read_dir("/usr/lib").expect("/usr/lib").flatten().map(|entry| entry.path().join("rsyslog"));
    let directory = directories.into_iter().find(|directory| directory.join("imfile.so").exists());
    // Without it the cell says what is not installed.
    let directory = directory.unwrap_or_else(|| "/usr/lib/rsyslog".into());
    ["imfile", "imklog", "imrelp", "imuxsock", "omrelp", "mmjsonparse", "lmnet"]
        .map(|module| directory.join(module).with_extension("so").display().to_string())
        .into_iter()
        .chain([DEBIANS.to_owned()])
        .collect()
}

/// Puts `to` for `from`, which must be there.
pub(crate) fn put(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the configuration has no {from}");
    text.replace(from, to)
}

/// Where a sender and a receiver live. They outlive their processes.
pub(crate) struct Place {
    directory: TempDir,
    send: PathBuf,
    receive: PathBuf,
    port: u16,
}

impl Place {
    /// Certificates, and both configurations for the log of this home.
    pub(crate) fn new(home: &Home) -> Self {
        let directory = tempfile::Builder::new().prefix("rsyslog-").tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["sent", "received", "guests"] {
            fs::create_dir(path(name)).expect("a directory");
        }
        certificates(directory.path());
        // Freed here and bound by the receiver: nobody else on this machine looks for a port of this kind.
        let port = TcpListener::bind((FROM, 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
        let shown = directory.path().display().to_string();
        let log = home.log().parent().expect("a directory").display().to_string();
        let send = put(SEND, "/var/log/postern/", &format!("{log}/"));
        let send = put(&send, "target=\"logs.example.net\"", &format!("target=\"{FROM}\""));
        let receive = put(RECEIVE, "/var/log/postern-guests/", &format!("{shown}/guests/"));
        let receive = put(&receive, "input(type=\"imrelp\"", &format!("input(type=\"imrelp\" address=\"{FROM}\""));
        let write = |name: &str, text: &str| {
            let text = put(text, "\"20514\"", &format!("\"{port}\""));
            let text = put(&text, "/etc/rsyslog.d/tls/", &format!("{shown}/"));
            let file = path(&format!("{name}.conf"));
            fs::write(&file, text).expect("a configuration");
            // Debian's rsyslog.conf says the first before it includes what we ship.
            let main = path(&format!("{name}-main.conf"));
            let include = format!("global(workDirectory=\"{shown}/{name}\")\ninclude(file=\"{}\")\n", file.display());
            fs::write(&main, include).expect("a configuration");
            main
        };
        let (send, receive) = (write("sent", &send), write("received", &receive));
        Self { directory, send, receive, port }
    }

    /// What ships, with the paths of this place.
    pub(crate) fn configurations(&self) -> [PathBuf; 2] {
        ["sent.conf", "received.conf"].map(|name| self.directory.path().join(name))
    }

    pub(crate) fn sender(&self) -> Rsyslog {
        self.start(&self.send, &[])
    }

    /// A sender of this account with these capabilities.
    pub(crate) fn sender_as(&self, account: u32, capabilities: &str) -> Rsyslog {
        let account = account.to_string();
        let mut wrap = vec!["/bin/setpriv", "--reuid", &account, "--regid", &account, "--clear-groups"];
        if !capabilities.is_empty() {
            wrap.extend(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
        }
        self.start(&self.send, &wrap)
    }

    /// Makes what a sender writes, and the key that it reads, this account's.
    pub(crate) fn give_to(&self, account: u32) {
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o777)).expect("the mode");
        for name in ["sent", "guest.key"] {
            chown(self.directory.path().join(name), Some(account), Some(account)).expect("the owner");
        }
    }

    /// Started, and listening: a sender that comes too early tries again only seconds later.
    pub(crate) fn receiver(&self) -> Rsyslog {
        let started = self.start(&self.receive, &[]);
        eventually("the receiver listens", || TcpStream::connect((FROM, self.port)).ok());
        started
    }

    /// Starts it by the program and the arguments of `wrap`, if there are.
    fn start(&self, configuration: &Path, wrap: &[&str]) -> Rsyslog {
        let run = || {
            let words = [wrap, &["/bin/rsyslogd"]].concat();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command.arg("-f").arg(configuration).arg("-i").arg(configuration.with_extension("pid"));
            command.stdin(Stdio::null());
            command
        };
        let checked = run().arg("-N1").output().expect("rsyslogd");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && !said.contains("error"), "{said}");
        let log = fs::File::options().create(true).append(true).open(self.directory.path().join("said"));
        let child = run().arg("-n").stderr(log.expect("a file")).spawn().expect("rsyslogd");
        Rsyslog { child, pid_file: configuration.with_extension("pid") }
    }

    /// The copy of the one guest.
    pub(crate) fn copy(&self) -> PathBuf {
        self.directory.path().join(format!("guests/{FROM}.jsonl"))
    }

    /// What the receiver chose by a field of the record.
    pub(crate) fn refused(&self) -> PathBuf {
        self.directory.path().join("guests/refused.jsonl")
    }

    /// Gives one end the other's certificate.
    pub(crate) fn mistake_for(&self, end: &str, other: &str) {
        for kind in ["pem", "key"] {
            let path = |name: &str| self.directory.path().join(format!("{name}.{kind}"));
            fs::copy(path(other), path(end)).expect("a certificate");
        }
    }

    /// What rsyslog said to its operator.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("said")).unwrap_or_default()
    }

    /// Waits until the copy ends with this line. A sender whose server was away tries
    /// again only seconds later, and may have much to send.
    pub(crate) fn await_line(&self, line: &str) {
        let line = format!("{line}\n");
        let what = format!("the copy ends with {line}; rsyslog said: {}", self.said());
        within(LIVELY * 4, Duration::from_millis(50), &what, || {
            fs::read_to_string(self.copy()).is_ok_and(|copy| copy.ends_with(&line)).then_some(())
        });
    }
}

/// A running rsyslogd.
pub(crate) struct Rsyslog {
    child: Child,
    pid_file: PathBuf,
}

impl Rsyslog {
    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
        assert!(self.child.wait().expect("its end").success());
    }

    /// Ends it as a lack of memory does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("SIGKILL");
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.pid_file);
    }
}
