//! What clients talk to: who is let in, and what becomes of their events.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use crate::auth::User;
use crate::engine_io::{Connection, Handshake};
use crate::hub::{Namespace, Socket};
use socketio_redis::packet;
use socketio_redis::value::Value;

/// A client that wants into a namespace.
pub struct ConnectRequest<'a> {
    /// Which one, with its slash.
    pub namespace: &'a str,
    /// What it sent to authenticate itself: an object. Clients of Engine.IO 3 send none.
    pub auth: Option<&'a Value>,
    /// What the first request of its connection said.
    pub handshake: &'a Handshake,
}

/// A client that is let in.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Its user.
    pub user: Option<User>,
    /// When its connection must end.
    pub expires: Option<SystemTime>,
    /// What is kept with it from the start, unless an earlier session goes on.
    pub data: Value,
}

/// A client that is not let in, with what it gets as `connect_error`.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectError {
    /// The words.
    pub message: Cow<'static, str>,
    /// What an application may add for its clients.
    pub data: Option<Value>,
}

impl ConnectError {
    /// A refusal with these words alone.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), data: None }
    }
}

/// What clients talk to. Called on a connection's task; must not block.
pub trait Application: Send + Sync + 'static {
    /// Whether a client may come into a namespace. Also asked of one that comes back for its session.
    fn admit(&self, asking: &ConnectRequest<'_>) -> Result<Admission, ConnectError> {
        let _ = asking;
        Ok(Admission::default())
    }

    /// A client is in, and has been told so. A session that goes on has its rooms and data already.
    fn connected(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, is_recovered: bool) {
        let _ = (namespace, socket, is_recovered);
    }

    /// An event of a client: its name and arguments, and where the answer goes when one is wanted.
    fn event(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, data: Vec<Value>, reply: Option<Reply>);

    /// A client has gone, for this reason in Node's words. Called once for each that was in.
    fn disconnected(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, reason: &'static str) {
        let _ = (namespace, socket, reason);
    }
}

/// Where the answer to one event goes.
pub struct Reply {
    pub(super) connection: Arc<Connection>,
    pub(super) namespace: Arc<str>,
    /// The client's number of the event.
    pub(super) number: u64,
}

impl Reply {
    /// Answers. A client that has gone gets nothing.
    pub fn send(self, data: &[Value]) {
        self.connection.send_all(&packet::encode_ack(&self.namespace, self.number, data));
    }
}
