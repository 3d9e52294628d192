//! The layer above an Engine.IO server, which it calls once for each session.

use std::borrow::Cow;
use std::sync::Arc;

use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::handshake::Handshake;
use crate::engine_io::session::message_handler::MessageHandler;

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
