//! The policy file: every mistake's message, agreement of parser and schema,
//! who may own a file, how files merge, and every shipped file.
//!
//! `UPDATE=1 cargo test --test policy` rewrites the expected messages, the
//! schema, the reference and the profiles; look at the difference before you
//! commit it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_core::catalogue::{Command, CommandSet};
use postern_core::confine::caps;
use postern_core::policy::rules::{Mode, Verdict};
use postern_core::policy::written::{self, Kind, Loaded, Look, Mistake, PolicyError, World, keys, profiles};
use postern_core::policy::{Audit, Channel, Fsync, Heads, Limits, ShutdownMethod, ShutdownMode};
use postern_tools::policy::{reference, schema};
use serde_json::{Value, json};

#[path = "support/binary.rs"]
mod binary;
#[path = "policy/files.rs"]
mod files;
#[path = "policy/redaction.rs"]
mod redaction;
#[path = "policy/tools.rs"]
mod tools;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What stands in the samples' world.
const THERE: [(&str, &str, u32); 9] = [
    ("/srv/data", "/srv/data", 0o040_755),
    ("/srv/data/closed", "/srv/data/closed", 0o040_755),
    ("/srv/data/file", "/srv/data/file", 0o100_644),
    ("/srv/data/pipe", "/srv/data/pipe", 0o010_644),
    ("/srv/data/socket", "/srv/data/socket", 0o140_644),
    ("/srv/data/link", "/etc", 0o040_755),
    ("/var/run/app", "/run/app", 0o040_755),
    ("/dev/ttyS1", "/dev/ttyS1", 0o020_660),
    ("/dev/vda", "/dev/vda", 0o060_660),
];

fn look(path: &Path) -> Look {
    let path = path.to_str().unwrap();
    if ["/", "/var/log", "/run", "/proc", "/sys/power/state", "/proc/loadavg", "/proc/1/root"].contains(&path) {
        return Look::There { resolved: path.into(), mode: if path.len() > 9 { 0o100_444 } else { 0o040_755 } };
    }
    match THERE.iter().find(|(there, ..)| *there == path) {
        Some((_, resolved, mode)) => Look::There { resolved: resolved.into(), mode: *mode },
        None => Look::Missing,
    }
}

/// The samples' world: root, two accounts, a few files.
fn sample_world() -> World {
    World {
        wants_accounts: true,
        confined: false,
        euid: 0,
        here: true,
        passwd: "root:x:0:0::/:/bin/sh\npostern:x:990:990::/:/bin/false\npostern-broker:x:991:991::/:/bin/false\n"
            .into(),
        group: "root:x:0:\nadm:x:4:\npostern:x:990:\npostern-broker:x:991:\n".into(),
        look,
    }
}

fn samples(directory: &str) -> Vec<PathBuf> {
    let mut samples: Vec<PathBuf> = fs::read_dir(Path::new(ROOT).join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    samples.sort();
    assert!(!samples.is_empty(), "no samples in {directory}");
    samples
}

fn load_sample(path: &Path) -> Result<Loaded, PolicyError> {
    let name = path.file_name().unwrap().to_str().unwrap();
    written::load_embedded(name, &fs::read_to_string(path).unwrap(), &sample_world())
}

fn everything(result: &Result<Loaded, PolicyError>) -> Vec<Mistake> {
    match result {
        Ok(loaded) => loaded.warnings.clone(),
        Err(error) => error.mistakes.iter().chain(&error.warnings).cloned().collect(),
    }
}

/// Holds `text` against the file, or writes it there.
fn same_as_file(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, text).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(expected == text, "{} differs (UPDATE=1 rewrites it):\n{text}", path.display());
}

fn shown(result: &Result<Loaded, PolicyError>) -> String {
    everything(result).iter().map(|mistake| format!("{mistake}\n")).collect::<Vec<_>>().concat()
}

