//! What a server and the other servers ask of each other, one namespace at a time. A server asks the others through a
//! [`NamespaceAdapter`]; they ask the server through its [`LocalNamespace`]. An [`Adapter`] connects the servers and makes
//! the former.
//!
//! Rules:
//! - Operations are sent in the order of the calls, not in the order in which their futures are awaited. Dropping a future
//!   does not take the operation back. So a client's events keep their order although nobody waits.
//! - An adapter speaks to the *other* servers. The caller applies an operation to its own sockets itself, except where
//!   the adapter [delivers own broadcasts](Adapter::delivers_own_broadcasts): there a broadcast that was sent comes back
//!   through [`LocalNamespace::deliver`], and the caller delivers only one that could not be sent.
//! - An adapter holds the `LocalNamespace` weakly and calls it on a task of its own, which it must not block.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::value::Value;

pub use crate::operation::{BroadcastFlags, Operation, RemoteSocket, Room, Session, Target};

/// The future of an adapter's answer.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The answers of the other servers; an error comes with those that were received.
pub type ServerAnswers = Result<Vec<Value>, (RequestError, Vec<Value>)>;

/// The position of an event in the adapter's log. A client that reconnects sends the last one that it received.
pub type Offset = Arc<str>;

/// Waits for the answer of a listener; [`Value::Null`] if there is no listener or it gives none.
pub async fn await_answer(answer: Option<oneshot::Receiver<Value>>) -> Value {
    match answer {
        Some(answer) => answer.await.unwrap_or_default(),
        None => Value::Null,
    }
}

/// An event that clients have not seen. It is encoded once for all of them.
#[derive(Debug)]
pub struct MissedEvent {
    /// The event's name, then its arguments, without the offset.
    pub data: Vec<Value>,
    /// Its place in the log.
    pub offset: Offset,
    encoded: OnceLock<Box<dyn Any + Send + Sync>>,
    weight: usize,
}

impl MissedEvent {
    /// An event of the log.
    pub fn new(data: Vec<Value>, offset: Offset) -> Self {
        // Twice: as it is, and as it is encoded.
        let weight = 2 * data.iter().map(weight).sum::<usize>() + size_of::<Self>();
        Self { data, offset, encoded: OnceLock::new(), weight }
    }

    /// As clients get it: encoded by the first who asks, kept for the others. `None` if it was encoded as another type.
    pub fn encode_once<T: Any + Send + Sync>(&self, encode: impl FnOnce() -> T) -> Option<&T> {
        self.encoded.get_or_init(|| Box::new(encode())).downcast_ref()
    }

    /// About the bytes that it takes in memory.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// About the bytes that a value takes in memory.
fn weight(value: &Value) -> usize {
    let own = size_of::<Value>();
    own + match value {
        Value::Text(text) => text.len(),
        Value::Binary(bytes) => bytes.len(),
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Map(entries) => entries.iter().map(|(key, value)| key.len() + 16 + weight(value)).sum(),
        _ => 0,
    }
}

/// Some of what a client has missed, in order.
#[derive(Debug)]
pub struct MissedPage {
    /// The events.
    pub missed: Vec<Arc<MissedEvent>>,
    /// Nothing more is in the log now.
    pub is_last: bool,
}

/// A session that goes on, with all that its client has missed, in order.
#[derive(Debug)]
pub struct RestoredSession {
    /// What was left.
    pub session: Session,
    /// What came since.
    pub missed: Vec<Arc<MissedEvent>>,
}

/// A session that was found and is not taken yet, and what its client has missed.
pub trait SessionReplay: Send {
    /// The session as it was found.
    fn session(&self) -> &Session;

    /// The next of what was missed. May be asked again after the last page: then it gives what has come since. `None`
    /// where it cannot go on.
    fn next_page(&mut self) -> Pin<Box<dyn Future<Output = Option<MissedPage>> + Send + '_>>;

    /// Takes the session, which is gone from where it was kept; `None` where somebody else has it. Until then whatever
    /// fails leaves it to be claimed again.
    fn claim(self: Box<Self>) -> BoxFuture<Option<Session>>;
}

/// Why an operation was not sent to the other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// Redis has no memory left for it.
    #[error("Redis is out of memory and refuses it")]
    OutOfMemory,
    /// Redis accepts no writes: it is a replica, or it cannot save or replicate them.
    #[error("Redis takes no writes now and refuses it")]
    ReadOnly,
    /// There is no connection to Redis.
    #[error("the other nodes cannot be reached now")]
    Unreachable,
    /// The queue of commands or the table of sessions is full.
    #[error("too much is on its way to the other nodes")]
    QueueFull,
}

/// Why a request to the other servers failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// It was not sent.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// Not all servers answered in time.
    #[error("timeout reached: only {received} responses received out of {expected}")]
    Timeout {
        /// Answers that were received.
        received: usize,
        /// Answers that were expected.
        expected: usize,
    },
}

/// A reply of another server to a broadcast with acknowledgement.
#[derive(Debug, Clone, PartialEq)]
pub enum RemoteAck {
    /// How many clients of a server were asked. Each server sends one, also with no client.
    Count(u64),
    /// A client's acknowledgement: its first argument, `Null` if it sent none.
    Ack(Value),
}

