//! What the adapters report, for the metrics of the server that uses them.

use std::time::Duration;

/// Receives what happens, as it happens. Every method does nothing unless it is implemented; none may block.
pub trait AdapterMetrics: Send + Sync {
    /// Redis has taken a message; `took` is the time from the call to its answer.
    fn record_publish(&self, took: Duration) {
        let _ = took;
    }

    /// A message did not reach Redis, or perhaps not.
    fn record_unpublished(&self) {}

    /// A payload of another server could not be read.
    fn record_unreadable(&self) {}

    /// Messages of other servers were lost before this one read them: trimmed from the stream, or without room.
    fn record_missed(&self, messages: u64) {
        let _ = messages;
    }

    /// An entry of the stream was delivered, so long after it was added. Streams adapter only.
    fn record_delivery(&self, after: Duration) {
        let _ = after;
    }

    /// How old the newest entry of the stream was when it was read. Streams adapter only.
    fn set_lag(&self, lag: Duration) {
        let _ = lag;
    }

    /// Whether Redis answers now.
    fn set_connected(&self, is_connected: bool) {
        let _ = is_connected;
    }
}

/// Counts nothing.
impl AdapterMetrics for () {}
