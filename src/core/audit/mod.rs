//! The audit log's records: what an event says, how it looks as a line of
//! JSON, and how each line names the one before it.
//!
//! [`Record`] is the event as data, [`Body`] its JSON text but for sequence
//! number and hash, [`Chain`] adds these two. Nothing here opens a file: the
//! broker's log writer does, and `postern audit` reads.
//!
//! Trust: a record's numbers and enums come from the broker; every [`Text`] may
//! come from the host or from a file name, and is bounded and escaped here.
//! This room writes JSON and reads none: continuing a log takes only the fixed
//! places of a line ([`Chain::after`]).

mod chain;
mod ecs;
mod fields;
mod json;
mod mounts;
mod record;
mod run;
mod terms;
mod text;

pub use jiff::Timestamp;

pub use crate::sys::terminal::is_harmful;
pub use chain::{Chain, Hash, MAX_LINE, Seal, Torn, is_whole, sequence_of};
pub use ecs::{Body, ECS_VERSION};
pub use mounts::Mounts;
pub use record::Record;
pub use run::{Confinement, Opening, Reloaded, Run};
pub use terms::{After, Asked, Closing, End, Lost, Outcome, Peer, Role, Stands, ThawCause};
pub use text::{TEXT_MAX, Text};
