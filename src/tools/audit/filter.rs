//! Which records of a log somebody wants to see.
//!
//! Filters of different kinds narrow each other; one given several times takes
//! what any of them takes.
//!
//! Trust: the command line is a person's; records are anyone's.

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use postern_core::audit::{Timestamp, sequence_of};

use super::record::Record;

/// The event of a fact that was told.
pub(super) const FACT_TOLD: &str = "fact-told";

/// Which records to show; all that are not given mean any.
#[derive(Debug, Default, clap::Args)]
pub struct Filter {
    /// Records about this path or one beneath it, requested or resolved; with * or ? the whole path
    /// must look so (* stands for slashes too)
    #[arg(long, value_name = "PATH")]
    pub path: Vec<String>,
    /// Records of this command or event, such as guest-file-open or process-died
    #[arg(long, value_name = "NAME", alias = "command")]
    pub event: Vec<String>,
    /// In the table, also what was read of the guest to tell of it: fact-told
    #[arg(long)]
    pub facts: bool,
    /// Records with this result: postern.stage or event.outcome
    #[arg(long, value_name = "RESULT", alias = "outcome")]
    pub result: Vec<Outcome>,
    /// Only what was refused; as --result refused
    #[arg(long)]
    pub denied: bool,
    /// Records about this handle
    #[arg(long, value_name = "N")]
    pub handle: Vec<u64>,
    /// Records about the worker with this number, postern.child
    #[arg(long, value_name = "N")]
    pub worker: Vec<u64>,
    /// Records with these numbers: 7, 7-20, 7- or -20
    #[arg(long, value_name = "FROM-TO", value_parser = numbers, allow_hyphen_values = true)]
    pub number: Option<(u64, u64)>,
    /// Records from this time on: 2025-11-22, with time, UTC unless it says otherwise, or how long
    /// ago: 90s, 15m, 2h, 3d
    #[arg(long, value_name = "T", value_parser = time)]
    pub since: Option<Timestamp>,
    /// Records before this time
    #[arg(long, value_name = "T", value_parser = time)]
    pub until: Option<Timestamp>,
}

/// What came of it: `event.outcome`, or the `postern.stage` that it was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Outcome {
    /// It was done or granted.
    Success,
    /// It was refused or failed.
    Failure,
    /// It was only asked for.
    Unknown,
    /// It was only asked for.
    Asked,
    /// A file was opened for the host.
    Granted,
    /// A barrier or the policy refused.
    Refused,
    /// It was done.
    Done,
    /// It was tried and failed.
    Failed,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
            Self::Asked => "asked",
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl Filter {
    /// Whether it takes every record.
    pub(super) fn is_empty(&self) -> bool {
        let Self { path, event, facts: _, result, denied, handle, worker, number, since, until } = self;
        path.is_empty()
            && event.is_empty()
            && result.is_empty()
            && !denied
            && handle.is_empty()
            && worker.is_empty()
            && (number, since, until) == (&None, &None, &None)
    }

    /// Whether the table shows what facts were told: they come every few seconds, and
    /// name no file that a host chose.
    pub(super) fn shows_facts(&self) -> bool {
        self.facts || self.event.iter().any(|name| name == FACT_TOLD)
    }

    /// What can be said of a line before it is parsed.
    pub(super) fn sieve(&self) -> Sieve {
        let text = |time: Timestamp| format!("{time:.6}");
        Sieve { number: self.number, since: self.since.map(text), until: self.until.map(text) }
    }

    /// Whether it takes a record.
    pub(super) fn takes(&self, record: &Record<'_>) -> bool {
        fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(fits)
        }
        let (event, ours) = (&record.event, &record.postern);
        let time = || record.time();
        any(&self.path, |wanted| is_path(wanted, &record.file.path) || is_path(wanted, &ours.requested))
            && any(&self.event, |name| event.action == *name)
            && any(&self.result, |result| ours.stage == result.name() || event.outcome == result.name())
            && (!self.denied || record.is_denied())
            && any(&self.handle, |handle| ours.handle == Some(*handle))
            && any(&self.worker, |worker| record.worker() == Some(*worker))
            && self.number.is_none_or(|(from, to)| (from..=to).contains(&event.sequence))
            && self.since.is_none_or(|since| time().is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| time().is_some_and(|at| at < until))
    }
}

