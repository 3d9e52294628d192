//! A session in the relay: what it is, its limits, the tunnel that carries it, and its one end.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::close_reason::CloseReason;
use crate::log::{AccessSession, AffinityLabels};
use crate::metrics::{CloseSide, NodePermit};
use crate::net::connection_limit::ConnectionPermit;
use crate::net::tls::extracted::ExtractedTls;

/// What the relay knows about a session. It is given back with the end of the session.
#[derive(Debug)]
pub struct SessionInfo {
    /// Unique in the process.
    pub id: u64,
    /// The client, as the front desk believes it to be.
    pub client: IpAddr,
    /// Counts the tunnel on its node until it is dropped.
    pub node_connection: NodePermit,
    /// The route that the request matched, as written in the config.
    pub route: Arc<str>,
    /// Generation of the state that the session was opened under.
    pub generation: u32,
    /// When the upgrade request was read.
    pub opened_at: SystemTime,
    /// The affinity source that selected the node, and its outcome: the labels of `affinity_total`.
    pub affinity: (&'static str, &'static str),
    /// The key that the client is hashed by, where only a key decides on its node.
    pub key: Option<HashKey>,
    /// The trace id that the node was sent.
    pub trace: [u8; 16],
    /// Counts the client's connection until it is dropped; `None` where connections are not counted.
    pub permit: Option<ConnectionPermit>,
}

/// The key that a client is hashed by. It has no alignment, so that an optional one takes 9 bytes and not 16: every idle
/// tunnel has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u8; 8]);

impl HashKey {
    /// The key as a number.
    pub fn get(self) -> u64 {
        u64::from_ne_bytes(self.0)
    }
}

impl From<u64> for HashKey {
    fn from(key: u64) -> Self {
        Self(key.to_ne_bytes())
    }
}

impl SessionInfo {
    /// The session as the access log names it.
    pub(crate) fn to_log_session(&self) -> AccessSession {
        AccessSession {
            id: self.id,
            trace: self.trace,
            client: Some(self.client),
            route: Arc::clone(&self.route),
            pool: Arc::clone(&self.node_connection.pool),
            node: Arc::clone(&self.node_connection.node),
            affinity: AffinityLabels { source: self.affinity.0, outcome: self.affinity.1 },
        }
    }
}

/// The limits of a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// Without a byte in either direction for this long, the tunnel is closed with 1001.
    pub idle_timeout: Duration,
    /// The most payload bytes of one message; `u64::MAX` is no limit. Over it both sides get 1009.
    pub max_message_size: u64,
    /// A client that sends nothing for this long gets a Ping of the balancer's; after as long again without a byte the
    /// tunnel is closed. `None`: no Pings.
    pub ping_interval: Option<Duration>,
    /// Once one side has sent a Close, ended its stream or hung up, the other has this long to do the same.
    pub close_timeout: Duration,
}

/// A tunnel to be adopted by the relay.
#[derive(Debug)]
pub struct Tunnel {
    /// The client's socket, non-blocking.
    pub client: OwnedFd,
    /// The node's socket, non-blocking.
    pub node: OwnedFd,
    /// The client's TLS connection, if it has one; what it has decrypted follows `from_client`.
    pub client_tls: Option<ExtractedTls>,
    /// The TLS connection to the node, if it has one; what it has decrypted follows `from_node`.
    pub node_tls: Option<ExtractedTls>,
    /// Bytes already read from the client, for the node.
    pub from_client: Bytes,
    /// Bytes already read from the node, for the client.
    pub from_node: Bytes,
    /// Its limits.
    pub limits: TunnelLimits,
    /// The session.
    pub info: SessionInfo,
}

/// How a tunnel ended (invariant I7: exactly one for each).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// Who ended it.
    pub side: CloseSide,
    /// The close code: of the first Close frame, or 1006 where there was none.
    pub code: u16,
    /// Why it ended.
    pub reason: CloseReason,
    /// From adoption to the end.
    pub duration: Duration,
    /// Bytes read from the client and from the node.
    pub bytes: [u64; 2],
    /// Text and binary messages from the client and from the node.
    pub messages: [u64; 2],
}

impl SessionEnd {
    /// The end of a tunnel that the balancer ended before anything passed.
    pub(super) fn without_traffic(code: u16, reason: CloseReason) -> Self {
        let (bytes, messages) = ([0; 2], [0; 2]);
        Self { side: CloseSide::Balancer, code, reason, duration: Duration::ZERO, bytes, messages }
    }
}

/// Called with the end of each session, on a relay thread: it must not block.
pub type CloseObserver = Arc<dyn Fn(&SessionInfo, &SessionEnd) + Send + Sync>;
