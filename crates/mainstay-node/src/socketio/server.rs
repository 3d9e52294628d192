//! The Socket.IO server: it takes in the connections of the Engine.IO server.

use std::borrow::Cow;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::application::Application;
use super::client::SocketIoClient;
use super::connect_timeout::PendingConnections;
use super::context::{SocketIoContext, SocketIoSettings};
use crate::engine_io::{Connection, ConnectionHandler, Handshake, MessageHandler, Revision};
use crate::hub::Hub;
use crate::metrics::RefusalReason;

/// The Socket.IO server of a node.
pub struct SocketIoServer {
    context: Arc<SocketIoContext<SocketIoClient>>,
}

impl SocketIoServer {
    /// A server whose clients talk to `application`. Needs a tokio runtime with its timer.
    pub fn new(hub: &Arc<Hub>, settings: SocketIoSettings, application: Arc<dyn Application>) -> Arc<Self> {
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let pending = PendingConnections::new(settings.pending);
        let shared = SocketIoContext { hub: hub.clone(), application, settings, pending, tasks, end };
        let shared = Arc::new(shared);
        let context = shared.clone();
        shared.tasks.spawn(async move {
            let closing = context.pending.close_late(SocketIoClient::connect_timed_out);
            context.end.run_until_cancelled(closing).await
        });
        Arc::new(Self { context: shared })
    }

    /// Ends what is under way for clients; the connections themselves are the Engine.IO server's.
    pub async fn close(&self) {
        self.context.end.cancel();
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }
}

impl ConnectionHandler for SocketIoServer {
    fn admit(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        let origins = handshake.headers().filter(|(name, _)| *name == "origin");
        if self.context.settings.origins.allows(origins.map(|(_, value)| value.as_bytes())) {
            return Ok(());
        }
        self.context.settings.metrics.count_refusal(RefusalReason::Origin);
        Err("pages of this origin may not connect".into())
    }

    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn MessageHandler> {
        let client = SocketIoClient::open(&self.context, connection);
        client.await_admission();
        if connection.revision() == Revision::Three {
            // A client of that protocol is in `/` without asking.
            client.connect("/", None);
        }
        client
    }
}
