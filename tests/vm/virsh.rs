//! What becomes of virsh's commands for the agent: in one guest, with stock's agent
//! and then with postern. Which QGA commands libvirt sends for each, what virsh says
//! in the end, and where that differs, why. The README's table is made here
//! (`UPDATE=1`).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::guests::{LINUX_6_12, Userland};
use crate::libvirt::{Domain, NAME};
use crate::machine::Setup;
use crate::postern::{START, STOCK_START, VERIFY};
use crate::snapshots::Image;
use crate::support::differences::listed;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("libvirt_drives_the_agent", drives_the_agent)];

/// libvirt's profile, and what it leaves out of what virsh can ask for.
const POLICY: &str = r#"version = 1
profile = "libvirt"
[commands]
allow = ["guest-suspend-ram", "guest-suspend-disk", "guest-suspend-hybrid", "guest-set-vcpus"]
[shutdown]
method = "init"
"#;

/// What the tiny userland has not: a release, the programs that stock runs, a key.
const RELEASE: &str = "ID=busybox\nNAME=\"Busybox of a test\"\nVERSION_ID=1\n";
const SHUTDOWN: &str = "#!/bin/sh\n[ \"$2\" = -r ] && exec reboot\nexec poweroff\n";
const HWCLOCK: &str = "#!/bin/sh\nexec busybox hwclock \"$@\"\n";
const CHPASSWD: &str =
    "#!/bin/sh\nIFS=: read -r user word && sed -i \"s|^$user:[^:]*|$user:$(mkpasswd \"$word\")|\" /etc/passwd\n";
const KEYS: &str = "ssh-ed25519 AAAA guest\n";

/// After each boot: something to be told.
const SCENE: &str = "hostname guest.example && ip addr add 192.0.2.7/24 dev lo && ip addr add 2001:db8::7/64 dev lo";

/// Without a sleep on disk. Where one is tried in vain the port closes and opens
/// meanwhile, which libvirt may take for falling asleep: the time of it decides.
/// How it fails is looked at without libvirt (`acts`).
const SLEEPS: &str = "nohibernate";

/// Where postern means to end otherwise than stock: names of DIFFERENCES.md.
const NOT_OFFERED: Option<&str> = Some("not-offered");
const SAME: Option<&str> = None;

