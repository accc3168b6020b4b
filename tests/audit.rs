//! The audit log from record to verdict: what is written, that it can be
//! continued and checked, and that nothing done to it goes unseen.
//!
//! Tests whose names begin with `root_` mount a tmpfs; without root they say so
//! and, with `CI` set, fail.

#[path = "support/binary.rs"]
mod binary;
#[path = "audit/commands.rs"]
mod commands;
#[path = "audit/ecs.rs"]
mod ecs;
#[path = "audit/forgery.rs"]
mod forgery;
#[path = "audit/keep.rs"]
mod keep;
#[path = "audit/log.rs"]
mod log;
#[path = "audit/long.rs"]
mod long;
#[path = "audit/reading.rs"]
mod reading;
#[path = "audit/records.rs"]
mod records;
#[path = "audit/report.rs"]
mod report;
#[path = "audit/samples.rs"]
mod samples;
#[path = "audit/story.rs"]
mod story;
#[path = "audit/tamper.rs"]
mod tamper;
#[path = "audit/threats.rs"]
mod threats;
#[path = "audit/trouble.rs"]
mod trouble;
