//! The Redis adapters of Socket.IO, in the formats of the Node.js packages.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod value;
pub mod packet;
pub mod adapter;
pub mod offset;
pub mod settings;
pub mod wire;
mod backoff;
pub mod metrics;
pub mod memory;
pub mod connection;
mod requests;
mod peer;
mod pubsub;
mod ephemeral;
mod sharded;
mod streams;
mod redis_adapter;

pub use redis_adapter::RedisAdapter;
