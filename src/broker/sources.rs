//! Where facts come from: the memory that the opener gathers into, the network's socket,
//! and what the kernel tells anew each time it is read, files of `/proc` and `/sys`. All
//! is made or opened at the start, and only if the policy has told what stands there. A
//! worker that asks is handed a duplicate of a file, to be read as often as it likes.
//!
//! A policy that is loaded later gets none that were not opened here: it takes a new
//! start. What one that was loaded later has no use for stays open here, and no worker
//! is handed it any more.
//!
//! Trust: runs as who started it, before any host byte is read. Nothing is read here
//! from any of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use postern_core::catalogue::facts::{Fact, FactSet, Reads};

use crate::memory::Memory;
use crate::network::Network;

/// All of them.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Where the opener gathers, if anything is gathered.
    pub(crate) memory: Option<Memory>,
    /// The socket, if interfaces are told.
    pub(crate) network: Network,
    files: BTreeMap<Fact, Result<Rc<OwnedFd>, Errno>>,
}

impl Sources {
    /// Opens what `facts` come from, with the socket that was passed, if one was. A file
    /// that cannot be opened is told so to hosts that ask.
    ///
    /// # Errors
    /// As `memfd_create(2)` and socket(2).
    pub(crate) fn open(facts: FactSet, netlink: Option<OwnedFd>) -> io::Result<Self> {
        let memory = facts.gathers().then(Memory::new).transpose()?;
        let network = Network::open(facts, netlink)?;
        let opened = facts.iter().filter_map(|fact| {
            let file = match fact.row().reads {
                Reads::Kept(paths) => first(paths),
                Reads::Network(name) => File::open(format!("/proc/{}/net/{name}", network.of())),
                Reads::Gathered(_) | Reads::Lasting(..) | Reads::Netlink => return None,
            };
            Some((fact, file.map(|file| Rc::new(file.into())).map_err(|why| errno(&why))))
        });
        Ok(Self { files: opened.collect(), memory, network })
    }

    /// What a worker reads such a fact from; else why there is nothing.
    pub(crate) fn file(&self, fact: Fact) -> Result<Rc<OwnedFd>, Errno> {
        self.files.get(&fact).cloned().unwrap_or(Err(Errno::ENOENT))
    }
}

/// The first that is there.
fn first(paths: &[&str]) -> io::Result<File> {
    let there = |opened: &io::Result<File>| !matches!(opened, Err(why) if why.kind() == io::ErrorKind::NotFound);
    paths.iter().map(File::open).find(there).unwrap_or_else(|| Err(Errno::ENOENT.into()))
}

fn errno(why: &io::Error) -> Errno {
    why.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
