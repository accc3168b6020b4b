//! What people run: demo, call, policy, audit.
#![forbid(unsafe_code)]

pub mod audit;
pub mod policy;
