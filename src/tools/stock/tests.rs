//! What the three sources come to, and what they do to a policy's commands.

use std::path::Path;

use postern_core::catalogue::{Command, CommandSet};

use super::{Asked, Stock, read};

struct Start<'a> {
    file: Option<&'a str>,
    variables: &'a [(&'a str, &'a str)],
}

const PLAIN: Start<'_> = Start { file: None, variables: &[] };

impl Start<'_> {
    fn read(&self, line: &str) -> Result<Asked, String> {
        let words: Vec<String> = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let variable =
            |name: &str| self.variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let file = |path: &Path| {
            let there = path == Path::new("/etc/qemu/qemu-ga.conf") || path == Path::new("/other");
            Ok(self.file.filter(|_| there).map(str::to_owned))
        };
        read(&words, &variable, &file)
    }

    fn stock(&self, line: &str) -> Stock {
        match self.read(line) {
            Ok(Asked::Serve(stock)) => *stock,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn printed(&self, line: &str) -> String {
        match self.read(line) {
            Ok(Asked::Print(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn the_command_line_comes_after_the_environment_and_the_file() {
    let text = "[general]\npath=/file\nlogfile=/log\nblock-rpcs=guest-ping\nfsfreeze-hook=/file\ndaemon=1\n";
    let variables = [("FSFREEZE_HOOK_PATHNAME", "/variable"), ("BLACKLIST_RPC", "guest-info,guest-ping")];
    let start = Start { file: Some(text), variables: &variables };
    let stock = start.stock("-p /line -b guest-exec");
    assert_eq!(stock.path.as_deref(), Some("/line"));
    assert_eq!(stock.logfile.as_deref(), Some("/log"));
    assert_eq!(stock.fsfreeze_hook.as_deref(), Some("/variable"));
    assert_eq!(stock.block_rpcs, ["guest-ping", "guest-info", "guest-exec"]);
    assert!(stock.daemon);
    assert_eq!(start.stock("-F/line").fsfreeze_hook.as_deref(), Some("/line"));
}

#[test]
fn each_of_rhels_variables_narrows() {
    for (name, value) in [
        ("BLACKLIST_RPC", "guest-exec"),
        ("BLOCK_RPCS", "guest-exec"),
        ("FILTER_RPC_ARGS", "--block-rpcs=guest-exec"),
        ("FILTER_RPC_ARGS", "-b guest-exec"),
    ] {
        let start = Start { file: None, variables: &[(name, value)] };
        assert_eq!(start.stock("").block_rpcs, ["guest-exec"], "{name}");
        // As the service gives it too.
        assert_eq!(start.stock("--block-rpcs=guest-exec").block_rpcs, ["guest-exec"], "{name}");
    }
    let start = Start { file: None, variables: &[("FILTER_RPC_ARGS", "--allow-rpcs=guest-ping,guest-info -v")] };
    let stock = start.stock("");
    assert_eq!(stock.allow_rpcs, ["guest-info", "guest-ping"]);
    assert!(!stock.verbose && stock.notes.len() == 1, "{stock:?}");
    let bad = Start { file: None, variables: &[("FILTER_RPC_ARGS", "--nope")] };
    assert!(bad.read("").unwrap_err().contains("FILTER_RPC_ARGS"));
    assert_eq!(Start { file: None, variables: &[("BLOCK_RPCS", "")] }.stock(""), PLAIN.stock(""));
}

#[test]
fn the_files_place_is_the_options_the_variables_or_the_usual() {
    let start = Start { file: Some("[general]\nverbose=1\n"), variables: &[("QGA_CONF", "/nowhere")] };
    assert!(!start.stock("").verbose, "a file that is not there is no mistake");
    assert!(start.stock("-c /other").verbose);
    assert!(start.read("-c /nowhere").unwrap_err().contains("no such file"));
    assert!(Start { variables: &[("QGA_CONF", "/other")], ..start }.stock("").verbose);
}

#[test]
fn what_the_file_says_too_much_is_told_once() {
    let text = "[general]\nnope=1\nnope=2\n[other]\nx=1\ny=1\n";
    let stock = Start { file: Some(text), variables: &[] }.stock("word");
    assert_eq!(stock.notes.len(), 3, "{:?}", stock.notes);
    assert_eq!(Stock { notes: Vec::new(), ..stock }, PLAIN.stock(""));
}

#[test]
fn a_channel_is_the_policys_until_one_is_named() {
    for (line, channel) in [
        ("", None),
        ("-p /x", Some("virtio-serial:/x")),
        ("-m virtio-serial", Some("virtio-serial:/dev/virtio-ports/org.qemu.guest_agent.0")),
        ("-m isa-serial", Some("isa-serial:/dev/ttyS0")),
        ("-m unix-listen -p /x", Some("unix-listen:/x")),
        ("-m vsock-listen -p 3:9", Some("vsock-listen:3:9")),
    ] {
        assert_eq!(PLAIN.stock(line).channel().as_deref(), channel, "{line}");
    }
    for line in ["-m unix-listen", "-m vsock-listen", "-m nope", "-D -m unix-listen"] {
        assert!(PLAIN.read(line).unwrap_err().contains("needs a path"), "{line}");
    }
}

#[test]
fn only_a_daemon_has_a_pidfile() {
    assert_eq!(PLAIN.stock("").pidfile(), None);
    assert_eq!(PLAIN.stock("-f /x").pidfile(), None);
    assert_eq!(PLAIN.stock("-f /x").all_notes().len(), 1);
    assert_eq!(PLAIN.stock("-d").pidfile(), Some("/var/run/qemu-ga.pid"));
    assert_eq!(PLAIN.stock("-d -f /x").pidfile(), Some("/x"));
}

#[test]
fn a_hook_is_named_as_not_run_unless_it_is_none() {
    assert!(PLAIN.stock("-F/x").all_notes()[0].contains("/x is not run"));
    assert!(PLAIN.stock("-F/dev/null").all_notes().is_empty());
    assert!(PLAIN.stock("").all_notes().is_empty());
}

#[test]
fn what_prints_comes_before_every_mistake_behind_it() {
    assert!(PLAIN.printed("-V -X").starts_with("QEMU Guest Agent "));
    assert!(PLAIN.printed("-h --unknown").starts_with("Usage: "));
    for line in ["-b help", "-b ?", "--blacklist help", "-a help", "-v -b x -b help"] {
        let printed = PLAIN.printed(line);
        assert!(printed.lines().any(|name| name == "guest-exec") && printed.lines().count() == 43, "{line}");
    }
    assert!(PLAIN.read("-X -h").unwrap_err().contains("-X"));
}

#[test]
fn a_dump_reads_back_as_the_same() {
    for line in ["", "-v -d -r -l /l -f /p -t /s -F -m unix-listen -p /x -b a,b -a c", "-m isa-serial"] {
        let dump = PLAIN.printed(&format!("-D {line}"));
        let again = Start { file: Some(&dump), variables: &[] }.printed("-D");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(|line| line.replace("b,a", "a,b")).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&dump), sorted(&again), "{line}");
        assert!(dump.starts_with("[general]\ndaemon="), "{dump}");
    }
    assert!(!PLAIN.printed("-D").contains("allow-rpcs"));
}

#[test]
fn lists_leave_no_more_than_the_policy_allows() {
    use Command::{FileOpen, Info, Ping, Sync};
    let allowed: CommandSet = [Ping, Info, Sync].into_iter().collect();
    let keep = |line: &str| PLAIN.stock(line).keep(allowed);
    assert_eq!(keep(""), (allowed, Vec::new()));
    assert_eq!(keep("-b ,"), (allowed, Vec::new()));
    assert_eq!(keep("-a ,"), (CommandSet::EMPTY, Vec::new()), "a list of no command, as with stock");
    assert_eq!(keep("-b guest-ping").0, [Info, Sync].into_iter().collect());
    assert_eq!(keep("-a guest-ping,guest-info -b guest-info").0, [Ping].into_iter().collect());
    let (kept, notes) = keep("-a guest-ping,guest-file-open,guest-exec");
    assert_eq!(kept, [Ping].into_iter().collect());
    assert!(!kept.contains(FileOpen));
    assert!(notes[0].contains("guest-file-open, guest-exec") && notes.len() == 1, "{notes:?}");
    let (kept, notes) = keep("-b nope -a neither");
    assert_eq!(kept, CommandSet::EMPTY);
    assert_eq!(notes.len(), 2, "{notes:?}");
}
