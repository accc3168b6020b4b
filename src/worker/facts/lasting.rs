//! What was gathered last, to be told again: until what it was gathered from shows a
//! change, and no longer than its row says. A worker has it for as long as its policy is
//! in force.
//!
//! Trust: stamps are the kernel's, of files of root's.

use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postern_core::messages::Stamp;

use super::super::ask::Looks;

/// Most bytes that are kept of one fact: the utmp of 170 logins.
const MOST: usize = 64 << 10;
/// What changed less long ago may change again within the same stamp: some filesystems
/// keep no more than whole seconds.
const SETTLED: Duration = Duration::from_secs(2);

/// A fact that was gathered.
#[derive(Debug)]
pub(super) struct Lasting {
    bytes: Vec<u8>,
    looks: Looks,
    until: Instant,
}

impl Lasting {
    /// As it was gathered just now, if a later change would show; to be told for `most`
    /// at most.
    pub(super) fn new(bytes: &[u8], looks: Looks, most: Duration) -> Option<Self> {
        let now = SystemTime::now();
        let settled = looks.iter().all(|(_, stamp)| is_settled(stamp, now));
        let until = Instant::now() + most;
        (settled && bytes.len() <= MOST).then(|| Self { bytes: bytes.to_vec(), looks, until })
    }

    /// Whether it would be gathered the same now, as far as that shows.
    pub(super) fn is_fresh(&self) -> bool {
        let unchanged = |(look, stamp): &_| is_unchanged(look, stamp);
        Instant::now() < self.until && self.looks.iter().all(unchanged)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn is_unchanged(look: &impl AsFd, stamp: &Stamp) -> bool {
    Stamp::of(look.as_fd()).as_ref() == Ok(stamp)
}

/// Whether it was stamped some time ago; by a clock that was set back since, not.
fn is_settled(stamp: &Stamp, now: SystemTime) -> bool {
    let seconds = u64::try_from(stamp.seconds).unwrap_or_default();
    let age = now.duration_since(UNIX_EPOCH + Duration::from_secs(seconds));
    age.is_ok_and(|age| age >= SETTLED)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn looks(file: &File) -> Looks {
        [(); 2].map(|()| (file.try_clone().expect("a duplicate").into(), Stamp::of(file.as_fd()).expect("a stamp")))
    }

    #[test]
    fn what_is_old_lasts_and_what_is_new_does_not() {
        let new = tempfile::tempfile().expect("a file");
        assert!(Lasting::new(b"", looks(&new), MINUTE).is_none(), "it may change again within its stamp");
        let old = File::open("/proc/self/exe").expect("this test");
        let mut found = Stamp::of(old.as_fd()).expect("a stamp");
        found.seconds -= 60;
        assert!(is_settled(&found, SystemTime::now()));
        for (seconds, settled) in [(0, false), (1, false), (2, true), (100, true)] {
            let stamp = Stamp { seconds: 1000, nanoseconds: 999_999_999, links: 1 };
            assert_eq!(is_settled(&stamp, UNIX_EPOCH + Duration::from_secs(1000 + seconds)), settled, "{seconds}");
        }
        let future = Stamp { seconds: i64::MAX / 2, ..found };
        assert!(!is_settled(&future, SystemTime::now()));
    }

    #[test]
    fn it_is_told_until_it_changes_or_is_too_old() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "x").expect("a file");
        let file = File::open(&path).expect("the file");
        let lasting = |until: Instant| Lasting { bytes: b"x".to_vec(), looks: looks(&file), until };
        let (young, over) = (lasting(Instant::now() + MINUTE), lasting(Instant::now()));
        assert!(young.is_fresh() && young.bytes() == b"x");
        assert!(!over.is_fresh());
        fs::remove_file(&path).expect("the file");
        assert!(!young.is_fresh(), "its name is gone");
    }
}
