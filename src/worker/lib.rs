//! The worker: the unprivileged, confined process that parses the host's bytes.
#![forbid(unsafe_code)]

pub mod qga;