/// Passes over lines by the places that are fixed in every line of postern's:
/// cheap, and never false where the filter takes the record.
pub(super) struct Sieve {
    number: Option<(u64, u64)>,
    since: Option<String>,
    until: Option<String>,
}

impl Sieve {
    /// Whether the line must be looked at.
    pub(super) fn passes(&self, line: &[u8]) -> bool {
        const TIME: std::ops::Range<usize> = 15..42;
        let Some(sequence) = sequence_of(line) else { return true };
        // In this form of fixed width the order of text is the order of time.
        let time = &line[TIME];
        self.number.is_none_or(|(from, to)| (from..=to).contains(&sequence))
            && self.since.as_ref().is_none_or(|since| time >= since.as_bytes())
            && self.until.as_ref().is_none_or(|until| time <= until.as_bytes())
    }
}

/// Whether a path is the wanted one, beneath it, or looks like the pattern.
fn is_path(wanted: &str, path: &str) -> bool {
    if wanted.contains(['*', '?']) {
        return looks_like(wanted, path);
    }
    let wanted = if wanted.len() > 1 { wanted.trim_end_matches('/') } else { wanted };
    path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || wanted == "/")
}

/// `*` is any text, `?` any character. In time pattern × text at most: a star
/// that fitted never has to be tried again before a later one.
fn looks_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some('*'), _) => {
                star = Some((p + 1, t));
                p += 1;
            }
            (Some(&one), _) if one == '?' || one == text[t] => (p, t) = (p + 1, t + 1),
            (_, Some((behind, at))) => {
                star = Some((behind, at + 1));
                (p, t) = (behind, at + 1);
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|one| *one == '*')
}

fn numbers(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str, open: u64| if text.is_empty() { Some(open) } else { text.parse().ok() };
    match (number(from, 0), number(to, u64::MAX)) {
        (Some(from), Some(to)) if from <= to && !matches!(text, "" | "-") => Ok((from, to)),
        _ => Err("write a number or a range, such as 7, 7-20, 7- or -20".to_owned()),
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Some(ago) = ago(text) {
        let past = Timestamp::now().checked_sub(SignedDuration::from_secs(ago));
        return past.map_err(|error| error.to_string());
    }
    let civil: DateTime = text.parse().map_err(|_| {
        "write a date or a time, such as 2025-11-22 or 2025-11-22T13:05:00+01:00, or how long ago, such as 15m"
            .to_owned()
    })?;
    civil.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
}

/// Seconds of `90s`, `15m`, `2h`, `3d`.
fn ago(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(i64::from(number) * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fit_by_prefix_or_pattern() {
        for (wanted, path, fits) in [
            ("/srv/data", "/srv/data", true),
            ("/srv/data", "/srv/data/file", true),
            ("/srv/data/", "/srv/data/file", true),
            ("/srv/dat", "/srv/data/file", false),
            ("/", "/etc/shadow", true),
            ("/", "", false),
            ("*.log", "/var/log/nginx/access.log", true),
            ("*.log", "/var/log/nginx/access.log.1", false),
            ("/var/*/access*", "/var/log/nginx/access.log", true),
            ("/var/?og/*", "/var/log/a", true),
            ("/var/?og/*", "/var/og/a", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("**", "", true),
            ("?", "", false),
        ] {
            assert_eq!(is_path(wanted, path), fits, "{wanted} {path}");
        }
    }

    #[test]
    fn numbers_and_times_are_read() {
        assert_eq!(numbers("7"), Ok((7, 7)));
        assert_eq!(numbers("7-20"), Ok((7, 20)));
        assert_eq!(numbers("7-"), Ok((7, u64::MAX)));
        assert_eq!(numbers("-20"), Ok((0, 20)));
        for wrong in ["", "-", "20-7", "a", "1-2-3", "1..2"] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
        assert_eq!(["90s", "15m", "2h", "3d"].map(ago), [Some(90), Some(900), Some(7200), Some(259_200)]);
        assert_eq!(["", "s", "-1s", "1w", "1.5h", "é"].map(ago), [None; 6]);
        let utc = "2025-11-22T12:05:00Z".parse().ok();
        assert_eq!(time("2025-11-22T13:05:00+01:00").ok(), utc);
        assert_eq!(time("2025-11-22T12:05:00").ok(), utc);
        assert!(time("2025-11-22").is_ok() && time("yesterday").is_err());
    }
}
