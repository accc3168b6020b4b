//! A reply of what was told, as the targets of facts and of the network look at it.
//!
//! Trust: none in what it is made of.

use postern_worker::qga::{Id, reply};
use serde_json::Value;

/// What the reply returns. It is JSON, and no more than some times what it is made of.
pub(super) fn json(value: &impl serde::Serialize, bytes: &[u8]) -> Value {
    let mut out = Vec::new();
    reply::success(&mut out, value, &Id::NONE);
    assert!(out.len() <= 256 + 16 * bytes.len(), "{} bytes of {}", out.len(), bytes.len());
    let mut line: Value = serde_json::from_slice(&out).expect("JSON");
    line["return"].take()
}
