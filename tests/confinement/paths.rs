//! Names: what opener, spawner and broker reach by path, whatever code runs in
//! them. What only the opener's own check tells apart is in `tests/hostile.rs`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use nix::libc;
use postern_core::confine::filters::{self, LOOK, create_flags, reopen_flags};
use postern_core::policy::rules::{Mode, Rights};

use super::ACCOUNT;
use super::attacks::{CWD, held};
use super::needs::{Role, opener, rule};
use super::raw::{End, attempt, call, room, text, words};
use super::roles::{LOG, STATE};

const EACCES: End = End::Back(-(libc::EACCES as i64));
const DEAD: End = End::Killed(libc::SIGSYS);

/// Directories that the account may do anything in, each with a file `old`.
const READ: &str = "/tmp/rules/read";
const WRITE: &str = "/tmp/rules/write";
const CREATE: &str = "/tmp/rules/create";
const APPEND: &str = "/tmp/rules/append";
const OUTSIDE: &str = "/tmp/rules/outside";

fn set_rules() {
    for directory in [READ, WRITE, CREATE, APPEND, OUTSIDE] {
        let _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory).expect("a directory");
        fs::write(format!("{directory}/old"), "old content").expect("a file");
        symlink(format!("{OUTSIDE}/old"), format!("{directory}/link")).expect("a link");
        for name in ["", "/old"] {
            chown(format!("{directory}{name}"), Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
        }
    }
    fs::set_permissions("/tmp/rules", Permissions::from_mode(0o755)).expect("its mode");
}

/// An opener with every kind of rule, so that its filter is the widest.
fn all_rules() -> Role {
    opener(vec![
        rule(READ, Rights::READ),
        rule(WRITE, Rights::READ.with(Rights::WRITE)),
        rule(CREATE, Rights::CREATE),
        rule(APPEND, Rights::APPEND),
    ])
}

fn bits(flags: nix::fcntl::OFlag) -> u64 {
    u64::try_from(flags.bits()).expect("flags")
}

fn look_at(path: &str) -> i64 {
    call(libc::SYS_openat, &[CWD, text(path), bits(LOOK), 0])
}

/// Looks at a path, then opens what is there with these flags, as the opener
/// does; without any check of its own.
fn reopen(path: &str, flags: u64) -> i64 {
    let object = look_at(path);
    if object < 0 {
        return object;
    }
    call(libc::SYS_openat, &[4, text(&object.to_string()), flags, 0])
}

/// Makes a file, as the opener does.
fn create(directory: &str, name: &str, mode: Mode) -> i64 {
    let object = look_at(directory);
    call(
        libc::SYS_openat,
        &[u64::try_from(object).expect("the directory"), text(name), bits(create_flags(mode)), 0o600],
    )
}

/// What comes of this in an opener that has these rules.
fn opens(role: &Role, act: impl FnOnce() -> i64) -> End {
    attempt(
        || {
            set_rules();
            role.prepare();
        },
        |()| act(),
    )
}

fn works(end: &End) -> bool {
    matches!(end, End::Back(0..))
}

