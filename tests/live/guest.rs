//! What the agent tells of its guest, held against what this test reads for itself
//! where the guest has it, and against files that it puts there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::utsname::uname;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::support::agent::{Home, Host, eventually};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("the_distribution_and_its_kernel_are_told", the_distribution_and_its_kernel_are_told),
    ("the_zone_is_where_the_link_leads_now", the_zone_is_where_the_link_leads_now),
    ("who_is_logged_in_is_told", who_is_logged_in_is_told),
    ("times_of_processors_are_the_kernels", times_of_processors_are_the_kernels),
    ("counters_of_disks_are_the_kernels", counters_of_disks_are_the_kernels),
    ("processors_and_memory_are_the_kernels", processors_and_memory_are_the_kernels),
    ("processors_and_memory_come_and_go", processors_and_memory_come_and_go),
    ("what_is_redacted_is_neither_told_nor_read", what_is_redacted_is_neither_told_nor_read),
];

pub(crate) fn policy(commands: &[&str]) -> String {
    format!("[commands]\nallow = {}\n", json!(commands))
}

pub(crate) fn told(host: &mut Host, command: &str) -> Value {
    host.returns(command, &Value::Null)
}

/// Puts a file there as programs of a distribution do: a new one, renamed over.
pub(crate) fn put(path: &str, content: &[u8]) {
    let path = Path::new(path);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    let new = path.with_extension("new");
    fs::write(&new, content).expect("a file");
    fs::rename(&new, path).expect("a name");
}

fn the_distribution_and_its_kernel_are_told() {
    put("/usr/lib/os-release", b"ID=theirs\nPRETTY_NAME='Their System'\n");
    fs::create_dir_all("/etc").expect("/etc");
    symlink("../usr/lib/os-release", "/etc/os-release").expect("a link");
    let home = Home::new();
    let start = || home.start(&policy(&["guest-get-osinfo"]));
    let agent = start();
    let mut host = agent.connect();
    let kernel = uname().expect("uname");
    let expected = |more: &[(&str, &str)]| {
        let mut all = json!({
            "kernel-release": kernel.release().to_str(),
            "kernel-version": kernel.version().to_str(),
            "machine": kernel.machine().to_str(),
        });
        for (key, value) in more {
            all[*key] = json!(value);
        }
        all
    };
    let theirs = expected(&[("id", "theirs"), ("pretty-name", "Their System")]);
    assert_eq!(told(&mut host, "guest-get-osinfo"), theirs);
    // An upgrade, another administrator's, and none at all.
    put("/usr/lib/os-release", b"ID=theirs\nVERSION_ID=\"2\"\n");
    assert_eq!(told(&mut host, "guest-get-osinfo"), expected(&[("id", "theirs"), ("version-id", "2")]));
    // More of those within a minute are for the next one to see.
    drop((host, agent));
    let agent = start();
    let mut host = agent.connect();
    put("/etc/os-release", b"ID=mine\nNAME=\"a \\\"b\\\" \\$c\"\n");
    assert_eq!(told(&mut host, "guest-get-osinfo"), expected(&[("id", "mine"), ("name", "a \"b\" $c")]));
    fs::remove_file("/etc/os-release").expect("the file");
    fs::remove_file("/usr/lib/os-release").expect("the file");
    assert_eq!(told(&mut host, "guest-get-osinfo"), expected(&[]));
}

/// A file of RFC 9636 whose zone is this since 1970, as `TZ` would have it, beginning
/// with this name and so many seconds east.
pub(crate) fn zone(rule: &str, name: &str, offset: i32) -> Vec<u8> {
    let length = u8::try_from(name.len() + 1).expect("a short name");
    let block = |times: u8| {
        let counts = [times, 0, 0, 0, 1, 0, 0, 0, length];
        let since = vec![0; usize::from(times) * 9];
        [&b"TZif2"[..], &[0; 30], &counts, &since, &offset.to_be_bytes(), &[0, 0], name.as_bytes(), b"\0"].concat()
    };
    [&block(0), &block(1), &b"\n"[..], rule.as_bytes(), b"\n"].concat()
}

