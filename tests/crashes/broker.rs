//! x
use crate::support::runner::Test;
pub(crate) const TESTS: &[Test] = &[];
