//! Logs for those who read them: records of the shapes that are written, a real
//! chain, and times, paths and amounts as a test wants them.

use std::fmt::Write as _;
use std::io::{self, Write};

use postern_core::audit::{Body, Chain, Hash, Timestamp};
use serde_json::Value;

use crate::samples;

/// Everything of a line between its number and its hash, by what it is.
pub(crate) struct Shapes(Vec<(Value, String)>);

impl Shapes {
    /// With `text` wherever a string may come from outside.
    pub(crate) fn with(text: &[u8]) -> Self {
        let shapes = samples::all(text).into_iter().map(|record| {
            let line = Chain::START.seal(Timestamp::UNIX_EPOCH, &Body::of(&record), None);
            let begin = line.find("\"action\"").expect("an action");
            let end = line.rfind("\"previous\":\"").expect("a hash");
            // The largest number there is tests the writer, not the reader.
            let body = line[begin..end].replace(&u64::MAX.to_string(), "137");
            (serde_json::from_str(&line).expect("JSON"), body)
        });
        Self(shapes.collect())
    }

    /// The first with this event and these members, written `/postern/mode=r`.
    pub(crate) fn find(&self, action: &str, members: &[&str]) -> &str {
        let fits = |value: &Value| {
            value["event"]["action"] == action
                && members.iter().all(|member| {
                    let (pointer, wanted) = member.split_once('=').expect("a member");
                    value.pointer(pointer).is_some_and(|value| value.to_string().trim_matches('"') == wanted)
                })
        };
        let found = self.0.iter().find(|(value, _)| fits(value));
        &found.unwrap_or_else(|| panic!("no {action} with {members:?}")).1
    }
}

/// Writes a log.
pub(crate) struct Story<W> {
    pub(crate) out: W,
    pub(crate) number: u64,
    previous: Hash,
    /// Microseconds since 1970.
    pub(crate) now: i64,
    line: String,
}

/// 2026-11-02 07:30:00 UTC, a Monday.
pub(crate) const MONDAY: i64 = 1_793_604_600 * SECOND;
pub(crate) const SECOND: i64 = 1_000_000;

impl<W: Write> Story<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, number: 0, previous: Hash::NONE, now: MONDAY, line: String::new() }
    }

    /// Goes on `seconds` later with a record.
    pub(crate) fn tell(&mut self, seconds: i64, shape: &str) -> io::Result<()> {
        self.now += seconds * SECOND;
        self.number += 1;
        let at = Timestamp::from_microsecond(self.now).expect("a time");
        self.line.clear();
        // Writing to a String cannot fail.
        _ = write!(self.line, "{{\"@timestamp\":\"{at:.6}\",\"event\":{{\"sequence\":{},{shape}", self.number);
        _ = write!(self.line, "\"previous\":\"{}\"}}}}", self.previous);
        self.previous = Hash::of(self.line.as_bytes());
        self.line.push('\n');
        self.out.write_all(self.line.as_bytes())
    }
}

/// Paths that want to be something else.
pub(crate) const HOSTILE: [&[u8]; 7] = [
    b"/srv/<script>alert(1)</script>",
    b"/srv/\"><img src=x onerror=alert(1)>&amp;",
    "/srv/\u{202e}gpj.exe".as_bytes(),
    b"/srv/\x1b[2J\x1b]0;owned\x07",
    b"/srv/</code></td></tr></table></main></style>",
    b"/srv/\xff\xfe latin \xe4",
    "/srv/\u{5d0}\u{5d1}/\u{5d2}/x\u{2028}y".as_bytes(),
];

