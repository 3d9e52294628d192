//! The life of a node, from its settings to its end.
//!
//! 1. the other nodes: in the process, or through Redis ([`World`]).
//! 2. presence, seats, counters, the ways in; then requests are served.
//! 3. [`Node::drain`]: `/health` says 503 at once, so that the balancer sends nobody; nobody is let in any more; the
//!    clients are closed with 1012, spread over the drain time.
//! 4. presence is removed, the others are told, the listener closes, and the last answers go out.
//!
//! Every step after 3 has a limit of its own, so the end comes at most [`LATE`] after the drain time.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::shutdown::Shutdown;

use super::config::Settings;
use super::limits::Seats;
use super::metrics::Metrics;
use super::presence::{Presence, Roll};
use super::routes::Routes;
use super::server;

/// How much later than the drain time the end may be.
const LATE: Duration = Duration::from_secs(10);

/// What the nodes of one process share when there is no Redis.
#[derive(Clone, Default)]
pub struct World {
    /// Who is connected to any of them.
    roll: Arc<Roll>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// Its address.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// As it was given.
        address: std::net::SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// Its Redis.
    #[error("--redis: {0}")]
    Redis(String),
}

/// A running node.
pub struct Node {
    routes: Arc<Routes>,
    /// Ends the server.
    stop: CancellationToken,
    /// The server's one task.
    server: Mutex<JoinSet<()>>,
    address: std::net::SocketAddr,
}

impl Node {
    /// Binds the address of the settings and serves.
    ///
    /// # Errors
    ///
    /// Why it does not start.
    pub async fn start(settings: Settings, world: &World) -> Result<Self, StartFault> {
        let address = settings.listen;
        let listener = server::listen(address, settings.reuse_port);
        let listener = listener.map_err(|error| StartFault::Listen { address, error })?;
        Self::start_on(listener, settings, world).await
    }

    /// Serves on a listener that is there.
    ///
    /// # Errors
    ///
    /// Why it does not start.
    pub async fn start_on(
        listener: TcpListener,
        settings: Settings,
        world: &World,
    ) -> Result<Self, StartFault> {
        let address =
            listener.local_addr().map_err(|error| StartFault::Listen { address: settings.listen, error })?;
        let idle = settings.clients.idle;
        let routes = Arc::new(routes(settings, world));
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(server::serve(listener, Arc::clone(&routes), idle, stop.clone()));
        info!(node = %routes.settings.id, %address, "listening");
        Ok(Self { routes, stop, server: Mutex::new(tasks), address })
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Ends the node, its clients spread over the drain time. Says whether everything ended in order and in time.
    pub async fn drain(&self) -> bool {
        let over = self.routes.settings.clients.drain;
        self.routes.shutdown.begin();
        let in_order = timeout(over + LATE, self.end(over)).await;
        self.routes.shutdown.stop();
        in_order == Ok(true)
    }

    async fn end(&self, _over: Duration) -> bool {
        let is_tidy = self.routes.presence.close().await;
        self.stop.cancel();
        let server = std::mem::take(&mut *self.server.lock());
        server.join_all().await;
        is_tidy
    }
}

fn routes(settings: Settings, world: &World) -> Routes {
    let seats = Seats::new(settings.clients.max_connections);
    let presence = Presence::in_memory(&settings.id, Arc::clone(&world.roll));
    Routes {
        metrics: Metrics::new(&seats),
        presence: Arc::new(presence),
        shutdown: Shutdown::new(),
        seats,
        settings,
    }
}
