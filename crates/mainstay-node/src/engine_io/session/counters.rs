//! What the sessions of one server have done so far.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine_io::session::ending::CloseReason;

/// Sums since the start, for the scraper.
#[derive(Debug, Default)]
pub(crate) struct EngineCounters {
    /// Sessions that were opened.
    opened: AtomicU64,
    /// Sessions that polling gave over to a WebSocket.
    upgraded: AtomicU64,
    /// WebSockets that carry a session now.
    websockets: AtomicU64,
    /// Messages that clients sent.
    received: AtomicU64,
    /// Packets that were queued for clients.
    sent: AtomicU64,
    /// Handshakes and requests that were refused.
    refused: AtomicU64,
    /// Sessions that ended, by [`CloseReason`] in its order.
    closed: [AtomicU64; CloseReason::ALL.len()],
}

/// A look at the sums of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sessions open now.
    pub sessions: u64,
    /// Of these, the ones that a WebSocket carries.
    pub websockets: u64,
    /// Sessions that were opened.
    pub opened: u64,
    /// Sessions that polling gave over to a WebSocket.
    pub upgraded: u64,
    /// Messages that clients sent.
    pub received: u64,
    /// Packets that were queued for clients.
    pub sent: u64,
    /// Handshakes and requests that were refused.
    pub refused: u64,
    /// Sessions that ended, by reason, in the order of [`CloseReason::ALL`].
    pub closed: [u64; CloseReason::ALL.len()],
}

impl EngineCounters {
    /// A session was opened.
    pub(crate) fn record_opened(&self, is_websocket: bool) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.websockets.fetch_add(u64::from(is_websocket), Ordering::Relaxed);
    }

    /// A session moved to a WebSocket.
    pub(crate) fn record_upgraded(&self) {
        self.upgraded.fetch_add(1, Ordering::Relaxed);
        self.websockets.fetch_add(1, Ordering::Relaxed);
    }

    /// A session ended.
    pub(crate) fn record_closed(&self, is_websocket: bool, reason: CloseReason) {
        self.websockets.fetch_sub(u64::from(is_websocket), Ordering::Relaxed);
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A client's message was taken in.
    pub(crate) fn record_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Packets were queued.
    pub(crate) fn record_sent(&self, count: usize) {
        self.sent.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// A request was refused.
    pub(crate) fn record_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The sums now; `sessions` is not one of them and is given.
    pub(crate) fn stats(&self, sessions: usize) -> EngineStats {
        let sum = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            sessions: sessions as u64,
            websockets: sum(&self.websockets),
            opened: sum(&self.opened),
            upgraded: sum(&self.upgraded),
            received: sum(&self.received),
            sent: sum(&self.sent),
            refused: sum(&self.refused),
            closed: std::array::from_fn(|index| sum(&self.closed[index])),
        }
    }
}
