//! What people run: demo, call, policy, audit; stock's command line, and ours.
//!
//! Trust: a person's command line. Nothing here is part of the running agent.
#![forbid(unsafe_code)]

pub mod audit;
pub mod call;
pub mod cli;
pub mod client;
pub mod demo;
pub mod policy;
pub mod reload;
pub mod stock;
