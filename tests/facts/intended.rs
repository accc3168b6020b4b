//! Where postern means to answer otherwise than stock. Each row must occur.

use serde_json::Value;

/// One such place.
pub(crate) struct Intended {
    pub(crate) command: &'static str,
    /// As `compare::Difference` has it.
    pub(crate) at: &'static str,
    /// Versions of stock that it holds for, by how they begin.
    pub(crate) of: &'static [&'static str],
    /// Whether the two are as they are meant to be: stock's, postern's.
    pub(crate) is: fn(Option<&Value>, Option<&Value>) -> bool,
    pub(crate) why: &'static str,
}

pub(crate) const INTENDED: &[Intended] = &[];
