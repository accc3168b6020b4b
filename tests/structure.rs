//! The house stands as drawn: who may name whom, what the trusted base depends
//! on, where unsafe code lives, and that files say what they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every crate that `package` needs to be built and run, tests left out.
fn dependencies(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{lib}", "-p", package])
        .current_dir(root())
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).filter(|name| !name.is_empty()).collect()
}

fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Not what cargo-fuzz builds where it is not told otherwise.
                open.extend(Some(path).filter(|path| !path.ends_with("fuzz/target")));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// A file's code without its comments, line by line.
fn code(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn the_trusted_base_has_no_json_parser() {
    for package in ["postern-core", "postern-broker", "postern-opener"] {
        let found = dependencies(package);
        assert!(found.contains("nix"), "{package}: cargo tree shows nothing");
        let parser = found.iter().find(|name| name.contains("json") || name.contains("yaml"));
        assert_eq!(parser, None, "{package} depends on a parser");
    }
    assert!(dependencies("postern-worker").contains("serde_json"), "the control: the worker has one");
}

#[test]
fn no_side_can_name_another() {
    let sides = ["postern_broker", "postern_opener", "postern_worker", "postern_tools"];
    for package in ["postern-core", "postern-broker", "postern-opener", "postern-worker", "postern-tools"] {
        let found = dependencies(package);
        let own = package.replace('-', "_");
        for side in sides.iter().filter(|side| **side != own) {
            assert!(!found.contains(*side), "{package} can name {side}");
        }
    }
    let all = dependencies("postern-ga");
    assert!(sides.iter().all(|side| all.contains(*side)), "the control: the executable has them all");
}

#[test]
fn unsafe_code_lives_in_one_room() {
    let mut seen = 0;
    for path in sources("src") {
        let room = path.starts_with(root().join("src/core/sys"));
        for (number, line) in code(&path).iter().enumerate() {
            if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"]
                .iter()
                .any(|form| line.contains(form))
            {
                assert!(room, "{}:{}: unsafe code outside src/core/sys", shown(&path), number + 1);
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "the control: the room is not empty");
    for side in ["main.rs", "broker/lib.rs", "opener/lib.rs", "worker/lib.rs", "tools/lib.rs"] {
        let text = fs::read_to_string(root().join("src").join(side)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{side} does not forbid unsafe code");
    }
}

#[test]
fn imports_in_the_core_go_one_way() {
    const ROOMS: [&str; 9] = ["sys", "mountinfo", "ipc", "catalogue", "policy", "rate", "messages", "audit", "confine"];
    let mut edges = 0;
    for path in sources("src/core") {
        let inside = path.strip_prefix(root().join("src/core")).unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let Some(own) = ROOMS.iter().position(|room| *room == first) else { continue };
        let lines = code(&path);
        // Tests look at a room from outside.
        let room = lines.iter().take_while(|line| !line.starts_with("#[cfg(test)]"));
        for (number, line) in room.enumerate() {
            for used in line.split("crate::").skip(1) {
                let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(other) = ROOMS.iter().position(|room| **room == name) {
                    assert!(other <= own, "{}:{}: {first} uses {name}", shown(&path), number + 1);
                    edges += usize::from(other < own);
                }
            }
        }
    }
    assert!(edges > 10, "the control: rooms do use each other");
}

#[test]
fn every_file_says_what_it_is_and_is_short() {
    /// Longer files, with the reason.
    const LONG: [(&str, &str); 4] = [
        ("src/core/catalogue.rs", "one table of every command, and the words that it is written in"),
        ("src/core/policy/written/keys.rs", "one table of every key"),
        ("src/core/messages.rs", "every message of four pairs of processes, side by side"),
        ("src/worker/qga/frame.rs", "one lexer; its states belong together"),
    ];
    for path in ["src", "tests", "benches", "packaging"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not say what it is", shown(&path));
    }
    for path in sources("src") {
        let text = fs::read_to_string(&path).unwrap();
        let name = shown(&path);
        let lines = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().count();
        let excused = LONG.iter().any(|(long, _)| *long == name);
        assert!(lines <= 420 || excused, "{name} has {lines} lines");
        assert!(lines > 420 || !excused, "{name} is no longer long");
    }
}

#[test]
fn every_package_that_was_wished_for_is_used() {
    for (package, directory) in [
        ("serde", "src/worker"),
        ("serde_json", "src/worker"),
        ("base64", "src/worker"),
        ("landlock", "src/core"),
        ("seccompiler", "src/core"),
        ("caps", "src/core"),
        ("nix", "src/broker"),
    ] {
        let used =
            sources(directory).iter().any(|path| code(path).iter().any(|line| line.contains(&format!("{package}::"))));
        assert!(used, "{directory} does not use {package}");
    }
}

#[test]
fn the_lock_file_is_the_one_that_is_committed() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let licences = metadata["packages"].as_array().unwrap();
    assert!(licences.iter().all(|package| package["license"] == "MIT OR Apache-2.0"));
}
