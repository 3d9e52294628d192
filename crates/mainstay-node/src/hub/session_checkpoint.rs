//! Sessions are written to the bus while their connections are alive, so that the clients of a node that crashes can go
//! on elsewhere.
//!
//! Node.js writes a session when its connection ends, which a killed process does not live to do. Where the bus outlives
//! the node, each socket's session is written a moment after it came or its rooms changed, and again before the bus
//! forgets it. A client that says good-bye takes its session back. While Redis is away nothing is written; what it lost
//! is there again after half the time that sessions are kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::socket::Socket;

/// How long changes are collected: a client that joins ten rooms at once is written once.
pub(super) const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(500);

/// A session is written whole. With many rooms it is written again only after so much time for each of them, so that a
/// socket that goes on joining writes some 15 KiB a second at most, however many rooms it is in.
const INTERVAL_PER_ROOM: Duration = Duration::from_millis(2);

/// Rooms for which [`CHECKPOINT_INTERVAL`] is long enough.
const FEW_ROOMS: usize = 250;

/// Which sockets have to be written, and when.
pub(super) struct SessionCheckpoint {
    /// How long the bus keeps a session.
    retention: Duration,
    queues: Mutex<CheckpointQueues>,
}

#[derive(Default)]
struct CheckpointQueues {
    /// Those that have come or changed. Each is in here once, as its own mark says.
    changed: Vec<Weak<Socket>>,
    /// Every socket that was written, and when to write it again, the earliest first.
    written: VecDeque<(Instant, Weak<Socket>)>,
    /// Sockets with many rooms that were written, by their serials, and when they may be written again.
    paced: HashMap<u64, Instant>,
}

impl SessionCheckpoint {
    pub(super) fn new(retention: Duration) -> Self {
        Self { retention, queues: Mutex::default() }
    }

    /// A socket has come, or its rooms have changed.
    pub(super) fn mark_changed(&self, socket: &Arc<Socket>) {
        if socket.pid().is_some() && !std::mem::replace(&mut socket.state.lock().needs_checkpoint, true) {
            self.queues.lock().changed.push(Arc::downgrade(socket));
        }
    }

    /// Those that are to be written now.
    pub(super) fn take_due(&self) -> Vec<Arc<Socket>> {
        let (now, mut queues) = (Instant::now(), self.queues.lock());
        let changed = std::mem::take(&mut queues.changed);
        queues.paced.retain(|_, until| *until > now);
        let sockets = changed.iter().filter_map(Weak::upgrade);
        let (mut due, later): (Vec<Arc<Socket>>, Vec<Arc<Socket>>) =
            sockets.partition(|socket| !queues.paced.contains_key(&socket.serial));
        queues.changed = later.iter().map(Arc::downgrade).collect();
        for socket in &due {
            let mut state = socket.state.lock();
            state.needs_checkpoint = false;
            let rooms = state.rooms.len();
            if rooms > FEW_ROOMS {
                let pause = INTERVAL_PER_ROOM * u32::try_from(rooms).unwrap_or(u32::MAX);
                queues.paced.insert(socket.serial, now + pause.min(self.retention / 4));
            }
            if !std::mem::replace(&mut state.has_checkpoint, true) {
                queues.written.push_back((now + self.retention / 2, Arc::downgrade(socket)));
            }
        }
        while queues.written.front().is_some_and(|(when, _)| *when <= now) {
            let Some((_, socket)) = queues.written.pop_front() else { break };
            if let Some(socket) = socket.upgrade().filter(|socket| !socket.state.lock().is_gone) {
                queues.written.push_back((now + self.retention / 2, Arc::downgrade(&socket)));
                due.push(socket);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::Event;
    use super::super::socket::{ClientConnection, NewSocket};
    use super::*;
    use socketio_redis::adapter::Room;
    use socketio_redis::value::Value;

    /// Takes everything and says nothing.
    struct Silent;

    impl ClientConnection for Silent {
        fn event(&self, _: &Event<'_>) {}

        fn is_ready(&self) -> bool {
            true
        }

        fn can_answer(&self) -> bool {
            false
        }

        fn disconnect(&self, _: &Arc<Socket>, _: bool) {}

        fn handshake(&self, _: &Socket) -> Value {
            Value::Null
        }
    }

    fn socket(serial: u64, rooms: usize) -> Arc<Socket> {
        let (id, pid) = (Arc::from("id"), Some("pid".into()));
        let arrival = NewSocket { id, pid, client: Arc::new(Silent), user: None, data: Value::Null };
        let socket = Socket::new(serial, arrival);
        for number in 0..rooms {
            join(&socket, number);
        }
        socket
    }

    fn join(socket: &Socket, number: usize) {
        let room = Room::text(&format!("room{number}"));
        socket.state.lock().rooms.insert(&room);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_in_many_rooms_that_goes_on_joining_is_written_seldom_and_at_last() {
        let ahead = SessionCheckpoint::new(Duration::from_secs(120));
        let (small, large) = (socket(1, 10), socket(2, 2000));
        let mut written = [0, 0];
        for round in 0..60 {
            for socket in [&small, &large] {
                join(socket, 10_000 + round);
                ahead.mark_changed(socket);
            }
            for socket in ahead.take_due() {
                written[socket.serial as usize - 1] += 1;
            }
            tokio::time::advance(CHECKPOINT_INTERVAL).await;
        }
        // 30 s: the small one at every look, the large one every four seconds or so.
        assert_eq!(written[0], 60);
        assert!((7..=9).contains(&written[1]), "{written:?}");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(
            ahead.take_due().iter().any(|socket| socket.serial == 2),
            "what changed last is written, too"
        );
    }
}
