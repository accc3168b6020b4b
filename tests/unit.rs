//! The systemd unit agrees with the code: it leaves a start exactly what it
//! needs, changes nothing of what postern sees, writes to no disk before the
//! start, and says why of everything that it leaves out.
//!
//! The last two ask `systemd-analyze`, which need not run systemd. Where it is
//! missing they say so; with `CI` set that is a failure.

#[path = "support/binary.rs"]
mod binary;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use binary::BINARY;
use postern_core::confine::caps;
use postern_core::policy::written::{World, load_embedded};

const UNIT: &str = include_str!("../packaging/postern.service");
const SOCKET: &str = include_str!("../packaging/postern-netlink.socket");

/// `KEY=VALUE` lines in order.
fn directives() -> Vec<(&'static str, &'static str)> {
    UNIT.lines().filter(|line| !line.starts_with(['#', '['])).filter_map(|line| line.split_once('=')).collect()
}

fn values(key: &str) -> Vec<&'static str> {
    directives().into_iter().filter(|(found, _)| *found == key).flat_map(|(_, value)| value.split(' ')).collect()
}

fn comments() -> String {
    UNIT.lines().filter(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// What this policy keeps the broker, under systemd.
fn kept(policy: &str) -> BTreeSet<String> {
    let loaded = load_embedded("policy.toml", policy, &World::elsewhere()).expect("a policy");
    caps::broker(&loaded.policy, caps::Asked::BySignal).iter().map(ToString::to_string).collect()
}

#[test]
fn the_capabilities_are_those_that_the_code_needs() {
    let mut needed = kept(include_str!("../policy/policy.toml"));
    assert!(needed.len() > 1, "{needed:?}");
    needed.extend(caps::START.iter().map(|(capability, _)| capability.to_string()));
    let given: BTreeSet<String> = values("CapabilityBoundingSet").into_iter().map(str::to_owned).collect();
    assert_eq!(given, needed);
    // What the drop-in of its comment is for, and nothing that needs another.
    let all = "version = 1\nprofile = \"files\"\n[commands]\nallow = [\"guest-shutdown\", \"guest-fsfreeze-freeze\", \
               \"guest-fsfreeze-thaw\"]\n[[files]]\npath = \"/srv\"\nrights = [\"read\", \"write\", \"create\"]\n\
               [shutdown]\nmodes = [\"powerdown\", \"halt\", \"reboot\"]\n";
    assert!(kept(all).is_subset(&given));
    let by_kernel: BTreeSet<String> = kept(&format!("{all}method = \"kernel\"\n"));
    assert_eq!(by_kernel.difference(&given).collect::<Vec<_>>(), ["CAP_SYS_BOOT"]);
    assert!(comments().contains("CapabilityBoundingSet=CAP_SYS_BOOT"));
    for capability in &given {
        let name = capability.trim_start_matches("CAP_");
        let in_a_group = comments().contains("CAP_SET{UID,GID,PCAP}") && name.starts_with("SET");
        assert!(comments().contains(&format!("#   {capability} ")) || in_a_group, "no reason for {capability}");
    }
}

#[test]
fn it_changes_nothing_of_what_postern_sees_and_writes_to_no_disk() {
    const MOUNT_NAMESPACE: &[&str] = &[
        "PrivateTmp",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateUsers",
        "ProtectSystem",
        "ProtectHome",
        "ProtectProc",
        "ProcSubset",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectHostname",
        "RootDirectory",
        "RootImage",
        "MountImages",
        "ExtensionImages",
        "MountFlags",
        "BindPaths",
        "BindReadOnlyPaths",
        "TemporaryFileSystem",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "DynamicUser",
        "LogNamespace",
        "LoadCredential",
        "SetCredential",
    ];
    const MAKES_DIRECTORIES: &[&str] =
        &["StateDirectory", "LogsDirectory", "CacheDirectory", "ConfigurationDirectory", "RuntimeDirectory"];
    for (key, value) in directives() {
        assert!(!MOUNT_NAMESPACE.contains(&key) && !MAKES_DIRECTORIES.contains(&key), "{key}={value}");
    }
    assert_eq!(values("PrivateMounts"), ["no"], "said, for PrivateNetwork= implies it in newer versions");
    assert_eq!(values("BindsTo"), [""; 0], "a port that is unplugged does not take the broker with it");
    // The control: it is the unit that was read.
    assert_eq!(values("Type"), ["notify"]);
}

/// Asks systemd-analyze; nothing if it is not there.
fn analyze(arguments: &[&str], unit: &Path) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).arg(unit).env("NO_COLOR", "1").output() {
        Ok(output) => Some(output),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "systemd-analyze: {why}");
            println!("left out: systemd-analyze: {why}");
            None
        }
    }
}

