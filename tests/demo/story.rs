//! `postern demo`: exit status, what it shows, and that nothing of it stays.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Place, err, is_root, ordinary, out, postern, records};
use crate::binary::BINARY;

/// The directory that the demo's first line names.
fn directory(line: &str) -> PathBuf {
    let rest = line.strip_prefix("postern demo: the real agent in ").unwrap_or_else(|| panic!("first line: {line}"));
    PathBuf::from(rest.split(',').next().unwrap())
}

/// What stands behind a step's name, if it ended as expected.
fn step<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix("  ok        ")?.strip_prefix(name)?.strip_prefix("  "))
}

fn nothing_is_left(directory: &Path) {
    let name = directory.to_str().unwrap();
    assert!(!directory.exists(), "{name} is still there");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(name), "still mounted: {mounts}");
    let devices = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
    let backing = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    assert!(!backing.into_iter().any(|file| file.contains(name)), "a loop device still has its image");
    for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains(name), "a process of it still runs: {process:?}");
    }
}

fn check(output: &Output, whole: bool) {
    let text = out(output);
    assert!(output.status.success(), "{}: {text}{}", output.status, err(output));
    assert_eq!(err(output), "");
    assert!(!text.contains('\x1b'), "coloured although this is no terminal");
    assert!(!text.contains("WRONG"), "{text}");
    let told = |name: &str| step(&text, name).unwrap_or_else(|| panic!("no good '{name}' in:\n{text}"));
    assert!(told("guest-info").contains("13 of 43 commands on"));
    assert!(told("write a file").contains("20 bytes written"));
    assert!(told("read it back").contains("\"Hello from the host.\""));
    assert!(told("seek in it").contains("to byte 6: \"from the host.\""));
    assert!(told("outside the policy").contains("EACCES, refused by the policy"));
    assert!(told("a link out of it").contains("EACCES, refused by the opener"));
    assert!(told("guest-shutdown").contains("has been disabled"));
    assert!(told("compared").contains("none is root"));
    assert!(told("the chain").contains("whole: "));
    assert!(told("an edit").contains("found in line"));
    let processes = ["postern-broker ", "postern-spawner ", "postern-opener ", "postern-worker "];
    for process in processes {
        assert!(text.lines().any(|line| line.trim_start().starts_with(process)), "{process} is not shown: {text}");
    }
    assert!(text.contains("guest-file-open            refused "), "the table shows no refusal: {text}");
    if whole && step(&text, "freeze").is_some() {
        assert!(told("a write meanwhile").contains("waits in the kernel"));
        assert!(told("thaw").contains("the write has gone through"));
        assert!(text.contains("effective, permitted, bounding: CAP_DAC_READ_SEARCH CAP_SYS_ADMIN"), "{text}");
    } else {
        let line = text.lines().find(|line| line.contains("left out  freeze and thaw"));
        let line = line.unwrap_or_else(|| panic!("freezing is neither shown nor left out: {text}"));
        println!("the demo could not freeze here: {line}");
        assert!(!whole || std::env::var_os("CI").is_none(), "in CI nothing is left out as root");
    }
    nothing_is_left(&directory(text.lines().next().unwrap()));
}

#[test]
fn every_step_ends_as_expected() {
    check(&postern().arg("demo").output().unwrap(), is_root());
}

#[test]
fn an_ordinary_user_can_run_it_too() {
    if !is_root() {
        return println!("left out: the other test runs as an ordinary user already");
    }
    let place = Place::new();
    check(&place.as_user(ordinary()).arg("demo").output().unwrap(), false);
}

#[test]
fn kept_files_can_be_looked_at() {
    let place = Place::new();
    let kept = place.path("kept");
    let demo = || postern().arg("demo").arg("--keep").arg(&kept).output().unwrap();
    let first = demo();
    assert!(first.status.success(), "{}{}", out(&first), err(&first));
    assert!(out(&first).contains(&format!("Kept in {}", kept.display())));
    assert_eq!(fs::read_to_string(kept.join("files/greeting.txt")).unwrap(), "Hello from the host.");
    let run = |arguments: &[&str], file: &str| {
        let output = postern().args(arguments).arg(kept.join(file)).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}{}", out(&output), err(&output));
        out(&output)
    };
    records::check_home(&kept.join("log"), &kept.join("agent.log"));
    assert!(run(&["audit", "verify"], "log/audit.jsonl").starts_with("whole: "));
    assert!(run(&["audit", "show", "--outcome", "failure"], "log/audit.jsonl").contains("by opener"));
    run(&["policy", "check", "--policy"], "policy.toml");
    for gone in ["host.sock", "state", "scratch", "scratch.ext4", "postern", "log/edited.jsonl"] {
        assert!(!kept.join(gone).exists(), "{gone} was kept");
    }

    let second = demo();
    assert_eq!(second.status.code(), Some(1));
    assert!(err(&second).contains("is not empty; name a new directory"), "{}", err(&second));
}

#[test]
fn a_place_that_will_not_do_is_refused_with_the_reason() {
    let place = Place::new();
    let closed = place.path("open-to-all");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o777)).unwrap();
    let output = postern().args(["demo", "--keep"]).arg(closed.join("new")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("others can write in"), "{}", err(&output));
    assert!(!closed.join("new").exists());
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let mut demo = Command::new(BINARY).arg("demo").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let directory = directory(&lines.next().unwrap().unwrap());
    assert!(directory.exists());
    kill(Pid::from_raw(demo.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    // Until it closes its output.
    for line in lines {
        drop(line.unwrap());
    }
    let output = demo.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", err(&output));
    assert!(err(&output).contains("interrupted by SIGINT"), "{}", err(&output));
    nothing_is_left(&directory);
}
