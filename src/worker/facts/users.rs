//! `guest-get-users`, of `/run/utmp` (utmp(5)), or of logind's sessions where that
//! is gone: since systemd 257 some distributions write none.
//!
//! Trust: login programs' bytes, with names that users have: as text, no longer than
//! the field.

use std::collections::BTreeMap;
use std::path::Path;

use postern_core::ipc::bundle::{Bundle, Entry, Kind};
use serde::Serialize;

use super::text::{assignments, number};

/// Where logins are written.
const UTMP: &str = "/run/utmp";
/// Where logind has a file for each session.
const SESSIONS: &str = "/run/systemd/sessions";

/// One who is logged in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct User {
    /// Seconds since 1970, of the earliest of the user's logins.
    #[serde(rename = "login-time")]
    login_time: f64,
    user: String,
}

/// Who is logged in, each once: in the order of their records, of sessions in that
/// of their logins.
#[must_use]
pub fn users(bundle: &Bundle<'_>) -> Vec<User> {
    if let Some(utmp) = bundle.told(Kind::Content, Path::new(UTMP)) {
        let records = utmp.chunks_exact(Layout::HERE.size);
        return once_each(records.filter_map(|record| Layout::HERE.login(record)));
    }
    let mut logins: Vec<_> = bundle.directory(SESSIONS).into_iter().flatten().filter_map(session).collect();
    logins.sort_by(|one, other| one.time.total_cmp(&other.time));
    once_each(logins.into_iter())
}

/// A login.
#[derive(Debug)]
struct Login<'a> {
    name: &'a [u8],
    time: f64,
}

fn once_each<'a>(logins: impl Iterator<Item = Login<'a>>) -> Vec<User> {
    let mut places = BTreeMap::new();
    let mut users: Vec<User> = Vec::new();
    for login in logins {
        let place = *places.entry(login.name).or_insert(users.len());
        match users.get_mut(place) {
            Some(user) => user.login_time = user.login_time.min(login.time),
            None => users.push(User { login_time: login.time, user: String::from_utf8_lossy(login.name).into_owned() }),
        }
    }
    users
}

/// Where a record of utmp has what: glibc's `struct utmpx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Bytes of a record.
    size: usize,
    /// Where the seconds stand.
    seconds: usize,
    /// Bytes of the seconds, and of the microseconds behind them.
    width: usize,
}

impl Layout {
    /// Where 32-bit programs can run beside: x86.
    const COMPATIBLE: Self = Self { size: 384, seconds: 340, width: 4 };
    /// Where 64-bit programs came first: aarch64.
    #[cfg(any(test, target_arch = "aarch64"))]
    const WIDE: Self = Self { size: 400, seconds: 344, width: 8 };
    #[cfg(not(target_arch = "aarch64"))]
    const HERE: Self = Self::COMPATIBLE;
    #[cfg(target_arch = "aarch64")]
    const HERE: Self = Self::WIDE;

    /// A record's `ut_type` where somebody is logged in.
    const USER_PROCESS: u16 = 7;
    const USER: std::ops::Range<usize> = 44..76;

    /// The login that a record tells of; most tell of something else.
    fn login(self, record: &[u8]) -> Option<Login<'_>> {
        if record.get(..2)? != Self::USER_PROCESS.to_ne_bytes() {
            return None;
        }
        let name = record.get(Self::USER)?.split(|byte| *byte == 0).next()?;
        let (seconds, rest) = record.get(self.seconds..)?.split_at_checked(self.width)?;
        let microseconds = rest.get(..self.width)?;
        Some(Login { name, time: unsigned(seconds) + unsigned(microseconds) / 1e6 })
    }
}

/// A number of four or eight bytes, in this processor's order. No login was before
/// 1970, and the narrow ones reach to 2106.
fn unsigned(bytes: &[u8]) -> f64 {
    match (bytes.try_into(), bytes.try_into()) {
        (Ok(narrow), _) => f64::from(u32::from_ne_bytes(narrow)),
        (_, Ok(wide)) => to_float(u64::from_ne_bytes(wide)),
        _ => 0.0,
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for the next 285 years of microseconds")]
const fn to_float(whole: u64) -> f64 {
    whole as f64
}

/// The login of a session that a person has: none of a display manager's or of the
/// user's services, and none that is over.
fn session(entry: Entry<'_>) -> Option<Login<'_>> {
    let content = entry.content("")?;
    let value = |key: &[u8]| assignments(content).filter(|(name, _)| *name == key).last().map(|(_, value)| value);
    if !value(b"CLASS")?.starts_with(b"user") || value(b"STATE") == Some(b"closing") {
        return None;
    }
    let realtime = number(value(b"REALTIME")?)?;
    Some(Login { name: value(b"USER")?, time: to_float(realtime) / 1e6 })
}

#[cfg(test)]
mod tests;
