//! The handshake with a node: the candidates are dialled and asked one after the other.
//!
//! A node gets the request head alone: what the client sent behind it stays in the request stream until the client has
//! been told 101 (invariant I5). So another node can be asked as long as none has accepted: when one cannot be reached,
//! breaks off before its answer, or answers 502, 503 or 504. If no node does better, the client gets the answer of the
//! last one. How many nodes are asked is bounded for each handshake and for all of the pool ([`crate::pool::retry`]). A
//! request of an Engine.IO session is sent to its own node alone: no other knows the session.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::client_connection::ClientConnection;
use super::session::ProxySession;
use super::upstream::MAX_RESPONSE_HEAD;
use crate::http::reply::ProxyError;
use crate::http::{Body, headers};
use crate::metrics::NodePermit;
use crate::net::stream::Stream;
use crate::pool::select::Candidate;
use crate::ws::handshake::{self, UpgradeOffer, UpgradeResponseError};

/// A valid upgrade request.
pub(super) struct WebSocketUpgrade {
    target: Uri,
    fields: HeaderMap,
    /// What a 101 is checked against.
    offer: UpgradeOffer,
}

impl WebSocketUpgrade {
    /// Checks the request of a client.
    ///
    /// # Errors
    ///
    /// [`ProxyError::Upgrade`] when it is no valid WebSocket handshake.
    pub(super) fn check<B>(request: Request<B>) -> Result<Self, ProxyError> {
        let (parts, _) = request.into_parts();
        let offer = handshake::check_request(&parts.method, parts.version, &parts.headers);
        Ok(Self { offer: offer.map_err(ProxyError::Upgrade)?, target: parts.uri, fields: parts.headers })
    }

    /// Makes its fields those that nodes get.
    fn forward_for(&mut self, connection: &ClientConnection, session: &ProxySession) {
        headers::strip_hop_by_hop(&mut self.fields);
        headers::set_forwarded(&mut self.fields, connection.peer, &session.client);
        headers::set_client_subject(&mut self.fields, connection.subject.as_ref());
        set_upgrade(&mut self.fields);
    }

    /// The request for one node.
    fn to_request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.target.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.fields.clone();
        request
    }

    /// The query of its target.
    pub(super) fn query(&self) -> Option<&str> {
        self.target.query()
    }
}

/// The answer of a node.
pub(super) enum UpgradeAnswer {
    /// A valid 101.
    Accepted(Box<AcceptedUpgrade>),
    /// Something else, which the client gets as it is.
    Rejected(RejectedUpgrade),
}

/// A node's valid 101.
pub(super) struct AcceptedUpgrade {
    /// The node.
    pub candidate: Candidate,
    /// Counts the tunnel on it.
    pub permit: NodePermit,
    /// The connection to it.
    pub node: Stream,
    /// What it has sent behind its head.
    pub from_node: Bytes,
    /// The fields of its answer.
    pub fields: HeaderMap,
}

/// A node's answer that is no 101.
pub(super) struct RejectedUpgrade {
    candidate: Candidate,
    response: Response<Incoming>,
}

/// A candidate with room for the tunnel.
struct ReservedNode {
    candidate: Candidate,
    permit: NodePermit,
}

/// What one node answered.
struct AttemptResult {
    answer: Result<UpgradeAnswer, ProxyError>,
    /// Another node may be asked.
    is_retryable: bool,
}

type NodeConnection = http1::Connection<TokioIo<Stream>, Empty<Bytes>>;

/// An upgrade on its way to a node.
struct NodeHandshake<'a> {
    connection: &'a ClientConnection,
    session: &'a ProxySession,
    upgrade: &'a WebSocketUpgrade,
    /// When an answer must be there.
    deadline: Instant,
}

/// Dials and asks the candidates in turn; the first answer that is final decides.
///
/// # Errors
///
/// When no candidate could be reached, or the last one that was asked gave no answer.
pub(super) async fn ask_nodes(
    connection: &ClientConnection,
    session: &ProxySession,
    upgrade: &mut WebSocketUpgrade,
) -> Result<UpgradeAnswer, ProxyError> {
    upgrade.forward_for(connection, session);
    let pool = &session.pool;
    pool.retry_budget.lock().record_handshake(pool.config.retries, connection.context.now());
    let deadline = Instant::now() + pool.config.timeouts.handshake;
    NodeHandshake { connection, session, upgrade, deadline }.run().await
}

