//! The seam between a node's hub and the other nodes: what the hub asks of them ([`Adapter`]) and what they ask of the
//! hub ([`Local`]). One adapter stands for one namespace of one node; a [`Bus`] makes them.
//!
//! Rules:
//! - A call takes its place in the order when it is made, not when its future is awaited; a future that is dropped takes
//!   nothing back. So a client's events keep their order although nobody waits.
//! - An adapter speaks to the *other* nodes. The hub applies an operation to its own clients itself, except where the
//!   bus [delivers own broadcasts](Bus::delivers_own): there a broadcast that was sent comes back through
//!   [`Local::deliver`], and only one that could not be sent is delivered by the hub at once.
//! - An adapter holds its hub weakly, and calls it on a task of its own; the hub never blocks.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::value::Value;

/// What an adapter will have to say.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the other servers answered; with a fault come the answers that were heard.
pub type ServerAnswers = Result<Vec<Value>, (RequestError, Vec<Value>)>;

/// Where an event stands in the bus's log: what a client says it saw last when it comes back.
pub type Offset = Arc<str>;

/// A room's name. Node.js keeps `42` and `"42"` apart, so whether it was a number travels along; a node compares names
/// as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room {
    /// The name as text.
    pub name: Arc<str>,
    /// It was a number where it came from.
    pub numeric: bool,
}

impl Room {
    /// A room whose name is text.
    pub fn text(name: &str) -> Self {
        Self { name: Arc::from(name), numeric: false }
    }
}

/// Which sockets are meant: those in any of `rooms` (all, when there is none) and in none of `except`; each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Target {
    /// In one of these.
    pub rooms: Vec<Room>,
    /// In none of these.
    pub except: Vec<Room>,
}

/// How a broadcast is meant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BroadcastFlags {
    /// It may be dropped for a client that is not ready, and is not replayed.
    pub volatile: bool,
    /// Whether to compress it, where somebody said so.
    pub compress: Option<bool>,
    /// How long acknowledgements are waited for.
    pub timeout: Option<Duration>,
    /// Exactly one client is meant, and its answer alone is wanted.
    pub expect_single_response: bool,
}

/// What a server answers to an event: what its listener said, and nothing ([`Value::Null`]) where it said nothing or
/// there is none.
pub async fn await_answer(answer: Option<oneshot::Receiver<Value>>) -> Value {
    match answer {
        Some(answer) => answer.await.unwrap_or_default(),
        None => Value::Null,
    }
}

/// What one node has all do.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Send an event: its name and arguments.
    Broadcast {
        /// The event's name, then its arguments.
        data: Vec<Value>,
        /// To whom.
        target: Target,
        /// How.
        flags: BroadcastFlags,
    },
    /// Put sockets into rooms.
    Join {
        /// Which sockets.
        target: Target,
        /// Into which rooms.
        rooms: Vec<Room>,
    },
    /// Take sockets out of rooms.
    Leave {
        /// Which sockets.
        target: Target,
        /// Out of which rooms.
        rooms: Vec<Room>,
    },
    /// Disconnect sockets from the namespace.
    Disconnect {
        /// Which sockets.
        target: Target,
        /// Their connections end, too.
        close: bool,
    },
    /// An event for the other servers, not for clients.
    ServerSideEmit {
        /// The event's name, then its arguments.
        data: Vec<Value>,
    },
}

/// A socket as other servers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteSocket {
    /// Its Socket.IO id.
    pub id: Box<str>,
    /// The handshake, with Node.js' keys: headers, time, address, xdomain, secure, issued, url, query, auth.
    pub handshake: Value,
    /// The rooms that it is in, its own included.
    pub rooms: Vec<Room>,
    /// What the application keeps with it.
    pub data: Value,
}

/// What a connection leaves behind so that any node can take it up again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Session {
    /// The socket's id, which it keeps.
    pub sid: Box<str>,
    /// The secret by which its client claims it.
    pub pid: Box<str>,
    /// Its rooms, its own included.
    pub rooms: Vec<Room>,
    /// What the application kept with it.
    pub data: Value,
    /// The name of its user, who alone may take it up; `None`: it had none.
    pub user: Option<Box<str>>,
    /// Its namespace; `None` where that was not written down, as Node.js does not.
    pub namespace: Option<Box<str>>,
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

/// Why something did not get to the other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// Redis has no memory left for it.
    #[error("Redis is out of memory and refuses it")]
    OutOfMemory,
    /// Redis is there, and takes no writes: a replica, or a server that cannot save or replicate them.
    #[error("Redis takes no writes now and refuses it")]
    ReadOnly,
    /// There is no connection to them now.
    #[error("the other nodes cannot be reached now")]
    Unreachable,
    /// It is too large, or too much is on its way already.
    #[error("too much is on its way to the other nodes")]
    QueueFull,
}

