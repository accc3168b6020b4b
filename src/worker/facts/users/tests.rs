//! Records of both kinds, whole and broken, against what is told of them.

use postern_core::ipc::bundle::Gathered;
use proptest::prelude::*;

use super::super::tests::json;
use super::*;

const LAYOUTS: [Layout; 2] = [Layout::COMPATIBLE, Layout::WIDE];

/// A record as login programs write them.
fn record(layout: Layout, kind: u16, name: &[u8], seconds: u32, microseconds: u32) -> Vec<u8> {
    let mut record = vec![0; layout.size];
    record[..2].copy_from_slice(&kind.to_ne_bytes());
    record[8..12].copy_from_slice(b"tty1");
    record[44..44 + name.len()].copy_from_slice(name);
    record[76..80].copy_from_slice(b"host");
    for (index, time) in [seconds, microseconds].into_iter().enumerate() {
        let at = layout.seconds + index * layout.width;
        match layout.width {
            4 => record[at..at + 4].copy_from_slice(&time.to_ne_bytes()),
            _ => record[at..at + 8].copy_from_slice(&u64::from(time).to_ne_bytes()),
        }
    }
    record
}

fn told(utmp: &[u8]) -> Vec<User> {
    let mut gathered = Gathered::default();
    assert!(gathered.add(Kind::Content, UTMP.as_bytes(), utmp));
    users(&Bundle::read(gathered.bytes()).expect("a bundle"))
}

#[test]
fn records_are_as_the_library_has_them() {
    use nix::libc::utmpx;
    assert_eq!(Layout::HERE.size, size_of::<utmpx>());
    assert_eq!(Layout::HERE.seconds, std::mem::offset_of!(utmpx, ut_tv));
    assert_eq!(Layout::USER.start, std::mem::offset_of!(utmpx, ut_user));
    assert_eq!(Layout::USER.end, std::mem::offset_of!(utmpx, ut_host));
    assert_eq!(Layout::USER_PROCESS, nix::libc::USER_PROCESS.cast_unsigned());
}

#[test]
fn each_user_once_by_the_earliest_login() {
    let here = |kind, name: &[u8], seconds, microseconds| record(Layout::HERE, kind, name, seconds, microseconds);
    let mut utmp = [
        here(2, b"reboot", 1_700_000_000, 0),
        here(7, b"bob", 1_700_000_500, 123_456),
        here(7, b"alice", 1_700_000_400, 5),
        here(7, b"bob", 1_700_000_300, 999_999),
        here(7, b"bob", 1_700_000_900, 0),
        here(8, b"gone", 1_700_000_300, 999_999),
        here(7, b"", 1, 1),
        here(7, &[b'A'; 32], 4_000_000_000, 0),
        here(7, b"n\xff\xc3n", 2_000_000_000, 0),
    ]
    .concat();
    utmp.extend_from_slice(&here(7, b"cut", 5, 1)[..300]);
    let told: Vec<String> = told(&utmp).iter().map(json).collect();
    let as_stock = [
        r#"{"login-time": 1700000300.999999, "user": "bob"}"#,
        r#"{"login-time": 1700000400.000005, "user": "alice"}"#,
        r#"{"login-time": 1.0000009999999999, "user": ""}"#,
        r#"{"login-time": 4000000000, "user": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
        r#"{"login-time": 2000000000, "user": "n\uFFFD\uFFFDn"}"#,
    ];
    assert_eq!(told, as_stock);
}

#[test]
fn records_of_either_processor_are_read() {
    for layout in LAYOUTS {
        let record = record(layout, 7, b"root", 1_700_000_000, 250_000);
        let login = layout.login(&record).expect("a login");
        assert_eq!((login.name, login.time.to_bits()), (&b"root"[..], 1_700_000_000.25_f64.to_bits()));
        for end in 0..layout.seconds {
            assert!(layout.login(&record[..end]).is_none(), "cut at {end}");
        }
    }
}

#[test]
fn sessions_count_where_there_is_no_utmp() {
    let session = |name: &str, class: &str, state: &str, time: &str| {
        format!(
            "# This is private data. Do not parse.\nUID=1000\nUSER={name}\nACTIVE=1\nSTATE={state}\nCLASS={class}\n\
             REALTIME={time}\nMONOTONIC=5\n"
        )
    };
    let files = [
        ("c1", session("gdm", "greeter", "active", "1")),
        ("10", session("bob", "user", "active", "1700000500123456")),
        ("2", session("alice", "user-early", "online", "1700000400000005")),
        ("3", session("bob", "user", "active", "1700000600000000")),
        ("4", session("gone", "user", "closing", "1700000000000000")),
        ("5", session("bob", "manager", "active", "1600000000000000")),
        ("6", session("odd", "user", "active", "x")),
        ("7", "USER=half\nCLASS=user\n".to_owned()),
        ("8", String::new()),
    ];
    let mut gathered = Gathered::default();
    assert!(gathered.add(Kind::Directory, SESSIONS.as_bytes(), b""));
    for (name, content) in &files {
        assert!(gathered.add(Kind::Entry, name.as_bytes(), b""));
        assert!(gathered.add(Kind::Content, b"", content.as_bytes()));
    }
    assert!(gathered.add(Kind::Entry, b"9.ref", b""));
    let of = |gathered: &Gathered| -> Vec<String> {
        users(&Bundle::read(gathered.bytes()).expect("a bundle")).iter().map(json).collect()
    };
    let by_login = [
        r#"{"login-time": 1700000400.000005, "user": "alice"}"#,
        r#"{"login-time": 1700000500.123456, "user": "bob"}"#,
    ];
    assert_eq!(of(&gathered), by_login);
    assert!(gathered.add(Kind::Content, UTMP.as_bytes(), b""));
    assert_eq!(of(&gathered), [""; 0], "an empty utmp says that nobody is there");
    assert_eq!(users(&Bundle::default()), []);
}

proptest! {
    #[test]
    fn what_login_programs_write_is_read(
        logins in prop::collection::vec(("[a-d]{1,2}", 0..u32::MAX, 0..1_000_000_u32, any::<bool>()), 0..40)
    ) {
        let utmp: Vec<u8> = logins
            .iter()
            .flat_map(|(name, seconds, microseconds, is_user)| {
                record(Layout::HERE, if *is_user { 7 } else { 8 }, name.as_bytes(), *seconds, *microseconds)
            })
            .collect();
        let mut expected: Vec<(&str, f64)> = Vec::new();
        for (name, seconds, microseconds, _) in logins.iter().filter(|login| login.3) {
            let time = f64::from(*seconds) + f64::from(*microseconds) / 1e6;
            match expected.iter_mut().find(|(user, _)| user == name) {
                Some((_, earliest)) => *earliest = earliest.min(time),
                None => expected.push((name, time)),
            }
        }
        let told = told(&utmp);
        let told: Vec<_> = told.iter().map(|user| (user.user.as_str(), user.login_time)).collect();
        prop_assert_eq!(told, expected);
    }
}
