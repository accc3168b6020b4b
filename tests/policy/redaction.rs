//! `commands.redact` and `[facts]`: which word counts, what `explain` says of it, and
//! what becomes of clients.

use postern_core::catalogue::Command;
use postern_core::catalogue::redaction::{REDACTIONS, Reads};
use postern_core::policy::written::{self, Kind, Loaded, World};
use postern_tools::policy::{Client, explain, outlook};
use serde_json::Value;

use super::files::Files;
use super::{everything, sample_world};
use crate::binary::BINARY;

fn loaded(text: &str) -> Loaded {
    let text = format!("version = 1\n{text}");
    written::load_embedded("policy.toml", &text, &World { here: false, ..sample_world() }).unwrap()
}

#[test]
fn deny_counts_over_redact_and_redact_over_allow_wherever_they_stand() {
    let name = Command::GetHostName.name();
    // What each of three files says, and whether the command is then allowed, and redacted.
    for (words, allowed, redacted) in [
        (["", "allow", "redact"], true, true),
        (["allow", "redact", ""], true, true),
        (["redact", "", "allow"], true, true),
        (["redact", "deny", "allow"], false, false),
        (["deny", "redact", ""], false, false),
        (["", "redact", ""], true, true),
        (["allow", "", ""], true, false),
        (["", "", ""], false, false),
    ] {
        let says =
            |word: &str| if word.is_empty() { String::new() } else { format!("[commands]\n{word} = [\"{name}\"]\n") };
        let files = Files::new(&format!("version = 1\nprofile = \"minimal\"\n{}", says(words[0])));
        for (number, word) in words[1..].iter().enumerate() {
            files.write(&format!("policy.d/{number}.toml"), format!("version = 1\n{}", says(word)));
        }
        let policy = files.load().unwrap().policy;
        let found = (policy.commands.contains(Command::GetHostName), policy.redact.contains(Command::GetHostName));
        assert_eq!(found, (allowed, redacted), "{words:?}");
    }
}

#[test]
fn only_what_can_say_less_can_be_redacted() {
    for command in Command::all() {
        let text = format!("version = 1\nprofile = \"minimal\"\n[commands]\nredact = [\"{command}\"]\n");
        let result = written::load_embedded("x", &text, &sample_world());
        let refused = everything(&result).iter().any(|mistake| mistake.kind == Kind::NotRedactable);
        let can = REDACTIONS.iter().any(|row| row.name == command.name());
        assert_eq!((result.is_ok(), refused), (can, !can), "{command}");
    }
}

#[test]
fn explain_says_what_a_redacted_answer_holds_and_who_sees_past_it() {
    for row in REDACTIONS.iter().filter(|row| Command::all().any(|command| command.name() == row.name)) {
        let loaded = loaded(&format!("profile = \"minimal\"\n[commands]\nredact = [\"{}\"]\n", row.name));
        let explained = explain(&loaded);
        let json: Value = serde_json::from_str(&explained.json()).unwrap();
        let lines = json["commands"].as_array().unwrap();
        let line = lines.iter().find(|line| line["name"] == row.name).unwrap();
        assert_eq!((&line["allowed"], &line["why"], &line["line"]), (&true.into(), &"redact".into(), &4.into()));
        assert_eq!(line["redacted"]["answer"], row.answer);
        let held_by = line["redacted"]["held_by"].as_str().unwrap();
        let held_elsewhere = row.reads == Reads::Nothing || row.name == "guest-get-fsinfo";
        assert_eq!(held_by.contains("one that fell sees past it"), !held_elsewhere, "{held_by}");
        assert_eq!(lines.iter().filter(|line| line.get("redacted").is_some()).count(), 1);
        let text = explained.to_string();
        assert!(text.contains(&format!("answers {}", row.answer)) && text.contains(held_by), "{text}");
    }
}

#[test]
fn what_is_not_told_takes_no_call_of_the_worker() {
    let calls = |text: &str| {
        let json: Value = serde_json::from_str(&explain(&loaded(text)).json()).unwrap();
        let worker = json["processes"].as_array().unwrap().iter().find(|one| one["name"] == "worker").unwrap().clone();
        worker["calls"].as_array().unwrap().iter().map(|call| call["name"].to_string()).collect::<Vec<_>>()
    };
    let minimal = calls("profile = \"minimal\"\n");
    let of = |word: &str, facts: &str| {
        calls(&format!("profile = \"minimal\"\n[commands]\n{word} = [\"guest-get-host-name\"]\n{facts}"))
    };
    assert!(of("allow", "").contains(&"\"uname\"".to_owned()), "the control");
    assert_eq!(of("redact", ""), minimal);
    assert_eq!(of("allow", "[facts]\nhost_name = \"web\"\n"), minimal, "the answer is the policy's");
}

