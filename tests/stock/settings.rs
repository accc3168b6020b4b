//! What flags and files come to, as `-D` shows it, and exit statuses: the same
//! as stock's but for the differences that are listed here.

use std::fs;

use crate::pair::{POLICY, STOCK, bare, ended, postern, text};
use crate::support::agent::{BINARY, Home};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("words_mean_what_they_mean_to_stock", words_mean_what_they_mean_to_stock),
    ("files_mean_what_they_mean_to_stock", files_mean_what_they_mean_to_stock),
    ("the_listed_differences_are_all_there", the_listed_differences_are_all_there),
    ("both_ways_to_start_are_one", both_ways_to_start_are_one),
    ("a_file_that_others_can_write_is_refused", a_file_that_others_can_write_is_refused),
    ("without_a_policy_it_says_what_to_install", without_a_policy_it_says_what_to_install),
];

/// Both agents with these words and, if there is one, this file: exit status
/// and, where that is 0, what stands on stdout.
fn both(home: &Home, file: Option<&str>, words: &[&str]) -> [(Option<i32>, String); 2] {
    // A state directory, which stock makes first of all, and a policy.
    let state = home.path("").join("stock-state");
    fs::create_dir_all(&state).expect("a directory");
    let mut stock = bare(STOCK);
    if words.contains(&"-p") && !words.iter().any(|word| ["-D", "-t"].contains(word)) {
        stock.arg("-t").arg(&state);
    }
    let mut ours = postern();
    ours.arg("--policy").arg(home.policy(POLICY));
    [stock, ours].map(|mut command| {
        if let Some(file) = file {
            fs::write(home.path("qga.conf"), file).expect("a file");
            command.env("QGA_CONF", home.path("qga.conf"));
        }
        command.args(words);
        let output = ended(command);
        let said = text(&output.stderr);
        assert!(output.status.success() || !said.is_empty(), "{words:?}: a failure without a word");
        let shown = if output.status.success() { text(&output.stdout) } else { String::new() };
        // Later stock shows an empty list that 7.2 does not know.
        (output.status.code(), shown.replace("\nallow-rpcs=\n", "\n"))
    })
}

fn words_mean_what_they_mean_to_stock() {
    const ROWS: &[&[&str]] = &[
        &["-D"],
        &["--dump-conf"],
        &["-p", "/x", "-D"],
        &["-p/x", "-D"],
        &["--path", "/x", "-D"],
        &["--path=/x", "-D"],
        &["--pa", "/x", "-D"],
        &["-D", "-p", "/x", "-p", "/y"],
        &["-p", "", "-D"],
        &["-m", "isa-serial", "-D"],
        &["-m", "unix-listen", "-p", "/x", "-D"],
        &["-munix-listen", "-p/x", "-D"],
        &["-m", "vsock-listen", "-p", "3:9", "-D"],
        &["-m", "nope", "-p", "/x", "-D"],
        &["-m", "unix-listen"],
        &["-m", "unix-listen", "-D"],
        &["-m", "vsock-listen", "-D"],
        &["-m", "nope", "-p", "/x"],
        &["-m", "", "-D"],
        &["-v", "-d", "-r", "-D", "-l", "/log", "-f", "/pid", "-t", "/state"],
        &["-vdrD"],
        &["--verbose", "--daemonize", "--retry-path", "--dump-conf"],
        &["--daemon", "-D"],
        &["-Dv"],
        &["--logfile=/l", "--pidfile=/p", "--statedir=/s", "-D"],
        &["-t", "relative", "-D"],
        &["-l", "", "-f", "", "-D"],
        &["-F", "-D"],
        &["-F/x", "-D"],
        &["-F=", "-D"],
        &["-F", "/x", "-D"],
        &["-F", "", "-D"],
        &["--fsfreeze-hook", "-D"],
        &["--fsfreeze-hook=/y", "-D"],
        &["-b", "guest-exec", "-D"],
        &["--blacklist=guest-exec", "-D"],
        &["--block-rpcs", "guest-exec", "-D"],
        &["-b", "guest-exec,guest-ping", "-b", "guest-info", "-D"],
        &["-b", "nope", "-D"],
        &["-b", "", "-D"],
        &["-b", ",", "-D"],
        &["-b", "a,,b", "-D"],
        &["-b", "a,", "-D"],
        &["-b", "help,x", "-D"],
        &["-l", " /a\tb\\c", "-D"],
        &["foo", "-D"],
        &["-D", "foo"],
        &["-D", "--", "-X"],
        &["-", "-D"],
        &["-X"],
        &["--unknown"],
        &["-X", "-h"],
        &["-D", "-X"],
        &["--ver"],
        &["-m"],
        &["-b"],
        &["--blacklist"],
        &["--verbose=1", "-D"],
        &["-m", "virtio-serial", "-p", "/nonexistent"],
        &["-m", "unix-listen", "-p", "/nonexistent/x"],
    ];
    let home = Home::new();
    let mut statuses = Vec::new();
    for words in ROWS {
        let [stock, ours] = both(&home, None, words);
        assert_eq!(ours, stock, "{words:?}");
        statuses.push(stock.0);
    }
    assert!(statuses.contains(&Some(0)) && statuses.contains(&Some(1)), "the control: {statuses:?}");
}