/// The zone as date(1) has it.
fn by_date() -> Value {
    let output = Command::new("/bin/date").arg("+%Z %z").env_remove("TZ").output().expect("date");
    let line = String::from_utf8(output.stdout).expect("UTF-8");
    let (zone, offset) = line.trim_end().split_once(' ').expect("two words");
    let offset: i32 = offset.parse().expect("hours and minutes");
    json!({ "zone": zone, "offset": offset / 100 * 3600 + offset % 100 * 60 })
}

fn the_zone_is_where_the_link_leads_now() {
    let zones = [
        ("Nowhere/East", zone("<+0545>-5:45", "+0545", 20_700)),
        ("Nowhere/West", zone("NST3:30", "NST", -12_600)),
        ("Nowhere/Summer", zone("CET-1CEST,M3.5.0,M10.5.0/3", "CET", 3_600)),
    ];
    for (name, tzif) in &zones {
        put(&format!("/usr/share/zoneinfo/{name}"), tzif);
    }
    let home = Home::new();
    let agent = home.start(&policy(&["guest-get-timezone"]));
    let mut host = agent.connect();
    let utc = json!({ "zone": "UTC", "offset": 0 });
    assert_eq!(told(&mut host, "guest-get-timezone"), utc, "without a file");
    fs::create_dir_all("/etc").expect("/etc");
    let mut seen = Vec::new();
    for (name, _) in &zones {
        symlink(format!("../usr/share/zoneinfo/{name}"), "/etc/new").expect("a link");
        fs::rename("/etc/new", "/etc/localtime").expect("a name");
        let zone = told(&mut host, "guest-get-timezone");
        assert_eq!(zone, by_date(), "{name}");
        seen.push(zone);
    }
    assert_eq!(seen[..2], [json!({ "zone": "+0545", "offset": 20_700 }), json!({ "zone": "NST", "offset": -12_600 })]);
    // A copy, and what is none.
    put("/etc/localtime", &zone("<-03>3", "-03", -10_800));
    assert_eq!(told(&mut host, "guest-get-timezone"), by_date());
    put("/etc/localtime", b"TZif of nothing");
    assert_eq!(told(&mut host, "guest-get-timezone"), utc);
}

/// A record of utmp(5) of somebody who is logged in.
pub(crate) fn login(name: &str, seconds: u32, microseconds: u32) -> Vec<u8> {
    let mut record = vec![0; size_of::<libc::utmpx>()];
    let mut set = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, &libc::USER_PROCESS.to_ne_bytes());
    set(std::mem::offset_of!(libc::utmpx, ut_user), name.as_bytes());
    let times = std::mem::offset_of!(libc::utmpx, ut_tv);
    if cfg!(target_arch = "x86_64") {
        set(times, &seconds.to_ne_bytes());
        set(times + 4, &microseconds.to_ne_bytes());
    } else {
        set(times, &u64::from(seconds).to_ne_bytes());
        set(times + 8, &u64::from(microseconds).to_ne_bytes());
    }
    record
}

