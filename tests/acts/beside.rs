//! The same requests to both agents: the same replies, but for what is listed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::support::agent::{Agent, Home, Host};
use crate::support::cell;
use crate::support::differences::listed;
use crate::support::disk::{Disk, Mounted};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("requests_that_change_nothing_are_answered_as_by_stock", requests_that_change_nothing),
    ("a_trim_frees_what_stock_frees", a_trim_frees_what_stock_frees),
    ("a_filesystem_is_trimmed_once_wherever_it_is_mounted", a_filesystem_is_trimmed_once),
];

/// Every act, and files.
pub(crate) const POLICY: &str = "profile = \"files\"\n[commands]\nallow = [\"guest-fstrim\", \"guest-suspend-disk\", \
    \"guest-suspend-ram\", \"guest-suspend-hybrid\", \"guest-set-vcpus\", \"guest-set-memory-blocks\", \
    \"guest-fsfreeze-status\", \"guest-fsfreeze-freeze\", \"guest-fsfreeze-thaw\"]\n\
    [[files]]\npath = \"HOME/files\"\nrights = [\"read\"]\n";

/// A running stock agent.
struct Stock(Child);

impl Stock {
    fn start(home: &Home) -> (Self, Host) {
        let (socket, state) = (home.path("stock.sock"), home.path("stock"));
        fs::create_dir_all(&state).expect("a directory");
        let mut command = Command::new("/bin/qemu-ga");
        command.args(["-m", "unix-listen", "-p"]).arg(&socket).arg("-t").arg(&state);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("stock");
        (Self(child), Host::connect(&socket))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processors and memory blocks that are there and always on, or are not there at
/// all, and mistakes in the arguments. Nothing here changes the machine.
const REQUESTS: &[(&str, &str)] = &[
    ("guest-set-vcpus", "{}"),
    ("guest-set-vcpus", r#"{"vcpus": 1}"#),
    ("guest-set-vcpus", r#"{"vcpus": "x"}"#),
    ("guest-set-vcpus", r#"{"vcpus": {}}"#),
    ("guest-set-vcpus", r#"{"vcpus": null}"#),
    ("guest-set-vcpus", r#"{"vcpus": []}"#),
    ("guest-set-vcpus", r#"{"vcpus": [1]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [null]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [[]]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": "a", "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0.5, "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 18446744073709551615, "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": 1}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true, "x": 1}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true, "can-offline": 1}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true, "can-offline": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true}], "y": 2}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true}, 1]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true}, {"online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true}, {"logical-id": 0, "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 99999, "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 99999, "online": false}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": -1, "online": true}]}"#),
    ("guest-set-vcpus", r#"{"vcpus": [{"logical-id": 0, "online": true}, {"logical-id": 99999, "online": true}]}"#),
    ("guest-set-memory-blocks", "{}"),
    ("guest-set-memory-blocks", r#"{"mem-blks": 1}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": []}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [1]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": "a", "online": true}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 0.5, "online": true}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 18446744073709551616, "online": true}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 0}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 0, "online": "x"}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 0, "online": true, "z": 1}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 9999999, "online": true}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": -1, "online": true}]}"#),
    ("guest-set-memory-blocks", r#"{"mem-blks": [{"phys-index": 18446744073709551615, "online": false}]}"#),
    ("guest-fstrim", r#"{"minimum": "a"}"#),
    ("guest-fstrim", r#"{"minimum": 0.5}"#),
    ("guest-fstrim", r#"{"minimum": 18446744073709551615}"#),
    ("guest-fstrim", r#"{"x": 1}"#),
    ("guest-suspend-disk", r#"{"x": 1}"#),
    // The cell's kernel has neither sleep.
    ("guest-suspend-disk", "{}"),
    ("guest-suspend-ram", "{}"),
    ("guest-suspend-hybrid", "{}"),
];

/// Sends a request; the reply's bytes, without what is not the request's.
fn ask(host: &mut Host, command: &str, arguments: &str) -> String {
    let request = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}");
    host.send(request.as_bytes());
    host.hear_line()
}

fn requests_that_change_nothing() {
    cell::sleepless();
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut ours = agent.connect();
    let (_stock, mut theirs) = Stock::start(&home);
    let mut requests: Vec<(String, String)> =
        REQUESTS.iter().map(|&(command, arguments)| (command.to_owned(), arguments.to_owned())).collect();
    // A processor that cannot be switched off, if this machine has one.
    if !Path::new("/sys/devices/system/cpu/cpu0/online").exists() {
        let off = r#"{"logical-id": 0, "online": false}"#;
        requests.push(("guest-set-vcpus".to_owned(), format!(r#"{{"vcpus": [{off}]}}"#)));
        let on = r#"{"logical-id": 0, "online": true}"#;
        requests.push(("guest-set-vcpus".to_owned(), format!(r#"{{"vcpus": [{on}, {off}, {on}]}}"#)));
    }
    // And what is on already, where there are such.
    if fs::read_to_string("/sys/devices/system/memory/memory0/state").is_ok_and(|state| state == "online\n") {
        let list = r#"[{"phys-index": 0, "online": true}, {"phys-index": 9999999, "online": false}]"#;
        requests.push(("guest-set-memory-blocks".to_owned(), format!(r#"{{"mem-blks": {list}}}"#)));
    }
    for (number, (command, arguments)) in requests.iter().enumerate() {
        // So many acts in a second are refused by the policy's default.
        if number > 0 && number.is_multiple_of(8) {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        let due = ask(&mut theirs, command, arguments);
        assert_eq!(ask(&mut ours, command, arguments), due, "{command} {arguments}");
    }
    println!("{} requests, each answered as by stock", requests.len());
}

/// Ext4, xfs and btrfs with free space that was written before, ext4 read-only, a
/// squashfs, which has nothing to free.
struct Scene {
    _mounts: Vec<Mounted>,
    _disks: Vec<Disk>,
}

const IMAGES: [&str; 4] = ["ext4", "xfs", "btrfs", "readonly"];

impl Scene {
    /// Makes the images.
    fn prepare() {
        for kind in IMAGES {
            let disk = Disk::small(if kind == "readonly" { "ext4" } else { kind }, format!("/{kind}.img"));
            let mounted = disk.mount("/prepare");
            fs::write(mounted.path("junk"), vec![0x5a; 12 << 20]).expect("written");
            mounted.sync();
            fs::remove_file(mounted.path("junk")).expect("removed");
            mounted.sync();
        }
        fs::create_dir("/empty").expect("a directory");
        let squashed = Command::new("/bin/mksquashfs").args(["/empty", "/squash.img", "-quiet"]).output().expect("run");
        assert!(squashed.status.success(), "{}", String::from_utf8_lossy(&squashed.stderr));
    }

    /// Attaches and mounts copies of them.
    fn mount() -> Self {
        let (mut disks, mut mounts) = (Vec::new(), Vec::new());
        for kind in IMAGES {
            let copy = format!("/{kind}.copy");
            let copied =
                Command::new("/bin/cp").args(["--sparse=always"]).arg(format!("/{kind}.img")).arg(&copy).status();
            assert!(copied.expect("cp").success());
            let disk = Disk::attach(if kind == "readonly" { "ext4" } else { kind }, Path::new(&copy));
            let at = format!("/{kind}");
            if kind == "readonly" {
                fs::create_dir_all(&at).expect("a directory");
                mount(Some(&disk.device), at.as_str(), Some("ext4"), MsFlags::MS_RDONLY, None::<&str>)
                    .expect("mounted");
                mounts.push(Mounted::of(Path::new(&at)));
            } else {
                mounts.push(disk.mount(&at));
            }
            disks.push(disk);
        }
        let squash = Disk::attach("squashfs", Path::new("/squash.img"));
        fs::create_dir_all("/squash").expect("a directory");
        mount(Some(&squash.device), "/squash", Some("squashfs"), MsFlags::MS_RDONLY, None::<&str>).expect("mounted");
        mounts.push(Mounted::of(Path::new("/squash")));
        disks.push(squash);
        Self { _mounts: mounts, _disks: disks }
    }

    /// Bytes that each image takes.
    fn taken() -> Vec<u64> {
        IMAGES.iter().map(|kind| fs::metadata(format!("/{kind}.copy")).expect("there").blocks() * 512).collect()
    }
}

/// Trims fresh copies of the images; the reply, and by how much each shrank.
fn trimmed(host: &mut Host, arguments: &str) -> (Value, Vec<u64>) {
    let _scene = Scene::mount();
    let before = Scene::taken();
    let reply = ask(host, "guest-fstrim", arguments);
    let after = Scene::taken();
    let reply: Value = serde_json::from_str(&reply).expect("JSON");
    (reply, before.iter().zip(after).map(|(before, after)| before.saturating_sub(after)).collect())
}

fn a_trim_frees_what_stock_frees() {
    Scene::prepare();
    let home = Home::new();
    let agent = home.start(POLICY);
    let mut ours = agent.connect();
    let (_stock, mut theirs) = Stock::start(&home);
    for arguments in ["{}", r#"{"minimum": 65536}"#, r#"{"minimum": 1073741824}"#, r#"{"minimum": -1}"#] {
        let (due, freed_by_stock) = trimmed(&mut theirs, arguments);
        let (reply, freed) = trimmed(&mut ours, arguments);
        println!("{arguments}: freed {freed:?}, by stock {freed_by_stock:?}: {reply}");
        let (all, all_due) = (paths(&reply), paths(&due));
        assert_eq!(all.len(), IMAGES.len() + 1, "{reply}");
        assert_eq!(all.len(), all_due.len(), "{reply}\n{due}");
        for (one, due) in all.iter().zip(all_due) {
            // What btrfs has free depends on what it has just written for itself.
            if one["path"] == "/btrfs" && one.get("trimmed").is_some() {
                assert_eq!((&one["minimum"], one.get("error")), (&due["minimum"], due.get("error")), "{arguments}");
                let (got, due) = (one["trimmed"].as_u64().expect("bytes"), due["trimmed"].as_u64().expect("bytes"));
                assert!(got.abs_diff(due) <= 8 << 20, "{got} {due}");
            } else {
                assert_eq!(*one, due, "{arguments}");
            }
        }
        if arguments == "{}" {
            assert!(freed[..3].iter().all(|freed| *freed >= 8 << 20), "{freed:?}");
        }
    }
    recorded(&agent);
}

/// One that is mounted at two places, and one that another mount has covered.
fn a_filesystem_is_trimmed_once() {
    let bound = Disk::small("ext4", "/bound.img");
    let covered = Disk::small("ext4", "/covered.img");
    let covering = Disk::small("ext4", "/covering.img");
    let _first = bound.mount("/first");
    fs::create_dir("/second").expect("a directory");
    mount(Some("/first"), "/second", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bound");
    let _second = Mounted::of(Path::new("/second"));
    let _below = covered.mount("/stack");
    let _above = covering.mount("/stack");
    let home = Home::new();
    let agent = home.start(POLICY);
    let (_stock, mut theirs) = Stock::start(&home);
    let trimmed = |host: &mut Host| -> Vec<String> {
        let reply: Value = serde_json::from_str(&ask(host, "guest-fstrim", "{}")).expect("JSON");
        paths(&reply).iter().map(|one| one["path"].as_str().expect("a path").to_owned()).collect()
    };
    let (stock, ours) = (trimmed(&mut theirs), trimmed(&mut agent.connect()));
    let difference = listed("fstrim-once");
    assert_eq!(stock, ["/stack", "/stack", "/second", "/first"], "{difference}");
    assert_eq!(ours, ["/stack", "/first"], "{difference}");
}

/// What stands in the log of the first of them.
fn recorded(agent: &Agent<'_>) {
    let records = agent.records_of("guest-fstrim");
    let stages: Vec<&str> = records.iter().filter_map(|one| one["postern"]["stage"].as_str()).collect();
    assert_eq!(stages, ["asked", "done"].repeat(4), "{records:#?}");
    let (asked, done) = (&records[0]["postern"], &records[1]["postern"]);
    assert_eq!(asked["minimum"], 0);
    assert_eq!(records[6]["postern"]["minimum"], u64::MAX, "as the kernel takes it");
    assert!(done["trimmed"].as_u64().expect("bytes") > 24 << 20, "{done}");
    let lists: Vec<&str> = ["mounts", "failed"]
        .iter()
        .flat_map(|list| done[list].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(done["count"], done["mounts"].as_array().expect("a list").len());
    for at in ["/ext4", "/xfs", "/btrfs", "/readonly", "/squash"] {
        assert!(lists.contains(&at), "{at}: {lists:?}");
    }
    assert_eq!(asked["child"], done["child"]);
}

fn paths(reply: &Value) -> Vec<Value> {
    reply["return"]["paths"].as_array().unwrap_or_else(|| panic!("{reply}")).clone()
}

/// A request without arguments.
pub(crate) const NOTHING: Value = Value::Null;

/// The arguments that ask for nothing.
pub(crate) fn no_vcpu() -> Value {
    json!({ "vcpus": [] })
}