#[test]
fn every_mistake_says_where_what_and_what_to_write() {
    let mut kinds = BTreeSet::new();
    for path in samples("tests/policy/bad") {
        let result = load_sample(&path);
        let error = result.as_ref().expect_err(&format!("{} is accepted", path.display()));
        for mistake in &error.mistakes {
            assert!(!mistake.warning && !mistake.what.is_empty() && !mistake.help.is_empty(), "{mistake}");
            kinds.insert(format!("{:?}", mistake.kind));
        }
        same_as_file(&path.with_extension("txt"), &shown(&result));
    }
    assert!(kinds.len() >= 34, "only {} kinds of mistakes have a sample: {kinds:?}", kinds.len());
}

#[test]
fn good_samples_are_used_and_warned_of() {
    for path in samples("tests/policy/good") {
        let result = load_sample(&path);
        assert!(result.is_ok(), "{}: {}", path.display(), result.unwrap_err());
        same_as_file(&path.with_extension("txt"), &shown(&result));
    }
}

/// TOML as JSON, for the schema.
fn to_json(value: &toml::de::DeValue<'_>) -> Value {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix()).unwrap();
            // Beyond 64 bits JSON has only fractions; they are out of every range too.
            i64::try_from(number).map_or(json!(f64::MAX), |number| json!(number))
        }
        DeValue::Float(number) => json!(number.as_str().parse::<f64>().unwrap()),
        DeValue::Boolean(flag) => json!(flag),
        DeValue::Datetime(date) => json!({ "date": date.to_string() }),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => table_to_json(table),
    }
}

fn table_to_json(table: &toml::de::DeTable<'_>) -> Value {
    table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref()))).collect()
}

#[test]
fn schema_and_parser_agree() {
    let schema = schema::schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let (mut good, mut bad) = (0, 0);
    let directories =
        ["tests/policy/bad", "tests/policy/good", "policy", "policy/examples", "policy/profiles"].map(samples);
    for path in directories.iter().flatten() {
        let text = fs::read_to_string(path).unwrap();
        // What is not TOML has no shape.
        let Ok(table) = toml::de::DeTable::parse(&text) else { continue };
        let by_schema = validator.is_valid(&table_to_json(table.get_ref()));
        let by_parser = !everything(&load_sample(path)).iter().any(|mistake| mistake.kind.in_schema());
        assert_eq!(by_schema, by_parser, "{}: the schema says {by_schema}, the parser {by_parser}", path.display());
        if by_schema { good += 1 } else { bad += 1 }
    }
    assert!(good >= 20 && bad >= 20, "{good} good and {bad} bad samples");
}

