//! postern's answers beside stock's: each command that only reads, asked of both,
//! typed, compared, and judged by the list of intended differences. What comes of it
//! at one place is a column of `PLACES.md` (`UPDATE=1` writes it, one target at a time).

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::compare::{Difference, Unsteady, differences};
use crate::intended::{INTENDED, Intended, Place};
use crate::support::agent::Host;
use crate::{client, schema};

/// How often the two are asked again while the machine changes between two answers.
const ATTEMPTS: usize = 40;
/// How often for a difference that has to be there and was not, and how long between.
const LATER: (usize, Duration) = (120, Duration::from_millis(250));

/// What two agents' answers to a command are.
pub(crate) enum Verdict {
    Equal,
    /// These rows of [`INTENDED`].
    Intended(BTreeSet<usize>),
    /// Stock of this version does not have the command.
    StockLacks,
    Differs(String),
}

/// The rows of [`INTENDED`] that all these differences are, or those that are none.
type Explain<'a> = &'a dyn Fn(&[Difference]) -> Result<BTreeSet<usize>, String>;

/// Asks both, until stock stands still and the differences have an explanation.
pub(crate) fn compare(command: &str, theirs: &mut Host, ours: &mut Host, explain: Explain<'_>) -> Verdict {
    let mut how = String::new();
    for attempt in 0..ATTEMPTS {
        sleep(Duration::from_millis(if attempt == 0 { 0 } else { 20 }));
        let [before, other, after] = {
            let before = theirs.ask(command, &Value::Null);
            let other = ours.ask(command, &Value::Null);
            [before, other, theirs.ask(command, &Value::Null)]
        };
        if let Some(returned) = other.get("return") {
            schema::assert_typed(command, returned);
            client::assert_taken(command, returned);
        }
        if before["error"]["class"] == "CommandNotFound" {
            return Verdict::StockLacks;
        }
        if other.get("return").is_none() && attempt > 2 {
            return Verdict::Differs(format!("    {other}\n"));
        }
        match differences(&before, &other, &after) {
            Ok(found) => match explain(&found) {
                Ok(rows) if rows.is_empty() => return Verdict::Equal,
                Ok(rows) => return Verdict::Intended(rows),
                Err(unexplained) => how = unexplained,
            },
            Err(Unsteady(what)) => how = format!("stock does not stand still: {what}"),
        }
    }
    Verdict::Differs(how)
}

/// See [`Explain`].
pub(crate) fn explain(command: &str, version: &str, found: &[Difference]) -> Result<BTreeSet<usize>, String> {
    let mut rows = BTreeSet::new();
    let mut unexplained = String::new();
    for one in found {
        let row = INTENDED.iter().position(|row| {
            row.is_of(command, version)
                && format!(".return{}", row.at) == one.at
                && (row.is)(one.stock.as_ref(), one.other.as_ref())
        });
        let shown = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), Value::to_string);
        let line = || {
            let (stock, other) = (shown(&one.stock), shown(&one.other));
            format!("    {} of {}: stock {stock}, postern {other}\n", one.at, one.element)
        };
        match row {
            Some(row) => _ = rows.insert(row),
            None => unexplained += &line(),
        }
    }
    if unexplained.is_empty() { Ok(rows) } else { Err(unexplained) }
}

/// What came of every command beside one stock at one place.
pub(crate) struct Column {
    pub(crate) place: Place,
    pub(crate) version: String,
    /// The rows of [`INTENDED`] that were seen, for each command; none where stock
    /// lacks it.
    pub(crate) found: BTreeMap<&'static str, Option<BTreeSet<usize>>>,
    wrong: Vec<String>,
}

impl Column {
    pub(crate) fn new(place: Place, version: &str) -> Self {
        Self { place, version: version.to_owned(), found: BTreeMap::new(), wrong: Vec::new() }
    }

    /// Asks both for `command`. More than once is right, where the scene changes.
    pub(crate) fn judge(&mut self, command: &'static str, theirs: &mut Host, ours: &mut Host) {
        let (place, version) = (self.place, self.version.clone());
        let rows = match compare(command, theirs, ours, &|found| explain(command, &version, found)) {
            Verdict::Equal => BTreeSet::new(),
            Verdict::Intended(rows) => rows,
            Verdict::StockLacks => {
                self.found.insert(command, None);
                return;
            }
            Verdict::Differs(how) => return self.wrong.push(format!("{place:?}, stock {version}: {command}\n{how}")),
        };
        for row in &rows {
            let Intended { at, may, places, .. } = &INTENDED[*row];
            if may.is_none() && !places.contains(&place) {
                self.wrong
                    .push(format!("{place:?}, stock {version}: {command} differs at {at}, and not to be seen here"));
            }
        }
        self.found.entry(command).or_insert_with(|| Some(BTreeSet::new())).get_or_insert_default().extend(rows);
    }

    /// What must be seen here.
    fn due(&self) -> impl Iterator<Item = (usize, &'static Intended)> + use<> {
        let (place, version) = (self.place, self.version.clone());
        let rows = INTENDED.iter().enumerate();
        rows.filter(move |(_, row)| row.places.contains(&place) && row.is_of(row.command, &version))
    }

    /// Looks again for what was to be seen and was not: a load comes and goes.
    pub(crate) fn complete(&mut self, theirs: &mut Host, ours: &mut Host) {
        for (number, row) in self.due() {
            let seen = |this: &Self| matches!(this.found.get(row.command), Some(Some(rows)) if rows.contains(&number));
            let (most, pause) = if row.may.is_some() { LATER } else { (0, Duration::ZERO) };
            for _ in 0..most {
                if seen(self) || !self.wrong.is_empty() {
                    break;
                }
                sleep(pause);
                self.judge(row.command, theirs, ours);
            }
            if !seen(self) {
                let (place, version) = (self.place, &self.version);
                self.wrong.push(format!("{place:?}, stock {version}: {} did not differ at {}", row.command, row.at));
            }
        }
    }

    /// What a reader is told of a command: what differs, or may.
    pub(crate) fn cell(&self, command: &str) -> String {
        let Some(seen) = &self.found[command] else { return "stock lacks it".to_owned() };
        let version = &self.version;
        let may = INTENDED.iter().enumerate().filter(|(_, row)| row.may.is_some() && row.is_of(command, version));
        let rows: BTreeSet<usize> = may.map(|(number, _)| number).chain(seen.iter().copied()).collect();
        let notes: BTreeSet<usize> = rows.iter().map(|row| INTENDED[*row].note()).collect();
        let notes: Vec<String> = notes.iter().map(usize::to_string).collect();
        if notes.is_empty() { "equal".to_owned() } else { format!("intended: {}", notes.join(", ")) }
    }

    /// Panics for all that was not as it was meant to be.
    pub(crate) fn assert_right(&self) {
        assert!(self.wrong.is_empty(), "\n{}", self.wrong.join("\n"));
    }
}
