//! The drain of a node: its tunnels are told to leave, evenly over a window, and who lives there without a tunnel
//! leaves when its time has come.
//!
//! That is a Socket.IO session that polls: it cannot be told anything, only its next request can go elsewhere, where
//! nobody knows its sid, so that its client comes back with a new one. If all of them moved with the first request
//! after the drain began, they would come back together. So each has a time in the window, drawn from its sid, and
//! until then its requests follow their pin.
//!
//! A drain takes in who was on the way when it began, and goes on until it is ended: by who wanted it, by a reload
//! that takes the node out, or by the end of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::config;
use crate::metrics::DrainGauge;
use crate::relay::{Closing, Departures, Relay, Which};

/// How long each tunnel waits for its peers' answers to a Close.
pub const GRACE: Duration = Duration::from_secs(5);

/// How far a drain was when another process took it over; nothing for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoFar {
    /// How much of its window has passed.
    pub elapsed: Duration,
    /// How many tunnels have ended since it began.
    pub closed: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Drain {
    /// As it was wanted; `over` is the whole window.
    pub order: config::Drain,
    /// When it ends at the latest.
    pub deadline: SystemTime,
    begun: Instant,
    before: SoFar,
    /// Tunnels that have ended in another process since that said how far it was.
    elsewhere: AtomicUsize,
    departures: Departures,
    /// Cancelled when it is ended, or another has taken its place.
    ended: CancellationToken,
}

impl Drain {
    /// Begins to close the tunnels of this node, also those that are on their way.
    pub fn begin(relay: &Relay, (pool, node): (&str, &str), order: config::Drain, before: SoFar) -> Self {
        let over = order.over.saturating_sub(before.elapsed);
        let closing = Closing { code: order.code, reason: order.reason.as_str().into(), over, grace: GRACE };
        let departures = relay.close_on(Which::Node { pool: pool.into(), node: node.into() }, &closing);
        let now = SystemTime::now();
        Self {
            order,
            // A window that clocks cannot add has no end that anybody sees.
            deadline: now.checked_add(over + GRACE).unwrap_or(now),
            begun: Instant::now(),
            before,
            elsewhere: AtomicUsize::new(0),
            departures,
            ended: CancellationToken::new(),
        }
    }

    /// How many of the node's tunnels have ended since it began.
    pub fn closed(&self) -> usize {
        self.before.closed + self.elsewhere.load(Relaxed) + self.departures.closed()
    }

    /// So many of them have ended in the process that it was taken over from, since it was.
    pub fn add_closed(&self, tunnels: usize) {
        self.elsewhere.fetch_add(tunnels, Relaxed);
    }

    /// How much of its window has passed.
    pub fn elapsed(&self) -> Duration {
        self.before.elapsed + self.begun.elapsed()
    }

    /// What is still to be done of it, for who goes on with it elsewhere.
    pub fn so_far(&self) -> SoFar {
        SoFar { elapsed: self.elapsed(), closed: self.closed() }
    }

    /// The same drain with what is left of its window.
    pub fn rest(&self) -> config::Drain {
        config::Drain { over: self.order.over.saturating_sub(self.elapsed()), ..self.order.clone() }
    }

    /// Whether the time of a session without a tunnel, whose sid has this hash, is still to come.
    pub fn lets_stay(&self, sid: u64) -> bool {
        is_to_come(sid, self.elapsed(), self.order.over)
    }

    /// Waits until all tunnels are counted that are there.
    pub async fn counted(&self) {
        self.departures.counted().await;
    }

    /// Waits until none is left of those that are known.
    pub async fn finished(&self) {
        self.departures.finished().await;
    }

    /// Waits until it is ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Ends it: who has not been told to leave stays.
    pub fn end(&self) {
        // In this order: who is kept has not left.
        self.ended.cancel();
        self.departures.stop();
    }

    /// For the metrics.
    pub fn gauge(self: &Arc<Self>) -> DrainGauge {
        let drain = Arc::clone(self);
        let deadline = self.deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        DrainGauge { closed: Box::new(move || drain.closed()), deadline: deadline.as_secs_f64() }
    }
}

fn is_to_come(sid: u64, elapsed: Duration, over: Duration) -> bool {
    let drawn = (sid >> 11) as f64 / (1_u64 << 53) as f64;
    elapsed < over.mul_f64(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affinity::hash;

    #[test]
    fn sessions_without_a_tunnel_leave_evenly_over_the_window_and_all_by_its_end() {
        let over = Duration::from_secs(60);
        let sids: Vec<u64> = (0..6000).map(|sid: u32| hash::key(&sid.to_be_bytes())).collect();
        let left = |at: u64| {
            let elapsed = Duration::from_secs(at);
            sids.iter().filter(|sid| is_to_come(**sid, elapsed, over)).count()
        };
        // A sixth, and three standard deviations of 5/6 * 1000 around it.
        for (from, until) in (0..60).step_by(10).zip((10..=60).step_by(10)) {
            let moved = left(from) - left(until);
            assert!((910..1090).contains(&moved), "{moved} from {from} to {until}");
        }
        assert_eq!((left(0) > 5990, left(60)), (true, 0));
        assert!(!sids.iter().any(|sid| is_to_come(*sid, Duration::ZERO, Duration::ZERO)));
    }
}