fn who_is_logged_in_is_told() {
    fs::write("/run/utmp", login("root", 1_700_000_000, 250_000)).expect("utmp");
    let session = "UID=0\nUSER=ann\nSTATE=active\nCLASS=user\nREALTIME=1700000500123456\n";
    put("/run/systemd/sessions/1", session.as_bytes());
    // By which logind learns of its end; nobody else may open it.
    mkfifo("/run/systemd/sessions/1.ref", Mode::S_IRUSR).expect("a pipe");
    let home = Home::new();
    let agent = home.start(&policy(&["guest-get-users"]));
    let mut host = agent.connect();
    let opener = agent.process("opener", 0);
    let root = json!({ "user": "root", "login-time": 1_700_000_000.25 });
    assert_eq!(told(&mut host, "guest-get-users"), json!([root]));
    let more = [login("root", 1_700_000_000, 250_000), login("bob", 1_800_000_000, 0), login("root", 1, 0)].concat();
    fs::write("/run/utmp", more).expect("utmp");
    let both = json!([{ "user": "root", "login-time": 1 }, { "user": "bob", "login-time": 1_800_000_000 }]);
    assert_eq!(told(&mut host, "guest-get-users"), both);
    fs::write("/run/utmp", "").expect("utmp");
    assert_eq!(told(&mut host, "guest-get-users"), json!([]));
    fs::remove_file("/run/utmp").expect("utmp");
    let ann = json!({ "user": "ann", "login-time": 1_700_000_500.123_456 });
    assert_eq!(told(&mut host, "guest-get-users"), json!([ann]), "logind's");
    put("/run/systemd/sessions/c2", b"USER=gdm\nSTATE=active\nCLASS=greeter\nREALTIME=1\n");
    put("/run/systemd/sessions/3", b"USER=bob\nSTATE=online\nCLASS=user\nREALTIME=1700000600000000\n");
    let bob = json!({ "user": "bob", "login-time": 1_700_000_600 });
    assert_eq!(told(&mut host, "guest-get-users"), json!([ann, bob]));
    fs::remove_dir_all("/run/systemd/sessions").expect("sessions");
    assert_eq!(told(&mut host, "guest-get-users"), json!([]));
    assert_eq!(agent.process("opener", 0), opener, "the pipe was none of its business");
}

/// The numbers of each line whose first words are the key.
fn numbers(file: &str, words: usize, keep: impl Fn(&str) -> bool) -> BTreeMap<String, Vec<u64>> {
    let text = fs::read_to_string(file).unwrap_or_else(|why| panic!("{file}: {why}"));
    let lines = text.lines().filter(|line| keep(line)).map(|line| {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let (key, numbers) = parts.split_at(words);
        (key.join(" "), numbers.iter().map(|number| number.parse().expect("a number")).collect())
    });
    lines.collect()
}

/// Holds that what was told lies between what stood there before and after; of some
/// columns the kernel says itself that they may go back.
fn between(before: &[u64], after: &[u64], unit: u64, columns: &[(&str, usize)], told: &Value) {
    for (name, column) in columns {
        let (Some(before), Some(after)) = (before.get(*column), after.get(*column)) else {
            assert!(told.get(name).is_none(), "{name}: the kernel has none");
            continue;
        };
        let told = told[name].as_u64().unwrap_or_else(|| panic!("{name} in {told}"));
        assert_eq!(told % unit, 0);
        let (least, most) = match *name {
            // proc(5): "not reliable", and may decrease.
            "idle" | "iowait" => (before.saturating_sub(1000), after + 1000),
            _ => (*before, *after),
        };
        assert!((least..=most).contains(&(told / unit)), "{name}: {told} is not within {least} and {most}");
    }
}

