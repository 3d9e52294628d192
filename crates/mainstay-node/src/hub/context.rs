//! What the namespaces of a hub share.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// What the namespaces of a hub share.
pub(super) struct HubContext {
    /// The node's counters.
    pub(super) metrics: Metrics,
    /// Everything that the hub has under way.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the hub closes.
    pub(super) end: CancellationToken,
    /// See [`Bus::delivers_own`](socketio_redis::adapter::Bus::delivers_own).
    pub(super) delivers_own: bool,
    /// See [`Bus::recovers`](socketio_redis::adapter::Bus::recovers).
    pub(super) recovers: bool,
}
