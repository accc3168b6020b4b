//! The QGA protocol, pure: bytes → message → request, reply → bytes.
//!
//! ```text
//! frame::Decoder ─ message ─▶ request::Incoming ─ Request ─▶ dispatch
//! reply::{success, delimited, error, read_head + base64::Encoder + read_tail} ◀─┘
//! ```
//!
//! Nothing here reads or writes a descriptor, knows a file or asks the broker.
//!
//! Trust: reads hostile bytes, in the process that holds nothing.

pub mod base64;
pub mod error;
pub mod frame;
pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;
pub mod value;

pub use error::QgaError;
pub use frame::Decoder;
pub use reply::Id;
pub use request::{Incoming, Request, Whence};
