//! Fn
pub mod fs;
