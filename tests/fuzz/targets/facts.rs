//! What the guest's files say → what the host is told: every parser of facts.
//!
//! The first byte says which file the rest is; beyond those, the rest is what the
//! opener gathered, whole.

use std::time::{Duration, UNIX_EPOCH};

use postern_core::ipc::bundle::{Bundle, Gathered, Kind};
use postern_worker::facts::{cpu, diskstats, memory, os::OsInfo, timezone::Timezone, users};
use postern_worker::qga::{Id, reply};
use serde_json::Value;

/// Files, and directories with one file in it.
const GATHERED: [(Kind, &str); 8] = [
    (Kind::Content, "/etc/os-release"),
    (Kind::Content, "/etc/localtime"),
    (Kind::Content, "/run/utmp"),
    (Kind::Names, "/run/systemd/sessions"),
    (Kind::Content, "/run/systemd/sessions/1"),
    (Kind::Names, "/sys/devices/system/cpu"),
    (Kind::Names, "/sys/devices/system/memory"),
    (Kind::Content, "/sys/devices/system/memory/memory1/state"),
];

/// Takes an input.
///
/// # Panics
/// Where a reply is no JSON, says of a number that it is something else, is out of
/// proportion to the file, or is another one when it is made again.
pub fn run(input: &[u8]) {
    let Some((&which, bytes)) = input.split_first() else { return };
    match which {
        b'0' => each(&cpu::stats(bytes), bytes, "cpu"),
        b'1' => each(&diskstats::stats(bytes), bytes, "minor"),
        b':' => {
            if let Some(info) = memory::block_info(bytes) {
                assert!(json(&info, bytes)["size"].is_u64());
            }
        }
        b';' => lists(bytes),
        which => {
            let mut gathered = Gathered::default();
            if let Some((kind, path)) = GATHERED.get(usize::from(which.wrapping_sub(b'2'))) {
                let sessions = *path == GATHERED[4].1;
                assert!(!sessions || gathered.add(Kind::Names, GATHERED[3].1.as_bytes(), b"1"));
                assert!(gathered.add(*kind, path.as_bytes(), bytes));
                all(&Bundle::read(gathered.bytes()).expect("it was made here"), bytes);
            } else if let Ok(bundle) = Bundle::read(bytes) {
                all(&bundle, bytes);
            }
        }
    }
}

fn all(bundle: &Bundle<'_>, bytes: &[u8]) {
    let info = OsInfo::of_release(bundle);
    let whole = json(&info, bytes);
    let whole = whole.as_object().expect("an object");
    assert!(whole.values().all(Value::is_string));
    let reduced = json(&info.reduced(), bytes);
    assert!(reduced.as_object().expect("an object").iter().all(|(key, id)| key == "id" && whole.get(key) == Some(id)));

    for year in [0, 30, 56, 10_000] {
        let zone = json(&Timezone::read(bundle, UNIX_EPOCH + Duration::from_secs(year * 31_556_952)), bytes);
        let offset = zone["offset"].as_i64().expect("a whole number");
        // RFC 9636: not even a day and two hours.
        assert!(offset.abs() < 26 * 3600 && zone["zone"].is_string(), "{zone}");
    }

    let users = users::users(bundle);
    each(&users, bytes, "login-time");
    for user in json(&users, bytes).as_array().expect("a list") {
        assert!(user["user"].is_string() && user["login-time"].as_f64().is_some_and(|time| time >= 0.0), "{user}");
    }
    if let Ok(vcpus) = cpu::vcpus(bundle) {
        each(&vcpus, bytes, "logical-id");
    }
    if let Ok(blocks) = memory::blocks(bundle) {
        each(&blocks, bytes, "phys-index");
    }
}

/// Lists of processors: of two that are known, the one that can be switched off is on
/// or not as the list says.
fn lists(bytes: &[u8]) {
    let mut gathered = Gathered::default();
    assert!(gathered.add(Kind::Names, GATHERED[5].1.as_bytes(), b"cpu0\0cpu1"));
    assert!(gathered.add(Kind::Content, b"/sys/devices/system/cpu/cpu1/online", b"1"));
    let vcpus = cpu::vcpus(&Bundle::read(gathered.bytes()).expect("it was made here")).expect("two");
    let lists = [Some(b"0-1\n".to_vec()), Some(bytes.to_vec())];
    let known = cpu::Known::new(lists.clone(), vcpus);
    if let Some(now) = known.now(&lists) {
        let now = json(&now, bytes);
        assert!(now[0]["online"] == true && now[1]["online"].is_boolean() && now[1]["can-offline"] == true, "{now}");
    }
}

/// Every entry of a list has this member, and it is a number.
fn each(list: &impl serde::Serialize, bytes: &[u8], number: &str) {
    for entry in json(list, bytes).as_array().expect("a list") {
        assert!(entry[number].is_number(), "{entry}");
    }
}

/// The reply, which is no more than some times the file.
fn json(value: &impl serde::Serialize, bytes: &[u8]) -> Value {
    let mut out = Vec::new();
    reply::success(&mut out, value, &Id::NONE);
    assert!(out.len() <= 256 + 16 * bytes.len(), "{} bytes of {}", out.len(), bytes.len());
    let mut line: Value = serde_json::from_slice(&out).expect("JSON");
    line["return"].take()
}
