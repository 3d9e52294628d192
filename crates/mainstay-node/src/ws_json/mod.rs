//! `/ws`: clients without Socket.IO, with JSON messages over a WebSocket.
//!
//! A client is known by `?token=`, `Authorization: Bearer` or a subprotocol `bearer.TOKEN` beside `mainstay.v1` (what a
//! browser can send); where no token is asked for, `?user=` names it. The first message is `welcome`. Then the client
//! sends requests (`schema.json` has their form), and each is answered once. permessage-deflate is spoken without context
//! takeover, so that an idle connection keeps no window.
//!
//! # Rules
//!
//! - A bad message gets an `error` that says what would be right. A broken frame, and a binary message, end the
//!   connection with the code of RFC 6455 that names it.
//! - Whoever sends to a client never waits: what it does not read is bounded (`outbox`), and then it is cut.
//! - A request is carried out before the next is read.
//!
//! # The WebSocket library
//!
//! This is the one user of `yawc`, for permessage-deflate. Socket.IO's WebSockets have a reader and a writer of their own
//! ([`crate::engine_io`]), which speak no extension: they write one encoded frame to any number of clients, and an idle
//! connection holds no buffer.

mod client;
mod connection;
mod context;
mod handshake;
mod message;
mod outbox;
mod server;

pub(crate) use client::{ReplyFuture, WsJsonClient, WsJsonHandler};
pub(crate) use context::WsJsonSettings;
pub(crate) use message::SCHEMA;
pub(crate) use server::WsJsonServer;

#[cfg(test)]
mod tests;
