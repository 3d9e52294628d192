//! What a tunnel reports: a snapshot while it runs, and its one end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{ActiveTunnel, CLIENT, CloseCause, NODE};
use crate::metrics::CloseSide;
use crate::relay::close_reason::CloseReason;
use crate::relay::session::SessionEnd;
use crate::relay::session_list::SessionSnapshot;
use crate::ws::close;

impl ActiveTunnel {
    /// Work on it panicked: its state is not known any more, and it ends for that.
    #[cold]
    pub(crate) fn mark_panicked(&mut self) {
        let (side, code, reason) = (CloseSide::Balancer, close::ABNORMAL, CloseReason::Panicked);
        self.cause = Some(CloseCause { side, code, reason });
    }

    /// The session at `now` on the thread's clock, which is `wall` on the wall clock.
    pub(crate) fn snapshot(&self, now: u64, wall: SystemTime) -> SessionSnapshot {
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

    /// Whether it has a deadline: a Close has passed, a stream has ended, or the balancer closes it.
    pub(crate) fn is_closing(&self) -> bool {
        self.deadline != u64::MAX
    }

    /// For how long it has carried no message at `now`, in milliseconds.
    pub(crate) fn message_idle_time(&self, now: u64) -> u64 {
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

    /// The one end of its session. The sockets are closed when `self` is dropped.
    pub(crate) fn session_end(&self, now: u64) -> SessionEnd {
        let unknown =
            CloseCause { side: CloseSide::Balancer, code: close::ABNORMAL, reason: CloseReason::Broken };
        let CloseCause { side, code, reason } = self.cause.unwrap_or(unknown);
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
