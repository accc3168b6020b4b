//! How the demo looks: a few words per line, coloured on a terminal only.
//!
//! Trust: texts may hold what the agent said; nothing of them moves a cursor.

use std::io::{self, IsTerminal, Write};

use crate::client::harmless;

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";
const DIM: &str = "2";

/// Width of the column that names a step.
const NAME: usize = 22;

pub(super) struct Paint {
    coloured: bool,
}

impl Paint {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { coloured: wanted && io::stdout().is_terminal() }
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A line that is put together here. If nobody reads it, cleaning up
    /// matters more.
    fn put(line: &str) {
        _ = writeln!(io::stdout(), "{line}");
    }

    pub(super) fn heading(&self, text: &str) {
        Self::put(&format!("\n{}", self.coloured(BOLD, &harmless(text))));
    }

    pub(super) fn line(text: &str) {
        Self::put(&harmless(text));
    }

    pub(super) fn remark(&self, text: &str) {
        Self::put(&self.coloured(DIM, &harmless(text)));
    }

    pub(super) fn good(&self, name: &str, text: &str) {
        self.step(GREEN, "ok", name, text);
    }

    pub(super) fn wrong(&self, name: &str, text: &str) {
        self.step(RED, "WRONG", name, text);
    }

    pub(super) fn left_out(&self, name: &str, text: &str) {
        self.step(YELLOW, "left out", name, text);
    }

    fn step(&self, colour: &str, mark: &str, name: &str, text: &str) {
        let mark = self.coloured(colour, &format!("{mark:<8}"));
        Self::put(&format!("  {mark}  {name:<NAME$}  {}", harmless(text).replace('\n', " ")));
    }

    /// The last word, where something went wrong.
    pub(super) fn bad(&self, text: &str) {
        let line = self.coloured(RED, &harmless(text));
        _ = writeln!(io::stderr(), "postern demo: {line}");
    }
}
