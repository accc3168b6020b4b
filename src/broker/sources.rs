//! What the kernel tells anew each time it is read: files of `/proc` and `/sys`, opened
//! at the start, each only if the policy has told what stands there. A worker that asks
//! is handed a duplicate, to be read as often as it likes.
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

/// The descriptors.
#[derive(Debug)]
pub(crate) struct Sources(BTreeMap<Fact, Result<Rc<OwnedFd>, Errno>>);

impl Sources {
    /// Opens what `facts` are read from; of the network namespace that this process
    /// (`network` is `self`) or process 1 is in. What cannot be opened is told so to
    /// hosts that ask.
    pub(crate) fn open(facts: FactSet, network: &str) -> Self {
        let opened = facts.iter().filter_map(|fact| {
            let file = match fact.row().reads {
                Reads::Kept(paths) => first(paths),
                Reads::Network(name) => File::open(format!("/proc/{network}/net/{name}")),
                Reads::Gathered(_) | Reads::Lasting(..) | Reads::Netlink => return None,
            };
            Some((fact, file.map(|file| Rc::new(file.into())).map_err(|why| errno(&why))))
        });
        Self(opened.collect())
    }

    /// What a worker reads such a fact from; else why there is nothing.
    pub(crate) fn file(&self, fact: Fact) -> Result<Rc<OwnedFd>, Errno> {
        self.0.get(&fact).cloned().unwrap_or(Err(Errno::ENOENT))
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
