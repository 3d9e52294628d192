//! The node: a WebSocket and Socket.IO server that shares rooms and users with its peers.
//!
//! `engine_io`, with `socketio` on top of it, and `ws_json` are the two ways in. `app` is what clients talk to by either
//! of them, `hub` what they share; `bus` connects the hubs of several nodes. `lifecycle` puts a node together and ends it.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

// pure: data and arithmetic; time and randomness come in as arguments
mod response;
mod bearer;

// mechanism: I/O without policy
pub mod auth;
pub mod limits;
pub mod metrics;
mod paced_close;
mod http_server;
pub mod engine_io;
pub mod hub;
mod presence;
pub mod socketio;
mod ws_json;

// planes and wiring
mod app;
pub mod config;
mod api;
mod health;
mod chat_page;
mod routes;
mod lifecycle;

pub use lifecycle::{InProcessCluster, Node, StartError};
