//! How nodes speak to each other: within one process ([`crate::memory`]), or through Redis in the formats of the Node.js
//! adapters.
//!
//! [`RedisBus`] is one node's place in the cluster. Its adapters, one for each namespace, are of the kind that was set:
//! classic, sharded or streams. Beside them stands a check for a fleet of another kind on the same channels: the two
//! would break each other, so this node says so and stops.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::{Adapter, Bus, BusState, Local, Pending};
use crate::metrics::AdapterMetrics;

use crate::connection::{Link, Place, Redis, RedisState, Via};
use crate::peer::Shared;
use crate::pubsub::Pubsub;
use crate::settings::{Kind, Settings};
use crate::sharded::Sharded;
use crate::streams::{Readers, Streams};

/// One node's place in a cluster that speaks through Redis.
pub struct RedisBus {
    shared: Arc<Shared>,
    /// The readers of the streams, where there are any.
    readers: Option<Arc<Readers>>,
    /// Every adapter that was made.
    adapters: Arc<Mutex<Vec<Made>>>,
    /// Ends the readers and the check.
    closed: CancellationToken,
}

/// An adapter, held as its hub alone keeps it alive.
enum Made {
    Pubsub(Weak<Pubsub>),
    Sharded(Weak<Sharded>),
    Streams(Weak<Streams>),
}

impl Made {
    fn is_gone(&self) -> bool {
        match self {
            Made::Pubsub(adapter) => adapter.strong_count() == 0,
            Made::Sharded(adapter) => adapter.strong_count() == 0,
            Made::Streams(adapter) => adapter.strong_count() == 0,
        }
    }

    async fn close(self) {
        match self {
            Made::Pubsub(adapter) => {
                if let Some(adapter) = adapter.upgrade() {
                    adapter.close().await;
                }
            }
            Made::Sharded(adapter) => {
                if let Some(adapter) = adapter.upgrade() {
                    adapter.close().await;
                }
            }
            Made::Streams(adapter) => {
                if let Some(adapter) = adapter.upgrade() {
                    adapter.close().await;
                }
            }
        }
    }
}

impl RedisBus {
    /// Begins to connect.
    pub fn start(place: Place, settings: Settings, metrics: Arc<dyn AdapterMetrics>) -> RedisBus {
        let shared = Arc::new(Shared {
            redis: Redis::start(place, settings.patience),
            settings,
            metrics,
            unfit: RwLock::new(None),
            tasks: TaskTracker::new(),
        });
        let closed = CancellationToken::new();
        let readers = match &shared.settings.kind {
            Kind::Streams(settings) => Some(Readers::start(&shared, settings, &closed)),
            _ => None,
        };
        let (watching, ended) = (watch_state(shared.clone()), closed.clone());
        shared.tasks.spawn(async move { ended.run_until_cancelled(watching).await });
        RedisBus { shared, readers, adapters: Arc::default(), closed }
    }

    /// The connection, for what else is kept in Redis.
    pub fn link(&self) -> Link {
        Link(self.shared.redis.clone())
    }

    /// Returns when the node can speak and hear, or must not.
    pub async fn ready(&self) {
        let mut watch = self.shared.redis.watch();
        while self.state() != BusState::Up && self.shared.unfit().is_none() {
            // A reader finds its place a moment after the connection is there.
            let _ = timeout(Duration::from_millis(20), watch.changed()).await;
        }
        self.shared.redis.confirm_all().await;
    }
}

