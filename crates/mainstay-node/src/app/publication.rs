//! What back-end code publishes to clients.

use crate::auth::User;
use socketio_redis::value::Value;

/// What is published, and to whom.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Publication {
    /// To whom.
    pub target: PublishTarget,
    /// The event's name; `message` unless said.
    pub event: String,
    /// Its data.
    pub data: Value,
}

/// Who gets it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PublishTarget {
    /// Everybody in the room.
    Room(String),
    /// Every connection of the user.
    User(User),
}
