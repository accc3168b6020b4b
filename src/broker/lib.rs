//! The broker: small, privileged, boring.
//!
//! Every request of the worker ends here: it decides by policy, writes the
//! record, then acts. It parses no JSON and no host byte but fixed frames.
//!
//! Trust: the policy; its own files. The worker is hostile, the opener is as
//! good as its confinement.
#![forbid(unsafe_code)]

pub mod log;
pub mod spawner;
