//! The hub: what the clients of a node and of its peers share, whichever protocol they speak.
//!
//! # The life of an event
//!
//! 1. somebody names who is meant: [`Namespace::to`], [`Namespace::all`], and emits ([`Selection::emit`]).
//! 2. the other nodes get it through the namespace's [`socketio_redis::adapter::NamespaceAdapter`].
//! 3. this node's sockets that are meant are looked up, each once (`room_index`).
//! 4. it is encoded once ([`Event`]) and put into each client's queue ([`ClientConnection::event`]).
//!
//! On a bus that delivers own broadcasts, 3 and 4 happen when the event comes back, so that all nodes see one order.
//!
//! # Rules
//!
//! No lock is held across an await or while the application is called. Nothing here waits for a client: what one does
//! not read is its connection's to bound. The namespaces are fixed when the hub is made.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::context::HubContext;
use crate::metrics::Metrics;
use socketio_redis::adapter::{Adapter, AdapterState};

mod ack_collector;
mod active_replays;
mod context;
mod event;
mod local;
mod namespace;
mod pending_acks;
mod publish_future;
mod room_index;
mod selection;
mod session_checkpoint;
mod session_recovery;
mod socket;
mod socket_rooms;
#[cfg(test)]
mod tests;

pub use ack_collector::{AckError, AckResult};
pub use event::Event;
pub use namespace::{Namespace, ServerEvent, ServerEventListener};
pub use publish_future::PublishFuture;
pub use selection::Selection;
pub use session_recovery::SessionRecovery;
pub use socket::{ClientConnection, NewSocket, Socket};

/// The namespaces of one node.
pub struct Hub {
    namespaces: HashMap<Arc<str>, Arc<Namespace>>,
    /// `/`, which every hub has.
    main: Arc<Namespace>,
    bus: Arc<dyn Adapter>,
    context: Arc<HubContext>,
}

impl Hub {
    /// A hub with `/` and these namespaces.
    pub fn new(bus: Arc<dyn Adapter>, namespaces: &[String], metrics: &Metrics) -> Arc<Self> {
        let shared = Arc::new(HubContext {
            metrics: metrics.clone(),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            delivers_own: bus.delivers_own_broadcasts(),
            recovers: bus.recovers_sessions(),
        });
        let open = |name: &str| Namespace::open(Arc::from(name), &*bus, shared.clone());
        let main = open("/");
        let others = namespaces.iter().filter(|name| *name != "/").map(|name| open(name));
        let namespaces = others.chain([main.clone()]).map(|nsp| (nsp.name().clone(), nsp)).collect();
        Arc::new(Self { namespaces, main, bus, context: shared })
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// `/`.
    pub fn main(&self) -> &Arc<Namespace> {
        &self.main
    }

    /// Whether the other nodes can be reached now.
    pub fn bus_state(&self) -> AdapterState {
        self.bus.state()
    }

    /// Whether a client's session can be taken up again after its connection broke.
    pub fn recovers(&self) -> bool {
        self.context.recovers
    }

    /// Lets go of the other nodes. The clients should have gone before, so that their sessions are kept.
    pub async fn close(&self) {
        // What is on its way to the other nodes still goes out, and what waits for time to pass ends.
        self.context.end.cancel();
        self.context.tasks.close();
        self.context.tasks.wait().await;
        self.bus.close().await;
    }
}
