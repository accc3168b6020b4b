//! What is in the package, and that it agrees with the code.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{default, output, package, packed, root, source, tool};

/// Every file of the package that is no documentation, as `ls` shows its mode.
const FILES: [(&str, &str); 14] = [
    ("-rwxr-xr-x", "/etc/init.d/postern"),
    ("-rw-r--r--", "/etc/logrotate.d/postern"),
    ("-rw-r--r--", "/etc/postern/policy.toml"),
    ("-rwx--x--x", "/usr/bin/postern"),
    ("-rw-r--r--", "/usr/lib/systemd/system/postern-netlink.socket"),
    ("-rw-r--r--", "/usr/lib/systemd/system/postern.service"),
    ("-rw-r--r--", "/usr/lib/sysusers.d/postern.conf"),
    ("-rw-r--r--", "/usr/lib/tmpfiles.d/postern.conf"),
    ("-rw-r--r--", "/usr/lib/udev/rules.d/61-postern.rules"),
    ("lrwxrwxrwx", "/usr/sbin/qemu-ga -> ../bin/postern"),
    ("-rw-r--r--", "/usr/share/bash-completion/completions/postern"),
    ("-rw-r--r--", "/usr/share/fish/vendor_completions.d/postern.fish"),
    ("-rw-r--r--", "/usr/share/lintian/overrides/postern"),
    ("-rw-r--r--", "/usr/share/zsh/vendor-completions/_postern"),
];

fn field(name: &str) -> String {
    output(Command::new("dpkg-deb").arg("-f").arg(&package().0).arg(name)).trim_end().to_owned()
}