impl NodeHandshake<'_> {
    async fn run(&self) -> Result<UpgradeAnswer, ProxyError> {
        let mut candidates = self.session.candidates(&self.connection.context);
        let (mut is_exhausted, mut asked, mut last) = (false, 0, None);
        let mut is_allowed = true;
        for candidate in candidates.by_ref() {
            if !is_allowed && !self.may_retry(asked) {
                break;
            }
            // A dial that fails uses nothing up.
            is_allowed = true;
            let Some(reserved) = self.reserve(candidate) else { continue };
            let stream = match self.dial(&reserved.candidate, &mut is_exhausted).await {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(error) => return last.unwrap_or(Err(error)),
            };
            let result = self.ask(reserved, stream).await;
            if !result.is_retryable {
                return result.answer;
            }
            (is_allowed, asked) = (false, asked + 1);
            last = Some(result.answer);
        }
        last.unwrap_or_else(|| Err(ProxySession::exhausted(candidates.no_node_reason(), is_exhausted)))
    }

    /// Room for a tunnel on the candidate, which may have filled up since it was selected: others ask at the same time.
    fn reserve(&self, candidate: Candidate) -> Option<ReservedNode> {
        let upstream = &self.session.pool.upstreams[candidate.node];
        let permit = upstream.meter.try_acquire_permit(upstream.node.max_connections.unwrap_or(u32::MAX))?;
        Some(ReservedNode { candidate, permit })
    }

    /// Whether one more node may be asked after so many.
    fn may_retry(&self, asked: u32) -> bool {
        let pool = &self.session.pool;
        if self.session.in_session || asked >= pool.config.retries.attempts {
            return false;
        }
        let is_there = pool.retry_budget.lock().try_take(self.connection.context.now());
        pool.meter.record_retry(is_there);
        is_there
    }

    /// A connection to the candidate; `None` when there is none, and the next may be tried.
    async fn dial(
        &self,
        candidate: &Candidate,
        is_exhausted: &mut bool,
    ) -> Result<Option<Stream>, ProxyError> {
        let upstream = &self.session.pool.upstreams[candidate.node];
        let dialled = timeout_at(self.deadline, upstream.dial(self.session.ends(self.connection))).await;
        match dialled.map_err(|_| ProxyError::NodeTimeout)? {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => {
                tracing::debug!(node = %upstream.node.id, %error, "node unreachable, trying the next");
                *is_exhausted |= error.is_local();
                self.session.record_dial_failure(&self.connection.context, candidate.node, &error);
                Ok(None)
            }
        }
    }

    async fn ask(&self, node: ReservedNode, stream: Stream) -> AttemptResult {
        let candidate = &node.candidate;
        let Ok(sent) = timeout_at(self.deadline, self.send(stream)).await else {
            let within = self.session.pool.config.timeouts.handshake;
            self.record_failure(candidate, &format!("no answer to an upgrade within {within:?}"));
            return AttemptResult { answer: Err(ProxyError::NodeTimeout), is_retryable: false };
        };
        let (response, http) = match sent {
            Ok(answered) => answered,
            Err(error) => {
                let what = format!("the node's answer broke off: {error}");
                self.record_failure(candidate, &what);
                return AttemptResult { answer: Err(ProxyError::BadNodeResponse(what)), is_retryable: true };
            }
        };
        self.session.pool.meter.record_affinity(candidate.source_label(), candidate.outcome.as_str());
        if response.status() == handshake::YES {
            return AttemptResult { answer: self.accept(node, response, http).await, is_retryable: false };
        }
        self.reject(node.candidate, response, http)
    }

    /// Takes an answer that is no 101. The connection ends with it, as the request stream has stopped.
    fn reject(
        &self,
        candidate: Candidate,
        response: Response<Incoming>,
        http: NodeConnection,
    ) -> AttemptResult {
        self.connection.context.tasks.spawn(async move {
            let _ = http.await;
        });
        let is_retryable = is_unavailable(response.status());
        if is_retryable {
            let what = format!("an upgrade was answered with {}", response.status().as_u16());
            self.record_failure(&candidate, &what);
        } else {
            self.session.record_success(&self.connection.context, candidate.node);
        }
        AttemptResult {
            answer: Ok(UpgradeAnswer::Rejected(RejectedUpgrade { candidate, response })),
            is_retryable,
        }
    }

    fn record_failure(&self, candidate: &Candidate, what: &str) {
        let node = &self.session.pool.upstreams[candidate.node].node.id;
        tracing::debug!(%node, what, "upgrade failed at the node");
        self.session.record_bad_answer(&self.connection.context, candidate.node, what);
    }

    /// Sends the request, and gives the head of the answer and the connection that it came on.
    async fn send(&self, stream: Stream) -> hyper::Result<(Response<Incoming>, NodeConnection)> {
        let request = self.upgrade.to_request();
        let mut http = http1::Builder::new();
        http.max_buf_size(MAX_RESPONSE_HEAD);
        let (mut sender, mut http) = http.handshake(TokioIo::new(stream)).await?;
        let mut answer = Box::pin(sender.send_request(request));
        let answer = tokio::select! {
            answer = &mut answer => answer,
            ended = poll_fn(|cx| http.poll_without_shutdown(cx)) => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        };
        Ok((answer?, http))
    }

    /// Checks a 101 and takes the connection.
    async fn accept(
        &self,
        node: ReservedNode,
        response: Response<Incoming>,
        mut http: NodeConnection,
    ) -> Result<UpgradeAnswer, ProxyError> {
        let ReservedNode { candidate, permit } = node;
        if let Err(error) = self.upgrade.offer.check_response(response.headers()) {
            // Whether a subprotocol fits is between the client and the node's application.
            if error != UpgradeResponseError::Protocol {
                self.record_failure(&candidate, &error.to_string());
            }
            return Err(ProxyError::BadNodeResponse(error.to_string()));
        }
        let ended = poll_fn(|cx| Pin::new(&mut http).poll_without_shutdown(cx)).await;
        ended
            .map_err(|error| ProxyError::BadNodeResponse(format!("the node's answer broke off: {error}")))?;
        self.session.record_success(&self.connection.context, candidate.node);
        let (parts, fields) = (http.into_parts(), response.into_parts().0.headers);
        let (node, from_node) = (parts.io.into_inner(), parts.read_buf);
        Ok(UpgradeAnswer::Accepted(Box::new(AcceptedUpgrade { candidate, permit, node, from_node, fields })))
    }
}

impl RejectedUpgrade {
    /// The answer as the client gets it.
    pub(super) fn into_response(self, session: &ProxySession) -> Response<Body> {
        let (mut parts, body) = self.response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        session.set_cookies(&self.candidate, &mut parts.headers);
        Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
    }
}

/// The node cannot serve at the moment, which is not the client's fault.
fn is_unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// Sets the fields of this hop that every upgrade has.
pub(super) fn set_upgrade(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
}
