//! Which files are read, who may own them, how they merge.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, chown, geteuid};
use postern_core::catalogue::Command;
use postern_core::policy::written::{self, Kind, Loaded, PolicyError, World};

use super::{ROOT, everything, names, same_as_file, sample_world, shown};

/// A policy in a directory of its own, as whoever runs the test.
pub(super) struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub(super) fn new(main: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let files = Self { directory };
        files.write("policy.toml", main);
        files
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    pub(super) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.at(name);
        let parent = path.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&path, text).unwrap();
        self.mode(name, 0o644);
    }

    pub(super) fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(super) fn load(&self) -> Result<Loaded, PolicyError> {
        let world = World { euid: geteuid().as_raw(), ..sample_world() };
        written::load(Some(&self.at("policy.toml")), &world)
    }

    /// Holds what is wrong against `tests/policy/files/NAME.txt`.
    fn expect(&self, name: &str, kind: Kind) {
        let result = self.load();
        let all = everything(&result);
        assert!(all.iter().any(|mistake| mistake.kind == kind), "{name}: no {kind:?} in\n{}", shown(&result));
        let directory = self.at("");
        let text = shown(&result)
            .replace(directory.to_str().unwrap().trim_end_matches('/'), "DIR")
            .replace(&format!("root or user {}", geteuid()), "OWNER")
            .replace("give it to root", "give it to OWNER")
            .replace(&format!("chown {}", geteuid()), "chown UID");
        same_as_file(&Path::new(ROOT).join(format!("tests/policy/files/{name}.txt")), &text);
    }
}

const MINIMAL: &str = "version = 1\nprofile = \"minimal\"\n";

#[test]
fn a_file_that_others_can_write_is_not_read() {
    let files = Files::new("secret nonsense that is no TOML");
    for (mode, name) in [(0o666, "world-writable"), (0o664, "group-writable")] {
        files.mode("policy.toml", mode);
        files.expect(name, Kind::OpenToOthers);
    }
    let files = Files::new(MINIMAL);
    files.mode("", 0o777);
    files.expect("world-writable-directory", Kind::OpenToOthers);
    // Sticky is no excuse for the directory that holds the file.
    files.mode("", 0o1777);
    files.expect("sticky-directory", Kind::OpenToOthers);
    files.mode("", 0o755);
    assert!(files.load().is_ok());
    // It is one on the way there: the files here lie beneath /tmp, most likely.
    files.write("sticky/own/policy.toml", MINIMAL);
    files.mode("sticky", 0o1777);
    let world = World { euid: geteuid().as_raw(), ..sample_world() };
    assert!(written::load(Some(&files.at("sticky/own/policy.toml")), &world).is_ok());
    files.mode("sticky", 0o777);
    assert!(written::load(Some(&files.at("sticky/own/policy.toml")), &world).is_err());
}

#[test]
fn a_drop_in_that_others_can_write_is_not_read() {
    let files = Files::new(MINIMAL);
    files.write("policy.d/50.toml", "version = 1");
    files.mode("policy.d/50.toml", 0o646);
    files.expect("world-writable-drop-in", Kind::OpenToOthers);
    files.mode("policy.d/50.toml", 0o644);
    files.mode("policy.d", 0o775);
    files.expect("group-writable-drop-in-directory", Kind::OpenToOthers);
}

#[test]
fn needs_root_a_file_of_someone_else_is_not_read() {
    if !geteuid().is_root() {
        eprintln!("NOT TESTED: wrong owners need root to be made");
        return;
    }
    let files = Files::new(MINIMAL);
    chown(&files.at("policy.toml"), Some(Uid::from_raw(4711)), None).unwrap();
    files.expect("wrong-owner", Kind::WrongOwner);
    chown(&files.at("policy.toml"), Some(Uid::from_raw(0)), None).unwrap();
    chown(&files.at(""), Some(Uid::from_raw(4711)), None).unwrap();
    files.expect("wrong-owner-of-directory", Kind::WrongOwner);
    // Started by that user, both of the user's and of root's are fine.
    let world = World { euid: 4711, ..sample_world() };
    assert!(written::load(Some(&files.at("policy.toml")), &world).is_ok());
}

