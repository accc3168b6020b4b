//! The kernel's word: a build in which neither broker nor opener asks the rules
//! (cargo feature `sabotage`), so that what still refuses is Landlock.

use std::os::unix::fs::symlink;

use crate::host::{INSIDE, SECRET, home, record_of};
use crate::support::sabotage::binary;

const POLICY: &str = r#"
profile = "files"
[[files]]
path = "HOME/files"
rights = ["read"]
except = ["HOME/files/private"]
[[files]]
path = "HOME/writable"
rights = ["read", "write", "create", "append"]
"#;

pub(crate) fn the_kernel_still_refuses() {
    let mut home = home();
    home.binary = binary().into();
    let files = home.files();
    std::fs::create_dir(files.join("private")).expect("a directory");
    std::fs::write(files.join("private/key"), "secret").expect("a file");
    let writable = home.path("writable");
    std::fs::create_dir(&writable).expect("a directory");
    std::os::unix::fs::chown(&writable, Some(home.worker), Some(home.worker)).expect("its owner");
    symlink(home.path("outside/secret"), files.join("link")).expect("a link");
    symlink(home.path("outside"), writable.join("directory")).expect("a link");
    let agent = home.start(POLICY);
    let mut host = agent.connect();
    // The control: what only broker and opener hold back is open.
    let handle = host.open(files.join("private/key"), "r").expect("the checks are off");
    assert_eq!(host.read(handle), SECRET);
    let handle = host.open(files.join("../files/inside"), "r").expect("the checks are off");
    assert_eq!(host.read(handle), INSIDE);
    let outside = home.path("outside/secret").display().to_string();
    let paths = [
        outside.clone(),
        format!("{}/../outside/secret", files.display()),
        files.join("link").display().to_string(),
        writable.join("directory/secret").display().to_string(),
        format!("/proc/self/root{outside}"),
        format!("/proc/self/cwd{outside}"),
        "/proc/self/status".to_owned(),
        "/proc/self/environ".to_owned(),
        "/dev/null".to_owned(),
        home.path("policy.toml").display().to_string(),
        "/test".to_owned(),
    ];
    for path in &paths {
        for mode in ["r", "w", "a", "r+", "w+", "a+"] {
            let why = host.open(path, mode).expect_err(path);
            assert!(why.ends_with("Permission denied"), "{why}");
            let refused = record_of(&agent, path);
            // The opener still asks which type an object has.
            let by = if path == "/dev/null" { "opener" } else { "kernel" };
            assert_eq!(refused["postern"]["refused_by"], by, "{path} {mode}: {refused}");
        }
    }
    // Rights too: read-only is read-only, and nothing is made outside.
    for mode in ["w", "a", "r+", "w+", "a+"] {
        let why = host.open(files.join("inside"), mode).expect_err(mode);
        assert!(why.ends_with("Permission denied"), "{why}");
    }
    for path in [home.path("outside/new"), files.join("new"), writable.join("directory/new")] {
        let why = host.open(&path, "w").expect_err("a new file");
        assert!(why.ends_with("Permission denied"), "{why}");
        assert!(!path.exists());
    }
    assert_eq!(std::fs::read(home.path("outside/secret")).expect("the secret"), b"secret");
    assert_eq!(std::fs::read(files.join("inside")).expect("the file"), b"inside");
    host.open(writable.join("new"), "w").expect("the control: a rule's own right");
}
