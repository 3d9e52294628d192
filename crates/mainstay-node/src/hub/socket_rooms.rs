//! The rooms of one socket: a set by name.
//!
//! A sorted list: most sockets are in two or three rooms, for which it is the smallest, and one that is in thousands
//! finds a room among them in a few steps.

use socketio_redis::adapter::Room;

/// The rooms of one socket, sorted by name.
#[derive(Debug, Default)]
pub(super) struct SocketRooms(Vec<Room>);

impl SocketRooms {
    /// Puts a room in; false when it is there.
    pub(super) fn insert(&mut self, room: &Room) -> bool {
        match self.find(&room.name) {
            Ok(_) => false,
            Err(place) => {
                self.0.insert(place, room.clone());
                true
            }
        }
    }

    /// Takes a room out, when it is there.
    pub(super) fn remove(&mut self, name: &str) -> Option<Room> {
        self.find(name).ok().map(|place| self.0.remove(place))
    }

    /// Whether a room is there.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them, by name.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, Room> {
        self.0.iter()
    }

    /// All of them, taken out.
    pub(super) fn take(&mut self) -> Vec<Room> {
        std::mem::take(&mut self.0)
    }

    /// Where a room is, or would be.
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|room| (*room.name).cmp(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_there_once_and_found_by_its_name() {
        let mut rooms = SocketRooms::default();
        let names = ["b", "a", "c", "b", "a"];
        let added: Vec<bool> = names.iter().map(|name| rooms.insert(&Room::text(name))).collect();
        assert_eq!(added, [true, true, true, false, false]);
        assert!(!rooms.insert(&Room { name: "a".into(), numeric: true }), "names are compared as text");
        assert_eq!(rooms.iter().map(|room| &*room.name).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(rooms.remove("b").map(|room| room.name.to_string()).as_deref(), Some("b"));
        assert_eq!(
            (rooms.remove("b"), rooms.contains("b"), rooms.contains("c"), rooms.len()),
            (None, false, true, 2)
        );
        assert_eq!((rooms.take().len(), rooms.len()), (2, 0));
    }
}
