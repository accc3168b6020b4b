//! Taking away from a checked policy what a start in stock's place leaves out.
//!
//! Nothing here can add: whatever the arguments are, the result allows the host
//! no command, no file and no shutdown that the policy did not.
//!
//! What is left can be named by its digest, so that the audit log says under what
//! a run stood, not only what stood in files.
//!
//! Trust: pure. Called by the executable before the broker starts.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Policy;
use super::rules::is_canonical;
use crate::catalogue::{Command, CommandSet};

/// What a start in stock's place takes away, kept so that a policy that is read
/// again is narrowed again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// Commands that may stay, of those that the policy allows; `None`: all.
    pub keep: Option<CommandSet>,
    /// Where the state directory is, if not where the policy says.
    pub state: Option<PathBuf>,
}

impl Narrowing {
    /// Does both; see [`Policy::narrow`] and [`Policy::move_state`]. Returns what
    /// [`Policy::narrow`] does.
    ///
    /// # Errors
    /// As [`Policy::move_state`].
    pub fn apply(&self, policy: &mut Policy) -> Result<CommandSet, String> {
        let lost = self.keep.map_or(CommandSet::EMPTY, |keep| policy.narrow(keep));
        if let Some(directory) = &self.state {
            policy.move_state(directory)?;
        }
        Ok(lost)
    }
}

impl Policy {
    /// SHA-256 of the policy as it holds, with everything that files, drop-ins,
    /// defaults, narrowing and the look-up of accounts have made of it, and
    /// without [`Policy::digest`]: equal exactly where all of it is equal.
    /// Comparable between runs of one executable, for it is taken of the text
    /// that this build's `Debug` gives.
    #[must_use]
    pub fn in_force(&self) -> [u8; 32] {
        let plain = Self { digest: [0; 32], ..self.clone() };
        Sha256::digest(format!("{plain:?}")).into()
    }

    /// Leaves the host only commands of `keep`. What nothing uses then goes
    /// too: file rules, shutdown modes, and freezing without a thaw, for
    /// filesystems would stay frozen. Returns the commands that went although
    /// `keep` holds them.
    pub fn narrow(&mut self, keep: CommandSet) -> CommandSet {
        let before = self.commands;
        self.commands = before.iter().filter(|command| keep.contains(*command)).collect();
        if !self.commands.contains(Command::FsfreezeThaw) {
            self.commands.remove(Command::FsfreezeFreeze);
            self.commands.remove(Command::FsfreezeFreezeList);
        }
        self.redact = self.redact.iter().filter(|command| self.commands.contains(*command)).collect();
        if !self.commands.contains(Command::FileOpen) {
            self.files.clear();
        }
        if !self.commands.contains(Command::Shutdown) {
            self.shutdown.modes.clear();
        }
        before.iter().filter(|command| keep.contains(*command) && !self.commands.contains(*command)).collect()
    }

