//! The formats in which the Node.js adapters speak to each other through Redis. Pure: bytes in, meaning out.
//!
//! - [`classic`]: `@socket.io/redis-adapter` 8, `createAdapter`, and `@socket.io/redis-emitter`;
//! - [`envelope`]: its `createShardedAdapter`, and `@socket.io/redis-streams-adapter` 0.3;
//! - [`entry`]: the entries of the latter's streams, and the stream of a namespace;
//! - [`session`]: what it keeps of a client that may come back.
//!
//! Rules: what a peer sent is never trusted to have a field; a payload that cannot be read is a [`WireError`], which is
//! counted and says whose it is. Everything written is what the Node.js packages write, key for key in their order.

use thiserror::Error;

use crate::value::ValueError;

pub mod classic;
pub mod entry;
pub mod envelope;
pub mod opts;
pub mod session;

mod wire_part;

/// Why a payload says nothing to this node.
#[derive(Debug, Error)]
pub enum WireError {
    /// It is not even JSON, MessagePack or base64.
    #[error("unreadable: {0}")]
    Unreadable(#[from] ValueError),
    /// It is base64 that is none.
    #[error("unreadable: {0}")]
    Base64(#[from] base64::DecodeError),
    /// A field is missing or of the wrong type.
    #[error("{0} is missing or of the wrong type")]
    Field(&'static str),
    /// A type that this node does not know; peers of other versions may.
    #[error("unknown type {0}")]
    Type(u64),
    /// It is what an adapter of the other kind sends: two clusters share the channels, and break each other.
    #[error("it was sent by an adapter of another kind")]
    OtherKind,
}