pub(crate) fn an_opener_reaches_what_its_rules_allow() {
    let role = all_rules();
    for (directory, mode) in [
        (READ, Mode::Read),
        (WRITE, Mode::Read),
        (WRITE, Mode::ReadPlus),
        (WRITE, Mode::Write),
        (WRITE, Mode::WritePlus),
        (WRITE, Mode::Append),
        (APPEND, Mode::Append),
    ] {
        let end = opens(&role, || reopen(&format!("{directory}/old"), bits(reopen_flags(mode))));
        assert!(works(&end), "{directory} {mode:?}: {end:?}");
    }
    let end = opens(&role, || create(CREATE, "new", Mode::Write));
    assert!(works(&end), "create: {end:?}");
    assert_eq!(fs::read(format!("{CREATE}/new")).expect("the new file"), b"");
    let mode = fs::metadata(format!("{CREATE}/new")).expect("the new file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

pub(crate) fn an_opener_reaches_nothing_outside_its_rules() {
    let role = all_rules();
    let hidden = format!("{OUTSIDE}/old");
    let roundabout = format!("{READ}/../outside/old");
    let through_link = format!("{READ}/link");
    let through_proc = format!("/proc/self/root{OUTSIDE}/old");
    let through_cwd = format!("/proc/self/cwd{OUTSIDE}/old");
    let paths = [&hidden, &roundabout, &through_link, &through_proc, &through_cwd, "/proc/self/status", "/dev/null"];
    for path in paths {
        let seen = opens(&role, || look_at(path));
        assert!(works(&seen), "the control: {path} is there: {seen:?}");
        for mode in [Mode::Read, Mode::Write, Mode::ReadPlus, Mode::Append] {
            let end = opens(&role, || reopen(path, bits(reopen_flags(mode))));
            assert_eq!(end, EACCES, "{path} {mode:?}");
        }
    }
    // Its own /proc/self/fd leads to nothing else, and an open by name alone
    // is not in the filter.
    assert_eq!(opens(&role, || call(libc::SYS_openat, &[CWD, text(&hidden), bits(reopen_flags(Mode::Read)), 0])), DEAD);
    assert_eq!(opens(&role, || create(OUTSIDE, "new", Mode::Write)), EACCES);
    assert_eq!(opens(&role, || create(READ, "new", Mode::Write)), EACCES);
    assert_eq!(opens(&role, || create(APPEND, "new", Mode::Write)), EACCES);
    // What a rule's rights leave out, though another rule has them.
    for (directory, mode) in [
        (READ, Mode::Write),
        (READ, Mode::ReadPlus),
        (READ, Mode::Append),
        (CREATE, Mode::Read),
        (CREATE, Mode::Write),
        (APPEND, Mode::Read),
        (APPEND, Mode::Write),
    ] {
        let end = opens(&role, || reopen(&format!("{directory}/old"), bits(reopen_flags(mode))));
        // Truncating is a right of its own from ABI 3 on, which CREATE and
        // APPEND lack.
        assert_eq!(end, EACCES, "{directory} {mode:?}");
    }
}

/// Every combination of the flags that change what an open does.
fn flags() -> impl Iterator<Item = u64> {
    const CHOICES: [i32; 7] = [
        libc::O_APPEND,
        libc::O_TRUNC,
        libc::O_CREAT,
        libc::O_EXCL,
        libc::O_CLOEXEC,
        libc::O_NONBLOCK | libc::O_NOCTTY,
        libc::O_NOFOLLOW,
    ];
    let access = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE];
    access.into_iter().flat_map(|access| {
        (0..1_u32 << CHOICES.len()).map(move |set| {
            let chosen = CHOICES.iter().enumerate().filter(|(index, _)| set & (1 << index) != 0);
            u64::try_from(chosen.fold(access, |all, (_, flag)| all | flag)).expect("flags")
        })
    })
}

pub(crate) fn a_read_only_opener_changes_nothing() {
    let role = opener(vec![rule(READ, Rights::READ)]);
    let file = format!("{READ}/old");
    let mut opened = 0;
    for flags in flags() {
        for directory in [CWD, 4] {
            let end = opens(&role, || match directory {
                4 => reopen(&file, flags),
                _ => call(libc::SYS_openat, &[CWD, text(&file), flags, 0o600]),
            });
            opened += u32::from(works(&end));
            let reads = flags == bits(reopen_flags(Mode::Read)) && directory == 4;
            assert!(if reads { works(&end) } else { end == DEAD }, "{flags:#o} by {directory}: {end:?}");
            assert_eq!(fs::read(&file).expect("the file"), b"old content", "{flags:#o}");
        }
    }
    assert_eq!(opened, 1);
    // With a descriptor in hand: no call of the table writes by one that was
    // opened to read; these are those that change an object by any.
    let with = |act: fn(u64) -> i64| {
        let open = || u64::try_from(reopen(&file, bits(reopen_flags(Mode::Read)))).expect("a descriptor");
        opens(&role, || act(open()))
    };
    assert_eq!(with(|file| call(libc::SYS_fchmod, &[file, 0o777])), DEAD);
    assert_eq!(with(|file| call(libc::SYS_fchown, &[file, u64::MAX, u64::MAX])), DEAD);
    assert_eq!(with(|file| call(libc::SYS_ftruncate, &[file, 0])), DEAD);
    assert_eq!(with(|file| call(libc::SYS_utimensat, &[file, 0, 0, 0])), DEAD);
    assert_eq!(with(|file| call(libc::SYS_write, &[file, text("x"), 1])), DEAD);
}

pub(crate) fn an_appending_opener_overwrites_nothing() {
    let role = opener(vec![rule(APPEND, Rights::APPEND)]);
    let file = format!("{APPEND}/old");
    let mut opened = 0;
    for flags in flags() {
        let end = opens(&role, || reopen(&file, flags));
        if works(&end) {
            opened += 1;
            assert_eq!(flags, bits(reopen_flags(Mode::Append)), "{flags:#o} got a descriptor");
        }
        assert_eq!(fs::read(&file).expect("the file"), b"old content", "{flags:#o}");
    }
    assert_eq!(opened, 1, "the control: appending works");
}

pub(crate) fn a_spawner_executes_its_own_file_only() {
    let sleeping = words(&[text("sh"), text("-c"), text("exit 42"), 0]);
    let nothing = words(&[0]);
    let empty = u64::try_from(libc::AT_EMPTY_PATH).expect("a flag");
    let shell = |role: &Role| {
        attempt(|| role.prepare(), |()| call(libc::SYS_execveat, &[4, text("/bin/sh"), sleeping, nothing, empty]))
    };
    assert_eq!(shell(&Role::None), End::Became(42), "the control");
    assert_eq!(shell(&Role::spawner()), EACCES);
    for role in [Role::worker(), Role::opener(), Role::broker()] {
        assert_eq!(shell(&role), DEAD, "{role:?}");
    }
    // Through its own descriptor as a link, and through a new one.
    let path = |path: &'static str| {
        attempt(
            || Role::spawner().prepare(),
            move |()| call(libc::SYS_execveat, &[4, text(path), sleeping, nothing, empty]),
        )
    };
    assert_eq!(path("/proc/self/root/bin/sh"), EACCES);
    let moved = attempt(
        || Role::spawner().prepare(),
        |()| {
            let shell = call(libc::SYS_openat, &[CWD, text("/bin/sh"), bits(LOOK), 0]);
            call(libc::SYS_dup3, &[u64::try_from(shell).expect("a descriptor"), 4, 0]);
            call(libc::SYS_execveat, &[4, text(""), sleeping, nothing, empty])
        },
    );
    assert_eq!(moved, EACCES, "another file on descriptor 4");
    // A copy of a program, under any name, is another file.
    let copied = attempt(
        || {
            fs::copy("/bin/sh", "/tmp/shell").expect("a copy");
            Role::spawner().prepare();
        },
        |()| call(libc::SYS_execveat, &[4, text("/tmp/shell"), sleeping, nothing, empty]),
    );
    assert_eq!(copied, EACCES, "a copy");
    // Memory with a program in it has no file to forbid: there is none.
    let memory = attempt(|| Role::spawner().prepare(), |()| call(libc::SYS_memfd_create, &[text("x"), 0]));
    assert_eq!(memory, DEAD);
    if filters::LOADER.is_some() {
        println!("    not denied in a build that is not static: executing the dynamic loader itself");
    }
}

