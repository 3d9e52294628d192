//! The two transports that carry a session: HTTP long-polling, and a WebSocket.

pub(crate) mod polling;
pub(crate) mod websocket;
