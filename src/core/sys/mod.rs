//! The only room with unsafe code: calls into the kernel that no crate offers
//! safely, each with the reason why it is sound for *these* arguments.
//!
//! Trust: callers pass Rust types whose invariants hold; nothing here decides
//! anything. Used by every other room of the core, by broker, opener, worker.

pub mod descriptors;
pub mod fs;
pub mod init;
pub mod last_words;
pub mod listing;
pub mod process;
pub mod terminal;
