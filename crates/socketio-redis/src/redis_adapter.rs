//! The adapter through Redis, in the formats of the Node.js adapters: classic, sharded or streams.
//!
//! [`RedisAdapter`] is one server's place in the fleet, and makes an adapter for each namespace. It also checks whether
//! servers with another kind of adapter use the same channels: the two would misread each other, so this server reports
//! it and stops sending.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::{Adapter, AdapterState, BoxFuture, LocalNamespace, NamespaceAdapter};
use crate::metrics::AdapterMetrics;

use crate::classic::ClassicAdapter;
use crate::client::{ClientHandle, ClientState, RedisAddress, RedisClient, SubscriptionKind};
use crate::peer::AdapterContext;
use crate::settings::{AdapterKind, AdapterSettings};
use crate::sharded::ShardedAdapter;
use crate::streams::{StreamReaders, StreamsAdapter};

/// One node's place in a cluster that speaks through Redis.
pub struct RedisAdapter {
    shared: Arc<AdapterContext>,
    /// The readers of the streams, where there are any.
    readers: Option<Arc<StreamReaders>>,
    /// Every namespace that was made; its hub alone keeps it alive.
    namespaces: Mutex<Vec<Weak<dyn NamespaceAdapter>>>,
    /// Ends the readers and the check.
    closed: CancellationToken,
}

impl RedisAdapter {
    /// Begins to connect.
    pub fn start(
        address: RedisAddress,
        settings: AdapterSettings,
        metrics: Arc<dyn AdapterMetrics>,
    ) -> RedisAdapter {
        let shared = Arc::new(AdapterContext {
            redis: RedisClient::start(address, settings.response_timeout),
            settings,
            metrics,
            incompatibility: RwLock::new(None),
            tasks: TaskTracker::new(),
        });
        let closed = CancellationToken::new();
        let readers = match &shared.settings.kind {
            AdapterKind::Streams(settings) => Some(StreamReaders::start(&shared, settings, &closed)),
            _ => None,
        };
        let (watching, ended) = (report_metrics(shared.clone()), closed.clone());
        shared.tasks.spawn(async move { ended.run_until_cancelled(watching).await });
        RedisAdapter { shared, readers, namespaces: Mutex::default(), closed }
    }

    /// The connection, for what else is kept in Redis.
    pub fn client_handle(&self) -> ClientHandle {
        ClientHandle(self.shared.redis.clone())
    }

    /// Returns when the node can speak and hear, or must not.
    pub async fn wait_until_ready(&self) {
        let mut watch = self.shared.redis.watch();
        while self.state() != AdapterState::Up && self.shared.incompatibility().is_none() {
            // A reader finds its place a moment after the connection is there.
            let _ = timeout(Duration::from_millis(20), watch.changed()).await;
        }
        self.shared.redis.wait_all_subscribed().await;
    }
}

impl Adapter for RedisAdapter {
    fn namespace(&self, namespace: &Arc<str>, local: Weak<dyn LocalNamespace>) -> Arc<dyn NamespaceAdapter> {
        let shared = &self.shared;
        let adapter: Arc<dyn NamespaceAdapter> = match (&shared.settings.kind, &self.readers) {
            (AdapterKind::Sharded(mode), _) => ShardedAdapter::start(shared, namespace, local, *mode),
            (AdapterKind::Streams(settings), Some(readers)) => {
                StreamsAdapter::start(shared, namespace, local, settings, readers)
            }
            // Streams have readers always.
            (AdapterKind::Classic | AdapterKind::Streams(_), _) => {
                ClassicAdapter::start(shared, namespace, local)
            }
        };
        let mut namespaces = self.namespaces.lock();
        namespaces.retain(|namespace| namespace.strong_count() > 0);
        namespaces.push(Arc::downgrade(&adapter));
        adapter
    }

    fn state(&self) -> AdapterState {
        if let Some(why) = self.shared.incompatibility() {
            return AdapterState::Incompatible { reason: why };
        }
        match (self.shared.redis.state(), &self.shared.settings.kind, &self.readers) {
            (ClientState::Connecting, ..) => {
                AdapterState::Unreachable { reason: "not yet connected to Redis".into() }
            }
            (ClientState::Down(reason), ..) => AdapterState::Unreachable { reason: reason.into() },
            (ClientState::Up, AdapterKind::Streams(settings), Some(readers))
                if !readers.are_reading(settings.stream_count) =>
            {
                AdapterState::Unreachable { reason: "the stream is not yet read".into() }
            }
            (ClientState::Up, ..) => match self.shared.redis.write_refusal() {
                Some(why) => AdapterState::Unreachable { reason: why.into() },
                None => AdapterState::Up,
            },
        }
    }

    fn delivers_own_broadcasts(&self) -> bool {
        matches!(self.shared.settings.kind, AdapterKind::Streams(_))
    }

    fn recovers_sessions(&self) -> bool {
        matches!(&self.shared.settings.kind, AdapterKind::Streams(settings) if settings.recovery.is_some())
    }

    fn session_lifetime(&self) -> Option<Duration> {
        let AdapterKind::Streams(settings) = &self.shared.settings.kind else { return None };
        settings.recovery
    }

    fn close(&self) -> BoxFuture<()> {
        let (shared, closed) = (self.shared.clone(), self.closed.clone());
        let namespaces = std::mem::take(&mut *self.namespaces.lock());
        Box::pin(async move {
            for namespace in namespaces.iter().filter_map(Weak::upgrade) {
                namespace.close().await;
            }
            // What was handed over before goes out first: sessions, mostly.
            if let Ok(last) = shared.redis.enqueue(redis::cmd("PING")) {
                let _ = timeout(shared.settings.response_timeout, last).await;
            }
            closed.cancel();
            shared.redis.close().await;
            shared.tasks.close();
            // What still waits for the answers of clients has nobody to tell them to any more.
            let _ = timeout(shared.settings.response_timeout, shared.tasks.wait()).await;
        })
    }
}

/// Between two looks at what the connection counts.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the metrics of the connection, and looks for a fleet of another kind whenever there is a connection anew.
async fn report_metrics(shared: Arc<AdapterContext>) {
    let mut watch = shared.redis.watch();
    let mut dropped = 0;
    loop {
        let is_up = *watch.borrow_and_update() == ClientState::Up;
        shared.metrics.set_connected(is_up);
        if is_up {
            detect_other_adapters(&shared).await;
        }
        while let Err(_still_so) = timeout(METRICS_INTERVAL, watch.changed()).await {
            let now = shared.redis.dropped_messages();
            shared.metrics.record_missed(now - dropped);
            dropped = now;
        }
    }
}

/// Looks whether adapters of another kind listen on the channels of the namespace that every fleet has.
async fn detect_other_adapters(shared: &AdapterContext) {
    let prefix = &shared.settings.channel_prefix;
    let (channel, seen) = match &shared.settings.kind {
        // Classic adapters have a pattern for this channel, so whoever subscribes to it is none of them.
        AdapterKind::Classic => (format!("{prefix}#/#"), "a streams adapter listens"),
        AdapterKind::Streams(settings) if !settings.sharded_pubsub => {
            (format!("{prefix}-request#/#"), "a classic adapter listens")
        }
        // Sharded channels are a world of their own.
        _ => return,
    };
    if shared.redis.subscriber_count(SubscriptionKind::Channel, &channel).await.is_ok_and(|others| others > 0)
    {
        shared.mark_incompatible(seen);
    }
}
