//! What a tunnel says of itself: while it runs in a snapshot, at its end in its one outcome.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{CLIENT, Live, NODE};
use crate::metrics::Side;
use crate::relay::{Outcome, Snapshot, Why};
use crate::ws::close;

impl Live {
    /// Its turn broke off in a panic: what it would still do is not known, so it does nothing more.
    #[cold]
    pub fn fail(&mut self) {
        self.cause = Some((Side::Balancer, close::ABNORMAL, Why::Panicked));
    }

    /// The session as it is at `now` on the thread's clock, which is `wall` on the wall.
    pub fn snapshot(&self, now: u64, wall: SystemTime) -> Snapshot {
        let record = &self.record;
        let ago = Duration::from_millis(now.saturating_sub(self.messaged));
        Snapshot {
            id: record.id,
            client: record.client,
            pool: Arc::clone(&record.seat.pool),
            node: Arc::clone(&record.seat.node),
            route: Arc::clone(&record.route),
            generation: record.generation,
            opened_at: record.opened_at,
            affinity: record.affinity,
            bytes: self.bytes(),
            messages: self.messages(),
            last_message_at: if self.messaged == 0 { None } else { wall.checked_sub(ago) },
            round_trip: self.pulse.round_trip(),
            is_closing: self.is_closing(),
        }
    }

    /// It has a deadline: a Close has passed, a stream has ended, or the balancer closes it.
    pub fn is_closing(&self) -> bool {
        self.deadline != u64::MAX
    }

    /// How long it has carried no message at `now`, in milliseconds.
    pub fn quiet_for(&self, now: u64) -> u64 {
        now.saturating_sub(self.messaged.max(self.adopted))
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
    pub fn outcome(&self, now: u64) -> Outcome {
        let cut = (Side::Balancer, close::ABNORMAL, Why::Broken);
        let (side, code, why) = self.cause.unwrap_or(cut);
        Outcome {
            side,
            code,
            why,
            duration: Duration::from_millis(now - self.adopted),
            bytes: self.bytes(),
            messages: self.messages(),
        }
    }
}
