//! What a redacted answer says, command by command, as data.
//!
//! The key table, the policy's checks, `postern policy explain` and what the worker
//! is given to read follow from it. What is not in it cannot be redacted: an answer
//! that says less would be of no use, or a lie; `commands.deny` is for those.
//!
//! Trust: plain data. Anyone may read it.

use super::facts::Fact;

/// One command that can be redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redaction {
    /// Name on the wire.
    pub name: &'static str,
    /// What the redacted answer says; "such" is what the keys list.
    pub answer: &'static str,
    /// What is read for it all the same: then redaction holds only as long as the
    /// worker does.
    pub reads: Reads,
    /// The keys of `[facts]` that the command's answers heed, redacted or not.
    pub keys: &'static [&'static str],
}

/// What of a command's facts a redacted answer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// None, and none of the command's own calls.
    Nothing,
    /// These, and none of the command's own calls.
    Only(&'static [Fact]),
    /// All, and its calls.
    All,
}

/// Every command that can be redacted.
pub static REDACTIONS: [Redaction; 8] = [
    Redaction {
        name: "guest-get-host-name",
        answer: "facts.host_name, or \"guest\"",
        reads: Reads::Nothing,
        keys: &["host_name"],
    },
    Redaction { name: "guest-get-timezone", answer: "UTC", reads: Reads::Nothing, keys: &[] },
    Redaction {
        name: "guest-get-osinfo",
        answer: "the system's id alone, such as \"debian\"",
        reads: Reads::Only(&[Fact::OsRelease]),
        keys: &[],
    },
    Redaction { name: "guest-get-users", answer: "no user", reads: Reads::Nothing, keys: &[] },
    Redaction {
        name: "guest-network-get-interfaces",
        answer: "those of facts.interfaces, or all but loopback and what containers have; of these no loopback or \
                 link-local address and no counters",
        reads: Reads::All,
        keys: &["interfaces"],
    },
    Redaction {
        name: "guest-network-get-route",
        answer: "the default routes over those of facts.interfaces, or over all but loopback and what containers have",
        reads: Reads::All,
        keys: &["interfaces"],
    },
    Redaction {
        name: "guest-get-fsinfo",
        answer: "the filesystems at facts.mountpoints, or that at /; no disk of any",
        reads: Reads::Only(&[Fact::Mounts]),
        keys: &["mountpoints"],
    },
    Redaction { name: "guest-get-disks", answer: "no disk", reads: Reads::Nothing, keys: &[] },
];

/// The row of a command by its name on the wire.
#[must_use]
pub fn redaction(name: &str) -> Option<&'static Redaction> {
    REDACTIONS.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::lookup;

    #[test]
    fn every_row_is_of_a_command_that_takes_nothing_and_answers() {
        for row in &REDACTIONS {
            let entry = lookup(row.name).unwrap_or_else(|| panic!("there is no {}", row.name));
            assert!(entry.args.is_empty() && !entry.silent, "{}", row.name);
            if let Reads::Only(facts) = row.reads {
                assert!(facts.iter().all(|fact| fact.is_within(entry.needs.facts)), "{}", row.name);
            }
            assert_eq!(REDACTIONS.iter().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
        }
    }
}
