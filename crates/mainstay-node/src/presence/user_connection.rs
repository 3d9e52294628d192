//! One connection of a user, as presence tells it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// One connection of a user, as the API and Redis tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserConnection {
    /// The Socket.IO id, or that of a client of the JSON protocol.
    pub socket_id: String,
    /// The node that it is on.
    pub node_id: String,
    /// Since when: ISO 8601, UTC, milliseconds.
    pub connected_at: String,
    /// `online`, until the client says something else.
    pub status: String,
}

impl UserConnection {
    pub(super) fn new(socket: &str, node: &str) -> Self {
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
pub(crate) struct PresenceError;