impl Bus for RedisBus {
    fn adapter(&self, namespace: &Arc<str>, local: Weak<dyn Local>) -> Arc<dyn Adapter> {
        let shared = &self.shared;
        let (adapter, made): (Arc<dyn Adapter>, Made) = match (&shared.settings.kind, &self.readers) {
            (Kind::Sharded(mode), _) => {
                let adapter = Sharded::start(shared, namespace, local, *mode);
                (adapter.clone(), Made::Sharded(Arc::downgrade(&adapter)))
            }
            (Kind::Streams(settings), Some(readers)) => {
                let adapter = Streams::start(shared, namespace, local, (settings, readers));
                (adapter.clone(), Made::Streams(Arc::downgrade(&adapter)))
            }
            // Streams have readers always.
            (Kind::Pubsub | Kind::Streams(_), _) => {
                let adapter = Pubsub::start(shared, namespace, local);
                (adapter.clone(), Made::Pubsub(Arc::downgrade(&adapter)))
            }
        };
        let mut adapters = self.adapters.lock();
        adapters.retain(|made| !made.is_gone());
        adapters.push(made);
        adapter
    }

    fn state(&self) -> BusState {
        if let Some(why) = self.shared.unfit() {
            return BusState::Unfit { why };
        }
        match (self.shared.redis.state(), &self.shared.settings.kind, &self.readers) {
            (RedisState::Connecting, ..) => BusState::Away { why: "not yet connected to Redis".into() },
            (RedisState::Away(reason), ..) => BusState::Away { why: reason.into() },
            (RedisState::Up, Kind::Streams(settings), Some(readers))
                if !readers.are_reading(settings.count) =>
            {
                BusState::Away { why: "the stream is not yet read".into() }
            }
            (RedisState::Up, ..) => match self.shared.redis.refusing() {
                Some(why) => BusState::Away { why: why.into() },
                None => BusState::Up,
            },
        }
    }

    fn delivers_own(&self) -> bool {
        matches!(self.shared.settings.kind, Kind::Streams(_))
    }

    fn recovers(&self) -> bool {
        matches!(&self.shared.settings.kind, Kind::Streams(settings) if settings.recovery.is_some())
    }

    fn outlives_node(&self) -> Option<Duration> {
        let Kind::Streams(settings) = &self.shared.settings.kind else { return None };
        settings.recovery
    }

    fn close(&self) -> Pending<()> {
        let (shared, closed) = (self.shared.clone(), self.closed.clone());
        let adapters = std::mem::take(&mut *self.adapters.lock());
        Box::pin(async move {
            for made in adapters {
                made.close().await;
            }
            // What was handed over before goes out first: sessions, mostly.
            if let Ok(last) = shared.redis.post(redis::cmd("PING")) {
                let _ = timeout(shared.settings.patience, last).await;
            }
            closed.cancel();
            shared.redis.close().await;
            shared.tasks.close();
            // What still waits for the answers of clients has nobody to tell them to any more.
            let _ = timeout(shared.settings.patience, shared.tasks.wait()).await;
        })
    }
}

/// Between two looks at what the connection counts.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the metrics of the connection, and looks for a fleet of another kind whenever there is a connection anew.
async fn watch_state(shared: Arc<Shared>) {
    let mut watch = shared.redis.watch();
    let mut dropped = 0;
    loop {
        let is_up = *watch.borrow_and_update() == RedisState::Up;
        shared.metrics.set_connected(is_up);
        if is_up {
            look_for_others(&shared).await;
        }
        while let Err(_still_so) = timeout(LOOK, watch.changed()).await {
            let now = shared.redis.dropped();
            shared.metrics.record_missed(now - dropped);
            dropped = now;
        }
    }
}

/// Looks whether adapters of another kind listen on the channels of the namespace that every fleet has.
async fn look_for_others(shared: &Shared) {
    let prefix = &shared.settings.prefix;
    let (channel, seen) = match &shared.settings.kind {
        // Classic adapters have a pattern for this channel, so whoever subscribes to it is none of them.
        Kind::Pubsub => (format!("{prefix}#/#"), "a streams adapter listens"),
        Kind::Streams(settings) if !settings.sharded_pubsub => {
            (format!("{prefix}-request#/#"), "a classic adapter listens")
        }
        // Sharded channels are a world of their own.
        _ => return,
    };
    if shared.redis.subscribers(Via::Channel, &channel).await.is_ok_and(|others| others > 0) {
        shared.is_unfit(seen);
    }
}
