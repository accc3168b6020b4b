//! Heads that left the machine, and whether a log agrees with them.
//!
//! A head is what the broker told journald or syslog: number and hash of the
//! last record then. It is read from `journalctl -o json`, or from lines of a
//! syslog file.
//!
//! Trust: any user of a guest can write a message that looks like a head. In a
//! journal only those count whose `_UID`, which journald asks the kernel for, is
//! the broker's. A syslog file has no such field: its heads count, and it is said
//! that nobody vouches for them. A false head can only raise a false alarm; what
//! is ignored is told, so that it hides nothing either.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use postern_core::audit::Hash;
use serde_json::Value;

use super::lines::{self, Part};
use super::verify::{Place, Problem, Verified, verify_and};
use super::words::escape;

/// What to hold a log against.
#[derive(Debug, Default, clap::Args)]
pub struct Against {
    /// Heads that left the machine: output of journalctl -o json, or lines of a syslog file; - is standard input
    #[arg(long = "anchors", value_name = "FILE")]
    pub anchors: Vec<PathBuf>,
    /// In a journal, only heads by this user count: the broker's [default: the user that the log names, if no
    /// other sent heads]
    #[arg(long, value_name = "UID", requires = "anchors")]
    pub sender: Option<u32>,
    /// Only heads of the log with this path count, where anchors are of several
    #[arg(long, value_name = "PATH", requires = "anchors")]
    pub log: Option<String>,
}

/// Who sent a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// By the kernel's word, through journald.
    User(u32),
    /// A line of a syslog file, or a journal without `_UID`.
    Unknown {
        /// Whether it counts all the same.
        counts: bool,
    },
}

/// One head.
#[derive(Clone, Debug)]
struct Head {
    number: u64,
    hash: Hash,
    sender: Sender,
    log: String,
    place: Place,
    verdict: Verdict,
}

/// What the log says to a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its record is behind the log's last one.
    Beyond,
    /// Its record is before the first one that was given.
    Older,
    /// The record has another hash.
    Differs,
    /// The record has this hash.
    Agrees,
}

/// What heads say of a log that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchored {
    /// Heads that agree.
    pub agree: u64,
    /// Number of the last record of which one does.
    pub last: Option<u64>,
    /// Heads of records before the first one that was given.
    pub older: u64,
    /// How many of `agree` are lines of a syslog file.
    pub unvouched: u64,
    /// Heads by other users, which do not count.
    pub others: u64,
    /// How many of them contradict the log.
    pub others_contradict: u64,
    /// Who these are.
    pub users: BTreeSet<u32>,
    /// Heads of other logs.
    pub other_logs: u64,
}

impl fmt::Display for Anchored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |count: u64| if count == 1 { "" } else { "s" };
        match self.last {
            Some(last) if self.agree == 1 => write!(f, "anchors: 1 head agrees, with record {last}")?,
            Some(last) => write!(f, "anchors: {} heads agree, the last with record {last}", self.agree)?,
            None => write!(f, "anchors: none is of a record that was given")?,
        }
        if self.unvouched > 0 {
            write!(f, "; {} of a syslog file, to which any user of the guest can write", self.unvouched)?;
        }
        if self.older > 0 {
            write!(f, "; {} of older records than were given", self.older)?;
        }
        if self.others > 0 {
            let users: Vec<_> = self.users.iter().map(u32::to_string).collect();
            let users = if users.is_empty() { "unknown".to_owned() } else { users.join(", ") };
            write!(f, "; ignored: {} head{} by other users ({users})", self.others, s(self.others))?;
            if self.others_contradict > 0 {
                write!(f, ", {} of which contradict the log", self.others_contradict)?;
            }
        }
        if self.other_logs > 0 {
            write!(f, "; ignored: {} of other logs", self.other_logs)?;
        }
        Ok(())
    }
}

/// What a head that counts contradicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The log ends before the head's record.
    Cut {
        /// Number of the log's last record.
        last: u64,
    },
    /// The head's record has another hash.
    Rewritten {
        /// Number of the last record before it of which a head agrees.
        agreed: Option<u64>,
    },
}

/// Why a log is not known to be what was written.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// It is not whole, or a file cannot be read.
    #[error("{0}")]
    Problem(#[from] Problem),
    /// A head contradicts it.
    #[error("{}", contradiction(.place, *.number, .what))]
    Contradicted {
        /// Where the head stands.
        place: Place,
        /// Number of its record.
        number: u64,
        /// How.
        what: Contradiction,
    },
    /// There is no head that counts.
    #[error("no head to hold the log against: {0}")]
    NoHead(String),
    /// Heads are of several logs.
    #[error("the anchors are of several logs; say with --log which of these it is: {}", escape(&.0.join(", ")))]
    SeveralLogs(Vec<String>),
    /// Other users sent heads than the one that the log itself names.
    #[error("{0}; only the log says who its broker is: say with --sender which user that was")]
    Strangers(String),
}

