//! The newest broadcasts of a stream, in memory, from which clients that come back get what they have missed.
//!
//! Every entry is read anyway, so a storm of clients that come back costs no reads of Redis: what is older than the tail
//! is read backwards into it, once for all of them, as far as there is room. The tail is bounded in bytes and in entries;
//! the oldest go first.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::adapter::{MissedEvent, MissedPage, Room, Target};
use crate::offset::parse_offset;
use crate::wire::envelope::{ClusterMessage, Envelope};

/// Where an entry stands in its stream: milliseconds and sequence.
pub(super) type Position = (u64, u64);

/// Bytes that the tails of all streams of a node keep, as [`MissedEvent::weight`] counts them.
pub(super) const MAX_BYTES: usize = 32 << 20;

/// Where a tail begins before anything is read.
const UNKNOWN: Position = (u64::MAX, u64::MAX);

/// Entries that a tail keeps.
const MAX_ENTRIES: usize = 65_536;

/// Events in one page of what a client has missed, and their bytes. A client's queue takes several.
const PAGE_EVENTS: usize = 256;
const PAGE_BYTES: usize = 256 << 10;

/// A broadcast of the stream.
pub(super) struct StreamBroadcast {
    /// Where it stands.
    pub at: Position,
    /// Its namespace.
    pub nsp: Arc<str>,
    /// What its clients get.
    pub missed: Arc<MissedEvent>,
    /// Who they are.
    pub target: Target,
}

/// Who has missed something.
pub(super) struct Audience {
    /// The namespace.
    pub nsp: Arc<str>,
    /// The rooms that it is in.
    pub rooms: HashSet<Arc<str>>,
}

impl Audience {
    /// Whether a broadcast is for it.
    pub(super) fn receives(&self, broadcast: &StreamBroadcast) -> bool {
        let is_in = |rooms: &[Room]| rooms.iter().any(|room| self.rooms.contains(&room.name));
        let Target { rooms, except } = &broadcast.target;
        broadcast.nsp == self.nsp && (rooms.is_empty() || is_in(rooms)) && !is_in(except)
    }
}

/// The tail of one stream.
pub(super) struct StreamTail {
    most_bytes: usize,
    state: Mutex<TailState>,
    /// Held while older entries are read into it.
    pub loading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct TailState {
    /// Everything after this position is here.
    start: Position,
    entries: VecDeque<StreamBroadcast>,
    bytes: usize,
}

impl StreamTail {
    /// One that keeps so many bytes.
    pub(super) fn new(most_bytes: usize) -> Self {
        let state = TailState { start: UNKNOWN, ..TailState::default() };
        Self { most_bytes, state: Mutex::new(state), loading: tokio::sync::Mutex::default() }
    }

    /// What came before is not known, or was not all read: it begins after `from`.
    pub(super) fn restart(&self, from: Position) {
        *self.state.lock() = TailState { start: from, ..TailState::default() };
    }

    /// Keeps an entry that was read, if it is a broadcast to clients.
    pub(super) fn record(&self, id: &str, envelope: &Envelope) {
        let ClusterMessage::Broadcast { data, target, request: None, .. } = &envelope.message else { return };
        if let Some(at) = parse_offset(id).filter(|_| self.most_bytes > 0) {
            let missed = Arc::new(MissedEvent::new(data.clone(), id.into()));
            self.push(StreamBroadcast {
                at,
                nsp: envelope.nsp.as_str().into(),
                missed,
                target: target.clone(),
            });
        }
    }

    /// The next broadcast of the stream.
    pub(super) fn push(&self, broadcast: StreamBroadcast) {
        let mut state = self.state.lock();
        state.bytes += broadcast.missed.weight();
        state.entries.push_back(broadcast);
        while state.bytes > self.most_bytes || state.entries.len() > MAX_ENTRIES {
            let Some(first) = state.entries.pop_front() else { break };
            state.bytes -= first.missed.weight();
            state.start = first.at;
        }
    }

    /// Where older entries are to be read up to, if they are wanted back to `back` and there is room for more.
    pub(super) fn load_until(&self, back: Position) -> Option<Position> {
        let state = self.state.lock();
        let has_room = state.bytes < self.most_bytes / 4 * 3 && state.entries.len() < MAX_ENTRIES / 4 * 3;
        (state.start >= back && state.start != UNKNOWN && has_room).then_some(state.start)
    }

