//! Names that a hostile host tries, and names that somebody else changes
//! meanwhile.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::support::agent::{Agent, Home, Host};

/// `inside` and `secret` in base64.
pub(crate) const INSIDE: &str = "aW5zaWRl";
pub(crate) const SECRET: &str = "c2VjcmV0";

pub(crate) const POLICY: &str = r#"
profile = "files"
[[files]]
path = "HOME/files"
rights = ["read", "write", "create"]
"#;

/// A home with `files/inside`, and `outside/secret` that every account may read
/// and write.
pub(crate) fn home() -> Home {
    let home = Home::new();
    home.write("inside", b"inside");
    let outside = home.path("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::set_permissions(&outside, Permissions::from_mode(0o777)).expect("its mode");
    fs::write(outside.join("secret"), "secret").expect("a file");
    fs::set_permissions(outside.join("secret"), Permissions::from_mode(0o666)).expect("its mode");
    home
}

fn none() -> Option<&'static str> {
    None
}

/// Binds a directory onto another.
fn bind(from: &Path, at: &Path) {
    fs::create_dir_all(at).expect("a mountpoint");
    mount(Some(from), at, none(), MsFlags::MS_BIND, none()).expect("a bind mount");
}

/// The last record of an open of this path.
pub(crate) fn record_of(agent: &Agent<'_>, path: &str) -> serde_json::Value {
    let records = agent.records_of("guest-file-open");
    let found = records.into_iter().rev().find(|record| record["postern"]["requested"] == path);
    found.unwrap_or_else(|| panic!("no record of {path}"))
}

pub(crate) fn what_the_policy_reaches_is_reached() {
    let home = home();
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let path = home.files().join("inside");
    let handle = host.open(&path, "r").expect("the file of the policy");
    assert_eq!(host.read(handle), INSIDE);
    let granted = record_of(&agent, path.to_str().expect("UTF-8"));
    assert_eq!(granted["postern"]["stage"], "granted");
    let facts = fs::metadata(&path).expect("the file");
    assert_eq!(granted["file"]["inode"], facts.ino().to_string());
    let new = host.open(home.files().join("new"), "w").expect("a new file");
    host.write(new, INSIDE);
    assert_eq!(fs::read(home.files().join("new")).expect("the new file"), b"inside");
    // A link that stays inside is followed.
    symlink("inside", home.files().join("alias")).expect("a link");
    let handle = host.open(home.files().join("alias"), "r").expect("a link within the policy");
    assert_eq!(host.read(handle), INSIDE);
}

pub(crate) fn no_name_leads_outside() {
    let home = home();
    let files = home.files();
    symlink(home.path("outside/secret"), files.join("link")).expect("a link");
    symlink("../outside/secret", files.join("relative")).expect("a link");
    symlink(home.path("outside"), files.join("directory")).expect("a link");
    symlink("/proc/self/root", files.join("root")).expect("a link");
    symlink("/", files.join("slash")).expect("a link");
    symlink(home.path("outside/new"), files.join("dangling")).expect("a link");
    bind(&home.path("outside"), &home.path("elsewhere"));
    // A mount over a directory outside, beside a name that the policy has.
    bind(&home.path("outside"), &home.path("files-too"));
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let shown = |path: PathBuf| path.display().to_string();
    let outside = home.path("outside/secret").display().to_string();
    // Path, and who must have refused it.
    let rows: Vec<(String, &str)> = vec![
        (outside.clone(), "policy"),
        (shown(files.join("../outside/secret")), "policy"),
        (shown(files.join("./inside")), "policy"),
        (shown(files.join("inside/../../outside/secret")), "policy"),
        (format!("{}//inside", files.display()), "policy"),
        (format!("/{}/inside", files.display()), "policy"),
        (format!("{}/", files.join("inside").display()), "policy"),
        (format!("/proc/self/root{outside}"), "policy"),
        ("/proc/self/fd/0".to_owned(), "policy"),
        ("/proc/self/fd/3".to_owned(), "policy"),
        ("/proc/1/root/etc/passwd".to_owned(), "policy"),
        ("/dev/fd/3".to_owned(), "policy"),
        ("/dev/null".to_owned(), "policy"),
        ("inside".to_owned(), "policy"),
        ("files/inside".to_owned(), "policy"),
        (String::new(), "policy"),
        (shown(home.path("elsewhere/secret")), "policy"),
        (shown(home.path("files-too/secret")), "policy"),
        (shown(home.path("files2/secret")), "policy"),
        (shown(home.path("policy.toml")), "policy"),
        (shown(home.log()), "policy"),
        (shown(files.join("link")), "opener"),
        (shown(files.join("relative")), "opener"),
        (shown(files.join("directory/secret")), "opener"),
        (format!("{}{outside}", files.join("root").display()), "opener"),
        (format!("{}{outside}", files.join("slash").display()), "opener"),
        (shown(files.join("root/proc/self/fd/0")), "opener"),
    ];
    for (path, by) in &rows {
        for mode in ["r", "w", "a", "r+", "w+", "a+"] {
            let why = host.open(path, mode).expect_err(path);
            assert_eq!(why, format!("failed to open file '{path}' (mode: '{mode}'): Permission denied"));
            let refused = record_of(&agent, path);
            assert_eq!(refused["postern"]["refused_by"], *by, "{path} {mode}: {refused}");
            assert_eq!(refused["event"]["type"], json!(["access", "denied"]));
        }
    }
    // A link to a name that is not there makes nothing outside.
    host.open(files.join("dangling"), "w").expect_err("a dangling link");
    host.open(files.join("directory/new"), "w").expect_err("a new file outside");
    assert!(!home.path("outside/new").exists());
    // Longer than any path: no record can have it whole, no process chokes.
    let long = format!("{}/{}", files.display(), "a".repeat(5000));
    let why = host.open(&long, "r").expect_err("too long");
    assert!(why.ends_with("File name too long"), "{why}");
    let deep = format!("{}{}/inside", files.display(), "/a".repeat(1500));
    host.open(&deep, "r").expect_err("not there");
    host.open(format!("{}\0/x", files.join("inside").display()), "r").expect_err("a NUL in a path");
    assert_eq!(fs::read(home.path("outside/secret")).expect("the secret"), b"secret");
    host.ping();
    let handle = host.open(files.join("inside"), "r").expect("the control");
    assert_eq!(host.read(handle), INSIDE);
}