/// One key after another set to values of every shape: what the parser says of
/// shape, the schema says too.
#[test]
fn schema_and_parser_agree_on_every_key() {
    let schema = schema::schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let values = [
        "0",
        "1",
        "2",
        "8",
        "1024",
        "1025",
        "4096",
        "67108864",
        "67108865",
        "4294967294",
        "4294967295",
        "-1",
        "1.5",
        "true",
        "\"\"",
        "\"/\"",
        "\"/a\"",
        "\"/a/\"",
        "\"/a/..\"",
        "\"/a/...\"",
        "\"/a/.b/..c/.\"",
        "\"/a//b\"",
        "\"/\\u0000\"",
        "\"/a\\nb\"",
        "\"a\"",
        "\"1KiB\"",
        "\"01KiB\"",
        "\"4MiB\"",
        "\"4GiB\"",
        "\"KiB\"",
        "\"10m\"",
        "\"0s\"",
        "\"1h \"",
        "\"0600\"",
        "\"600\"",
        "\"0602\"",
        "\"1600\"",
        "\"66\"",
        "\"_a-b.c9\"",
        "\"9a\"",
        "\"ä\"",
        "[]",
        "[1]",
        "[0]",
        "[\"read\"]",
        "[\"read\", \"read\"]",
        "[\"/a\", \"/b\"]",
        "[\"/a\", \"/a\"]",
        "[\"/a/\"]",
        "[\"guest-ping\"]",
        "[\"guest-exec\"]",
        "[\"guest-nope\"]",
        "[\"guest-get-host-name\"]",
        "[\"eth*\", \"wl?\"]",
        "[\"eth[0]\"]",
        "[\"\"]",
        "\"web-1.example\"",
        "\"web-\"",
        "\".web\"",
        "[\"regular\"]",
        "[\"halt\"]",
        "[[]]",
        "[4, 4]",
        "[4, \"adm\"]",
        "{}",
        "{ a = 1 }",
        "2020-01-01",
    ];
    let mut accepted = 0;
    for key in &keys::KEYS {
        let examples = [key.example].into_iter().chain(key.default);
        for value in values.iter().copied().chain(examples) {
            let line = format!("{} = {value}\n", key.name);
            let text = match key.table {
                "" if key.name == "version" => line,
                "" => format!("version = 1\n{line}"),
                "files" => {
                    let rest = [("path", "\"/srv/data\""), ("rights", "[\"read\"]")];
                    let rest = rest.iter().filter(|(name, _)| *name != key.name);
                    let rest: Vec<_> = rest.map(|(name, value)| format!("{name} = {value}\n")).collect();
                    let rest = rest.concat();
                    format!("version = 1\n[[files]]\n{rest}{line}")
                }
                table => format!("version = 1\n[{table}]\n{line}"),
            };
            let table = toml::de::DeTable::parse(&text).unwrap();
            let by_schema = validator.is_valid(&table_to_json(table.get_ref()));
            let result = written::load_embedded("generated", &text, &sample_world());
            let by_parser = !everything(&result).iter().any(|mistake| mistake.kind.in_schema());
            assert_eq!(by_schema, by_parser, "schema and parser differ on:\n{text}{}", shown(&result));
            accepted += usize::from(by_schema);
            if value == key.example || Some(value) == key.default {
                assert!(by_parser, "an example or default is wrong:\n{text}{}", shown(&result));
            }
        }
    }
    assert!(accepted >= keys::KEYS.len() * 2);
}

#[test]
fn generated_files_are_current() {
    let policy = Path::new(ROOT).join("policy");
    same_as_file(&policy.join("schema.json"), &schema::text());
    same_as_file(&policy.join("REFERENCE.md"), &reference::text());
    for profile in &profiles::PROFILES {
        same_as_file(&policy.join(format!("profiles/{}.toml", profile.name)), &reference::profile(profile));
    }
}

fn names(set: CommandSet) -> Vec<&'static str> {
    set.iter().map(Command::name).collect()
}

fn shipped(name: &str) -> Loaded {
    let text = fs::read_to_string(Path::new(ROOT).join("policy").join(name)).unwrap();
    let loaded = written::load_embedded(name, &text, &World { here: false, ..sample_world() }).unwrap();
    // Only accounts and groups of this world may be missing.
    let warnings: Vec<_> = loaded.warnings.iter().filter(|warning| warning.kind != Kind::NotHere).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    loaded
}

fn capabilities(loaded: &Loaded) -> Vec<String> {
    let mut names: Vec<String> =
        caps::broker(&loaded.policy, caps::Asked::BySignal).iter().map(ToString::to_string).collect();
    names.sort();
    names
}

#[test]
fn profiles_as_files_are_the_profiles() {
    for profile in &profiles::PROFILES {
        let path = Path::new(ROOT).join(format!("policy/profiles/{}.toml", profile.name));
        let as_file = load_sample(&path).unwrap();
        assert_eq!(as_file.policy.commands, profile.set(), "{}", profile.name);
        assert_eq!(as_file.policy.shutdown.modes, profile.modes, "{}", profile.name);
        // The name alone is a whole policy.
        let text = format!("version = 1\nprofile = \"{}\"\n", profile.name);
        let named = written::load_embedded("x", &text, &sample_world()).unwrap();
        assert_eq!(named.policy.commands, profile.set(), "{}", profile.name);
        assert_eq!(named.policy.shutdown.modes, profile.modes, "{}", profile.name);
        assert!(named.warnings.is_empty() || profile.name == "files", "{:?}", named.warnings);
        // What the files say of modes counts over it, and no mode is none by accident.
        if !profile.modes.is_empty() {
            let fewer = format!("{text}[shutdown]\nmodes = [\"reboot\"]\n");
            let policy = written::load_embedded("x", &fewer, &sample_world()).unwrap().policy;
            assert_eq!(policy.shutdown.modes, [ShutdownMode::Reboot]);
            let none = written::load_embedded("x", &format!("{text}[shutdown]\nmodes = []\n"), &sample_world());
            assert_eq!(none.unwrap_err().mistakes[0].kind, Kind::ShutdownWithoutModes);
        }
    }
}

