//! One client in one namespace: who it is, its rooms, and the way to it.
//!
//! There are as many of these as clients, so it holds little: nothing is allocated for what a client does not use.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::event::Event;
use super::socket_rooms::SocketRooms;
use crate::auth::User;
use socketio_redis::adapter::{RemoteSocket, Room};
use socketio_redis::value::Value;

/// The way to a client, whichever protocol it speaks. Nothing here blocks.
pub trait ClientConnection: Send + Sync {
    /// Sends an event.
    fn event(&self, event: &Event<'_>);

    /// Whether an event would go out at once; a volatile one is dropped where it would not.
    fn is_ready(&self) -> bool;

    /// Whether its connection has ended.
    fn is_gone(&self) -> bool {
        false
    }

    /// Whether it can answer an event; one that cannot is not counted among those that were asked.
    fn can_answer(&self) -> bool;

    /// Takes the socket out of its namespace, which the client is told; `close` ends its connection, too.
    fn disconnect(&self, socket: &Arc<Socket>, close: bool);

    /// The handshake, with Node's keys: headers, time, address, xdomain, secure, issued, url, query, auth.
    fn handshake(&self, socket: &Socket) -> Value;
}

/// A client as it comes into a namespace.
pub struct NewSocket {
    /// Its id.
    pub id: Arc<str>,
    /// The secret by which its session can be taken up again; `None`: it cannot.
    pub pid: Option<Box<str>>,
    /// The way to it.
    pub client: Arc<dyn ClientConnection>,
    /// Its user.
    pub user: Option<User>,
    /// What the application keeps with it.
    pub data: Value,
}

/// One client in one namespace.
pub struct Socket {
    /// Counts the sockets of a namespace up; the order of coming.
    pub(super) serial: u64,
    /// Its id, which is also a room with it alone inside.
    id: Arc<str>,
    /// See [`NewSocket::pid`].
    pid: Option<Box<str>>,
    client: Arc<dyn ClientConnection>,
    user: Option<User>,
    /// What changes.
    pub(super) state: Mutex<SocketState>,
    /// Of a session that was taken up again: events up to here have been sent.
    pub(super) replayed_to: OnceLock<(u64, u64)>,
}

/// What changes about a socket.
#[derive(Default)]
pub(super) struct SocketState {
    /// Its rooms, without its own.
    pub(super) rooms: SocketRooms,
    data: Value,
    /// It has left the namespace, and comes into no room any more.
    pub(super) is_gone: bool,
    /// Its session is to be written ahead.
    pub(super) needs_checkpoint: bool,
    /// Its session was, and is to be kept up.
    pub(super) has_checkpoint: bool,
}

impl Socket {
    pub(super) fn new(serial: u64, arrival: NewSocket) -> Arc<Self> {
        let NewSocket { id, pid, client, user, data } = arrival;
        let state = Mutex::new(SocketState { data, ..SocketState::default() });
        Arc::new(Self { serial, id, pid, client, user, state, replayed_to: OnceLock::new() })
    }

    /// Its Socket.IO id, or that of a client of the JSON protocol.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The secret by which its session can be taken up again.
    pub fn pid(&self) -> Option<&str> {
        self.pid.as_deref()
    }

    /// The way to it.
    pub fn client(&self) -> &dyn ClientConnection {
        &*self.client
    }

    /// Its user.
    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// What the application keeps with it.
    pub fn data(&self) -> Value {
        self.state.lock().data.clone()
    }

    /// Keeps something with it; other nodes see it, and it survives a recovery.
    pub(crate) fn set_data(&self, data: Value) {
        self.state.lock().data = data;
    }

    /// Whether it is in a room; in its own it always is.
    pub fn is_in(&self, room: &str) -> bool {
        *self.id == *room || self.state.lock().rooms.contains(room)
    }

    /// How many rooms it is in, its own not among them.
    pub(crate) fn room_count(&self) -> usize {
        self.state.lock().rooms.len()
    }

    /// Its rooms, its own first.
    pub fn rooms(&self) -> Vec<Room> {
        let own = Room { name: self.id.clone(), numeric: false };
        std::iter::once(own).chain(self.state.lock().rooms.iter().cloned()).collect()
    }

    /// What other nodes are told about it.
    pub fn facts(&self) -> RemoteSocket {
        let (id, handshake) = ((*self.id).into(), self.client.handshake(self));
        RemoteSocket { id, handshake, rooms: self.rooms(), data: self.data() }
    }
}
