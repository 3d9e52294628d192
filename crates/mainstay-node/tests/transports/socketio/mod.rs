//! The node's Socket.IO side over real sockets: what Node.js answered, and recovery.

mod corpus;
mod recovery;
mod talk;

use std::sync::Arc;
use std::time::Duration;

use mainstay_core::origin::Origins;
use mainstay_node::engine_io::{self, EngineServer};
use mainstay_node::hub::Hub;
use mainstay_node::limits::{ConnectionLimiter, RateLimits};
use mainstay_node::metrics::Metrics;
use mainstay_node::socketio::{CONNECT_TIMEOUT, PendingLimits, SocketIoServer, SocketIoSettings};
use socketio_redis::memory::MemoryAdapter;

use crate::listening::{Client, Listening};
use crate::soon;
use talk::Talk;

/// What a test wants of a node.
struct Wanted {
    engine: engine_io::EngineSettings,
    connect_timeout: Duration,
    rates: RateLimits,
    limiter: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            engine: engine_io::EngineSettings::default(),
            connect_timeout: CONNECT_TIMEOUT,
            rates: RateLimits { messages: 0, bytes: 0 },
            limiter: 100,
        }
    }
}

/// A node on a port of its own.
struct Node {
    hub: Arc<Hub>,
    server: EngineServer,
    listening: Listening,
}

impl Node {
    async fn start(bus: &Arc<MemoryAdapter>, wanted: Wanted) -> Self {
        let limiter = ConnectionLimiter::new(wanted.limiter);
        let metrics = Metrics::new(&limiter);
        let namespaces = ["/admin", "/auth", "/auth2", "/plain", "/dyn-7"].map(String::from);
        let hub = Hub::new(bus.clone(), &namespaces, &metrics);
        let settings = SocketIoSettings {
            connect_timeout: wanted.connect_timeout,
            pending: PendingLimits { most: 20, per_address: 20 },
            origins: Origins::default(),
            rates: wanted.rates,
            limiter,
            metrics,
        };
        let server = EngineServer::new(wanted.engine, SocketIoServer::new(&hub, settings, Talk::new(&hub)));
        let listening = Listening::start(server.clone()).await;
        Self { hub, server, listening }
    }

    /// A raw client whose open packet is taken.
    async fn open(&self) -> Client {
        Client::open(self.listening.address).await
    }
}

impl Client {
    /// Into `/`; the answer's ids.
    async fn enter(&mut self, auth: &str) -> (String, Option<String>) {
        self.say(&format!("40{auth}")).await;
        ids(&self.text().await)
    }
}

/// The ids in an answer to CONNECT.
fn ids(answer: &str) -> (String, Option<String>) {
    let ids: serde_json::Value = serde_json::from_str(answer.strip_prefix("40").expect(answer)).unwrap();
    let text = |key: &str| ids[key].as_str().map(str::to_owned);
    (text("sid").unwrap(), text("pid"))
}
