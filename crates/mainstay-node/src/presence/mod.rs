//! Who is connected, where, and since when.
//!
//! Without Redis the nodes of one process share a [`Roster`]. With it each node keeps its own connections in Redis
//! (`scripts` says under which keys), written by one task (`writer`) in the order of events. A node that ends takes
//! its connections with it; one that dies without a word is tidied up after by the others when its lease has run out.
//!
//! Rules: [`Presence::add`], [`Presence::set_status`] and [`Presence::remove`] never wait. While Redis is away the node knows its own
//! connections, and writes all of them anew when it is back.

mod local_presence;
mod scripts;
mod user_connection;
mod writer;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::ConnectionLike;

use crate::auth::User;
use local_presence::LocalPresence;
use scripts::PresenceKeys;
use writer::PresenceWriter;

pub(crate) use user_connection::{PresenceError, UserConnection};

/// What the nodes of one process know together.
pub(crate) type Roster = Mutex<HashMap<User, Vec<UserConnection>>>;

/// Where presence is kept in Redis.
#[derive(Debug, Clone)]
pub(crate) struct PresenceSettings<'a> {
    /// Of the keys.
    pub prefix: &'a str,
    /// Whether it is a Redis Cluster.
    pub is_cluster: bool,
    /// How long a silent node is believed.
    pub lease: Duration,
}

type PresenceFuture = Pin<Box<dyn Future<Output = Result<Vec<UserConnection>, PresenceError>> + Send>>;

/// The presence of one node's clients, and the way to ask about everybody's.
pub(crate) struct Presence {
    /// The node's name.
    node: Arc<str>,
    store: PresenceStore,
}

enum PresenceStore {
    /// In the process.
    Memory(Arc<Roster>),
    /// In Redis.
    Redis {
        own: Arc<LocalPresence>,
        ask: Box<dyn Fn(&User) -> PresenceFuture + Send + Sync>,
        keeper: PresenceWriter,
    },
}

impl Presence {
    /// In memory, shared with the other nodes that have the roll.
    pub(crate) fn in_memory(node: &Arc<str>, roll: Arc<Roster>) -> Self {
        Self { node: Arc::clone(node), store: PresenceStore::Memory(roll) }
    }

    /// In Redis. The connection reconnects by itself.
    pub(crate) fn in_redis<L>(node: &Arc<str>, place: &PresenceSettings, link: L) -> Self
    where
        L: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let keys = PresenceKeys::new(place.prefix, place.is_cluster);
        let own = Arc::new(LocalPresence::default());
        let keeper = PresenceWriter::start(node, place.lease, keys.clone(), Arc::clone(&own), link.clone());
        let ask = Box::new(move |user: &User| -> PresenceFuture {
            let (key, link) = (keys.user(user.as_str()), link.clone());
            Box::pin(read_connections(link, key))
        });
        Self { node: Arc::clone(node), store: PresenceStore::Redis { own, ask, keeper } }
    }

    /// A client of this node is there.
    pub(crate) fn add(&self, user: &User, socket: &str) {
        let connection = UserConnection::new(socket, &self.node);
        match &self.store {
            PresenceStore::Memory(roll) => roll.lock().entry(user.clone()).or_default().push(connection),
            PresenceStore::Redis { own, .. } => own.add(user, connection),
        }
    }

    /// A client of this node has gone.
    pub(crate) fn remove(&self, user: &User, socket: &str) {
        match &self.store {
            PresenceStore::Memory(roll) => {
                let mut roll = roll.lock();
                if let Some(connections) = roll.get_mut(user) {
                    connections.retain(|connection| connection.socket_id != socket);
                    if connections.is_empty() {
                        roll.remove(user);
                    }
                }
            }
            PresenceStore::Redis { own, .. } => own.remove(user, socket),
        }
    }

    /// A client of this node has said how it is.
    pub(crate) fn set_status(&self, user: &User, socket: &str, status: &str) {
        match &self.store {
            PresenceStore::Memory(roll) => {
                let mut roll = roll.lock();
                let mut connections = roll.get_mut(user).into_iter().flatten();
                if let Some(connection) = connections.find(|connection| connection.socket_id == socket) {
                    connection.status = status.into();
                }
            }
            PresenceStore::Redis { own, .. } => own.set_status(user, socket, status),
        }
    }

    /// The connections of a user on all nodes, the newest first.
    ///
    /// # Errors
    ///
    /// Redis is away.
    pub(crate) async fn connections_of(&self, user: &User) -> Result<Vec<UserConnection>, PresenceError> {
        let mut connections = match &self.store {
            PresenceStore::Memory(roll) => roll.lock().get(user).cloned().unwrap_or_default(),
            PresenceStore::Redis { ask, .. } => ask(user).await?,
        };
        connections.sort_by(|a, b| b.connected_at.cmp(&a.connected_at));
        Ok(connections)
    }

    /// Whether there may be servers that it knows nothing of.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.store, PresenceStore::Redis { .. })
    }

    /// Removes what is left of this node's clients and ends. Says whether nothing is left behind; what is left is
    /// removed by the other nodes when the lease has run out.
    pub(crate) async fn close(&self) -> bool {
        match &self.store {
            PresenceStore::Memory(roll) => {
                roll.lock().retain(|_, connections| {
                    connections.retain(|connection| *connection.node_id != *self.node);
                    !connections.is_empty()
                });
                true
            }
            PresenceStore::Redis { keeper, .. } => keeper.close().await,
        }
    }
}

async fn read_connections<L: ConnectionLike>(
    mut link: L,
    key: String,
) -> Result<Vec<UserConnection>, PresenceError> {
    let fields: HashMap<String, String> =
        redis::cmd("HGETALL").arg(key).query_async(&mut link).await.map_err(|_| PresenceError)?;
    // Fields of others, and entries of a later version, are none.
    let own = fields.iter().filter(|(name, _)| name.starts_with("socket:"));
    Ok(own.filter_map(|(_, json)| serde_json::from_str(json).ok()).collect())
}

#[cfg(test)]
mod tests;
