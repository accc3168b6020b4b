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
pub(super) fn parse(line: &[u8]) -> Option<Record<'_>> {
    serde_json::from_slice(line).ok()
}

#[derive(Debug, Deserialize)]
pub(super) struct Record<'a> {
    #[serde(rename = "@timestamp", borrow, default)]
    pub(super) at: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) event: Event<'a>,
    #[serde(borrow, default)]
    pub(super) file: File<'a>,
    #[serde(borrow, default)]
    pub(super) process: Process<'a>,
    #[serde(borrow, default)]
    pub(super) postern: Ours<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    #[serde(default)]
    pub(super) sequence: u64,
    #[serde(borrow)]
    pub(super) action: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) outcome: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) reason: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct File<'a> {
    #[serde(borrow, default)]
    pub(super) path: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Process<'a> {
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Ours<'a> {
    #[serde(borrow, default)]
    pub(super) stage: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) requested: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) requested_bytes: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) path_bytes: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) mode: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) refused_by: Cow<'a, str>,
    pub(super) handle: Option<u64>,
    pub(super) created: Option<bool>,
    pub(super) self_reported: Option<Used>,
    pub(super) child: Option<u64>,
    pub(super) after: Option<After>,
    pub(super) signal: Option<i64>,
    pub(super) count: Option<u64>,
    #[serde(borrow)]
    pub(super) counts: Option<BTreeMap<Cow<'a, str>, u64>>,
    pub(super) lost: Option<u64>,
    pub(super) unwritten: Option<u64>,
    pub(super) peer: Option<Peer>,
    #[serde(borrow, default)]
    pub(super) version: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) policy_digest: Cow<'a, str>,
    pub(super) privileged: Option<bool>,
    pub(super) torn: Option<Torn>,
}

/// The worker's own word.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Used {
    #[serde(default)]
    pub(super) bytes_read: u64,
    #[serde(default)]
    pub(super) bytes_written: u64,
}

/// The file when its handle ended.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct After {
    #[serde(default)]
    pub(super) changed: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Peer {
    pub(super) pid: i64,
    pub(super) uid: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Torn {
    #[serde(default)]
    pub(super) bytes: u64,
}

impl Record<'_> {
    /// When it happened.
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.at.parse().ok()
    }

    /// Whether a barrier, or the policy, refused.
    pub(super) fn is_denied(&self) -> bool {
        self.postern.stage == "refused"
    }

    /// The path that the kernel resolved, in its own bytes.
    pub(super) fn resolved(&self) -> Option<Vec<u8>> {
        bytes(&self.file.path, &self.postern.path_bytes)
    }

    /// The path as the host wrote it, in its own bytes.
    pub(super) fn requested(&self) -> Option<Vec<u8>> {
        bytes(&self.postern.requested, &self.postern.requested_bytes)
    }

    /// The number of the worker that it is about: that asked, or that is named.
    pub(super) fn worker(&self) -> Option<u64> {
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
