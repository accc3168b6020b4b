//! A mistake in a policy file: where it is, what is wrong, what to write.
//!
//! Trust: quotes policy files, so control characters are replaced before they
//! reach a terminal. Made by the other files of this room.

use std::fmt;
use std::path::PathBuf;

use super::{Source, keys};
use crate::sys::terminal::is_harmful;

/// What sort of mistake, for tests and for the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the message of each says more than a comment could")]
pub enum Kind {
    // What a schema can see.
    UnknownKey,
    UnknownTable,
    WrongType,
    MissingKey,
    UnknownVersion,
    UnknownChoice,
    UnknownCommand,
    NotOffered,
    NotRedactable,
    RelativePath,
    NotCanonical,
    Repeated,
    EmptyList,
    BadMode,
    BadDuration,
    BadSize,
    BadName,
    OutOfRange,
    TooMany,
    TooLong,
    // What takes more than one file's shape to see.
    Syntax,
    NotUtf8,
    TooLarge,
    TextOutOfRange,
    NamedTwice,
    ShutdownWithoutModes,
    FreezeWithoutThaw,
    UnknownAccount,
    UnfitAccount,
    SharedAccount,
    ExceptOutside,
    DuplicateRule,
    UselessRule,
    MissingPath,
    ThroughLink,
    CreateOnFile,
    WrongObject,
    CoversOwn,
    KernelTree,
    ChannelPath,
    // Who could have changed the file.
    NoPolicy,
    Unreadable,
    OpenToOthers,
    WrongOwner,
    NotRegular,
    DanglingLink,
    // What is only warned of.
    NoSync,
    IdleSetting,
    IncompleteFamily,
    IgnoredFile,
    RawDevice,
    NotHere,
}

impl Kind {
    /// Whether the JSON Schema sees it too: it lies in the shape of one file,
    /// not in the system or in how files and settings meet.
    #[must_use]
    pub const fn in_schema(self) -> bool {
        matches!(
            self,
            Self::UnknownKey
                | Self::UnknownTable
                | Self::WrongType
                | Self::MissingKey
                | Self::UnknownVersion
                | Self::UnknownChoice
                | Self::UnknownCommand
                | Self::NotOffered
                | Self::NotRedactable
                | Self::RelativePath
                | Self::NotCanonical
                | Self::Repeated
                | Self::EmptyList
                | Self::BadMode
                | Self::BadDuration
                | Self::BadSize
                | Self::BadName
                | Self::OutOfRange
                | Self::TooMany
                | Self::TooLong
        )
    }
}

/// One mistake. Displays as `file:line:column: what; help`, then the line and
/// a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What sort.
    pub kind: Kind,
    /// Whether the policy may be used all the same.
    pub warning: bool,
    /// The policy file.
    pub file: PathBuf,
    /// From 1; 1 where the file as a whole is meant.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// What to write, or do, instead.
    pub help: String,
    /// What is shown of the line, and how many characters the mistake spans;
    /// `None` where the file as a whole is meant.
    excerpt: Option<(String, usize)>,
}

/// How many characters of a line are shown.
const SHOWN: usize = 160;

/// How many characters of a line are left out before those that are shown: of a
/// long line, the part around the mistake is.
const fn skipped(column: usize) -> usize {
    if column > SHOWN / 2 { column - SHOWN / 4 } else { 0 }
}

/// Most mistakes, and most warnings, that are told of; the rest is counted. A
/// file of the largest size can hold a million, each of which costs a look
/// through the file.
pub(super) const MOST: usize = 100;

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.warning { "warning: " } else { "" };
        let (file, line, column) = (self.file.display(), self.line, self.column);
        write!(f, "{file}:{line}:{column}: {severity}{}; {}", self.what, self.help)?;
        if let Some((shown, width)) = &self.excerpt {
            let skipped = skipped(column);
            let before = shown.chars().take(column - 1 - skipped);
            let pad: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let width = (*width).clamp(1, SHOWN - (column - 1 - skipped));
            write!(f, "\n    {shown}\n    {pad}{}", "^".repeat(width))?;
        }
        Ok(())
    }
}

