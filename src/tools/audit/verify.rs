//! Whether a log is whole: every record numbered one above, and naming the hash
//! of, the record before it, over all files.
//!
//! Trust: none. What a chain inside the file cannot show: a cut end, and a log
//! that somebody with root wrote anew from some record on. For these the head
//! is printed, to be compared with a head that left the machine.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use postern_core::audit::{Chain, Hash, Torn, is_whole, sequence_of};

use super::lines::{self, Input, Link, Part};

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

/// How a log is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The line is not what was written.
    Edited,
    /// Records with these numbers are missing before the line.
    Removed {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// The record stands in another place than it was written in.
    Swapped,
    /// The line is only a part of a record, and no later record explains it.
    Cut,
    /// The line begins a chain of its own.
    Restarted,
    /// There is no record at all.
    Empty,
}

/// The first place where a log is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Broken {
    /// Where.
    pub place: Place,
    /// How.
    pub kind: Kind,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.place.file.display(), self.place.line)?;
        match self.kind {
            Kind::Edited => f.write_str("edited: this line is not what was written"),
            Kind::Removed { from, to } if from == to => write!(f, "removed: record {from} is missing before this line"),
            Kind::Removed { from, to } => write!(f, "removed: records {from} to {to} are missing before this line"),
            Kind::Swapped => f.write_str("swapped: this record was written in another place; are files oldest first?"),
            Kind::Cut => f.write_str("cut: this line is only part of a record, and no later record explains it"),
            Kind::Restarted => f.write_str("restarted: this record begins another chain; are files oldest first?"),
            Kind::Empty => f.write_str("empty: there is no record"),
        }
    }
}

/// Why a log is not known to be whole.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not.
    #[error("broken: {0}")]
    Broken(#[from] Broken),
    /// A file cannot be read.
    #[error("cannot read {file}: {source}", file = file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A log that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many files.
    pub files: usize,
    /// How many records.
    pub records: u64,
    /// Number of the first record.
    pub first: u64,
    /// Number of the last record.
    pub last: u64,
    /// Hash of the last record.
    pub head: Hash,
    /// Records that the log itself says were lost.
    pub lost: u64,
    /// Torn lines that the record behind them explains.
    pub torn: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, records, first, last, head, lost, torn } = self;
        let s = |count: u64| if count == 1 { "" } else { "s" };
        write!(f, "whole: {records} record{} ({first} to {last}) in {files} file{}", s(*records), s(*files as u64))?;
        if *first > 1 {
            write!(f, "; older ones were not given")?;
        }
        if *lost > 0 {
            write!(f, "; {lost} event{} said to be lost", s(*lost))?;
        }
        if *torn > 0 {
            write!(f, "; {torn} torn write{} explained", s(*torn))?;
        }
        write!(f, "\nhead: {last} {head}")
    }
}

/// Checks log files, oldest first.
pub fn verify<P: AsRef<Path>>(files: &[P]) -> Result<Verified, Problem> {
    verify_and(files, &mut |_, _| {})
}

/// As [`verify`], and has each record that follows the one before, and its line,
/// `heard`.
pub(super) fn verify_and<P: AsRef<Path>>(
    files: &[P],
    heard: &mut dyn FnMut(&Link, &[u8]),
) -> Result<Verified, Problem> {
    check(&mut Lines::new(files, &mut |_| {}), heard)
}

/// As [`verify`], and has every line of all files `seen`, whatever it is, those
/// behind the first break too.
pub(super) fn verify_and_see<P: AsRef<Path>>(files: &[P], seen: &mut dyn FnMut(&[u8])) -> Result<Verified, Problem> {
    let mut reader = Lines::new(files, seen);
    let verdict = check(&mut reader, &mut |_, _| {});
    if let Err(Problem::Broken(_)) = verdict {
        while reader.advance()? {}
    }
    verdict
}

