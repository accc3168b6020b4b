//! Reading, writing and seeking the host's files, piece by piece.
//!
//! Trust: handles, counts, offsets and base64 are the host's.

use nix::unistd::Whence as Origin;

use super::super::channel::Channel;
use super::super::qga::reply;
use super::super::qga::{Id, QgaError, Whence, base64};
use super::{Session, Stop};

/// Largest count of one read, stock's own limit.
const READ_MAX: i64 = 48 << 20;
/// So much of a file is read, encoded and sent at a time, in bytes.
const PIECE: usize = 96 << 10;
/// So much of a write is decoded and written at a time, in groups of three
/// bytes: more than any known client sends at once.
const WRITE_GROUPS: usize = 512 << 10;

impl Session {
    /// Reads, encodes and sends piece by piece: a read of 48 MiB needs no more
    /// memory than one of 96 KiB. An error behind the first piece ends the
    /// reply early, with what was read; the next read meets it.
    pub(super) fn read(&mut self, handle: i64, count: i64, id: &Id, channel: &Channel) -> Result<(), Stop> {
        let Some(file) = self.files.get(handle) else {
            return self.fail(channel, &QgaError::Handle(handle), id);
        };
        file.count_call();
        let Some(wanted) = usize::try_from(count).ok().filter(|_| count <= READ_MAX) else {
            return self.fail(channel, &QgaError::Count(count), id);
        };
        if wanted > self.part.limits.read as usize {
            return self.fail(channel, &QgaError::ReadLimit { count, most: self.part.limits.read }, id);
        }
        let first = wanted.min(PIECE);
        if self.data.len() < first {
            self.data.resize(first, 0);
        }
        let mut got = match file.read(&mut self.data[..first]) {
            Ok(got) => got,
            Err(errno) => return self.fail(channel, &QgaError::Read(errno), id),
        };
        reply::read_head(&mut self.out);
        let mut encoder = base64::Encoder::default();
        let mut total = 0;
        loop {
            total += got;
            encoder.push(&self.data[..got], &mut self.out);
            let next = (wanted - total).min(PIECE);
            if next == 0 || got < PIECE {
                break;
            }
            let sent = channel.write_all(&self.out, &mut self.broker);
            self.out.clear();
            sent?;
            // Each piece may have waited for a slow server.
            self.broker.attend()?;
            got = file.read(&mut self.data[..next]).unwrap_or(0);
            if got == 0 {
                break;
            }
        }
        let eof = file.at_end();
        encoder.finish(&mut self.out);
        reply::read_tail(&mut self.out, total as u64, eof, id);
        self.send(channel)
    }

    /// Decodes and writes piece by piece: a write of 48 MiB needs no more memory
    /// beside its message than one of 1.5 MiB. All of it is good, or nothing is
    /// written. A write that fails behind the first piece ends early, with what
    /// was written; the next one meets the error.
    pub(super) fn write(&mut self, handle: i64, text: &str, count: Option<i64>) -> Result<usize, QgaError> {
        let file = self.files.get(handle).ok_or(QgaError::Handle(handle))?;
        file.count_call();
        let mut text = base64::Encoded::new(text);
        text.decode_next(WRITE_GROUPS, &mut self.data)?;
        text.check_rest()?;
        let mut left = match count {
            None => usize::MAX,
            Some(count) => {
                let fits = |wanted: &usize| *wanted <= text.decoded_length();
                usize::try_from(count).ok().filter(fits).ok_or(QgaError::Count(count))?
            }
        };
        let mut written = 0;
        while left > 0 && !self.data.is_empty() {
            self.data.truncate(left);
            let count = match file.write(&self.data) {
                Err(errno) if written == 0 => return Err(QgaError::Write(errno)),
                outcome => outcome.unwrap_or(0),
            };
            written += count;
            left -= count;
            // Each piece may have waited for a slow server. A broker that is gone is
            // met again.
            if count < self.data.len() || self.broker.attend().is_err() {
                break;
            }
            text.decode_next(WRITE_GROUPS, &mut self.data)?;
        }
        Ok(written)
    }

    pub(super) fn seek(&mut self, handle: i64, offset: i64, whence: Whence) -> Result<i64, QgaError> {
        let file = self.files.get(handle).ok_or(QgaError::Handle(handle))?;
        file.count_call();
        let origin = match whence {
            Whence::Set => Origin::SeekSet,
            Whence::Cur => Origin::SeekCur,
            Whence::End => Origin::SeekEnd,
            Whence::Other(code) => return Err(QgaError::Whence(code)),
        };
        file.seek(offset, origin).map_err(QgaError::Seek)
    }
}
