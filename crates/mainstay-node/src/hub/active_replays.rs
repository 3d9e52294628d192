//! The session recoveries that are under way in a namespace, and the events that came since they began.

use parking_lot::Mutex;

use socketio_redis::adapter::{Offset, Target};
use socketio_redis::value::Value;

/// Notes that are kept at most. A recovery that needs older ones fails, and its client gets a new session.
const MAX_NOTES: usize = 50_000;

/// The recoveries that are under way, and what has come since they began.
#[derive(Default)]
pub(super) struct ActiveReplays {
    /// How many there are.
    active: usize,
    pub(super) notes: Mutex<EventNotes>,
}

#[derive(Default)]
pub(super) struct EventNotes {
    /// Goes up when notes are thrown away.
    pub(super) generation: u64,
    pub(super) list: Vec<EventNote>,
}

/// An event that came while a recovery was under way.
pub(super) struct EventNote {
    pub(super) place: (u64, u64),
    pub(super) offset: Offset,
    pub(super) data: Vec<Value>,
    pub(super) target: Target,
}

impl ActiveReplays {
    /// Notes an event, where somebody may need it.
    pub(super) fn note(&self, place: (u64, u64), offset: Offset, data: Vec<Value>, target: Target) {
        if self.active == 0 {
            return;
        }
        let mut notes = self.notes.lock();
        if notes.list.len() >= MAX_NOTES {
            notes.list.clear();
            notes.generation += 1;
        }
        notes.list.push(EventNote { place, offset, data, target });
    }

    /// A recovery begins. Gives the generation of the notes, and how many of them are older than it.
    pub(super) fn begin(&mut self) -> (u64, usize) {
        self.active += 1;
        let notes = self.notes.get_mut();
        (notes.generation, notes.list.len())
    }

    /// A recovery has ended.
    pub(super) fn end(&mut self) {
        self.active -= 1;
        if self.active == 0 {
            *self.notes.get_mut() = EventNotes::default();
        }
    }
}
