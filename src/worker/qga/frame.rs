//! Framing: bytes of the channel → whole messages, in linear time over any
//! chunking, in memory bounded by `limits.message`.
//!
//! It finds the end of a JSON value as stock does, by tokens and by counting
//! brackets, so that a message needs no newline and a reply leaves as soon as
//! the closing brace arrived. No byte is looked at twice: the lexer's state
//! survives between chunks, and a long string is scanned in blocks.
//!
//! **Recovery.** A byte that is no JSON drops the half message and all up to
//! the next control character (not tab), bracket, colon or comma, as in stock.
//! A message over a limit (length, string, nesting, tokens) is answered once;
//! what is left of it is dropped in constant memory until its own closing
//! bracket, a newline or 0xFF, whichever comes first (once the rest turned out
//! to be no JSON, only the latter two). So a request on a new line is always
//! answered; stock waits for 0xFF. 0xFF itself drops the half message and is
//! never answered.
//!
//! Trust: reads hostile bytes. What comes out is a slice that is a sequence of
//! JSON tokens with balanced (or overclosed) brackets, no more.

use postern_core::policy::{Limits, TOKENS_MAX};

use super::error::{QgaError, quoted_bytes};

/// Size of the buffer while messages are small, and the least that a bigger one
/// has free beyond the largest message.
const CHUNK: usize = 64 << 10;
/// Least free space that [`Decoder::space`] gives.
const SPACE_MIN: usize = 16 << 10;
/// A buffer up to this size is kept for the next message; a larger one is given
/// back. Enough for writes of 1 MiB, whose base64 is 1.4 MB.
const KEEP: usize = 2 << 20;

/// Where the lexer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between tokens.
    Between,
    /// Inside a string that ends with this quote.
    String(u8),
    /// After a backslash inside such a string.
    Escape(u8),
    /// Inside a word.
    Keyword,
    /// Inside a number.
    Number(Number),
    /// After a byte that is no JSON.
    Recovery,
    /// The rest of the line is dropped.
    Line,
}

/// What the number has had so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Sign,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    /// The state after `byte`; `Ok(None)` if the number ended before it,
    /// `Err` if no number goes on so.
    const fn after(self, byte: u8) -> Result<Option<Self>, ()> {
        Ok(Some(match (self, byte) {
            (Self::Sign, b'0') => Self::Zero,
            (Self::Sign, b'1'..=b'9') | (Self::Digits, b'0'..=b'9') => Self::Digits,
            (Self::Zero | Self::Digits, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            // No exponent after a bare zero: stock ends the number there.
            (Self::Digits | Self::Fraction, b'e' | b'E') => Self::Exponent,
            (Self::Exponent, b'+' | b'-') => Self::ExponentSign,
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => Self::ExponentDigits,
            (Self::Zero, b'0'..=b'9') | (Self::Sign | Self::Point | Self::Exponent | Self::ExponentSign, _) => {
                return Err(());
            }
            _ => return Ok(None),
        }))
    }
}

/// What one step of the lexer found.
enum Step {
    /// Nothing to tell yet.
    Go,
    /// `start..scan` is a whole message.
    Message,
    /// An error to answer.
    Error(QgaError),
}

/// Cuts the channel's bytes into messages.
///
/// Call [`space`](Self::space), read into it, [`advance`](Self::advance) by
/// what was read, then [`next_message`](Self::next_message) until it gives `None`.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// `start..end` was received and is not done with.
    buffer: Vec<u8>,
    /// First byte of the message under way.
    start: usize,
    /// First byte that the lexer has not seen.
    scan: usize,
    /// End of what was received.
    end: usize,
    /// First byte of the token under way; stale while `skipping`.
    token: usize,
    state: State,
    /// Opened minus closed. 64 bits cannot overflow by counting bytes.
    braces: i64,
    brackets: i64,
    /// Tokens of the message under way.
    tokens: u32,
    /// A message over a limit was answered; its rest is being dropped.
    skipping: bool,
    #[cfg(test)]
    pub(super) looked_at: usize,
}

