//! A policy file: text → a checked policy, or every mistake with its place.
//!
//! The first byte says of which machine the policy is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use postern_core::policy::parts::OpenerPart;
use postern_core::policy::rules::{Rights, Types, is_canonical};
use postern_core::policy::telling::Telling;
use postern_core::policy::written::{Look, Mistake, World, keys, load_embedded};
use postern_core::policy::{Account, Channel, Fsync, Policy, ShutdownMethod, Vsock};

use super::text::assert_harmless;

const NAME: &str = "policy.toml";

/// Takes an input.
///
/// # Panics
/// Where a mistake has no place in the text, or a policy that was accepted is not
/// canonical or another one when it is written out.
pub fn run(input: &[u8]) {
    let Some((&which, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let world = world(which);
    match load_embedded(NAME, text, &world) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|mistake| placed(mistake, text));
            assert!(loaded.warnings.iter().all(|mistake| mistake.warning));
            let mut policy = loaded.policy;
            canonical(&policy);
            assert_eq!(loaded.why.files.len(), policy.files.len());
            let allowed = loaded.why.commands.iter().filter(|ruling| ruling.allowed).count();
            assert_eq!(allowed, policy.commands.iter().count());
            let written = written(&policy);
            for key in keys::KEYS.iter().filter(|key| key.default.is_some() && key.table != "files") {
                let said = written.contains(&format!("\n{} = ", key.name)) || key.table == "channel";
                assert!(said, "{} is never written", key.id());
            }
            let again = match load_embedded(NAME, &written, &world) {
                Ok(again) => again.policy,
                Err(error) => panic!("{error}\n{written}"),
            };
            policy.digest = again.digest;
            assert_eq!(policy, again, "{written}");
        }
        Err(error) => {
            error.mistakes.iter().chain(&error.warnings).for_each(|mistake| placed(mistake, text));
            assert!(!error.mistakes.is_empty() && error.mistakes.iter().all(|mistake| !mistake.warning));
            assert_harmless(&error.to_string().replace('\t', " "));
        }
    }
}

/// This machine, in the hands of root or of somebody else, or any machine. What
/// stands at a path is told by its last letter.
fn world(which: u8) -> World {
    World {
        confined: false,
        euid: u32::from(which & 1) * 1000,
        here: which & 2 == 0,
        wants_accounts: which & 4 == 0,
        passwd: "root:x:0:0::/:/bin/sh\npostern:x:990:990::/:/bin/false\npostern-broker:x:991:991::/:/bin/false\n\
                 same:x:991:5::/:/bin/false\nodd:x:12:x::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"
            .to_owned(),
        group: "root:x:0:\nadm:x:4:syslog\npostern:x:990:\npostern-broker:x:991:\n".to_owned(),
        look,
    }
}

fn look(path: &Path) -> Look {
    let there = |mode| Look::There { resolved: path.to_owned(), mode };
    match path.as_os_str().as_encoded_bytes().last() {
        Some(b'm') => Look::Missing,
        Some(b'h') => Look::Hidden("Permission denied".to_owned()),
        Some(b'l') => Look::There { resolved: path.join("there"), mode: 0o040_755 },
        Some(b'c') => there(0o020_666),
        Some(b'p') => there(0o010_600),
        Some(b'b') => there(0o060_660),
        Some(b's') => there(0o140_777),
        Some(b'f') => there(0o100_644),
        _ => there(0o040_755),
    }
}

/// A mistake is in the file, or in the defaults that the file contradicts.
fn placed(mistake: &Mistake, text: &str) {
    let shown = mistake.to_string();
    // Tabs stand in an excerpt so that the mark beneath it fits.
    assert_harmless(&shown.replace('\t', " "));
    assert!(!mistake.what.is_empty() && !mistake.help.is_empty(), "{shown}");
    assert!(mistake.line >= 1 && mistake.column >= 1, "{shown}");
    if mistake.file == Path::new(NAME) {
        let line = text.split('\n').nth(mistake.line - 1);
        let line = line.unwrap_or_else(|| panic!("there is no such line: {shown}"));
        assert!(mistake.column <= line.chars().count() + 1, "{shown}");
    }
}

fn canonical(policy: &Policy) {
    let paths = policy.files.iter().flat_map(|rule| std::iter::once(&rule.path).chain(&rule.except));
    for path in paths.chain([&policy.audit.log, &policy.state]) {
        assert!(is_canonical(path) && path.as_os_str().len() <= keys::MAX_PATH, "{}", path.display());
    }
    for rule in &policy.files {
        assert_ne!(rule.rights, Rights::NONE);
        assert!(rule.except.iter().all(|except| except.starts_with(&rule.path) && *except != rule.path));
        assert!(!rule.reaches(&policy.audit.log) && !rule.reaches(&policy.state), "it reaches what is postern's own");
        assert_ne!(rule.path, PathBuf::from("/"));
    }
    assert!(policy.files.len() <= keys::MAX_RULES && policy.identities.groups.len() <= keys::MAX_GROUPS);
    assert_eq!(policy.create_mode & !0o775, 0);
    assert!((1..=3600).contains(&policy.freeze.limit.as_secs()));
    let limits = &policy.limits;
    for (size, most) in [(limits.message, 64 << 20), (limits.string, 64 << 20), (limits.read, 48 << 20)] {
        assert!((4096..=most).contains(&size));
    }
    assert!((8..=1024).contains(&limits.nesting) && (1..=1024).contains(&limits.handles));
    for account in [&policy.identities.worker, &policy.identities.broker].into_iter().flatten() {
        assert!(account.uid != 0 && account.gid != 0);
    }
    if let (Some(worker), Some(broker)) = (&policy.identities.worker, &policy.identities.broker) {
        assert!(worker.uid != broker.uid && worker.gid != broker.gid);
        assert!(!policy.identities.groups.contains(&broker.gid));
    }
    let part = OpenerPart {
        rules: policy.files.clone(),
        create_mode: policy.create_mode,
        facts: policy.facts(),
        telling: Telling::default(),
    };
    assert!(part.orders().is_ok(), "the opener can be told");
}

