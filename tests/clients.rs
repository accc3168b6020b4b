//! Each profile against the client that it is for: the requests of the client's
//! transcript (`tests/transcripts/clients`), played to the agent under the profile.
//! What the profile allows must go as with stock, what it withholds be refused with
//! stock's text; and `policy explain --client` must have foretold all of it.
//!
//! Each agent runs in a cell, whose first process, this test, is the init that is
//! asked to shut down. Needs root.

mod support;

#[path = "hosts/play.rs"]
mod play;
#[path = "hosts/script.rs"]
mod script;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use play::{Played, Stage, play};
use postern_core::catalogue::{CATALOGUE, Command, CommandSet};
use postern_core::policy::written::profiles::{self, PROFILES, Profile};
use postern_core::policy::written::{Loaded, World, load_embedded};
use postern_tools::policy::{Client, outlook};
use script::{Kind, Script, Way};
use serde_json::{Value, json};
use support::agent::{Agent, BINARY, Home, eventually};
use support::disk::{Disk, Mounted};
use support::init::Inbox;
use support::runner;

const PROGRAMS: &[&str] = &[BINARY, "losetup", "mkfs.ext4"];

/// A client, its transcript, its profile, and commands that its table names and its
/// transcript does not send: with which it connects, what `KubeVirt` only wants to
/// see in `guest-info`, and what there is nothing to ask after without `guest-exec`.
const CLIENTS: [(Client, &str, &str, &[&str]); 3] = [
    (Client::Kubevirt, "kubevirt.txt", "kubevirt", &["guest-exec-status", "guest-get-time", "guest-sync"]),
    (Client::Libvirt, "libvirt.txt", "libvirt", &[]),
    (Client::Proxmox, "proxmox.txt", "proxmox", &["guest-exec-status", "guest-sync-delimited"]),
];

fn main() -> ExitCode {
    runner::main(
        &[
            ("kubevirt_gets_what_it_needs", || plays(CLIENTS[0])),
            ("libvirt_gets_what_it_needs", || plays(CLIENTS[1])),
            ("proxmox_gets_what_it_needs", || plays(CLIENTS[2])),
            ("kubevirt_takes_an_agent_that_says_little", kubevirt_takes_an_agent_that_says_little),
            ("a_profile_offers_what_it_holds_and_no_more", a_profile_offers_what_it_holds_and_no_more),
            ("what_is_not_offered_by_design_is_refused_and_recorded", what_is_not_offered_by_design_is_refused),
        ],
        &[],
        PROGRAMS,
    )
}

/// The mark of systemd, and this process in its place.
fn fake_systemd() -> Inbox {
    fs::create_dir_all("/run/systemd/system").expect("systemd's mark");
    Inbox::of_cell()
}

fn scratch() -> (Disk, Mounted) {
    let disk = Disk::small("ext4", "/tmp/image");
    let mounted = disk.mount("/mnt");
    (disk, mounted)
}

fn profile(name: &str) -> &'static Profile {
    profiles::lookup(name).unwrap_or_else(|| panic!("there is no profile {name}"))
}

fn transcript(file: &str) -> Script {
    script::all().into_iter().find(|script| script.file == file).expect("a transcript")
}

fn loaded(policy: &str) -> Loaded {
    load_embedded("policy.toml", &format!("version = 1\n{policy}"), &World::elsewhere()).expect("a policy")
}

/// Plays the transcript to the agent; every check must hold.
fn perform(agent: &Agent<'_>, script: &Script) -> Played {
    let socket = agent.home.path("host.sock");
    // Of what is withheld no handle and no process comes.
    let names = [
        ("DIR", agent.home.files().display().to_string()),
        ("MNT", "/mnt".to_owned()),
        ("h", "1000".to_owned()),
        ("pid", "1".to_owned()),
    ];
    let stage = Stage {
        kind: Kind::Postern,
        way: Way::Cell,
        connect: &|| eventually("the agent listens", || UnixStream::connect(&socket).ok()),
        names: names.map(|(name, value)| (name.to_owned(), value)).into(),
    };
    let played = play(script, &stage);
    assert!(played.wrong.is_empty(), "{}", played.wrong.join("\n"));
    println!("{}: {} replies, {} checks", script.client, played.replies, played.checks);
    played
}

/// Those commands of `guest-info` that are enabled.
fn enabled(agent: &Agent<'_>) -> BTreeSet<String> {
    let info = agent.connect().returns("guest-info", &Value::Null);
    let commands = info["supported_commands"].as_array().expect("commands").clone();
    commands
        .iter()
        .filter(|one| one["enabled"] == true)
        .map(|one| one["name"].as_str().expect("a name").into())
        .collect()
}