/// Opens `path` again and again while `flip` changes what it leads to: what
/// comes back is from inside, or a refusal; both must have come.
fn race(agent: &Agent<'_>, path: &Path, flip: impl Fn() + Sync) {
    const OPENS: u32 = 3000;
    let over = AtomicBool::new(false);
    let mut host: Host = agent.connect();
    let (mut inside, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                flip();
            }
        });
        for opens in 0..OPENS * 20 {
            if opens >= OPENS && inside > 0 && refused > 0 {
                break;
            }
            match host.open(path, "r") {
                Ok(handle) => {
                    let content = host.read(handle);
                    if content != INSIDE {
                        over.store(true, Ordering::Relaxed);
                        panic!("{content} came back");
                    }
                    host.close(handle);
                    inside += 1;
                }
                Err(why) => {
                    let known = ["Permission denied", "No such file or directory", "Too many levels of symbolic links"];
                    if !known.iter().any(|known| why.ends_with(known)) {
                        over.store(true, Ordering::Relaxed);
                        panic!("{why}");
                    }
                    refused += 1;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("    {inside} opens led inside, {refused} were refused");
    assert!(inside > 0 && refused > 0, "the control: both ways were seen");
}

pub(crate) fn a_link_swapped_during_the_open_leads_nowhere() {
    let home = home();
    let files = home.files();
    let agent = home.start(POLICY);
    let name = files.join("flip");
    race(&agent, &name, || {
        for target in [files.join("inside"), home.path("outside/secret")] {
            let new = files.join("new-flip");
            symlink(target, &new).expect("a link");
            fs::rename(&new, &name).expect("a swap");
        }
    });
}

pub(crate) fn a_directory_swapped_leads_nowhere() {
    let home = home();
    let files = home.files();
    // One name `secret` in both, with other content.
    fs::create_dir(files.join("own")).expect("a directory");
    fs::write(files.join("own/secret"), "inside").expect("a file");
    fs::set_permissions(files.join("own/secret"), Permissions::from_mode(0o644)).expect("its mode");
    let agent = home.start(POLICY);
    let name = files.join("flip");
    race(&agent, &name.join("secret"), || {
        for target in [files.join("own"), home.path("outside")] {
            let new = files.join("new-flip");
            symlink(target, &new).expect("a link");
            fs::rename(&new, &name).expect("a swap");
        }
    });
}

/// What the documentation says of mounts and hard links into a directory of
/// the policy: reached, and recorded as what it is.
pub(crate) fn what_root_put_inside_is_reached_and_recorded() {
    let home = home();
    let files = home.files();
    bind(&home.path("outside"), &files.join("mounted"));
    fs::hard_link(home.path("outside/secret"), files.join("linked")).expect("a hard link");
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    let facts = fs::metadata(home.path("outside/secret")).expect("the secret");
    for path in [files.join("mounted/secret"), files.join("linked")] {
        let handle = host.open(&path, "r").expect("what root put there");
        assert_eq!(host.read(handle), SECRET);
        let granted = record_of(&agent, path.to_str().expect("UTF-8"));
        assert_eq!(granted["file"]["inode"], facts.ino().to_string(), "{granted}");
        assert_eq!(granted["postern"]["links"], 2, "{granted}");
    }
}
