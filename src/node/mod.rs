//! The node: a WebSocket and Socket.IO server that shares rooms and users with its fellows.
//!
//! In reading order: `config` (what it is told), `server` (HTTP), `engine_io` and `plain` (the two ways in), `request`
//! (what a client may ask), `hub` and `value` (what is shared), `presence`, `auth` and `limits`, and what is told about
//! it: `health`, `metrics`.

mod answer;
pub mod auth;
pub mod config;
mod echo;
pub mod engine_io;
mod health;
pub mod hub;
pub mod limits;
pub mod metrics;
pub mod plain;
pub mod presence;
pub mod request;
pub mod server;
pub mod value;

pub use echo::serve;
