//! Requests that wait: behind a thaw those that are not safe before its end; behind
//! an act that takes long another such act, or a freeze, as they would behind stock,
//! and what comes behind these with them: a thaw must not go before its freeze.
//!
//! Trust: requests are the host's, in type; how many bytes of them wait is bounded.

use postern_core::messages::Denial;

use super::super::channel::Channel;
use super::super::qga::{QgaError, Request};
use super::{Running, Session, Stop};

/// Requests that wait for the end of a thaw take so many bytes, or are one.
const WAITING_BYTES: usize = 64 << 10;

impl Session {
    /// Answers what waited. One of them may be another thaw or act, for which the
    /// rest waits again.
    pub(super) fn answer_waiting(&mut self, channel: Option<&Channel>) -> Result<(), Stop> {
        for message in std::mem::take(&mut self.waiting) {
            let Some(channel) = channel else { break };
            self.answer(Ok(&message), channel)?;
        }
        Ok(())
    }

    /// Whether a request waits for the end of the act that runs, or of the thaw: one that is not
    /// safe before, a second thaw, and, so that they are answered in order, errors
    /// behind those.
    pub(super) fn must_wait(&self, request: &Result<Request<'_>, QgaError>) -> bool {
        if self.waits_for_act(request) {
            return true;
        }
        // A freeze that is being ended by the thaw refuses what a freeze refuses.
        if self.freeze.is_some() {
            return false;
        }
        match (&self.thaw, request) {
            (Some(Running::Owed(_)), Ok(Request::FsfreezeThaw)) => true,
            (None, _) | (Some(_), Ok(_)) => false,
            (Some(_), Err(QgaError::CommandDisabled(name))) if self.why_disabled(name) == Denial::WhileFrozen => true,
            (Some(_), Err(_)) => !self.waiting.is_empty(),
        }
    }

    pub(super) fn has_room_for(&self, message: &[u8]) -> bool {
        let taken: usize = self.waiting.iter().map(Vec::len).sum();
        self.waiting.is_empty() || taken + message.len() <= WAITING_BYTES
    }

    /// Whether a request waits for the end of the act that runs.
    fn waits_for_act(&self, request: &Result<Request<'_>, QgaError>) -> bool {
        let begins = matches!(
            request,
            Ok(Request::Fstrim { .. }
                | Request::Suspend { .. }
                | Request::SetVcpus { .. }
                | Request::SetMemoryBlocks { .. }
                | Request::FsfreezeFreeze
                | Request::FsfreezeFreezeList { .. })
        );
        let always = matches!(
            request,
            Ok(Request::Ping
                | Request::Sync { .. }
                | Request::SyncDelimited { .. }
                | Request::Info
                | Request::FsfreezeStatus)
        );
        self.acting.is_some() && (begins || !(self.waiting.is_empty() || always))
    }
}