fn contradiction(place: &Place, number: u64, what: &Contradiction) -> String {
    let head = format!("the head of record {number} ({}:{})", place.file.display(), place.line);
    match what {
        Contradiction::Cut { last } => format!(
            "cut: the log ends with record {last}, but {head} was sent; are the newest files given, and is the \
             head this guest's own? (A power cut can take the last records too: see audit.fsync)"
        ),
        Contradiction::Rewritten { agreed: Some(agreed) } => {
            format!(
                "rewritten: behind record {agreed}, with which a head agrees, and not behind record {number}: {head} is another; is it \
                 this guest's own?"
            )
        }
        Contradiction::Rewritten { agreed: None } => {
            format!("rewritten: record {number} or one before it: {head} is another; is it this guest's own?")
        }
    }
}

/// Checks log files, oldest first, and holds them against heads.
///
/// # Errors
/// See [`Doubt`]. A log that is broken is not held against heads.
pub fn verify_against<P: AsRef<Path>>(files: &[P], against: &Against) -> Result<(Verified, Anchored), Doubt> {
    let mut heads = Vec::new();
    for file in &against.anchors {
        read(file, &mut heads).map_err(|source| Problem::Unreadable { file: file.clone(), source })?;
    }
    heads.sort_by_key(|head| head.number);
    let found = heads.len();
    let mut users = BTreeSet::from_iter(against.sender);
    let mut at = 0;
    let verified = verify_and(files, &mut |link, line| {
        while let Some(head) = heads.get_mut(at).filter(|head| head.number <= link.sequence) {
            head.verdict = match (head.number == link.sequence, head.hash == link.hash) {
                (false, _) => Verdict::Older,
                (true, true) => Verdict::Agrees,
                (true, false) => Verdict::Differs,
            };
            at += 1;
        }
        if link.opens && against.sender.is_none() {
            users.extend(user_of(line));
        }
    })?;
    let mut anchored = Anchored::default();
    let counts = |head: &Head| match head.sender {
        Sender::User(user) => users.contains(&user),
        Sender::Unknown { counts } => counts,
    };
    let log = chosen(&heads, against.log.as_deref(), files, counts)?;
    let mut first = None;
    for head in &heads {
        let contradicts = matches!(head.verdict, Verdict::Beyond | Verdict::Differs);
        if log.as_ref().is_some_and(|log| *log != head.log) {
            anchored.other_logs += 1;
        } else if !counts(head) {
            anchored.others += 1;
            anchored.others_contradict += u64::from(contradicts);
            anchored.users.extend(match head.sender {
                Sender::User(user) => Some(user),
                Sender::Unknown { .. } => None,
            });
        } else if contradicts {
            // Sorted by number, so the earliest record; one that differs comes
            // before all that are beyond the end.
            first.get_or_insert((head, anchored.last));
        } else if head.verdict == Verdict::Older {
            anchored.older += 1;
        } else {
            anchored.agree += 1;
            anchored.unvouched += u64::from(head.sender == Sender::Unknown { counts: true });
            if first.is_none() {
                anchored.last = Some(head.number);
            }
        }
    }
    if let Some((head, agreed)) = first {
        let what = match head.verdict {
            Verdict::Beyond => Contradiction::Cut { last: verified.last },
            _ => Contradiction::Rewritten { agreed },
        };
        return Err(Doubt::Contradicted { place: head.place.clone(), number: head.number, what });
    }
    if anchored.agree == 0 {
        let why = if found == 0 { "there is none in the anchors".to_owned() } else { format!("{anchored}") };
        return Err(Doubt::NoHead(why));
    }
    // Whoever writes a log anew can name another user, whose heads all fit, and
    // another path in these: then the true ones are those that do not count.
    let stranger = |head: &Head| {
        matches!(head.sender, Sender::User(user) if !users.contains(&user))
            && against.log.as_ref().is_none_or(|log| *log == head.log)
    };
    if against.sender.is_none() && heads.iter().any(stranger) {
        return Err(Doubt::Strangers(anchored.to_string()));
    }
    Ok((verified, anchored))
}

/// Which log the heads are of: the one that was said, or the only one, or the
/// one whose path a file has.
fn chosen<P: AsRef<Path>>(
    heads: &[Head],
    said: Option<&str>,
    files: &[P],
    counts: impl Fn(&Head) -> bool,
) -> Result<Option<String>, Doubt> {
    if let Some(said) = said {
        return Ok(Some(said.to_owned()));
    }
    let logs: BTreeSet<&str> = heads.iter().filter(|head| counts(head)).map(|head| head.log.as_str()).collect();
    if logs.len() < 2 {
        return Ok(logs.first().map(|log| (*log).to_owned()));
    }
    let named = logs.iter().find(|log| files.iter().any(|file| file.as_ref() == Path::new(log)));
    match named {
        Some(log) => Ok(Some((*log).to_owned())),
        None => Err(Doubt::SeveralLogs(logs.into_iter().map(str::to_owned).collect())),
    }
}

/// The broker's user, by the first record of a file.
fn user_of(line: &[u8]) -> Option<u32> {
    let record: Value = serde_json::from_slice(line).ok()?;
    record["user"]["id"].as_str()?.parse().ok()
}

