//! What a tunnel says of itself: while it runs in a snapshot, at its end in its one outcome.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{ActiveTunnel, CLIENT, NODE};
use crate::metrics::CloseSide;
use crate::relay::{CloseReason, SessionEnd, SessionSnapshot};
use crate::ws::close;

impl ActiveTunnel {
    /// Its turn broke off in a panic: what it would still do is not known, so it does nothing more.
    #[cold]
    pub fn mark_panicked(&mut self) {
        self.cause = Some((CloseSide::Balancer, close::ABNORMAL, CloseReason::Panicked));
    }

    /// The session as it is at `now` on the thread's clock, which is `wall` on the wall.
    pub fn snapshot(&self, now: u64, wall: SystemTime) -> SessionSnapshot {
        let info = &self.info;
        let ago = Duration::from_millis(now.saturating_sub(self.last_message));
        SessionSnapshot {
            id: info.id,
            client: info.client,
            pool: Arc::clone(&info.node_connection.pool),
            node: Arc::clone(&info.node_connection.node),
            route: Arc::clone(&info.route),
            generation: info.generation,
            opened_at: info.opened_at,
            affinity: info.affinity,
            bytes: self.bytes(),
            messages: self.messages(),
            last_message_at: if self.last_message == 0 { None } else { wall.checked_sub(ago) },
            round_trip: self.keepalive.round_trip(),
            is_closing: self.is_closing(),
        }
    }

    /// It has a deadline: a Close has passed, a stream has ended, or the balancer closes it.
    pub fn is_closing(&self) -> bool {
        self.deadline != u64::MAX
    }

    /// How long it has carried no message at `now`, in milliseconds.
    pub fn message_idle_time(&self, now: u64) -> u64 {
        now.saturating_sub(self.last_message.max(self.adopted_at))
    }

    /// Bytes read from the client and from the node.
    fn bytes(&self) -> [u64; 2] {
        [self.pipes[CLIENT].bytes(), self.pipes[NODE].bytes()]
    }

    /// Text and binary messages from the client and from the node.
    fn messages(&self) -> [u64; 2] {
        [self.pipes[CLIENT].messages(), self.pipes[NODE].messages()]
    }

    /// The one outcome. The sockets close when `self` is dropped.
    pub fn session_end(&self, now: u64) -> SessionEnd {
        let cut = (CloseSide::Balancer, close::ABNORMAL, CloseReason::Broken);
        let (side, code, reason) = self.cause.unwrap_or(cut);
        SessionEnd {
            side,
            code,
            reason,
            duration: Duration::from_millis(now - self.adopted_at),
            bytes: self.bytes(),
            messages: self.messages(),
        }
    }
}
