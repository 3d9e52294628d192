//! Who is connected, where, and since when.
//!
//! Without Redis the nodes of one process share a [`Roll`]. With it each node keeps its own connections in Redis
//! (`scripts` says under which keys), written by one task (`writer`) in the order of events. A node that ends takes
//! its connections with it; one that dies without a word is tidied up after by the others when its lease has run out.
//!
//! Rules: [`Presence::arrived`], [`Presence::has_status`] and [`Presence::left`] never wait. While Redis is away the node knows its own
//! connections, and writes all of them anew when it is back.

mod scripts;
mod writer;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use redis::aio::ConnectionLike;
use serde::{Deserialize, Serialize};

use super::auth::User;
use scripts::Keys;
use writer::{Keeper, Own};

/// One connection of a user, as the API and Redis tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// The Socket.IO id, or that of a plain WebSocket.
    pub socket_id: String,
    /// The node that it is on.
    pub node_id: String,
    /// Since when: ISO 8601, UTC, milliseconds.
    pub connected_at: String,
    /// `online`, until the client says something else.
    pub status: String,
}

impl Connection {
    fn new(socket: &str, node: &str) -> Self {
        Self {
            socket_id: socket.into(),
            node_id: node.into(),
            connected_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            status: "online".into(),
        }
    }
}

/// Redis cannot be asked at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("presence is not known while Redis is away")]
pub struct Away;

/// What the nodes of one process know together.
pub type Roll = Mutex<HashMap<User, Vec<Connection>>>;

/// Where presence is kept in Redis.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// Of the keys.
    pub prefix: &'a str,
    /// Whether it is a Redis Cluster.
    pub is_cluster: bool,
    /// How long a silent node is believed.
    pub lease: Duration,
}

type Asked = Pin<Box<dyn Future<Output = Result<Vec<Connection>, Away>> + Send>>;

/// The presence of one node's clients, and the way to ask about everybody's.
pub struct Presence {
    /// The node's name.
    node: Arc<str>,
    kept: Kept,
}

enum Kept {
    /// In the process.
    Memory(Arc<Roll>),
    /// In Redis.
    Redis { own: Arc<Own>, ask: Box<dyn Fn(&User) -> Asked + Send + Sync>, keeper: Keeper },
}

impl Presence {
    /// In memory, shared with the other nodes that have the roll.
    pub fn in_memory(node: &Arc<str>, roll: Arc<Roll>) -> Self {
        Self { node: Arc::clone(node), kept: Kept::Memory(roll) }
    }

    /// In Redis. The connection reconnects by itself.
    pub fn in_redis<L>(node: &Arc<str>, place: &Place, link: L) -> Self
    where
        L: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let keys = Keys::new(place.prefix, place.is_cluster);
        let own = Arc::new(Own::default());
        let keeper = Keeper::start(node, place.lease, (keys.clone(), Arc::clone(&own)), link.clone());
        let ask = Box::new(move |user: &User| -> Asked {
            let (key, link) = (keys.user(user.as_str()), link.clone());
            Box::pin(connections(link, key))
        });
        Self { node: Arc::clone(node), kept: Kept::Redis { own, ask, keeper } }
    }

    /// A client of this node is there.
    pub fn arrived(&self, user: &User, socket: &str) {
        let connection = Connection::new(socket, &self.node);
        match &self.kept {
            Kept::Memory(roll) => roll.lock().entry(user.clone()).or_default().push(connection),
            Kept::Redis { own, .. } => own.arrived(user, connection),
        }
    }

    /// A client of this node has gone.
    pub fn left(&self, user: &User, socket: &str) {
        match &self.kept {
            Kept::Memory(roll) => {
                let mut roll = roll.lock();
                if let Some(connections) = roll.get_mut(user) {
                    connections.retain(|connection| connection.socket_id != socket);
                    if connections.is_empty() {
                        roll.remove(user);
                    }
                }
            }
            Kept::Redis { own, .. } => own.left(user, socket),
        }
    }

    /// A client of this node has said how it is.
    pub fn has_status(&self, user: &User, socket: &str, status: &str) {
        match &self.kept {
            Kept::Memory(roll) => {
                let mut roll = roll.lock();
                let mut connections = roll.get_mut(user).into_iter().flatten();
                if let Some(connection) = connections.find(|connection| connection.socket_id == socket) {
                    connection.status = status.into();
                }
            }
            Kept::Redis { own, .. } => own.has_status(user, socket, status),
        }
    }

    /// The connections of a user on all nodes, the newest first.
    ///
    /// # Errors
    ///
    /// Redis is away.
    pub async fn of(&self, user: &User) -> Result<Vec<Connection>, Away> {
        let mut connections = match &self.kept {
            Kept::Memory(roll) => roll.lock().get(user).cloned().unwrap_or_default(),
            Kept::Redis { ask, .. } => ask(user).await?,
        };
        connections.sort_by(|a, b| b.connected_at.cmp(&a.connected_at));
        Ok(connections)
    }

    /// Whether there may be servers that it knows nothing of.
    pub fn is_shared(&self) -> bool {
        matches!(self.kept, Kept::Redis { .. })
    }

    /// Removes what is left of this node's clients and ends. Says whether nothing is left behind; what is left is
    /// removed by the other nodes when the lease has run out.
    pub async fn close(&self) -> bool {
        match &self.kept {
            Kept::Memory(roll) => {
                roll.lock().retain(|_, connections| {
                    connections.retain(|connection| *connection.node_id != *self.node);
                    !connections.is_empty()
                });
                true
            }
            Kept::Redis { keeper, .. } => keeper.close().await,
        }
    }
}

async fn connections<L: ConnectionLike>(mut link: L, key: String) -> Result<Vec<Connection>, Away> {
    let fields: HashMap<String, String> =
        redis::cmd("HGETALL").arg(key).query_async(&mut link).await.map_err(|_| Away)?;
    // Fields of others, and entries of a later version, are none.
    let own = fields.iter().filter(|(name, _)| name.starts_with("socket:"));
    Ok(own.filter_map(|(_, json)| serde_json::from_str(json).ok()).collect())
}

#[cfg(test)]
mod tests;
