//! What a comparison of policies promises, against policies drawn by lot, and that
//! no key and no field goes without a row.

use std::time::Duration;

use super::*;
use crate::catalogue::facts::Fact;
use crate::policy::telling::Telling;
use crate::policy::written::{World, keys, load_embedded};
use crate::policy::{
    Account, Audit, Channel, Freeze, Heads, Identities, Limits, Shutdown, ShutdownMethod, ShutdownMode,
};

fn policy(text: &str) -> Policy {
    load_embedded("test", &format!("version = 1\n{text}"), &World::elsewhere()).expect(text).policy
}

/// Everything that a broker can hold.
fn everything() -> Held {
    Held {
        unprivileged: false,
        commands: Command::all().collect(),
        facts: Fact::all().collect(),
        opens: true,
        freezes: true,
        shuts_down: true,
        shutdown_fits: true,
        syncs: true,
        rotates: true,
        journal: true,
        syslog: true,
        channel: true,
    }
}

#[test]
fn every_key_has_one_row() {
    let mut rows: Vec<&str> = ROWS.iter().flat_map(|row| row.keys).copied().collect();
    let mut keys: Vec<String> = keys::KEYS.iter().map(keys::Key::id).collect();
    rows.sort_unstable();
    keys.sort_unstable();
    assert_eq!(rows, keys, "a key of a policy file needs a row in ROWS, so that a reload knows what it does");
}

/// A field that is added to the policy fails to compile here, and one that no row
/// looks at fails the test.
#[test]
fn every_field_is_looked_at() {
    let text = "profile = \"files\"\n[[files]]\npath = \"/srv\"\nrights = [\"read\"]\n";
    let Policy {
        digest: _,
        commands: _,
        redact: _,
        facts: Telling { interfaces: _, mountpoints: _, host_name: _ },
        files: _,
        create_mode: _,
        freeze: Freeze { limit: _ },
        shutdown: Shutdown { modes: _, method: _ },
        limits: Limits { message: _, nesting: _, string: _, read: _, handles: _, requests: _, opens: _, acts: _ },
        hang: _,
        audit:
            Audit {
                log: _,
                fsync: _,
                rotate_bytes: _,
                keep: _,
                keep_time: _,
                max_bytes: _,
                heads: Heads { journal: _, syslog: _, records: _, interval: _ },
            },
        identities: Identities { worker: _, broker: _, groups: _ },
        channel: _,
        state: _,
    } = policy(text);
    let changes: Vec<fn(&mut Policy)> = vec![
        |policy| policy.commands.remove(Command::Ping),
        |policy| policy.redact.insert(Command::Info),
        |policy| policy.facts.interfaces.push("eth*".into()),
        |policy| policy.facts.mountpoints.push("/srv".into()),
        |policy| policy.facts.host_name = Some("web".into()),
        |policy| policy.files[0].path.push("x"),
        |policy| policy.files[0].rights = Rights::APPEND,
        |policy| policy.files[0].except.push("/srv/x".into()),
        |policy| policy.files[0].optional = true,
        |policy| policy.files[0].types = Types::FIFO,
        |policy| policy.create_mode = 0o640,
        |policy| policy.freeze.limit += Duration::from_secs(1),
        |policy| policy.shutdown.modes.push(ShutdownMode::Halt),
        |policy| policy.shutdown.method = ShutdownMethod::Kernel,
        |policy| policy.limits.message -= 1,
        |policy| policy.limits.nesting -= 1,
        |policy| policy.limits.string -= 1,
        |policy| policy.limits.read -= 1,
        |policy| policy.limits.handles -= 1,
        |policy| policy.limits.requests -= 1,
        |policy| policy.limits.opens -= 1,
        |policy| policy.limits.acts -= 1,
        |policy| policy.hang += Duration::from_secs(1),
        |policy| policy.audit.log.push("x"),
        |policy| policy.audit.fsync = Fsync::Record,
        |policy| policy.audit.rotate_bytes = Some(1 << 20),
        |policy| policy.audit.keep += 1,
        |policy| policy.audit.keep_time += Duration::from_secs(1),
        |policy| policy.audit.max_bytes += 1,
        |policy| policy.audit.heads.journal ^= true,
        |policy| policy.audit.heads.syslog ^= true,
        |policy| policy.audit.heads.records += 1,
        |policy| policy.audit.heads.interval += Duration::from_secs(1),
        |policy| policy.identities.worker = Some(Account { name: "other".into(), uid: 7, gid: 7 }),
        |policy| policy.identities.broker = Some(Account { name: "other".into(), uid: 7, gid: 7 }),
        |policy| policy.identities.groups.push(7),
        |policy| policy.channel = Channel::UnixListen("/run/x".into()),
        |policy| policy.state.push("x"),
    ];
    let old = policy(text);
    assert_eq!(compare(&old, &old, &everything()).outcome(true), Outcome::Unchanged);
    for (number, change) in changes.iter().enumerate() {
        let mut new = old.clone();
        change(&mut new);
        assert_ne!(new, old);
        let there = compare(&old, &new, &everything());
        let back = compare(&new, &old, &everything());
        assert!(there.changes() && back.changes(), "change {number} goes unseen");
        assert!(!(there.only_tightens() && back.only_tightens()) || number == 8, "change {number} both ways");
    }
}