fn files_mean_what_they_mean_to_stock() {
    const ROWS: &[(&str, &[&str])] = &[
        ("", &[]),
        ("# x\n", &[]),
        ("[general]\nverbose=1", &[]),
        ("\n\n  # hi\n  [general]  \nverbose=1 \n", &[]),
        ("[general]\r\nverbose=1\r\npath=/a\r\n", &[]),
        (ALL, &[]),
        (ALL, &["-p", "/b"]),
        (ALL, &["-m", "isa-serial", "-l", "/other", "-f", "/other", "-t", "/other", "-F"]),
        (ALL, &["-b", "guest-info"]),
        ("[general]\nblock-rpcs=guest-exec;guest-ping\n", &[]),
        ("[general]\nblacklist=guest-exec,guest-ping\n", &["-b", "guest-info"]),
        ("[general]\nnope=1\n", &[]),
        ("[nope]\nx=1\n", &[]),
        ("[general]\n[nope]\npath=/x\n", &[]),
        ("[general]\npath=/a\npath=/b\n", &[]),
        ("[general]\npath=/a\n[nope]\npath=/x\n[general]\nlogfile=/b\n", &[]),
        ("[general]\npath[de]=/a\n", &[]),
        ("[general]\npath=\n", &[]),
        ("[general]\n path = /a b \nlogfile=  /l\n", &[]),
        ("[general]\npath=/a\\sb\\tc\\\\d\\n\n", &[]),
        ("[general]\npath=  \\s/a\\tb\n", &[]),
        ("[general]\nfsfreeze-hook=\n", &[]),
        ("[general]\nmethod=isa-serial\n", &[]),
        ("[general]\nmethod=isa-serial\n", &["-p", "/x"]),
        // What is wrong.
        ("[general]\nmethod=unix-listen\n", &[]),
        ("[general]\nmethod=foo\n", &[]),
        ("garbage\n", &[]),
        ("[general]\ngarbage\n", &[]),
        ("[general]\n=x\n", &[]),
        ("[general]\ndaemon=yes\n", &[]),
        ("[general]\nverbose=TRUE\n", &[]),
        ("[general]\nverbose=2\n", &[]),
        ("[general]\nverbose=true false\n", &[]),
        ("[general]\npath=/a\\qb\n", &[]),
        ("[general]\npath=/a\\\n", &[]),
        ("[general]\npath=/a # comment\n; x\n", &[]),
        ("[general] x\nverbose=1\n", &[]),
        ("[gene ral\nverbose=1\n", &[]),
        ("verbose=1\n[general]\n", &[]),
        ("garbage\n", &["-X"]),
    ];
    const ALL: &str = "[general]\ndaemon=true\nmethod=unix-listen\npath=/a\nlogfile=/l\npidfile=/p\nfsfreeze-hook=/h\n\
                       statedir=/s\nverbose=1\nretry-path=true\nblock-rpcs=guest-exec,guest-ping\n";
    let home = Home::new();
    for (file, words) in ROWS {
        let words = [&["-D"], *words].concat();
        let [stock, ours] = both(&home, Some(file), &words);
        assert_eq!(ours, stock, "{file:?} {words:?}");
    }
    // The file is where the variable says, or the option; a missing one is none.
    fs::write(home.path("named.conf"), "[general]\npath=/named\n").expect("a file");
    let named = home.path("named.conf").display().to_string();
    let [_, ours] = both(&home, Some("[general]\npath=/variable\n"), &["-D", "-c", &named]);
    assert!(ours.1.contains("path=/named\n"), "{ours:?}");
    let [stock, ours] = both(&home, Some("[general]\npath=/variable\n"), &["-D"]);
    assert!(stock.1.contains("path=/variable\n") && ours == stock, "{ours:?}");
    let [_, (status, _)] = both(&home, None, &["-D", "-c", "/nowhere"]);
    assert_eq!(status, Some(1), "a file that was named must be there");
}

