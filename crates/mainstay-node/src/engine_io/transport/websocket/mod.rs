//! A session on a WebSocket: reading its frames, the task that carries it, and the upgrade of a session that polled.

pub(crate) mod accept;
pub(crate) mod reader;
pub(crate) mod socket;
pub(crate) mod upgrade;
