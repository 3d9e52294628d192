//! A drain that is under way: how it was ordered, how far it is, and which polling sessions it has reached.
//!
//! Its tunnels are closed by one [`PacedClose`] of the relay. A Socket.IO session that polls has no tunnel and cannot be
//! told anything: only its next request can go to another node, which does not know its sid, so that its client opens
//! a new session. If all of them moved with their first request after the start of the drain, they would reconnect
//! together. So each has a time in the window, drawn from its sid, and until then its requests follow their pin.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::config;
use crate::metrics::DrainGauge;
use crate::relay::{CloseHandle, CloseReason, PacedClose, Relay, TunnelSelector};

/// How far a drain was when another process took it over; nothing for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainProgress {
    /// How much of its window has passed.
    pub elapsed: Duration,
    /// How many tunnels have ended since it began.
    pub closed: usize,
}

/// The drain of some tunnels: those of a node, or those of a node or route that a reload has removed. It includes
/// tunnels that are adopted later, and goes on until it is ended: by whoever ordered it, by a reload, or by the end of
/// the process.
#[derive(Debug)]
pub struct ActiveDrain {
    /// As it was ordered; `over` is the whole window.
    pub order: config::Drain,
    /// When the last tunnel will have ended.
    pub deadline: SystemTime,
    begun: Instant,
    before: DrainProgress,
    /// Tunnels that have ended in the process before this one since it said how far the drain was.
    closed_elsewhere: AtomicUsize,
    close: CloseHandle,
    /// Cancelled when it is ended, or another drain has replaced it.
    ended: CancellationToken,
}

impl ActiveDrain {
    /// Begins to close the selected tunnels, also those that are adopted later. With what was done `before`, it goes on
    /// over what is left of the window.
    pub(crate) fn begin(
        relay: &Relay,
        tunnels: TunnelSelector,
        order: config::Drain,
        before: DrainProgress,
    ) -> Self {
        let close = PacedClose::new(tunnels, CloseReason::Drained, order.code, &order.reason);
        let window = order.over.saturating_sub(before.elapsed);
        let close = relay.close(close.over(window).including_later());
        Self {
            order,
            deadline: close.deadline(),
            begun: Instant::now(),
            before,
            closed_elsewhere: AtomicUsize::new(0),
            close,
            ended: CancellationToken::new(),
        }
    }

    /// How many of the tunnels have ended since it began.
    pub(crate) fn closed(&self) -> usize {
        self.before.closed + self.closed_elsewhere.load(Relaxed) + self.close.closed()
    }

    /// Adds tunnels that have ended in the process before this one since it said how far the drain was.
    pub(crate) fn add_closed(&self, tunnels: usize) {
        self.closed_elsewhere.fetch_add(tunnels, Relaxed);
    }

    /// How much of its window has passed.
    pub(crate) fn elapsed(&self) -> Duration {
        self.before.elapsed + self.begun.elapsed()
    }

    /// How far it is, for another process to go on with it.
    pub(crate) fn progress(&self) -> DrainProgress {
        DrainProgress { elapsed: self.elapsed(), closed: self.closed() }
    }

    /// The same order with what is left of its window.
    pub(crate) fn remaining_order(&self) -> config::Drain {
        config::Drain { over: self.order.over.saturating_sub(self.elapsed()), ..self.order.clone() }
    }

    /// Whether a polling session, whose sid has this hash, still stays on the node.
    pub(crate) fn keeps_session(&self, sid: u64) -> bool {
        is_before_turn(sid, self.elapsed(), self.order.over)
    }

    /// Waits until the tunnels that are there are counted.
    pub(crate) async fn counted(&self) {
        self.close.counted().await;
    }

    /// Waits until none of the known tunnels is left.
    pub(crate) async fn finished(&self) {
        self.close.finished().await;
    }

    /// Whether it was ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Waits until it is ended.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Ends it: tunnels that have not been sent a Close stay.
    pub(crate) fn end(&self) {
        // In this order: a tunnel that is kept counts as closed from then on.
        self.ended.cancel();
        self.close.stop();
    }

    /// For the metrics.
    pub(crate) fn gauge(self: &Arc<Self>) -> DrainGauge {
        let drain = Arc::clone(self);
        let deadline = self.deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        DrainGauge { closed: Box::new(move || drain.closed()), deadline: deadline.as_secs_f64() }
    }
}

/// Whether the time of a session in the window is still to come.
fn is_before_turn(sid: u64, elapsed: Duration, window: Duration) -> bool {
    let drawn = (sid >> 11) as f64 / (1_u64 << 53) as f64;
    elapsed < window.mul_f64(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affinity::hash;

    #[test]
    fn i11_polling_sessions_move_evenly_over_the_window_and_all_by_its_end() {
        let over = Duration::from_secs(60);
        let sids: Vec<u64> = (0..6000).map(|sid: u32| hash::hash_key(&sid.to_be_bytes())).collect();
        let left = |at: u64| {
            let elapsed = Duration::from_secs(at);
            sids.iter().filter(|sid| is_before_turn(**sid, elapsed, over)).count()
        };
        // A sixth, and three standard deviations of 5/6 * 1000 around it.
        for (from, until) in (0..60).step_by(10).zip((10..=60).step_by(10)) {
            let moved = left(from) - left(until);
            assert!((910..1090).contains(&moved), "{moved} from {from} to {until}");
        }
        assert_eq!((left(0) > 5990, left(60)), (true, 0));
        assert!(!sids.iter().any(|sid| is_before_turn(*sid, Duration::ZERO, Duration::ZERO)));
    }
}