#[test]
fn explain_says_why_stock_has_what_postern_will_not() {
    let loaded = loaded("profile = \"minimal\"\n[commands]\ndeny = [\"guest-exec\"]\n");
    let text = explain(&loaded).to_string();
    assert!(text.contains("guest-set-time                not offered by design: who sets the clock"), "{text}");
    assert!(text.contains("guest-exec                    deny (policy.toml:4)"), "{text}");
}

fn works(loaded: &Loaded, client: Client) -> bool {
    outlook(loaded, client).works
}

/// What the outlook says of one command.
fn because(loaded: &Loaded, client: Client, command: &str) -> Vec<String> {
    let outlook = outlook(loaded, client);
    let all = outlook.hindrances.iter().flat_map(|one| &one.commands).filter(|one| one.command == command);
    all.map(|one| one.why.clone()).collect()
}

#[test]
fn a_client_is_told_of_each_thing_that_is_in_its_way() {
    let minimal = loaded("profile = \"minimal\"\n");
    let outlook_of = |client| outlook(&minimal, client);
    assert!(!outlook_of(Client::Kubevirt).works);
    assert!(outlook_of(Client::Libvirt).works && outlook_of(Client::Proxmox).works);
    assert_eq!(because(&minimal, Client::Kubevirt, "guest-get-host-name"), ["nothing allows it"]);
    assert!(because(&minimal, Client::Proxmox, "guest-exec")[0].starts_with("not offered by design: a program"));

    let loaded = loaded(
        "profile = \"files\"\n[commands]\nallow = [\"guest-shutdown\"]\nredact = [\"guest-get-host-name\"]\n\
         deny = [\"guest-info\"]\n[shutdown]\nmodes = [\"powerdown\"]\n",
    );
    let of = |command| because(&loaded, Client::Libvirt, command);
    assert_eq!(of("guest-info"), ["denied (policy.toml:6)"]);
    assert_eq!(of("guest-shutdown"), ["shutdown.modes lacks reboot"]);
    assert_eq!(of("guest-get-host-name"), ["redacted (policy.toml:5): answers facts.host_name, or \"guest\""]);
    assert_eq!(because(&loaded, Client::Proxmox, "guest-shutdown"), Vec::<String>::new());
    assert_eq!(because(&loaded, Client::Proxmox, "guest-file-open")[0], "no [[files]] rule names a path");
    assert_eq!(outlook(&loaded, Client::Libvirt).needs_root, ["guest-shutdown"]);
}

#[test]
fn each_client_works_under_its_profile_and_none_of_its_reads_fails() {
    for (client, profile) in
        [(Client::Libvirt, "libvirt"), (Client::Proxmox, "proxmox"), (Client::Kubevirt, "kubevirt")]
    {
        let outlook = outlook(&loaded(&format!("profile = \"{profile}\"\n")), client);
        assert!(outlook.works, "{outlook}");
        for hindered in outlook.hindrances.iter().flat_map(|one| &one.commands) {
            assert!(!hindered.command.starts_with("guest-get-"), "{outlook}");
        }
        let confidential = loaded("profile = \"confidential\"\n");
        assert_eq!(works(&confidential, client), client != Client::Kubevirt, "{profile}");
    }
}

#[test]
fn every_use_names_commands_of_stock() {
    for client in [Client::Libvirt, Client::Proxmox, Client::Kubevirt] {
        assert!(client.uses().iter().any(|one| one.required));
        for one in client.uses() {
            assert!(!one.what.is_empty() && !one.without.is_empty() && !one.commands.is_empty());
            for command in one.commands {
                assert!(postern_core::catalogue::lookup(command).is_some(), "{}: {command}", one.what);
            }
            assert!(one.modes.is_empty() || one.commands == ["guest-shutdown"], "{}", one.what);
        }
    }
}

#[test]
fn explain_for_a_client_exits_by_whether_it_works() {
    let files = Files::new("version = 1\nprofile = \"minimal\"\n");
    let policy = files.at("policy.toml");
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(BINARY);
        command.args(["policy", "explain", "--elsewhere", "--policy"]).arg(&policy).args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, text) = run(&["--client", "kubevirt"]);
    assert_eq!(status, Some(1));
    assert!(text.starts_with("KubeVirt does not work with postern under this policy\n"), "{text}");
    assert!(text.contains("(required)") && text.contains("so: KubeVirt takes the agent for unsupported"), "{text}");
    let (status, text) = run(&["--client", "proxmox", "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &json["client"], &json["works"]), (Some(0), &"Proxmox VE".into(), &true.into()));
    let uses = json["hindrances"].as_array().unwrap();
    assert!(uses.iter().any(|one| one["commands"][0]["because"] == "by-design"), "{text}");
    assert_eq!(run(&["--client", "vmware"]).0, Some(2));
}