#[test]
fn a_profile_holds_no_more_capability_than_its_commands_take() {
    let of = |name: &str| {
        let text = format!("version = 1\nprofile = \"{name}\"\n");
        capabilities(&written::load_embedded("x", &text, &sample_world()).unwrap())
    };
    assert_eq!(of("confidential"), ["CAP_KILL"]);
    for name in ["libvirt", "proxmox", "kubevirt"] {
        assert_eq!(of(name), ["CAP_DAC_READ_SEARCH", "CAP_KILL", "CAP_SYS_ADMIN"], "{name}");
    }
}

#[test]
fn the_default_policy_allows_freeze_and_shutdown_and_no_file() {
    let loaded = shipped("policy.toml");
    assert_eq!(
        names(loaded.policy.commands),
        [
            "guest-sync-delimited",
            "guest-sync",
            "guest-ping",
            "guest-info",
            "guest-shutdown",
            "guest-fsfreeze-status",
            "guest-fsfreeze-freeze",
            "guest-fsfreeze-freeze-list",
            "guest-fsfreeze-thaw"
        ]
    );
    assert!(loaded.policy.files.is_empty());
    assert_eq!(loaded.policy.shutdown.modes, [ShutdownMode::Powerdown, ShutdownMode::Reboot]);
    assert_eq!(loaded.policy.shutdown.method, ShutdownMethod::Init);
    assert_eq!(capabilities(&loaded), ["CAP_DAC_READ_SEARCH", "CAP_KILL", "CAP_SYS_ADMIN"]);
}

#[test]
fn the_examples_do_what_they_say() {
    let backup = shipped("examples/backup-only.toml");
    assert_eq!(backup.policy.commands, profiles::lookup("backup").unwrap().set());
    assert_eq!(capabilities(&backup), ["CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN"]);
    assert_eq!(backup.policy.freeze.limit, Duration::from_secs(120));

    let logs = shipped("examples/collect-logs.toml");
    assert!(capabilities(&logs).is_empty());
    assert!(!logs.policy.commands.contains(Command::FileWrite) && logs.policy.commands.contains(Command::FileRead));
    assert!(logs.policy.files.iter().all(|rule| rule.rights.to_string() == "read"));

    let push = shipped("examples/push-config.toml");
    assert!(capabilities(&push).is_empty());
    let verdict = |path: &str, mode| postern_core::policy::rules::decide(&push.policy.files, Path::new(path), mode);
    assert!(matches!(verdict("/srv/push/new", Mode::Write), Verdict::Allowed { rule: 0, missing: true, .. }));
    assert!(matches!(verdict("/srv/push/accepted/new", Mode::Write), Verdict::Excepted { rule: 0 }));
    assert!(matches!(verdict("/srv/push/accepted/journal", Mode::Append), Verdict::Allowed { rule: 1, .. }));
    assert!(!matches!(verdict("/srv/push/accepted/journal", Mode::Write), Verdict::Allowed { .. }));
}

#[test]
fn defaults_hold_where_nothing_is_written() {
    let loaded = written::load_embedded("x", "version = 1\nprofile = \"minimal\"", &sample_world()).unwrap();
    let policy = loaded.policy;
    assert_eq!(policy.limits, Limits::default());
    assert_eq!(policy.create_mode, 0o600);
    assert_eq!(policy.freeze.limit, Duration::from_secs(600));
    assert!(policy.shutdown.modes.is_empty());
    assert_eq!(
        policy.identities.worker.as_ref().map(|account| (account.name.as_str(), account.uid)),
        Some(("postern", 990))
    );
    assert_eq!(policy.identities.broker.as_ref().map(|account| account.gid), Some(991));
    assert_eq!(policy.audit, Audit::at("/var/log/postern/audit.jsonl".into()));
    assert_eq!(policy.state, Path::new("/run/postern/state"));
    assert_eq!(policy.channel, Channel::VirtioSerial("/dev/virtio-ports/org.qemu.guest_agent.0".into()));
}

