//! stub
pub(super) fn floods_stay_within_bounds() {}
