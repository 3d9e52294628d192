//! Polling: a GET that waits for packets and a POST that brings some, at most one of each at a time.
//!
//! A GET is answered with everything that waits. A second one, a second POST, a body of the wrong type or a request
//! whose client leaves before the answer ends the session; a POST that is too long does not.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::time::timeout;

use crate::engine_io::response::{RequestError, empty_response, response};
use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::ending::CloseReason;
use crate::engine_io::session::frame::Frame;
use crate::engine_io::session::packet::EnginePacket;
use crate::engine_io::session::state::PollingState;
use crate::engine_io::transport::polling::compression;
use crate::engine_io::transport::polling::jsonp;
use crate::engine_io::transport::polling::payload::{self, Payload, PayloadFormat};
use crate::response::HttpResponse;

/// A whole POST must be here by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers a request of a polling session.
pub(crate) async fn respond<B>(
    connection: &Arc<Connection>,
    parts: &Parts,
    body: B,
) -> Result<HttpResponse, RequestError>
where
    B: Body,
{
    match parts.method {
        Method::GET => answer_get(connection, parts).await,
        Method::POST => answer_post(connection, parts, body).await,
        _ => Ok(empty_response(StatusCode::INTERNAL_SERVER_ERROR)),
    }
}

/// The answer to the handshake: the open packet alone, as clients expect it.
pub(crate) fn open_response(connection: &Connection, parts: &Parts) -> HttpResponse {
    let open = connection.context.open_packet(connection.sid(), false);
    packets_response(connection, parts, &VecDeque::from([Frame::packet(b'0', &open)]))
}

/// What a GET came upon.
pub(crate) enum GetStart {
    /// It may wait.
    Waits,
    /// Another one waits already.
    Overlaps,
    /// The session has ended.
    Gone,
}

async fn answer_get(connection: &Arc<Connection>, parts: &Parts) -> Result<HttpResponse, RequestError> {
    match connection.begin_get() {
        GetStart::Waits => {}
        GetStart::Overlaps => {
            connection.finish(CloseReason::TransportError);
            return Ok(empty_response(StatusCode::BAD_REQUEST));
        }
        GetStart::Gone => return Err(RequestError::UnknownSid),
    }
    let mut unanswered = UnansweredRequest::get(connection);
    let frames = poll_fn(|cx| connection.poll_get(cx)).await;
    unanswered.is_answered = true;
    Ok(packets_response(connection, parts, &frames))
}

async fn answer_post<B: Body>(
    connection: &Arc<Connection>,
    parts: &Parts,
    body: B,
) -> Result<HttpResponse, RequestError> {
    let is_binary = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/octet-stream");
    let revision = connection.revision();
    let may_begin = connection.polling(|polling| !std::mem::replace(&mut polling.has_post, true));
    match may_begin {
        Some(true) if !is_binary || revision == crate::engine_io::session::packet::Revision::Three => {}
        Some(_) => {
            connection.finish(CloseReason::TransportError);
            return Ok(empty_response(StatusCode::BAD_REQUEST));
        }
        None => return Err(RequestError::BadRequest),
    }
    let mut unanswered = UnansweredRequest::post(connection);
    let body = match timeout(BODY_TIMEOUT, read_body(body, connection.context.settings.max_payload as usize))
        .await
    {
        Ok(Ok(body)) => body,
        Ok(Err(BodyError::TooLong)) => {
            unanswered.is_answered = true;
            return Ok(empty_response(StatusCode::PAYLOAD_TOO_LARGE));
        }
        // What is left unanswered ends the session.
        Ok(Err(BodyError::Broken)) | Err(_) => return Ok(empty_response(StatusCode::BAD_REQUEST)),
    };
    deliver(connection, &body, PayloadFormat { revision, takes_binary: is_binary });
    unanswered.is_answered = true;
    Ok(response(StatusCode::OK, &[(CONTENT_TYPE, "text/html"), (CACHE_CONTROL, "no-store")], "ok"))
}

fn deliver(connection: &Arc<Connection>, body: &[u8], form: PayloadFormat) {
    let Some(handler) = connection.handler() else { return };
    let is_script = connection.polling(|polling| polling.jsonp.is_some()) == Some(true);
    let unwrapped = is_script.then(|| jsonp::form_payload(&String::from_utf8_lossy(body)));
    let body = match &unwrapped {
        Some(Some(payload)) => payload.as_bytes(),
        Some(None) => return,
        None => body,
    };
    payload::decode(body, form, |packet| {
        if packet == Some(EnginePacket::Close) {
            connection.polling(|polling| polling.client_left = true);
            connection.finish(CloseReason::TransportClose);
            return false;
        }
        connection.receive(&handler, packet)
    });
    connection.finish_cut();
}

/// Whether a body could not be taken because of its length.
enum BodyError {
    TooLong,
    /// It broke off.
    Broken,
}

async fn read_body<B: Body>(body: B, most: usize) -> Result<Vec<u8>, BodyError> {
    if body.size_hint().lower() > most as u64 {
        return Err(BodyError::TooLong);
    }
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(BodyError::Broken) };
        let Ok(mut data) = frame.into_data() else { continue };
        if bytes.len() + data.remaining() > most {
            return Err(BodyError::TooLong);
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            bytes.extend_from_slice(chunk);
            let length = chunk.len();
            data.advance(length);
        }
    }
    Ok(bytes)
}

/// The answer that carries `frames`.
fn packets_response(connection: &Connection, parts: &Parts, frames: &VecDeque<Frame>) -> HttpResponse {
    // An upgraded session's last poll is a noop, which looks the same in every form.
    let (form, script) =
        connection.polling(|polling| polling.format(connection)).unwrap_or((connection.text_format(), None));
    let (kind, body) = match Payload::encode(frames.iter(), form) {
        Payload::Binary(data) => ("application/octet-stream", Bytes::from(data)),
        Payload::Text(text) => {
            let text = script.map_or(text.clone(), |head| jsonp::wrap_payload(&head, &text));
            ("text/plain; charset=UTF-8", Bytes::from(text))
        }
    };
    let mut packets =
        response(StatusCode::OK, &[(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")], Bytes::new());
    compression::set_body(&mut packets, &parts.headers, body);
    packets
}

impl PollingState {
    fn format(&self, connection: &Connection) -> (PayloadFormat, Option<Box<str>>) {
        let form = PayloadFormat {
            takes_binary: self.takes_binary && self.jsonp.is_none(),
            ..connection.text_format()
        };
        (form, self.jsonp.clone())
    }
}

/// A request that has not been answered. When it is dropped like that, its client has left, and the session ends.
struct UnansweredRequest<'a> {
    connection: &'a Arc<Connection>,
    is_post: bool,
    is_answered: bool,
}

impl<'a> UnansweredRequest<'a> {
    fn get(connection: &'a Arc<Connection>) -> Self {
        Self { connection, is_post: false, is_answered: false }
    }

    fn post(connection: &'a Arc<Connection>) -> Self {
        Self { connection, is_post: true, is_answered: false }
    }
}

impl Drop for UnansweredRequest<'_> {
    fn drop(&mut self) {
        let still_polls = self.connection.polling(|polling| {
            if self.is_post {
                polling.has_post = false;
            } else {
                polling.has_get = false;
            }
        });
        if !self.is_answered && still_polls.is_some() {
            self.connection.finish(CloseReason::TransportError);
        }
    }
}
