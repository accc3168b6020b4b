//! `policy explain` and `policy test`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::unistd::geteuid;
use postern_core::policy::written::{self, Loaded, World};
use postern_tools::policy::{Right, try_open};
use serde_json::{Value, json};

use super::files::{Files, plain};
use super::shipped;
use crate::binary::BINARY;

#[test]
fn explain_says_why_and_where() {
    let loaded = shipped("policy.toml");
    let explained: Value = serde_json::from_str(&postern_tools::policy::explain(&loaded).json()).unwrap();
    let command = |name: &str| {
        explained["commands"].as_array().unwrap().iter().find(|line| line["name"] == name).cloned().unwrap()
    };
    assert_eq!(explained["commands"].as_array().unwrap().len(), postern_core::catalogue::CATALOGUE.len());
    assert_eq!(command("guest-ping")["why"], "profile backup");
    assert_eq!(command("guest-shutdown")["why"], "allow");
    assert_eq!(command("guest-shutdown")["file"], "policy.toml");
    assert_eq!(command("guest-file-open")["allowed"], false);
    assert!(command("guest-exec")["why"].as_str().unwrap().starts_with("not offered by design: a program"));
    let broker = &explained["processes"][0];
    assert_eq!(broker["name"], "broker");
    assert_eq!(
        broker["capabilities"],
        json!([
            "CAP_DAC_READ_SEARCH",
            "CAP_SYS_ADMIN",
            "CAP_KILL (none where init takes requests by a FIFO, none where init is unknown)"
        ])
    );
    for process in &explained["processes"].as_array().unwrap()[1..] {
        assert_eq!(process["capabilities"], json!([]), "{process}");
    }
    let text = postern_tools::policy::explain(&shipped("examples/push-config.toml")).to_string();
    for part in ["create   held by Landlock", "append   held by opener, seccomp", "except   held by opener"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn explain_tells_what_the_log_takes_of_the_broker() {
    let of = |audit: &str| -> (Vec<String>, String) {
        let text = format!("version = 1\nprofile = \"minimal\"\n[audit]\nheads = []\n{audit}");
        let loaded = written::load_embedded("x", &text, &World { here: false, ..super::sample_world() }).unwrap();
        let explained: Value = serde_json::from_str(&postern_tools::policy::explain(&loaded).json()).unwrap();
        let broker = &explained["processes"][0];
        let calls = broker["calls"].as_array().unwrap().iter();
        // Whatever a broker may do anyway is not the log's.
        let calls = calls.filter_map(|call| call["name"].as_str().map(str::to_owned));
        (calls.collect(), broker["landlock"].as_str().unwrap().to_owned())
    };
    let (plain, landlock) = of("");
    assert_eq!(landlock, "reads its policy; its log");
    let more = |audit: &str| -> Vec<String> {
        let (calls, _) = of(audit);
        calls.into_iter().filter(|call| !plain.contains(call)).collect()
    };
    assert!(plain.iter().any(|call| call == "getdents64"), "what its files take together is always counted");
    assert_eq!(more("fsync = \"open\"\n"), ["fdatasync"]);
    assert_eq!(more("rotate_bytes = \"1MiB\"\nkeep = 3\n"), ["renameat2", "unlinkat"]);
    let (calls, landlock) = of("rotate_bytes = \"1MiB\"\n");
    assert_eq!(landlock, "reads its policy; its log, whose files it renames and removes");
    // Who neither freezes nor opens files has no state; removing is the log's.
    let removes = |calls: &[String]| calls.iter().filter(|call| *call == "unlinkat").count();
    assert_eq!((removes(&plain), removes(&calls)), (0, 1));
}

/// The gates of `policy test`, as `name=answer` in order.
fn gates(loaded: &Loaded, right: Right, path: &Path) -> String {
    let answers: Vec<String> = try_open(loaded, right, path)
        .gates
        .iter()
        .map(|gate| {
            format!(
                "{}={}",
                gate.name.split(' ').next().unwrap(),
                gate.passes.map_or("?", |p| if p { "+" } else { "-" })
            )
        })
        .collect();
    answers.join(" ")
}

#[test]
fn test_names_who_would_refuse() {
    let files = Files::new("");
    for name in ["data/open", "data/secret/key", "outside"] {
        files.write(name, "x");
    }
    symlink(files.at("outside"), files.at("data/link")).unwrap();
    fs::set_permissions(files.at("data"), fs::Permissions::from_mode(0o755)).unwrap();
    // As an account that stands in no relation to the files; without root, as whoever runs the test.
    let text = format!(
        "version = 1\nprofile = \"files\"\n[identities]\nworker = 64990\nbroker = 64991\n[[files]]\npath = \"{0}/data\"\n\
         rights = [\"read\", \"append\"]\nexcept = [\"{0}/data/secret\"]\n",
        plain(&files.at("")).display()
    );
    let loaded = written::load_embedded("x", &text, &World::live()).unwrap();
    let (read, write) = (Right::Read, Right::Write);
    let good = "policy=+ Landlock=+ opener=+ file=+";
    assert_eq!(gates(&loaded, read, &files.at("data/open")), good);
    assert_eq!(gates(&loaded, read, &files.at("data/link")), "policy=+ Landlock=- opener=- file=+");
    assert_eq!(gates(&loaded, read, &files.at("outside")), "policy=- Landlock=- opener=- file=+");
    assert_eq!(gates(&loaded, read, &files.at("data/secret/key")), "policy=- Landlock=+ opener=- file=+");
    assert!(gates(&loaded, read, &files.at("data/../data/open")).starts_with("policy=- Landlock=+ opener=+"));
    assert!(gates(&loaded, write, &files.at("data/open")).starts_with("policy=- Landlock=- opener=-"));
    assert!(gates(&loaded, Right::Create, &files.at("data/new")).starts_with("policy=- Landlock=- opener=-"));
    assert!(gates(&loaded, read, &files.at("data/secret")).starts_with("policy=- Landlock=+ opener=-"));
    if geteuid().is_root() {
        files.mode("data/open", 0o600);
        assert_eq!(gates(&loaded, read, &files.at("data/open")), "policy=+ Landlock=+ opener=+ file=-");
        files.mode("data/open", 0o644);
        files.mode("data", 0o700);
        assert_eq!(gates(&loaded, read, &files.at("data/open")), "policy=+ Landlock=+ opener=+ file=-");
        let outcome = try_open(&loaded, read, &files.at("data/open")).to_string();
        assert!(outcome.contains("setfacl -m u:64990:x") && outcome.contains("the kernel was asked"), "{outcome}");
    } else {
        eprintln!("NOT TESTED: file permissions of another account need root to be asked");
    }
}

#[test]
fn a_policy_without_file_commands_is_refused_first() {
    let loaded = shipped("policy.toml");
    let outcome = try_open(&loaded, Right::Read, Path::new("/etc/hostname"));
    assert!(!outcome.allowed());
    assert_eq!(outcome.gates[0].name, "commands");
}

/// Runs `postern policy …`; returns exit status, stdout and stderr.
fn postern(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(BINARY).arg("policy").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_commands_exit_as_documented() {
    let files = Files::new(
        "version = 1\nprofile = \"files\"\n[identities]\nworker = 64990\nbroker = 64991\n[[files]]\npath = \"/etc/passwd\"\n\
         rights = [\"read\"]\n",
    );
    let policy = files.at("policy.toml");
    let policy = policy.to_str().unwrap();
    let (status, stdout, stderr) = postern(&["check", "--policy", policy]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.ends_with("good: 1 file, 10 commands, 1 file rule, 0 warnings\n"), "{stdout}");
    let (status, stdout, _) = postern(&["explain", "--json", "--policy", policy]);
    assert_eq!(status, Some(0));
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["files"][0]["rights"], json!(["read"]));
    assert_eq!(postern(&["test", "--policy", policy, "read", "/etc/passwd"]).0, Some(0));
    let (status, stdout, _) = postern(&["test", "--policy", policy, "write", "/etc/passwd"]);
    assert_eq!(status, Some(1));
    assert!(stdout.starts_with("write /etc/passwd: refused by policy (broker), Landlock (opener), opener"), "{stdout}");
    assert_eq!(postern(&["test", "--policy", policy, "chew", "/etc/passwd"]).0, Some(2));

    files.write("policy.toml", "version = 1\nprofil = \"files\"\n");
    let (status, _, stderr) = postern(&["check", "--policy", policy]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains(":2:1: there is no key 'profil' at the top; write 'profile'"), "{stderr}");
    assert_eq!(postern(&["explain", "--policy", policy]).0, Some(2));
    assert_eq!(postern(&["test", "--policy", policy, "read", "/etc/passwd"]).0, Some(2));
}