    /// Older broadcasts, the newest first, that were read up to `until`; with them everything after `from` is here.
    pub(super) fn extend_back(&self, until: Position, older: Vec<StreamBroadcast>, from: Position) {
        let mut state = self.state.lock();
        // The oldest may have gone meanwhile.
        if state.start != until {
            return;
        }
        for broadcast in older {
            state.bytes += broadcast.missed.weight();
            state.entries.push_front(broadcast);
        }
        state.start = from;
    }

    /// Whether the broadcast at a position is here; none where that is not known.
    pub(super) fn contains(&self, at: Position) -> Option<bool> {
        let state = self.state.lock();
        (at > state.start).then(|| state.entries.binary_search_by_key(&at, |entry| entry.at).is_ok())
    }

    /// Where it begins.
    pub(super) fn from(&self) -> Position {
        self.state.lock().start
    }

    /// What a reader has missed after `seen`, some of it, and how far that goes; none if it begins before the tail.
    pub(super) fn page(&self, reader: &Audience, seen: &mut Position) -> Option<MissedPage> {
        let state = self.state.lock();
        if *seen < state.start {
            return None;
        }
        let first = state.entries.partition_point(|entry| entry.at <= *seen);
        let (mut page, mut bytes) = (MissedPage { missed: Vec::new(), is_last: true }, 0);
        for broadcast in state.entries.range(first..) {
            if page.missed.len() >= PAGE_EVENTS || bytes >= PAGE_BYTES {
                page.is_last = false;
                break;
            }
            if reader.receives(broadcast) {
                bytes += broadcast.missed.weight();
                page.missed.push(broadcast.missed.clone());
            }
            *seen = broadcast.at;
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    fn broadcast(number: u64, room: &str) -> StreamBroadcast {
        let rooms = if room.is_empty() { Vec::new() } else { vec![Room::text(room)] };
        let missed = MissedEvent::new(vec![Value::from(number)], format!("{number}-0").into());
        StreamBroadcast {
            at: (number, 0),
            nsp: "/".into(),
            missed: Arc::new(missed),
            target: Target { rooms, except: Vec::new() },
        }
    }

    fn reader(rooms: &[&str]) -> Audience {
        Audience { nsp: "/".into(), rooms: rooms.iter().map(|room| Arc::from(*room)).collect() }
    }

    fn numbers(page: &MissedPage) -> Vec<u64> {
        page.missed.iter().filter_map(|missed| missed.data[0].as_u64()).collect()
    }

    #[test]
    fn a_reader_gets_what_it_is_meant_to_have_after_what_it_has_seen_page_by_page() {
        let tail = StreamTail::new(MAX_BYTES);
        tail.restart((10, 0));
        (11..611).for_each(|number| tail.push(broadcast(number, ["", "a", "b"][number as usize % 3])));
        let (mut seen, mut got) = ((10, 0), Vec::new());
        loop {
            let page = tail.page(&reader(&["a"]), &mut seen).unwrap();
            assert!(page.missed.len() <= PAGE_EVENTS);
            got.extend(numbers(&page));
            if page.is_last {
                break;
            }
        }
        assert_eq!(got, (11..611).filter(|number| number % 3 != 2).collect::<Vec<_>>());
        assert_eq!(seen, (610, 0));
        assert_eq!(
            (tail.contains((600, 0)), tail.contains((600, 1)), tail.contains((10, 0))),
            (Some(true), Some(false), None)
        );
        assert!(tail.page(&reader(&[]), &mut (9, 9)).is_none());
    }

    #[test]
    fn the_oldest_go_when_it_is_full_and_come_back_when_somebody_needs_them() {
        let weight = broadcast(1, "").missed.weight();
        let tail = StreamTail::new(weight * 8);
        tail.restart((0, 0));
        (1..=20).for_each(|number| tail.push(broadcast(number, "")));
        assert_eq!(tail.from(), (12, 0));
        assert_eq!(tail.load_until((10, 0)), None, "there is no room");
        tail.restart((20, 0));
        assert_eq!((tail.load_until((18, 0)), tail.load_until((21, 0))), (Some((20, 0)), None));
        tail.extend_back((20, 0), vec![broadcast(20, ""), broadcast(19, "")], (18, 0));
        tail.extend_back((20, 0), vec![broadcast(20, "")], (17, 0));
        assert_eq!(numbers(&tail.page(&reader(&[]), &mut (18, 0)).unwrap()), [19, 20]);
        assert!(tail.page(&reader(&[]), &mut (17, 0)).is_none());
    }
}
