//! What servers have each other do, and what they tell each other of their sockets: data.

use std::sync::Arc;
use std::time::Duration;

use crate::value::Value;

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

/// What one server has the others do.
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

/// The state of a lost connection, from which any server can restore it.
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
