//! What a rule says of the object, not of the name: types, exceptions, append,
//! create, modes, limits.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::host::{INSIDE, POLICY, SECRET, home, record_of};
use crate::support::agent::Home;

fn policy(rule: &str) -> String {
    format!("profile = \"files\"\n[[files]]\npath = \"HOME/files\"\n{rule}\n")
}

pub(crate) fn only_the_types_of_the_rule_are_opened() {
    let place = |home: &Home| {
        let files = home.files();
        mkfifo(&files.join("fifo"), Mode::from_bits_truncate(0o666)).expect("a FIFO");
        let everyone = Mode::from_bits_truncate(0o666);
        mknod(&files.join("null"), SFlag::S_IFCHR, everyone, makedev(1, 3)).expect("a device");
        mknod(&files.join("disk"), SFlag::S_IFBLK, everyone, makedev(7, 250)).expect("a device");
        for name in ["fifo", "null", "disk"] {
            fs::set_permissions(files.join(name), Permissions::from_mode(0o666)).expect("its mode");
        }
        fs::create_dir(files.join("directory")).expect("a directory");
        std::mem::forget(UnixListener::bind(files.join("socket")).expect("a socket"));
        symlink("fifo", files.join("alias")).expect("a link");
    };
    let home = home();
    place(&home);
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    for name in ["fifo", "null", "disk", "socket", "alias", "directory"] {
        let path = home.files().join(name);
        for mode in ["r", "w", "a", "r+"] {
            let why = host.open(&path, mode).expect_err(name);
            let due = if name == "directory" { "Is a directory" } else { "Permission denied" };
            assert!(why.ends_with(due), "{why}");
            let refused = record_of(&agent, path.to_str().expect("UTF-8"));
            assert_eq!(refused["postern"]["refused_by"], "opener", "{refused}");
        }
    }
    host.open(home.files(), "r").expect_err("the directory of the rule itself");
    drop((host, agent));
    // A rule that names them.
    let home = crate::host::home();
    place(&home);
    let types = "rights = [\"read\", \"write\"]\ntypes = [\"fifo\", \"character-device\"]";
    let agent = home.start(&policy(types));
    let mut host = agent.connect();
    for (name, mode) in [("fifo", "r"), ("fifo", "r+"), ("alias", "r"), ("null", "r"), ("null", "w")] {
        // Without a wait for the FIFO's other end.
        host.open(home.files().join(name), mode).unwrap_or_else(|why| panic!("{name} {mode}: {why}"));
    }
    for name in ["inside", "disk", "socket", "directory"] {
        host.open(home.files().join(name), "r").expect_err(name);
    }
}

pub(crate) fn an_exception_holds_for_the_resolved_object() {
    let home = home();
    let files = home.files();
    fs::create_dir(files.join("private")).expect("a directory");
    fs::write(files.join("private/key"), "secret").expect("a file");
    fs::write(files.join("single"), "secret").expect("a file");
    for name in ["private", "private/key", "single"] {
        chown(files.join(name), Some(home.worker), Some(home.worker)).expect("its owner");
    }
    symlink("private/key", files.join("link")).expect("a link");
    symlink("private", files.join("directory")).expect("a link");
    symlink("single", files.join("other")).expect("a link");
    let rights = "rights = [\"read\", \"write\", \"create\"]";
    let agent = home.start(&policy(&format!("{rights}\nexcept = [\"HOME/files/private\", \"HOME/files/single\"]")));
    let mut host = agent.connect();
    for (name, by) in [
        ("private/key", "policy"),
        ("private/new", "policy"),
        ("private", "policy"),
        ("single", "policy"),
        ("link", "opener"),
        ("directory/key", "opener"),
        ("directory/new", "opener"),
        ("other", "opener"),
    ] {
        let path = files.join(name);
        for mode in if name.ends_with("new") { &["w", "a"][..] } else { &["r", "w", "a", "r+"] } {
            let why = host.open(&path, mode).expect_err(name);
            assert!(why.ends_with("Permission denied"), "{why}");
            let refused = record_of(&agent, path.to_str().expect("UTF-8"));
            assert_eq!(refused["postern"]["refused_by"], by, "{refused}");
        }
    }
    assert!(!files.join("private/new").exists());
    assert_eq!(fs::read(files.join("private/key")).expect("the key"), b"secret");
    host.open(files.join("inside"), "r").expect("the control");
    // A name that only begins like the exception.
    home.write("singleton", b"inside");
    host.open(files.join("singleton"), "r").expect("another name");
}

