//! A record as its readers need it. What they do not need is passed over, so
//! that logs of other versions can be read too.
//!
//! Trust: the line is anyone's. A record is an object with an event; every
//! string in it is hostile until `words::escape` has seen it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use postern_core::audit::Timestamp;
use serde::Deserialize;

/// The record that a line holds, if it holds one; its newline does not matter.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    serde_json::from_slice(line).ok()
}

#[derive(Debug, Deserialize)]
pub(crate) struct Record<'a> {
    #[serde(rename = "@timestamp", borrow, default)]
    pub(crate) at: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) event: Event<'a>,
    #[serde(borrow, default)]
    pub(crate) file: File<'a>,
    #[serde(borrow, default)]
    pub(crate) process: Process<'a>,
    #[serde(borrow, default)]
    pub(crate) postern: Ours<'a>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Event<'a> {
    #[serde(default)]
    pub(crate) sequence: u64,
    #[serde(borrow)]
    pub(crate) action: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) outcome: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) reason: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct File<'a> {
    #[serde(borrow, default)]
    pub(crate) path: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Process<'a> {
    #[serde(borrow, default)]
    pub(crate) name: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Ours<'a> {
    #[serde(borrow, default)]
    pub(crate) stage: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) requested: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) requested_bytes: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) path_bytes: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) mode: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) refused_by: Cow<'a, str>,
    pub(crate) handle: Option<u64>,
    pub(crate) created: Option<bool>,
    pub(crate) self_reported: Option<Used>,
    pub(crate) child: Option<u64>,
    pub(crate) after: Option<After>,
    pub(crate) signal: Option<i64>,
    pub(crate) count: Option<u64>,
    #[serde(borrow)]
    pub(crate) counts: Option<BTreeMap<Cow<'a, str>, u64>>,
    pub(crate) lost: Option<u64>,
    pub(crate) unwritten: Option<u64>,
    pub(crate) peer: Option<Peer>,
    #[serde(borrow, default)]
    pub(crate) version: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) policy_digest: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) tightened: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) widened: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) surplus: Vec<Cow<'a, str>>,
    pub(crate) privileged: Option<bool>,
    pub(crate) torn: Option<Torn>,
}

/// The worker's own word.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Used {
    #[serde(default)]
    pub(crate) bytes_read: u64,
    #[serde(default)]
    pub(crate) bytes_written: u64,
}

/// The file when its handle ended.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    pub(crate) changed: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Peer {
    pub(crate) pid: i64,
    pub(crate) uid: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Torn {
    #[serde(default)]
    pub(crate) bytes: u64,
}

impl Record<'_> {
    /// When it happened.
    pub(crate) fn time(&self) -> Option<Timestamp> {
        self.at.parse().ok()
    }

    /// Whether a barrier, or the policy, refused.
    pub(crate) fn is_denied(&self) -> bool {
        self.postern.stage == "refused"
    }

    /// The path that the kernel resolved, in its own bytes.
    pub(crate) fn resolved(&self) -> Option<Vec<u8>> {
        bytes(&self.file.path, &self.postern.path_bytes)
    }

    /// The path as the host wrote it, in its own bytes.
    pub(crate) fn requested(&self) -> Option<Vec<u8>> {
        bytes(&self.postern.requested, &self.postern.requested_bytes)
    }

    /// The number of the worker that it is about: that asked, or that is named.
    pub(crate) fn worker(&self) -> Option<u64> {
        self.postern.child.filter(|_| matches!(&*self.process.name, "" | "worker"))
    }
}

/// The bytes of a name: in hexadecimal where it is not UTF-8.
fn bytes(readable: &str, hex: &str) -> Option<Vec<u8>> {
    let raw = || {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
            .collect::<Option<Vec<_>>>()
    };
    match (hex.is_empty(), readable.is_empty()) {
        (false, _) => Some(raw().unwrap_or_else(|| readable.as_bytes().to_vec())),
        (true, false) => Some(readable.as_bytes().to_vec()),
        (true, true) => None,
    }
}
