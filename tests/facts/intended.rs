//! Where postern means to answer otherwise than stock. Each row must occur, but those
//! that need what a machine may not have.

use serde_json::Value;

/// One such place.
pub(crate) struct Intended {
    pub(crate) command: &'static str,
    /// As `compare::Difference` has it.
    pub(crate) at: &'static str,
    /// Versions of stock that it holds for, by how they begin.
    pub(crate) of: &'static [&'static str],
    /// Whether the two are as they are meant to be: stock's, postern's.
    pub(crate) is: fn(Option<&Value>, Option<&Value>) -> bool,
    pub(crate) why: &'static str,
    /// Where it must be seen.
    pub(crate) places: &'static [Place],
    /// What it needs of a machine, if it may be seen elsewhere too.
    pub(crate) may: Option<&'static str>,
}

/// Where postern is asked beside stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A cell of the machine that runs the tests.
    Cell,
    /// A virtual machine with Debian and systemd.
    Systemd,
    /// One with Debian and System V's init.
    Sysvinit,
    /// One with busybox alone.
    Busybox,
}

impl Intended {
    /// Whether it is about this command and a stock of this version.
    pub(crate) fn is_of(&self, command: &str, version: &str) -> bool {
        self.command == command && self.of.iter().any(|of| version.starts_with(of))
    }

    /// The number of its reason in [`notes`], from 1.
    pub(crate) fn note(&self) -> usize {
        1 + notes().iter().position(|note| *note == self.why).expect("a reason")
    }
}

/// Every reason, once.
pub(crate) fn notes() -> Vec<&'static str> {
    let mut notes = Vec::new();
    for row in INTENDED {
        if !notes.contains(&row.why) {
            notes.push(row.why);
        }
    }
    notes
}

const EVERYWHERE: &[Place] = &[Place::Cell, Place::Systemd, Place::Sysvinit, Place::Busybox];
const IN_VMS: &[Place] = &[Place::Systemd, Place::Sysvinit, Place::Busybox];

/// Two numbers that are as good as the same.
fn near(stock: Option<&Value>, ours: Option<&Value>) -> bool {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    number(stock).zip(number(ours)).is_some_and(|(stock, ours)| (stock - ours).abs() <= 0.0101)
}

fn is(value: Option<&Value>, text: &str) -> bool {
    value.is_some_and(|value| value == text)
}

/// A word of 32 bits, as the same bits mean it with a sign.
fn word(value: Option<&Value>) -> Option<i32> {
    value.and_then(Value::as_u64).and_then(|word| u32::try_from(word).ok()).map(u32::cast_signed)
}

const WORDS: &str = "flags and metrics are words without a sign, as the kernel has them; stock gives them one";

/// Whichever stock.
const ANY: &[&str] = &[""];

const fn load(at: &'static str) -> Intended {
    let why = "to hundredths, as /proc/loadavg has it; stock asks sysinfo(2)";
    Intended { command: "guest-get-load", at, of: &["10.0"], is: near, why, places: IN_VMS, may: Some("a load") }
}

pub(crate) const INTENDED: &[Intended] = &[
    load(".load1m"),
    load(".load5m"),
    load(".load15m"),
    Intended {
        command: "guest-get-disks",
        at: "[].smart",
        of: ANY,
        is: |stock, ours| stock.is_some() && ours.is_none(),
        why: "a drive is asked for its health by an ioctl that takes CAP_SYS_ADMIN",
        places: IN_VMS,
        may: Some("an NVMe drive"),
    },
    Intended {
        command: "guest-get-osinfo",
        at: ".name",
        of: ANY,
        is: |stock, ours| is(stock, "'Guest") && is(ours, "Guest of a test"),
        why: "a value in single quotes is what stands between them, as os-release(5) says",
        places: &[Place::Cell, Place::Busybox],
        may: None,
    },
    Intended {
        command: "guest-get-users",
        at: "[]",
        of: ANY,
        // Each stands in one list only.
        is: |stock, ours| {
            let name = |user: Option<&Value>| user.map(|user| user["user"].as_str().expect("a name").len());
            matches!((name(stock), name(ours)), (Some(36), None) | (None, Some(32)))
        },
        why: "a name as long as its field ends with it; stock reads on into the host's",
        places: &[Place::Cell, Place::Busybox],
        may: None,
    },
    Intended {
        command: "guest-network-get-route",
        at: "[].flags",
        of: &["10.0"],
        // Each with a bit that makes a word of 32 bits negative.
        is: |stock, ours| {
            word(ours).is_some_and(|word| stock.and_then(Value::as_u64) == Some(i64::from(word).cast_unsigned()))
        },
        why: WORDS,
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-network-get-route",
        at: "[].metric",
        of: &["10.0"],
        is: |stock, ours| word(ours).is_some_and(|word| stock.and_then(Value::as_i64) == Some(i64::from(word))),
        why: WORDS,
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-get-fsinfo",
        at: "[].total-bytes-privileged",
        of: &["7.2"],
        is: |stock, ours| stock.is_none() && ours.is_some_and(Value::is_u64),
        why: "the size that newer stock tells besides",
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-get-fsinfo",
        at: "[]",
        of: &["7.2"],
        is: |stock, ours| stock.is_some_and(|stock| stock["mountpoint"] == "/mnt") && ours.is_none(),
        why: "a filesystem stands there once however often it is mounted, as newer stock has it",
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-get-users",
        at: "[]",
        of: ANY,
        is: |stock, ours| stock.is_none() && ours.is_some_and(|user| user["user"] == "root"),
        why: "logind's sessions, where the system writes no utmp",
        places: &[Place::Systemd],
        may: None,
    },
    Intended {
        command: "guest-info",
        at: ".version",
        of: ANY,
        is: |stock, ours| {
            stock.is_some_and(Value::is_string) && ours.is_some_and(|own| own == env!("CARGO_PKG_VERSION"))
        },
        why: "each says its own version",
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-info",
        at: ".supported_commands[]",
        of: &["7.2"],
        is: |stock, ours| stock.is_none() && ours.is_some_and(|one| one["name"].is_string()),
        why: "commands that this stock does not have yet",
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-info",
        at: ".supported_commands[]",
        of: &["7.2"],
        is: |stock, ours| stock.is_some_and(|one| one["enabled"] == false) && ours.is_none(),
        why: "this stock lists what it has for another system, never enabled",
        places: EVERYWHERE,
        may: None,
    },
    Intended {
        command: "guest-info",
        at: ".supported_commands[].enabled",
        of: ANY,
        is: |stock, ours| stock.is_some_and(|one| one == true) && ours.is_some_and(|one| one == false),
        why: "what the policy of the test does not allow, and what is not offered by design, is not enabled",
        places: EVERYWHERE,
        may: None,
    },
];