#[test]
fn every_key_reaches_the_policy() {
    let policy = load_sample(&Path::new(ROOT).join("tests/policy/good/everything.toml")).unwrap().policy;
    assert_eq!(policy.create_mode, 0o640);
    assert_eq!(policy.freeze.limit, Duration::from_secs(3600));
    assert_eq!(policy.shutdown.modes, [ShutdownMode::Powerdown, ShutdownMode::Halt, ShutdownMode::Reboot]);
    assert_eq!(policy.shutdown.method, ShutdownMethod::Auto);
    assert_eq!(
        policy.limits,
        Limits { message: 1 << 20, nesting: 32, string: 1 << 16, read: 4096, handles: 1024, ..Limits::default() }
    );
    let heads = Heads { journal: false, syslog: true, records: 7, interval: Duration::from_secs(30) };
    let audit = Audit {
        log: "/var/log/other/audit.jsonl".into(),
        fsync: Fsync::Record,
        rotate_bytes: Some(1 << 20),
        keep: 3,
        keep_time: Duration::from_secs(2 * 24 * 60 * 60),
        max_bytes: 16 << 20,
        heads,
    };
    assert_eq!(policy.audit, audit);
    assert_eq!(policy.identities.broker.map(|account| (account.uid, account.gid)), Some((u32::MAX - 1, u32::MAX - 1)));
    assert_eq!(policy.identities.groups, [4, 7]);
    assert_eq!(policy.channel, Channel::UnixListen("/run/host.sock".into()));
    assert_eq!(policy.state, Path::new("/run/state"));
    assert!(!policy.commands.contains(Command::FileFlush) && policy.commands.contains(Command::Shutdown));
    assert_eq!(policy.redact.iter().collect::<Vec<_>>(), [Command::GetHostName]);
    assert!(policy.commands.contains(Command::GetHostName));
    assert_eq!(policy.facts.host_name.as_deref(), Some("web"));
    assert_eq!(policy.files.len(), 3);
    assert_eq!(policy.files[0].except, [Path::new("/srv/data/closed")]);
    assert!(policy.files[2].optional && !policy.files[0].optional);
    assert_eq!(policy.files[0].types.to_string(), "regular, fifo");
}

#[test]
fn a_channel_is_written_as_stock_writes_it() {
    use postern_core::policy::Vsock;
    let any = |port| Channel::VsockListen(Vsock { cid: Vsock::ANY, port, peer: Vsock::HOST });
    for (text, channel) in [
        ("virtio-serial:/dev/vport0p1", Channel::VirtioSerial("/dev/vport0p1".into())),
        ("isa-serial:/dev/ttyS0", Channel::IsaSerial("/dev/ttyS0".into())),
        ("unix-listen:/run/a:b", Channel::UnixListen("/run/a:b".into())),
        ("vsock-listen:-1:1234", any(1234)),
        ("vsock-listen:3:1234", Channel::VsockListen(Vsock { cid: 3, port: 1234, peer: Vsock::HOST })),
    ] {
        assert_eq!(Channel::from_text(text).as_ref(), Ok(&channel));
        assert_eq!(channel.to_string(), text);
    }
    let written = load_sample(&Path::new(ROOT).join("tests/policy/good/vsock.toml")).unwrap().policy.channel;
    assert_eq!(written, Channel::VsockListen(Vsock { cid: Vsock::ANY, port: u32::MAX - 1, peer: 1 }));
    for text in [
        "isa-serial:ttyS0",
        "vsock-listen:1234",
        "vsock-listen:-2:1",
        "vsock-listen:3:x",
        "vsock-listen::1",
        "tcp:/x",
        "x",
    ] {
        assert!(Channel::from_text(text).is_err(), "{text}");
    }
}