/// Reads all heads of a file.
fn read(file: &Path, heads: &mut Vec<Head>) -> std::io::Result<()> {
    let mut reader = lines::open(file)?;
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        match lines::read(&mut reader, &mut line)? {
            Part::Line => number += 1,
            // A message that is long enough could place a head here.
            Part::More => continue,
            Part::End => break,
        }
        let found = if line.starts_with(b"{") { of_journal(&line) } else { of_syslog(&line) };
        heads.extend(found.map(|(said, sender)| Head {
            number: said.number,
            hash: said.hash,
            log: said.log,
            sender,
            place: Place { file: file.to_owned(), line: number },
            verdict: Verdict::Beyond,
        }));
    }
    Ok(())
}

/// What a head says.
struct Said {
    number: u64,
    hash: Hash,
    log: String,
}

/// A line of `journalctl -o json`: by its fields, or, where it came through
/// `/dev/log`, by its text.
fn of_journal(line: &[u8]) -> Option<(Said, Sender)> {
    let entry: Value = serde_json::from_slice(line).ok()?;
    let field = |name: &str| text_of(&entry[name]);
    let sender =
        field("_UID").and_then(|user| user.parse().ok()).map_or(Sender::Unknown { counts: false }, Sender::User);
    let by_fields = || {
        Some(Said {
            number: field("POSTERN_SEQUENCE")?.parse().ok()?,
            hash: hash(&field("POSTERN_HASH")?)?,
            log: field("POSTERN_LOG")?,
        })
    };
    let ours = || field("SYSLOG_IDENTIFIER").filter(|name| name == "postern").and_then(|_| field("MESSAGE"));
    let said = by_fields().or_else(|| said(&ours()?))?;
    Some((said, sender))
}

/// A field of a journal: text, or the bytes of what journald takes for none.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(bytes) => {
            let bytes = bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect::<Option<Vec<_>>>()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    }
}

/// A line of a syslog file: whatever its time and host look like, then
/// `postern[PID]: ` and the text.
fn of_syslog(line: &[u8]) -> Option<(Said, Sender)> {
    let line = String::from_utf8_lossy(line);
    let (_, tagged) = line.split_once("postern[")?;
    let (pid, text) = tagged.split_once("]: ")?;
    pid.parse::<u32>().ok()?;
    Some((said(text.trim_end_matches('\n'))?, Sender::Unknown { counts: true }))
}

/// The text of a head, as `src/broker/heads.rs` writes it.
fn said(text: &str) -> Option<Said> {
    let (number, rest) = text.strip_prefix("audit head: record ")?.split_once(", sha256 ")?;
    let (digits, rest) = rest.split_once(", boot ")?;
    let (_, log) = rest.split_once(", log ")?;
    Some(Said { number: number.parse().ok()?, hash: hash(digits)?, log: log.to_owned() })
}

fn hash(digits: &str) -> Option<Hash> {
    Hash::from_digits(digits.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_in_journals_and_in_syslog_files() {
        let hash = "0123456789abcdef".repeat(4);
        let text = format!("audit head: record 12, sha256 {hash}, boot 11-22, missed 3, log /srv/a b, log c");
        let of = |line: &str| {
            let found = if line.starts_with('{') { of_journal(line.as_bytes()) } else { of_syslog(line.as_bytes()) };
            found.map(|(said, sender)| (said.number, said.hash.to_string(), said.log, sender))
        };
        let found = |sender| Some((12, hash.clone(), "/srv/a b, log c".to_owned(), sender));
        let unknown = Sender::Unknown { counts: true };
        for before in ["Nov 22 18:00:01 guest ", "2026-11-22T18:00:01.5+00:00 guest ", "<85>", ""] {
            assert_eq!(of(&format!("{before}postern[77]: {text}\n")), found(unknown), "{before}");
        }
        let fields = |log: &str| {
            format!(
                "{{\"_UID\":\"990\",\"POSTERN_SEQUENCE\":\"12\",\"POSTERN_HASH\":\"{hash}\",\"POSTERN_LOG\":{log}}}\n"
            )
        };
        assert_eq!(of(&fields("\"/srv/a b, log c\"")), found(Sender::User(990)));
        let bytes = format!("{:?}", "/srv/a b, log c".as_bytes());
        assert_eq!(of(&fields(&bytes)), found(Sender::User(990)));
        let through = |name: &str| format!("{{\"SYSLOG_IDENTIFIER\":\"{name}\",\"MESSAGE\":\"{text}\"}}\n");
        assert_eq!(of(&through("postern")), found(Sender::Unknown { counts: false }));
        let none = [&through("other"), "", "{", "{}", "[]", "postern[77]: ready", "postern[x]: audit head: record 12"];
        for line in none {
            assert_eq!(of(line), None, "{line}");
        }
        assert_eq!(of(&format!("other: {text}")), None);
        assert_eq!(of(&fields("null")), None);
    }
}
