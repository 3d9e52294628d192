//! The Engine.IO server of the node: protocol 4, and 3 where it is switched on, behind two small traits.
//!
//! A public crate for this layer was tried first and dropped: it has no WebSocket close codes, does not cut slow
//! consumers and leaves cookies and CORS to others, so this one is our own, small and strict.
//!
//! # The life of a session
//!
//! 1. a request for the path: transport, sid, method and protocol are judged in Node's order ([`EngineServer::respond`]).
//! 2. without a sid it is a handshake: the layer above may refuse it ([`ConnectionHandler::admit`]).
//! 3. a WebSocket gets its 101 and a task of its own; a polling client gets the open packet as the answer.
//! 4. the layer above is told ([`ConnectionHandler::opened`]) and says where the messages go ([`MessageHandler`]).
//! 5. messages in order, until a close, a fault, a missed heartbeat, a full queue or the end of the server.
//! 6. the layer above is told once ([`MessageHandler::closed`]), and the name leaves the table.
//!
//! # Rules
//!
//! An idle WebSocket is a task, a socket and a record: no buffer, no timer. Everything a client can make the server
//! keep is bounded by [`EngineSettings`]. The layer above is called on the connection's own task and must not block.

mod cors;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod fuzz;
mod response;
mod server;
mod session;
mod settings;
mod transport;

pub use cors::Cors;
pub use server::EngineServer;
pub use session::connection::Connection;
pub use session::connection_handler::ConnectionHandler;
pub use session::counters::EngineStats;
pub use session::ending::{CloseKind, CloseReason};
pub use session::frame::Frame;
pub use session::handshake::{ClientAddress, Handshake};
pub use session::message_handler::MessageHandler;
pub use session::packet::{Message, Revision};
pub use session::sid::Sid;
pub use settings::{EngineSettings, SessionBinding, Transports};