pub(crate) fn a_broker_opens_its_own_files_only() {
    let role = Role::broker();
    fs::write("/tmp/secret", "secret").expect("a file");
    fs::set_permissions("/tmp/secret", Permissions::from_mode(0o666)).expect("its mode");
    let open_at = |directory: u64, path: &str, flags: nix::fcntl::OFlag, mode: u64| {
        attempt(|| role.prepare(), |()| call(libc::SYS_openat, &[directory, text(path), bits(flags), mode]))
    };
    let open = |path: &str, flags: nix::fcntl::OFlag, mode: u64| open_at(CWD, path, flags, mode);
    let own = |directory: &str, name: &str| format!("{directory}/{name}");
    // Its log: made, and opened again at its end, and read.
    assert!(works(&open(&own(LOG, "a"), filters::OPEN_LOG, 0o600)), "its log");
    assert!(works(&open(&own(LOG, "a"), filters::OPEN_LOG, 0o600)), "its log again");
    assert!(works(&open(&own(LOG, "a"), filters::OPEN_OWN, 0)), "its log's end");
    assert!(works(&open_at(held::STATE, "a", filters::CREATE_STATE, 0o600)), "a state file");
    assert_eq!(open(&own(STATE, "b"), filters::CREATE_STATE, 0o600), DEAD, "one by another way");
    assert!(works(&open("/bin", filters::OPEN_DIRECTORY, 0)), "a mountpoint");
    // Others' files, world-writable ones too.
    assert_eq!(open("/tmp/secret", filters::OPEN_OWN, 0), EACCES);
    assert_eq!(open("/tmp/secret", filters::OPEN_LOG, 0o600), EACCES);
    assert_eq!(open("/tmp/new", filters::OPEN_LOG, 0o600), EACCES);
    assert_eq!(open_at(held::STATE, "/tmp/new", filters::CREATE_STATE, 0o600), EACCES);
    assert_eq!(open("/proc/1/environ", filters::OPEN_OWN, 0), EACCES);
    assert_eq!(open("/dev/null", filters::OPEN_OWN, 0), EACCES);
    // Its log in any way but these.
    let log = own(LOG, "a");
    for flags in flags() {
        let known = [filters::OPEN_LOG, filters::OPEN_OWN, filters::OPEN_DIRECTORY, filters::CREATE_STATE];
        let end = attempt(|| role.prepare(), |()| call(libc::SYS_openat, &[CWD, text(&log), flags, 0o600]));
        if known.iter().all(|known| bits(*known) != flags) {
            assert_eq!(end, DEAD, "{flags:#o}");
        }
        let writes = flags & 3 != 0 && flags & u64::try_from(libc::O_APPEND).expect("a flag") == 0;
        assert!(!(writes && works(&end)), "{flags:#o} can overwrite the log");
    }
    // Without a freeze in the policy even directories are closed.
    let end = attempt(
        || Role::idle_broker().prepare(),
        |()| call(libc::SYS_openat, &[CWD, text("/bin"), bits(filters::OPEN_DIRECTORY), 0]),
    );
    assert_eq!(end, EACCES, "a directory of no mountpoint");
    // State files, in their directory by its number. Out of the log's directory
    // into the state's, and back: a log that is removed is no log.
    let unlink = |directory: u64, path: String, flags: u64| {
        attempt(|| role.prepare(), move |()| call(libc::SYS_unlinkat, &[directory, text(&path), flags]))
    };
    assert!(works(&unlink(held::STATE, "a".to_owned(), 0)), "its own state file");
    assert_eq!(unlink(held::STATE, own(LOG, "a"), 0), EACCES, "its log");
    for directory in [CWD, held::LOG, held::DIRECTORY] {
        assert_eq!(unlink(directory, own(LOG, "a"), 0), DEAD, "{directory}");
        assert_eq!(unlink(directory, own(STATE, "a"), 0), DEAD, "{directory}");
    }
    assert_eq!(unlink(held::STATE, "a".to_owned(), u64::from(libc::AT_REMOVEDIR.cast_unsigned())), DEAD, "a directory");
    let rename = |directory: u64, to: u64| {
        let (from, name) = (text(&own(LOG, "a")), text("a"));
        attempt(|| role.prepare(), move |()| call(libc::SYS_renameat, &[directory, from, to, name]))
    };
    let end = rename(held::STATE, held::STATE);
    assert!(matches!(end, End::Back(..0)), "its log, moved away: {end:?}");
    assert_eq!(rename(held::LOG, held::STATE), DEAD, "its log, moved away");
    assert_eq!(rename(CWD, CWD), DEAD, "its log, moved away");
    // Without freeze and files in the policy there is no state.
    let idle = |number: i64, arguments: [u64; 4]| {
        attempt(|| Role::idle_broker().prepare(), move |()| call(number, &arguments))
    };
    assert_eq!(idle(libc::SYS_unlinkat, [held::STATE, text("a"), 0, 0]), DEAD);
    assert_eq!(idle(libc::SYS_renameat, [held::STATE, text("a"), held::STATE, text("b")]), DEAD);
    let new = bits(filters::CREATE_STATE);
    assert_eq!(idle(libc::SYS_openat, [held::STATE, text("new"), new, 0o600]), DEAD);
}

