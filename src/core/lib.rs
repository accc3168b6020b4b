//! What the sides of postern share: system calls, frames, the catalogue, the
//! policy, audit records and confinement.
//!
//! Imports go one way:
//! `sys` → `mountinfo` → `place` → `ipc` → `catalogue` → `policy` → `rate` → `messages` → `audit` → `confine`; a
//! room may use those before it, never one after it.

pub mod audit;
pub mod catalogue;
pub mod confine;
pub mod ipc;
pub mod messages;
pub mod mountinfo;
pub mod place;
pub mod policy;
pub mod rate;
#[allow(unsafe_code, reason = "the one room where unsafe code lives")]
pub mod sys;
