//! Started in stock's place: its flags, its configuration file, what RHEL sets
//! in the environment → one plain [`Stock`]. Pure but for [`read_file`].
//!
//! The order is stock's, the last word counts: file, environment, command line;
//! lists add up. What comes out can only narrow the policy, see
//! [`Stock::keep`].
//!
//! Trust: the command line as much as who may start a process; the file only if
//! none but root, or whoever starts postern, can write it.

pub mod keyfile;
pub mod options;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use postern_core::catalogue::{self, CATALOGUE, Command, CommandSet};

use keyfile::{KeyFile, escaped};
use options::{CONFIG, CONFIG_VARIABLE, Given, Name, PIDFILE, SERIAL_PATH, SETTINGS, Takes, VIRTIO_PATH};

/// RHEL's service sets these from `/etc/sysconfig/qemu-ga`: 7 and 8 the first,
/// 9 the second; a list of commands to block.
const BLOCK_VARIABLES: [&str; 2] = ["BLACKLIST_RPC", "BLOCK_RPCS"];
/// RHEL 9.4 and later: options that name commands to allow or to block.
const FILTER_VARIABLE: &str = "FILTER_RPC_ARGS";
/// The hook script, all of them; `/dev/null` stands for none.
const HOOK_VARIABLE: &str = "FSFREEZE_HOOK_PATHNAME";

/// Stock's state directory.
const STATEDIR: &str = "/var/run";
/// A larger configuration file is none. Bytes.
const LARGEST: u64 = 1 << 20;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To print this and end well.
    Print(String),
    /// To serve.
    Serve(Box<Stock>),
}

/// A start in stock's place; `None` and empty: not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    /// Become a daemon.
    pub daemon: bool,
    /// How to meet the host.
    pub method: Option<String>,
    /// Where to meet the host.
    pub path: Option<String>,
    /// Where the operator's log goes.
    pub logfile: Option<String>,
    /// Where a daemon's process id stands.
    pub pidfile: Option<String>,
    /// Stock's script around a freeze.
    pub fsfreeze_hook: Option<String>,
    /// Where the state directory is made.
    pub statedir: Option<String>,
    /// Say everything.
    pub verbose: bool,
    /// Wait for the channel's path.
    pub retry_path: bool,
    /// Commands to take away.
    pub block_rpcs: Vec<String>,
    /// Commands to leave; empty: all.
    pub allow_rpcs: Vec<String>,
    /// The policy file.
    pub policy: Option<String>,
    /// What the operator is told once.
    pub notes: Vec<String>,
}

/// Reads all three. `variable` looks into the environment, `file` reads a
/// configuration file, `None` if it is missing.
///
/// # Errors
/// For the operator: what is wrong, and what to write.
pub fn read(
    words: &[String],
    variable: &dyn Fn(&str) -> Option<String>,
    file: &dyn Fn(&Path) -> Result<Option<String>, String>,
) -> Result<Asked, String> {
    let line = options::read(words);
    for given in &line.given {
        let printed = match given.name {
            Name::Help => options::help(),
            // Four words in, scripts expect three dotted numbers.
            Name::Version => format!("QEMU Guest Agent {} (postern)\n", env!("CARGO_PKG_VERSION")),
            Name::BlockRpcs | Name::AllowRpcs if given.value == "help" || given.value == "?" => commands(),
            _ => continue,
        };
        return Ok(Asked::Print(printed));
    }
    if let Some(mistake) = line.mistake {
        return Err(format!("{mistake}; see qemu-ga --help"));
    }

    let mut stock = Stock::default();
    let named = line.given.iter().rev().find(|given| given.name == Name::Config).map(|given| given.value.clone());
    let path = named.clone().or_else(|| variable(CONFIG_VARIABLE)).unwrap_or_else(|| CONFIG.to_owned());
    match file(Path::new(&path)).and_then(|text| text.as_deref().map(KeyFile::parse).transpose()) {
        Ok(Some(file)) => stock.file(&file).map_err(|why| format!("{path}: {why}"))?,
        Ok(None) if named.is_some() => return Err(format!("{path}: there is no such file")),
        Ok(None) => {}
        Err(why) => return Err(format!("{path}: {why}")),
    }
    stock.environment(variable)?;
    for given in &line.given {
        stock.option(given);
    }
    for operand in line.operands {
        stock.notes.push(format!("'{operand}' on the command line is no option and has no meaning"));
    }
    // As stock, which then has no channel, to dump nothing either.
    stock.place()?;
    if line.given.iter().any(|given| given.name == Name::DumpConf) {
        return Ok(Asked::Print(stock.dump()));
    }
    Ok(Asked::Serve(Box::new(stock)))
}

