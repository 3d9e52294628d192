//! What every answer has, whoever made it: a date, the end of the connection where that is due, and its request in
//! flight until it is out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::client_connection::ClientConnection;
use super::request_body::{RequestBody, UploadProgress};
use crate::http::reply::ProxyError;
use crate::http::request_stream::InFlightRequest;
use crate::http::server::Reply;
use crate::http::{Body, BodyError, headers};
use crate::ws::handshake;

/// A response that is still to be made.
pub(super) struct PendingResponse {
    is_upgrade: bool,
    upload: UploadProgress,
    in_flight: InFlightRequest,
}

impl PendingResponse {
    /// Begins the service of a request; an error when its head is faulty.
    pub(super) fn begin(
        connection: &ClientConnection,
        request: Request<Incoming>,
    ) -> (Self, Result<Request<RequestBody>, ProxyError>) {
        let (error, in_flight) = connection.tracker.begin_request();
        let is_upgrade = handshake::is_upgrade(request.headers());
        let (request, upload) = RequestBody::track(request);
        let request = error.map_or(Ok(request), |error| Err(ProxyError::Head(error)));
        (Self { is_upgrade, upload, in_flight }, request)
    }

    /// The reply as it goes out.
    pub(super) fn finish<T>(
        self,
        connection: &ClientConnection,
        answer: Result<Reply<T>, ProxyError>,
    ) -> Reply<T> {
        let mut reply = answer.unwrap_or_else(|error| self.reject(connection, &error));
        let response = &mut reply.response;
        if response.status() != handshake::YES {
            headers::ensure_date(response.headers_mut(), SystemTime::now());
            if connection.context.shutdown.is_superseded() || !self.upload.is_whole() {
                // The next request goes to the process that has taken over, or would stand behind a body that nobody
                // reads.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        let in_flight = self.in_flight;
        let track = |body| InFlightBody { body, _in_flight: in_flight }.boxed_unsync();
        Reply { response: reply.response.map(track), upgrade: reply.upgrade }
    }

    fn reject<T>(&self, connection: &ClientConnection, error: &ProxyError) -> Reply<T> {
        let (context, client) = (&connection.context, connection.peer);
        match error {
            ProxyError::Panicked => tracing::error!(%client, "request failed: panic in the balancer"),
            _ => tracing::debug!(%client, %error, "request rejected"),
        }
        match error {
            ProxyError::NoRoute | ProxyError::Target if self.is_upgrade => {
                context.metrics.record_unrouted_handshake(error.handshake_result());
            }
            ProxyError::NoRoute | ProxyError::Target | ProxyError::Head(_) => {
                context.metrics.record_unrouted_request(error.status().as_u16());
            }
            _ => {}
        }
        error.to_response(context.next_id()).into()
    }
}

/// The body of a response. Its request is in flight, and the clocks of its connection stand still, while it exists.
struct InFlightBody {
    body: Body,
    _in_flight: InFlightRequest,
}

impl http_body::Body for InFlightBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