    /// Moves the state directory.
    ///
    /// # Errors
    /// A path that is not absolute and plain, or that a file rule reaches: a host
    /// that writes there would tell postern what is frozen.
    pub fn move_state(&mut self, directory: &Path) -> Result<(), String> {
        // Stock does not mind "//" and "."; ".." may lead anywhere.
        let directory: PathBuf = directory.components().collect();
        if !is_canonical(&directory) {
            let directory = directory.display();
            return Err(format!(
                "the state directory {directory} is not absolute and plain; write it from / on, without .."
            ));
        }
        let reached = |path: &Path| {
            self.files.iter().find(|rule| rule.reaches(path) || rule.path.starts_with(path)).map(|rule| &rule.path)
        };
        if let Some(rule) = reached(&directory) {
            let (rule, directory) = (rule.display(), directory.display());
            return Err(format!("the policy's rule for {rule} reaches the state directory {directory}; name another"));
        }
        self.state = directory;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::written::{World, load_embedded};

    /// Everything that there is, as one policy.
    fn policy(commands: CommandSet) -> Policy {
        let all: Vec<&str> = Command::all().map(Command::name).collect();
        let text = format!(
            "version = 1\nprofile = \"files\"\n[commands]\nallow = {all:?}\n\
             [shutdown]\nmodes = [\"powerdown\", \"halt\"]\n\
             [[files]]\npath = \"/srv/data\"\nrights = [\"read\", \"write\"]\n"
        );
        let mut policy = load_embedded("test", &text, &World::elsewhere()).unwrap().policy;
        assert_eq!(policy.commands, Command::all().collect(), "the control: it allows everything");
        policy.commands = commands;
        policy
    }

    fn set(bits: u64) -> CommandSet {
        CommandSet::from_bits(bits).unwrap()
    }

    #[test]
    fn nothing_is_ever_added() {
        let all: CommandSet = Command::all().collect();
        let mut smaller = 0;
        let third = 0x9249_2492_4924_9249;
        // Sets to keep that look drawn by lot, against policies that allow everything and a third, of which the
        // next is redacted.
        for allowed in [all.bits(), all.bits() & third, all.bits() & !third] {
            let mut before = policy(set(allowed));
            before.redact = set(allowed & (third << 1));
            let mut keep = 0;
            for drawn in 0..4096_u64 {
                keep = (keep ^ drawn.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)) & all.bits();
                let mut after = before.clone();
                let lost = after.narrow(set(keep));
                let (left, lost) = (after.commands.bits(), lost.bits());
                assert_eq!(left & !(allowed & keep), 0, "{allowed:x} {keep:x}");
                assert_eq!(left | lost, allowed & keep, "{allowed:x} {keep:x}: a command went unsaid");
                assert_eq!(left & lost, 0);
                assert_eq!(after.redact.bits(), before.redact.bits() & left, "{keep:x}: what is redacted stays so");
                assert!(after.files.is_empty() || after.files == before.files);
                assert!(after.shutdown.modes.is_empty() || after.shutdown == before.shutdown);
                let freezes = after.commands.contains(Command::FsfreezeFreeze)
                    || after.commands.contains(Command::FsfreezeFreezeList);
                assert!(!freezes || after.commands.contains(Command::FsfreezeThaw), "{keep:x}: frozen for ever");
                smaller += usize::from(left != allowed);
                after.commands = before.commands;
                after.redact = before.redact;
                after.files.clone_from(&before.files);
                after.shutdown = before.shutdown.clone();
                assert_eq!(after, before, "{keep:x}: something else changed");
            }
        }
        assert!(smaller > 0, "the control: narrowing takes away");
    }

    #[test]
    fn the_digest_in_force_is_of_what_holds() {
        let all: CommandSet = Command::all().collect();
        let before = policy(all);
        let mut same = before.clone();
        same.digest = [7; 32];
        assert_eq!(same.in_force(), before.in_force(), "the files' digest is another field");
        let changes: [fn(&mut Policy); 6] = [
            |policy| _ = policy.narrow(Command::all().filter(|command| *command != Command::Ping).collect()),
            |policy| policy.files.clear(),
            |policy| policy.state = "/srv/elsewhere".into(),
            |policy| policy.limits.read -= 1,
            |policy| policy.create_mode = 0o640,
            |policy| policy.identities.groups.push(4),
        ];
        let mut seen = vec![before.in_force()];
        for change in changes {
            let mut after = before.clone();
            change(&mut after);
            assert!(!seen.contains(&after.in_force()));
            seen.push(after.in_force());
        }
    }

    #[test]
    fn what_is_kept_stays_and_what_goes_takes_its_rules_along() {
        let all: CommandSet = Command::all().collect();
        let before = policy(all);
        let mut after = before.clone();
        assert_eq!(after.narrow(all), CommandSet::EMPTY);
        assert_eq!(after, before);
        let mut keep = all;
        keep.remove(Command::FileOpen);
        keep.remove(Command::Shutdown);
        keep.remove(Command::FsfreezeThaw);
        let lost = after.narrow(keep);
        assert!(after.files.is_empty() && after.shutdown.modes.is_empty());
        assert_eq!(lost.iter().collect::<Vec<_>>(), [Command::FsfreezeFreeze, Command::FsfreezeFreezeList]);
    }

    #[test]
    fn the_state_directory_moves_only_where_the_host_cannot_reach() {
        let mut policy = policy(Command::all().collect());
        let before = policy.state.clone();
        for bad in ["state", "/srv/data/state", "/srv", "/srv/data", "/srv/other/../data/state"] {
            assert!(policy.move_state(Path::new(bad)).is_err(), "{bad}");
            assert_eq!(policy.state, before);
        }
        policy.move_state(Path::new("/srv//./database/")).unwrap();
        assert_eq!(policy.state, Path::new("/srv/database"));
    }
}
