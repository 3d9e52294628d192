//! The node: a WebSocket and Socket.IO server that shares rooms and users with its peers.
//!
//! In reading order: `config` (what it is told), `server` (HTTP), `engine_io` and `plain` (the two ways in), `request`
//! (what a client may ask), `hub` and `value` (what is shared), `presence`, `auth` and `limits`, and what is told about
//! it: `health`, `metrics`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod answer;
pub mod api;
pub mod application;
pub mod auth;
mod bearer;
pub mod bus;
mod chat;
pub mod config;
pub mod engine_io;
pub mod health;
pub mod hub;
mod life;
pub mod limits;
pub mod metrics;
mod paced_close;
pub mod packet;
pub mod plain;
pub mod presence;
mod questions;
pub mod request;
mod routes;
pub mod server;
pub mod socketio;
pub mod value;
mod visitors;

pub use life::{Node, StartFault, World};
