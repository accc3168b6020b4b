//! Facts of the guest, from bytes to replies: what the kernel's and root's files
//! say, as the host is told it.
//!
//! [`Facts`] has the bytes: descriptors that it keeps and reads again, the memory that
//! the opener gathers into, and of some facts what was gathered last ([`lasting`]). The rooms below are pure: bytes in, a reply
//! out, nothing asked.
//!
//! Trust: the files are the kernel's and root's, and some of what stands in them
//! was chosen by users of the guest. Whatever it is, it costs no more than its
//! size, and the reply has the schema's type.

mod block;
pub mod cpu;
pub mod disks;
pub mod diskstats;
#[cfg(test)]
mod fixtures;
pub mod fsinfo;
pub(crate) mod host;
mod lasting;
pub(crate) mod load;
pub mod memory;
pub mod network;
pub mod os;
mod text;
pub mod timezone;
pub mod users;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::uio::pread;
use postern_core::catalogue::facts::Fact;
use postern_core::ipc::bundle::BUNDLE_MAX;

use thiserror::Error;

use super::ask::{Broker, BrokerLost, Told};
use lasting::Lasting;
use network::dump::Netlink;

/// What a guest has nothing of; the texts are stock's, where it has one.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FactError {
    /// No processor; stock ends there.
    #[error("guest reported zero VCPUs")]
    NoVcpus,
    /// A kernel that can add memory, and has none.
    #[error("guest reported zero memory blocks!")]
    NoMemoryBlocks,
    /// A kernel that can neither add nor remove memory.
    #[error("open(\"/sys/devices/system/memory/\"): No such file or directory")]
    NoMemoryDirectory,
    /// A mount table that is none.
    #[error("failed to read /proc/self/mountinfo: not as expected")]
    NoMountTable,
    /// Filesystems on more devices than any guest has.
    #[error("there are too many disks below the filesystems for an answer, which looks at {most}", most = block::DEVICES_MAX)]
    TooManyDisks,
}

/// Most bytes of a file that is kept: more than `/proc/stat` of 4,096 processors.
pub(crate) const KEPT_MAX: usize = 4 << 20;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Where this worker reads facts.
#[derive(Debug)]
pub(crate) struct Facts {
    /// What it keeps; of some the guest has none, and never will while the broker
    /// lives.
    kept: BTreeMap<Fact, Option<OwnedFd>>,
    gathered: Option<OwnedFd>,
    lasting: BTreeMap<Fact, Lasting>,
    /// Processors as they were gathered last.
    pub(crate) cpus: cpu::Known,
    /// Over which the kernel tells of interfaces, if that is told.
    pub(crate) netlink: Option<Netlink>,
    /// Room for what is read; what was read last stands at its beginning.
    bytes: Vec<u8>,
}

impl Facts {
    /// With the memory that the opener gathers into, if it gathers, and the socket
    /// that this process was handed, if it was.
    pub(crate) fn new(gathered: Option<OwnedFd>, netlink: Option<OwnedFd>) -> Self {
        let netlink = netlink.map(Netlink::new);
        let (kept, lasting, cpus) = (BTreeMap::new(), BTreeMap::new(), cpu::Known::default());
        Self { kept, gathered, lasting, cpus, netlink, bytes: Vec::new() }
    }

    /// The bytes of a fact, as it is now, or why there are none.
    pub(crate) fn read(&mut self, fact: Fact, broker: &mut Broker) -> Result<Result<&[u8], Errno>, BrokerLost> {
        if self.lasting.get(&fact).is_some_and(Lasting::is_fresh) {
            return Ok(Ok(self.lasting[&fact].bytes()));
        }
        self.lasting.remove(&fact);
        let file = match self.kept.entry(fact) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(place) => match broker.fact(fact)? {
                Ok(Told::Kept(file)) => place.insert(Some(file)),
                Err(Errno::ENOENT) if fact.is_kept() => place.insert(None),
                Ok(Told::Gathered(length, looks)) => {
                    let Some(memory) = &self.gathered else { return Ok(Err(Errno::EBADF)) };
                    let most = usize::try_from(length).unwrap_or(usize::MAX).min(BUNDLE_MAX);
                    let read = read_from_start(memory, &mut self.bytes, most);
                    if let (Ok(bytes), Some(looks), Some(most)) = (read, looks, fact.lasts()) {
                        self.lasting.extend(Lasting::new(bytes, looks, most).map(|lasting| (fact, lasting)));
                    }
                    return Ok(read);
                }
                Err(errno) => return Ok(Err(errno)),
            },
        };
        Ok(file.as_ref().map_or(Err(Errno::ENOENT), |file| read_from_start(file, &mut self.bytes, KEPT_MAX)))
    }
}

/// Reads from the beginning to the end, or to the limit. The buffer only grows, so
/// that no request clears what an earlier one has.
fn read_from_start<'a>(file: &OwnedFd, bytes: &'a mut Vec<u8>, most: usize) -> Result<&'a [u8], Errno> {
    let mut filled = 0;
    while filled < most {
        if filled == bytes.len() {
            bytes.resize((filled + PIECE).min(most), 0);
        }
        let end = bytes.len().min(most);
        let offset = i64::try_from(filled).map_err(|_| Errno::EFBIG)?;
        match pread(file, &mut bytes[filled..end], offset) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(&bytes[..filled])
}

#[cfg(test)]
mod tests {
    use super::super::qga::{Id, reply};

    /// Numbers as the kernel puts them behind each other.
    pub(super) fn list(numbers: &[u64]) -> String {
        numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
    }

    /// What stands behind `"return": ` for this.
    pub(super) fn json(value: &impl serde::Serialize) -> String {
        let mut out = Vec::new();
        reply::success(&mut out, value, &Id::NONE);
        let line = String::from_utf8(out).expect("UTF-8");
        line.strip_prefix("{\"return\": ").and_then(|line| line.strip_suffix("}\n")).expect("a reply").to_owned()
    }
}