fn times_of_processors_are_the_kernels() {
    let home = Home::new();
    let agent = home.start(&policy(&["guest-get-cpustats"]));
    let mut host = agent.connect();
    let kernels = || numbers("/proc/stat", 1, |line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let columns = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guestnice"];
    let columns: Vec<_> = columns.into_iter().zip(0..).collect();
    for _ in 0..3 {
        let before = kernels();
        let told = told(&mut host, "guest-get-cpustats");
        let after = kernels();
        let told = told.as_array().expect("a list");
        assert_eq!(told.len(), before.len());
        for one in told {
            assert_eq!(one["type"], "linux");
            let key = format!("cpu{}", one["cpu"]);
            between(&before[&key], &after[&key], 1000 / 100, &columns, one);
        }
    }
}

fn counters_of_disks_are_the_kernels() {
    let home = Home::new();
    let agent = home.start(&policy(&["guest-get-diskstats"]));
    let mut host = agent.connect();
    let kernels = || numbers("/proc/diskstats", 3, |_| true);
    // Without `ios-pgr`, which goes up and down.
    let columns = [
        "read-ios",
        "read-merges",
        "read-sectors",
        "read-ticks",
        "write-ios",
        "write-merges",
        "write-sectors",
        "write-ticks",
        "",
        "total-ticks",
        "weight-ticks",
        "discard-ios",
        "discard-merges",
        "discard-sectors",
        "discard-ticks",
        "flush-ios",
        "flush-ticks",
    ];
    let columns: Vec<_> = columns.into_iter().zip(0..).filter(|(name, _)| !name.is_empty()).collect();
    for _ in 0..3 {
        let before = kernels();
        let told = told(&mut host, "guest-get-diskstats");
        let after = kernels();
        let told = told.as_array().expect("a list");
        assert!(!told.is_empty());
        for one in told {
            let key = format!("{} {} {}", one["major"], one["minor"], one["name"].as_str().expect("a name"));
            // Others' loop devices come and go.
            let (Some(before), Some(after)) = (before.get(&key), after.get(&key)) else { continue };
            if before.iter().zip(after).all(|(before, after)| before <= after) {
                between(before, after, 1, &columns, &one["stats"]);
            }
        }
    }
}

/// The names in a directory of what is numbered there.
fn numbered(directory: &str, prefix: &str) -> Vec<u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect()
}

const CPU: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
const BOTH: [&str; 3] = ["guest-get-vcpus", "guest-get-memory-blocks", "guest-get-memory-block-info"];

fn processors_and_memory_are_the_kernels() {
    let home = Home::new();
    let agent = home.start(&policy(&BOTH));
    let mut host = agent.connect();
    let read = |path: String| fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned());
    let vcpus = numbered(CPU, "cpu").into_iter().map(|number| {
        let online = read(format!("{CPU}/cpu{number}/online"));
        json!({ "logical-id": number, "online": online.as_deref() != Some("0"), "can-offline": online.is_some() })
    });
    assert_eq!(told(&mut host, BOTH[0]), vcpus.collect::<Value>());
    let blocks = numbered(MEMORY, "memory").into_iter().map(|number| {
        let [state, removable] = ["state", "removable"].map(|file| read(format!("{MEMORY}/memory{number}/{file}")));
        let (online, can_offline) = (state.as_deref() == Some("online"), removable.as_deref() == Some("1"));
        json!({ "phys-index": number, "online": online, "can-offline": can_offline })
    });
    assert_eq!(told(&mut host, BOTH[1]), blocks.collect::<Value>());
    match read(format!("{MEMORY}/block_size_bytes")) {
        Some(size) => {
            let size = u64::from_str_radix(&size, 16).expect("a number");
            assert_eq!(told(&mut host, BOTH[2]), json!({ "size": size }));
        }
        None => assert_eq!(host.fails(BOTH[2], &Value::Null), no_blocks()),
    }
}

fn no_blocks() -> String {
    format!("open(\"{MEMORY}/\"): No such file or directory")
}

