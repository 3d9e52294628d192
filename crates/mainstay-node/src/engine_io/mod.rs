//! The Engine.IO server of the node: protocol 4, and 3 where it is switched on, behind two small traits.
//!
//! A public crate for this layer was tried first and dropped: it has no WebSocket close codes, does not cut slow
//! consumers and leaves cookies and CORS to others, so this one is our own, small and strict.
//!
//! # The life of a session
//!
//! 1. a request for the path: transport, sid, method and protocol are judged in Node's order ([`Server::respond`]).
//! 2. without a sid it is a handshake: the layer above may refuse it ([`Handler::admits`]).
//! 3. a WebSocket gets its 101 and a task of its own; a polling client gets the open packet as the answer.
//! 4. the layer above is told ([`Handler::opened`]) and says where the messages go ([`Inbox`]).
//! 5. messages in order, until a close, a fault, a missed heartbeat, a full queue or the end of the server.
//! 6. the layer above is told once ([`Inbox::closed`]), and the name leaves the table.
//!
//! # Rules
//!
//! An idle WebSocket is a task, a socket and a record: no buffer, no timer. Everything a client can make the server
//! keep is bounded by [`Settings`]. The layer above is called on the connection's own task and must not block.

use std::borrow::Cow;
use std::sync::Arc;

mod answer;
mod beat;
mod binding;
mod compress;
mod connection;
mod cors;
mod ending;
mod frame;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod jsonp;
mod packet;
mod payload;
mod poll;
mod polling;
mod probe;
mod query;
mod reader;
mod server;
mod sessions;
mod settings;
mod shared;
mod sid;
mod socket;
mod state;
mod wheel;

pub use binding::Bind;
pub use connection::Connection;
pub use cors::Cors;
pub use ending::{CloseKind, Reason};
pub use frame::Frame;
pub use handshake::{ClientAddress, Handshake};
pub use server::Server;
pub use settings::{Settings, Transports};
pub use shared::Figures;
pub use sid::Sid;

/// The layer above, asked once for each session.
pub trait Handler: Send + Sync + 'static {
    /// Whether a session may be opened; the words go to the client, as the message of error 4.
    fn admits(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        let _ = handshake;
        Ok(())
    }

    /// A session is open; its open packet goes out before anything that is sent here. Returns where its messages go.
    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn Inbox>;
}

/// Where the messages of one session go. May hold the connection: it is let go of when the session has ended.
pub trait Inbox: Send + Sync + 'static {
    /// A message, in the client's order, one at a time.
    fn message(&self, connection: &Arc<Connection>, message: Message<'_>);

    /// The session has ended. Called once, and never from within a call to the connection.
    fn closed(&self, connection: &Connection, reason: Reason);
}

/// A client's message, where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text packet without its `4`.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
}

/// The version of the protocol, the query's `EIO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// Engine.IO 3: `socket.io-client` 2.
    Three,
    /// Engine.IO 4: `socket.io-client` 3 and 4.
    Four,
}