/// The text of a configuration file that only trusted accounts can change.
///
/// # Errors
/// For the operator, without the path.
pub fn read_file(path: &Path) -> Result<Option<String>, String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened: Result<OwnedFd, _> = nix::fcntl::open(path, flags, Mode::empty());
    let file = match opened.map_err(std::io::Error::from) {
        Ok(opened) => File::from(opened),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let facts = file.metadata().map_err(|why| why.to_string())?;
    let me = nix::unistd::geteuid().as_raw();
    if !facts.is_file() {
        return Err("no regular file".to_owned());
    }
    // It names files that are opened with the starter's rights.
    if facts.uid() != 0 && facts.uid() != me {
        return Err(format!("belongs to user {}, who could name any file; chown it to {me}", facts.uid()));
    }
    if facts.mode() & 0o022 != 0 {
        return Err("can be written by others; chmod go-w it".to_owned());
    }
    if facts.len() > LARGEST {
        return Err(format!("is larger than {LARGEST} bytes"));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).map_err(|why| why.to_string())?;
    Ok(Some(text))
}

/// A list as stock keeps it: each list that it is given backwards, behind those
/// before. Nothing but the dump shows it.
fn listed(text: &str) -> impl Iterator<Item = String> {
    let items: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').collect() };
    items.into_iter().rev().map(str::to_owned)
}

impl Stock {
    /// Takes in the file.
    fn file(&mut self, file: &KeyFile) -> Result<(), String> {
        // Of a key that stands twice the last counts; lists under the old name
        // and the present one add up.
        for setting in &SETTINGS {
            for key in setting.keys {
                let Some(entry) = file.entries().filter(|entry| entry.group == "general" && entry.key == *key).last()
                else {
                    continue;
                };
                match setting.takes {
                    Takes::Nothing => self.flag(setting.name, entry.flag()?),
                    _ if matches!(setting.name, Name::BlockRpcs | Name::AllowRpcs) => {
                        let items = listed(&entry.text()?).collect();
                        self.add(setting.name, items);
                    }
                    _ => self.text(setting.name, entry.text()?),
                }
            }
        }
        let known = |key: &str| SETTINGS.iter().any(|setting| setting.keys.contains(&key));
        for entry in file.entries() {
            if entry.group != "general" {
                self.note(format!("the configuration's group [{}] has no meaning", entry.group));
            } else if !known(&entry.key) {
                self.note(format!("the configuration's key '{}' has no meaning", entry.key));
            }
        }
        Ok(())
    }

    /// Takes in the environment. A service that also gives its variables as
    /// arguments names each command twice.
    fn environment(&mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
        let mut blocked: Vec<String> = Vec::new();
        let mut allowed: Vec<String> = Vec::new();
        for name in BLOCK_VARIABLES {
            blocked.extend(listed(&variable(name).unwrap_or_default()));
        }
        let words = variable(FILTER_VARIABLE).unwrap_or_default();
        let words: Vec<String> = words.split_ascii_whitespace().map(str::to_owned).collect();
        let line = options::read(&words);
        if let Some(mistake) = line.mistake {
            return Err(format!("{FILTER_VARIABLE}: {mistake}"));
        }
        for given in line.given {
            match given.name {
                Name::BlockRpcs => blocked.extend(listed(&given.value)),
                Name::AllowRpcs => allowed.extend(listed(&given.value)),
                other => self.note(format!("{FILTER_VARIABLE} sets {other:?}, which it is not for")),
            }
        }
        for (name, items) in [(Name::BlockRpcs, blocked), (Name::AllowRpcs, allowed)] {
            self.add(name, items);
        }
        if let Some(hook) = variable(HOOK_VARIABLE).filter(|hook| !hook.is_empty()) {
            self.fsfreeze_hook = Some(hook);
        }
        Ok(())
    }

    /// Takes in an option.
    fn option(&mut self, given: &Given) {
        match given.name {
            Name::BlockRpcs | Name::AllowRpcs => {
                let items: Vec<String> = listed(&given.value).collect();
                self.add(given.name, items);
            }
            Name::Daemon | Name::Verbose | Name::RetryPath => self.flag(given.name, true),
            // Seen before.
            Name::Config | Name::DumpConf | Name::Version | Name::Help => {}
            name => self.text(name, given.value.clone()),
        }
    }

    fn flag(&mut self, name: Name, value: bool) {
        match name {
            Name::Daemon => self.daemon = value,
            Name::Verbose => self.verbose = value,
            Name::RetryPath => self.retry_path = value,
            _ => {}
        }
    }

    fn text(&mut self, name: Name, value: String) {
        let place = match name {
            Name::Method => &mut self.method,
            Name::Path => &mut self.path,
            Name::Logfile => &mut self.logfile,
            Name::Pidfile => &mut self.pidfile,
            Name::FsfreezeHook => &mut self.fsfreeze_hook,
            Name::Statedir => &mut self.statedir,
            Name::Policy => &mut self.policy,
            _ => return,
        };
        *place = Some(value);
    }

