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
    /// See [`Adapter::delivers_own_broadcasts`](socketio_redis::adapter::Adapter::delivers_own_broadcasts).
    pub(super) delivers_own: bool,
    /// See [`Adapter::recovers_sessions`](socketio_redis::adapter::Adapter::recovers_sessions).
    pub(super) recovers: bool,
}
