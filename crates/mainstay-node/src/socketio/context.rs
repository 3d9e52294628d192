//! What the clients of one Socket.IO server share.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use mainstay_core::origin::Origins;

use super::application::Application;
use super::connect_timeout::{PendingConnections, PendingLimits};
use crate::hub::Hub;
use crate::limits::{ConnectionLimiter, RateLimits};
use crate::metrics::Metrics;

/// What a node gives its Socket.IO server.
pub struct SocketIoSettings {
    /// A connection must be in a namespace by then. Node's default is 45 s.
    pub connect_timeout: Duration,
    /// How many connections may be in no namespace yet.
    pub pending: PendingLimits,
    /// Web pages that may connect.
    pub origins: Origins,
    /// What each client may say in a second.
    pub rates: RateLimits,
    /// Counts the node's clients.
    pub limiter: Arc<ConnectionLimiter>,
    /// The node's counters.
    pub metrics: Metrics,
}

/// Node's `connectTimeout`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);

/// What the clients share; `C` is a client.
pub(super) struct SocketIoContext<C> {
    pub(super) hub: Arc<Hub>,
    pub(super) application: Arc<dyn Application>,
    pub(super) settings: SocketIoSettings,
    /// Those that are in no namespace yet.
    pub(super) pending: PendingConnections<C>,
    /// Session recoveries and the ends of tokens.
    pub(super) tasks: TaskTracker,
    /// Cancelled at the end.
    pub(super) end: CancellationToken,
}