/// The policy as a file that says everything.
fn written(policy: &Policy) -> String {
    let mut out = "version = 1\n".to_owned();
    let mut table = |name: &str, keys: &[(&str, String)]| {
        _ = writeln!(out, "{name}");
        for (key, value) in keys {
            _ = writeln!(out, "{key} = {value}");
        }
    };
    let list = |items: &mut dyn Iterator<Item = String>| format!("[{}]", items.collect::<Vec<_>>().join(", "));
    let path = |path: &Path| quoted(&path.to_string_lossy());
    table("[commands]", &[("allow", list(&mut policy.commands.iter().map(|command| quoted(command.name()))))]);
    table("[create]", &[("mode", format!("\"{:04o}\"", policy.create_mode))]);
    table("[freeze]", &[("limit", format!("\"{}s\"", policy.freeze.limit.as_secs()))]);
    let method = match policy.shutdown.method {
        ShutdownMethod::Init => "init",
        ShutdownMethod::Kernel => "kernel",
        ShutdownMethod::Auto => "auto",
    };
    let modes = list(&mut policy.shutdown.modes.iter().map(|mode| quoted(mode.name())));
    table("[shutdown]", &[("modes", modes), ("method", quoted(method))]);
    let limits = &policy.limits;
    let numbers = [
        ("message", limits.message),
        ("nesting", limits.nesting),
        ("string", limits.string),
        ("read", limits.read),
        ("handles", limits.handles),
        ("requests", limits.requests),
        ("opens", limits.opens),
        ("acts", limits.acts),
    ];
    let mut keys: Vec<_> = numbers.iter().map(|(key, number)| (*key, number.to_string())).collect();
    keys.push(("hang", format!("\"{}s\"", policy.hang.as_secs())));
    table("[limits]", &keys);
    let audit = &policy.audit;
    let heads = [("journal", audit.heads.journal), ("syslog", audit.heads.syslog)];
    let mut keys = vec![
        ("log", path(&audit.log)),
        ("fsync", quoted(audit.fsync.name())),
        ("keep", audit.keep.to_string()),
        ("keep_days", (audit.keep_time.as_secs() / 86_400).to_string()),
        ("max_bytes", audit.max_bytes.to_string()),
        ("heads", list(&mut heads.iter().filter(|(_, on)| *on).map(|(name, _)| quoted(name)))),
        ("head_records", audit.heads.records.to_string()),
        ("head_interval", format!("\"{}s\"", audit.heads.interval.as_secs())),
    ];
    keys.extend(audit.rotate_bytes.map(|bytes| ("rotate_bytes", bytes.to_string())));
    assert!(matches!(audit.fsync, Fsync::Open | Fsync::Record | Fsync::Never));
    table("[audit]", &keys);
    // One that is not there is still not there.
    let account = |account: &Option<Account>| match account {
        Some(account) if account.name.starts_with(|first: char| first.is_ascii_digit()) => account.name.clone(),
        Some(account) => quoted(&account.name),
        None => quoted("nobody-has-this-name"),
    };
    let ids = &policy.identities;
    let groups = list(&mut ids.groups.iter().map(u32::to_string));
    table("[identities]", &[("worker", account(&ids.worker)), ("broker", account(&ids.broker)), ("groups", groups)]);
    let (method, place) = match &policy.channel {
        Channel::VirtioSerial(device) => ("virtio-serial", ("path", path(device))),
        Channel::IsaSerial(device) => ("isa-serial", ("path", path(device))),
        Channel::UnixListen(socket) => ("unix-listen", ("path", path(socket))),
        Channel::VsockListen(Vsock { port, peer, .. }) => ("vsock-listen", ("port", format!("{port}\npeer = {peer}"))),
    };
    table("[channel]", &[("method", quoted(method)), place]);
    table("[state]", &[("directory", path(&policy.state))]);
    for rule in &policy.files {
        let rights = Rights::NAMED.iter().filter(|(right, _)| rule.rights.contains(*right));
        let types = Types::NAMED.iter().filter(|(kind, _)| rule.types.contains(*kind));
        let keys = [
            ("path", path(&rule.path)),
            ("rights", list(&mut rights.map(|(_, name)| quoted(name)))),
            ("except", list(&mut rule.except.iter().map(|except| path(except)))),
            ("optional", rule.optional.to_string()),
            ("types", list(&mut types.map(|(_, name)| quoted(name)))),
        ];
        table("[[files]]", &keys);
    }
    out
}

/// A TOML string, every odd character by its number.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            ' '..='~' if !matches!(character, '"' | '\\') => out.push(character),
            _ => _ = write!(out, "\\U{:08X}", u32::from(character)),
        }
    }
    out + "\""
}
