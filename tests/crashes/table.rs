//! Rows of the crash matrix: process × point × frozen or not, how long until the
//! host is served again, and what becomes of it.

use std::time::Duration;

/// A row's times.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&mut self) -> Duration {
        self.0.sort();
        self.0[self.0.len() / 2]
    }

    /// Prints the row. `what`: process and how it ended; `where`: at which points.
    pub(crate) fn row(&mut self, what: &str, points: &str, frozen: bool, outcome: &str) {
        let state = if frozen { "frozen" } else { "thawed" };
        if self.0.is_empty() {
            println!("    | {what} | {points} | {state} | 0 | - | - | {outcome} |");
            return;
        }
        let (median, worst) = (self.median(), self.0[self.0.len() - 1]);
        let shown = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
        let (median, worst, times) = (shown(median), shown(worst), self.0.len());
        println!("    | {what} | {points} | {state} | {times} | {median} | {worst} | {outcome} |");
    }
}

/// Prints one measurement as a row.
pub(crate) fn row(what: &str, points: &str, frozen: bool, time: Duration, outcome: &str) {
    Times(vec![time]).row(what, points, frozen, outcome);
}