    fn list(&mut self, name: Name) -> &mut Vec<String> {
        if name == Name::AllowRpcs { &mut self.allow_rpcs } else { &mut self.block_rpcs }
    }

    /// Adds to a list what it does not hold yet.
    fn add(&mut self, name: Name, items: Vec<String>) {
        let list = self.list(name);
        for item in items {
            if item.is_empty() || !list.contains(&item) {
                list.push(item);
            }
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("virtio-serial")
    }

    /// Where the host is met, as stock understands it.
    fn place(&self) -> Result<&str, String> {
        match (&self.path, self.method()) {
            (Some(path), _) => Ok(path),
            (None, "virtio-serial") => Ok(VIRTIO_PATH),
            (None, "isa-serial") => Ok(SERIAL_PATH),
            (None, method) => Err(format!("method {method} needs a path; write -p PATH")),
        }
    }

    /// The channel, as `METHOD:PATH`; `None` if it is left to the policy.
    #[must_use]
    pub fn channel(&self) -> Option<String> {
        if self.method.is_none() && self.path.is_none() {
            return None;
        }
        Some(format!("{}:{}", self.method(), self.place().unwrap_or_default()))
    }

    /// The pidfile; a daemon has one, no other, as with stock.
    #[must_use]
    pub fn pidfile(&self) -> Option<&str> {
        self.daemon.then(|| self.pidfile.as_deref().unwrap_or(PIDFILE))
    }

    /// The commands that may stay of those that the policy allows, and what to
    /// tell the operator. Never more than `allowed`.
    #[must_use]
    pub fn keep(&self, allowed: CommandSet) -> (CommandSet, Vec<String>) {
        let mut notes = Vec::new();
        let named = |list: &[String]| list.iter().filter(|name| !name.is_empty()).cloned().collect::<Vec<_>>();
        let (blocks, allows) = (named(&self.block_rpcs), named(&self.allow_rpcs));
        for (list, names) in [("block-rpcs", &blocks), ("allow-rpcs", &allows)] {
            let unknown: Vec<&str> =
                names.iter().map(String::as_str).filter(|name| catalogue::lookup(name).is_none()).collect();
            if !unknown.is_empty() {
                notes.push(format!("{list} names what is no command: {}", unknown.join(", ")));
            }
        }
        let stays = |command: Command| {
            let is = |name: &String| name == command.name();
            (self.allow_rpcs.is_empty() || allows.iter().any(is)) && !blocks.iter().any(is)
        };
        let denied: Vec<&str> = CATALOGUE
            .iter()
            .filter(|entry| allows.iter().any(|name| name == entry.name))
            .filter(|entry| !entry.command.is_some_and(|command| allowed.contains(command)))
            .map(|entry| entry.name)
            .collect();
        if !denied.is_empty() {
            let denied = denied.join(", ");
            notes.push(format!("allow-rpcs cannot widen the policy, which does not allow {denied}: they stay denied"));
        }
        (allowed.iter().filter(|command| stays(*command)).collect(), notes)
    }

    /// What has no meaning here, or another; each said once.
    #[must_use]
    pub fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        let hook = self.fsfreeze_hook.as_deref().filter(|hook| *hook != "/dev/null");
        if let Some(hook) = hook {
            notes.push(format!("the freeze hook {hook} is not run: postern runs no scripts"));
        }
        if self.pidfile.is_some() && !self.daemon {
            notes.push("a pidfile is written by a daemon only; give -d too".to_owned());
        }
        notes
    }

    /// The configuration in the form of its file, key by key as stock.
    fn dump(&self) -> String {
        let mut dump = "[general]\n".to_owned();
        let mut line = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                dump.extend([key, "=", &escaped(value), "\n"]);
            }
        };
        let flag = |on: bool| Some(if on { "true" } else { "false" });
        line("daemon", flag(self.daemon));
        line("method", Some(self.method()));
        line("path", self.place().ok());
        line("logfile", self.logfile.as_deref());
        line("pidfile", Some(self.pidfile.as_deref().unwrap_or(PIDFILE)));
        line("fsfreeze-hook", self.fsfreeze_hook.as_deref());
        line("statedir", Some(self.statedir.as_deref().unwrap_or(STATEDIR)));
        line("verbose", flag(self.verbose));
        line("retry-path", flag(self.retry_path));
        line("block-rpcs", Some(&self.block_rpcs.join(",")));
        // An empty one says nothing, and older stock knows none.
        let allowed = self.allow_rpcs.join(",");
        line("allow-rpcs", Some(allowed.as_str()).filter(|list| !list.is_empty()));
        dump
    }
}

/// Every command that there is, one a line.
fn commands() -> String {
    CATALOGUE.iter().flat_map(|entry| [entry.name, "\n"]).collect()
}

#[cfg(test)]
mod tests;
