//! Makes manual pages and shell completions from the command line's definition
//! and from the policy's key table. Run by `packaging/build`, never shipped.
//!
//!     postern-pages DIRECTORY YYYY-MM-DD
//!
//! Trust: a builder's command line; reads nothing.
#![forbid(unsafe_code)]

mod reference;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use postern_tools::cli::Cli;

/// What stands at the foot of each page.
const SOURCE: &str = concat!("postern ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "postern guest agent";

/// Files that the agent itself uses, for the pages of `postern` and `postern run`.
const FILES: [(&str, &str); 6] = [
    ("/etc/postern/policy.toml", "What the host may do; see postern\\-policy.toml(5)."),
    ("/etc/postern/policy.d/*.toml", "Drop-ins; also in /run/postern/policy.d and /usr/lib/postern/policy.d."),
    ("/var/log/postern/audit.jsonl", "The audit log; see postern\\-audit(1)."),
    ("/run/postern/state", "What a restarted agent must know: what is frozen, which handle comes next."),
    ("/dev/virtio-ports/org.qemu.guest_agent.0", "Where the host is met."),
    ("/usr/share/doc/postern", "Threats, records, examples of policies."),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, date] = arguments.as_slice() else {
        eprintln!("usage: postern-pages DIRECTORY YYYY-MM-DD");
        return ExitCode::from(2);
    };
    match make(Path::new(directory), date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("postern-pages: {directory}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn make(directory: &Path, date: &str) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;

    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, None, &man, date)?;
    fs::write(man.join("postern-policy.toml.5"), reference::page(date, SOURCE, MANUAL))?;

    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "postern", &completions)?;
    }
    Ok(())
}

/// A page for `command` and each of its subcommands.
fn pages(command: &Command, parent: Option<&Command>, directory: &Path, date: &str) -> io::Result<()> {
    let page = page(command, parent, date)?;
    fs::write(directory.join(format!("{}.1", name(command))), page)?;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages(inner, Some(command), directory, date)?;
    }
    Ok(())
}

fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command, parent: Option<&Command>, date: &str) -> io::Result<String> {
    let help = Help::of(command);
    let title = name(command).to_uppercase();
    let man = Man::new(command.clone()).title(title).date(date).source(SOURCE).manual(MANUAL);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let mut more = Roff::new();
    for paragraph in &help.text {
        more.control("PP", []).text([roman(paragraph)]);
    }
    more.to_writer(&mut text)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    if let Some(status) = help.status {
        rest.control("SH", ["EXIT STATUS"]);
        for entry in status {
            match entry.split_once(' ').filter(|(number, _)| number.parse::<u8>().is_ok()) {
                Some((number, meaning)) => rest.control("TP", []).text([bold(number)]).text([roman(meaning)]),
                None => rest.text([roman(entry)]),
            };
        }
    }
    if let Some(examples) = help.examples {
        rest.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples {
            rest.text([roman(line)]);
        }
        rest.control("fi", []);
    }
    if matches!(name(command), "postern" | "postern-run") {
        rest.control("SH", ["FILES"]);
        for (path, what) in FILES {
            rest.control("TP", []).text([bold(path)]).text([roman(what.replace("\\-", "-"))]);
        }
    }
    see_also(&mut rest, command, parent);
    rest.to_writer(&mut text)?;
    // An empty line that the generator makes of two breaks.
    Ok(String::from_utf8_lossy(&text).replace("\n.br\n\n.br\n", "\n.sp\n"))
}

/// The pages around this one.
fn see_also(text: &mut Roff, command: &Command, parent: Option<&Command>) {
    let mut others = Vec::new();
    others.extend(parent.map(name));
    others.extend(
        parent.into_iter().flat_map(Command::get_subcommands).map(name).filter(|other| *other != name(command)),
    );
    others.extend(command.get_subcommands().map(name));
    text.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for other in others {
        line.extend([bold(other), roman("(1), ")]);
    }
    line.extend([bold("postern-policy.toml"), roman("(5)")]);
    text.text(line);
}

/// The text below a command's options, taken apart.
struct Help {
    text: Vec<String>,
    status: Option<Vec<String>>,
    examples: Option<Vec<String>>,
}

impl Help {
    fn of(command: &Command) -> Self {
        let mut help = Self { text: Vec::new(), status: None, examples: None };
        let written = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for paragraph in written.split("\n\n") {
            if let Some(examples) = paragraph.strip_prefix("Examples:\n") {
                help.examples = Some(examples.lines().map(|line| line.trim_start().to_owned()).collect());
            } else if let Some(status) = paragraph.strip_prefix("Exit status: ") {
                help.status = Some(statuses(&status.replace('\n', " ")));
            } else if !paragraph.is_empty() {
                help.text.push(paragraph.replace('\n', " "));
            }
        }
        help
    }
}

/// `0 whole, 1 broken, 2 a file, or none` as one entry for each number.
fn statuses(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for piece in text.trim_end_matches('.').split(", ") {
        let begins = piece.starts_with(|first: char| first.is_ascii_digit());
        match found.last_mut() {
            Some(last) if !begins => *last = format!("{last}, {piece}"),
            _ => found.push(piece.to_owned()),
        }
    }
    found
}