/// A policy that postern does not start with: every mistake in it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", listed(.mistakes, *.more))]
pub struct PolicyError {
    /// At least one, in the order of the files.
    pub mistakes: Vec<Mistake>,
    /// What would have been warned of.
    pub warnings: Vec<Mistake>,
    /// How many more mistakes there are, at least, which nothing tells of.
    pub more: usize,
}

fn listed(mistakes: &[Mistake], more: usize) -> String {
    let mut text: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    if more > 0 {
        text.push(format!("and {more} more, which are not listed"));
    }
    let count = mistakes.len() + more;
    text.push(format!("{count} mistake{} in the policy", if count == 1 { "" } else { "s" }));
    text.join("\n")
}

/// A span of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) source: usize,
    start: usize,
    end: usize,
}

impl Place {
    pub(super) fn new(source: usize, span: std::ops::Range<usize>) -> Self {
        Self { source, start: span.start, end: span.end }
    }

    /// The source as a whole.
    pub(super) const fn whole(source: usize) -> Self {
        Self { source, start: 0, end: 0 }
    }
}

/// The sources and what was found wrong with them.
pub(super) struct Report {
    /// The built-in defaults first, then the files in the order of merging.
    pub(super) sources: Vec<Source>,
    mistakes: Vec<(usize, Mistake)>,
    /// Mistakes beyond [`MOST`], warnings not counted.
    pub(super) more: usize,
}

impl Report {
    /// With the built-in defaults as the first source.
    pub(super) fn new() -> Self {
        let defaults = Source { path: PathBuf::from("(built-in defaults)"), text: keys::defaults() };
        Self { sources: vec![defaults], mistakes: Vec::new(), more: 0 }
    }

    pub(super) fn error(&mut self, kind: Kind, place: Place, what: impl Into<String>, help: impl Into<String>) {
        self.add(kind, false, place, &what.into(), &help.into());
    }

    pub(super) fn warn(&mut self, kind: Kind, place: Place, what: impl Into<String>, help: impl Into<String>) {
        self.add(kind, true, place, &what.into(), &help.into());
    }

    /// A mistake with a file that is no source, because it was not read.
    pub(super) fn outside(
        &mut self,
        kind: Kind,
        warning: bool,
        file: PathBuf,
        what: impl Into<String>,
        help: impl Into<String>,
    ) {
        let (mut what, help) = (what.into(), help.into());
        if let Some(rest) = what.strip_prefix(&*file.to_string_lossy()).filter(|rest| rest.starts_with(' ')) {
            what = format!("this{rest}");
        }
        // One bad directory above several files is one mistake.
        let again = |other: &Mistake| other.what == what && (other.file == file || !what.starts_with("this "));
        if !self.mistakes.iter().any(|(_, other)| again(other)) {
            let mistake = Mistake { kind, warning, file, line: 1, column: 1, what, help, excerpt: None };
            self.mistakes.push((usize::MAX, mistake));
        }
    }

