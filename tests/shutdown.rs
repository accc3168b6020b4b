//! Shutting down, by the broker's code under the broker's real confinement,
//! before a fake process 1. Needs root. Each test runs in a cell, and each init
//! is process 1 of a PID namespace inside it: see `support::init`.

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::libc;
use postern_broker::shutdown::{Act, Init, Shutdown, reboot_commands, signals};
use postern_core::confine::filters::BrokerNeeds;
use postern_core::confine::{self, BrokerPlan, ConfineError};
use postern_core::ipc::List;
use postern_core::messages::Identity;
use postern_core::policy::{self, ShutdownMethod, ShutdownMode};
use postern_core::sys;
use support::init::{self as inits, Inbox, Kind, halt_is, not_the_machine, runlevel};
use support::{cell, runner};

fn main() -> ExitCode {
    runner::main(
        &[
            ("systemd_gets_its_real_time_signals", systemd_gets_its_real_time_signals),
            ("busybox_gets_its_signals", busybox_gets_its_signals),
            ("sysvinit_gets_its_requests", sysvinit_gets_its_requests),
            ("an_unknown_init_is_not_asked", an_unknown_init_is_not_asked),
            ("a_mode_that_the_policy_lacks_is_refused", a_mode_that_the_policy_lacks_is_refused),
            ("the_kernel_is_asked_only_where_the_policy_says", the_kernel_is_asked_only_where_the_policy_says),
            ("nothing_else_passes_the_filter", nothing_else_passes_the_filter),
        ],
        &[("init", init), ("ask", ask)],
        &["unshare"],
    )
}

// ---- roles -------------------------------------------------------------------

