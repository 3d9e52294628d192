//! Where the messages of one session go.

use crate::engine_io::session::ending::CloseReason;
use crate::engine_io::session::packet::Message;

/// Receives the messages of one session, and its end. It may hold the connection: it is dropped when the session has
/// ended.
pub trait MessageHandler: Send + Sync + 'static {
    /// A message, in the client's order, one at a time.
    fn message(&self, message: Message<'_>);

    /// The session has ended. Called once, and never from within a call to the connection.
    fn closed(&self, reason: CloseReason);
}