/// The old, the new, what the broker lacks, the keys that take a new start.
type Case<'a> = (&'a str, &'a str, fn(&mut Held), &'a [&'a str]);

#[test]
fn what_takes_a_new_start() {
    let files = "profile = \"files\"\n[[files]]\npath = \"/srv\"\nrights = [\"read\"]\n";
    let freezing = "[commands]\nallow = [\"guest-fsfreeze-freeze\", \"guest-fsfreeze-thaw\"]\n";
    let stopping = "[commands]\nallow = [\"guest-shutdown\"]\n[shutdown]\nmodes = [\"halt\"]\n";
    let more = stopping.replace("\"halt\"", "\"halt\", \"reboot\"");
    let kernel = format!("{stopping}method = \"kernel\"\n");
    let trimming = "[commands]\nallow = [\"guest-fstrim\"]\n";
    let sleeping = "[commands]\nallow = [\"guest-suspend-ram\"]\n";
    let deeper = sleeping.replace("ram\"", "ram\", \"guest-suspend-hybrid\"");
    let switching = "[commands]\nallow = [\"guest-set-vcpus\", \"guest-set-memory-blocks\"]\n";
    let closed = "[commands]\ndeny = [\"guest-file-open\"]\n";
    let cases: &[Case<'_>] = &[
        ("", freezing, |held| held.freezes = false, &["commands.allow"]),
        ("", freezing, |_| {}, &[]),
        ("", trimming, |held| held.commands.remove(Command::Fstrim), &["commands.allow"]),
        ("", trimming, |held| (held.commands, held.unprivileged) = (CommandSet::EMPTY, true), &[]),
        ("", trimming, |_| {}, &[]),
        (trimming, "", |held| held.commands = CommandSet::EMPTY, &[]),
        // Each sleep has descriptors of its own.
        (sleeping, &deeper, |held| held.commands.remove(Command::SuspendHybrid), &["commands.allow"]),
        (sleeping, &deeper, |_| {}, &[]),
        ("", switching, |held| held.commands.remove(Command::SetVcpus), &["commands.allow"]),
        ("", switching, |held| held.commands.remove(Command::SetMemoryBlocks), &["commands.allow"]),
        (closed, "", |held| held.opens = false, &["commands.allow"]),
        (closed, "", |_| {}, &[]),
        ("", freezing, |held| (held.freezes, held.unprivileged) = (false, true), &[]),
        ("", stopping, |held| held.shutdown_fits = false, &["commands.allow", "shutdown.modes"]),
        ("", stopping, |_| {}, &[]),
        (stopping, &more, |held| held.shutdown_fits = false, &["shutdown.modes"]),
        (stopping, &kernel, |held| held.shutdown_fits = false, &["shutdown.method"]),
        ("", "[audit]\nfsync = \"open\"\n", |held| held.syncs = false, &["audit.fsync"]),
        ("", "[audit]\nfsync = \"open\"\n", |_| {}, &[]),
        ("[audit]\nfsync = \"open\"\n", "", |held| held.syncs = false, &[]),
        ("", "[audit]\nrotate_bytes = \"1MiB\"\n", |held| held.rotates = false, &["audit.rotate_bytes"]),
        ("", "[audit]\nrotate_bytes = \"1MiB\"\n", |_| {}, &[]),
        ("", "[audit]\nheads = [\"journal\", \"syslog\"]\n", |held| held.syslog = false, &["audit.heads"]),
        ("[audit]\nheads = []\n", "", |held| held.journal = false, &["audit.heads"]),
        ("", "[audit]\nheads = []\n", |held| held.journal = false, &[]),
        ("", "[audit]\nlog = \"/var/log/other/a\"\n", |_| {}, &["audit.log"]),
        ("", "[state]\ndirectory = \"/run/other\"\n", |_| {}, &["state.directory"]),
        ("", "[channel]\nmethod = \"unix-listen\"\npath = \"/run/x\"\n", |_| {}, &["channel.method"]),
        ("", "[channel]\nmethod = \"unix-listen\"\npath = \"/run/x\"\n", |held| held.channel = false, &[]),
        ("", "[identities]\nworker = 4711\n", |_| {}, &["identities.worker"]),
        ("", "[commands]\nallow = [\"guest-get-load\"]\n", |held| held.commands.remove(Command::GetLoad), &["profile"]),
        ("", "[commands]\nallow = [\"guest-get-load\", \"guest-get-time\"]\n", |_| {}, &[]),
        ("", "[limits]\nhandles = 3\n[freeze]\nlimit = \"1m\"\n[create]\nmode = \"0640\"\n", |_| {}, &[]),
    ];
    for (old, new, lacks, keys) in cases {
        let mut held = everything();
        lacks(&mut held);
        let found = compare(&policy(&format!("{files}{old}")), &policy(&format!("{files}{new}")), &held);
        assert!(found.changes(), "{new}");
        assert!(keys.iter().all(|key| found.restart.contains(key)), "{new}: {:?}", found.restart);
        assert_eq!(found.restart.is_empty(), keys.is_empty(), "{new}: {:?}", found.restart);
        assert_eq!(matches!(found.outcome(false), Outcome::Kept(_)), !keys.is_empty());
    }
}

#[test]
fn frozen_takes_only_what_tightens_and_still_thaws() {
    let text = "profile = \"backup\"\n[freeze]\nlimit = \"5m\"\n";
    let old = policy(text);
    let outcome = |text: &str, frozen| compare(&old, &policy(text), &everything()).outcome(frozen);
    assert_eq!(outcome("profile = \"backup\"\n[freeze]\nlimit = \"4m\"\n", true), Outcome::Fits);
    let longer = "profile = \"backup\"\n[freeze]\nlimit = \"6m\"\n";
    assert!(matches!(outcome(longer, true), Outcome::Kept(why) if why.contains("freeze.limit")));
    assert_eq!(outcome(longer, false), Outcome::Fits);
    let minimal = "profile = \"minimal\"\n[freeze]\nlimit = \"5m\"\n";
    assert!(matches!(outcome(minimal, true), Outcome::Kept(why) if why.contains("thaw")));
    assert_eq!(outcome(minimal, false), Outcome::Fits);
}

/// Numbers that look drawn by lot and are the same in each run (`SplitMix64`).
struct Lot(u64);

impl Lot {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let drawn = usize::try_from((z ^ (z >> 31)) >> 33).expect("31 bits");
        drawn % end
    }

    fn path(&mut self, deepest: usize) -> PathBuf {
        let mut path = PathBuf::from("/");
        for _ in 0..=self.below(deepest) {
            path.push(["a", "b"][self.below(2)]);
        }
        path
    }

    fn rules(&mut self) -> Vec<FileRule> {
        (0..self.below(4))
            .map(|_| {
                let path = self.path(3);
                let except = (0..self.below(3)).map(|_| path.join(self.path(2).strip_prefix("/").expect("absolute")));
                FileRule {
                    except: except.collect(),
                    rights: Rights::from_bits(u8::try_from(1 + self.below(15)).expect("four bits")).expect("rights"),
                    optional: self.below(2) == 0,
                    types: Types::from_bits(u8::try_from(1 + self.below(3)).expect("two bits")).expect("types"),
                    path,
                }
            })
            .collect()
    }

    /// The rules, or the rules with something done to one of them.
    fn near(&mut self, rules: &[FileRule]) -> Vec<FileRule> {
        let mut rules = rules.to_vec();
        if rules.is_empty() || self.below(3) == 0 {
            return self.rules();
        }
        let at = self.below(rules.len());
        match self.below(7) {
            0 => drop(rules.remove(at)),
            1 => rules[at].rights = Rights::from_bits(1 << self.below(4)).expect("a right"),
            2 => {
                let inside = rules[at].path.join("a");
                rules[at].except.push(inside);
            }
            3 => rules[at].path.push("a"),
            4 => rules[at].types = Types::from_bits(u8::try_from(1 + self.below(3)).expect("two bits")).expect("types"),
            5 => rules[at].except.clear(),
            _ => rules.swap(0, at),
        }
        rules
    }
}

