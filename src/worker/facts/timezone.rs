//! `guest-get-timezone`, of `/etc/localtime`: tzfile(5), RFC 9636.
//!
//! Trust: root's bytes, chosen among the guest's zones. Any others are UTC.

use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use postern_core::ipc::bundle::{Bundle, Kind};
use serde::Serialize;

/// The file, or a link to one.
const LOCALTIME: &str = "/etc/localtime";

/// What `guest-get-timezone` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timezone {
    /// How it is abbreviated.
    zone: String,
    /// Seconds east of Greenwich.
    offset: i32,
}

impl Timezone {
    /// The zone as it is at this time. Without a file, and of a file that is none of a
    /// zone, it is UTC, as for all else in the guest.
    #[must_use]
    pub fn read(bundle: &Bundle<'_>, now: SystemTime) -> Self {
        // As it is: the newline behind the last rule is a part of it.
        let tzif = bundle.told(Kind::Content, Path::new(LOCALTIME));
        let Some(zone) = tzif.and_then(|tzif| TimeZone::tzif("", tzif).ok()) else { return Self::utc() };
        let info = zone.to_offset_info(Timestamp::try_from(now).unwrap_or(Timestamp::MAX));
        Self { zone: info.abbreviation().to_owned(), offset: info.offset().seconds() }
    }

    /// None in particular.
    #[must_use]
    pub fn utc() -> Self {
        Self { zone: "UTC".to_owned(), offset: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use postern_core::ipc::bundle::Gathered;

    use super::super::tests::json;
    use super::*;

    fn told(tzif: Option<&[u8]>, now: u64) -> String {
        let mut gathered = Gathered::default();
        if let Some(tzif) = tzif {
            assert!(gathered.add(Kind::Content, LOCALTIME.as_bytes(), tzif));
        }
        let bundle = Bundle::read(gathered.bytes()).expect("a bundle");
        json(&Timezone::read(&bundle, UNIX_EPOCH + Duration::from_secs(now)))
    }

    /// A file whose zone is this since 1970, as `TZ` would have it, beginning with this
    /// name and so many seconds east.
    fn zone(rule: &str, name: &str, offset: i32) -> Vec<u8> {
        let length = u8::try_from(name.len() + 1).expect("a short name");
        let block = |times: u8| {
            let counts = [times, 0, 0, 0, 1, 0, 0, 0, length];
            let since = vec![0; usize::from(times) * 9];
            [&b"TZif2"[..], &[0; 30], &counts, &since, &offset.to_be_bytes(), &[0, 0], name.as_bytes(), b"\0"].concat()
        };
        [&block(0), &block(1), &b"\n"[..], rule.as_bytes(), b"\n"].concat()
    }

    const WINTER: u64 = 1_767_225_600; // 2026-01-01
    const SUMMER: u64 = 1_782_864_000; // 2026-07-01

    #[test]
    fn summer_and_winter() {
        let new_york = zone("EST5EDT,M3.2.0,M11.1.0", "EST", -18_000);
        assert_eq!(told(Some(&new_york), WINTER), r#"{"zone": "EST", "offset": -18000}"#);
        assert_eq!(told(Some(&new_york), SUMMER), r#"{"zone": "EDT", "offset": -14400}"#);
        let kathmandu = zone("<+0545>-5:45", "+0545", 20_700);
        assert_eq!(told(Some(&kathmandu), SUMMER), r#"{"zone": "+0545", "offset": 20700}"#);
    }

    #[test]
    fn what_is_no_zone_is_utc() {
        let utc = r#"{"zone": "UTC", "offset": 0}"#;
        let cut = &zone("EST5EDT,M3.2.0,M11.1.0", "EST", -18_000)[..60];
        for none in [None, Some(&b""[..]), Some(b"TZif"), Some(b"\xff\xfe"), Some(cut), Some(&vec![b'T'; 70_000])] {
            assert_eq!(told(none, WINTER), utc);
        }
    }
}
