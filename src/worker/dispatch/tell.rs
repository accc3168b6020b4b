//! Commands that tell of the guest: the facts that a command's row names, read and
//! made into its reply.
//!
//! Trust: what is told of is the guest's; nothing of the host's request is used.

use nix::errno::Errno;
use postern_core::catalogue::Command;
use postern_core::catalogue::facts::Fact;

use super::super::channel::Channel;
use super::super::facts::host::{HostName, now};
use super::super::facts::load::Load;
use super::super::qga::error::strerror;
use super::super::qga::{Id, QgaError};
use super::{Session, Stop};

/// A command's reply, or why there is none.
type Told<T> = Result<T, QgaError>;

impl Session {
    pub(super) fn tell(&mut self, command: Command, id: &Id, channel: &Channel) -> Result<(), Stop> {
        match command {
            Command::GetTime => self.told(now().map_err(|errno| failed("time", errno)), id, channel),
            Command::GetHostName => {
                let told = match self.part.telling.host_name(self.part.redact.contains(command)) {
                    Some(name) => Ok(HostName { host_name: name.to_owned() }),
                    None => HostName::read().map_err(|errno| failed("host name", errno)),
                };
                self.told(told, id, channel)
            }
            Command::GetLoad => {
                let load = self.fact(Fact::Load, Load::read)?;
                self.told(load, id, channel)
            }
            // Not among those that tell: see `request`.
            _ => self.told::<()>(Err(QgaError::CommandDisabled(command.name())), id, channel),
        }
    }

    fn told<T: serde::Serialize>(&mut self, told: Told<T>, id: &Id, channel: &Channel) -> Result<(), Stop> {
        match told {
            Ok(value) => self.succeed(channel, &value, id),
            Err(error) => self.fail(channel, &error, id),
        }
    }

    /// What `read` makes of a fact's bytes.
    fn fact<T>(&mut self, fact: Fact, read: impl FnOnce(&[u8]) -> Option<T>) -> Result<Told<T>, Stop> {
        let name = fact.row().name;
        Ok(match self.facts.read(fact, &mut self.broker)? {
            Ok(bytes) => read(bytes).ok_or_else(|| QgaError::Told(format!("failed to read {name}: not as expected"))),
            Err(errno) => Err(failed(name, errno)),
        })
    }
}

fn failed(what: &str, errno: Errno) -> QgaError {
    QgaError::Told(format!("failed to read {what}: {}", strerror(errno)))
}