/// What a host gets at a path: whether it may open it so, and what may lie there.
fn gets(rules: &[FileRule], path: &Path, mode: Mode) -> (bool, bool, u8) {
    match decide(rules, path, mode) {
        Verdict::Allowed { rule, existing, missing } => (existing, missing, rules[rule].types.bits()),
        _ => (false, false, 0),
    }
}

#[test]
fn what_tightens_allows_nothing_that_the_old_did_not() {
    let mut lot = Lot(4711);
    let mut paths = vec![PathBuf::from("/")];
    for depth in 0..6 {
        let above: Vec<PathBuf> = paths.iter().filter(|path| path.components().count() == depth + 1).cloned().collect();
        paths.extend(above.iter().flat_map(|path| ["a", "b", "c"].map(|name| path.join(name))));
    }
    let rounds = if cfg!(debug_assertions) { 150 } else { 2000 };
    let (mut tightened, mut exact) = (0, 0);
    for round in 0..rounds {
        let old = lot.rules();
        let new = lot.near(&old);
        let change = files(&old, &new);
        let within = paths.iter().all(|path| {
            Mode::ALL.into_iter().all(|mode| {
                let (old, new) = (gets(&old, path, mode), gets(&new, path, mode));
                (old.0 || !new.0) && (old.1 || !new.1) && new.2 & !old.2 == 0
            })
        });
        assert!(change == Change::Widens || within, "round {round}: {change:?}\n{old:#?}\n{new:#?}");
        assert_eq!(change == Change::Same, old == new);
        tightened += usize::from(change == Change::Tightens);
        exact += usize::from((change != Change::Widens) == within);
    }
    assert!(tightened * 20 > rounds, "the control: {tightened} of {rounds} tighten");
    // Landlock's part is stricter than it need be now and then.
    assert!(exact * 10 > rounds * 9, "{exact} of {rounds} exact");
}

