//! Who is in a namespace and in which of its rooms: an index from rooms to sockets, beside each socket's own list.
//!
//! Both tables are split into shards with a lock each, so that clients on different cores seldom meet. A socket's own
//! room is not in the index: its id leads to it. Lock order: a socket's state, then a shard; never two shards.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus::IntGauge;

use super::socket::Socket;
use socketio_redis::adapter::{Room, Target};

/// More than the cores of any machine that a node runs on, so two of them seldom want the same lock.
const SHARDS: usize = 64;

/// A room's sockets in their order of coming. A tree is dense in memory, and leaving a large room is cheap.
type RoomMembers = BTreeMap<u64, Arc<Socket>>;

/// One shard of a table by names.
type Shard<T> = RwLock<HashMap<Arc<str>, T>>;

/// The sockets of a namespace, by id and by room.
pub(super) struct RoomIndex {
    sockets: Box<[Shard<Arc<Socket>>]>,
    rooms: Box<[Shard<RoomMembers>]>,
    /// Names come from clients, so where they fall must not be theirs to choose.
    hasher: RandomState,
    /// Counts the rooms of all namespaces.
    count: IntGauge,
}

impl RoomIndex {
    pub(super) fn new(count: IntGauge) -> Self {
        Self {
            sockets: (0..SHARDS).map(|_| RwLock::default()).collect(),
            rooms: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            count,
        }
    }

    fn shard_of(&self, name: &str) -> usize {
        self.hasher.hash_one(name) as usize % SHARDS
    }

    /// Puts a socket into the namespace.
    pub(super) fn add(&self, socket: &Arc<Socket>) {
        self.sockets[self.shard_of(socket.id())].write().insert(socket.id().clone(), socket.clone());
    }

    /// Takes a socket out of the namespace and its rooms. Gives the rooms that it has left empty; `None` when it had
    /// left before.
    pub(super) fn remove(&self, socket: &Arc<Socket>) -> Option<Vec<Room>> {
        let mut state = socket.state.lock();
        if std::mem::replace(&mut state.is_gone, true) {
            return None;
        }
        if let Entry::Occupied(entry) =
            self.sockets[self.shard_of(socket.id())].write().entry(socket.id().clone())
            && Arc::ptr_eq(entry.get(), socket)
        {
            entry.remove();
        }
        let mut rooms = state.rooms.take();
        rooms.retain(|room| self.remove_from_room(socket, room));
        Some(rooms)
    }

    /// Puts a socket into rooms. Gives those that were empty.
    pub(super) fn join(&self, socket: &Arc<Socket>, rooms: &[Room]) -> Vec<Room> {
        let mut opened = Vec::new();
        let mut state = socket.state.lock();
        for room in rooms {
            if state.is_gone || *room.name == **socket.id() || !state.rooms.insert(room) {
                continue;
            }
            let mut shard = self.rooms[self.shard_of(&room.name)].write();
            let inside = shard.entry(room.name.clone()).or_default();
            if inside.is_empty() {
                self.count.inc();
                opened.push(room.clone());
            }
            inside.insert(socket.serial, socket.clone());
        }
        opened
    }

    /// Takes a socket out of rooms. Gives those that are empty now.
    pub(super) fn leave(&self, socket: &Arc<Socket>, rooms: &[Room]) -> Vec<Room> {
        let mut emptied = Vec::new();
        let mut state = socket.state.lock();
        for room in rooms {
            let Some(room) = state.rooms.remove(&room.name) else { continue };
            if self.remove_from_room(socket, &room) {
                emptied.push(room);
            }
        }
        emptied
    }

    /// Says whether the room is empty now.
    fn remove_from_room(&self, socket: &Socket, room: &Room) -> bool {
        let mut shard = self.rooms[self.shard_of(&room.name)].write();
        let Some(inside) = shard.get_mut(&room.name) else { return false };
        inside.remove(&socket.serial);
        if !inside.is_empty() {
            return false;
        }
        shard.remove(&room.name);
        self.count.dec();
        true
    }

    /// The sockets that are meant, each once. They are named before anything is sent, so no lock is held meanwhile.
    pub(super) fn select(&self, target: &Target) -> Vec<Arc<Socket>> {
        let mut chosen = Vec::new();
        if target.rooms.is_empty() {
            for shard in &self.sockets {
                chosen.extend(shard.read().values().cloned());
            }
        }
        for room in &target.rooms {
            if let Some(inside) = self.rooms[self.shard_of(&room.name)].read().get(&room.name) {
                chosen.extend(inside.values().cloned());
            }
            chosen.extend(self.find(&room.name));
        }
        if target.rooms.len() > 1 {
            chosen.sort_unstable_by_key(|socket| socket.serial);
            chosen.dedup_by_key(|socket| socket.serial);
        }
        if !target.except.is_empty() {
            chosen.retain(|socket| !target.except.iter().any(|room| socket.is_in(&room.name)));
        }
        chosen
    }

    /// The socket of that id.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Socket>> {
        self.sockets[self.shard_of(id)].read().get(id).cloned()
    }

    /// How many sockets there are.
    pub(super) fn len(&self) -> usize {
        self.sockets.iter().map(|shard| shard.read().len()).sum()
    }

    /// How many are in a room.
    pub(super) fn count_in(&self, room: &str) -> usize {
        self.rooms[self.shard_of(room)].read().get(room).map_or(0, BTreeMap::len)
    }

    /// All rooms, the sockets' own among them.
    pub(super) fn rooms(&self) -> Vec<Room> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for shard in &self.rooms {
            names.extend(shard.read().keys().cloned());
        }
        for shard in &self.sockets {
            names.extend(shard.read().keys().cloned());
        }
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| Room { name, numeric: false }).collect()
    }
}