#[test]
fn the_package_holds_these_files_and_no_others() {
    let listing = output(Command::new("dpkg-deb").arg("-c").arg(&package().0));
    let mut found = Vec::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [mode, owner, _size, _day, _time, path @ ..] = words.as_slice() else { panic!("{line}") };
        assert!(matches!(*owner, "0/0" | "root/root"), "{line}");
        let path = path.join(" ");
        let path = path.strip_prefix('.').expect("a path from ./ on");
        if path.ends_with('/') {
            assert_eq!(*mode, "drwxr-xr-x", "{line}");
        } else if path.starts_with("/usr/share/doc/postern/") || path.starts_with("/usr/share/man/") {
            assert!(matches!(*mode, "-rw-r--r--" | "lrwxrwxrwx"), "{line}");
        } else {
            found.push(((*mode).to_owned(), path.to_owned()));
        }
    }
    found.sort_by(|one, other| one.1.cmp(&other.1));
    let expected: Vec<_> = FILES.iter().map(|(mode, path)| ((*mode).to_owned(), (*path).to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_the_operator_may_change_is_kept_on_upgrades() {
    let conffiles = output(Command::new("dpkg-deb").arg("-I").arg(&package().0).arg("conffiles"));
    let mut found: Vec<&str> = conffiles.lines().filter(|line| !line.is_empty()).collect();
    found.sort_unstable();
    assert_eq!(found, ["/etc/init.d/postern", "/etc/logrotate.d/postern", "/etc/postern/policy.toml"]);
    assert_eq!(fs::read_to_string(packed("/etc/postern/policy.toml")).unwrap(), source("policy/policy.toml"));
}

#[test]
fn it_takes_the_place_of_the_stock_agent() {
    for relation in ["Conflicts", "Replaces", "Provides"] {
        assert_eq!(field(relation), "qemu-guest-agent", "{relation}");
    }
    assert_eq!(field("Package"), "postern");
}

#[test]
fn version_and_architecture_are_those_of_the_build() {
    let version = field("Version");
    assert_eq!(version, concat!(env!("CARGO_PKG_VERSION"), "-1"));
    assert!(source("packaging/changelog").starts_with(&format!("postern ({version})")), "the changelog's is another");
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(field("Architecture"), architecture);
}

#[test]
fn building_it_again_gives_the_same_bytes() {
    let before = fs::read(&package().0).unwrap();
    let printed = output(&mut Command::new(root().join("packaging/build")));
    assert!(before == fs::read(printed.trim_end()).unwrap(), "two builds of the package differ");
}

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> usize {
    bytes[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// Numbers of the ELF format, from `elf(5)` and the System V ABI.
#[test]
fn the_executable_is_static_and_position_independent() {
    const DYN: usize = 3;
    const INTERP: usize = 3;
    const DYNAMIC: usize = 2;
    const STACK: usize = 0x6474_e551;
    const RELRO: usize = 0x6474_e552;
    const NEEDED: usize = 1;
    const FLAGS_1: usize = 0x6fff_fffb;
    const PIE: usize = 0x0800_0000;
    let file = fs::read(packed("/usr/bin/postern")).unwrap();
    assert_eq!(&file[..5], b"\x7fELF\x02", "an ELF file of 64 bits");
    assert_eq!(number(&file, 16, 2), DYN);
    let (start, size, count) = (number(&file, 32, 8), number(&file, 54, 2), number(&file, 56, 2));
    let headers: Vec<usize> = (0..count).map(|index| start + index * size).collect();
    let kind = |wanted| headers.iter().copied().find(|header| number(&file, *header, 4) == wanted);
    assert_eq!(kind(INTERP), None, "needs a loader");
    assert!(kind(RELRO).is_some(), "its tables stay writable");
    assert_eq!(number(&file, kind(STACK).expect("a stack header") + 4, 4) & 1, 0, "an executable stack");
    let dynamic = kind(DYNAMIC).expect("a dynamic section");
    let (offset, length) = (number(&file, dynamic + 8, 8), number(&file, dynamic + 32, 8));
    let entries: Vec<(usize, usize)> = (offset..offset + length)
        .step_by(16)
        .map(|entry| (number(&file, entry, 8), number(&file, entry + 8, 8)))
        .collect();
    assert!(entries.iter().all(|(tag, _)| *tag != NEEDED), "needs a library");
    assert!(entries.iter().any(|(tag, value)| *tag == FLAGS_1 && value & PIE != 0), "no PIE: {entries:x?}");
}

#[test]
fn the_executable_tells_nothing_of_its_builder() {
    let file = fs::read(packed("/usr/bin/postern")).unwrap();
    for path in [root().to_str().unwrap(), "/.cargo/registry/"] {
        assert!(memchr::memmem::find(&file, path.as_bytes()).is_none(), "{path} is in it");
    }
    assert!(memchr::memmem::find(&file, b"/cargo/registry/").is_some(), "the control: paths are there, renamed");
}

/// Each line's words, without comments.
fn lines(path: &str) -> Vec<Vec<String>> {
    source(path)
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_ascii_whitespace().map(str::to_owned).collect())
        .collect()
}

#[test]
fn accounts_are_those_of_the_default_policy() {
    let (worker, broker) = (default("identities.worker"), default("identities.broker"));
    let sysusers = lines("packaging/postern.sysusers");
    let made: Vec<&str> = sysusers.iter().map(|words| words[1].as_str()).collect();
    assert_eq!(made, [worker, broker]);
    assert!(sysusers.iter().all(|words| words[0] == "u" && words[2] == "-"));
    let postinst = source("packaging/scripts/postinst");
    assert!(postinst.contains(&format!("account {worker} ")) && postinst.contains(&format!("account {broker} ")));
    assert!(source("packaging/scripts/postrm").contains(&format!("for name in {worker} {broker};")));
    let port = default("channel.path").rsplit('/').next().unwrap();
    let unit = source("packaging/postern.service");
    assert!(unit.contains(&format!("\nUser={broker}\nGroup={broker}\n")));
    assert!(unit.contains("\nExecStart=!/usr/bin/postern run\n"));
    let rule = format!("SUBSYSTEM==\"virtio-ports\", ATTR{{name}}==\"{port}\", GROUP=\"{worker}\", MODE=\"0660\"");
    assert!(source("packaging/61-postern.rules").contains(&rule), "{rule}");
}

#[test]
fn directories_are_those_of_the_default_policy() {
    let broker = default("identities.broker");
    let state = default("state.directory");
    let log = Path::new(default("audit.log")).parent().unwrap().to_str().unwrap();
    let above = Path::new(state).parent().unwrap().to_str().unwrap();
    let expected: Vec<Vec<String>> = [
        format!("d {above} 0755 root root -"),
        format!("d {state} 0700 {broker} {broker} -"),
        format!("d {log} 0700 {broker} {broker} -"),
        format!("d {above}/policy.d 0755 root root -"),
        "d /etc/postern/policy.d 0755 root root -".to_owned(),
    ]
    .iter()
    .map(|line| line.split(' ').map(str::to_owned).collect())
    .collect();
    assert_eq!(lines("packaging/postern.tmpfiles"), expected);
    let (postinst, postrm) = (source("packaging/scripts/postinst"), source("packaging/scripts/postrm"));
    for words in &expected {
        let line = format!("install -d -o {} -g {} -m {} {}", words[3], words[4], words[2], words[1]);
        assert!(postinst.contains(&line), "without systemd: {line}");
    }
    assert!(postrm.contains(&format!("rm -rf {above} {log} /etc/postern")));
    assert!(source("audit/postern.logrotate").contains(&format!("{} {{", default("audit.log"))));
    let frozen = format!("{state}/frozen");
    assert!(source("src/broker/fsfreeze/remember.rs").contains("const FILE: &str = \"frozen\";"));
    assert!(postinst.contains(&frozen) && postrm.contains(&frozen), "{frozen}");
}

#[test]
fn the_scripts_are_sound() {
    let scripts = ["scripts/postinst", "scripts/prerm", "scripts/postrm", "postern.init"];
    for script in scripts {
        output(Command::new("sh").arg("-n").arg(root().join("packaging").join(script)));
    }
    if let Some(mut shellcheck) = tool("shellcheck") {
        shellcheck.args(scripts.map(|script| root().join("packaging").join(script)));
        output(shellcheck.args(["packaging/build", "tests/run"].map(|script| root().join(script))));
    }
}

#[test]
fn what_is_linked_in_is_named_with_its_licence() {
    let licences = output(Command::new("gzip").arg("-dc").arg(packed("/usr/share/doc/postern/THIRD-PARTY.gz")));
    let (list, texts) = licences.split_once("\n\n").expect("a list, then texts");
    let packages: Vec<&str> = list.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(packages.iter().any(|line| line.starts_with("seccompiler ")), "{list}");
    assert!(!list.contains("clap_mangen") && !list.contains("clap_complete"), "what is not shipped is listed");
    for package in packages {
        let name = package.split_once(':').unwrap().0;
        assert!(texts.contains(&format!("==== {} (", name.replacen(' ', " v", 1))), "{name}: no text");
    }
}
