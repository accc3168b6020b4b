//! What only time brings about, without the time.

use std::fs;

use postern_core::audit::Text;
use postern_core::catalogue::CommandSet;
use postern_core::policy::rules::Mode;

use super::bounds::COUNT_AGAIN;
use super::*;

#[test]
fn files_that_were_moved_away_are_seen_a_minute_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    let old = directory.path().join("audit.jsonl.1.gz");
    fs::write(&old, vec![0; 8192]).expect("a file");
    let run = Run {
        version: "0.1.0",
        executable: None,
        kernel: String::new(),
        policy_digest: [0; 32],
        policy_in_force: [0; 32],
        commands: CommandSet::EMPTY,
        redact: CommandSet::EMPTY,
        file_rules: 0,
        channel: Text::from(""),
        privileged: false,
        landlock_abi: 0,
        boot_id: String::new(),
        pid: 1,
        uid: nix::unistd::geteuid().as_raw(),
        confinement: Vec::new(),
    };
    let audit = Audit { max_bytes: 8192, ..Audit::at(path) };
    let mut log = Log::start(&audit, run).expect("the log opens");
    let asked = Record::OpenAsked { child: 1, requested: Text::from("/srv/a"), mode: Mode::Write, rule: 0 };
    assert!(log.is_spent() && log.takes_opens().is_err());
    fs::remove_file(&old).expect("removed");
    // Within the minute nobody looks, however often is asked.
    for _ in 0..1000 {
        assert!(log.takes_opens().is_err() && log.record(&asked).is_err());
    }
    let minute_ago = Instant::now().checked_sub(COUNT_AGAIN).expect("the machine is up for a minute");
    log.counted = Some(minute_ago);
    assert!(log.takes_opens().is_ok() && !log.is_spent());
    assert!(matches!(log.record(&asked), Ok(Receipt::Written(2))));
    // Nor does it count at all while there is room.
    log.counted = Some(minute_ago);
    assert!(log.record(&asked).is_ok());
    assert_eq!(log.counted, Some(minute_ago));
}
