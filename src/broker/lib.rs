//! The broker: small, privileged, boring.
//!
//! Every request of the worker ends here: it decides by policy, writes the
//! record, then acts. It parses no JSON and no host byte but fixed frames.
//!
//! Trust: the policy; its own files. The worker is hostile, the opener is as
//! good as its confinement.
#![forbid(unsafe_code)]

mod about;
mod accounts;
pub mod acts;
mod arrival;
mod background;
mod closer;
mod datagram;
mod decide;
mod family;
mod fatal;
pub mod fsfreeze;
mod heads;
mod host;
mod launch;
pub mod log;
mod memory;
mod network;
mod notify;
mod options;
mod passed;
mod port;
pub mod say;
mod serve;
pub mod shutdown;
mod sources;
pub mod spawner;

pub use background::OwnFileError;
pub use family::Pace;
pub use launch::{Fatal, run};
pub use options::{Options, Service};