/// The replies of the other servers to a broadcast with acknowledgement.
#[derive(Debug)]
pub struct AckReplies {
    /// How many servers were asked; each sends one [`RemoteAck::Count`].
    pub servers: usize,
    /// The replies as they arrive. Dropping the receiver ends the request.
    pub replies: mpsc::Receiver<RemoteAck>,
}

/// Whether the other servers can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterState {
    /// They can, or there is nothing to reach.
    Up,
    /// Not now. The adapter keeps trying to reconnect.
    Unreachable {
        /// The cause.
        reason: Arc<str>,
    },
    /// Servers with another kind of adapter use the same channels. This server must stop: each would misread the other.
    Incompatible {
        /// What was found, and what to change.
        reason: Arc<str>,
    },
}

/// Connects the servers of a fleet.
pub trait Adapter: Send + Sync {
    /// Makes the adapter of one namespace. It is subscribed from now on, and calls `local` until that is dropped.
    fn namespace(&self, namespace: &Arc<str>, local: Weak<dyn LocalNamespace>) -> Arc<dyn NamespaceAdapter>;

    /// Whether the other servers can be reached now.
    fn state(&self) -> AdapterState;

    /// Whether this server's broadcasts come back through [`LocalNamespace::deliver`], with their offsets.
    fn delivers_own_broadcasts(&self) -> bool;

    /// Whether sessions can be restored after a lost connection.
    fn recovers_sessions(&self) -> bool;

    /// How long a persisted session outlives this server; `None` if it does not.
    fn session_lifetime(&self) -> Option<Duration> {
        None
    }

    /// Unsubscribes, so that no server waits for this one, sends what is queued, and disconnects.
    fn close(&self) -> BoxFuture<()>;
}

/// The other servers in one namespace.
pub trait NamespaceAdapter: Send + Sync {
    /// Sends an operation to the other servers. Gives the offset of a broadcast that is in the log.
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>>;

    /// Sends an event to the clients of the other servers, which acknowledge it.
    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<AckReplies, SendError>>;

    /// The selected sockets of the other servers. It fails if one does not answer: a partial list would look complete.
    fn fetch_sockets(
        &self,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<Vec<RemoteSocket>, RequestError>>;

    /// Sends an event to the other servers; each answers once.
    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> BoxFuture<ServerAnswers>;

    /// How many servers there are, this one included.
    fn server_count(&self) -> BoxFuture<Result<usize, RequestError>>;

    /// The rooms of the other servers.
    fn all_rooms(&self) -> BoxFuture<Result<Vec<Room>, RequestError>>;

    /// Must be called when the first local socket joins a room. What is sent to the room arrives once the future is done.
    fn create_room(&self, room: &Room) -> BoxFuture<()> {
        let _ = room;
        Box::pin(std::future::ready(()))
    }

    /// Must be called when the last local socket has left a room.
    fn delete_room(&self, room: &Room) {
        let _ = room;
    }

    /// Persists the session of a lost connection for as long as its client may take to reconnect; nothing where sessions are
    /// not [recovered](Adapter::recovers_sessions).
    fn persist_session(&self, session: Session) -> BoxFuture<Result<(), SendError>> {
        let _ = session;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Finds the session of a client that reconnects; `None` if there is none, or its offset is not in the log any more.
    fn find_session(&self, pid: &str, offset: &str) -> BoxFuture<Option<Box<dyn SessionReplay>>> {
        let _ = (pid, offset);
        Box::pin(std::future::ready(None))
    }

    /// Removes a session that nobody is to claim.
    fn delete_session(&self, pid: &str) -> BoxFuture<()> {
        let _ = pid;
        Box::pin(std::future::ready(()))
    }

    /// Unsubscribes. [`Adapter::close`] calls it.
    fn close(&self) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }

    /// Takes up a session, and gives all that was missed at once.
    fn restore_session(&self, pid: &str, offset: &str) -> BoxFuture<Option<RestoredSession>> {
        let finding = self.find_session(pid, offset);
        Box::pin(async move {
            let (mut replay, mut missed) = (finding.await?, Vec::new());
            loop {
                let page = replay.next_page().await?;
                missed.extend(page.missed);
                if page.is_last {
                    break;
                }
            }
            let session = replay.claim().await?;
            Some(RestoredSession { session, missed })
        })
    }
}

/// One namespace of this server, as its adapter calls it. No method may block.
pub trait LocalNamespace: Send + Sync {
    /// Applies an operation of another server, or delivers an own broadcast that came back; `offset` is its place in the log.
    fn deliver(&self, operation: Operation, offset: Option<Offset>);

    /// Sends an event to the clients that are meant, and gives their number and then their answers; the channel ends when
    /// all have answered or the time is over.
    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: &Target,
        flags: &BroadcastFlags,
    ) -> (u64, mpsc::Receiver<Value>);

    /// The selected sockets of this server.
    fn fetch_sockets(&self, target: &Target) -> Vec<RemoteSocket>;

    /// The rooms of this server.
    fn rooms(&self) -> Vec<Room>;

    /// An event of another server that wants an answer; `None` where nobody here listens for it. The adapter answers for
    /// a node where nobody does: a server that counts must answer, or the one that asks waits in vain.
    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> Option<oneshot::Receiver<Value>>;
}