fn check<P: AsRef<Path>>(reader: &mut Lines<'_, P>, heard: &mut dyn FnMut(&Link, &[u8])) -> Result<Verified, Problem> {
    let files = reader.files;
    let mut state = State::default();
    // The record before, which is not parsed where the next one vouches for it.
    let mut before: Option<(Link, Vec<u8>)> = None;
    while reader.advance()? {
        let Some(link) = reader.link() else {
            state.unexplained.get_or_insert_with(|| (reader.at, kind_of_rest(&reader.line)));
            state.rest.add(&reader.line);
            continue;
        };
        let last = state.last;
        if let Err(misfit) = state.accept(reader.at, &link) {
            return Err(state.blame(misfit, &link, reader)?.into());
        }
        heard(&link, &reader.line);
        // Another run went on behind whatever stood there: its hash vouches for
        // the bytes, not for what they are.
        if link.opens && before.as_ref().is_some_and(|(link, line)| !lines::is_record(line, link)) {
            return Err(Broken { place: reader.place(last), kind: Kind::Edited }.into());
        }
        let (_, mut line) = before.take().unwrap_or_else(|| (link.clone(), Vec::new()));
        std::mem::swap(&mut line, &mut reader.line);
        before = Some((link, line));
    }
    if let Some((at, kind)) = state.unexplained {
        return Err(Broken { place: reader.place(at), kind }.into());
    }
    let (Some(chain), Some(first)) = (state.chain, state.first) else {
        let file = files.first().map_or_else(PathBuf::new, |file| file.as_ref().to_owned());
        return Err(Broken { place: Place { file, line: 1 }, kind: Kind::Empty }.into());
    };
    if let Some((last, line)) = before
        && !lines::is_record(&line, &last)
    {
        return Err(Broken { place: reader.place(state.last), kind: Kind::Edited }.into());
    }
    Ok(Verified {
        files: files.len(),
        records: state.records,
        first,
        last: chain.next - 1,
        head: chain.previous,
        lost: state.lost,
        torn: state.torn,
    })
}

/// What a line that is no record was, most likely.
fn kind_of_rest(line: &[u8]) -> Kind {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if sequence_of(line).is_some() && is_whole(line) { Kind::Edited } else { Kind::Cut }
}

/// How a record does not follow the one before.
#[derive(Clone, Copy)]
enum Misfit {
    /// The number is right, the hash is not.
    Hash,
    /// The hash is right, the number or the account of torn bytes is not.
    Number,
    /// Both are wrong.
    Both,
    /// Bytes before the record are none, and it does not account for them.
    Rest,
}

#[derive(Default)]
struct State {
    chain: Option<Chain>,
    first: Option<u64>,
    /// Where the last record stands.
    last: At,
    /// Bytes since the last record that are none, and where they begin.
    rest: Torn,
    unexplained: Option<(At, Kind)>,
    records: u64,
    lost: u64,
    torn: u64,
}

impl State {
    fn accept(&mut self, at: At, link: &Link) -> Result<(), Misfit> {
        let explained = match &link.torn {
            Some((bytes, hash)) => self.rest.bytes() == *bytes && self.rest.hash() == *hash,
            None => self.rest.bytes() == 0,
        };
        match self.chain {
            Some(chain) => {
                let number = link.sequence == chain.next;
                let hash = link.previous == chain.previous;
                match (number, hash) {
                    (true, true) if explained => {}
                    _ if self.rest.bytes() > 0 => return Err(Misfit::Rest),
                    (true, false) => return Err(Misfit::Hash),
                    (_, true) => return Err(Misfit::Number),
                    (false, false) => return Err(Misfit::Both),
                }
            }
            // What stood before the first line that was given is not known,
            // unless it says that nothing did.
            None if self.rest.bytes() > 0 && !explained => return Err(Misfit::Rest),
            None if link.sequence == 1 && link.previous != Hash::NONE => return Err(Misfit::Number),
            None => self.first = Some(link.sequence),
        }
        self.torn += u64::from(self.rest.bytes() > 0);
        self.rest = Torn::default();
        self.unexplained = None;
        self.chain = Some(Chain { next: link.sequence.saturating_add(1), previous: link.hash });
        self.last = at;
        self.records += 1;
        self.lost = self.lost.saturating_add(link.lost);
        Ok(())
    }

