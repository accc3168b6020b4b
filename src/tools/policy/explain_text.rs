//! `policy explain` as text.
//!
//! Trust: shows what `explain` computed, adds nothing.

use std::fmt;

use postern_core::catalogue;

use super::explain::{CommandLine, Explanation, Redacted, Rule, Settings};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "policy     {}", self.sources.join(", "))?;
        writeln!(f, "digest     {}", self.digest)?;
        writeln!(f, "channel    {}", self.channel)?;
        writeln!(f, "\nCommands that the host may use")?;
        for line in self.commands.iter().filter(|line| line.allowed) {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "\nCommands that it may not")?;
        let refused = self.commands.iter().filter(|line| !line.allowed);
        let told = |line: &&CommandLine| {
            let entry = catalogue::lookup(line.name);
            line.file.is_some() || entry.is_some_and(|entry| entry.command.is_some() || entry.by_design.is_some())
        };
        let (told, other): (Vec<_>, Vec<_>) = refused.partition(told);
        for line in told {
            writeln!(f, "  {line}")?;
        }
        if !other.is_empty() {
            writeln!(f, "  and {} of stock's that postern does not offer", other.len())?;
        }
        writeln!(f, "\nProcesses")?;
        for process in &self.processes {
            write!(f, "{process}")?;
        }
        writeln!(f, "\nFiles")?;
        for rule in &self.files {
            write!(f, "{rule}")?;
        }
        if self.files.is_empty() {
            writeln!(f, "  none")?;
        }
        write!(f, "\n{}", self.settings)?;
        writeln!(f, "\nWithout root")?;
        for line in &self.without_root {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<29} {}", self.name, self.why)?;
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, " ({file}:{line})")?;
        }
        let Some(Redacted { answer, held_by }) = self.redacted else { return Ok(()) };
        write!(f, "\n{:<31} answers {answer}\n{:<31} held by {held_by}", "", "")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let optional = if self.optional { ", may be missing" } else { "" };
        writeln!(f, "  {}: {}{optional} ({}:{})", self.path, self.rights.join(", "), self.file, self.line)?;
        if !self.except.is_empty() {
            writeln!(f, "    but not {}", self.except.join(", "))?;
        }
        if self.types != ["regular"] {
            writeln!(f, "    objects {}", self.types.join(", "))?;
        }
        for held in &self.held_by {
            writeln!(f, "    {:<8} held by {}: {}", held.part, held.by, held.how)?;
        }
        Ok(())
    }
}

impl Settings {
    fn rotation(&self) -> String {
        let Self { audit_keep: keep, audit_keep_days: days, .. } = self;
        self.audit_rotate_bytes.map_or_else(
            || "rotated by others".to_owned(),
            |size| {
                format!(
                    "rotated by the broker at {size} B; it removes more than {keep} files once they are {days} days old"
                )
            },
        )
    }

    fn heads(&self) -> String {
        if self.audit_heads.is_empty() {
            return "heads to nobody: a cut or rewritten end does not show".to_owned();
        }
        let Self { audit_head_records: records, audit_head_interval_seconds: seconds, .. } = self;
        format!("heads to {}, after {records} records or {seconds} s", self.audit_heads.join(" and "))
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modes = if self.shutdown_modes.is_empty() { "none".to_owned() } else { self.shutdown_modes.join(", ") };
        writeln!(f, "Settings")?;
        let listed = |list: &[String]| if list.is_empty() { "not listed".to_owned() } else { list.join(", ") };
        writeln!(f, "  facts           interfaces {}", listed(&self.facts_interfaces))?;
        writeln!(f, "                  mountpoints {}", listed(&self.facts_mountpoints))?;
        writeln!(f, "                  host name {}", self.facts_host_name.as_deref().unwrap_or("not replaced"))?;
        writeln!(f, "  create mode     {}", self.create_mode)?;
        writeln!(f, "  freeze limit    {} s", self.freeze_limit_seconds)?;
        writeln!(f, "  shutdown        {modes}, by {}", self.shutdown_method)?;
        writeln!(f, "  audit log       {}", self.audit_log)?;
        writeln!(
            f,
            "                  at most {} B, fsync {}, {}",
            self.audit_max_bytes,
            self.audit_fsync,
            self.rotation()
        )?;
        writeln!(f, "                  {}", self.heads())?;
        writeln!(f, "  state           {}", self.state_directory)?;
        writeln!(
            f,
            "  limits          message {} B, nesting {}, string {} B, read {} B, handles {}",
            self.limit_message, self.limit_nesting, self.limit_string, self.limit_read, self.limit_handles
        )?;
        writeln!(
            f,
            "                  per second: requests {} of each command, opens {}, acts {} of each command",
            self.limit_requests, self.limit_opens, self.limit_acts
        )
    }
}