pub(crate) fn a_broker_rotates_its_own_log_only() {
    let own = |directory: &str, name: &str| format!("{directory}/{name}");
    let set = || {
        for directory in [LOG, STATE] {
            _ = fs::remove_dir_all(directory);
            fs::create_dir_all(directory).expect("a directory of the broker's");
        }
        for path in [own(LOG, "a"), own(LOG, "b"), own(STATE, "a"), "/tmp/other".to_owned()] {
            fs::write(&path, "content").expect("a file");
            chown(&path, Some(ACCOUNT), Some(ACCOUNT)).expect("its owner");
        }
    };
    let noreplace = u64::from(libc::RENAME_NOREPLACE);
    let rename = |role: &Role, from: &str, to: &str, flags: u64| {
        set();
        attempt(|| role.prepare(), |()| call(libc::SYS_renameat2, &[held::LOG, text(from), held::LOG, text(to), flags]))
    };
    let unlink = |role: &Role, path: &str| {
        set();
        attempt(|| role.prepare(), |()| call(libc::SYS_unlinkat, &[held::LOG, text(path), 0]))
    };
    let list = |role: &Role, directory: u64| {
        attempt(|| role.prepare(), |()| call(libc::SYS_getdents64, &[directory, room(4096), 4096]))
    };
    let rotating = Role::rotating_broker();
    assert_eq!(rename(&rotating, "a", "c", noreplace), End::Back(0));
    assert_eq!(rename(&rotating, "a", "b", noreplace), End::Back(-i64::from(libc::EEXIST)), "over another");
    for flags in [0, u64::from(libc::RENAME_EXCHANGE), u64::from(libc::RENAME_WHITEOUT)] {
        assert_eq!(rename(&rotating, "a", "b", flags), DEAD, "{flags}");
    }
    // By a name that leads out of the directory: there Landlock stands.
    for (from, to) in [("a", "../state/b"), ("../state/a", "c"), ("a", "/tmp/a"), ("/tmp/other", "c")] {
        let end = rename(&rotating, from, to, noreplace);
        assert!(matches!(end, End::Back(..0)), "{from} to {to}: {end:?}");
    }
    assert_eq!(unlink(&rotating, "a"), End::Back(0));
    assert_eq!(unlink(&rotating, "/tmp/other"), EACCES);
    // Any broker counts what its log takes, in no other directory.
    for role in [Role::broker(), Role::idle_broker(), rotating] {
        assert!(works(&list(&role, held::LOG)), "{role:?}");
        assert_eq!(list(&role, held::DIRECTORY), DEAD, "{role:?}");
        let seek = |offset: u64, whence: i32| {
            let whence = u64::from(whence.cast_unsigned());
            attempt(|| role.prepare(), move |()| call(libc::SYS_lseek, &[held::LOG, offset, whence]))
        };
        assert_eq!(seek(0, libc::SEEK_SET), End::Back(0), "{role:?}");
        assert_eq!(seek(1, libc::SEEK_SET), DEAD, "{role:?}");
        assert_eq!(seek(0, libc::SEEK_END), DEAD, "{role:?}");
    }
    // One whose policy has no rotation does none.
    for role in [Role::broker(), Role::idle_broker()] {
        assert_eq!(rename(&role, "a", "c", noreplace), DEAD, "{role:?}");
        assert_eq!(unlink(&role, "a"), DEAD, "{role:?}");
    }
}

