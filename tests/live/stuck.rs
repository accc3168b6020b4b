//! Freezes that are stuck in the kernel: the agent stays awake, and a thaw, the
//! time limit and an end come through.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_core::sys::fs::{FIFREEZE, FITHAW};
use serde_json::{Value, json};

use crate::scene::{
    disabled, frozen_list, policy, reply_to, send, start_quietly, status, story, story_of_freezes, thaw, verify, with,
};
use crate::support::agent::{Agent, Home, Host, eventually};
use crate::support::disk::{Disk, Mounted};
use crate::support::process::is_inside_ioctl;
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_ping_is_answered_while_a_freeze_is_stuck", a_ping_is_answered_while_a_freeze_is_stuck),
    ("a_stuck_freeze_is_ended_by_a_thaw", a_stuck_freeze_is_ended_by_a_thaw),
    ("a_stuck_freeze_is_ended_by_the_time_limit", a_stuck_freeze_is_ended_by_the_time_limit),
    ("a_stuck_freeze_survives_its_worker", a_stuck_freeze_survives_its_worker),
    ("a_stuck_freeze_is_undone_at_the_end", a_stuck_freeze_is_undone_at_the_end),
    ("a_broker_killed_while_stuck_is_followed_by_another", a_broker_killed_while_stuck_is_followed_by_another),
];

/// How long a freeze is slowed down to; by hand the two minutes of the figures.
fn how_long() -> Duration {
    let asked = std::env::var("POSTERN_STUCK_SECONDS").ok();
    let usual = if cfg!(debug_assertions) { 3 } else { 10 };
    Duration::from_secs(asked.map_or(usual, |seconds| seconds.parse().expect("a number of seconds")))
}
/// What nine of ten answers of that time may take, and a tenth of what any may: all
/// of them wait for the processor, too.
const AWAKE: Duration = Duration::from_secs(1);
const COMMANDS: [&str; 5] = ["guest-ping", "guest-sync", "guest-sync-delimited", "guest-fsfreeze-status", "guest-info"];

/// A filesystem in a file of another one, which somebody else has frozen: what
/// the upper one's freeze must write waits for that one's thaw. And a third, which
/// is frozen first.
pub(crate) struct Scene {
    pub(crate) third: Mounted,
    pub(crate) upper: Mounted,
    pub(crate) lower: Mounted,
    _disks: [Disk; 3],
}

impl Scene {
    pub(crate) fn new() -> Self {
        let below = Disk::new("ext4", Path::new("/lower.img"), 256);
        let lower = below.mount("/lower");
        let above = Disk::small("ext4", "/lower/upper.img");
        let upper = above.mount("/upper");
        let disk = Disk::small("ext4", "/third.img");
        let third = disk.mount("/third");
        Self { third, upper, lower, _disks: [disk, above, below] }
    }

    /// Asks for a freeze that gets stuck.
    pub(crate) fn stick(&self, agent: &Agent<'_>, host: &mut Host, id: &str) {
        fs::write(self.upper.path("data"), vec![7; 1 << 20]).expect("something to flush");
        self.lower.freeze();
        send(host, "guest-fsfreeze-freeze-list", &json!({ "mountpoints": ["/upper", "/third"] }), id);
        let broker = agent.child.id();
        eventually("the freeze is stuck", || is_inside_ioctl(broker, FIFREEZE, &self.upper.at).then_some(()));
    }

    /// Freezes, and asks for a thaw that gets stuck.
    pub(crate) fn stick_thaw(&self, agent: &Agent<'_>, host: &mut Host, id: &str) {
        assert_eq!(frozen_list(host, &["/upper", "/third"]), Ok(2));
        self.lower.freeze();
        send(host, "guest-fsfreeze-thaw", &Value::Null, id);
        let broker = agent.child.id();
        eventually("the thaw is stuck", || is_inside_ioctl(broker, FITHAW, &self.upper.at).then_some(()));
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        assert!(self.lower.thaw());
    }

    pub(crate) fn is_thawed(&self) -> bool {
        !self.lower.is_frozen() && !self.upper.is_frozen() && !self.third.is_frozen()
    }
}

