//! The reference of every key, made from the key table, as Markdown.
//!
//! Trust: plain data. `policy/REFERENCE.md` is held equal to this by a test.

use std::fmt::Write;

use postern_core::policy::telling::{MAX_HOST_NAME, MAX_MOUNTPOINT, MAX_MOUNTPOINTS, MAX_PATTERN, MAX_PATTERNS};
use postern_core::policy::written::keys::{self, Among, Key, TABLES, Type};
use postern_core::policy::written::profiles::{PROFILES, Profile};

const HEAD: &str = "\
# Policy reference

Made from the key table of the parser (`src/core/policy/written/keys.rs`); a test holds it equal. How files merge and who
may own them: [README.md](README.md). For editors: [schema.json](schema.json).
";

/// The reference as it stands in `policy/REFERENCE.md`.
#[must_use]
pub fn text() -> String {
    let mut text = HEAD.to_owned();
    // Writing to a string cannot fail.
    let _ = write(&mut text);
    text
}

fn write(text: &mut String) -> std::fmt::Result {
    for table in &TABLES {
        let title = match (table.name, table.repeated) {
            ("", _) => "Top of the file".to_owned(),
            (name, true) => format!("[[{name}]]"),
            (name, false) => format!("[{name}]"),
        };
        writeln!(text, "\n## {title}\n\n{}", table.doc)?;
        for key in keys::of_table(table.name) {
            write_key(text, key)?;
        }
    }
    writeln!(text, "\n## Profiles\n\n| profile | what for | commands |\n|---|---|---|")?;
    for profile in &PROFILES {
        let commands: Vec<String> = profile.commands.iter().map(|command| format!("`{command}`")).collect();
        let modes: Vec<&str> = profile.modes.iter().map(|mode| mode.name()).collect();
        let modes = if modes.is_empty() { String::new() } else { format!("; shutdown: {}", modes.join(", ")) };
        writeln!(text, "| `{}` | {} | {}{modes} |", profile.name, profile.doc, commands.join(", "))?;
    }
    Ok(())
}

fn write_key(text: &mut String, key: &Key) -> std::fmt::Result {
    let name = key.name;
    writeln!(text, "\n### `{name}`\n\n{}\n", key.doc)?;
    writeln!(text, "* Takes {}.", takes(key.takes))?;
    match key.default {
        Some(default) => writeln!(text, "* Default: `{default}`.")?,
        None if key.required => writeln!(text, "* Required.")?,
        None => writeln!(text, "* Default: none.")?,
    }
    writeln!(text, "* Example: `{name} = {}`", key.example)
}

fn takes(takes: Type) -> String {
    let words = |words: &[&str]| words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    match takes {
        Type::Version => "the number `1`".to_owned(),
        Type::Choice(of) => format!("one of {}", words(of)),
        Type::Choices { of, least: 0 } => format!("a list out of {}", words(of)),
        Type::Choices { of, .. } => format!("a list of one or more out of {}", words(of)),
        Type::Commands(Among::Offered) => "a list of commands that postern offers".to_owned(),
        Type::Commands(Among::Known) => "a list of commands that postern or stock `qemu-ga` knows".to_owned(),
        Type::Commands(among) => {
            let names: Vec<String> = among.names().map(|name| format!("`{name}`")).collect();
            format!("a list out of {}", names.join(", "))
        }
        Type::Mountpoints => format!(
            "a list of at most {MAX_MOUNTPOINTS} such paths as `files.path` takes, of at most {MAX_MOUNTPOINT} bytes"
        ),
        Type::Patterns => {
            format!("a list of at most {MAX_PATTERNS} patterns of 1 to {MAX_PATTERN} letters, digits and `_.@+-*?`")
        }
        Type::HostName => format!("a string of 1 to {MAX_HOST_NAME} letters, digits, `-` and `.`"),
        Type::Path => "an absolute path without `.`, `..`, doubled or trailing slash".to_owned(),
        Type::Paths => "a list of absolute paths without `.`, `..`, doubled or trailing slash".to_owned(),
        Type::Size { min, max } => {
            format!("bytes as a number, or a string with `KiB` or `MiB`: {min} to {max} bytes")
        }
        Type::Count { min, max } => format!("a number, {min} to {max}"),
        Type::Duration { min, max } => format!("a string with `s`, `m` or `h`: {min} s to {max} s"),
        Type::Mode => "three octal digits as a string, a `0` before them if you like".to_owned(),
        Type::Flag => "`true` or `false`".to_owned(),
        Type::Account => "the name of an account in `/etc/passwd`, or a number that is not 0".to_owned(),
        Type::Groups => "a list of groups in `/etc/group`, or numbers that are not 0".to_owned(),
    }
}

/// A profile as it stands in `policy/profiles/NAME.toml`: written out, so that
/// a reader sees what the name means.
#[must_use]
pub fn profile(profile: &Profile) -> String {
    let commands: Vec<String> = profile.commands.iter().map(|command| format!("    \"{command}\",\n")).collect();
    let commands = commands.concat();
    let modes: Vec<String> = profile.modes.iter().map(|mode| format!("\"{}\"", mode.name())).collect();
    let modes =
        if modes.is_empty() { String::new() } else { format!("\n[shutdown]\nmodes = [{}]\n", modes.join(", ")) };
    format!(
        "# What profile = \"{}\" means, written out. Not to be installed: write the name.\n#\n# {}\n\nversion = 1\n\n\
         [commands]\nallow = [\n{commands}]\n{modes}",
        profile.name, profile.doc
    )
}
