//! What an Engine.IO server calls: the layer above, once for each session, and where that session's messages go.

use std::borrow::Cow;
use std::sync::Arc;

use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::ending::CloseReason;
use crate::engine_io::session::handshake::Handshake;
use crate::engine_io::session::packet::Message;

/// The layer above, asked once for each session.
pub trait ConnectionHandler: Send + Sync + 'static {
    /// Whether a session may be opened; the words go to the client, as the message of error 4.
    fn admit(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        let _ = handshake;
        Ok(())
    }

    /// A session is open; its open packet goes out before anything that is sent here. Returns where its messages go.
    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn MessageHandler>;
}

/// Where the messages of one session go. May hold the connection: it is let go of when the session has ended.
pub trait MessageHandler: Send + Sync + 'static {
    /// A message, in the client's order, one at a time.
    fn message(&self, connection: &Arc<Connection>, message: Message<'_>);

    /// The session has ended. Called once, and never from within a call to the connection.
    fn closed(&self, connection: &Connection, reason: CloseReason);
}