/// A command of virsh's without the domain's name, the arguments behind that, and in
/// what the agents differ. In this order; each leaves the guest as it was, or the
/// next one does.
const COMMANDS: &[(&str, &[&str], Option<&str>)] = &[
    ("qemu-agent-command", &[r#"{"execute":"guest-ping"}"#], SAME),
    ("domfsfreeze", &[], SAME),
    ("qemu-agent-command", &[r#"{"execute":"guest-fsfreeze-status"}"#], SAME),
    ("domfsthaw", &[], SAME),
    ("domfsfreeze", &["--mountpoint", "/"], SAME),
    ("domfsthaw", &["--mountpoint", "/"], SAME),
    ("domfsthaw", &[], SAME),
    ("domfsfreeze", &["--mountpoint", "/proc"], SAME),
    ("domfsthaw", &[], SAME),
    ("domfsinfo", &[], SAME),
    ("guestinfo", &[], SAME),
    ("guestinfo", &["--os"], SAME),
    ("guestinfo", &["--user", "--timezone"], SAME),
    ("guestinfo", &["--filesystem", "--disk"], SAME),
    ("domhostname", &["--source", "agent"], SAME),
    ("domifaddr", &["--source", "agent"], SAME),
    ("domifaddr", &["--source", "agent", "--full", "--interface", "lo"], SAME),
    ("domtime", &[], SAME),
    ("domtime", &["--pretty"], SAME),
    ("domtime", &["--time", "1893456000"], NOT_OFFERED),
    ("domtime", &["--now"], NOT_OFFERED),
    ("domtime", &["--sync"], NOT_OFFERED),
    ("guestvcpus", &[], SAME),
    ("guestvcpus", &["--cpulist", "1", "--disable"], SAME),
    ("guestvcpus", &[], SAME),
    ("guestvcpus", &["--cpulist", "1", "--enable"], SAME),
    ("guestvcpus", &["--cpulist", "0", "--disable"], SAME),
    ("guestvcpus", &["--cpulist", "7", "--disable"], SAME),
    ("setvcpus", &["1", "--guest"], SAME),
    ("vcpucount", &["--guest"], SAME),
    ("setvcpus", &["2", "--guest"], SAME),
    ("vcpucount", &["--guest"], SAME),
    ("domfstrim", &[], SAME),
    ("domfstrim", &["--minimum", "65536"], SAME),
    ("domfstrim", &["--mountpoint", "/"], SAME),
    ("dompmsuspend", &["disk"], SAME),
    ("dompmsuspend", &["hybrid"], SAME),
    ("dompmsuspend", &["mem"], SAME),
    ("set-user-password", &["root", "secret"], NOT_OFFERED),
    ("get-user-sshkeys", &["root"], NOT_OFFERED),
    ("qemu-agent-command", &[r#"{"execute":"guest-exec","arguments":{"path":"/bin/true"}}"#], NOT_OFFERED),
];

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    well: bool,
    /// What virsh printed, without what is another number each time.
    printed: String,
    /// What libvirt sent to the agent for it: names, without the syncs.
    sent: Vec<String>,
}

/// A row of the table: virsh's words, and what came of them with stock and postern.
struct Row {
    words: String,
    seen: [Seen; 2],
    differs: Option<&'static str>,
}

/// The name of a command that was sent.
pub(crate) fn name(sent: &str) -> String {
    let command: Value = serde_json::from_str(sent).unwrap_or_else(|why| panic!("{why}: {sent}"));
    command["execute"].as_str().expect("a name").to_owned()
}

const PID: &str = "{\"return\":{\"pid\":";

/// With one space where there are some, and without what the clock, the kernel's
/// release, the agents' own files and their processes make another each time.
fn normal(printed: &str) -> String {
    let normal = |line: &str| {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.rsplit_once(' ') {
            Some((before, _)) if before.ends_with("-bytes :") => format!("{before} BYTES"),
            Some((before, _)) if before.starts_with("os.kernel-") => {
                format!("{}: KERNEL", before.split_once(':').map_or(before, |(key, _)| key))
            }
            Some(("Time:", _)) => "Time: SECONDS".to_owned(),
            _ if line.starts_with("Time: ") => "Time: DATE".to_owned(),
            _ if line.starts_with(PID) => format!("{PID}NUMBER}}}}"),
            _ => line,
        }
    };
    printed.lines().map(normal).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// For the table: of a failure the reason, without virsh's own words for it; of many
/// lines the last.
fn short(Seen { well, printed, .. }: &Seen) -> String {
    let line = printed.lines().next_back().unwrap_or("nothing");
    if *well {
        let more = if printed.lines().count() > 1 { "… " } else { "" };
        return format!("{more}{line}");
    }
    line.rsplit_once("': ").map_or(line, |(_, reason)| reason).trim_start_matches("error: ").to_owned()
}

/// Runs a command; what it slept through ends here.
fn run(domain: &Domain, command: &str, arguments: &[&str]) -> Seen {
    let before = domain.sent().len();
    let words = [&[command, NAME], arguments].concat();
    let (well, printed) = domain.libvirt.try_virsh(&words);
    let sent = domain.sent()[before..].iter().map(|one| name(one)).filter(|name| name != "guest-sync").collect();
    if command == "dompmsuspend" && well {
        domain.await_state("pmsuspended");
        domain.virsh(&["dompmwakeup", NAME]);
        domain.await_state("running");
        domain.await_agent();
    }
    Seen { well, printed: normal(&printed), sent }
}

/// How a table shows virsh's words.
fn shown(command: &str, arguments: &[&str]) -> String {
    let quoted = |word: &&str| if word.contains('"') { format!("'{word}'") } else { (*word).to_owned() };
    let arguments = arguments.iter().map(quoted);
    [command.to_owned(), NAME.to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

const BEGIN: &str = "<!-- Made by a domain of libvirt's: UPDATE=1 cargo test --test vm libvirt_drives -->\n";
const END: &str = "<!-- libvirt's until here -->\n";

/// Holds that the README has this table, or writes it there.
fn publish(rows: &[Row]) {
    let mut table = String::from("\n| `virsh` | commands sent to the agent | with stock | with postern |\n");
    table.push_str("|---|---|---|---|\n");
    for Row { words, seen: [stock, ours], differs } in rows {
        let sent: Vec<String> = ours.sent.iter().map(|name| format!("`{name}`")).collect();
        let postern = differs.map_or("as stock".to_owned(), |name| format!("{} (`{name}`)", short(ours)));
        writeln!(table, "| `{words}` | {} | {} | {postern} |", sent.join(", "), short(stock)).expect("a string");
    }
    table.push('\n');
    println!("{table}");
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

/// What ends a boot, and what is seen of it.
const ENDS: [(&str, &str); 2] =
    [("reboot", "the guest stops in order and boots again"), ("shutdown", "the guest stops in order and powers off")];

/// In the next boot: the guest's stop jobs were run.
fn stopped_in_order(domain: &mut Domain) {
    domain.shell.sh("test -e /var/lib/stopped && rm /var/lib/stopped");
}

/// With one agent: the commands, a reboot, and the end.
fn with_agent(domain: &mut Domain, start: &str, look: impl FnOnce(&mut Domain)) -> Vec<Seen> {
    domain.shell.sh(SCENE);
    domain.shell.sh(start);
    domain.await_agent();
    let mut seen: Vec<Seen> = COMMANDS.iter().map(|(command, words, _)| run(domain, command, words)).collect();
    look(domain);
    for (command, what) in ENDS {
        let mut end = run(domain, command, &["--mode=agent"]);
        if command == "reboot" {
            domain.shell.await_ready();
            stopped_in_order(domain);
            domain.shell.sh(start);
            domain.await_agent();
        } else {
            domain.await_state("shut off");
        }
        assert!(end.well, "{end:?}");
        what.clone_into(&mut end.printed);
        seen.push(end);
    }
    seen
}

/// What libvirt says that it sent is what postern says that it was asked.
fn is_on_record(domain: &mut Domain) {
    let mut sent: Vec<String> = domain.sent().iter().map(|one| name(one)).collect();
    assert!(sent.iter().any(|name| name == "guest-sync"), "libvirt synchronises");
    sent.sort();
    sent.dedup();
    let log = domain.shell.sh("cat /var/log/postern/audit.jsonl");
    for name in sent {
        let counted = ["guest-ping", "guest-info", "guest-sync", "guest-fsfreeze-status"].contains(&name.as_str());
        assert!(counted || log.contains(&format!("\"{name}\"")), "{name} is not on the agent's record");
    }
    assert!(!log.contains("c2VjcmV0"), "a password is on record");
    domain.shell.sh(VERIFY);
}

fn drives_the_agent() {
    let mut setup = Setup::new(LINUX_6_12, Userland::Busybox)
        .with_postern(POLICY)
        .with_newer_stock()
        .file("/etc/os-release", RELEASE, 0o644)
        .file("/sbin/shutdown", SHUTDOWN, 0o755)
        .file("/sbin/hwclock", HWCLOCK, 0o755)
        .file("/usr/sbin/chpasswd", CHPASSWD, 0o755)
        .file("/root/.ssh/authorized_keys", KEYS, 0o600)
        .append(SLEEPS);
    setup.processors = 2;
    let mut domain = Domain::boot_setup(&setup);
    let stock = with_agent(&mut domain, STOCK_START, |_| ());
    domain.start();
    domain.shell.sh("! grep '^root:x:' /etc/passwd");
    stopped_in_order(&mut domain);
    let ours = with_agent(&mut domain, START, is_on_record);

    // This userland ends with its root still mounted, for there is an agent.
    let replayed = Command::new("e2fsck").args(["-f", "-y"]).arg(domain.libvirt.path("root.raw")).output();
    assert!(replayed.expect("e2fsck").status.code() < Some(4), "e2fsck repairs the disk");
    let disk = Image::mount(&domain.libvirt, "root.raw");
    assert!(disk.path("var/lib/stopped").exists(), "the guest's stop job was run");
    drop(disk);

    let ends = ENDS.map(|(command, _)| (command, &["--mode=agent"][..], SAME));
    let rows: Vec<Row> = COMMANDS
        .iter()
        .chain(&ends)
        .zip(stock.into_iter().zip(ours))
        .map(|((command, words, differs), (stock, ours))| Row {
            words: shown(command, words),
            seen: [stock, ours],
            differs: differs.map(listed),
        })
        .collect();
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| (row.seen[0] == row.seen[1]) != row.differs.is_none() || row.seen[0].sent != row.seen[1].sent)
        .map(|row| format!("{} ({:?}):\n{:#?}", row.words, row.differs, row.seen))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} differ unlisted, or not as listed:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    publish(&rows);
}