/// As text, for this reads no other.
fn security(arguments: &[&str]) -> Option<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/postern.service");
    let output = analyze(&[&["security", "--offline=true", "--no-pager"], arguments].concat(), &unit)?;
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

#[test]
fn its_exposure_is_low_and_all_that_is_left_out_has_a_reason() {
    let Some(table) = security(&[]) else { return };
    let overall = table.lines().find_map(|line| line.split_once("service: ")).expect("the overall exposure").1;
    let exposure: f64 = overall.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    println!("exposure {exposure}");
    assert!(exposure <= 3.5, "{table}");
    let rows = security(&["--json=short"]).expect("it was there");
    let rows: serde_json::Value = serde_json::from_str(&rows).expect("JSON");
    let mut left_out = 0;
    for row in rows.as_array().expect("rows") {
        let name = row["name"].as_str().expect("a name");
        let exposed = row["exposure"].as_str().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        // Each capability has its reason, see the other test.
        if exposed == 0.0 || name.starts_with("CapabilityBoundingSet=") {
            continue;
        }
        left_out += 1;
        let (directive, part) = name.split_once('=').expect("a directive");
        let reason = match directive {
            "SystemCallFilter" => format!("#   {} ", part.trim_start_matches('~')),
            _ => directive.to_owned(),
        };
        assert!(UNIT.contains(&reason), "{name}: neither set nor explained");
    }
    assert!(left_out > 10, "the control: some are");
}

#[test]
fn systemd_finds_nothing_wrong_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("postern.service");
    // What is installed elsewhere: the executable and its manual.
    let unit = UNIT.replace("/usr/bin/postern", BINARY).replace("Documentation=", "#");
    fs::write(&copy, &unit).expect("a copy");
    // Beside it, where its Sockets= finds it.
    let socket = directory.path().join("postern-netlink.socket");
    fs::write(&socket, SOCKET.replace("Documentation=", "#")).expect("a copy");
    let Some(output) = analyze(&["verify"], &copy) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("postern"), "{said}");
    // The control: it would have said so.
    fs::write(&copy, unit.replace("KillMode=mixed", "KilMode=mixed")).expect("a copy");
    let said = analyze(&["verify"], &copy).expect("it was there").stderr;
    assert!(String::from_utf8_lossy(&said).contains("KilMode"));
    fs::write(&socket, SOCKET.replace("FlushPending=", "FlushPendin=")).expect("a copy");
    let said = analyze(&["verify"], &copy).expect("it was there").stderr;
    assert!(String::from_utf8_lossy(&said).contains("FlushPendin"), "the socket was looked at");
}

#[test]
fn the_netlink_socket_is_passed_from_the_guests_own_network_and_starts_nothing() {
    assert_eq!(values("PrivateNetwork"), ["yes"]);
    assert_eq!(values("RestrictAddressFamilies"), ["AF_UNIX"], "no process of it makes another socket");
    assert_eq!(values("Sockets"), ["postern-netlink.socket"]);
    let socket: BTreeSet<&str> =
        SOCKET.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()).collect();
    for line in [
        "ListenNetlink=route 0",
        "FileDescriptorName=netlink",
        "Service=postern.service",
        "FlushPending=yes",
        "StopWhenUnneeded=yes",
    ] {
        assert!(socket.contains(line), "{line} in {socket:?}");
    }
    // One of another namespace would tell of nothing; one that is enabled would
    // stand without a service.
    assert!(socket.iter().all(|line| !line.contains("Private") && !line.contains("Accept=")), "{socket:?}");
    assert!(!SOCKET.contains("[Install]"));
}