/// A policy drawn by lot.
fn drawn(base: &Policy, lot: &mut Lot) -> Policy {
    let mut policy = base.clone();
    policy.commands = Command::all().filter(|_| lot.below(2) == 0).collect();
    policy.redact = policy.commands.iter().filter(|_| lot.below(3) == 0).collect();
    let mut some = |of: &[&str]| of.iter().filter(|_| lot.below(3) == 0).map(ToString::to_string).collect::<Vec<_>>();
    policy.facts.interfaces = some(&["eth*", "docker?", "lo"]);
    policy.facts.mountpoints = some(&["/", "/srv"]).into_iter().map(PathBuf::from).collect();
    policy.facts.host_name = some(&["web"]).pop();
    policy.shutdown.modes = ShutdownMode::ALL.into_iter().filter(|_| lot.below(2) == 0).collect();
    policy.limits.handles = 1 + u32::try_from(lot.below(3)).expect("small");
    policy.freeze.limit = Duration::from_secs(1 + lot.below(3) as u64);
    policy.create_mode = u32::try_from(lot.below(8)).expect("small") << 6;
    policy
}

/// What an answer of the command tells, of what it could.
fn told(policy: &Policy, command: Command) -> Vec<bool> {
    let (allowed, redacted, facts) =
        (policy.commands.contains(command), policy.redact.contains(command), &policy.facts);
    let heeds = |key: &str| command.redaction().is_some_and(|row| row.keys.contains(&key));
    let mut told = vec![allowed, allowed && !redacted];
    if heeds("interfaces") {
        let names = ["eth0", "ens3", "docker0", "lo", "veth7"];
        told.extend(names.map(|name| allowed && facts.shows_interface(redacted, name)));
        told.extend(names.map(|name| allowed && facts.shows_route(redacted, name, false)));
        told.push(allowed && facts.shows_address(redacted, "fe80::1".parse().expect("an address")));
        told.push(allowed && facts.shows_statistics(redacted));
    }
    if heeds("mountpoints") {
        told.extend(["/", "/srv", "/home"].map(|path| allowed && facts.shows_mount(redacted, Path::new(path))));
    }
    if heeds("host_name") {
        told.push(allowed && facts.host_name(redacted).is_none());
    }
    told
}

