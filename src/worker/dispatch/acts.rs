//! Acts of the broker that take long and freeze nothing: begun at a request,
//! answered when they end. Meanwhile all else goes on, but for what waits; see
//! [`super::waiting`].
//!
//! Trust: the list in a request is the host's, in type. What came of it is the
//! broker's word.

use postern_core::messages::{BlockSet, SuspendMode, Switch, Trimmed};

use super::super::ask::BrokerLost;
use super::super::channel::Channel;
use super::super::qga::reply::{FilesystemTrimmed, FilesystemsTrimmed, MemoryBlockSet};
use super::super::qga::{Id, QgaError};
use super::{Running, Session, Stop};

/// An act that runs, and what is known of its end so far.
#[derive(Debug)]
pub(super) struct Acting {
    pub(super) running: Running,
    so_far: SoFar,
}

/// Which act, and what its reply will say.
#[derive(Debug)]
enum SoFar {
    Trimmed(Vec<Trimmed>),
    /// Sleep: success has no reply.
    Slept,
    /// Processors: the reply is their number.
    Switched,
    BlocksSet(Vec<BlockSet>),
}

impl Session {
    pub(super) fn trim(&mut self, minimum: u64, id: Id, channel: &Channel) -> Result<(), Stop> {
        let begun = self.broker.trim(minimum);
        self.begun(begun, SoFar::Trimmed(Vec::new()), id, channel)
    }

    pub(super) fn suspend(&mut self, mode: SuspendMode, id: Id, channel: &Channel) -> Result<(), Stop> {
        let begun = self.broker.suspend(mode);
        self.begun(begun, SoFar::Slept, id, channel)
    }

    pub(super) fn set_vcpus(&mut self, vcpus: Vec<Switch>, id: Id, channel: &Channel) -> Result<(), Stop> {
        let begun = self.broker.set_vcpus(vcpus);
        self.begun(begun, SoFar::Switched, id, channel)
    }

    pub(super) fn set_memory_blocks(&mut self, blocks: Vec<Switch>, id: Id, channel: &Channel) -> Result<(), Stop> {
        let begun = self.broker.set_memory_blocks(blocks);
        self.begun(begun, SoFar::BlocksSet(Vec::new()), id, channel)
    }

    fn begun(
        &mut self,
        begun: Result<Result<(), String>, BrokerLost>,
        so_far: SoFar,
        id: Id,
        channel: &Channel,
    ) -> Result<(), Stop> {
        match begun? {
            Ok(()) => {
                self.acting = Some(Acting { running: Running::Owed(id), so_far });
                Ok(())
            }
            Err(why) => self.fail(channel, &QgaError::Told(why), &id),
        }
    }

    pub(super) fn trimmed(&mut self, more: Vec<Trimmed>) {
        if let Some(Acting { so_far: SoFar::Trimmed(all), .. }) = &mut self.acting {
            all.extend(more);
        }
    }

    pub(super) fn blocks_set(&mut self, more: Vec<BlockSet>) {
        if let Some(Acting { so_far: SoFar::BlocksSet(all), .. }) = &mut self.acting {
            all.extend(more);
        }
    }

    pub(super) fn act_done(&mut self, outcome: Result<u64, String>, channel: Option<&Channel>) -> Result<(), Stop> {
        let Some(Acting { running, so_far }) = self.acting.take() else { return Ok(()) };
        if let (Running::Owed(id), Some(channel)) = (running, channel) {
            match (outcome, so_far) {
                (Err(why), _) => self.fail(channel, &QgaError::Told(why), &id)?,
                (Ok(_), SoFar::Slept) => {}
                (Ok(count), SoFar::Switched) => self.succeed(channel, &count, &id)?,
                (Ok(_), SoFar::Trimmed(all)) => {
                    let paths = all.iter().map(FilesystemTrimmed::from).collect();
                    self.succeed(channel, &FilesystemsTrimmed { paths }, &id)?;
                }
                (Ok(_), SoFar::BlocksSet(all)) => {
                    let blocks: Vec<_> = all.iter().map(MemoryBlockSet::from).collect();
                    self.succeed(channel, &blocks, &id)?;
                }
            }
        }
        self.answer_waiting(channel)
    }
}