/// Where postern means to differ: file, words, and what each does.
fn the_listed_differences_are_all_there() {
    type Row = (&'static str, Option<&'static str>, &'static [&'static str], Option<i32>, Option<i32>);
    const ROWS: &[Row] = &[
        // It can be asked what it is although the file is broken.
        ("help despite a broken file", Some("garbage\n"), &["-h"], Some(1), Some(0)),
        ("version despite a broken file", Some("garbage\n"), &["-V"], Some(1), Some(0)),
        // Stock 7.2 ends with 0 although it did not start.
        ("logfile", None, &["-m", "unix-listen", "-p", "/tmp/x", "-l", "/nowhere/log"], Some(0), Some(1)),
        // One that is missing is made; this is a file.
        ("statedir", None, &["-m", "unix-listen", "-p", "/tmp/x", "-t", "/test"], Some(0), Some(1)),
    ];
    let home = Home::new();
    for (what, file, words, stocks, our) in ROWS {
        let [stock, ours] = both(&home, *file, words);
        assert_eq!((stock.0, ours.0), (*stocks, *our), "{what}");
    }
    // Its own name and version, in the form that scripts take apart.
    let [(_, stock), (_, ours)] = both(&home, None, &["-V"]);
    assert!(stock.starts_with("QEMU Guest Agent "), "{stock}");
    assert_eq!(ours, format!("QEMU Guest Agent {} (postern)\n", env!("CARGO_PKG_VERSION")));
    // The commands of the newest stock.
    let [(_, stock), (_, ours)] = both(&home, None, &["-b", "help"]);
    assert!(stock.lines().count() > 30, "{stock}");
    // 7.2 lists Windows' own too.
    let mut missing =
        stock.lines().filter(|name| *name != "guest-get-devices" && !ours.lines().any(|ours| ours == *name));
    assert_eq!(missing.next(), None);
    // A key under its old and its present name: stock forgets one of the two.
    let file = "[general]\nblacklist=guest-exec\nblock-rpcs=guest-ping\n";
    let [_, (_, ours)] = both(&home, Some(file), &["-D"]);
    assert!(ours.ends_with("block-rpcs=guest-ping,guest-exec\n"), "{ours}");
    // What came with 8.1, and so is missing here or there.
    let [_, ours] = both(&home, None, &["-a", "guest-ping,guest-info", "-D"]);
    assert_eq!(ours.0, Some(0));
    assert!(ours.1.ends_with("\nallow-rpcs=guest-info,guest-ping\n"), "{ours:?}");
    // Help is our own, and names each of stock's long options.
    let [(_, stock), (_, ours)] = both(&home, None, &["--help"]);
    let options = stock.split([' ', ',', '\n', '[', '=']).filter(|word| word.starts_with("--"));
    let mut count = 0;
    for option in options {
        assert!(ours.contains(option), "{option}: {ours}");
        count += 1;
    }
    assert!(count > 10, "{stock}");
}

fn both_ways_to_start_are_one() {
    for words in [&["-D", "-v"][..], &["-V"], &["-b", "help"], &["--help"], &["-X"]] {
        let mut command = postern();
        command.args(words);
        let by_name = ended(command);
        let mut command = bare(BINARY);
        command.arg("qemu-ga").args(words);
        let by_command = ended(command);
        assert_eq!(by_name, by_command, "{words:?}");
    }
}

fn a_file_that_others_can_write_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let home = Home::new();
    let path = home.path("qga.conf");
    let run = || {
        let mut command = postern();
        command.env("QGA_CONF", home.path("qga.conf")).arg("-D");
        let output = ended(command);
        (output.status.code(), text(&output.stderr))
    };
    fs::write(&path, "[general]\n").expect("a file");
    assert_eq!(run().0, Some(0), "the control");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).expect("its mode");
    let (status, said) = run();
    assert!(status == Some(1) && said.contains("written by others"), "{said}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("its mode");
    chown(&path, Some(777), None).expect("its owner");
    let (status, said) = run();
    assert!(status == Some(1) && said.contains("belongs to user 777"), "{said}");
    fs::remove_file(&path).expect("removing it");
    fs::create_dir(&path).expect("a directory");
    assert_eq!(run().0, Some(1), "a directory is no file");
}

fn without_a_policy_it_says_what_to_install() {
    let mut command = postern();
    command.args(["-m", "unix-listen", "-p", "/tmp/host.sock"]);
    let output = ended(command);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no policy /etc/postern/policy.toml; install one"), "{said}");
    assert!(!fs::exists("/tmp/host.sock").expect("/tmp"), "nothing was opened");
}
