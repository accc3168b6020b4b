//! What each of the agent's processes may do, as the kernel tells it in `/proc`.
//!
//! Trust: the kernel's word. Nothing here is taken from the policy or from the
//! agent but for the comparison at the end.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caps::Capability;

use super::{DemoError, file, unexpected};

/// The capability sets by name, and their names in `/proc/PID/status`.
const SETS: [(&str, &str); 5] = [
    ("effective", "CapEff"),
    ("permitted", "CapPrm"),
    ("bounding", "CapBnd"),
    ("inheritable", "CapInh"),
    ("ambient", "CapAmb"),
];

/// More than so many capabilities are counted, not named.
const NAMED: u32 = 6;

/// What freezing takes.
const FREEZING: [Capability; 2] = [Capability::CAP_DAC_READ_SEARCH, Capability::CAP_SYS_ADMIN];

/// One process.
pub(super) struct Process {
    pub(super) pid: u32,
    parent: u32,
    status: HashMap<String, String>,
    /// Number and what it is; `None` if the kernel does not show it.
    descriptors: Option<Vec<(u32, String)>>,
}

/// Broker, spawner, and the spawner's children.
pub(super) fn family(broker: u32, home: &Path) -> Result<Vec<Process>, DemoError> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").map_err(file("listing", "/proc"))?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // What ended meanwhile is no process any more.
        all.extend(Process::read(pid, &entry.path()));
    }
    let of = |parent: u32| all.iter().filter(move |one| one.parent == parent).map(|one| one.pid);
    let mut pids: Vec<u32> = std::iter::once(broker).chain(of(broker)).collect();
    pids.extend(of(broker).flat_map(of));
    let mut family: Vec<Process> = all.into_iter().filter(|one| pids.contains(&one.pid)).collect();
    family.sort_by_key(|one| pids.iter().position(|pid| *pid == one.pid));
    let sockets = sockets();
    for process in &mut family {
        process.descriptors = descriptors(process.pid, home, &sockets);
    }
    Ok(family)
}

