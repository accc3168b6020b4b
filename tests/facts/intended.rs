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
    /// What it needs of the machine that the scene cannot bring, if anything.
    pub(crate) needs: Option<&'static str>,
}

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
    Intended { command: "guest-get-load", at, of: &["10.0"], is: near, why, needs: Some("a load") }
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
        needs: Some("an NVMe drive"),
    },
    Intended {
        command: "guest-get-osinfo",
        at: ".name",
        of: ANY,
        is: |stock, ours| is(stock, "'Guest") && is(ours, "Guest of a test"),
        why: "a value in single quotes is what stands between them, as os-release(5) says",
        needs: None,
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
        needs: None,
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
        needs: None,
    },
    Intended {
        command: "guest-network-get-route",
        at: "[].metric",
        of: &["10.0"],
        is: |stock, ours| word(ours).is_some_and(|word| stock.and_then(Value::as_i64) == Some(i64::from(word))),
        why: WORDS,
        needs: None,
    },
    Intended {
        command: "guest-get-fsinfo",
        at: "[].total-bytes-privileged",
        of: &["7.2"],
        is: |stock, ours| stock.is_none() && ours.is_some_and(Value::is_u64),
        why: "the size that newer stock tells besides",
        needs: None,
    },
    Intended {
        command: "guest-get-fsinfo",
        at: "[]",
        of: &["7.2"],
        is: |stock, ours| stock.is_some_and(|stock| stock["mountpoint"] == "/mnt") && ours.is_none(),
        why: "a filesystem stands there once however often it is mounted, as newer stock has it",
        needs: None,
    },
];