/// A fake process 1: starts the asker with its own arguments, then tells what
/// reached it, one fact per line.
fn init(arguments: &[String]) {
    let mut inbox = Inbox::open();
    let output = Command::new(cell::SELF)
        .args(["--role", "ask"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .expect("the asker");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if let Some(signal) = output.status.signal() {
        println!("asker died of {signal}");
    }
    inbox.signals().iter().for_each(|info| println!("signal {}", info.ssi_signo));
    inbox.requests().iter().for_each(|request| println!("{request}"));
}

/// The broker's part. Arguments: method, allowed modes (comma-separated),
/// wanted mode or `force:` and what to try past the code.
fn ask(arguments: &[String]) {
    not_the_machine();
    assert_eq!(nix::unistd::getppid().as_raw(), 1);
    let modes: Vec<ShutdownMode> = arguments[1].split(',').filter_map(ShutdownMode::from_name).collect();
    let method = match arguments[0].as_str() {
        "init" => ShutdownMethod::Init,
        "kernel" => ShutdownMethod::Kernel,
        _ => ShutdownMethod::Auto,
    };
    let policy = policy::Shutdown { modes, method };
    let init = Init::recognise(Path::new("/proc"), Path::new("/run"), Path::new("/dev"));
    println!("{}", init.name());
    let filter = BrokerNeeds {
        signals: signals(&policy, &init),
        reboots: reboot_commands(&policy, &init),
        ..BrokerNeeds::default()
    };
    let mut capabilities = Vec::new();
    if !filter.signals.is_empty() {
        capabilities.push(caps::Capability::CAP_KILL);
    }
    if !filter.reboots.is_empty() {
        capabilities.push(caps::Capability::CAP_SYS_BOOT);
    }
    let identity = Identity { uid: 54_321, gid: 54_321, groups: List::default() };
    confine::broker_identity(Some(&identity), &capabilities).expect("the broker's identity");
    let plan = BrokerPlan { filter, log: None, state: None, root: None, sockets: Vec::new(), policy: Vec::new() };
    let threads = || Ok::<_, ConfineError>(Shutdown::start(policy, init).expect("a thread"));
    let (_confined, shutdown) = confine::broker_barriers(plan, threads).expect("the broker's barriers");
    match arguments[2].as_str() {
        "force:reboot" => println!("{:?}", sys::process::reboot(libc::LINUX_REBOOT_CMD_RESTART).map_err(|e| e.kind())),
        "force:signal" => println!("{:?}", sys::init::signal(libc::SIGUSR1)),
        mode => match shutdown.plan(ShutdownMode::from_name(mode).expect("a mode")) {
            Ok(act) => {
                println!("{act:?}: {:?}", shutdown.act(act));
                if matches!(act, Act::Kernel(_)) {
                    // The kernel's answer ends us.
                    loop {
                        std::thread::park();
                    }
                }
            }
            Err(refusal) => println!("refused: {refusal}"),
        },
    }
    sys::process::exit_now(0)
}

// ---- helpers -----------------------------------------------------------------

/// Every mode, as an argument.
const ALL: &str = "powerdown,halt,reboot";

/// What reached an init of this kind, and how it ended.
fn stage(kind: Kind, method: &str, modes: &str, wanted: &str) -> (Vec<String>, ExitStatus) {
    inits::stage(kind, "/tmp", &[method, modes, wanted])
}

/// As [`stage`], for an init that lives on.
fn heard(kind: Kind, method: &str, modes: &str, wanted: &str) -> Vec<String> {
    let (heard, status) = stage(kind, method, modes, wanted);
    assert!(status.success(), "{status}: {heard:?}");
    heard
}

// ---- tests -------------------------------------------------------------------

fn systemd_gets_its_real_time_signals() {
    // systemd(1): SIGRTMIN+4 powers off, +3 halts, +5 reboots; SIGRTMIN is 34.
    for method in ["init", "auto"] {
        for (mode, signal) in [("powerdown", 38), ("halt", 37), ("reboot", 39)] {
            let told = [format!("Signal({signal}): Ok(())"), format!("signal {signal}")];
            assert_eq!(heard(Kind::Systemd, method, ALL, mode), ["systemd", &told[0], &told[1]]);
        }
    }
}

fn busybox_gets_its_signals() {
    for (mode, signal) in [("powerdown", libc::SIGUSR2), ("halt", libc::SIGUSR1), ("reboot", libc::SIGTERM)] {
        let told = [format!("Signal({signal}): Ok(())"), format!("signal {signal}")];
        assert_eq!(heard(Kind::Busybox, "init", ALL, mode), ["busybox", &told[0], &told[1]]);
    }
}

fn sysvinit_gets_its_requests() {
    assert_eq!(
        heard(Kind::Sysvinit, "init", ALL, "powerdown"),
        ["sysvinit", "Fifo(Powerdown): Ok(())", &halt_is("POWEROFF"), &runlevel(0)]
    );
    assert_eq!(
        heard(Kind::Sysvinit, "auto", ALL, "halt"),
        ["sysvinit", "Fifo(Halt): Ok(())", &halt_is("HALT"), &runlevel(0)]
    );
    assert_eq!(heard(Kind::Sysvinit, "init", ALL, "reboot"), ["sysvinit", "Fifo(Reboot): Ok(())", &runlevel(6)]);
}

fn an_unknown_init_is_not_asked() {
    assert_eq!(
        heard(Kind::Unknown, "init", ALL, "powerdown"),
        [
            "unknown",
            "refused: init is none of systemd, sysvinit and busybox; set [shutdown] method = \"kernel\" or \"auto\""
        ]
    );
}

fn a_mode_that_the_policy_lacks_is_refused() {
    for kind in [Kind::Systemd, Kind::Busybox, Kind::Sysvinit, Kind::Unknown] {
        for method in ["init", "kernel", "auto"] {
            let heard = heard(kind, method, "powerdown,halt", "reboot");
            let refused = "refused: the policy does not allow the mode 'reboot'; list it in [shutdown] modes";
            assert_eq!(heard[1..], [refused], "{method}");
        }
    }
}

fn the_kernel_is_asked_only_where_the_policy_says() {
    for (kind, method) in [(Kind::Systemd, "kernel"), (Kind::Sysvinit, "kernel"), (Kind::Unknown, "auto")] {
        for (mode, signal) in [("reboot", libc::SIGHUP), ("powerdown", libc::SIGINT), ("halt", libc::SIGINT)] {
            let (heard, status) = stage(kind, method, ALL, mode);
            assert_eq!(status.signal(), Some(signal), "{method} {mode}: {heard:?}");
        }
    }
}

fn nothing_else_passes_the_filter() {
    // Controls: the same two acts pass where the policy has them.
    let (_, status) = stage(Kind::Systemd, "kernel", "reboot", "force:reboot");
    assert_eq!(status.signal(), Some(libc::SIGHUP));
    assert_eq!(heard(Kind::Busybox, "init", "halt", "force:signal"), ["busybox", "Ok(())", "signal 10"]);
    let killed = format!("asker died of {}", libc::SIGSYS);
    for (kind, method, modes, act) in [
        (Kind::Systemd, "init", ALL, "force:reboot"),
        (Kind::Systemd, "auto", ALL, "force:reboot"),
        (Kind::Sysvinit, "auto", ALL, "force:reboot"),
        (Kind::Unknown, "init", ALL, "force:reboot"),
        (Kind::Unknown, "kernel", "powerdown,halt", "force:reboot"),
        (Kind::Systemd, "kernel", ALL, "force:signal"),
        (Kind::Systemd, "init", ALL, "force:signal"),
        (Kind::Busybox, "init", "powerdown,reboot", "force:signal"),
        (Kind::Sysvinit, "init", ALL, "force:signal"),
    ] {
        let heard = heard(kind, method, modes, act);
        assert_eq!(heard[1..], [killed.as_str()], "{method} {modes} {act}");
    }
}
