//! A host that opens, is refused and closes, with every kind of name that a host can give.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::agent::{Agent, Home, Host, eventually};

/// What agents here may do.
pub(crate) const POLICY: &str = "profile = \"files\"\n\
     [[files]]\npath = \"HOME/files\"\nrights = [\"read\", \"write\", \"create\"]\n";

/// Names that must come through as they are: escapes of a terminal, line breaks of three
/// kinds, what ends a string or a record, syslog's and rsyslog's own marks, text from right to left.
const NAMES: &[&str] = &[
    "\u{1b}[2J\u{7}\u{8}",
    "line\nline\r\nline\u{2028}line\u{85}line",
    "quote\"}}\\\\\\\"}",
    "<13>1 2025-01-01T00:00:00Z other postern-audit - - - {\"event\":{}}",
    "@cee: {\"a\":1} %msg% $!event #012 \\n \\u0000",
    "\u{202e}lsonj.tidua\u{feff}\u{7f}",
    "\u{fffd}\u{1f600}日本語",
    "{\"@timestamp\":\"2025-01-02T03:04:05.678901Z\",\"event\":{\"sequence\":7,",
];

/// Asks for every name, allowed and refused, for one whose target is no UTF-8, and for the
/// longest. Returns the last reply.
pub(crate) fn names(home: &Home, host: &mut Host) {
    let plain = home.write("plain", b"content");
    let odd = {
        use std::os::unix::ffi::OsStrExt;
        home.files().join(std::ffi::OsStr::from_bytes(b"odd \xff\xfe\xe4\n"))
    };
    fs::write(&odd, b"content").expect("a file whose name is no UTF-8");
    std::os::unix::fs::chown(&odd, Some(home.worker), Some(home.worker)).expect("its owner");
    symlink(&odd, home.files().join("odd")).expect("a link");
    let handle = host.open(home.files().join("odd"), "r").expect("a handle");
    host.close(handle);
    for name in NAMES {
        // A slash leads elsewhere; these names are of files.
        let path = home.files().join(name.replace('/', "|"));
        let handle = host.open(&path, "w").expect("a handle");
        host.close(handle);
        host.open(Path::new("/etc").join(name), "r").expect_err("outside of the policy");
        // Inside a directory that is none.
        host.open(plain.join(name), "r").expect_err("no directory");
    }
    // As long as a record's string gets: every byte takes six.
    let longest = format!("/{}", "\u{1}".repeat(4000));
    host.open(longest, "r").expect_err("outside of the policy");
}

/// Opens and closes a file, with a refusal each time, until told to stop.
pub(crate) fn run(mut host: Host, path: &Path, stop: &AtomicBool) {
    let path = path.to_str().expect("a plain path");
    while !stop.load(Ordering::Relaxed) {
        let handle = host.returns("guest-file-open", &json!({ "path": path }));
        host.returns("guest-file-close", &json!({ "handle": handle }));
        host.fails("guest-file-open", &json!({ "path": "/etc/shadow" }));
    }
}

/// Renames the log, as logrotate does with the name that the `number`th file of a test has, and tells the
/// broker; waits for the next file.
pub(crate) fn rotate(agent: &Agent<'_>, number: usize) -> PathBuf {
    let rotated = agent.home.path(&format!("log/audit.jsonl.{number}"));
    fs::rename(agent.home.log(), &rotated).expect("a rename");
    agent.signal("broker", Signal::SIGHUP);
    eventually("the next file", || agent.home.log().exists().then_some(()));
    rotated
}

/// The last line of a log.
pub(crate) fn last_line(log: &Path) -> String {
    fs::read_to_string(log).expect("a log").lines().next_back().expect("a line").to_owned()
}

/// The records of a log.
pub(crate) fn records(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}
