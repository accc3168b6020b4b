//! Idle: what postern costs a guest whose host has nothing to say, beside
//! stock, in the same machine at the same time.
//!
//! A wake-up is a context switch of any of its threads, by its own will or not,
//! by the kernel's count. The service manager's watchdog, which asks for one
//! ping every half of its time, is measured apart.

use std::collections::BTreeMap;

use crate::guests::{LINUX_6_1, Userland};
use crate::machine::{Machine, Setup};
use crate::port::stock_beside;
use crate::postern::{INSTALL, POLICY, START, STOP, installed};
use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("an_idle_agent_costs_nothing", an_idle_agent_costs_nothing)];

/// How long each look lasts.
const SECONDS: u32 = 60;

/// Per process: wake-ups, CPU ticks, and nanoseconds on a CPU, of all threads.
type Cost = BTreeMap<String, [u64; 3]>;

/// Prints `name wake-ups ticks nanoseconds` for each thread of each agent.
const LOOK: &str = "for task in $(for pid in $(pgrep ^postern-; pidof qemu-ga); do echo /proc/$pid/task/*; done); do \
     name=$(sed -n 's/^Name:.//p' ${task%/task/*}/status); \
     switches=$(awk '/ctxt_switches/ { all += $2 } END { print all }' $task/status); \
     ticks=$(sed 's/.*) //' $task/stat | awk '{ print $12 + $13 }'); \
     echo $name $switches $ticks $(cut -d' ' -f1 $task/schedstat); done";

fn look(machine: &mut Machine) -> Cost {
    let mut cost = Cost::new();
    for line in machine.sh(LOOK).lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, numbers @ ..] = fields.as_slice() else { panic!("{line:?}") };
        let sum = cost.entry((*name).to_owned()).or_default();
        for (sum, number) in sum.iter_mut().zip(numbers) {
            *sum += number.parse::<u64>().unwrap_or_else(|why| panic!("{why}: {line:?}"));
        }
    }
    cost
}

/// What a minute costs each process.
fn minute(machine: &mut Machine, what: &str, notes: &mut Vec<String>) -> Cost {
    machine.sh("sleep 5");
    let before = look(machine);
    machine.sh(&format!("sleep {SECONDS}"));
    let after = look(machine);
    let cost: Cost = after
        .iter()
        .map(|(name, now)| {
            let then = before.get(name).unwrap_or_else(|| panic!("{name} was not there before: {before:?}"));
            (name.clone(), std::array::from_fn(|at| now[at] - then[at]))
        })
        .collect();
    for (name, [switches, ticks, nanoseconds]) in &cost {
        let cpu = std::time::Duration::from_nanos(*nanoseconds);
        notes.push(format!("{what}, {SECONDS} s: {name}: {switches} wake-ups, {ticks} CPU ticks ({cpu:?} on a CPU)"));
    }
    cost
}

/// The figures of postern's processes alone.
fn ours(cost: &Cost) -> Cost {
    let ours: Cost =
        cost.iter().filter(|(name, _)| *name != "qemu-ga").map(|(name, cost)| (name.clone(), *cost)).collect();
    assert_eq!(ours.len(), 4, "broker, spawner, opener, worker: {cost:?}");
    ours
}

fn an_idle_agent_costs_nothing() {
    let mut notes = Vec::new();
    let setup = installed(Setup::new(LINUX_6_1, Userland::Systemd).with_postern(POLICY), true);
    let mut machine = Machine::boot(&setup);
    machine.sh(INSTALL);
    machine.sh("systemctl stop postern");
    stock_beside(&mut machine);
    // By hand, so without a watchdog.
    machine.sh(START);
    machine.host().ping();
    let nothing = |cost: &Cost| {
        for (name, cost) in ours(cost) {
            assert_eq!(cost, [0; 3], "{name}: wake-ups, ticks, nanoseconds");
        }
    };
    let cost = minute(&mut machine, "no host", &mut notes);
    nothing(&cost);
    assert!(cost["qemu-ga"][0] > u64::from(SECONDS), "stock is not looked at: {cost:?}");
    // The same host for a minute, which says nothing; on stock's port too.
    let mut host = machine.host();
    let stock = std::os::unix::net::UnixStream::connect(machine.directory.path().join("stock")).expect("QEMU listens");
    host.ping();
    let cost = minute(&mut machine, "a silent host", &mut notes);
    nothing(&cost);
    host.ping();
    drop((host, stock));
    // With the service manager's watchdog: half a minute each.
    machine.sh(STOP);
    machine.sh("systemctl start postern");
    let cost = minute(&mut machine, "no host, watchdog of a minute", &mut notes);
    machine.note(&notes.join("; "));
    for (name, [switches, ..]) in ours(&cost) {
        // Two or three pings, each of which may be interrupted.
        let most = if name == "postern-broker" { 8 } else { 0 };
        assert!(switches <= most, "{name}: {switches} wake-ups");
    }
}
