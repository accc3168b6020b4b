//! README.md: its command table is the catalogue's, its commands can be typed,
//! its files are there.

use std::fmt::Write as _;
use std::fs;

use postern_core::catalogue::{Act, Arg, Audit, CATALOGUE, Call, Command, Entry, Kind};
use postern_core::policy::written::{World, load_embedded};

use super::{err, postern, root};

const BEGIN: &str = "<!-- Made from the catalogue: UPDATE=1 cargo test --test demo -->\n";
const END: &str = "<!-- Made until here -->\n";

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

fn argument(arg: &Arg) -> String {
    let objects;
    let kind = match arg.kind {
        Kind::Int => "int",
        Kind::Str => "string",
        Kind::Bool => "bool",
        Kind::StrList => "strings",
        Kind::Whence => "whence",
        Kind::Uint => "uint",
        Kind::List(of) => {
            objects = format!("[{{{}}}]", of.iter().map(argument).collect::<Vec<_>>().join(", "));
            &objects
        }
    };
    let shown = format!("{}: {kind}", arg.name);
    if arg.optional { format!("[{shown}]") } else { shown }
}

/// The broker's acts and the worker's system calls.
fn needs(entry: &Entry) -> String {
    let acts = entry.needs.acts.iter().map(|act| match act {
        Act::Open => "an open",
        Act::Freeze => "a freeze",
        Act::Thaw => "a thaw",
        Act::Shutdown => "a shutdown",
        Act::Trim => "a trim",
        Act::Suspend => "`/sys/power`",
        Act::SetVcpus => "processors in sysfs",
        Act::SetMemoryBlocks => "memory blocks in sysfs",
    });
    let calls = entry.needs.calls.iter().map(|call| match call {
        Call::Read => "`read`",
        Call::Write => "`write`",
        Call::Seek => "`lseek`",
        Call::Uname => "`uname`",
    });
    let facts = entry.needs.facts.iter().map(|fact| match fact.lasts() {
        None => format!("fact {}", fact.row().name),
        Some(most) => format!("fact {} (of the last {} s)", fact.row().name, most.as_secs()),
    });
    let facts: Vec<String> = facts.collect();
    let all: Vec<&str> = acts.chain(calls).chain(facts.iter().map(String::as_str)).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

fn table() -> String {
    let mut text = String::from(BEGIN);
    text.push_str(
        "\n| command | arguments | what it does | needs | while frozen | audit |\n|---|---|---|---|---|---|\n",
    );
    for entry in CATALOGUE.iter().filter(|entry| entry.command.is_some()) {
        let arguments: Vec<String> = entry.args.iter().map(argument).collect();
        let audit = match entry.audit {
            Audit::Counted => "counted",
            Audit::Recorded => "recorded",
            Audit::AtClose => "at close",
        };
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {audit} |",
            entry.name,
            arguments.join(", "),
            entry.summary,
            needs(entry),
            if entry.frozen_safe { "yes" } else { "" },
        )
        .unwrap();
    }
    text.push_str("\nUnder `commands.redact` these are offered, and answer:\n\n| command | answer |\n|---|---|\n");
    for redaction in Command::all().filter_map(Command::redaction) {
        writeln!(text, "| `{}` | {} |", redaction.name, redaction.answer).unwrap();
    }
    text.push_str(
        "\nThese of stock's are not offered, by design: listed in `guest-info` as not enabled, refused with stock's text, \
         each request on record.\n\n| command | why not |\n|---|---|\n",
    );
    for (name, why) in CATALOGUE.iter().filter_map(|entry| Some((entry.name, entry.by_design?))) {
        writeln!(text, "| `{name}` | {why} |").unwrap();
    }
    let others = CATALOGUE.iter().filter(|entry| entry.command.is_none() && entry.by_design.is_none());
    let others: Vec<String> = others.map(|entry| format!("`{}`", entry.name)).collect();
    if !others.is_empty() {
        writeln!(text, "\nNor are these yet: {}.", others.join(", ")).unwrap();
    }
    text.push('\n');
    text.push_str(END);
    text
}

#[test]
fn the_command_table_is_the_catalogue() {
    let text = readme();
    let (before, rest) = text.split_once(BEGIN).expect("the table's first mark");
    let (_, after) = rest.split_once(END).expect("the table's last mark");
    let made = format!("{before}{}{after}", table());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join("README.md"), &made).unwrap();
    }
    assert!(made == readme(), "README.md's command table is not the catalogue: UPDATE=1 cargo test --test demo");
}

/// Words of a command line as a shell makes them: single quotes, and an end at
/// a pipe, a list, a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '\'' => quoted = !quoted,
            '|' | '>' | '&' | ';' | '#' if !quoted => break,
            ' ' if !quoted => words.push(String::new()),
            other => words.last_mut().unwrap().push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Command lines of postern in the README, in code blocks and in running text.
fn commands() -> Vec<String> {
    let text = readme();
    let mut found = Vec::new();
    let mut block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            block = !block;
        } else if block || line.starts_with("    ") {
            let line = line.trim_start().trim_start_matches("$ ").trim_start_matches("# ").trim_start_matches("sudo ");
            found.extend(line.strip_prefix("postern ").map(str::to_owned));
        } else {
            let code = line.split('`').skip(1).step_by(2);
            found.extend(code.filter_map(|code| code.strip_prefix("postern ")).map(str::to_owned));
        }
    }
    // The account of that name, in a listing.
    found.retain(|line| !line.starts_with(' '));
    found
}

#[test]
fn every_command_can_be_typed() {
    let all = commands();
    for expected in [
        "run",
        "demo",
        "call",
        "policy check",
        "policy explain",
        "policy test",
        "audit verify",
        "audit head",
        "audit show",
        "audit report",
    ] {
        assert!(all.iter().any(|line| line.starts_with(expected)), "README says nothing of postern {expected}");
    }
    for line in all {
        // Everything before --help is parsed, and refused if it is wrong.
        let output = postern().args(words(&line)).arg("--help").output().unwrap();
        assert!(output.status.success(), "README: postern {line}: {}", err(&output));
    }
    let control = postern().args(["audit", "show", "--nope", "FILE", "--help"]).output().unwrap();
    assert!(!control.status.success(), "the control: an option that is not there is refused");
}

#[test]
fn every_policy_is_good() {
    let text = readme();
    let policies: Vec<&str> = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!policies.is_empty());
    for policy in policies {
        let loaded = load_embedded("README.md", policy, &World::elsewhere());
        let loaded = loaded.unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert!(!loaded.policy.files.is_empty());
    }
}

#[test]
fn every_linked_file_is_there() {
    let text = readme();
    let links: Vec<&str> = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains("://"))
        .collect();
    assert!(links.len() > 5);
    for link in links {
        let path = link.split('#').next().unwrap();
        assert!(path.is_empty() || root().join(path).exists(), "README links to {link}");
    }
}

#[test]
fn every_exit_status_is_listed() {
    let text = readme();
    let help = |command: &str| {
        let output = postern().args([command, "--help"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for command in ["run", "demo", "call"] {
        let help = help(command);
        let line = help.lines().find_map(|line| line.strip_prefix("Exit status: ")).expect("its exit statuses");
        for status in line.split([',', '.']).filter_map(|part| part.trim().split(' ').next()?.parse::<u8>().ok()) {
            let row = format!("| `{command}` | {status} |");
            assert!(text.contains(&row), "README lists no status {status} of {command}");
        }
    }
}
