//! What the access log is told: a session opened, or it ended.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// What both lines of a session say about it.
#[derive(Debug, Clone)]
pub struct AccessSession {
    /// The session's number in this process.
    pub id: u64,
    /// The trace that it is part of (W3C Trace Context, `trace-id`), which its node was told, too.
    pub trace: [u8; 16],
    /// The client's address, as far as it is believed; `None` behind a Unix socket that says none.
    pub client: Option<IpAddr>,
    /// The route that took it.
    pub route: Arc<str>,
    /// The pool.
    pub pool: Arc<str>,
    /// The node.
    pub node: Arc<str>,
    /// What placed it.
    pub affinity: AffinityLabels,
}

/// The labels of `mainstay_affinity_total` for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AffinityLabels {
    /// The affinity source that placed it.
    pub source: &'static str,
    /// How that went.
    pub outcome: &'static str,
}

/// A session has a tunnel.
#[derive(Debug, Clone)]
pub(crate) struct SessionOpened {
    /// When it opened.
    pub at: SystemTime,
    /// Whose line this is.
    pub session: AccessSession,
}

/// A session's tunnel ended.
#[derive(Debug, Clone)]
pub(crate) struct SessionClosed {
    /// When it ended.
    pub at: SystemTime,
    /// Whose line this is.
    pub session: AccessSession,
    /// Who ended it: client, node or balancer.
    pub side: &'static str,
    /// The close code; 1006 when there was none.
    pub code: u16,
    /// Why, in a word.
    pub why: &'static str,
    /// How long the tunnel was open.
    pub duration: Duration,
    /// Bytes from the client and from the node.
    pub bytes: [u64; 2],
    /// Messages from the client and from the node.
    pub messages: [u64; 2],
}

/// What the queue holds.
pub(super) enum AccessEvent {
    Opened(SessionOpened),
    Closed(SessionClosed),
    /// Nothing to write: there is an output to switch to.
    SwitchOutput,
}

#[cfg(test)]
pub(super) mod fixtures {
    use std::time::UNIX_EPOCH;

    use super::*;

    pub(in crate::log) fn opened(id: u64) -> SessionOpened {
        let session = AccessSession {
            id,
            trace: *b"0123456789abcdef",
            client: Some("203.0.113.7".parse().unwrap()),
            route: "chat.example.com/socket.io/".into(),
            pool: "chat".into(),
            node: "ws1".into(),
            affinity: AffinityLabels { source: "cookie", outcome: "kept" },
        };
        SessionOpened { at: UNIX_EPOCH + Duration::from_millis(1_795_515_630_045), session }
    }

    pub(in crate::log) fn closed(id: u64) -> SessionClosed {
        let SessionOpened { at, session } = opened(id);
        SessionClosed {
            at,
            session,
            side: "client",
            code: 1001,
            why: "close frame",
            duration: Duration::from_micros(1_234_567),
            bytes: [10, 20],
            messages: [1, 2],
        }
    }
}