impl Decoder {
    /// A decoder with nothing received.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            buffer: Vec::new(),
            start: 0,
            scan: 0,
            end: 0,
            token: 0,
            state: State::Between,
            braces: 0,
            brackets: 0,
            tokens: 0,
            skipping: false,
            #[cfg(test)]
            looked_at: 0,
        }
    }

    /// Drops all that was received: the channel's other end has changed.
    pub fn reset(&mut self) {
        *self = Self::new(self.limits.clone());
    }

    /// Whether a message is half received.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        self.skipping || self.tokens > 0 || !matches!(self.state, State::Between | State::Recovery)
    }

    /// Memory held for received bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.buffer.capacity()
    }

    /// Room to read into, never empty. Its old content is whatever was there.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.scan, self.end, self.token) = (0, 0, 0, 0);
            if self.buffer.is_empty() {
                self.buffer = vec![0; CHUNK];
            }
        } else if self.buffer.len() - self.end < SPACE_MIN {
            // Moving costs no more than what was consumed before, growing no
            // more than what has arrived: both linear over all.
            let largest = self.limits.message as usize + CHUNK;
            if self.start < self.buffer.len() / 2 && self.buffer.len() < largest {
                self.buffer.resize((self.buffer.len() * 2).min(largest), 0);
            }
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.scan -= self.start;
                self.end -= self.start;
                self.token = self.token.saturating_sub(self.start);
                self.start = 0;
            }
        }
        &mut self.buffer[self.end..]
    }

    /// Says that the first `read` bytes of [`space`](Self::space) were received.
    pub fn advance(&mut self, read: usize) {
        self.end = (self.end + read).min(self.buffer.len());
    }

    /// The next whole message, or the error that the host must be told of;
    /// `None` when more bytes are needed.
    pub fn next_message(&mut self) -> Option<Result<&[u8], QgaError>> {
        loop {
            if self.is_dropping() {
                self.start = self.scan;
            }
            // A message may fill the limit but not pass it, wherever chunks end.
            let longest = self.start.saturating_add(self.limits.message as usize);
            let stop = self.end.min(longest);
            let found = if self.scan < stop {
                self.step(stop)
            } else if self.scan == longest {
                self.over(QgaError::TooLong(self.limits.message))
            } else {
                // What one large message needed is not kept until the host
                // speaks again.
                if self.start == self.end && self.buffer.len() > KEEP {
                    self.buffer = Vec::new();
                }
                return None;
            };
            match found {
                Step::Go => {}
                Step::Message => {
                    let message = self.start..self.scan;
                    self.start = self.scan;
                    self.forget();
                    return Some(Ok(&self.buffer[message]));
                }
                Step::Error(error) => return Some(Err(error)),
            }
        }
    }

    /// Whether bytes before `scan` are not needed any more.
    fn is_dropping(&self) -> bool {
        self.skipping
            || matches!(self.state, State::Recovery | State::Line)
            || (self.state == State::Between && self.tokens == 0)
    }

    /// Looks at `scan..stop`, at least one byte.
    fn step(&mut self, stop: usize) -> Step {
        match self.state {
            State::Between => self.between(),
            State::String(quote) => self.string(quote, stop),
            State::Escape(quote) => {
                let byte = self.take();
                self.state = State::String(quote);
                if matches!(byte, 0x20..=0xFD) { Step::Go } else { self.stray(byte) }
            }
            State::Keyword => {
                let word = self.buffer[self.scan..stop].iter().take_while(|byte| byte.is_ascii_lowercase()).count();
                self.pass(word);
                if self.scan == stop { Step::Go } else { self.token_ends() }
            }
            State::Number(number) => self.number(number, stop),
            State::Recovery => {
                let dropped = self.buffer[self.scan..stop].iter().take_while(|&&byte| !resets(byte)).count();
                self.pass(dropped);
                if self.scan < stop {
                    self.state = State::Between;
                }
                Step::Go
            }
            State::Line => {
                let line = &self.buffer[self.scan..stop];
                let found = memchr::memchr2(b'\n', 0xFF, line);
                self.pass(found.map_or(line.len(), |at| at + 1));
                if found.is_some() {
                    self.forget();
                }
                Step::Go
            }
        }
    }

    fn between(&mut self) -> Step {
        self.token = self.scan;
        let byte = self.take();
        match byte {
            b'\n' if self.skipping => {
                self.forget();
                return Step::Go;
            }
            b' ' | b'\t' | b'\r' | b'\n' => return Step::Go,
            b'{' => self.braces += 1,
            b'}' => self.braces -= 1,
            b'[' => self.brackets += 1,
            b']' => self.brackets -= 1,
            b',' | b':' => {}
            b'"' | b'\'' => {
                self.state = State::String(byte);
                return Step::Go;
            }
            b'-' | b'0'..=b'9' => {
                self.state = State::Number(match byte {
                    b'-' => Number::Sign,
                    b'0' => Number::Zero,
                    _ => Number::Digits,
                });
                return Step::Go;
            }
            b'a'..=b'z' => {
                self.state = State::Keyword;
                return Step::Go;
            }
            _ => return self.stray(byte),
        }
        self.token_ends()
    }

    fn string(&mut self, quote: u8, stop: usize) -> Step {
        // One byte past the limit, if it is no quote, says that it is passed.
        let longest = if self.skipping { usize::MAX } else { self.token + 2 + self.limits.string as usize };
        let plain = plain_prefix(&self.buffer[self.scan..stop.min(longest).max(self.scan)], quote);
        self.pass(plain);
        if self.scan >= longest {
            return self.over(QgaError::StringTooLong(self.limits.string));
        }
        if self.scan == stop {
            return Step::Go;
        }
        match self.take() {
            b'\\' => {
                self.state = State::Escape(quote);
                Step::Go
            }
            byte if byte == quote => self.token_ends(),
            byte => self.stray(byte),
        }
    }

    fn number(&mut self, mut number: Number, stop: usize) -> Step {
        while self.scan < stop {
            match number.after(self.buffer[self.scan]) {
                Ok(Some(next)) => number = next,
                Ok(None) => return self.token_ends(),
                Err(()) => {
                    let byte = self.take();
                    return self.stray(byte);
                }
            }
            self.pass(1);
        }
        self.state = State::Number(number);
        Step::Go
    }

    /// A token ended before `scan`.
    fn token_ends(&mut self) -> Step {
        self.state = State::Between;
        let open = (self.braces > 0 || self.brackets > 0) && self.braces >= 0 && self.brackets >= 0;
        if self.skipping {
            if !open {
                self.forget();
            }
            return Step::Go;
        }
        self.tokens += 1;
        if self.tokens > TOKENS_MAX {
            self.over(QgaError::TooManyTokens)
        } else if self.braces + self.brackets > i64::from(self.limits.nesting) {
            self.over(QgaError::TooDeep(self.limits.nesting))
        } else if open {
            Step::Go
        } else {
            Step::Message
        }
    }

    /// The byte before `scan`, `byte`, makes the token no JSON.
    fn stray(&mut self, byte: u8) -> Step {
        let (skipping, token) = (self.skipping, self.token);
        self.forget();
        self.state = State::Recovery;
        match (byte, skipping) {
            (0xFF, _) => Step::Go,
            (b'\n', true) => {
                self.state = State::Between;
                Step::Go
            }
            (_, true) => {
                self.state = State::Line;
                self.skipping = true;
                Step::Go
            }
            (_, false) => Step::Error(QgaError::Stray(quoted_bytes(&self.buffer[token..self.scan]))),
        }
    }

    /// The message passed a limit: drops what is left of it.
    fn over(&mut self, error: QgaError) -> Step {
        self.skipping = true;
        Step::Error(error)
    }

    /// Starts afresh with the next byte.
    fn forget(&mut self) {
        self.state = State::Between;
        (self.braces, self.brackets, self.tokens, self.skipping) = (0, 0, 0, false);
    }

    fn take(&mut self) -> u8 {
        let byte = self.buffer[self.scan];
        self.pass(1);
        byte
    }

    fn pass(&mut self, bytes: usize) {
        self.scan += bytes;
        #[cfg(test)]
        {
            // One more for the byte that ended a run.
            self.looked_at += bytes + 1;
        }
    }
}

/// Bytes at which the lexer starts afresh after an error.
const fn resets(byte: u8) -> bool {
    matches!(byte, 0..=0x08 | 0x0A..=0x1F | 0xFE | 0xFF | b'{' | b'}' | b'[' | b']' | b':' | b',')
}

/// How many bytes stand before the first that means something inside a string:
/// its quote, a backslash, a control character, 0xFE, 0xFF. In blocks without a
/// branch, which the compiler turns into vector instructions; as fast as a
/// search for two bytes, and it needs no second pass for the control characters.
#[expect(clippy::needless_bitwise_bool, reason = "no branch inside a block")]
fn plain_prefix(bytes: &[u8], quote: u8) -> usize {
    const BLOCK: usize = 64;
    let special = |byte: u8| (byte == quote) | (byte == b'\\') | (byte.wrapping_add(2) < 0x22);
    let blocks =
        bytes.chunks_exact(BLOCK).take_while(|block| !block.iter().fold(false, |any, &byte| any | special(byte)));
    let skipped = blocks.count() * BLOCK;
    skipped + bytes[skipped..].iter().take_while(|&&byte| !special(byte)).count()
}
