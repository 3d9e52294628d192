//! The end of a handshake: a node has accepted, its client is told 101, and both sockets go to the relay.
//!
//! Invariant I5: the client's 101 is made from a node's valid 101, and what the client sent behind its request is
//! handed over with the sockets.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Empty};

use super::client_connection::ClientConnection;
use super::node_handshake::{AcceptedUpgrade, WebSocketUpgrade, set_upgrade};
use super::session::ProxySession;
use super::state::ProxyState;
use crate::http::headers;
use crate::http::server::Reply;
use crate::log::{AccessLog, SessionOpened};
use crate::metrics::{HandshakeResult, NodePermit, PoolMeter};
use crate::net::connection_limit::ConnectionPermit;
use crate::net::stream::Stream;
use crate::pool::select::Candidate;
use crate::relay::{SessionInfo, Tunnel, TunnelLimits};
use crate::ws::handshake;

/// A tunnel whose node has accepted, while its client is told.
pub(super) struct PendingTunnel {
    node: Stream,
    from_node: Bytes,
    limits: TunnelLimits,
    info: SessionInfo,
    begun: Instant,
    outcome: HandshakeOutcome,
    state: Arc<ProxyState>,
}

/// A tunnel whose client has been told, too.
pub(super) struct Handoff {
    /// The tunnel.
    pub tunnel: PendingTunnel,
    /// The client's side.
    pub client: Stream,
    /// What the client has sent behind its request.
    pub early: Bytes,
    /// Counts the client's connection.
    pub permit: ConnectionPermit,
}

/// A tunnel for the relay.
pub(super) struct OpenTunnel {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Its generation, to be dropped after the adoption: whoever waits for the last session of it waits for that, too.
    _state: Arc<ProxyState>,
}

/// Counts the result of a handshake once, when it is dropped. Unless it is set, the handshake has failed: the client has
/// left before it was told.
struct HandshakeOutcome {
    meter: Arc<PoolMeter>,
    result: HandshakeResult,
}

impl Drop for HandshakeOutcome {
    fn drop(&mut self) {
        self.meter.record_handshake(self.result);
    }
}

/// The client's 101 from a node's: the node's fields, and the cookie that pins the client to it.
pub(super) fn accept_upgrade(
    connection: &ClientConnection,
    session: &ProxySession,
    upgrade: &WebSocketUpgrade,
    accepted: AcceptedUpgrade,
) -> Reply<PendingTunnel> {
    let AcceptedUpgrade { candidate, permit, node, from_node, mut fields } = accepted;
    let (pool, query) = (&session.pool, upgrade.query());
    session.end_polling(connection, query);
    pool.idle_timeout_lint.check_first_frame(&pool.config, query, &from_node);
    headers::strip_hop_by_hop(&mut fields);
    set_upgrade(&mut fields);
    session.set_cookies(&candidate, &mut fields);
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = handshake::YES;
    *response.headers_mut() = fields;
    let tunnel = PendingTunnel {
        node,
        from_node,
        limits: TunnelLimits {
            idle_timeout: pool.config.timeouts.idle,
            max_message_size: pool.config.messages.max_size.unwrap_or(u64::MAX),
            ping_interval: pool.config.messages.ping,
            close_timeout: pool.config.timeouts.close,
        },
        info: session_info(session, &candidate, permit),
        begun: session.begun,
        outcome: HandshakeOutcome { meter: Arc::clone(&pool.meter), result: HandshakeResult::Failed },
        state: Arc::clone(&session.state),
    };
    Reply { response, upgrade: Some(tunnel) }
}

fn session_info(session: &ProxySession, candidate: &Candidate, permit: NodePermit) -> SessionInfo {
    SessionInfo {
        id: session.id,
        client: session.client.address,
        node_connection: permit,
        route: Arc::clone(&session.route),
        generation: session.state.generation,
        opened_at: session.opened_at,
        affinity: (candidate.source_label(), candidate.outcome.as_str()),
        key: session.key(candidate).map(u64::into),
        trace: session.trace,
        permit: None,
    }
}

impl Handoff {
    /// Takes both sockets out of tokio and rustls; `None` where one is lost. The session is open from here on.
    pub(super) fn open(self, access_log: &AccessLog) -> Option<OpenTunnel> {
        let Self { tunnel: pending, client, early, permit } = self;
        let lost = |error| tracing::debug!(%error, "client socket lost before the relay");
        let (client, client_tls) = client.into_raw_parts().map_err(lost).ok()?;
        let lost = |error| tracing::warn!(%error, "node socket lost before the relay");
        let (node, node_tls) = pending.node.into_raw_parts().map_err(lost).ok()?;
        let mut outcome = pending.outcome;
        outcome.result = HandshakeResult::Upgraded;
        outcome.meter.record_handshake_time(pending.begun.elapsed());
        drop(outcome);
        let info = SessionInfo { permit: Some(permit), ..pending.info };
        access_log.log_opened(SessionOpened { at: SystemTime::now(), session: info.to_log_session() });
        let tunnel = Tunnel {
            client,
            node,
            client_tls,
            node_tls,
            from_client: early,
            from_node: pending.from_node,
            limits: pending.limits,
            info,
        };
        Some(OpenTunnel { tunnel, _state: pending.state })
    }
}
