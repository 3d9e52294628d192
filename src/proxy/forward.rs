//! Plain HTTP: a request to its node and the answer back, both streamed.
//!
//! Another candidate is tried only when nothing of the request was sent. A request that went out on a kept
//! connection that turns out stale is sent once more, to the same node, if it is idempotent and has no body.
//! A node's connection is kept for the next request once both directions are at a message's end; else it is cut off,
//! and the rest of the upload with it ([`super::upload`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;

use super::accept::Connection;
use super::polling_session::{self, PollingPermit};
use super::request_body::{RequestBody, UploadProgress};
use super::session::Session;
use super::upstream::{PooledConnection, Upstream};
use crate::affinity::engine_io;
use crate::http::reply::ProxyError;
use crate::http::{Body, BodyError, headers};
use crate::pool::pick::Candidate;

/// The longest answer that is looked at for a Socket.IO sid. Handshake answers have some 120 bytes.
const HANDSHAKE: u64 = 4096;

/// Serves a plain request.
pub async fn serve(
    connection: &Connection,
    session: &Session,
    request: Request<RequestBody>,
) -> Result<Response<Body>, ProxyError> {
    let opening = polling_session::admit(connection, session, &request).await?;
    let is_heard = session.pool.tags_sids() || session.pool.idle_timeout_lint.is_pending();
    let is_handshake = is_heard && engine_io::is_polling_handshake(request.method(), request.uri().query());
    let upload = request.body().progress().clone();
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    *request.version_mut() = Version::HTTP_11;
    let trailers = headers::forwardable_trailers(request.headers());
    headers::strip_hop_by_hop(request.headers_mut());
    if let Some(trailers) = trailers {
        request.headers_mut().insert(TRAILER, trailers);
    }
    if is_chunked {
        // It is the only coding that a request may have here. Left to itself, hyper takes a GET to have no body.
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers::set_forwarded(request.headers_mut(), connection.peer, &session.client);
    headers::set_client_subject(request.headers_mut(), connection.subject.as_ref());
    let within = session.pool.config.timeouts.request;
    let sent = send(connection, session, request);
    let sent = tokio::time::timeout(within, sent).await.unwrap_or(Err(ProxyError::NodeTimeout));
    let (candidate, answer, lease) = sent.inspect_err(|_| opening.iter().for_each(PollingPermit::cancel))?;
    session.pool.meter.affinity(candidate.source(), candidate.outcome.as_str());
    let upstream = Arc::clone(&session.pool.upstreams[candidate.node]);
    let mut answer = answer.map(|body| Answer { body, upload, kept: Some((lease, upstream)) }.boxed_unsync());
    headers::strip_hop_by_hop(answer.headers_mut());
    session.set_cookies(&candidate, answer.headers_mut());
    if is_handshake || opening.is_some() {
        return hear_handshake(session, &candidate, answer, (is_handshake, opening)).await;
    }
    Ok(answer)
}

type Sent = (Candidate, Response<Incoming>, PooledConnection);

async fn send(
    connection: &Connection,
    session: &Session,
    request: Request<Body>,
) -> Result<Sent, ProxyError> {
    let front = &connection.front;
    let spare = spare(&request);
    let mut request = Some(request);
    let mut candidates = session.candidates(front, false);
    let mut is_exhausted = false;
    for candidate in candidates.by_ref() {
        let upstream = &session.pool.upstreams[candidate.node];
        let mut fresh = false;
        // At most twice: on a kept connection, and on a new one if that was stale.
        while let Some(unsent) = request.take().or_else(|| spare.as_ref().map(copy)) {
            let leased = upstream.acquire_connection(session.ends(connection), fresh, &front.tasks).await;
            let mut lease = match leased {
                Ok(lease) => lease,
                Err(fault) => {
                    request = Some(unsent);
                    is_exhausted |= fault.is_own();
                    session.record_dial_failure(front, candidate.node, &fault);
                    break;
                }
            };
            match lease.sender.try_send_request(unsent).await {
                Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    let what = "the node's 101 answers a request for no upgrade";
                    session.record_bad_answer(front, candidate.node, what);
                    return Err(ProxyError::BadNodeResponse(what.into()));
                }
                Ok(answer) => {
                    session.record_success(front, candidate.node);
                    return Ok((candidate, answer, lease));
                }
                Err(mut fault) => {
                    request = fault.take_message();
                    let again = lease.is_reused && (request.is_some() || spare.is_some());
                    if !again {
                        return Err(broke_off(connection, session, candidate.node, fault.error()));
                    }
                    fresh = true;
                }
            }
        }
    }
    Err(if is_exhausted { ProxyError::LocalExhaustion } else { Session::failure(candidates.shortage()) })
}

/// Whose fault it is that there is no answer: a client whose body broke off must not get a node ejected.
fn broke_off(connection: &Connection, session: &Session, node: usize, error: &hyper::Error) -> ProxyError {
    if error.is_user() {
        return if connection.link.is_body_too_slow() { ProxyError::BodyTooSlow } else { ProxyError::Body };
    }
    let what = format!("the node's answer broke off: {error}");
    session.record_bad_answer(&connection.front, node, &what);
    ProxyError::BadNodeResponse(what)
}

/// A copy to send once more, of a request that may be.
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

/// Shows the answer of a Socket.IO handshake to the doctor and to who counts the sessions, and puts the node's tag into
/// its sid where the pool wants that; what is not understood stays as it is.
async fn hear_handshake(
    session: &Session,
    candidate: &Candidate,
    answer: Response<Body>,
    (is_handshake, opening): (bool, Option<PollingPermit>),
) -> Result<Response<Body>, ProxyError> {
    if !answer.status().is_success() {
        opening.iter().for_each(PollingPermit::cancel);
        return Ok(answer);
    }
    let is_short = answer.body().size_hint().upper().is_some_and(|most| most <= HANDSHAKE);
    let is_text =
        answer.headers().get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !(is_short && is_text) {
        return Ok(answer);
    }
    let (mut parts, body) = answer.into_parts();
    let body = body.collect().await;
    let body =
        body.map_err(|fault| ProxyError::BadNodeResponse(format!("the node's answer broke off: {fault}")))?;
    let mut body = body.to_bytes();
    opening.iter().for_each(|opening| opening.confirm(&body));
    if is_handshake {
        session.pool.idle_timeout_lint.check_open_packet(&session.pool.config, &body);
    }
    let tag = session.pool.nodes.tag(candidate.node).filter(|_| is_handshake && session.pool.tags_sids());
    if let Some(tagged) = tag.and_then(|tag| engine_io::tag_answer(&body, tag)) {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(tagged.len()));
        body = tagged.into();
    }
    Ok(Response::from_parts(parts, Full::new(body).map_err(|never| match never {}).boxed_unsync()))
}

/// A node's answer; its connection is kept for the next request once it has been read to the end, and the request was
/// sent to its own.
struct Answer {
    body: Incoming,
    upload: UploadProgress,
    kept: Option<(PooledConnection, Arc<Upstream>)>,
}

impl http_body::Body for Answer {
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

impl Drop for Answer {
    fn drop(&mut self) {
        if self.body.is_end_stream()
            && self.upload.is_whole()
            && let Some((lease, upstream)) = self.kept.take()
        {
            upstream.release_connection(lease);
        }
    }
}
