//! The Debian package: what is in it, that it agrees with the code, and that
//! installing, upgrading, removing and purging leave what they should.
//!
//! `packaging/build` makes the package, once for all tests of a run. Installing
//! needs root: it happens in a Debian of its own, on a copy that is thrown away.
//! With systemd at work: see `tests/vm/package.rs`.

#[path = "packaging/content.rs"]
mod content;
#[path = "packaging/install.rs"]
mod install;
#[path = "packaging/later.rs"]
mod later;
#[path = "packaging/pages.rs"]
mod pages;
#[path = "packaging/tree.rs"]
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use postern_core::policy::written::keys;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command prints; it must succeed.
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{printed}\n{said}", output.status);
    printed
}

/// The package, in a directory with its content.
fn package() -> &'static (PathBuf, tempfile::TempDir) {
    static PACKAGE: LazyLock<(PathBuf, tempfile::TempDir)> = LazyLock::new(|| {
        let printed = output(&mut Command::new(root().join("packaging/build")));
        let directory = tempfile::tempdir().unwrap();
        // A copy: others may build while these tests run.
        let package = directory.path().join("postern.deb");
        std::fs::copy(printed.trim_end(), &package).unwrap();
        output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(directory.path().join("content")));
        (package, directory)
    });
    &PACKAGE
}

/// A file of the package, by its path in a guest.
fn packed(path: &str) -> PathBuf {
    package().1.path().join("content").join(path.trim_start_matches('/'))
}

fn source(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// What the policy has for `table.name` where no file sets it.
fn default(id: &str) -> &'static str {
    let key = keys::KEYS.iter().find(|key| key.id() == id).unwrap_or_else(|| panic!("no key {id}"));
    key.default.expect("a default").trim_matches('"')
}

/// The command line for `name`, if it is installed; with `CI` set it must be.
fn tool(name: &str) -> Option<Command> {
    let there = Command::new("sh").args(["-c", "command -v \"$1\" >/dev/null", "sh", name]).status().unwrap().success();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{name} is not installed");
        println!("NOT RUN: {name} is not installed");
    }
    there.then(|| Command::new(name))
}
