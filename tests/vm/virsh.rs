//! What becomes of virsh's commands for the agent: which QGA commands libvirt sends
//! for each, and what virsh says in the end. The README's table is made here
//! (`UPDATE=1`).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::libvirt::{Domain, NAME};
use crate::postern::VERIFY;
use crate::snapshots::Image;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("libvirt_drives_the_agent", drives_the_agent)];

/// What of a result stands in the table.
#[derive(Clone, Copy)]
enum Wanted {
    /// It goes well, and prints this.
    Prints(&'static str),
    /// It goes well; what it prints is different each time, and this is in it.
    Goes(&'static str),
    /// The agent refuses this command, and virsh says so.
    Refused(&'static str),
    /// It fails for reasons of libvirt's own, with these words.
    Fails(&'static str),
}

/// virsh's arguments behind the domain's name, and what must come of it. In this
/// order; none of these ends the machine.
const COMMANDS: &[(&str, &[&str], Wanted)] = &[
    ("qemu-agent-command", &[r#"{"execute":"guest-ping"}"#], Wanted::Prints(r#"{"return":{}}"#)),
    ("qemu-agent-command", &[r#"{"execute":"guest-info"}"#], Wanted::Goes(r#""supported_commands""#)),
    ("domfsfreeze", &[], Wanted::Prints("Froze 1 filesystem(s)")),
    ("qemu-agent-command", &[r#"{"execute":"guest-fsfreeze-status"}"#], Wanted::Prints(r#"{"return":"frozen"}"#)),
    ("domfsthaw", &[], Wanted::Prints("Thawed 1 filesystem(s)")),
    ("domfsfreeze", &["--mountpoint", "/"], Wanted::Prints("Froze 1 filesystem(s)")),
    ("domfsthaw", &["--mountpoint", "/"], Wanted::Fails("specifying mountpoints is not supported")),
    ("domfsthaw", &[], Wanted::Prints("Thawed 1 filesystem(s)")),
    ("domfsfreeze", &["--mountpoint", "/proc"], Wanted::Prints("Froze 0 filesystem(s)")),
    ("domfsthaw", &[], Wanted::Prints("Thawed 0 filesystem(s)")),
    ("domfsinfo", &[], Wanted::Refused("guest-get-fsinfo")),
    ("guestinfo", &[], Wanted::Prints("")),
    ("guestinfo", &["--os"], Wanted::Refused("guest-get-osinfo")),
    ("domhostname", &["--source", "agent"], Wanted::Fails("no hostname found for domain guest")),
    ("domtime", &[], Wanted::Refused("guest-get-time")),
    ("domtime", &["--now"], Wanted::Refused("guest-set-time")),
    ("domifaddr", &["--source", "agent"], Wanted::Refused("guest-network-get-interfaces")),
    ("guestvcpus", &[], Wanted::Refused("guest-get-vcpus")),
    ("domfstrim", &[], Wanted::Refused("guest-fstrim")),
    ("dompmsuspend", &["mem"], Wanted::Refused("guest-suspend-ram")),
    ("set-user-password", &["root", "secret"], Wanted::Refused("guest-set-user-password")),
    ("qemu-agent-command", &[r#"{"execute":"guest-exec","arguments":{"path":"id"}}"#], Wanted::Refused("guest-exec")),
];

/// A row of the table: virsh's words, what libvirt sent for them, what came of it.
struct Row {
    words: String,
    sent: Vec<String>,
    result: String,
}

/// The name of a command that was sent.
pub(crate) fn name(sent: &str) -> String {
    let command: Value = serde_json::from_str(sent).unwrap_or_else(|why| panic!("{why}: {sent}"));
    command["execute"].as_str().expect("a name").to_owned()
}

/// The reason that virsh gives last, without its own words for it.
fn short(printed: &str) -> String {
    let line = printed.lines().next_back().unwrap_or_default();
    line.rsplit_once("': ").map_or(line, |(_, reason)| reason).trim_start_matches("error: ").to_owned()
}

fn run(domain: &Domain, command: &str, arguments: &[&str], wanted: Wanted) -> Row {
    let before = domain.sent().len();
    let words = [&[command, NAME], arguments].concat();
    let (well, printed) = domain.libvirt.try_virsh(&words);
    let (right, result) = match wanted {
        Wanted::Prints(text) => (well && printed == text, if text.is_empty() { "nothing" } else { text }.to_owned()),
        Wanted::Goes(part) => (well && printed.contains(part), "version and commands".to_owned()),
        Wanted::Refused(command) => {
            let reason = format!("Command {command} has been disabled: the command is not allowed");
            (!well && printed.contains(&reason), short(&printed))
        }
        Wanted::Fails(reason) => (!well && printed.ends_with(reason), format!("libvirt: {reason}")),
    };
    assert!(right, "virsh {words:?}: {printed:?}");
    let shown: Vec<String> = arguments
        .iter()
        .map(|word| if word.contains('"') { format!("'{word}'") } else { (*word).to_owned() })
        .collect();
    let words = [&[command.to_owned(), NAME.to_owned()], &shown[..]].concat().join(" ");
    Row { words, sent: domain.sent()[before..].iter().map(|one| name(one)).collect(), result }
}

const BEGIN: &str = "<!-- Made by a domain of libvirt's: UPDATE=1 cargo test --test vm libvirt_drives -->\n";
const END: &str = "<!-- libvirt's until here -->\n";

/// Holds that the README has this table, or writes it there.
fn publish(rows: &[Row]) {
    let mut table = String::from("\n| `virsh` | commands sent to the agent | result |\n|---|---|---|\n");
    for Row { words, sent, result } in rows {
        let sent: Vec<String> = sent.iter().map(|name| format!("`{name}`")).collect();
        writeln!(table, "| `{words}` | {} | {result} |", sent.join(", ")).expect("a string");
    }
    table.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).expect("README.md");
    let (before, rest) = text.split_once(BEGIN).expect("the table's first mark");
    let (_, after) = rest.split_once(END).expect("the table's last mark");
    let made = format!("{before}{BEGIN}{table}{END}{after}");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).expect("README.md");
    }
    assert!(made == text || std::env::var_os("UPDATE").is_some(), "README.md's table of virsh is another:\n{table}");
}

fn drives_the_agent() {
    let mut domain = Domain::boot();
    let mut rows: Vec<Row> =
        COMMANDS.iter().map(|(command, words, wanted)| run(&domain, command, words, *wanted)).collect();

    // What libvirt says that it sent is what the agent says that it was asked.
    let counted = ["guest-ping", "guest-info", "guest-sync", "guest-fsfreeze-status"];
    let sent: Vec<String> =
        rows.iter().flat_map(|row| row.sent.clone()).filter(|name| !counted.contains(&name.as_str())).collect();
    for name in &sent {
        let asked = domain.audit(name).len();
        assert!(asked > 0, "{name} is not on the agent's record");
    }
    assert!(domain.sent().iter().any(|one| name(one) == "guest-sync"), "libvirt synchronises");
    assert!(!domain.shell.sh("cat /var/log/postern/audit.jsonl").contains("c2VjcmV0"), "a password is on record");
    domain.shell.sh(VERIFY);

    let before = domain.sent().len();
    domain.virsh(&["reboot", NAME, "--mode=agent"]);
    domain.shell.await_ready();
    let reboot = domain.sent()[before..].iter().map(|one| name(one)).collect();
    rows.push(Row {
        words: format!("reboot {NAME} --mode=agent"),
        sent: reboot,
        result: "the guest stops in order and boots again".into(),
    });
    domain.shell.sh("test -e /var/lib/stopped && rm /var/lib/stopped");
    domain.start_agent();

    let before = domain.sent().len();
    domain.virsh(&["shutdown", NAME, "--mode=agent"]);
    domain.await_state("shut off");
    let shutdown = domain.sent()[before..].iter().map(|one| name(one)).collect();
    rows.push(Row {
        words: format!("shutdown {NAME} --mode=agent"),
        sent: shutdown,
        result: "the guest stops in order and powers off".into(),
    });
    for row in &rows[rows.len() - 2..] {
        assert_eq!(row.sent, ["guest-shutdown"], "{}", row.words);
    }
    // This userland ends with its root still mounted, for there is an agent.
    let replayed = Command::new("e2fsck").args(["-f", "-y"]).arg(domain.libvirt.path("root.raw")).output();
    assert!(replayed.expect("e2fsck").status.code() < Some(4), "e2fsck repairs the disk");
    let disk = Image::mount(&domain.libvirt, "root.raw");
    assert!(disk.path("var/lib/stopped").exists(), "the guest's stop job was run");
    drop(disk);
    publish(&rows);
}
