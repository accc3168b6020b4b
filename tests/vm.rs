//! The agent in real guests: Debian's kernels under QEMU, a root filesystem of
//! its own that can be frozen, a virtio-serial port, the executable that ships.
//!
//! `cargo test --test vm` boots the quick set, `POSTERN_VM=all` everything
//! (`tests/run --all`). Needs root (for the images), QEMU and Debian's packages,
//! which `tests/vm/prepare` fetches by name.
//!
//! Each test is a process in a PID namespace of its own, so that no QEMU
//! outlives it. Nothing of the machine itself is frozen or shut down.

mod support;

#[path = "vm/acts.rs"]
mod acts;
#[path = "facts/agents.rs"]
#[allow(dead_code, reason = "agents in cells are another target's")]
mod agents;
#[path = "vm/boots.rs"]
mod boots;
#[path = "facts/client.rs"]
#[allow(dead_code, reason = "tested in the target of facts")]
mod client;
#[path = "vm/clients.rs"]
mod clients;
#[path = "vm/clocks.rs"]
mod clocks;
#[path = "vm/collectors.rs"]
mod collectors;
#[path = "facts/compare.rs"]
#[allow(dead_code, reason = "tested in the target of facts")]
mod compare;
#[path = "vm/disks.rs"]
mod disks;
#[path = "vm/facts.rs"]
mod facts;
#[path = "vm/freezes.rs"]
mod freezes;
#[path = "vm/guests.rs"]
mod guests;
#[path = "vm/heads.rs"]
mod heads;
#[path = "vm/idle.rs"]
mod idle;
#[path = "facts/intended.rs"]
mod intended;
#[path = "packaging/later.rs"]
mod later;
#[path = "vm/libvirt.rs"]
mod libvirt;
#[path = "vm/machine.rs"]
mod machine;
#[path = "vm/nfs.rs"]
mod nfs;
#[path = "vm/package.rs"]
mod package;
#[path = "hosts/play.rs"]
mod play;
#[path = "vm/port.rs"]
mod port;
#[path = "vm/postern.rs"]
mod postern;
#[path = "vm/power.rs"]
mod power;
#[path = "facts/scene.rs"]
#[allow(dead_code, reason = "the scene of a cell")]
mod scene;
#[path = "facts/schema.rs"]
#[allow(dead_code, reason = "tested in the target of facts")]
mod schema;
#[path = "hosts/script.rs"]
mod script;
#[path = "vm/services.rs"]
mod services;
#[path = "vm/shell.rs"]
mod shell;
#[path = "vm/snapshots.rs"]
mod snapshots;
#[path = "vm/swap.rs"]
mod swap;
#[path = "facts/table.rs"]
mod table;
#[path = "facts/verdict.rs"]
mod verdict;
#[path = "vm/virsh.rs"]
mod virsh;

use std::process::ExitCode;

use support::runner;

/// Whether everything was asked for, and not the quick set.
fn everything() -> bool {
    std::env::var("POSTERN_VM").is_ok_and(|set| set == "all")
}

fn main() -> ExitCode {
    machine::say_accelerator();
    let tests: Vec<runner::Test> = [
        // Minutes of waiting first, beside which the others work.
        idle::TESTS,
        &acts::tests(),
        &boots::tests(),
        clients::TESTS,
        clocks::TESTS,
        &facts::tests(),
        collectors::TESTS,
        &freezes::tests(),
        heads::TESTS,
        &package::tests(),
        port::TESTS,
        &power::tests(),
        snapshots::TESTS,
        swap::TESTS,
        virsh::TESTS,
    ]
    .concat();
    runner::main_on_machine(&tests, machine::COLUMNS, || vec![(guests::EXECUTABLE, guests::build())])
}
