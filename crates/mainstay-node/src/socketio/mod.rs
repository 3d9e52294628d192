//! Socket.IO on top of the Engine.IO server: one [`SocketIoClient`] for each connection, in one or more namespaces.
//!
//! # The life of a session
//!
//! 1. a connection opens. It holds no seat yet; of those that do not go on, the oldest make way (`connect_timeout`).
//! 2. CONNECT names a namespace; the application admits the client or says why not ([`Application::admit`]). Who is
//!    admitted takes a seat, or is refused when there is none (`Server at capacity`).
//! 3. with `pid` and `offset` its earlier session is taken up; otherwise it gets a new id.
//! 4. events go to the application, in order; answers find whoever asked.
//! 5. the client leaves a namespace, is taken out of it, or its connection ends; only then is its session kept.
//!
//! A connection that was admitted nowhere after [`SocketIoSettings::connect_timeout`] is closed. What is against the protocol
//! closes at once, as Node does. The application is called on the connection's task and must not block.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine_io::{Connection, ConnectionHandler, Handshake, MessageHandler, Revision};
use super::hub::Hub;
use super::limits::{ConnectionLimiter, RateLimits};
use super::metrics::{Metrics, RefusalReason};
use mainstay_core::origin::Origins;

mod application;
mod connect_timeout;
mod handshake_facts;
mod session;

pub use application::{Admission, Application, ConnectError, ConnectRequest, Reply};
pub use connect_timeout::PendingLimits;
pub use session::SocketIoClient;

use connect_timeout::PendingConnections;

/// What a node gives its Socket.IO side.
pub struct SocketIoSettings {
    /// A connection must be in a namespace by then. Node's default is 45 s.
    pub connect_timeout: Duration,
    /// How many connections may be in no namespace yet.
    pub pending: PendingLimits,
    /// Web pages that may connect.
    pub origins: Origins,
    /// What each client may say in a second.
    pub rates: RateLimits,
    /// The node's seats.
    pub seats: Arc<ConnectionLimiter>,
    /// The node's counters.
    pub metrics: Metrics,
}

/// Node's `connectTimeout`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);

/// The Socket.IO side of a node. See the module.
pub struct SocketIoServer {
    shared: Arc<SocketIoContext>,
}

/// What the sessions have in common.
struct SocketIoContext {
    hub: Arc<Hub>,
    application: Arc<dyn Application>,
    settings: SocketIoSettings,
    /// Those that are in no namespace yet.
    pending: PendingConnections,
    /// Restorations and the ends of tokens.
    tasks: TaskTracker,
    /// Cancelled at the end.
    end: CancellationToken,
}

impl SocketIoServer {
    /// A Socket.IO side whose clients talk to `application`. Needs a tokio runtime with its timer.
    pub fn new(hub: &Arc<Hub>, settings: SocketIoSettings, application: Arc<dyn Application>) -> Arc<Self> {
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let pending = PendingConnections::new(settings.pending);
        let shared = SocketIoContext { hub: hub.clone(), application, settings, pending, tasks, end };
        let shared = Arc::new(shared);
        let watching = shared.clone();
        shared
            .tasks
            .spawn(async move { watching.end.run_until_cancelled(watching.pending.close_late()).await });
        Arc::new(Self { shared })
    }

    /// Ends what is under way for clients; the connections themselves are the Engine.IO server's.
    pub async fn close(&self) {
        self.shared.end.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl ConnectionHandler for SocketIoServer {
    fn admit(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        let origins = handshake.headers().filter(|(name, _)| *name == "origin");
        if self.shared.settings.origins.allows(origins.map(|(_, value)| value.as_bytes())) {
            return Ok(());
        }
        self.shared.settings.metrics.count_refusal(RefusalReason::Origin);
        Err("pages of this origin may not connect".into())
    }

    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn MessageHandler> {
        let session = SocketIoClient::open(&self.shared, connection);
        session.await_admission();
        if connection.revision() == Revision::Three {
            // A client of that protocol is in `/` without asking.
            session.connect("/", None);
        }
        session
    }
}
