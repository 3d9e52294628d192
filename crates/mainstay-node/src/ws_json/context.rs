//! What the connections of one server share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use yawc::{DeflateOptions, Options};

use mainstay_core::origin::Origins;

use crate::auth::Authenticator;
use crate::limits::{ConnectionLimiter, RateLimits};
use crate::metrics::Metrics;

use super::client::{WsJsonClient, WsJsonHandler};

/// Messages below this are not compressed: it costs more than it saves.
const COMPRESSION_THRESHOLD: usize = 256;
/// Of a connection's buffers at rest, each.
const BUFFER: usize = 1 << 10;

/// What a node gives its JSON protocol.
pub(crate) struct WsJsonSettings {
    /// The node's name.
    pub node: Arc<str>,
    /// Who may come in.
    pub auth: Arc<Authenticator>,
    /// The web pages that may connect.
    pub origins: Origins,
    /// The longest message, bytes.
    pub max_payload: usize,
    /// Bytes that may wait for a client that does not read.
    pub backlog: usize,
    /// Between two pings.
    pub ping_interval: Duration,
    /// How long a client may take to answer one.
    pub ping_timeout: Duration,
    /// A connection from which nothing came for so long is closed.
    pub idle: Duration,
    /// What each client may say in a second.
    pub rates: RateLimits,
    /// Counts the node's clients.
    pub limiter: Arc<ConnectionLimiter>,
    /// The node's counters.
    pub metrics: Metrics,
}

/// What the connections share.
pub(super) struct WsJsonContext {
    pub(super) settings: WsJsonSettings,
    pub(super) handler: Arc<dyn WsJsonHandler>,
    /// Of the WebSocket library.
    pub(super) options: Options,
    /// The clients that are connected, to be closed at the end.
    pub(super) open: Mutex<HashMap<u64, Arc<WsJsonClient>>>,
    /// The next key of `open`.
    pub(super) next: AtomicU64,
    /// No one is let in any more.
    pub(super) is_stopping: AtomicBool,
    /// Owns the connections.
    pub(super) tasks: TaskTracker,
}

impl WsJsonContext {
    pub(super) fn new(settings: WsJsonSettings, handler: Arc<dyn WsJsonHandler>) -> Arc<Self> {
        Arc::new(Self {
            options: options(settings.max_payload),
            settings,
            handler,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        })
    }
}

fn options(max_payload: usize) -> Options {
    let deflate = DeflateOptions {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        compression_threshold: COMPRESSION_THRESHOLD,
        ..DeflateOptions::low_latency()
    };
    // The library's limits are exclusive. They hold for what a compressed message becomes, too.
    let most = max_payload + 1;
    Options { compression: Some(deflate), ..Options::default() }
        .with_limits(most, most)
        .with_utf8()
        .with_read_buffer_capacity(BUFFER)
        .with_write_buffer_capacity(BUFFER)
}
