//! What each fuzz target does with one input, and what must hold then.
//!
//! A library of plain functions: `fuzz_targets/` hands them what the fuzzer makes
//! up, `tests/fuzz.rs` the kept corpus and every past finding, on any toolchain. A
//! function that returns has found nothing; it panics where something does not
//! hold. Inputs that mean nothing are passed over, never an error.
//!
//! Trust: none in the inputs; they reach nothing but memory and files of their
//! own in a new directory.

pub mod audit;
pub mod base64;
pub mod facts;
pub mod frames;
pub mod framing;
pub mod keyfile;
pub mod log_end;
pub mod memory;
pub mod mounts;
pub mod network;
pub mod policy;
mod reply;
pub mod request;
pub mod rules;
pub mod state;
pub mod text;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of its executable, its corpus and its findings.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
}

/// Every target.
pub static TARGETS: [Target; 13] = [
    Target { name: "audit", run: audit::run },
    Target { name: "base64", run: base64::run },
    Target { name: "facts", run: facts::run },
    Target { name: "frames", run: frames::run },
    Target { name: "framing", run: framing::run },
    Target { name: "keyfile", run: keyfile::run },
    Target { name: "log_end", run: log_end::run },
    Target { name: "mounts", run: mounts::run },
    Target { name: "network", run: network::run },
    Target { name: "policy", run: policy::run },
    Target { name: "request", run: request::run },
    Target { name: "rules", run: rules::run },
    Target { name: "state", run: state::run },
];