/// Why a question to the other nodes has no whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// It was not asked.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// Not all answered in time.
    #[error("timeout reached: only {received} responses received out of {expected}")]
    Timeout {
        /// Answers that came.
        received: usize,
        /// Answers that should have come.
        expected: usize,
    },
}

/// What comes back for a broadcast with acknowledgement, from the other nodes.
#[derive(Debug, Clone, PartialEq)]
pub enum RemoteAck {
    /// A node says how many of its clients were asked. One from each node, also from those with none.
    Count(u64),
    /// A client's answer: its first argument; `Null` when it sent none.
    Ack(Value),
}

/// The answers of the other nodes to a broadcast with acknowledgement.
#[derive(Debug)]
pub struct AckReplies {
    /// How many [`RemoteAck::Count`]s will come, if every node answers.
    pub servers: usize,
    /// They and the clients' answers, as they come. Dropping it ends the request.
    pub replies: mpsc::Receiver<RemoteAck>,
}

/// Whether the other nodes can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterState {
    /// They can; or there is nothing to reach.
    Up,
    /// Not now; it is tried again and again.
    Unreachable {
        /// What is in the way.
        reason: Arc<str>,
    },
    /// This node must not go on: what it would say breaks other servers, or theirs breaks it.
    Incompatible {
        /// What is wrong, and what would be right.
        reason: Arc<str>,
    },
}

/// What connects the nodes.
pub trait Adapter: Send + Sync {
    /// The adapter for one namespace; it listens from now on, and calls `local` until that is gone.
    fn namespace(&self, namespace: &Arc<str>, local: Weak<dyn LocalNamespace>) -> Arc<dyn NamespaceAdapter>;

    /// Whether the other nodes can be reached now.
    fn state(&self) -> AdapterState;

    /// Whether the node's own broadcasts come back through [`Local::deliver`], with their offsets.
    fn delivers_own_broadcasts(&self) -> bool;

    /// Whether sessions can be taken up again after their connection broke.
    fn recovers_sessions(&self) -> bool;

    /// How long a session that is kept stays when this node dies; `None`: it does not.
    fn session_lifetime(&self) -> Option<Duration> {
        None
    }

    /// Stops listening, so that nobody counts on this node, and then lets go.
    fn close(&self) -> BoxFuture<()>;
}

/// The other nodes, as far as one namespace goes.
pub trait NamespaceAdapter: Send + Sync {
    /// Has the other nodes do something. Gives the offset of an event that went into the log.
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>>;

    /// Sends an event to the other nodes' clients, and their answers come back.
    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<AckReplies, SendError>>;

    /// The sockets of the other nodes that are meant. All or a fault: a partial list would pass for a whole one.
    fn fetch_sockets(
        &self,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<Vec<RemoteSocket>, RequestError>>;

    /// An event for the other servers; each answers once.
    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> BoxFuture<ServerAnswers>;

    /// How many servers there are, this one included.
    fn server_count(&self) -> BoxFuture<Result<usize, RequestError>>;

    /// The rooms of the other nodes.
    fn all_rooms(&self) -> BoxFuture<Result<Vec<Room>, RequestError>>;

    /// The first of this node's sockets has come into a room. When the future is done, what is sent to the room arrives.
    fn create_room(&self, room: &Room) -> BoxFuture<()>;

    /// The last of this node's sockets has left a room.
    fn delete_room(&self, room: &Room);

    /// Keeps what a connection left behind, for as long as a client may take to come back.
    fn persist_session(&self, session: Session) -> BoxFuture<Result<(), SendError>>;

    /// Finds a session that a client claims, and whose last event it has seen is still known. `None` where there is none.
    fn find_session(&self, pid: &str, offset: &str) -> BoxFuture<Option<Box<dyn SessionReplay>>>;

    /// Removes a session that nobody is to claim.
    fn delete_session(&self, pid: &str) -> BoxFuture<()>;

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

/// One namespace of this node, as its adapter calls it. Nothing here blocks.
pub trait LocalNamespace: Send + Sync {
    /// Does what another node asks, or delivers an own broadcast that came back; `offset` is the event's in the log.
    fn deliver(&self, operation: Operation, offset: Option<Offset>);

    /// Sends an event to the clients that are meant, and gives their number and then their answers; the channel ends when
    /// all have answered or the time is over.
    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: &Target,
        flags: &BroadcastFlags,
    ) -> (u64, mpsc::Receiver<Value>);

    /// The sockets of this node that are meant.
    fn fetch_sockets(&self, target: &Target) -> Vec<RemoteSocket>;

    /// The rooms of this node.
    fn rooms(&self) -> Vec<Room>;

    /// An event of another server that wants an answer; `None` where nobody here listens for it. The adapter answers for
    /// a node where nobody does: a server that counts must answer, or the one that asks waits in vain.
    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> Option<oneshot::Receiver<Value>>;
}