#[test]
fn files_that_are_none() {
    let files = Files::new(MINIMAL);
    files.write("elsewhere.toml", MINIMAL);
    fs::create_dir(files.at("policy.d")).unwrap();
    files.mode("policy.d", 0o755);
    symlink(files.at("nowhere"), files.at("policy.d/10-dangling.toml")).unwrap();
    files.expect("dangling-drop-in", Kind::DanglingLink);
    fs::remove_file(files.at("policy.d/10-dangling.toml")).unwrap();
    symlink(files.at("elsewhere.toml"), files.at("policy.d/20-link.toml")).unwrap();
    files.expect("linked-drop-in", Kind::NotRegular);
    fs::remove_file(files.at("policy.d/20-link.toml")).unwrap();
    fs::create_dir(files.at("policy.d/30-directory.toml")).unwrap();
    files.expect("directory-as-drop-in", Kind::NotRegular);
    fs::remove_dir(files.at("policy.d/30-directory.toml")).unwrap();
    nix::unistd::mkfifo(&files.at("policy.d/40-pipe.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    files.expect("pipe-as-drop-in", Kind::NotRegular);
    fs::remove_file(files.at("policy.d/40-pipe.toml")).unwrap();
    files.write("policy.d/50-big.toml", vec![b'#'; (1 << 20) + 1]);
    files.expect("large-drop-in", Kind::TooLarge);
    fs::remove_file(files.at("policy.d/50-big.toml")).unwrap();
    files.write("policy.d/60-old.toml.rpmsave", "version = 1");
    files.write("policy.d/.swap.toml", "nonsense");
    files.expect("ignored-drop-in", Kind::IgnoredFile);
    assert!(files.load().is_ok());
    fs::remove_file(files.at("policy.toml")).unwrap();
    files.expect("no-policy", Kind::NoPolicy);
    symlink(files.at("elsewhere.toml"), files.at("policy.toml")).unwrap();
    files.expect("linked-policy", Kind::NotRegular);
}

#[test]
fn a_linked_directory_is_not_followed() {
    let files = Files::new(MINIMAL);
    files.write("real/policy.toml", MINIMAL);
    symlink(files.at("real"), files.at("link")).unwrap();
    let world = World { euid: geteuid().as_raw(), ..sample_world() };
    let error = written::load(Some(&files.at("link/policy.toml")), &world).unwrap_err();
    assert_eq!(error.mistakes[0].kind, Kind::NotRegular);
}

#[test]
fn a_file_that_is_not_utf8() {
    let files = Files::new(MINIMAL);
    files.write("policy.toml", b"version = 1\nprofile = \"min\xffimal\"\n");
    files.expect("not-utf8", Kind::NotUtf8);
}

#[test]
fn mistakes_of_all_files_come_at_once() {
    let files = Files::new("version = 1\nprofile = \"minimum\"\n");
    files.write("policy.d/20.toml", "version = 1\n[freeze]\nlimit = 5\n");
    files.write("policy.d/10.toml", "version = 1\n[commands]\nallow = [\"guest-pong\"]\n");
    files.expect("all-files", Kind::UnknownCommand);
    assert_eq!(files.load().unwrap_err().mistakes.len(), 3);
}

#[test]
fn a_rule_must_not_reach_the_policy() {
    let files = Files::new("");
    let rule = |path: &Path| {
        format!("{MINIMAL}[[files]]\npath = \"{}\"\nrights = [\"read\"]\noptional = true\n", path.display())
    };
    for path in ["", "policy.toml", "policy.d", "policy.d/x"] {
        let path = plain(&files.at(path));
        files.write("policy.toml", rule(&path));
        let error = files.load().unwrap_err();
        assert_eq!(error.mistakes.iter().map(|mistake| mistake.kind).collect::<Vec<_>>(), [Kind::CoversOwn], "{error}");
    }
    files.write("policy.toml", rule(&files.at("data")));
    assert!(files.load().is_ok());
    // The broker owns its state: the policy must not lie there either.
    files.write("policy.toml", format!("{MINIMAL}[state]\ndirectory = \"{}\"\n", plain(&files.at("")).display()));
    assert_eq!(files.load().unwrap_err().mistakes[0].kind, Kind::CoversOwn);
}

pub(super) fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

#[test]
fn drop_ins_merge_as_documented() {
    let files = Files::new(
        "version = 1\nprofile = \"backup\"\n[commands]\nallow = [\"guest-file-open\"]\n[freeze]\nlimit = \"1m\"\n\
         [identities]\ngroups = [\"adm\"]\n[[files]]\npath = \"/srv/data\"\nrights = [\"read\"]\n",
    );
    files.write(
        "policy.d/20.toml",
        "version = 1\nprofile = \"minimal\"\n[commands]\ndeny = [\"guest-file-open\", \"guest-ping\"]\n[freeze]\nlimit = \"3m\"\n",
    );
    files.write(
        "policy.d/10.toml",
        "version = 1\n[commands]\nallow = [\"guest-fsfreeze-status\"]\n[freeze]\nlimit = \"2m\"\n[identities]\ngroups = [7]\n\
         [[files]]\npath = \"/srv/data\"\nrights = [\"write\"]\n",
    );
    let loaded = files.load().unwrap();
    // Last profile wins; allow adds up; deny wins wherever it stands.
    assert_eq!(
        names(loaded.policy.commands),
        ["guest-sync-delimited", "guest-sync", "guest-info", "guest-fsfreeze-status"]
    );
    assert_eq!(loaded.policy.freeze.limit, Duration::from_secs(180));
    assert_eq!(loaded.policy.identities.groups, [7]);
    assert_eq!(loaded.policy.files.len(), 2);
    let sources: Vec<_> = loaded.sources.iter().map(|source| source.path.clone()).collect();
    assert_eq!(sources, [files.at("policy.toml"), files.at("policy.d/10.toml"), files.at("policy.d/20.toml")]);
    assert_eq!(loaded.why.files[1].file, files.at("policy.d/10.toml"));
    assert_eq!(loaded.why.files[1].line, 9);

    // A link to /dev/null takes a drop-in out.
    fs::remove_file(files.at("policy.d/20.toml")).unwrap();
    symlink("/dev/null", files.at("policy.d/20.toml")).unwrap();
    let loaded = files.load().unwrap();
    assert_eq!(loaded.policy.freeze.limit, Duration::from_secs(120));
    assert!(loaded.policy.commands.contains(Command::FsfreezeFreeze));
}

#[test]
fn the_digest_is_that_of_the_files_one_after_another() {
    let one = written::load_embedded("x", MINIMAL, &sample_world()).unwrap().policy.digest;
    let hex: Vec<String> = one.iter().map(|byte| format!("{byte:02x}")).collect();
    // printf 'version = 1\nprofile = "minimal"\n' | sha256sum
    assert_eq!(hex.concat(), "258d53e13ba908fd24b01c7a823d55f1030c5d27e909c23176d64793c54fb255");
    let files = Files::new(MINIMAL);
    assert_eq!(files.load().unwrap().policy.digest, one);
    files.write("policy.d/1.toml", "version = 1");
    assert_ne!(files.load().unwrap().policy.digest, one);
}
