//! Names that a policy gives: of accounts and groups, of network interfaces, of the
//! guest.
//!
//! Called by `value` only. Every `None` comes with a mistake in the report.

use toml::Spanned;
use toml::de::DeValue;

use super::keys::MAX_ID;
use super::mistake::{Kind, Place, Report, quoted};
use super::read::Value;
use super::value::in_range;
use crate::policy::telling::{MAX_HOST_NAME, MAX_PATTERN};

/// A pattern of interface names, as [`crate::policy::telling`] takes it.
pub(super) fn pattern(text: &str, place: Place, report: &mut Report) -> Option<Value> {
    let takes = |c: char| c.is_ascii_alphanumeric() || "_.@+*?-".contains(c);
    if !text.is_empty() && text.len() <= MAX_PATTERN && text.chars().all(takes) {
        return Some(Value::Text(text.to_owned()));
    }
    let what = format!("{} is no pattern of interface names", quoted(text));
    let help = format!("write 1 to {MAX_PATTERN} characters such as \"eth*\": * is any, ? is one, there are no others");
    report.error(Kind::BadName, place, what, help);
    None
}

/// What may stand in for a host name: as RFC 1123 has names, in one piece.
pub(super) fn host_name(text: &str, place: Place, report: &mut Report) -> Option<Value> {
    let takes = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let good = ends(text.chars().next()) && ends(text.chars().last()) && text.chars().all(takes);
    if good && text.len() <= MAX_HOST_NAME {
        return Some(Value::Text(text.to_owned()));
    }
    let what = format!("{} is no host name", quoted(text));
    let help = format!("write 1 to {MAX_HOST_NAME} letters, digits, '-' and '.', such as \"guest\"");
    report.error(Kind::BadName, place, what, help);
    None
}

/// An account or a group.
pub(super) fn name_or_id(value: &Spanned<DeValue<'_>>, place: Place, report: &mut Report) -> Option<Value> {
    let Some(name) = value.get_ref().as_str() else {
        return in_range(value, 1, MAX_ID, place, report).map(Value::Number);
    };
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit() || c == '-' || c == '.') {
        return Some(Value::Text(name.to_owned()));
    }
    let what = format!("{} is no name of an account or group", quoted(name));
    report.error(Kind::BadName, place, what, "write a name such as \"postern\", or a number without quotes");
    None
}