    fn add(&mut self, kind: Kind, warning: bool, place: Place, what: &str, help: &str) {
        if self.told(warning) >= MOST {
            self.more += usize::from(!warning);
            return;
        }
        let Source { path, text } = &self.sources[place.source];
        let start = floor(text, place.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let end = floor(text, place.end).clamp(start, line_end);
        let column = text[line_start..start].chars().count() + 1;
        let excerpt = (place.end > 0).then(|| {
            let line = text[line_start..line_end].trim_end_matches('\r');
            let shown = line.chars().skip(skipped(column)).take(SHOWN);
            let shown = shown.map(|c| if c == '\t' { c } else { harmless(c) }).collect();
            (shown, text[start..end].chars().count())
        });
        let mistake = Mistake {
            kind,
            warning,
            file: path.clone(),
            line: self.line(place),
            column,
            what: what.chars().map(harmless).collect(),
            help: help.chars().map(harmless).collect(),
            excerpt,
        };
        self.mistakes.push((place.source, mistake));
    }

    fn told(&self, warning: bool) -> usize {
        self.mistakes.iter().filter(|(_, mistake)| mistake.warning == warning).count()
    }

    /// Whether no more mistakes are told of: what only finds more of them may
    /// stop.
    pub(super) fn is_full(&self) -> bool {
        self.told(false) >= MOST
    }

    /// Whether a mistake was found so far that is no warning.
    pub(super) fn has_errors(&self) -> bool {
        self.mistakes.iter().any(|(_, mistake)| !mistake.warning)
    }

    /// Whether every file that counts could be read.
    pub(super) fn is_complete(&self) -> bool {
        self.mistakes.iter().all(|(source, mistake)| *source != usize::MAX || mistake.warning)
    }

    /// The line on which `place` begins, from 1.
    pub(super) fn line(&self, place: Place) -> usize {
        let text = &self.sources[place.source].text;
        text[..floor(text, place.start)].matches('\n').count() + 1
    }

    /// Errors and warnings in the order of the files and of their lines.
    pub(super) fn sorted(&mut self) -> (Vec<Mistake>, Vec<Mistake>) {
        let mut mistakes = std::mem::take(&mut self.mistakes);
        mistakes.sort_by_key(|(source, mistake)| (*source, mistake.line, mistake.column));
        mistakes.into_iter().map(|(_, mistake)| mistake).partition(|mistake| !mistake.warning)
    }
}

/// The nearest character boundary at or before `index`.
fn floor(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}

/// A character fit for a terminal.
fn harmless(character: char) -> char {
    if is_harmful(character) { char::REPLACEMENT_CHARACTER } else { character }
}

/// `text` in quotes, fit for a terminal.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(120).map(harmless).collect();
    format!("'{shown}'")
}

/// The candidate that `word` most likely stands for.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    candidates
        .into_iter()
        // As far apart as their lengths at least; comparing takes the product.
        .filter(|candidate| length.abs_diff(candidate.chars().count()) <= 4)
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).min(4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `'a', 'b' or 'c'`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("\"{only}\""),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(|word| format!("\"{word}\"")).collect();
            format!("{} or \"{last}\"", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_SOURCE, World, load_embedded};
    use super::*;

    /// As much of `piece`, with its number, as a file may hold; an eighth where code
    /// is slow.
    fn full(head: &str, piece: &str, tail: &str) -> String {
        let most = usize::try_from(MAX_SOURCE).unwrap() / if cfg!(debug_assertions) { 8 } else { 1 };
        let mut text = format!("version = 1\n{head}");
        for number in 0.. {
            let piece = piece.replace('N', &number.to_string());
            if text.len() + piece.len() + tail.len() > most {
                break;
            }
            text.push_str(&piece);
        }
        text + tail
    }

    /// A bad file costs little time and memory however bad it is: a running agent
    /// may be told to read it. (They took minutes, and gigabytes.)
    #[test]
    fn the_worst_files_are_refused_with_a_list_that_can_be_read() {
        for text in [
            full("", "kN = 1\n", ""),
            full("", "@\n", ""),
            full("[commands]\nallow = [", "\"xN\",", "]\n"),
            full("[commands]\nallow = [\"", "x", "\"]\n"),
            full("", "[[files]]\npath = \"/aN\"\nrights = [\"read\"]\n", ""),
            full("x = ", "[", ""),
        ] {
            let error = load_embedded("bad", &text, &World::elsewhere()).unwrap_err();
            assert!((1..=MOST).contains(&error.mistakes.len()) && error.warnings.len() <= MOST);
            let said = error.to_string();
            assert!(said.len() < MOST * 4 * (SHOWN + 500), "{} bytes", said.len());
            assert_eq!(error.more > 0, said.contains("more, which are not listed"), "{said}");
        }
    }

    #[test]
    fn a_long_line_is_shown_around_its_mistake() {
        let text = format!("version = 1{}\nprofile = {}\"nope\"\n", " ".repeat(9000), " ".repeat(3000));
        let error = load_embedded("bad", &text, &World::elsewhere()).unwrap_err();
        let said = error.mistakes[0].to_string();
        assert!(said.starts_with("bad:2:3011: ") && said.len() < 500, "{said}");
        let [_, line, mark] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        assert_eq!((line.find("\"nope\""), mark.trim()), (mark.find('^'), "^^^^^^"), "{said}");
    }
}
