//! The audit log from record to verdict: what is written, that it can be
//! continued and checked, and that nothing done to it goes unseen.
//!
//! Tests whose names begin with `root_` mount a tmpfs; without root they say so
//! and, with `CI` set, fail.

#[path = "audit/commands.rs"]
mod commands;
#[path = "audit/ecs.rs"]
mod ecs;
#[path = "audit/keep.rs"]
mod keep;
#[path = "support/records.rs"]
mod kept;
#[path = "audit/log.rs"]
mod log;
#[path = "audit/records.rs"]
mod records;
#[path = "audit/samples.rs"]
mod samples;
#[path = "audit/tamper.rs"]
mod tamper;
#[path = "audit/trouble.rs"]
mod trouble;
