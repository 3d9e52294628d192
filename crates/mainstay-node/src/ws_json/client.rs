//! One client of the JSON protocol, as the hub and the application see it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::auth::Identity;
use crate::hub::{self, Event, Socket};
use socketio_redis::value::Value;

use super::message;
use super::outbox::{Outbox, OutboxEnd};

/// The answer to a request: its fields, or what is wrong with the request.
pub(crate) type ReplyFuture =
    Pin<Box<dyn Future<Output = Result<Vec<(&'static str, Value)>, String>> + Send>>;

/// What clients of the JSON protocol talk to.
pub(crate) trait WsJsonHandler: Send + Sync + 'static {
    /// A client has connected.
    fn connected(&self, client: &Arc<WsJsonClient>);

    /// A request of a client: its type and its other fields.
    fn request(&self, client: &Arc<WsJsonClient>, word: &str, fields: &[(Box<str>, Value)]) -> ReplyFuture;

    /// A client has gone. Called once.
    fn disconnected(&self, client: &WsJsonClient);
}

/// One client.
#[derive(Debug)]
pub(crate) struct WsJsonClient {
    /// Its id, as long as a Socket.IO id and as hard to guess.
    pub id: Arc<str>,
    /// Who it is.
    pub identity: Identity,
    /// Its handshake, with Node's keys.
    pub(super) handshake: Value,
    pub(super) outbox: Outbox,
}

impl WsJsonClient {
    /// Sends a text message. Says whether it could be put in the queue.
    pub(crate) fn send(&self, message: &Bytes) -> bool {
        self.outbox.send(message)
    }
}

/// It cannot answer an event, so it is not asked. A recovery is not for it either, since it has no offsets.
impl hub::ClientConnection for WsJsonClient {
    fn event(&self, event: &Event<'_>) {
        let text = event.text(|data| message::event(data).unwrap_or_default());
        if !text.is_empty() {
            self.send(text);
        }
    }

    fn is_ready(&self) -> bool {
        self.outbox.is_empty()
    }

    fn can_answer(&self) -> bool {
        false
    }

    fn disconnect(&self, _: &Arc<Socket>, _close: bool) {
        // Such a client is in no namespace but `/`.
        self.outbox.end(OutboxEnd::Policy("disconnected"));
    }

    fn handshake(&self, _: &Socket) -> Value {
        self.handshake.clone()
    }
}
