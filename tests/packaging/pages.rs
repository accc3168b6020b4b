//! Manual pages and completions name what the command line has.

use std::process::Command as Process;

use clap::{Command, CommandFactory};
use postern_core::policy::written::keys;
use postern_tools::cli::Cli;

use super::{output, packed, tool};

/// A page as it is in the package.
fn page(name: &str) -> String {
    let section = name.rsplit('.').next().unwrap();
    output(Process::new("gzip").arg("-dc").arg(packed(&format!("/usr/share/man/man{section}/{name}.gz"))))
}

fn each(command: &Command, act: &mut dyn FnMut(&Command)) {
    act(command);
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help" && !inner.is_hide_set()) {
        each(inner, act);
    }
}

/// The command line, with the names that its parts have in pages.
fn command_line() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

#[test]
fn every_command_has_a_page_with_all_its_options() {
    let mut pages = 0;
    each(&command_line(), &mut |command| {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let text = page(&format!("{name}.1")).replace("\\-", "-");
        assert!(text.contains(&format!("\n{name} - ")), "{name}: no name line");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            if let Some(long) = argument.get_long() {
                assert!(text.contains(&format!("\\fB--{long}\\fR")), "{name}: no --{long}");
            }
        }
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help" && !inner.is_hide_set()) {
            let other = format!("{name}-{}", inner.get_name());
            assert!(text.contains(&format!("{other}(1)")), "{name} does not lead to {other}");
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert_eq!(help.contains("Exit status"), text.contains(".SH \"EXIT STATUS\""), "{name}");
        assert_eq!(help.contains("Examples:"), text.contains(".SH EXAMPLES"), "{name}");
        pages += 1;
    });
    // The stock agent's page leads to ours.
    let link = std::fs::read_link(packed("/usr/share/man/man8/qemu-ga.8.gz")).unwrap();
    assert_eq!(link.to_str(), Some("../man1/postern-qemu-ga.1.gz"));
    assert!(packed("/usr/share/man/man1/postern-qemu-ga.1.gz").exists());
    assert!(pages > 8, "the control: there are subcommands of subcommands");
}

#[test]
fn every_command_can_be_completed() {
    let completions = [
        "/usr/share/bash-completion/completions/postern",
        "/usr/share/zsh/vendor-completions/_postern",
        "/usr/share/fish/vendor_completions.d/postern.fish",
    ];
    for path in completions {
        let text = std::fs::read_to_string(packed(path)).unwrap();
        each(&command_line(), &mut |command| {
            let name = command.get_name();
            assert!(text.contains(name), "{path}: no {name}");
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(text.contains(long), "{path}: {name} has no --{long}");
            }
        });
    }
    output(Process::new("bash").args(["-n"]).arg(packed(completions[0])));
}

#[test]
fn the_policy_has_a_page_with_every_key() {
    let text = page("postern-policy.toml.5").replace("\\-", "-");
    for table in &keys::TABLES {
        for key in keys::of_table(table.name) {
            assert!(text.contains(&format!(".SS {}\n", key.name)), "{}", key.id());
        }
    }
    assert!(!text.contains('`'), "Markdown is left in it");
}

#[test]
fn pages_are_well_formed() {
    let mut names = vec!["postern-policy.toml.5".to_owned()];
    each(&command_line(), &mut |command| {
        names.push(format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name())));
    });
    for name in names {
        if let Some(mut mandoc) = tool("mandoc") {
            let section = name.rsplit('.').next().unwrap();
            let said = output(
                mandoc.args(["-Tlint", "-Wwarning"]).arg(packed(&format!("/usr/share/man/man{section}/{name}.gz"))),
            );
            assert_eq!(said, "", "{name}");
        }
    }
}