/// Puts files of this test's own in place of the kernel's.
fn cover(directory: &str) {
    let none: Option<&str> = None;
    mount(Some("cover"), directory, Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
}

fn processors_and_memory_come_and_go() {
    const BLOCKS: u64 = 2_000;
    cover("/sys/devices/system");
    let write = |path: String, content: &str| {
        fs::create_dir_all(Path::new(&path).parent().expect("a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    };
    fs::create_dir_all(format!("{CPU}/cpu0")).expect("a processor");
    fs::create_dir_all(format!("{CPU}/cpufreq")).expect("a directory");
    write(format!("{CPU}/cpu1/online"), "1\n");
    let lists = |present: &str, online: &str| {
        write(format!("{CPU}/present"), &format!("{present}\n"));
        write(format!("{CPU}/online"), &format!("{online}\n"));
    };
    lists("0-1", "0-1");
    let home = Home::new();
    let agent = home.start(&policy(&BOTH));
    let mut host = agent.connect();
    let by_number = |list: Value, key: &str| -> BTreeMap<u64, (bool, bool)> {
        let flag = |one: &Value, key: &str| one[key].as_bool().expect("a flag");
        let one = |one: &Value| (one[key].as_u64().expect("a number"), (flag(one, "online"), flag(one, "can-offline")));
        list.as_array().expect("a list").iter().map(one).collect()
    };
    let mut vcpus = || by_number(told(&mut host, BOTH[0]), "logical-id");
    assert_eq!(vcpus(), BTreeMap::from([(0, (true, false)), (1, (true, true))]));
    write(format!("{CPU}/cpu1/online"), "0\n");
    lists("0-1", "0");
    assert_eq!(vcpus(), BTreeMap::from([(0, (true, false)), (1, (false, true))]));
    write(format!("{CPU}/cpu7/online"), "1\n");
    lists("0-1,7", "0,7");
    assert_eq!(vcpus(), BTreeMap::from([(0, (true, false)), (1, (false, true)), (7, (true, true))]));
    write(format!("{CPU}/cpu1/online"), "1\n");
    lists("0-1,7", "0-1,7");
    assert_eq!(vcpus(), BTreeMap::from([(0, (true, false)), (1, (true, true)), (7, (true, true))]));
    fs::remove_dir_all(format!("{CPU}/cpu1")).expect("a processor");
    lists("0,7", "0,7");
    assert_eq!(vcpus(), BTreeMap::from([(0, (true, false)), (7, (true, true))]));
    let gathered = agent.records_of("fact-told").iter().filter(|record| record["postern"]["fact"] == "vcpus").count();
    assert_eq!(gathered, 3, "which can be switched off was looked at only for others than before");

    // A kernel without memory hotplug.
    assert_eq!(told(&mut host, BOTH[1]), json!([]));
    assert_eq!(host.fails(BOTH[2], &Value::Null), no_blocks());
    drop(host);
    drop(agent);
    for block in 0..BLOCKS {
        write(format!("{MEMORY}/memory{block}/state"), if block % 3 == 0 { "offline\n" } else { "online\n" });
        write(format!("{MEMORY}/memory{block}/removable"), "1\n");
    }
    write(format!("{MEMORY}/block_size_bytes"), "8000000\n");
    let agent = home.start(&policy(&BOTH));
    let mut host = agent.connect();
    let started = Instant::now();
    let blocks = by_number(told(&mut host, BOTH[1]), "phys-index");
    println!("{BLOCKS} memory blocks in {:?}", started.elapsed());
    assert_eq!(blocks, (0..BLOCKS).map(|block| (block, (block % 3 != 0, true))).collect());
    assert_eq!(told(&mut host, BOTH[2]), json!({ "size": 134_217_728 }));
    write(format!("{MEMORY}/memory1/state"), "going-offline\n");
    eventually("the block goes", || {
        let blocks = by_number(told(&mut host, BOTH[1]), "phys-index");
        (blocks[&1] == (false, true)).then_some(())
    });
}

fn what_is_redacted_is_neither_told_nor_read() {
    fs::write("/run/utmp", login("root", 1_700_000_000, 0)).expect("utmp");
    put("/etc/localtime", &zone("NST3:30", "NST", -12_600));
    put("/etc/os-release", b"ID=debian\nVERSION_ID=12\n");
    let commands = ["guest-get-users", "guest-get-timezone", "guest-get-osinfo"];
    let home = Home::new();
    let agent = home.start(&format!("[commands]\nredact = {}\n", json!(commands)));
    let mut host = agent.connect();
    let answers = commands.map(|command| told(&mut host, command));
    assert_eq!(answers, [json!([]), json!({ "zone": "UTC", "offset": 0 }), json!({ "id": "debian" })]);
    let facts = agent.records_of("fact-told");
    let facts: Vec<_> = facts.iter().map(|record| &record["postern"]["fact"]).collect();
    assert_eq!(facts, ["os-release"]);
}