fn plays((client, file, name, unplayed): (Client, &str, &str, &[&str])) {
    let _scratch = scratch();
    let inbox = fake_systemd();
    let home = Home::new();
    let policy = format!("profile = \"{name}\"\n");
    let agent = home.start(&policy);
    let set = profile(name).set();
    let allowed = |command: &str| set.iter().any(|one| one.name() == command);

    let written = transcript(file);
    let played = written.steps.iter().filter(|step| step.is_for(Kind::Postern, Way::Cell));
    let commands: BTreeSet<String> = played.map(script::Step::command).collect();
    let script = written.under(allowed);
    assert!(perform(&agent, &script).replies > 10, "{file} is played");

    // The table of `explain --client` is of the same requests.
    let used: BTreeSet<String> =
        client.uses().iter().flat_map(|one| one.commands).map(|name| (*name).to_owned()).collect();
    let lacks: Vec<&str> = used.difference(&commands).map(String::as_str).collect();
    assert_eq!(lacks, unplayed, "{file}");

    // What it foretold is what came.
    let foretold = outlook(&loaded(&policy), client);
    assert!(foretold.works, "{foretold}");
    let refused: BTreeSet<&str> =
        foretold.hindrances.iter().flat_map(|one| &one.commands).map(|one| one.command).collect();
    for command in &used {
        assert_eq!(refused.contains(command.as_str()), !allowed(command), "{command}\n{foretold}");
    }
    for command in commands.iter().filter(|command| !allowed(command)) {
        agent.await_record(command, |record| record["event"]["outcome"] == "failure");
    }
    let shutdowns = script.steps.iter().filter(|step| step.command() == "guest-shutdown").count();
    let mut asked = Vec::new();
    eventually("each shutdown reaches init", || {
        asked.extend(inbox.signals());
        (asked.len() == shutdowns).then_some(())
    });
    assert!(shutdowns > 0, "{file} asks for none");
}

/// All that can be redacted is: the client still finds what it needs, and learns
/// little.
fn kubevirt_takes_an_agent_that_says_little() {
    let _scratch = scratch();
    let _inbox = fake_systemd();
    fs::create_dir_all("/etc").expect("/etc");
    fs::write("/etc/os-release", "ID=postern-test\nNAME=Secret\n").expect("what the guest is");
    let home = Home::new();
    let set = profile("kubevirt").set();
    let redacted: Vec<Command> = set.iter().filter(|command| command.redaction().is_some()).collect();
    let names = redacted.iter().map(|command| format!("\"{command}\"")).collect::<Vec<_>>().join(", ");
    let policy = format!("profile = \"kubevirt\"\n[commands]\nredact = [{names}]\n[facts]\nmountpoints = [\"/mnt\"]\n");
    let agent = home.start(&policy);
    perform(&agent, &transcript("kubevirt.txt").under(|command| set.iter().any(|one| one.name() == command)));
    let foretold = outlook(&loaded(&policy), Client::Kubevirt);
    assert!(foretold.works && foretold.hindrances.iter().any(|one| !one.fails), "{foretold}");

    let mut host = agent.connect();
    let mut answer = |command: &str| host.returns(command, &Value::Null);
    assert_eq!(answer("guest-get-users"), json!([]));
    assert_eq!(answer("guest-get-host-name"), json!({ "host-name": "guest" }));
    assert_eq!(answer("guest-get-timezone")["offset"], 0);
    let os = answer("guest-get-osinfo");
    assert_eq!(os, json!({ "id": "postern-test" }));
    let filesystems = answer("guest-get-fsinfo");
    assert_eq!(filesystems.as_array().map(Vec::len), Some(1), "{filesystems}");
    assert_eq!((&filesystems[0]["mountpoint"], &filesystems[0]["disk"]), (&json!("/mnt"), &json!([])));
    for interface in answer("guest-network-get-interfaces").as_array().expect("a list") {
        assert!(interface["name"] != "lo" && interface.get("statistics").is_none(), "{interface}");
    }
}

fn a_profile_offers_what_it_holds_and_no_more() {
    let all: CommandSet = Command::all().collect();
    for profile in &PROFILES {
        let home = Home::new();
        let agent = home.start(&format!("profile = \"{}\"\n", profile.name));
        let set = profile.set();
        let names = |set: CommandSet| set.iter().map(|command| command.name().to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(enabled(&agent), names(set), "{}", profile.name);
        let mut host = agent.connect();
        for command in names(all).difference(&names(set)) {
            let said = host.fails(command, &Value::Null);
            assert_eq!(said, format!("Command {command} has been disabled: the command is not allowed"));
            agent.await_record(command, |record| record["event"]["outcome"] == "failure");
        }
    }
}

fn what_is_not_offered_by_design_is_refused() {
    let home = Home::new();
    let everything = Command::all().map(|command| format!("\"{command}\"")).collect::<Vec<_>>().join(", ");
    let agent = home.start(&format!("[commands]\nallow = [{everything}]\n[shutdown]\nmodes = [\"reboot\"]\n"));
    let offered = enabled(&agent);
    let mut host = agent.connect();
    let mut refused = 0;
    for entry in CATALOGUE.iter().filter(|entry| entry.command.is_none()) {
        assert!(!offered.contains(entry.name));
        let reply = host.ask(entry.name, &Value::Null);
        assert_eq!(reply["error"]["class"], "CommandNotFound", "{reply}");
        assert_eq!(
            reply["error"]["desc"],
            format!("Command {} has been disabled: the command is not allowed", entry.name)
        );
        let record = agent.await_record(entry.name, |_| true);
        assert_eq!(record["event"]["reason"], "postern does not offer it", "{record}");
        assert_eq!(agent.records_of(entry.name).len(), 1, "one record for one request");
        refused += usize::from(entry.by_design.is_some());
    }
    assert_eq!(refused, 7);
}
