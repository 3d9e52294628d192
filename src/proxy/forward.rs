//! Plain HTTP: a request to its node and the answer back, both streamed.
//!
//! Another candidate is tried only when nothing of the request was sent. A request that was sent on an idle connection
//! that turns out stale is sent once more, to the same node, if it is idempotent and has no body. A node's connection is
//! kept for the next request once both directions are at the end of a message; else it is closed, and the rest of the
//! upload with it ([`super::request_body`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;

use super::client_connection::ClientConnection;
use super::polling_session::PollingPermit;
use super::request_body::{RequestBody, UploadProgress};
use super::session::ProxySession;
use super::upstream::{PooledConnection, Upstream};
use crate::affinity::engine_io;
use crate::http::reply::ProxyError;
use crate::http::{Body, BodyError, headers};
use crate::pool::select::Candidate;

/// The longest body that is read as an open packet. Those of Socket.IO have some 120 bytes.
const MAX_OPEN_PACKET: u64 = 4096;

/// What the answer to a polling request that may open a session is looked at for.
struct PollingHandshake {
    /// Its body may be an open packet, which the pool has a use for.
    reads_open_packet: bool,
    /// Counts the session that the answer may open.
    permit: Option<PollingPermit>,
}

/// A node's response, and what it came on.
struct ForwardedResponse {
    candidate: Candidate,
    response: Response<Incoming>,
    connection: PooledConnection,
}

/// Forwards a plain request to a node.
///
/// # Errors
///
/// When the client is over a limit, no node could be reached, or the node gave no answer.
pub(super) async fn forward(
    connection: &ClientConnection,
    session: &ProxySession,
    request: Request<RequestBody>,
) -> Result<Response<Body>, ProxyError> {
    let permit = session.admit_plain(connection, &request).await?;
    let has_use = session.pool.tags_sids() || session.pool.idle_timeout_lint.is_pending();
    let reads_open_packet =
        has_use && engine_io::is_polling_handshake(request.method(), request.uri().query());
    let polling = PollingHandshake { reads_open_packet, permit };
    let upload = request.body().progress().clone();
    let request = request_for_node(connection, session, request);
    let within = session.pool.config.timeouts.request;
    let sent = tokio::time::timeout(within, send(connection, session, request)).await;
    let sent = sent.unwrap_or(Err(ProxyError::NodeTimeout));
    let ForwardedResponse { candidate, response, connection } =
        sent.inspect_err(|_| polling.permit.iter().for_each(PollingPermit::cancel))?;
    session.pool.meter.record_affinity(candidate.source_label(), candidate.outcome.as_str());
    let upstream = Arc::clone(&session.pool.upstreams[candidate.node]);
    let wrap = |body| ResponseBody { body, upload, kept: Some((connection, upstream)) }.boxed_unsync();
    let mut response = response.map(wrap);
    headers::strip_hop_by_hop(response.headers_mut());
    session.set_cookies(&candidate, response.headers_mut());
    if polling.reads_open_packet || polling.permit.is_some() {
        return polling.read_response(session, &candidate, response).await;
    }
    Ok(response)
}