pub(crate) fn a_broker_signals_process_1_as_its_init_wants() {
    assert_eq!(std::process::id(), 1, "process 1 here is this test, not the machine's init");
    let role = Role::broker();
    let mut sleeper = std::process::Command::new("/bin/sleep").arg("60").spawn().expect("sleep");
    let other = u64::from(sleeper.id());
    let kill = |pid: u64, signal: u64| attempt(|| role.prepare(), move |()| call(libc::SYS_kill, &[pid, signal]));
    // Process 1 takes no signal of its own namespace that it has no handler for.
    assert_eq!(kill(1, 10), End::Back(0), "SIGUSR1");
    assert_eq!(kill(1, 38), End::Back(0), "SIGRTMIN+4");
    for signal in (0..=64).filter(|signal| ![10, 38].contains(signal)) {
        assert_eq!(kill(1, signal), DEAD, "signal {signal}");
    }
    for pid in [other, 0, u64::MAX, u64::MAX - 1, 2] {
        assert_eq!(kill(pid, 10), DEAD, "process {pid}");
    }
    assert!(sleeper.try_wait().expect("its status").is_none(), "the sleeper was hit");
    sleeper.kill().expect("its end");
    sleeper.wait().expect("its end");
    // Those without the act can't at all, nor restart the machine.
    for role in [Role::idle_broker(), Role::rebooting_broker()] {
        let end = attempt(|| role.prepare(), |()| call(libc::SYS_kill, &[1, 10]));
        assert_eq!(end, DEAD, "{role:?}");
    }
    let magic =
        [u64::from(libc::LINUX_REBOOT_MAGIC1.cast_unsigned()), u64::from(libc::LINUX_REBOOT_MAGIC2.cast_unsigned())];
    for role in [Role::broker(), Role::idle_broker(), Role::rebooting_broker()] {
        for command in [libc::LINUX_REBOOT_CMD_HALT, libc::LINUX_REBOOT_CMD_KEXEC, libc::LINUX_REBOOT_CMD_CAD_ON] {
            let command = u64::from(command.cast_unsigned());
            let end = attempt(|| role.prepare(), |()| call(libc::SYS_reboot, &[magic[0], magic[1], command, 0]));
            assert_eq!(end, DEAD, "{role:?} {command:#x}");
        }
    }
}
