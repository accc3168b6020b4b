//! What the checker looks up outside the policy files: who runs it, which
//! accounts there are, what stands at a path.
//!
//! Trust: the system's own files. Built by `postern run`, `postern policy` and
//! tests, which put in what they like.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing, or a link to nothing.
    Missing,
    /// Whoever looks may not; the text says why.
    Hidden(String),
    /// Something.
    There {
        /// The same place with every symbolic link on the way resolved.
        resolved: PathBuf,
        /// `st_mode` of the object, links followed.
        mode: u32,
    },
}

/// The surroundings of a policy.
#[derive(Clone, Debug)]
pub struct World {
    /// Effective user id; policy files must belong to it or to root.
    pub euid: u32,
    /// Whether the policy is for this machine. If not, neither owners and modes
    /// of the files nor accounts and paths are asked for.
    pub here: bool,
    /// Whether an ordinary user is told of accounts that are missing: by
    /// `policy check`, not by a start without root, which uses none.
    pub wants_accounts: bool,
    /// Whether this is what a confined broker remembers of its start. It may not
    /// look at the paths of rules, which its opener does, and knows the accounts
    /// of then: one that it does not know is another than the one that it has.
    pub confined: bool,
    /// Text of `/etc/passwd`. Read directly: the C library's lookup loads shared
    /// objects, which a static executable cannot do safely. Accounts that only
    /// a directory service knows are written as numbers.
    pub passwd: String,
    /// Text of `/etc/group`.
    pub group: String,
    /// What stands at a path.
    pub look: fn(&Path) -> Look,
}

impl World {
    /// This machine, as it is.
    #[must_use]
    pub fn live() -> Self {
        // A guest without these files has no accounts to name: numbers still work.
        let text = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        Self {
            euid: nix::unistd::geteuid().as_raw(),
            here: true,
            wants_accounts: true,
            confined: false,
            passwd: text("/etc/passwd"),
            group: text("/etc/group"),
            look,
        }
    }

    /// Any machine: only what stands in the files counts.
    #[must_use]
    pub fn elsewhere() -> Self {
        Self { here: false, ..Self::live() }
    }

    /// User and primary group id of an account.
    #[must_use]
    pub fn account(&self, name: &str) -> Option<(u32, u32)> {
        let mut fields = entry(&self.passwd, name)?.skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    }

    /// Id of a group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        entry(&self.group, name)?.nth(1)?.parse().ok()
    }
}

/// The fields after the name on the line of `name`.
fn entry<'a>(text: &'a str, name: &str) -> Option<std::str::Split<'a, char>> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(fields)
    })
}

fn look(path: &Path) -> Look {
    let there = || -> io::Result<Look> {
        let resolved = fs::canonicalize(path)?;
        let mode = fs::metadata(path)?.mode();
        Ok(Look::There { resolved, mode })
    };
    there().unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Look::Missing,
        _ => Look::Hidden(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_come_from_the_text() {
        let world = World {
            passwd: "root:x:0:0:root:/root:/bin/sh\npostern:x:990:989::/:/bin/false\n".into(),
            group: "adm:x:4:syslog\n".into(),
            ..World::elsewhere()
        };
        assert_eq!(world.account("postern"), Some((990, 989)));
        assert_eq!(world.account("poster"), None);
        assert_eq!(world.group("adm"), Some(4));
        assert_eq!(world.group("990"), None);
    }
}
