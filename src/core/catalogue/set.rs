//! Sets of commands, and what they need together.
//!
//! Trust: plain data, no input. Anyone may use it.

use super::facts::FactSet;
use super::{Act, Call, Command};

/// A set of offered commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandSet(u64);

impl CommandSet {
    /// No command.
    pub const EMPTY: Self = Self(0);

    /// The set with exactly these bits; `None` if a bit stands for no offered
    /// command.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let all: Self = Command::all().collect();
        (bits & !all.0 == 0).then_some(Self(bits))
    }

    /// Bit n stands for the command with number n.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the set holds `command`.
    #[must_use]
    pub const fn contains(self, command: Command) -> bool {
        self.0 & (1 << command as u8) != 0
    }

    /// Whether the set holds no command.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds `command`.
    pub const fn insert(&mut self, command: Command) {
        self.0 |= 1 << command as u8;
    }

    /// Takes `command` out.
    pub const fn remove(&mut self, command: Command) {
        self.0 &= !(1 << command as u8);
    }

    /// The commands of the set, in catalogue order.
    pub fn iter(self) -> impl Iterator<Item = Command> {
        Command::all().filter(move |&command| self.contains(command))
    }

    /// What the commands of the set tell of the guest.
    #[must_use]
    pub fn facts(self) -> FactSet {
        self.iter().flat_map(|command| command.entry().needs.facts).copied().collect()
    }

    /// Whether any command of the set needs `act`.
    #[must_use]
    pub fn needs_act(self, act: Act) -> bool {
        self.iter().any(|command| command.entry().needs.acts.contains(&act))
    }

    /// Whether any command of the set needs the worker's `call`.
    #[must_use]
    pub fn needs_call(self, call: Call) -> bool {
        self.iter().any(|command| command.entry().needs.calls.contains(&call))
    }
}

impl FromIterator<Command> for CommandSet {
    fn from_iter<T: IntoIterator<Item = Command>>(commands: T) -> Self {
        let mut set = Self::EMPTY;
        for command in commands {
            set.insert(command);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_bits_make_a_set() {
        let all: CommandSet = Command::all().collect();
        assert_eq!(CommandSet::from_bits(all.bits()), Some(all));
        assert_eq!(CommandSet::from_bits(1 << Command::all().count()), None);
    }
}
