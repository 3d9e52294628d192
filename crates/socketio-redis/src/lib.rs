//! The Redis adapters of Socket.IO, byte for byte with the Node.js packages.
//!
//! A Socket.IO fleet shares rooms and broadcasts through Redis. This crate lets a Rust server join such a fleet, with
//! Node.js servers in it or without, and lets any Rust program emit to its clients:
//!
//! | [`AdapterKind`](settings::AdapterKind) | the Node.js package |
//! |---|---|
//! | `Classic` | `@socket.io/redis-adapter` 8.3, `createAdapter`; `@socket.io/redis-emitter` |
//! | `Sharded` | `@socket.io/redis-adapter` 8.3, `createShardedAdapter` (Redis 7) |
//! | `Streams` | `@socket.io/redis-streams-adapter` 0.3, with connection state recovery |
//!
//! A server implements [`LocalNamespace`](adapter::LocalNamespace), what the others may ask of its own sockets, and gets a
//! [`NamespaceAdapter`](adapter::NamespaceAdapter), what it may ask of the others. [`RedisAdapter`] makes one for each
//! namespace, over one connection to Redis that comes back by itself. Within one process, [`memory`] does the same.
//!
//! # Example
//!
//! A program without sockets of its own emits `news` to everybody in a room, on every server of the fleet:
//!
//! ```no_run
//! use std::sync::Arc;
//! use socketio_redis::adapter::{Adapter, BroadcastFlags, LocalNamespace, Operation, Room, Target};
//! use socketio_redis::client::RedisAddress;
//! use socketio_redis::settings::{AdapterKind, AdapterSettings};
//! use socketio_redis::value::Value;
//! use socketio_redis::{NoSockets, RedisAdapter};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let address = RedisAddress::parse("redis://127.0.0.1:6379", false)?;
//! let adapter = RedisAdapter::start(address, AdapterSettings::new(AdapterKind::Classic), Arc::new(()));
//! adapter.wait_until_ready().await;
//! let sockets: Arc<dyn LocalNamespace> = Arc::new(NoSockets);
//! let namespace = adapter.namespace(&"/".into(), Arc::downgrade(&sockets));
//! let target = Target { rooms: vec![Room::text("lobby")], except: Vec::new() };
//! let data = vec![Value::from("news"), Value::from("hello from Rust")];
//! let flags = BroadcastFlags::default();
//! namespace.send(Operation::Broadcast { data, target, flags }).await?;
//! adapter.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! - A call takes its place in the order when it is made, not when its future is awaited.
//! - What a peer sent is never trusted to have a field; what cannot be read is counted ([`metrics`]), never a panic.
//! - Streams and classic fleets on one prefix break each other; an adapter that meets the other kind says so
//!   ([`AdapterState`](adapter::AdapterState)) and sends nothing more.
//! - TLS (`rediss://`) uses the aws-lc provider of rustls. Sentinel, Cluster and Unix sockets are addresses too.
//!
//! A module names only modules above it in this file.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

// pure: data and arithmetic; time and randomness come in as arguments
pub mod value;
pub mod packet;
mod operation;
pub mod offset;
pub mod settings;
pub mod wire;
mod backoff;

// mechanism: I/O without policy
pub mod adapter;
mod no_sockets;
pub mod metrics;
pub mod memory;
mod random;
pub mod client;
mod pending_requests;
mod peer;
mod classic;
mod messenger;
mod sharded;
mod streams;
mod redis_adapter;

pub use no_sockets::NoSockets;
pub use redis_adapter::RedisAdapter;