#[test]
fn what_tightens_tells_nothing_that_the_old_did_not() {
    let mut lot = Lot(12);
    let base = policy("profile = \"backup\"\n");
    let mut tightened = 0;
    for round in 0..if cfg!(debug_assertions) { 4_000 } else { 20_000 } {
        let (old, mut new) = (drawn(&base, &mut lot), drawn(&base, &mut lot));
        if round % 8 > 0 {
            // Else it hardly ever is less.
            new.commands = new.commands.iter().filter(|command| old.commands.contains(*command)).collect();
            new.redact = new.commands.iter().filter(|c| old.redact.contains(*c) || new.redact.contains(*c)).collect();
        }
        if !compare(&old, &new, &everything()).only_tightens() {
            continue;
        }
        tightened += 1;
        for command in Command::all() {
            let (before, after) = (told(&old, command), told(&new, command));
            let within = before.iter().zip(&after).all(|(before, after)| *before || !after);
            assert!(within, "{command}: {before:?} {after:?}\n{:?}\n{:?}", old.facts, new.facts);
        }
        assert!(new.shutdown.modes.iter().all(|mode| old.shutdown.modes.contains(mode)));
        assert!(new.limits.handles <= old.limits.handles && new.freeze.limit <= old.freeze.limit);
        assert_eq!(new.create_mode & !old.create_mode, 0);
    }
    assert!(tightened > 10, "the control: {tightened}");
}

#[test]
fn redacting_tightens_and_allowing_again_widens() {
    let base = policy("profile = \"backup\"\n");
    let mut redacted = base.clone();
    redacted.redact.insert(Command::Info);
    let change = |old: &Policy, new: &Policy| {
        let found = compare(old, new, &everything());
        (found.tightened.contains(&"commands.redact"), found.widened.contains(&"commands.redact"))
    };
    assert_eq!(change(&base, &redacted), (true, false));
    assert_eq!(change(&redacted, &base), (false, true));
    let mut denied = redacted.clone();
    denied.narrow(base.commands.iter().filter(|command| *command != Command::Info).collect());
    assert_eq!(change(&redacted, &denied), (true, false));
    assert_eq!(change(&denied, &redacted), (false, true), "a redacted answer is more than none");
}

/// What a policy has told is opened at the start, and so is where the opener gathers:
/// what another one tells beside that, or does not redact, takes a new start.
#[test]
fn facts_that_were_not_told_take_a_new_start() {
    let telling = |how: &str| policy(&format!("[commands]\n{how} = [\"guest-get-users\"]\nallow = [\"guest-ping\"]\n"));
    let (redacted, whole) = (telling("redact"), policy("[commands]\nallow = [\"guest-ping\", \"guest-get-users\"]\n"));
    let held = |started: &Policy| Held { facts: started.facts(), commands: started.commands, ..everything() };
    let widened = compare(&redacted, &whole, &held(&redacted));
    assert!(widened.restart.contains(&"commands.redact"), "{widened:?}");
    let narrowed = compare(&whole, &redacted, &held(&whole));
    assert!(narrowed.restart.is_empty() && narrowed.surplus.contains(&"telling of the guest"), "{narrowed:?}");
    let back = compare(&redacted, &whole, &held(&whole));
    assert!(back.restart.is_empty() && !back.surplus.contains(&"telling of the guest"), "{back:?}");
}
