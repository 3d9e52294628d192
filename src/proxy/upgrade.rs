//! An upgrade: from a client's request to a tunnel that the relay adopts, or to the node's own refusal.
//!
//! Invariant I5 lives here: the client's 101 is made from a node's valid 101, and what the client sent after its
//! head stays in the guard until then.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;

use super::accept::Connection;
use super::attempt::{AcceptedUpgrade, NodeHandshake, UpgradeAnswer};
use super::polling_session;
use super::request_body::RequestBody;
use super::session::Session;
use super::{ProxyContext, ProxyState};
use crate::http::reply::ProxyError;
use crate::http::{Body, headers};
use crate::log::access;
use crate::metrics::{Handshake, PoolMeter, Seat};
use crate::net::places::Place;
use crate::net::stream::Stream;
use crate::net::tls::departed::Departed;
use crate::pool::pick::Candidate;
use crate::relay::{Record, Rules, Tunnel};
use crate::ws::handshake;

/// A tunnel to be: the node has said yes, and the client is being told.
pub struct Adoptable {
    node: Stream,
    from_node: Bytes,
    rules: Rules,
    record: Record,
    begun: Instant,
    verdict: Verdict,
    /// Who waits for the last session of its generation waits for its adoption, too.
    _state: Arc<ProxyState>,
}

/// Counts how the handshake of a tunnel to be ends, once; it has failed where nobody says otherwise: the client is
/// gone before it could be told.
struct Verdict {
    meter: Arc<PoolMeter>,
    result: Handshake,
}

impl Drop for Verdict {
    fn drop(&mut self) {
        self.meter.handshake(self.result);
    }
}

/// Serves an upgrade request.
pub async fn serve(
    connection: &Connection,
    session: &Session,
    request: Request<RequestBody>,
) -> Result<Response<Body>, ProxyError> {
    let (parts, _) = request.into_parts();
    let offer = handshake::check_request(&parts.method, parts.version, &parts.headers);
    let offer = offer.map_err(ProxyError::Upgrade)?;
    be_admitted(connection, session).await?;
    let fields = fields_for_node(connection, session, parts.headers);
    let front = &connection.front;
    session.pool.retry_budget.lock().on_handshake(session.pool.config.retries, front.now());
    let attempt = NodeHandshake {
        connection,
        session,
        target: &parts.uri,
        fields: &fields,
        offer: &offer,
        deadline: tokio::time::Instant::now() + session.pool.config.timeouts.handshake,
    };
    match attempt.answer().await? {
        UpgradeAnswer::Yes(yes) => {
            polling_session::become_tunnel(connection, session, parts.uri.query());
            Ok(accept(connection, session, parts.uri.query(), *yes))
        }
        UpgradeAnswer::No(candidate, answer) => {
            session.pool.meter.handshake(Handshake::Refused);
            Ok(pass_refusal(session, &candidate, answer))
        }
    }
}

/// Waits for the turn of the handshake. Behind a proxy, the connection becomes its client's own now.
async fn be_admitted(connection: &Connection, session: &Session) -> Result<(), ProxyError> {
    let (limits, client) = (&session.state.limits, session.client.address);
    if client != connection.peer
        && let Some(place) = connection.place.lock().as_mut()
        && !place.claim(client, limits.connections_per_client)
    {
        return Err(ProxyError::ClientConnectionLimit);
    }
    let front = &connection.front;
    front.admission.await_handshake_turn(client, limits.handshakes_per_second, &front.tasks).await
}

fn fields_for_node(connection: &Connection, session: &Session, mut fields: HeaderMap) -> HeaderMap {
    headers::strip_hop_by_hop(&mut fields);
    headers::set_forwarded(&mut fields, connection.peer, &session.client);
    headers::set_client_subject(&mut fields, connection.subject.as_ref());
    as_upgrade(&mut fields);
    fields
}

fn as_upgrade(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// The node has said yes: what the client hears. The tunnel is taken over once that has gone out.
fn accept(
    connection: &Connection,
    session: &Session,
    query: Option<&str>,
    yes: AcceptedUpgrade,
) -> Response<Body> {
    let AcceptedUpgrade { candidate, seat, node, from_node, fields } = yes;
    session.pool.idle_timeout_lint.check_first_frame(&session.pool.config, query, &from_node);
    let adoptable = Adoptable {
        node,
        from_node,
        rules: Rules {
            idle: session.pool.config.timeouts.idle,
            max_message: session.pool.config.messages.max_size.unwrap_or(u64::MAX),
            ping: session.pool.config.messages.ping,
            close: session.pool.config.timeouts.close,
        },
        record: record(session, &candidate, seat),
        begun: session.begun,
        verdict: Verdict { meter: Arc::clone(&session.pool.meter), result: Handshake::Failed },
        _state: Arc::clone(&session.state),
    };
    *connection.handoff.lock() = Some(adoptable);
    answer_yes(session, &candidate, fields)
}

fn record(session: &Session, candidate: &Candidate, seat: Seat) -> Record {
    Record {
        id: session.id,
        client: session.client.address,
        seat,
        route: Arc::clone(&session.route),
        generation: session.state.generation,
        opened_at: session.opened_at,
        affinity: (candidate.source(), candidate.outcome.as_str()),
        key: session.key(candidate),
        trace: session.trace,
        place: None,
    }
}

/// The client's 101: the node's fields, and the pin.
fn answer_yes(session: &Session, candidate: &Candidate, mut fields: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = handshake::YES;
    headers::strip_hop_by_hop(&mut fields);
    as_upgrade(&mut fields);
    session.set_cookies(candidate, &mut fields);
    *response.headers_mut() = fields;
    response
}

fn pass_refusal(session: &Session, candidate: &Candidate, answer: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    session.set_cookies(candidate, &mut parts.headers);
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

impl Adoptable {
    /// Hands both sockets to the relay. The session is open from here on.
    pub fn adopt(
        mut self,
        front: &ProxyContext,
        client: (OwnedFd, Option<Departed>),
        from_client: Bytes,
        place: Option<Place>,
    ) {
        self.record.place = place;
        let (node, node_tls) = match self.node.leave() {
            Ok(node) => node,
            Err(error) => {
                tracing::warn!(%error, "node socket could not be handed to the relay");
                return;
            }
        };
        self.verdict.result = Handshake::Upgraded;
        self.verdict.meter.handshake_seconds(self.begun.elapsed());
        drop(self.verdict);
        front.access_log.open(access::Open { at: SystemTime::now(), session: self.record.session() });
        let (client, client_tls) = client;
        let tunnel = Tunnel {
            client,
            node,
            client_tls,
            node_tls,
            from_client,
            from_node: self.from_node,
            rules: self.rules,
            record: self.record,
        };
        if !front.relay.adopt(tunnel) {
            tracing::debug!("a tunnel came after the end of the relay");
        }
    }
}
