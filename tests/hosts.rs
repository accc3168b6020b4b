//! What the tools of hosts send to a guest agent, played to stock `qemu-ga` and to
//! postern: libvirt, Proxmox VE, Ansible, `KubeVirt`, `OpenStack` Nova. The
//! transcripts are data, `tests/transcripts/clients`; both agents must satisfy
//! every check in them, and where they differ the transcript says so.
//!
//! Each agent runs in a cell (`support::cell`), with one scratch disk that can be
//! frozen: stock runs there with all its commands but those that change the
//! machine's clock or put it to sleep. Needs root.

mod support;

#[path = "hosts/play.rs"]
mod play;
#[path = "hosts/script.rs"]
mod script;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use play::{Stage, play};
use script::{Kind, Script, Way};
use support::agent::{BINARY, Home, eventually};
use support::disk::{Disk, Mounted};
use support::runner;

const PROGRAMS: &[&str] = &[BINARY, "qemu-ga", "losetup", "mkfs.ext4", "true", "getent", "unshare"];

/// What a stock agent must not do, even if it is asked: a cell has the machine's
/// clock and its power states.
const NOT_HERE: &str = "guest-set-time,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid";

fn main() -> ExitCode {
    // Not in a cell, which has no such directory.
    if let Ok(entries) = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/clients")) {
        let files = entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "txt"));
        let mut names: Vec<_> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let played: Vec<_> = script::all().into_iter().map(|script| script.file).collect();
        assert_eq!(names, played, "a transcript that is not played, or not there");
    }
    runner::main(
        &[
            ("stock_satisfies_every_client", stock_satisfies_every_client),
            ("postern_satisfies_every_client", postern_satisfies_every_client),
            ("a_transcript_that_does_not_hold_is_noticed", a_transcript_that_does_not_hold_is_noticed),
        ],
        &[],
        PROGRAMS,
    )
}

/// Files of `DIR`, every freeze; shutdowns are listed, and not asked for here.
const POLICY: &str = "profile = \"files\"
[commands]
allow = [\"guest-shutdown\", \"guest-fsfreeze-status\", \"guest-fsfreeze-freeze\", \"guest-fsfreeze-freeze-list\",
         \"guest-fsfreeze-thaw\"]
[[files]]
path = \"HOME/files\"
rights = [\"read\", \"write\", \"create\"]
[shutdown]
modes = [\"powerdown\", \"reboot\", \"halt\"]
";

/// The scratch disk that a freeze reaches.
fn scratch() -> (Disk, Mounted) {
    let disk = Disk::small("ext4", "/tmp/image");
    let mounted = disk.mount("/mnt");
    (disk, mounted)
}

/// Stock, ended when dropped.
struct Stock {
    child: Child,
    socket: PathBuf,
}

impl Stock {
    fn start() -> Self {
        let home = Path::new("/tmp/stock");
        fs::create_dir_all(home.join("files")).expect("a directory for files");
        let socket = home.join("host.sock");
        let mut command = Command::new("/bin/qemu-ga");
        command.args(["-m", "unix-listen", "-b", NOT_HERE, "-p"]).arg(&socket).arg("-t").arg(home);
        command.arg("-f").arg(home.join("pid"));
        let stderr = File::create(home.join("stderr")).expect("a file for stderr");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().expect("qemu-ga");
        Self { child, socket }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Plays these to the agent that listens there; `DIR` must be there.
fn perform(scripts: &[Script], kind: Kind, socket: &Path, directory: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for script in scripts {
        for (name, size) in &script.files {
            let file = File::create(directory.join(name)).expect("a file to read");
            file.set_len(*size as u64).expect("its size");
        }
        let names = [("DIR", directory.display().to_string()), ("MNT", "/mnt".to_owned())];
        let stage = Stage {
            kind,
            way: Way::Cell,
            connect: &|| eventually("the agent listens", || UnixStream::connect(socket).ok()),
            names: names.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        let played = play(script, &stage);
        println!("{:<16} {kind:?}: {} replies, {} checks", script.client, played.replies, played.checks);
        wrong.extend(played.wrong);
    }
    wrong
}

fn satisfied(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} steps:\n{}", wrong.len(), wrong.join("\n"));
}

fn stock_satisfies_every_client() {
    let _scratch = scratch();
    let stock = Stock::start();
    satisfied(&perform(&script::all(), Kind::Stock, &stock.socket, Path::new("/tmp/stock/files")));
}

fn postern_satisfies_every_client() {
    let _scratch = scratch();
    let home = Home::new();
    let agent = home.start(POLICY);
    satisfied(&perform(&script::all(), Kind::Postern, &home.path("host.sock"), &home.files()));
    assert!(!agent.records_of("guest-exec").is_empty(), "what was asked for in vain is on record");
}

/// Every check of every transcript can fail: each is turned into another, and
/// then the client must be discontent.
fn a_transcript_that_does_not_hold_is_noticed() {
    let head = "client Nobody\nsource a b 0123456789012345678901234567890123456789\nseconds 1\nbytes few 10\n";
    let ask = "> {\"execute\":\"guest-info\"}\n";
    let open = |mode: &str| {
        format!(
            "> {{\"execute\":\"guest-file-open\",\"arguments\":{{\"path\":\"%{{DIR}}/few\",\"mode\":\"{mode}\"}}}}\n? /return type integer\nkeep h /return\n"
        )
    };
    let read = "== read\n> {\"execute\":\"guest-file-read\",\"arguments\":{\"handle\":%{h}}}\nuntil /return/eof\ngather few 99\n? /return type object\n";
    let home = Home::new();
    let _agent = home.start(POLICY);
    let discontent = |connection: &str, steps: &str| {
        let script = script::parse("false.txt", &format!("{head}{connection}\n{steps}"));
        perform(&[script], Kind::Postern, &home.path("host.sock"), &home.files()).len()
    };
    for connection in ["connection one\nsync first", "connection each\nsync delimited"] {
        for check in [
            "? /return/version is \"\"",
            "? /return/supported_commands has {\"name\":\"guest-ping\"}",
            "? /return/version has \"x\"",
            "? /return keys [\"version\"]",
            "? /return/version type integer",
            "? /return/version least 0",
            "? /error/class type string",
            "? /return type object\nkeep h /nothing",
        ] {
            assert_eq!(discontent(connection, &format!("== info\n{ask}{check}\n")), 1, "{check}");
        }
        // An empty file is not the ten bytes that were to be in it.
        let steps = format!("== create\n{}{read}", open("w+"));
        assert_eq!(discontent(connection, &steps), 1, "{steps}");
    }
    // A reply that is too long for its client.
    assert_eq!(discontent("longest 100", &format!("== info\n{ask}? /return type object\n")), 1);
}
