//! The agents of these tests: postern with every command that only reads, and stock
//! of two versions, each on a socket of its own in the same cell.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use postern_core::catalogue;
use serde_json::Value;

use crate::schema;
use crate::support::agent::{Home, Host};

/// Where a cell has stock of the machine's own release.
const INSTALLED: &str = "/bin/qemu-ga";
/// The release whose stock has every command that only reads.
const NEWER: &str = "trixie";

/// Commands that only read: all that are called so.
pub(crate) fn reading() -> impl Iterator<Item = &'static str> {
    schema::commands().filter(|name| name.starts_with("guest-get-") || name.starts_with("guest-network-get-"))
}

/// Those that postern offers.
pub(crate) fn offered() -> impl Iterator<Item = &'static str> {
    reading().filter(|name| catalogue::lookup(name).is_some_and(|entry| entry.command.is_some()))
}

/// Those that are compared with stock: these, and what tells of the agent itself.
pub(crate) fn compared() -> impl Iterator<Item = &'static str> {
    ["guest-ping", "guest-info", "guest-fsfreeze-status"].into_iter().chain(reading())
}

/// What a policy has to name so that these are answered.
pub(crate) fn allowed() -> impl Iterator<Item = &'static str> {
    compared().skip(2)
}

/// A policy that allows all of these.
pub(crate) fn policy(commands: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<String> = commands.map(|name| format!("\"{name}\"")).collect();
    format!("profile = \"minimal\"\n[commands]\nallow = [{}]\n", names.join(", "))
}

/// Where `tests/vm/prepare` puts the newer stock.
pub(crate) fn newer() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("vm").join(format!("stock-{NEWER}"))
}

/// Has the newer stock fetched. Once, by the process that runs the tests.
pub(crate) fn prepare() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/prepare");
    let status = Command::new(script).args(["stock", NEWER]).stdout(Stdio::null()).status();
    if !status.is_ok_and(|status| status.success()) {
        println!("NOT THERE: stock of {NEWER}, from the mirror that apt uses");
        assert!(env::var_os("CI").is_none(), "needs network");
    }
}

/// Its files, for a cell.
pub(crate) fn programs() -> Vec<String> {
    let files = fs::read_dir(newer()).into_iter().flatten().flatten().map(|entry| entry.path());
    // `start` is for a shell.
    files.filter(|path| !path.ends_with("start")).map(|path| path.display().to_string()).collect()
}

/// A running stock agent.
pub(crate) struct Stock {
    child: Child,
    socket: PathBuf,
    /// As it says itself.
    pub(crate) version: String,
}

impl Stock {
    /// The installed one, and the newer one if it is there.
    pub(crate) fn each(home: &Home) -> Vec<Self> {
        let directory = newer();
        let mut newer = Command::new(directory.join("loader"));
        newer.arg("--library-path").args([&directory, &directory.join("qemu-ga")]);
        let newer = directory.exists().then_some(newer);
        std::iter::once(Command::new(INSTALLED)).chain(newer).map(|command| Self::start(home, command)).collect()
    }

    fn start(home: &Home, mut command: Command) -> Self {
        let place = tempfile::tempdir_in(home.path("")).expect("a directory").keep();
        let socket = place.join("socket");
        command.env_clear().env("QGA_CONF", "/nowhere");
        command.args(["-m", "unix-listen", "-p"]).arg(&socket).arg("-t").arg(&place).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("stock");
        let mut stock = Self { child, socket, version: String::new() };
        let info = stock.connect().returns("guest-info", &Value::Null);
        info["version"].as_str().expect("a version").clone_into(&mut stock.version);
        stock
    }

    pub(crate) fn connect(&self) -> Host {
        Host::connect(&self.socket)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
