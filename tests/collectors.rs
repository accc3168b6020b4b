//! The collectors' configurations of `audit/collectors`, each with the real
//! collector and a running agent. Needs root, Debian's rsyslog, rsyslog-relp,
//! systemd, systemd-journal-remote and openssl. Each test runs in a cell
//! (`support::cell`), whose collectors listen on the machine's loopback address, at
//! a port that was free.
//!
//! What needs an init, a journal or the kernel's own audit is in `tests/vm`.

mod support;

#[path = "collectors/certificates.rs"]
mod certificates;
#[path = "collectors/copies.rs"]
mod copies;
#[path = "collectors/journal.rs"]
mod journal;
#[path = "collectors/load.rs"]
mod load;
#[path = "collectors/rsyslog.rs"]
mod rsyslog;

use std::process::ExitCode;

use support::agent::BINARY;
use support::runner;

fn main() -> ExitCode {
    let mut programs = vec![BINARY, "rsyslogd", "openssl", "journalctl", "setpriv"];
    programs.extend([journal::JOURNALD, journal::UPLOAD, journal::REMOTE]);
    let modules = rsyslog::modules();
    programs.extend(modules.iter().map(String::as_str));
    let tests: Vec<runner::Test> = [copies::TESTS, journal::TESTS].concat();
    runner::main(&tests, &[], &programs)
}