pub(crate) fn read_only_changes_nothing() {
    let home = home();
    let agent = home.start(&policy("rights = [\"read\"]"));
    let mut host = agent.connect();
    let path = home.files().join("inside");
    for mode in ["w", "a", "r+", "w+", "a+", "wb", "ab", "rb+", "w+b"] {
        let why = host.open(&path, mode).expect_err(mode);
        assert!(why.ends_with("Permission denied"), "{why}");
    }
    host.open(home.files().join("new"), "w").expect_err("a new file");
    assert!(!home.files().join("new").exists());
    let handle = host.open(&path, "r").expect("the control");
    let written = host.write(handle, SECRET);
    assert_eq!(written["error"]["desc"], "failed to write to file: Bad file descriptor");
    assert_eq!(fs::read(&path).expect("the file"), b"inside");
}

pub(crate) fn append_overwrites_nothing() {
    let home = home();
    let agent = home.start(&policy("rights = [\"append\", \"read\"]"));
    let mut host = agent.connect();
    let path = home.files().join("inside");
    for mode in ["w", "r+", "w+"] {
        host.open(&path, mode).expect_err(mode);
        assert_eq!(fs::read(&path).expect("the file"), b"inside", "{mode}");
    }
    for (mode, due) in [("a", &b"insidesecret"[..]), ("a+", b"insidesecretsecret")] {
        let handle = host.open(&path, mode).expect(mode);
        host.returns("guest-file-seek", &json!({ "handle": handle, "offset": 0, "whence": 0 }));
        host.write(handle, SECRET);
        assert_eq!(fs::read(&path).expect("the file"), due, "{mode}");
    }
    host.open(home.files().join("new"), "a").expect_err("a file that is not there");
}

pub(crate) fn create_makes_and_overwrites_nothing() {
    let home = home();
    let agent = home.start(&policy("rights = [\"create\"]"));
    let mut host = agent.connect();
    let path = home.files().join("inside");
    for mode in ["r", "w", "a", "r+", "w+", "a+"] {
        host.open(&path, mode).expect_err(mode);
        assert_eq!(fs::read(&path).expect("the file"), b"inside", "{mode}");
    }
    let new = home.files().join("new");
    let handle = host.open(&new, "w").expect("a new file");
    host.write(handle, SECRET);
    host.close(handle);
    assert_eq!(fs::read(&new).expect("the new file"), b"secret");
    host.open(&new, "w").expect_err("it is there now");
    let asked = agent.records_of("guest-file-open");
    let of_new: Vec<&Value> =
        asked.iter().filter(|record| record["postern"]["requested"] == new.to_str().expect("")).collect();
    assert_eq!(of_new[0]["postern"]["stage"], "asked", "recorded before it was made");
    assert_eq!(of_new[1]["postern"]["created"], true);
}

pub(crate) fn a_new_file_has_the_policys_mode() {
    for (table, due) in [("", 0o600), ("[create]\nmode = \"0640\"\n", 0o640)] {
        let home = home();
        let agent = home.start(&format!("{POLICY}{table}"));
        let mut host = agent.connect();
        for (mode, name) in [("w", "one"), ("a", "two"), ("w+", "three"), ("a+", "four")] {
            let path = home.files().join(name);
            host.open(&path, mode).expect(name);
            let facts = fs::metadata(&path).expect("the new file");
            assert_eq!(facts.mode() & 0o7777, due, "{name}");
            assert_eq!((facts.uid(), facts.gid()), (home.worker, home.worker), "{name}");
        }
    }
}

pub(crate) fn open_handles_are_limited() {
    let home = home();
    let agent = home.start(&format!("{POLICY}[limits]\nhandles = 3\n"));
    let mut host = agent.connect();
    let path = home.files().join("inside");
    for _ in 0..2 {
        let handles: Vec<i64> = (0..3).map(|_| host.open(&path, "r").expect("a handle")).collect();
        for _ in 0..3 {
            let why = host.open(&path, "r").expect_err("one too many");
            assert!(why.ends_with("Too many open files: 3 (limits.handles of the guest's policy)"), "{why}");
        }
        assert_eq!(host.read(handles[2]), INSIDE);
        for handle in handles {
            host.close(handle);
        }
    }
    // What was not closed counts for the next host too.
    host.open(&path, "r").expect("a handle");
    drop(host);
    let mut host = agent.connect();
    for _ in 0..2 {
        host.open(&path, "r").expect("a handle");
    }
    host.open(&path, "r").expect_err("one too many");
}

pub(crate) fn links_are_bounded() {
    let home = home();
    let files = home.files();
    symlink("loop", files.join("loop")).expect("a link");
    let mut last = "inside".to_owned();
    for number in 0..60 {
        let name = format!("l{number}");
        symlink(&last, files.join(&name)).expect("a link");
        last = name;
    }
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    for name in ["loop", "l59"] {
        for mode in ["r", "w"] {
            let why = host.open(files.join(name), mode).expect_err(name);
            assert!(why.ends_with("Too many levels of symbolic links"), "{why}");
        }
    }
    host.open(files.join("l10"), "r").expect("a few links");
    assert_eq!(fs::read(files.join("inside")).expect("the file"), b"inside");
}
