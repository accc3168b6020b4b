//! What a security officer sees of a working agent: its log followed while it is
//! written and rotated, then summed up.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::scene::{policy, verify};
use crate::support::agent::{BINARY, Home, eventually};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("a_log_is_followed_and_reported", a_log_is_followed_and_reported)];

/// A process that is gone at the end.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn a_log_is_followed_and_reported() {
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut show = Command::new(BINARY);
    show.args(["audit", "show", "--follow", "--json"]).arg(home.log()).stdout(Stdio::piped());
    let mut follower = Follower(show.spawn().expect("it runs"));
    let mut followed = BufReader::new(follower.0.stdout.take().expect("a pipe")).lines();
    let mut seen = vec![followed.next().expect("the first record").expect("UTF-8")];

    let mut host = agent.connect();
    let mut files = Vec::new();
    for round in 0..4 {
        for number in 0..50 {
            let handle = host.open(&path, if number == 7 { "r+" } else { "r" }).expect("a handle");
            host.read(handle);
            host.close(handle);
        }
        host.open("/etc/shadow", "r").expect_err("the policy names it not");
        let rotated = home.path(&format!("log/audit.jsonl.{round}"));
        fs::rename(home.log(), &rotated).expect("a rename");
        agent.signal("broker", Signal::SIGHUP);
        eventually("the next file", || home.log().exists().then_some(()));
        files.push(rotated);
    }
    // In the last file by the time that this is answered.
    host.open("/etc/shadow", "w").expect_err("the policy names it not");
    drop(host);
    agent.await_record("host-disconnected", |_| true);
    files.push(home.log());

    let files: Vec<&Path> = files.iter().map(std::path::PathBuf::as_path).collect();
    let text = |file: &&Path| fs::read_to_string(file).expect("a log");
    let written: String = files.iter().map(text).collect();
    let written: Vec<&str> = written.lines().collect();
    seen.extend((1..written.len()).map(|_| followed.next().expect("a record").expect("UTF-8")));
    assert!(
        seen == written,
        "{} records were followed over {} files, {} written",
        seen.len(),
        files.len(),
        written.len()
    );
    assert!(written.len() > 400);

    // Files in whatever order: the report has them by their numbers.
    let output = Command::new(BINARY).args(["audit", "report"]).args(files.iter().rev()).output().expect("it runs");
    let report = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{report}");
    assert!(report.starts_with(verify(&files).trim_end()), "{report}");
    assert!(report.contains("200 opens granted (1 file)") && report.contains("5 opens refused"), "{report}");
    let row = |name: &str| {
        let row = report.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("{name}: {report}"));
        row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        row(&path.display().to_string())[..3],
        ["200", "r r+", "1.3 KiB"],
        "seven bytes each, by the worker's word"
    );
    assert_eq!(row(" /etc/shadow")[..2], ["5", "r w"]);
}