/// The request as its node gets it.
fn request_for_node(
    connection: &ClientConnection,
    session: &ProxySession,
    request: Request<RequestBody>,
) -> Request<Body> {
    let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    *request.version_mut() = Version::HTTP_11;
    let fields = request.headers_mut();
    let is_chunked = fields.contains_key(TRANSFER_ENCODING);
    let trailers = headers::forwardable_trailers(fields);
    headers::strip_hop_by_hop(fields);
    if let Some(trailers) = trailers {
        fields.insert(TRAILER, trailers);
    }
    if is_chunked {
        // It is the only coding that a request may have here. Left to itself, hyper takes a GET to have no body.
        fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers::set_forwarded(fields, connection.peer, &session.client);
    headers::set_client_subject(fields, connection.subject.as_ref());
    request
}

async fn send(
    connection: &ClientConnection,
    session: &ProxySession,
    request: Request<Body>,
) -> Result<ForwardedResponse, ProxyError> {
    let context = &connection.context;
    let spare = spare(&request);
    let mut request = Some(request);
    let mut candidates = session.candidates(context);
    let mut is_exhausted = false;
    for candidate in candidates.by_ref() {
        let upstream = &session.pool.upstreams[candidate.node];
        let mut fresh = false;
        // At most twice: on an idle connection, and on a new one if that was stale.
        while let Some(unsent) = request.take().or_else(|| spare.as_ref().map(copy)) {
            let acquired = upstream.acquire_connection(session.ends(connection), fresh, &context.tasks).await;
            let mut node = match acquired {
                Ok(node) => node,
                Err(error) => {
                    request = Some(unsent);
                    is_exhausted |= error.is_local();
                    session.record_dial_failure(context, candidate.node, &error);
                    break;
                }
            };
            match node.sender.try_send_request(unsent).await {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    let what = "the node's 101 answers a request for no upgrade";
                    session.record_bad_answer(context, candidate.node, what);
                    return Err(ProxyError::BadNodeResponse(what.into()));
                }
                Ok(response) => {
                    session.record_success(context, candidate.node);
                    return Ok(ForwardedResponse { candidate, response, connection: node });
                }
                Err(mut error) => {
                    request = error.take_message();
                    let may_repeat = node.is_reused && (request.is_some() || spare.is_some());
                    if !may_repeat {
                        return Err(send_error(connection, session, candidate.node, error.error()));
                    }
                    fresh = true;
                }
            }
        }
    }
    Err(ProxySession::exhausted(candidates.no_node_reason(), is_exhausted))
}

/// Whose fault it is that there is no answer: a client whose body broke off must not get a node ejected.
fn send_error(
    connection: &ClientConnection,
    session: &ProxySession,
    node: usize,
    error: &hyper::Error,
) -> ProxyError {
    if error.is_user() {
        return if connection.tracker.is_body_too_slow() {
            ProxyError::BodyTooSlow
        } else {
            ProxyError::Body
        };
    }
    let what = format!("the node's answer broke off: {error}");
    session.record_bad_answer(&connection.context, node, &what);
    ProxyError::BadNodeResponse(what)
}

/// A copy to send once more, of a request that may be repeated.
fn spare(request: &Request<Body>) -> Option<Request<()>> {
    let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE];
    let may = request.body().is_end_stream() && idempotent.contains(request.method());
    may.then(|| copy_head(request))
}

fn copy_head<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn copy(spare: &Request<()>) -> Request<Body> {
    copy_head(spare).map(|()| Empty::new().map_err(|never| match never {}).boxed_unsync())
}

impl PollingHandshake {
    /// Reads the response of a Socket.IO handshake for the idle timeout lint and the count of sessions, and puts the
    /// node's tag into its sid where the pool wants that. A response that is not understood stays as it is.
    async fn read_response(
        self,
        session: &ProxySession,
        candidate: &Candidate,
        response: Response<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        if !response.status().is_success() {
            self.permit.iter().for_each(PollingPermit::cancel);
            return Ok(response);
        }
        let is_short = response.body().size_hint().upper().is_some_and(|most| most <= MAX_OPEN_PACKET);
        let kind = response.headers().get(CONTENT_TYPE);
        let is_text = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
        if !(is_short && is_text) {
            return Ok(response);
        }
        let (mut parts, body) = response.into_parts();
        let broken = |error| ProxyError::BadNodeResponse(format!("the node's answer broke off: {error}"));
        let mut body = body.collect().await.map_err(broken)?.to_bytes();
        self.permit.iter().for_each(|permit| permit.confirm(&body));
        let pool = &session.pool;
        if self.reads_open_packet {
            pool.idle_timeout_lint.check_open_packet(&pool.config, &body);
        }
        let tag = pool.nodes.tag(candidate.node).filter(|_| self.reads_open_packet && pool.tags_sids());
        if let Some(tagged) = tag.and_then(|tag| engine_io::tag_response(&body, tag)) {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(tagged.len()));
            body = tagged.into();
        }
        Ok(Response::from_parts(parts, Full::new(body).map_err(|never| match never {}).boxed_unsync()))
    }
}

/// The body of a node's response. Its connection is released for the next request once the response was read and the
/// request was sent, both to the end.
struct ResponseBody {
    body: Incoming,
    upload: UploadProgress,
    kept: Option<(PooledConnection, Arc<Upstream>)>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.body.is_end_stream()
            && self.upload.is_whole()
            && let Some((connection, upstream)) = self.kept.take()
        {
            upstream.release_connection(connection);
        }
    }
}
