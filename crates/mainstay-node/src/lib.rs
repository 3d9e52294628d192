//! The node: a WebSocket and Socket.IO server that shares rooms and users with its peers.
//!
//! `engine_io`, with `socketio` on top of it, and `ws_json` are the two ways in. `app` is what clients talk to by either
//! of them, `hub` what they share; `bus` connects the hubs of several nodes. `lifecycle` puts a node together and ends it.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod api;
pub mod app;
pub mod auth;
mod bearer;
mod chat;
pub mod config;
pub mod engine_io;
pub mod health;
pub mod http_server;
pub mod hub;
mod lifecycle;
pub mod limits;
pub mod metrics;
mod paced_close;
pub mod presence;
pub mod response;
mod routes;
pub mod socketio;
pub mod ws_json;

pub use socketio_redis::value;

pub use lifecycle::{InProcessCluster, Node, StartError};
