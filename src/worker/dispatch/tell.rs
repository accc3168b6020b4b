//! Commands that tell of the guest: the facts that a command's row names, read and
//! made into its reply.
//!
//! Trust: what is told of is the guest's; nothing of the host's request is used.

use std::time::SystemTime;

use nix::errno::Errno;
use postern_core::catalogue::Command;
use postern_core::catalogue::facts::Fact;
use postern_core::ipc::bundle::Bundle;

use super::super::channel::Channel;
use super::super::facts::KEPT_MAX;
use super::super::facts::cpu::Vcpu;
use super::super::facts::host::{HostName, now};
use super::super::facts::load::Load;
use super::super::facts::network::dump::ADDRESSES_MAX;
use super::super::facts::network::routes::{self, ROUTES_MAX, Route, Table};
use super::super::facts::network::{self, Interface};
use super::super::facts::os::OsInfo;
use super::super::facts::timezone::Timezone;
use super::super::facts::users::users;
use super::super::facts::{FactError, cpu, disks, diskstats, fsinfo, memory};
use super::super::qga::error::strerror;
use super::super::qga::{Id, QgaError};
use super::{Session, Stop};

/// A command's reply, or why there is none.
type Told<T> = Result<T, QgaError>;

impl Session {
    pub(super) fn tell(&mut self, command: Command, id: &Id, channel: &Channel) -> Result<(), Stop> {
        let redacted = self.part.redact.contains(command);
        match command {
            Command::GetTime => self.told(now().map_err(|errno| failed("time", errno)), id, channel),
            Command::GetHostName => {
                let told = match self.part.telling.host_name(redacted) {
                    Some(name) => Ok(HostName { host_name: name.to_owned() }),
                    None => HostName::read().map_err(|errno| failed("host name", errno)),
                };
                self.told(told, id, channel)
            }
            Command::GetLoad => {
                let load = self.fact(Fact::Load, Load::read)?;
                self.told(load, id, channel)
            }
            Command::GetTimezone => {
                let now = SystemTime::now();
                let zone = if redacted {
                    Ok(Timezone::utc())
                } else {
                    self.gathered(Fact::Timezone, |bundle| Ok(Timezone::read(bundle, now)))?
                };
                self.told(zone, id, channel)
            }
            Command::GetOsinfo => {
                let info = match self.gathered(Fact::OsRelease, |bundle| Ok(OsInfo::of_release(bundle)))? {
                    Ok(release) if !redacted => release.and_kernel().map_err(|errno| failed("kernel's release", errno)),
                    release => release.map(OsInfo::reduced),
                };
                self.told(info, id, channel)
            }
            Command::GetUsers => {
                let users =
                    if redacted { Ok(Vec::new()) } else { self.gathered(Fact::Users, |bundle| Ok(users(bundle)))? };
                self.told(users, id, channel)
            }
            Command::GetCpustats => {
                let stats = self.fact(Fact::Cpustats, |bytes| Some(cpu::stats(bytes)))?;
                self.told(stats, id, channel)
            }
            Command::GetDiskstats => {
                let stats = self.fact(Fact::Diskstats, |bytes| Some(diskstats::stats(bytes)))?;
                self.told(stats, id, channel)
            }
            Command::GetVcpus => {
                let vcpus = self.vcpus()?;
                self.told(vcpus, id, channel)
            }
            Command::GetMemoryBlocks => {
                let blocks = self.gathered(Fact::MemoryBlocks, memory::blocks)?;
                self.told(blocks, id, channel)
            }
            Command::GetMemoryBlockInfo => {
                let info = match self.facts.read(Fact::MemoryBlockSize, &mut self.broker)? {
                    Err(Errno::ENOENT) => Err(QgaError::Told(FactError::NoMemoryDirectory.to_string())),
                    read => told_by(Fact::MemoryBlockSize, read, memory::block_info),
                };
                self.told(info, id, channel)
            }
            Command::GetFsinfo => {
                let fact = if redacted { Fact::Mounts } else { Fact::Filesystems };
                let filesystems = self.gathered(fact, fsinfo::read)?;
                self.told(filesystems, id, channel)
            }
            Command::GetDisks => {
                let disks = if redacted {
                    Ok(Vec::new())
                } else {
                    self.gathered(Fact::Disks, |bundle| Ok(disks::read(bundle)))?
                };
                self.told(disks, id, channel)
            }
            Command::NetworkGetInterfaces => {
                let interfaces = self.interfaces();
                self.told(interfaces, id, channel)
            }
            Command::NetworkGetRoute => {
                let routes = self.routes()?;
                self.told(routes, id, channel)
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

    fn interfaces(&mut self) -> Told<Vec<Interface>> {
        let told = |errno| match errno {
            Errno::EOVERFLOW => too_many("network interfaces or addresses", ADDRESSES_MAX),
            errno => failed("network interfaces", errno),
        };
        let netlink = self.facts.netlink.as_mut().ok_or_else(|| told(Errno::EIO))?;
        let links = netlink.links().map_err(told)?;
        let addresses = netlink.addresses().map_err(told)?;
        let redacted = self.part.redact.contains(Command::NetworkGetInterfaces);
        Ok(network::interfaces(&links, &addresses, &self.part.telling, redacted))
    }

    fn routes(&mut self) -> Result<Told<Vec<Route>>, Stop> {
        let redacted = self.part.redact.contains(Command::NetworkGetRoute);
        let mut told = Vec::new();
        for (fact, table) in [(Fact::Routes, Table::V4), (Fact::Routes6, Table::V6)] {
            match self.facts.read(fact, &mut self.broker)? {
                Ok(text) => {
                    let added = routes::add(&mut told, (table, text), &self.part.telling, redacted);
                    if added.is_err() || text.len() == KEPT_MAX {
                        return Ok(Err(too_many("routes", ROUTES_MAX)));
                    }
                }
                // Of a family that the guest does not have.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Ok(Err(failed("routes", errno))),
            }
        }
        Ok(Ok(told))
    }

    /// What `read` makes of a fact's bytes.
    fn fact<T>(&mut self, fact: Fact, read: impl FnOnce(&[u8]) -> Option<T>) -> Result<Told<T>, Stop> {
        Ok(told_by(fact, self.facts.read(fact, &mut self.broker)?, read))
    }

    /// The processors: which there are and which of them can be switched off as it was
    /// gathered, unless there are others now; and which are on.
    fn vcpus(&mut self) -> Result<Told<Vec<Vcpu>>, Stop> {
        let mut lists = cpu::Lists::default();
        for (fact, list) in cpu::LISTS.into_iter().zip(&mut lists) {
            *list = self.facts.read(fact, &mut self.broker)?.ok().map(<[u8]>::to_vec);
        }
        if let Some(vcpus) = self.facts.cpus.now(&lists) {
            return Ok(Ok(vcpus));
        }
        let vcpus = self.gathered(Fact::Vcpus, cpu::vcpus)?;
        if let Ok(vcpus) = &vcpus {
            self.facts.cpus = cpu::Known::new(lists, vcpus.clone());
        }
        Ok(vcpus)
    }

    /// What `read` makes of what was gathered.
    fn gathered<T>(
        &mut self,
        fact: Fact,
        read: impl FnOnce(&Bundle<'_>) -> Result<T, FactError>,
    ) -> Result<Told<T>, Stop> {
        let told = self.fact(fact, |bytes| Some(read(&Bundle::read(bytes).ok()?)))?;
        Ok(told.and_then(|read| read.map_err(|why| QgaError::Told(why.to_string()))))
    }
}

/// What `read` makes of a fact's bytes, if there are any.
fn told_by<T>(fact: Fact, bytes: Result<&[u8], Errno>, read: impl FnOnce(&[u8]) -> Option<T>) -> Told<T> {
    let name = fact.row().name;
    match bytes {
        Ok(bytes) => read(bytes).ok_or_else(|| QgaError::Told(format!("failed to read {name}: not as expected"))),
        Err(errno) => Err(failed(name, errno)),
    }
}

fn failed(what: &str, errno: Errno) -> QgaError {
    QgaError::Told(format!("failed to read {what}: {}", strerror(errno)))
}

fn too_many(what: &str, most: usize) -> QgaError {
    QgaError::Told(format!("there are too many {what} for an answer, which has room for {most}"))
}
