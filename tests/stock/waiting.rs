//! `--retry-path`: postern waits for a path to appear. A pseudoterminal stands
//! in for a port here, and a directory for a device's; the tests in virtual
//! machines have the real ones.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::pair::{POLICY, home};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::runner::Test;
use crate::support::terminal::{line, mount_terminals, raw_pty};

pub(crate) const TESTS: &[Test] = &[
    ("without_retry_a_missing_path_is_the_end", without_retry_a_missing_path_is_the_end),
    ("a_socket_is_made_when_its_directory_appears", a_socket_is_made_when_its_directory_appears),
    ("a_port_is_opened_when_it_appears", a_port_is_opened_when_it_appears),
    ("waiting_takes_no_time_and_ends_with_sigterm", waiting_takes_no_time_and_ends_with_sigterm),
    ("a_daemon_that_waits_lets_its_starter_go", a_daemon_that_waits_lets_its_starter_go),
];

const PORT: [&str; 4] = ["-m", "virtio-serial", "-p", "HOME/ports/org.qemu.guest_agent.0"];

fn waits(home: &Home) -> Agent<'_> {
    let agent = Agent { home, child: home.command(POLICY).spawn().expect("the agent") };
    eventually("it waits", || agent.said().contains("waiting for it").then_some(()));
    agent
}

fn without_retry_a_missing_path_is_the_end() {
    let home = home(&PORT);
    let mut agent = Agent { home: &home, child: home.command(POLICY).spawn().expect("the agent") };
    assert_eq!(agent.ended().code(), Some(1));
    assert!(agent.said().contains("no channel"), "{}", agent.said());
}

fn a_socket_is_made_when_its_directory_appears() {
    let home = home(&["-r", "-m", "unix-listen", "-p", "HOME/some/where/host.sock"]);
    let agent = waits(&home);
    fs::create_dir(home.path("some")).expect("a directory");
    fs::create_dir(home.path("elsewhere")).expect("a directory");
    assert!(!home.path("some/where").exists());
    fs::rename(home.path("elsewhere"), home.path("some/where")).expect("a directory");
    Host::connect(&home.path("some/where/host.sock")).ping();
    assert_eq!(agent.said().matches("waiting for it").count(), 1, "{}", agent.said());
}

fn a_port_is_opened_when_it_appears() {
    mount_terminals();
    let (mut host, path, _slave) = raw_pty();
    let home = home(&[&PORT[..], &["-r"]].concat());
    let mut agent = waits(&home);
    // As udev does it: the directory, then a link that is put in place.
    fs::create_dir(home.path("ports")).expect("a directory");
    symlink(&path, home.path("ports/.new")).expect("a link");
    fs::rename(home.path("ports/.new"), home.path("ports/org.qemu.guest_agent.0")).expect("the link");
    host.write_all(b"{\"execute\": \"guest-ping\"}").expect("a request");
    assert_eq!(line(&mut host), "{\"return\": {}}\n");
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
}

/// How often a process gave up the processor to wait, so far.
fn waits_of(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a count");
    line.trim().parse().expect("a number")
}

fn waiting_takes_no_time_and_ends_with_sigterm() {
    let home = home(&[&PORT[..], &["-r"]].concat());
    fs::write(home.path("anybodys"), "").expect("a file");
    let mut agent = waits(&home);
    // In no other call: on its way to this one it may have slept, too.
    let polls = [libc::SYS_poll, libc::SYS_ppoll].map(|call| format!("{call} "));
    let call = |pid| fs::read_to_string(format!("/proc/{pid}/syscall")).expect("its call");
    eventually("it sleeps", || polls.iter().any(|poll| call(agent.pid()).starts_with(poll)).then_some(()));
    let before = waits_of(agent.pid());
    // On the way to a port is /dev, where any account may set times.
    for _ in 0..100 {
        File::options()
            .append(true)
            .open(home.path("anybodys"))
            .and_then(|file| {
                file.set_times(FileTimes::new().set_accessed(SystemTime::now()).set_modified(SystemTime::now()))
            })
            .expect("its times");
    }
    // Long enough for stock to have tried again, which takes it five seconds.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(waits_of(agent.pid()), before, "it woke up");
    // The control: it wakes for a change on its way.
    fs::write(home.path("something"), "").expect("a file");
    eventually("it looks again", || (waits_of(agent.pid()) > before).then_some(()));
    agent.signal("broker", Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0));
}

fn a_daemon_that_waits_lets_its_starter_go() {
    let home = home(&["-r", "-d", "-f", "HOME/pid", "-m", "unix-listen", "-p", "HOME/later/host.sock"]);
    let status = home.command(POLICY).status().expect("the starter");
    assert_eq!(status.code(), Some(0));
    assert!(home.path("pid").exists() && !home.path("later").exists());
    fs::create_dir(home.path("later")).expect("a directory");
    Host::connect(&home.path("later/host.sock")).ping();
}