impl Process {
    fn read(pid: u32, directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join("status")).ok()?;
        let status: HashMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")))
            .collect();
        let parent = status.get("PPid")?.parse().ok()?;
        Some(Self { pid, parent, status, descriptors: None })
    }

    fn field(&self, name: &str) -> &str {
        self.status.get(name).map_or("", String::as_str)
    }

    /// Its name, such as `postern-worker`.
    pub(super) fn name(&self) -> &str {
        self.field("Name")
    }

    fn set(&self, field: &str) -> u64 {
        // A field that is not there must not pass for an empty set.
        u64::from_str_radix(self.field(field), 16).unwrap_or(u64::MAX)
    }

    /// The lines that describe it.
    pub(super) fn lines(&self) -> Vec<String> {
        let ids = |field| {
            let mut ids: Vec<&str> = self.field(field).split(' ').collect();
            ids.dedup();
            ids.join("/")
        };
        let groups = if self.field("Groups").is_empty() { "none" } else { self.field("Groups") };
        let filters = self.field("Seccomp_filters");
        let mut lines = vec![
            format!(
                "{:<16} pid {}, user {}, group {}, other groups {groups}",
                self.name(),
                self.pid,
                ids("Uid"),
                ids("Gid")
            ),
            format!("  capabilities   {}", self.capabilities()),
            format!(
                "  barriers       NoNewPrivs {}, Seccomp {} ({filters} filter{})",
                self.field("NoNewPrivs"),
                self.field("Seccomp"),
                if filters == "1" { "" } else { "s" }
            ),
        ];
        lines.push(match &self.descriptors {
            Some(all) => format!("  {:>2} descriptors {}", all.len(), grouped(all)),
            None => "  descriptors    not shown to this user: the process is not dumpable".to_owned(),
        });
        lines
    }

    fn capabilities(&self) -> String {
        let mut groups: Vec<(u64, Vec<&str>)> = Vec::new();
        for (name, field) in SETS {
            let set = self.set(field);
            match groups.iter_mut().find(|(value, _)| *value == set) {
                Some((_, names)) => names.push(name),
                None => groups.push((set, vec![name])),
            }
        }
        match groups.as_slice() {
            [(set, _)] => format!("{} in all five sets", names_of(*set)),
            _ => groups
                .iter()
                .map(|(set, names)| format!("{}: {}", names.join(", "), names_of(*set)))
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    /// Whether it is confined as it should be.
    pub(super) fn check(&self, whole: bool) -> Result<(), DemoError> {
        let wrong = |what: &str| unexpected(format!("{} {what}", self.name()));
        if self.field("NoNewPrivs") != "1" || self.field("Seccomp") != "2" {
            return wrong("is not confined");
        }
        if self.field("Uid").split(' ').any(|uid| uid == "0" || uid.is_empty()) {
            return wrong("is root");
        }
        let broker = self.name() == "postern-broker";
        let expected: u64 = if whole && broker { FREEZING.iter().map(Capability::bitmask).sum() } else { 0 };
        for (name, field) in SETS {
            let expected = match name {
                "inheritable" | "ambient" => 0,
                // Without root nothing can be taken out of it.
                "bounding" if !whole => continue,
                _ => expected,
            };
            if self.set(field) != expected {
                return wrong(&format!("has other {name} capabilities than it should"));
            }
        }
        Ok(())
    }
}

fn names_of(set: u64) -> String {
    if set == 0 {
        return "none".to_owned();
    }
    if set.count_ones() > NAMED {
        return format!("{}, out of reach with NoNewPrivs", set.count_ones());
    }
    let mut names: Vec<String> = caps::all()
        .into_iter()
        .filter(|capability| set & capability.bitmask() != 0)
        .map(|capability| capability.to_string())
        .collect();
    names.sort();
    names.join(" ")
}

/// Descriptors that are alike stand together.
fn grouped(descriptors: &[(u32, String)]) -> String {
    let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
    for (number, what) in descriptors {
        match groups.iter_mut().find(|(known, _)| known == what) {
            Some((_, numbers)) => numbers.push(number.to_string()),
            None => groups.push((what, vec![number.to_string()])),
        }
    }
    groups.iter().map(|(what, numbers)| format!("{} {what}", numbers.join(" "))).collect::<Vec<_>>().join(", ")
}

fn descriptors(pid: u32, home: &Path, sockets: &HashMap<String, String>) -> Option<Vec<(u32, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.filter_map(Result::ok) {
        let number = entry.file_name().to_str()?.parse().ok()?;
        match fs::read_link(entry.path()) {
            Ok(link) => all.push((number, what(&link, home, sockets))),
            // Closed meanwhile.
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    all.sort();
    Some(all)
}

/// What a descriptor is, from the link that the kernel shows.
fn what(link: &Path, home: &Path, sockets: &HashMap<String, String>) -> String {
    let text = link.to_string_lossy();
    if let Some(inode) = text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
        return match sockets.get(inode) {
            Some(path) => format!("socket {}", short(Path::new(path), home)),
            None => "socket pair".to_owned(),
        };
    }
    if let Some(kind) = text.strip_prefix("anon_inode:") {
        return kind.trim_matches(['[', ']']).to_owned();
    }
    short(link, home)
}

/// A path beneath the demo's directory, from there on; the directory itself holds
/// the policy.
fn short(path: &Path, home: &Path) -> String {
    if path == home {
        return "the policy's directory".to_owned();
    }
    path.strip_prefix(home).unwrap_or(path).display().to_string()
}

/// Paths of the unix sockets by inode. The processes' pairs have none, or an
/// abstract one that the kernel gave the end that learns process ids.
fn sockets() -> HashMap<String, String> {
    let text = fs::read(PathBuf::from("/proc/self/net/unix")).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .skip(1)
        .filter_map(|line| {
            // Num RefCount Protocol Flags Type St Inode Path, by proc_net(5).
            let mut fields = line.split_ascii_whitespace().skip(6);
            let inode = fields.next()?.to_owned();
            let path = fields.collect::<Vec<_>>().join(" ");
            path.starts_with('/').then_some((inode, path))
        })
        .collect()
}