fn a_ping_is_answered_while_a_freeze_is_stuck() {
    let scene = Scene::new();
    let home = Home::new();
    let path = home.write("file", b"content");
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "the late one");
    let (how_long, stuck) = (how_long(), Instant::now());
    let mut times = BTreeMap::<&str, Vec<Duration>>::new();
    for round in 0.. {
        if stuck.elapsed() >= how_long {
            break;
        }
        let id = round.to_string();
        for command in COMMANDS {
            let arguments = if command.contains("sync") { json!({ "id": 7 }) } else { json!({}) };
            let asked = Instant::now();
            send(&mut host, command, &arguments, &id);
            let reply = reply_to(&mut host, &id).expect("an answer");
            times.entry(command).or_default().push(asked.elapsed());
            match command {
                "guest-fsfreeze-status" => assert_eq!(reply, "thawed", "only frozen says that a snapshot may be taken"),
                "guest-info" | "guest-ping" => {}
                _ => assert_eq!(reply, 7),
            }
        }
        assert_eq!(host.open(&path, "r"), Err(disabled("guest-file-open")));
        sleep(Duration::from_millis(20));
    }
    for (command, times) in &mut times {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let (count, slowest) = (times.len(), at(100));
        println!(
            "    stuck for {how_long:?}: {command} answered {count} times: median {:?}, p99 {:?}, slowest {slowest:?}",
            at(50),
            at(99)
        );
        assert!(at(90) < AWAKE && slowest < 10 * AWAKE, "{command}: {slowest:?}");
    }
    assert!(is_inside_ioctl(agent.child.id(), FIFREEZE, &scene.upper.at), "still stuck");
    scene.release();
    // The host has synchronised since: the freeze is not answered any more.
    let mut polls = 0_u32;
    eventually("the freeze is done", || {
        polls += 1;
        let id = format!("poll {polls}");
        send(&mut host, "guest-fsfreeze-status", &Value::Null, &id);
        (reply_to(&mut host, &id).expect("a status") == "frozen").then_some(())
    });
    for id in ["one", "two"] {
        send(&mut host, "guest-ping", &Value::Null, id);
        reply_to(&mut host, id).expect("a ping's answer, and no other");
    }
    assert_eq!(thaw(&mut host), 2);
    assert!(scene.is_thawed());
    let story = story_of_freezes(&agent);
    assert_eq!(
        story,
        [
            "guest-fsfreeze-freeze-list asked /upper /third",
            "guest-fsfreeze-freeze-list done /third /upper",
            "guest-fsfreeze-thaw done /upper /third (asked by the host)",
        ]
    );
}

fn a_stuck_freeze_is_ended_by_a_thaw() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "freeze");
    assert!(scene.third.is_frozen());
    send(&mut host, "guest-fsfreeze-thaw", &Value::Null, "thaw");
    eventually("what is frozen already is thawed", || (!scene.third.is_frozen()).then_some(()));
    host.ping();
    assert_eq!(status(&mut host), "thawed");
    scene.release();
    assert_eq!(reply_to(&mut host, "freeze"), Err("the freeze was ended by a thaw".to_owned()));
    let thawed = reply_to(&mut host, "thaw").expect("a number").as_u64().expect("a number");
    assert!((1..=2).contains(&thawed), "{thawed}");
    assert!(scene.is_thawed());
    assert_eq!(thaw(&mut host), 0);
    let stages: Vec<String> =
        story_of_freezes(&agent).iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    let wanted = ["guest-fsfreeze-freeze-list asked", "guest-fsfreeze-freeze-list failed", "guest-fsfreeze-thaw done"];
    assert_eq!(stages[..3], wanted);
}

fn a_stuck_freeze_is_ended_by_the_time_limit() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&with("[freeze]\nlimit = \"4s\"\n"));
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "freeze");
    eventually("what is frozen already is thawed", || (!scene.third.is_frozen()).then_some(()));
    host.ping();
    scene.release();
    assert_eq!(reply_to(&mut host, "freeze"), Err("the freeze was ended by a thaw".to_owned()));
    assert_eq!(status(&mut host), "thawed");
    assert_eq!(thaw(&mut host), 0);
    assert!(scene.is_thawed());
    let story = story_of_freezes(&agent);
    assert!(story.iter().any(|line| line.ends_with("(the time limit passed)")), "{story:?}");
    let path = home.write("file", b"content");
    host.open(path, "r").expect("all commands again");
}

fn a_stuck_freeze_survives_its_worker() {
    let scene = Scene::new();
    let home = Home::new();
    let agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "freeze");
    agent.signal("worker", Signal::SIGKILL);
    host.ping();
    assert_eq!(host.fails("guest-fsfreeze-freeze", &Value::Null), disabled("guest-fsfreeze-freeze"));
    scene.release();
    // Nobody is left who owes the reply.
    eventually("the freeze is done", || (status(&mut host) == "frozen").then_some(()));
    host.ping();
    assert_eq!(thaw(&mut host), 2);
    assert!(scene.is_thawed());
    verify(&[&home.log()]);
}

fn a_stuck_freeze_is_undone_at_the_end() {
    let scene = Scene::new();
    let home = Home::new();
    let mut agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "freeze");
    agent.signal("broker", Signal::SIGTERM);
    eventually("what is frozen already is thawed", || (!scene.third.is_frozen()).then_some(()));
    scene.release();
    assert_eq!(agent.ended().code(), Some(0));
    assert!(scene.is_thawed());
    let story = story(&agent);
    assert!(story.last().is_some_and(|line| line.starts_with("stopped")), "{story:?}");
    assert!(!home.path("state/frozen").exists());
}

fn a_broker_killed_while_stuck_is_followed_by_another() {
    let scene = Scene::new();
    let home = Home::new();
    let mut agent = home.start(&policy());
    let mut host = agent.connect();
    scene.stick(&agent, &mut host, "freeze");
    // Its thread in the kernel keeps it, and with it its family and its socket,
    // from being gone: a next one does not start beside them.
    agent.child.kill().expect("SIGKILL");
    let refused = home.command(&policy()).status().expect("the agent");
    assert_eq!(refused.code(), Some(4), "{}", agent.said());
    scene.release();
    agent.child.wait().expect("its end");
    let (next, mut host) = start_quietly(&home, &policy());
    assert_eq!(status(&mut host), "frozen");
    assert_eq!(thaw(&mut host), 2);
    assert!(scene.is_thawed());
    let story = story_of_freezes(&next);
    assert!(story.ends_with(&["guest-fsfreeze-thaw done /upper /third (asked by the host)".to_owned()]), "{story:?}");
}