    /// Says what happened, by looking at what follows.
    fn blame<P: AsRef<Path>>(
        &mut self,
        misfit: Misfit,
        link: &Link,
        reader: &mut Lines<'_, P>,
    ) -> Result<Broken, Problem> {
        let expected = self.chain.map_or(1, |chain| chain.next);
        let place = reader.place(reader.at);
        if matches!(misfit, Misfit::Rest)
            && let Some((at, kind)) = self.unexplained.take()
        {
            return Ok(Broken { place: reader.place(at), kind });
        }
        if matches!(misfit, Misfit::Number | Misfit::Rest) {
            return Ok(Broken { place, kind: Kind::Edited });
        }
        if link.sequence == 1 && link.previous == Hash::NONE {
            return Ok(Broken { place, kind: Kind::Restarted });
        }
        if matches!(misfit, Misfit::Hash) {
            // If the next record vouches for this line, the one before changed.
            let vouched = reader.next_link()?.is_none_or(|next| next.previous == link.hash);
            let place = if vouched { reader.place(self.last) } else { place };
            return Ok(Broken { place, kind: Kind::Edited });
        }
        if link.sequence < expected {
            return Ok(Broken { place, kind: Kind::Swapped });
        }
        while let Some(next) = reader.next_link()? {
            if next.sequence == expected {
                return Ok(Broken { place, kind: Kind::Swapped });
            }
        }
        Ok(Broken { place, kind: Kind::Removed { from: expected, to: link.sequence - 1 } })
    }
}

/// A line of the files: index of the file, number of the line from 1.
#[derive(Clone, Copy, Default)]
struct At {
    file: usize,
    line: u64,
}

/// The lines of all files, one after another.
struct Lines<'a, P> {
    files: &'a [P],
    at: At,
    open: Option<Input>,
    line: Vec<u8>,
    /// Whether `line` is more of a line that was too long.
    inside: bool,
    seen: &'a mut dyn FnMut(&[u8]),
}

impl<'a, P: AsRef<Path>> Lines<'a, P> {
    fn new(files: &'a [P], seen: &'a mut dyn FnMut(&[u8])) -> Self {
        Self { files, at: At::default(), open: None, line: Vec::new(), inside: false, seen }
    }

    /// Goes to the next line, or part of one, if there is one.
    fn advance(&mut self) -> Result<bool, Problem> {
        loop {
            let Some(file) = self.files.get(self.at.file).map(AsRef::as_ref) else { return Ok(false) };
            let unreadable = |source| Problem::Unreadable { file: file.to_owned(), source };
            let reader = match &mut self.open {
                Some(reader) => reader,
                None => self.open.insert(lines::open(file).map_err(unreadable)?),
            };
            let part = lines::read(reader, &mut self.line).map_err(unreadable)?;
            self.inside = part == Part::More;
            match part {
                Part::Line => {
                    self.at.line += 1;
                    (self.seen)(&self.line);
                    return Ok(true);
                }
                Part::More => return Ok(true),
                Part::End => {}
            }
            self.open = None;
            self.at = At { file: self.at.file + 1, line: 0 };
        }
    }

    /// What the chain needs of the line, if it is a record.
    fn link(&self) -> Option<Link> {
        if self.inside { None } else { lines::link(&self.line) }
    }

    /// A line as it is told to people.
    fn place(&self, At { file, line }: At) -> Place {
        Place { file: self.files.get(file).map_or_else(PathBuf::new, |file| file.as_ref().to_owned()), line }
    }

    fn next_link(&mut self) -> Result<Option<Link>, Problem> {
        while self.advance()? {
            if let Some(link) = self.link() {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }
}