/// Some days of a machine that is backed up at night, watched by day, and on
/// one evening attacked.
pub(crate) fn days(out: &mut Vec<u8>) {
    let mut story = Story::new(out);
    let plain = Shapes::with(b"/var/log/nginx/access.log");
    let start = ["/event/reason=started"];
    let tell = |story: &mut Story<&mut Vec<u8>>, seconds: i64, shape: &str| story.tell(seconds, shape).expect("told");
    for day in 0..5 {
        story.now = MONDAY + day * 86_400 * SECOND;
        if day % 2 == 0 {
            tell(&mut story, 0, plain.find("log-opened", &start));
            tell(&mut story, 1, plain.find("process-started", &["/process/name=worker"]));
        }
        tell(&mut story, 5, plain.find("host-connected", &["/postern/peer/uid=1000"]));
        for hour in 0..9 {
            for (number, name) in ["access.log", "error.log", "private/keys.log"].into_iter().enumerate() {
                let at = |shape: &str| shape.replace("access.log", name);
                let wait = 400 + 97 * i64::try_from(number).expect("few") + 31 * hour;
                if number == 2 {
                    tell(&mut story, wait, &at(plain.find("guest-file-open", &["/postern/stage=refused"])));
                    continue;
                }
                let granted = plain.find("guest-file-open", &["/postern/stage=granted", "/postern/mode=r"]);
                tell(&mut story, wait, &at(granted).replace("\"created\":true", "\"created\":false"));
                let read = format!("\"bytes_read\":{}", 48_000 + 7919 * (day * 9 + hour));
                let closed = plain.find("guest-file-close", &["/event/reason=closed by the host"]);
                tell(&mut story, 2, &at(closed).replace("\"bytes_read\":1", &read));
            }
        }
        let config = Shapes::with(b"/etc/app/config.toml");
        if day == 1 || day == 3 {
            tell(&mut story, 600, config.find("guest-file-open", &["/postern/stage=asked", "/postern/mode=w"]));
            tell(&mut story, 0, config.find("guest-file-open", &["/postern/stage=granted", "/postern/mode=w"]));
            tell(&mut story, 3, config.find("guest-file-close", &["/event/reason=closed by the host"]));
        }
        if day == 3 {
            attack(&mut story);
        }
        tell(&mut story, 60, plain.find("counted", &[]));
        story.now = MONDAY + day * 86_400 * SECOND + 15 * 3600 * SECOND;
        tell(&mut story, 0, plain.find("guest-fsfreeze-freeze", &["/postern/stage=asked"]));
        tell(&mut story, 1, plain.find("guest-fsfreeze-freeze", &["/postern/stage=done"]));
        let thawed = plain.find("guest-fsfreeze-thaw", &["/event/reason=the time limit passed"]);
        let by_host = thawed.replace("the time limit passed", "asked by the host");
        let (seconds, thawed) = if day == 2 { (600, thawed) } else { (42, &*by_host) };
        tell(&mut story, seconds, thawed);
        tell(&mut story, 10, plain.find("host-disconnected", &["/postern/peer/uid=1000"]));
        if day == 1 {
            tell(&mut story, 10, plain.find("stopped", &[]));
        }
    }
}

/// Many paths are tried, and the worker falls.
fn attack(story: &mut Story<&mut Vec<u8>>) {
    let shapes: Vec<_> = HOSTILE.iter().map(|path| Shapes::with(path)).collect();
    for (number, shapes) in shapes.iter().cycle().take(60).enumerate() {
        let wait = 1 + i64::try_from(number % 7).expect("few");
        story.tell(wait, shapes.find("guest-file-open", &["/postern/stage=refused"])).expect("told");
    }
    let granted = shapes[0].find("guest-file-open", &["/postern/stage=granted", "/postern/mode=r+"]);
    story.tell(4, granted).expect("told");
    story.tell(1, shapes[2].find("malformed-frame", &[])).expect("told");
    story.tell(1, shapes[1].find("process-died", &["/postern/signal=31"])).expect("told");
    story.tell(1, shapes[1].find("guest-file-close", &["/event/reason=the worker died"])).expect("told");
    story.tell(1, shapes[0].find("process-started", &["/process/name=worker"])).expect("told");
    story.tell(9, shapes[0].find("unknown-command", &[])).expect("told");
    story.tell(30, shapes[0].find("records-lost", &[])).expect("told");
}
