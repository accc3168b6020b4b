//! stub

pub mod audit;
