//! Kernel by userland: the same story in each. What a kernel must have is
//! asserted, so that a job tests what it claims to.

use serde_json::{Value, json};

use crate::everything;
use crate::guests::{Kernel, LINUX_5_10, LINUX_6_1, LINUX_6_12, LINUX_6_12_ARM64, NEWEST, Userland};
use crate::machine::{Machine, Setup};
use crate::postern::{ACCOUNTS, LAST_WORDS, POLICY, START, VERIFY};
use crate::support::runner::Test;

/// The quick set first; `POSTERN_VM=all` takes them all.
const CELLS: [(Kernel, Userland); 10] = [
    (LINUX_6_1, Userland::Busybox),
    (LINUX_6_12, Userland::Busybox),
    (LINUX_6_1, Userland::Systemd),
    (LINUX_6_12, Userland::Systemd),
    (NEWEST, Userland::Busybox),
    (NEWEST, Userland::Systemd),
    (LINUX_6_1, Userland::Sysvinit),
    (LINUX_6_12, Userland::Sysvinit),
    (NEWEST, Userland::Sysvinit),
    (LINUX_6_12_ARM64, Userland::Busybox),
];
const QUICK: usize = 5;

const TESTS: &[Test] = &[
    ("boots_6_1_busybox", in_cell::<0>),
    ("boots_6_12_busybox", in_cell::<1>),
    ("boots_6_1_systemd", in_cell::<2>),
    ("boots_6_12_systemd", in_cell::<3>),
    ("boots_newest_busybox", in_cell::<4>),
    ("boots_newest_systemd", in_cell::<5>),
    ("boots_6_1_sysvinit", in_cell::<6>),
    ("boots_6_12_sysvinit", in_cell::<7>),
    ("boots_newest_sysvinit", in_cell::<8>),
    ("boots_6_12_busybox_on_aarch64", in_cell::<9>),
];

const LINUX_6_12_WITHOUT: Kernel = Kernel { landlock: 0, ..LINUX_6_12 };

const REFUSALS: &[Test] = &[
    ("refuses_5_10_for_it_has_no_landlock", || refuses(LINUX_5_10, "")),
    ("refuses_a_kernel_with_landlock_switched_off", || refuses(LINUX_6_12_WITHOUT, "lsm=capability,yama")),
];

pub(crate) fn tests() -> Vec<Test> {
    let cells = if everything() { TESTS } else { &TESTS[..QUICK] };
    [REFUSALS, cells].concat()
}

/// What the kernel has, by what postern said of it.
fn landlock_of(machine: &mut Machine) -> u32 {
    let abi = machine.sh("sed -n 's/.*the kernel has Landlock ABI \\([0-9]*\\);.*/\\1/p' /run/postern.log");
    abi.trim().parse().unwrap_or_else(|_| panic!("Landlock's version: {abi:?}"))
}

fn in_cell<const CELL: usize>() {
    let (kernel, userland) = CELLS[CELL];
    let mut machine = Machine::boot(&Setup::new(kernel, userland).with_postern(POLICY));
    machine.sh(ACCOUNTS);
    machine.sh(START);
    let mut host = machine.host();
    host.ping();
    let landlock = landlock_of(&mut machine);
    assert_eq!(landlock, kernel.landlock, "the kernel that was booted is not the one this test is for");
    machine.note("");

    let handle = host.open("/srv/file", "w+").expect("a file");
    host.write(handle, "cG9zdGVybg==");
    host.close(handle);
    assert_eq!(machine.sh("cat /srv/file"), "postern");
    assert!(host.open("/etc/shadow", "r").expect_err("no rule").contains("Permission denied"));

    // The root filesystem, log and all.
    assert_eq!(host.returns("guest-fsfreeze-freeze", &Value::Null), json!(1));
    assert_eq!(host.returns("guest-fsfreeze-status", &Value::Null), "frozen");
    machine.sh("(echo frozen >/srv/late; echo $? >/run/late) >/dev/null 2>&1 & sleep 1; test ! -e /run/late");
    assert_eq!(host.returns("guest-fsfreeze-thaw", &Value::Null), json!(1));
    machine.sh_eventually("test \"$(cat /run/late)\" = 0");
    machine.sh(VERIFY);

    host.send(br#"{"execute": "guest-shutdown"}"#);
    machine.event("SHUTDOWN");
    machine.ended();
}

/// A kernel that can't confine: postern does not start, and says why.
fn refuses(kernel: Kernel, append: &str) {
    let mut machine = Machine::boot(&Setup::new(kernel, Userland::Busybox).with_postern(POLICY).append(append));
    machine.sh(START);
    let said = machine.sh_eventually(LAST_WORDS);
    machine.sh("test ! -e /var/log/postern/audit.jsonl");
    machine.note("postern does not start");
    assert!(said.contains("not starting unconfined") && said.contains("Landlock"), "{said}");
}
